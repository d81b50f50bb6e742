"""What it costs to be seen: a batch that is followed, and a scrape.

Physical limits: the clock has to be read when a batch begins and ends, when it is published and
when it is acknowledged; the text of a scrape has to be written once.
"""

import asyncio
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from akocore.kube.objects import Batch, Change
from akocore.observe.metrics import Metrics
from akocore.observe.traces import Traces, traces
from akocore.observe.watch import Listener, Watch
from benchmarks.conftest import Measure
from benchmarks.limits import best_s, read_s
from e2e.running import Backend, Running
from e2e.scraping import ANYWHERE, endpoints, get

BATCH = Batch((Change("Ingress", "a/b", None),), {}, at=1.0)
SCRAPES = 30


class Spent:
    """Totals of no work."""

    encode_s = 0.0
    realised = 0


def nobody() -> list[Listener]:
    return []


def metrics() -> list[Listener]:
    return [Metrics()]


def both() -> list[Listener]:
    made = traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert made is not None
    return [Metrics(), made]


@pytest.mark.benchmark(group="followed-batch")
@pytest.mark.parametrize("listeners", [nobody, metrics, both])
def test_a_batch_is_followed_to_its_acknowledgement(
    measure: Measure, listeners: Callable[[], list[Listener]]
) -> None:
    heard = listeners()
    watch, spent, numbers = Watch(heard), Spent(), itertools.count(1)

    def follow() -> None:
        number = next(numbers)
        with watch.batch(BATCH, spent):
            watch.published("group", number, 1.0, True)
        watch.acknowledged("group", number)

    measure(follow, 1, 4 * best_s(time.monotonic))
    for listener in heard:
        if isinstance(listener, Traces):
            asyncio.run(listener.close())
    assert watch.unacknowledged("group") == (0, 0.0)


async def scraped(scratch: Path, count: int, size: str) -> tuple[list[float], int]:
    """Seconds of each scrape over HTTP, and the bytes of one."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    running = Running(scratch, server.sockets[0].getsockname()[1])
    running.options = ANYWHERE
    running.config = (
        f"defaults: {{shardSize: {size}}}\n"
        "networks: {default: {subnet: 127.11.0.0/16,"
        " vipRanges: [{begin: 127.11.0.1, end: 127.11.255.254}]}}\n"
    )
    for i in range(count):
        running.dummy("app", i)
    took, text = [], ""
    async with running:
        await running.until_up_to_date(count)
        at = await endpoints(running.log)
        for _ in range(SCRAPES):
            began = time.perf_counter()
            _, text = await get(at, "/metrics")
            took.append(time.perf_counter() - began)
    server.close()
    return sorted(took), len(text)


@pytest.mark.benchmark(group="scrape")
@pytest.mark.parametrize(
    "count, size",
    [(20, "LARGE"), (10_000, "LARGE"), (1_000, "DEDICATED")],
    ids=["20", "10k", "1k dedicated"],
)
def test_a_scrape(
    benchmark: Any, note: Callable[[str], None], tmp_path: Path, count: int, size: str
) -> None:
    found: list[tuple[list[float], int]] = []
    gc.collect()
    benchmark.pedantic(
        lambda: found.append(asyncio.run(scraped(tmp_path, count, size))), rounds=1, iterations=1
    )
    ((took, size_bytes),) = found
    median = statistics.median(took)
    note(
        f"scrape, {count} Ingresses, {size}: median {median * 1e3:.1f} ms over HTTP,"
        f" worst {took[-1] * 1e3:.1f} ms; {size_bytes} bytes, which are written in"
        f" {read_s(size_bytes) * 1e6:.1f} µs"
    )
    benchmark.extra_info.update(median_ms=median * 1e3, bytes=size_bytes)

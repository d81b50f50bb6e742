"""The whole way: files → akocore → two real Envoys → a client's 200.

Physical limits: a start can't be shorter than the processor time of all processes over the
machine's processors; an edit can't be served before an Envoy has done its own work for it,
which is the processor time that the two Envoys spend on an edit, over two.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from akocore import shard_hosts
from e2e.running import Backend, Client, Running

EDITS = 300
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def memory_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def loaded(log: str) -> tuple[float, float]:
    """Seconds that reading the files took, and applying them, as akocore's log says."""
    words = dict(w.split("=") for w in log.split("event=loaded ")[1].split("\n")[0].split())
    return float(words["read_ms"]) / 1000, float(words["apply_ms"]) / 1000


async def pipeline(scratch: Path, count: int) -> dict[str, Any]:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    running = Running(scratch, server.sockets[0].getsockname()[1])
    for i in range(count):
        running.dummy("app", i)
    began = time.perf_counter()
    async with running:
        while not (running.state / "control.sock").exists():
            await asyncio.sleep(0.01)
        async with asyncio.timeout(30):
            while (ready := running.log.read_text()).count("event=se_ready") != 2:
                await asyncio.sleep(0.01)
        started = time.perf_counter() - began
        engines = [e["pid"] for e in (await running.engines()).values()]
        spent = sum(map(cpu_s, [running.pid, *engines]))
        memory = [memory_mib(running.pid), *map(memory_mib, engines)]
        shown = await running.addresses()
        client = Client()
        bad = [host for host, address in shown.items() if await client.get(address, host) != 200]
        assert (len(shown), bad) == (count, [])
        used = [memory_mib(pid) for pid in engines]
        by_shard = dict(zip(shard_hosts(list(shown), 8), shown.values(), strict=True))

        before = sum(map(cpu_s, engines))
        edits = []
        for i in range(count, count + EDITS):
            host = f"app{i}.avi.iberia.local"
            address = by_shard[shard_hosts([host], 8)[0]]
            file = running.dummy("app", i)
            since = file.stat().st_ctime_ns  # the rename: what the file event tells
            while await client.get(address, host) != 200:
                await asyncio.sleep(0.0003)
            edits.append((time.time_ns() - since) / 1e9)
            await asyncio.sleep(0.01)
        work = (sum(map(cpu_s, engines)) - before) / len(engines) / EDITS
        client.close()
    server.close()
    read, apply = loaded(ready)
    return {
        "start": started,
        "read": read,
        "apply": apply,
        "cpu": spent,
        "memory": memory,
        "used": used,
        "edits": sorted(edits),
        "work": work,
    }


@pytest.mark.benchmark(group="pipeline")
@pytest.mark.parametrize("count", [100, 1_000, 10_000], ids=["100", "1k", "10k"])
def test_start_and_single_edits(
    benchmark: Any, note: Callable[[str], None], tmp_path: Path, count: int
) -> None:
    found: dict[str, Any] = {}

    def run() -> None:
        found.update(asyncio.run(pipeline(tmp_path, count)))

    benchmark.pedantic(run, rounds=1, iterations=1)
    edits = [1000 * s for s in found["edits"]]
    median, p99 = statistics.median(edits), edits[int(len(edits) * 0.99)]
    after_parse = found["start"] - found["read"]
    limit = found["cpu"] / (os.cpu_count() or 1)
    name = f"pipeline, {count} Ingresses:"
    note(
        f"{name} process start → all served {found['start']:.2f} s (files read in"
        f" {found['read']:.2f}, applied in {found['apply']:.2f}; without reading"
        f" {after_parse:.2f}); processor time over processors {limit:.2f} s,"
        f" {found['start'] / limit:.1f} times it"
    )
    note(
        f"{name} one new application, file → 200: median {median:.1f} ms, p99 {p99:.1f} ms;"
        f" Envoy's own work {found['work'] * 1000:.1f} ms,"
        f" {median / found['work'] / 1000:.1f} times it"
    )
    note(
        f"{name} memory: akocore {found['memory'][0]} MiB, Envoys {found['memory'][1:]} MiB,"
        f" after a request to every host {found['used']} MiB"
    )
    benchmark.extra_info.update(found | {"edits": None, "median_ms": median, "p99_ms": p99})

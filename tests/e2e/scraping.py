"""What Prometheus and a kubelet would ask of akocore."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

_AT = re.compile(r'event=metrics_served at=(\S+)|"event": "metrics_served", "at": "([^"]+)"')
ANYWHERE = ["--metrics-listen", "127.0.0.1:0"]


async def endpoints(log: Path) -> str:
    """HOST:PORT that an akocore with `ANYWHERE` has told in its log last."""

    def told() -> list[tuple[str, str]]:
        return _AT.findall(log.read_text())

    async with asyncio.timeout(20):
        while not (found := told()):
            await asyncio.sleep(0.02)
    return "".join(found[-1])


async def get(at: str, path: str, accept: str = "text/plain") -> tuple[int, str]:
    """Status and body."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{at}{path}", headers={"Accept": accept}) as answer,
    ):
        return answer.status, await answer.text()


async def scrape(at: str) -> dict[str, float]:
    """All samples, by ``name{label="value",...}``."""
    status, text = await get(at, "/metrics")
    assert status == 200, text
    out: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in out
            out[name] = sample.value
    return out


async def until(
    at: str, true: Callable[[dict[str, float]], bool], seconds: float = 20
) -> dict[str, float]:
    """Scrape until it is true of what was scraped; that."""
    found: dict[str, float] = {}
    try:
        async with asyncio.timeout(seconds):
            while not true(found := await scrape(at)):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not so: {found}") from None
    return found

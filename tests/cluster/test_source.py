"""The cluster as a source of batches: what needs no API server to be tried."""

from __future__ import annotations

import asyncio

from akocore.kube.api import ApiServer
from akocore.kube.cluster import Cluster
from akocore.kube.credentials import find_credentials
from akocore.kube.objects import Change


async def test_a_stop_is_heard_whenever_it_comes() -> None:
    for turns in range(8):  # of the event loop, between a change and the stop
        cluster, stop = Cluster(ApiServer(lambda: find_credentials(None))), asyncio.Event()

        async def follow(cluster: Cluster = cluster, stop: asyncio.Event = stop) -> int:
            return len([batch async for batch in cluster.watch(stop)])

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        cluster._take([Change("Ingress", "shop/a", None)])
        for _ in range(turns):
            await asyncio.sleep(0)
        stop.set()
        async with asyncio.timeout(10):
            assert await following <= 1

"""The whole way over a real API server: kubectl's write → akocore → two real Envoys → a 200.

``make bench-cluster`` runs it.  Physical limits: a boot can't be faster than the API server gives
the lists (fetched here as plain bytes, all kinds at once); a change can't be served before an
Envoy has done its own work for it, which is the processor time that the two spend on it, over two.
``AKOCORE_BENCH``: how many Ingresses at the most (10,000).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from akocore import shard_hosts
from akocore.cli.soak import Soak, cpu_seconds, memory_mib, percentile
from akocore.kube.api import ApiServer, resources
from akocore.kube.credentials import Credentials
from cluster.control_plane import ADMIN, ControlPlane
from cluster.controller import Controller, install
from cluster.pods import pods
from e2e.running import OFFSET, Client

MOST = int(os.environ.get("AKOCORE_BENCH", "10000"))
SIZES = sorted({min(size, MOST) for size in (100, 1_000, 10_000)})
SAMPLES = 200
FILLERS = 16
OTHERS = 1_000  # Ingresses of another class
Note = Callable[[str], None]


class Bench:
    """A cluster that grows, and what is measured on it."""

    def __init__(self, plane: ControlPlane, api: ApiServer, scratch: Path, endpoint: str) -> None:
        self.plane = plane
        self.api = api
        self.scratch = scratch
        self.endpoint = endpoint
        self.soak = Soak(api, "default", endpoint, 80 + OFFSET, seed=1)
        self.count = 0
        self.extra = 1_000_000  # numbers of what comes and goes
        self.controller: Controller

    async def grow(self, count: int) -> None:
        numbers = iter(range(self.count + 1, count + 1))

        async def fill() -> None:
            for number in numbers:
                await self.soak.create(number)

        await asyncio.gather(*(fill() for _ in range(FILLERS)))
        self.count = count

    async def lists_s(self) -> float:
        """How long the API server takes to give all that a controller reads."""
        wanted = ("Ingress", "Service", "EndpointSlice")
        began = time.perf_counter()
        await asyncio.gather(
            *(self.api.request("GET", resources()[kind].path()) for kind in wanted)
        )
        return time.perf_counter() - began

    async def boot(self) -> dict[str, float]:
        """Start a controller; seconds until both engines have everything, and until all is told."""
        lists = min([await self.lists_s() for _ in range(3)])
        self.controller = Controller(
            self.scratch / f"life-{time.time_ns()}", self.plane, self.endpoint
        )
        began = time.perf_counter()
        await self.controller.start()
        log = self.controller.log
        while not log.exists() or log.read_text().count("event=se_ready") < 2:
            await asyncio.sleep(0.01)
        served = time.perf_counter() - began
        while (await self.controller.said()).get("statusWaiting", 1):
            await asyncio.sleep(0.1)
        told = time.perf_counter() - began - served
        said = await self.controller.said()
        await self.all_answer()
        words = dict(w.split("=") for w in log.read_text().split("event=loaded ")[1].split()[:3])
        return {
            "lists": lists,
            "served": served,
            "told": told,
            "written": said["statusWritten"],
            "read": float(words["read_ms"]) / 1000,
            "apply": float(words["apply_ms"]) / 1000,
            "rss": memory_mib(said["pid"]),
            "cpu": cpu_seconds(said["pid"]),
        }

    async def all_answer(self) -> None:
        """Every host answers at the address that status says, with its newest path."""
        client, bad = Client(), []
        shown = await self.addresses()
        for number, version in self.soak.versions.items():
            host = self.soak.host(number)
            if await client.get(shown.get(host, "127.0.0.1"), host, f"/v{version}") != 200:
                bad.append(host)
        client.close()
        assert bad == []

    async def addresses(self) -> dict[str, str]:
        raw = await self.api.request("GET", resources()["Ingress"].path())
        return {
            point["hostname"]: point["ip"]
            for item in orjson.loads(raw)["items"]
            for point in item["status"]["loadBalancer"].get("ingress", ())
        }

    async def created(self, samples: int = SAMPLES) -> dict[str, Any]:
        """Ingresses made one after another: seconds from the API server's answer to a 200."""
        vips = await self.addresses()
        shards = dict(zip(shard_hosts(list(vips), 8), vips.values(), strict=True))
        engines = (await self.controller.said())["engines"].values()
        before = sum(map(cpu_seconds, engines))
        client, times = Client(), []
        for _ in range(samples):
            self.extra += 1
            host = self.soak.host(self.extra)
            address = shards[shard_hosts([host], 8)[0]]
            await self.soak.create(self.extra)
            began = time.perf_counter()
            while await client.get(address, host, "/v0") != 200:
                await asyncio.sleep(0.0003)
            times.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)
        client.close()
        work = (sum(map(cpu_seconds, engines)) - before) / 2 / samples
        return {"times": sorted(times), "work": work}

    async def remove_extra(self) -> None:
        for number in [n for n in self.soak.versions if n > 1_000_000]:
            await self.soak.delete(number)

    @asynccontextmanager
    async def churn(self, rate: float) -> AsyncIterator[None]:
        """Other Ingresses change at this rate meanwhile."""
        chance, ended = random.Random(3), asyncio.Event()

        async def change() -> None:
            while not ended.is_set():
                await self.soak.change(chance.randint(1, self.count))
                await asyncio.sleep(1 / rate)

        task = asyncio.create_task(change())
        try:
            yield
        finally:
            ended.set()
            await task

    async def cores(self, seconds: float) -> float:
        """Processors that the controller keeps busy."""
        pid = self.controller.pid
        before = cpu_seconds(pid)
        await asyncio.sleep(seconds)
        return (cpu_seconds(pid) - before) / seconds

    async def others(self) -> float:
        """Processor seconds that a thousand new Ingresses of another class cost."""
        before = cpu_seconds(self.controller.pid)
        numbers = iter(range(OTHERS))

        async def fill() -> None:
            for n in numbers:
                item = self.controller.app_items(n, "somebody-elses")[-1]
                item["metadata"] = {"name": f"other{n}", "namespace": "default"}
                path = resources()["Ingress"].path("default")
                await self.api.request("POST", path, None, orjson.dumps(item))

        await asyncio.gather(*(fill() for _ in range(FILLERS)))
        await asyncio.sleep(1)
        return cpu_seconds(self.controller.pid) - before


def _ms(times: list[float]) -> str:
    one = [1000 * s for s in times]
    return (
        f"p50 {statistics.median(one):.1f} ms, p99 {percentile(one, 0.99):.1f} ms,"
        f" max {one[-1]:.1f} ms"
    )


async def _measure(plane: ControlPlane, scratch: Path, endpoint: str, note: Note) -> None:
    found = Credentials(
        server=f"https://127.0.0.1:{plane.port}", authorization=f"Bearer {ADMIN}", verify=False
    )

    async def credentials() -> Credentials:
        return found

    other_class = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": "somebody-elses"},
        "spec": {"controller": "example.com/another"},
    }
    async with ApiServer(credentials) as api:
        await api.apply(resources()["IngressClass"].path(name="somebody-elses"), other_class, "me")
        bench = Bench(plane, api, scratch, endpoint)
        try:
            await _at_sizes(bench, note)
        finally:
            await bench.controller.stop()


async def _at_sizes(bench: Bench, note: Note) -> None:
    first = 0.0
    for size in SIZES:
        await bench.grow(size)
        boot = await bench.boot()
        name = f"{size:6} Ingresses:"
        note(
            f"{name} boot → all served {boot['served']:.2f} s, of which lists"
            f" {boot['read']:.2f} and apply {boot['apply']:.2f}; the API server's own lists"
            f" {boot['lists']:.2f} s: {boot['served'] - boot['lists']:.2f} s above them"
        )
        note(
            f"{name} {boot['written']} statuses and mirrors written {boot['told']:.1f} s after"
            f" that; RSS {boot['rss']:.0f} MiB, {boot['cpu']:.2f} CPU seconds so far"
        )
        quiet = await bench.created()
        note(
            f"{name} created → 200: {_ms(quiet['times'])}; Envoy's own work"
            f" {quiet['work'] * 1000:.1f} ms"
        )
        async with bench.churn(5):
            busy = await bench.created()
        note(f"{name} the same under 5 changes a second: {_ms(busy['times'])}")
        median = statistics.median(quiet["times"])
        first = first or median
        note(f"{name} median {median / first:.2f} times that at {SIZES[0]}")
        await asyncio.sleep(5)
        idle = await bench.cores(10)
        async with bench.churn(1):
            await asyncio.sleep(2)
            steady = await bench.cores(20)
        rss = memory_mib(bench.controller.pid)
        note(f"{name} cores: idle {idle:.3f}, at one change a second {steady:.3f}; RSS {rss:.0f}")
        if size == SIZES[-1]:
            cost = await bench.others()
            note(f"{name} {OTHERS} Ingresses of another class: {cost:.2f} CPU seconds")
        await bench.remove_extra()
        await bench.controller.stop()


def test_controller(tmp_path: Path, note: Note) -> None:
    """Boot, one change, churn, memory, processors: at 100, 1,000 and 10,000 Ingresses."""
    plane = ControlPlane(tmp_path / "plane")
    try:
        plane.start()
        install(plane)
        with pods() as endpoint:
            asyncio.run(_measure(plane, tmp_path, endpoint, note))
    finally:
        plane.stop()


INFORMER = """
import asyncio, sys, time, json
from pathlib import Path
kind, server, token = sys.argv[1:]
def rss():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith("VmRSS")).split()[1]) / 1024
if kind == "akocore":
    from akocore.kube.api import ApiServer, resources
    from akocore.kube.credentials import Credentials
    from akocore.kube.informer import Informer
    async def credentials():
        return Credentials(server=server, authorization=f"Bearer {token}", verify=False)
    async def run():
        global count, took
        kept = []
        async with ApiServer(credentials) as api:
            began = time.perf_counter()
            one = Informer(api, resources()["Ingress"], kept.extend)
            task = asyncio.ensure_future(one.run())
            await one.synced.wait()
            took, count = time.perf_counter() - began, len(kept)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    before = rss()
    asyncio.run(run())
else:
    import urllib3, kubernetes
    urllib3.disable_warnings()
    found = kubernetes.client.Configuration(host=server)
    found.verify_ssl = False
    found.api_key = {"BearerToken": f"Bearer {token}"}
    api = kubernetes.client.NetworkingV1Api(kubernetes.client.ApiClient(found))
    before = rss()
    began = time.perf_counter()
    if kind == "list":
        count = len(api.list_ingress_for_all_namespaces().items)
    else:
        from kubernetes.informer import SharedInformer
        one = SharedInformer(list_func=api.list_ingress_for_all_namespaces)
        one.start()
        while len(one.cache.list()) < int(Path("count").read_text()):
            time.sleep(0.01)
        count = len(one.cache.list())
    took = time.perf_counter() - began
print(json.dumps({"count": count, "seconds": took, "mib": rss() - before}), flush=True)
import os
os._exit(0)
"""


async def _fill_ingresses(plane: ControlPlane) -> float:
    found = Credentials(
        server=f"https://127.0.0.1:{plane.port}", authorization=f"Bearer {ADMIN}", verify=False
    )

    async def credentials() -> Credentials:
        return found

    async with ApiServer(credentials) as api:
        soak = Soak(api, "default", "10.0.0.1:80", 80, seed=1)
        numbers = iter(range(MOST))
        path = resources()["Ingress"].path("default")

        async def fill() -> None:
            for number in numbers:
                item = soak.objects(number, 0)[-1]
                await api.request("POST", path, None, orjson.dumps(item))

        await asyncio.gather(*(fill() for _ in range(FILLERS)))
        times = []
        for _ in range(3):
            began = time.perf_counter()
            await api.request("GET", resources()["Ingress"].path())
            times.append(time.perf_counter() - began)
        return min(times)


def test_informer(tmp_path: Path, note: Note) -> None:
    """One kind listed and kept, beside the ``kubernetes`` package's list and its informer."""
    import subprocess
    import sys

    plane = ControlPlane(tmp_path / "plane")
    try:
        plane.start()
        limit = asyncio.run(_fill_ingresses(plane))
        (tmp_path / "count").write_text(str(MOST))
        base = 0.0
        for kind in ("akocore", "list", "informer"):
            command = [sys.executable, "-c", INFORMER, kind]
            command += [f"https://127.0.0.1:{plane.port}", ADMIN]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=300
            )
            got = json.loads(done.stdout)
            assert got["count"] == MOST
            base = base or got["seconds"]
            name = {"akocore": "akocore's informer"}.get(kind, f"the kubernetes package's {kind}")
            note(
                f"{MOST} Ingresses by {name}: {got['seconds']:.2f} s, {got['mib']:.0f} MiB;"
                f" {got['seconds'] / base:.1f} times akocore's,"
                f" {got['seconds'] / limit:.1f} times the API server's own list ({limit:.2f} s)"
            )
    finally:
        plane.stop()

"""``akocore lab traffic|verify|bench``: connections through the lab, and what becomes of them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from akocore.cli.demo import CRITICAL_CLASS
from akocore.cli.lab_demo import APP, GROUP, HOST, VIP, VS

if TYPE_CHECKING:
    from akocore.lab.controlled import Controlled
    from akocore.lab.topology import Topology

__all__ = ["Bench", "bench_of", "in_scratch", "traffic_of", "verify_of"]

CONFIG = """\
serviceEngineGroups:
  Default-Group: {}
  SE-Group-AKO-CRITICAL: {minSePerVs: 2, maxSePerVs: 4, maxSe: 4}
moveGraceSeconds: 1
"""
NETWORK = """\
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: rega-ext-uplinkb-3016}
spec:
  subnet: 10.10.16.0/24
  vipRanges: [{begin: 10.10.16.224, end: 10.10.16.249}]
  bgp:
    localAs: 5000
    peers:
    - address: 10.10.16.250
      remoteAs: 6000
      bfd: true
      bfdTimers: {transmitMs: 50, receiveMs: 50, multiplier: 3}
      connectTimer: 1
      keepaliveTimer: 3
      holdTimer: 9
"""
SETTING = """\
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec:
  seGroup: {name: SE-Group-AKO-CRITICAL}
  network: {enableRhi: true, names: [rega-ext-uplinkb-3016]}
  l7Settings: {shardSize: DEDICATED}
"""
_CLIENT = "10.10.15.10"
_AGAIN = 3  # tries, when the route changes under one


# ─── traffic


async def traffic_of(
    topology: Topology, vip: str, host: str, seconds: float, rate: float, kept: int
) -> bool:
    """Say what becomes of a client's connections; whether none failed."""
    from akocore.lab.controlled import load

    async with load(topology, vip, host, rate=rate, kept=kept, patience_ms=3000) as said:
        await asyncio.sleep(seconds)
    typer.echo(
        f"{sum(said['answers'].values())} connections: {said['answers']};"
        f" {said['p50_ms']} ms median, {said['p99_ms']} ms p99; {said['broken']} of {kept} kept"
        " ones broken"
    )
    return not said["failed"] and not said["broken"]


# ─── verify


async def verify_of(topology: Topology, vip: str, tuples: int, flows: int) -> bool:
    """Compare the prediction with the router's kernel, and with where connections really come."""
    from akocore.lab.namespaces import LabError

    for _ in range(_AGAIN):
        hops = [(hop.address, hop.weight) for hop in await topology.next_hops(vip)]
        if not hops:
            raise LabError(f"the router has no way to {vip}.")
        said, good = await _verify_with(topology, vip, hops, tuples, flows)
        if good or hops == [(hop.address, hop.weight) for hop in await topology.next_hops(vip)]:
            break
        typer.echo("the route has changed meanwhile: once more")
    typer.echo("\n".join(said))
    return good


async def _verify_with(
    topology: Topology, vip: str, hops: list[tuple[str, int]], tuples: int, flows: int
) -> tuple[list[str], bool]:
    """What is to be said of one try, and whether all of it was right."""
    from akocore import EcmpGroup
    from akocore.lab.topology import UPSTREAM

    group = EcmpGroup(hops, seed=topology.plan.seed)
    out, good = [], True
    if tuples:
        sources = [f"10.10.15.{n}" for n in range(11, 251)]
        asked = [
            (sources[i % len(sources)], vip, socket.IPPROTO_TCP, 1024 + i // len(sources), 80)
            for i in range(tuples)
        ]
        lines = "".join(
            f"route get {dst} from {src} iif eth0 ipproto tcp sport {sport} dport {dport}\n"
            for src, dst, _, sport, dport in asked
        )
        shown = await topology.namespaces.run(UPSTREAM, ["ip", "-batch", "-"], lines)
        ways = [
            words[words.index("via") + 1]
            for line in shown.splitlines()
            if "via" in (words := line.split())
        ]
        expected = [hops[choice][0] for choice in group.select(asked)]
        right = sum(a == b for a, b in zip(ways, expected, strict=False))
        out.append(f"{right} of {tuples} tuples go where `ip route get` says")
        good = len(ways) == tuples == right
    if flows and good:
        more, good = await _verify_flows(topology, vip, hops, group, flows)
        out += more
    return out, good


async def _verify_flows(
    topology: Topology, vip: str, hops: list[tuple[str, int]], group: Any, flows: int
) -> tuple[list[str], bool]:
    """Real connections from known ports; each tells which Service Engine took it."""
    at = {topology.address(e.number, _main(topology)): e.name for e in topology.engines.values()}
    port, first = 8079, 10_000
    servers = []
    try:
        for name in at.values():
            words = [sys.executable, "-m", "akocore.lab.echo", f"{vip}:{port}={name}"]
            server = await asyncio.create_subprocess_exec(
                *topology.namespaces.command(name, words), stdout=asyncio.subprocess.PIPE
            )
            servers.append(server)
            assert server.stdout is not None
            await server.stdout.readline()  # it listens
        words = [sys.executable, "-m", "akocore.lab.client", "--names"]
        words += [vip, str(port), str(first), str(flows)]
        names: list[str] = json.loads(await topology.namespaces.run("client", words))
    finally:
        for server in servers:
            server.kill()
            await server.communicate()
    asked = [(_CLIENT, vip, socket.IPPROTO_TCP, first + i, port) for i in range(flows)]
    expected = [at[hops[choice][0]] for choice in group.select(asked)]
    right = sum(a == b for a, b in zip(names, expected, strict=True))
    out = [f"{right} of {flows} connections came where they were expected"]
    taken, predicted = Counter(names), Counter(expected)
    out += [
        f"   {name:<8} {taken[name]:>6} connections, {predicted[name]:>6} expected"
        for name in sorted(predicted)
    ]
    return out, right == flows


def _main(topology: Topology) -> str:
    return next(iter(topology.plan.networks))


# ─── bench


class Bench:
    """One run of it: a lab that a controller drives, figures line by line."""

    def __init__(self, lab: Controlled, manifests: Path, tries: int) -> None:
        self._lab = lab
        self._manifests = manifests
        self._tries = tries
        self.met = True

    def write(self, name: str, text: str) -> None:
        part = self._manifests / f".{name}.part"
        part.write_text(text)
        part.replace(self._manifests / f"{name}.yaml")

    def lay(self) -> None:
        """What the controller is to serve from its start."""
        for name, text in (
            ("network", NETWORK),
            ("setting", SETTING),
            ("class", CRITICAL_CLASS),
            ("app", APP),
        ):
            self.write(name, text)

    def _say(self, what: str, value: float, unit: str, most: float) -> None:
        good = value <= most
        self.met = self.met and good
        mark = "" if good else "   (too much)"
        typer.echo(f"{what:<58} {value:>8.0f} {unit:<8} at most {most:g}{mark}")

    async def _until_ways(self, vip: str, ways: int, within_s: float = 30) -> float:
        topology = self._lab.topology()

        async def there() -> bool:
            return len(await topology.next_hops(vip)) == ways

        return await self._lab.until(f"{ways} next hops to {vip}", there, within_s)

    async def run(self) -> bool:
        """Measure it all; whether every figure is as good as it has to be."""
        vs = VS.replace("Shared-L7-critical.infra-0", f"critical.infra-{HOST}")
        vs = next(iter(await self._until_there()), vs)
        await self._until_ways(VIP, 2)
        await self._scale(vs)
        await self._another_vip()
        await self._cut()
        await self._controller()
        return self.met

    async def _until_there(self) -> dict[str, Any]:
        async def up() -> bool:
            said = await self._lab.status("vs")
            return bool(said) and all(one["state"] == "up" for one in said.values())

        await self._lab.until("the virtual service is up", up)
        return await self._lab.status("vs")

    async def _scale(self, vs: str) -> None:
        from akocore.lab.controlled import load

        topology = self._lab.topology()
        async with load(topology, VIP, HOST, rate=50, kept=50, patience_ms=3000) as out:
            await asyncio.sleep(0.5)
            began = time.perf_counter()
            await self._lab.ask("Scale", vs=vs, by=1)
            await self._until_ways(VIP, 3)
            name = f"{GROUP}-se-3"

            async def served() -> bool:
                said = await self._lab.status("se")
                return bool(said.get(name, {}).get("requests"))

            await self._lab.until("traffic at the third Service Engine", served)
            took = 1000 * (time.perf_counter() - began)
            await asyncio.sleep(1)
        self._say("a Service Engine more: third hop, with traffic", took, "ms", 3000)
        self._say("   connections that failed meanwhile", len(out["failed"]), "", 0)
        self._say("   kept connections that broke", out["broken"], "", 0)
        async with load(topology, VIP, HOST, rate=50, kept=50, patience_ms=3000) as in_:
            await asyncio.sleep(0.5)
            await self._lab.ask("Scale", vs=vs, by=-1)
            await self._until_ways(VIP, 2)
            await asyncio.sleep(3)
        self._say("graceful scale-in: connections that failed", len(in_["failed"]), "", 0)
        self._say("   kept connections that broke", in_["broken"], "", 0)

        async def gone() -> bool:
            return len(self._lab.topology().engines) == 2

        await self._lab.until("the third Service Engine is gone", gone, 90)

    async def _another_vip(self) -> None:
        took = []
        for number in range(1, 6):
            text = APP.replace("metadata: {name: hello", f"metadata: {{name: more{number}")
            text = text.replace(HOST, f"more{number}.{HOST}")
            text = text.replace("service: {name: hello,", f"service: {{name: more{number},")
            text = text.replace("service-name: hello}", f"service-name: more{number}}}")
            self.write(f"more{number}", text)
            took.append(await self._until_ways(f"10.10.16.{224 + number}", 2))
        self._say("a VIP more: manifest to route (worst of 5)", max(took), "ms", 500)

    async def _cut(self) -> None:
        """A Service Engine that is cut off: BFD finds out, 50 ms × 3."""
        from akocore.lab.controlled import load

        outages = []
        for number in range(self._tries):
            topology = self._lab.topology()
            await topology.until_watched(20)
            name = list(topology.engines)[number % 2]
            async with load(topology, VIP, HOST, rate=200, patience_ms=100) as out:
                await asyncio.sleep(0.5)
                cut = time.time()
                await topology.namespaces.ip("switch", [f"link set {name} down"])
                await self._until_ways(VIP, 1)
                await asyncio.sleep(0.5)
            failed = [at for at, _ in out["failed"] if at >= cut - 0.1]
            outages.append(1000 * max(max(failed, default=cut) - cut, 0))
            await topology.namespaces.ip("switch", [f"link set {name} up"])
            await self._until_ways(VIP, 2)
        outages.sort()
        p99 = outages[min(int(0.99 * len(outages)), len(outages) - 1)]
        self._say(
            f"an engine cut off: until the last failure (p99 of {len(outages)})", p99, "ms", 300
        )
        rest = ", ".join(f"{one:.0f}" for one in outages)
        typer.echo(f"   median {outages[len(outages) // 2]:.0f} ms; all: {rest}")

    async def _controller(self) -> None:
        from akocore.lab.controlled import end_controller, load

        topology = self._lab.topology()
        before = await topology.next_hops(VIP)
        async with load(topology, VIP, HOST, rate=50, kept=50, patience_ms=3000) as out:
            await asyncio.sleep(0.5)
            await asyncio.to_thread(end_controller, self._lab.directory)
            await asyncio.sleep(3)
        same = await topology.next_hops(VIP) == before
        self._say("the controller killed: routes that changed", 0 if same else 1, "", 0)
        failed = len(out["failed"]) + out["broken"]
        self._say("   connections that failed or broke", failed, "", 0)


async def bench_of(
    frr_dir: Path | None, envoy: Path | None, prefix: str, tries: int, scratch: Path
) -> bool:
    """Bring a lab up, measure, and leave nothing of it."""
    from akocore.engines.frr.process import find_frr
    from akocore.lab.controlled import Controlled, end_controller
    from akocore.lab.topology import sweep

    manifests, directory = scratch / "manifests", scratch / "lab"
    manifests.mkdir()
    (scratch / "config.yaml").write_text(CONFIG)
    lab = Controlled(directory, find_frr(frr_dir))
    bench = Bench(lab, manifests, tries)
    bench.lay()
    more = [*(("--frr-dir", str(frr_dir)) if frr_dir else ())]
    more += [*(("--envoy", str(envoy)) if envoy else ())]
    words = [str(manifests), "--state", str(directory), "--prefix", prefix, "--handover"]
    try:
        await lab.start(
            *words, "--config", str(scratch / "config.yaml"), "--upstream-bfd", "50", *more
        )
        return await bench.run()
    finally:
        end_controller(directory)
        await sweep(directory, prefix)


def in_scratch(run: Callable[[Path], Awaitable[bool]]) -> int:
    """``run`` in a directory of its own; without root, in a user namespace.  Its exit code."""
    from akocore.lab.rootless import hold, let_go, run_inside

    with tempfile.TemporaryDirectory(prefix="akobench-") as name:
        if os.geteuid() != 0:
            holder = hold(Path(name))
            try:
                return run_inside(holder, sys.argv[1:])
            finally:
                let_go(holder)
        scratch = Path(name)
        scratch.chmod(0o755)  # FRR's user must come to its own directories

        async def go() -> bool:
            return await run(scratch)

        return 0 if asyncio.run(go()) else 1

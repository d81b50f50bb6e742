"""``akocore soak``: fill a cluster with dummies, keep changing it, and watch what users see."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from akocore.cli.control import STATE, StateOption, ask
from akocore.cli.dummy import manifests

if TYPE_CHECKING:
    from rich.console import Console

    from akocore.kube.api import ApiServer

__all__ = ["soak"]

NAME = "soak"
DOMAIN = "soak.avi.local"
_FILLERS = 16
_PROBES = 2
_SERVED_WITHIN_S = 30.0
_SAMPLE_S = 2.0


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Web:
    """HTTP/1.1 on kept connections, one an address; what a user's client would see."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._kept: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def get(self, address: str, host: str, path: str) -> int:
        """The status code; 0 when a fresh connection breaks."""
        for _ in range(2):
            old = address in self._kept
            try:
                async with asyncio.timeout(10):
                    return await self._get(address, host, path)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self._drop(address)
                if not old:
                    return 0
        return 0

    async def _get(self, address: str, host: str, path: str) -> int:
        if (kept := self._kept.get(address)) is None:
            kept = self._kept[address] = await asyncio.open_connection(address, self._port)
        reader, writer = kept
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length:"):
                await reader.readexactly(int(line[15:]))
        if b"\r\nconnection: close" in head:
            self._drop(address)
        return int(head[9:12])

    def _drop(self, address: str) -> None:
        if kept := self._kept.pop(address, None):
            kept[1].transport.abort()

    def close(self) -> None:
        for address in list(self._kept):
            self._drop(address)


class Soak:
    """What is there, what was measured."""

    def __init__(self, api: ApiServer, namespace: str, endpoint: str, port: int, seed: int) -> None:
        from akocore.kube.api import resources

        self.api = api
        self.namespace = namespace
        self.endpoint = endpoint
        self.port = port
        self.random = random.Random(seed)
        self.paths = {kind: resources()[kind] for kind in ("Service", "EndpointSlice", "Ingress")}
        self.versions: dict[int, int] = {}  # number → version: its path is /vVERSION
        self.busy: set[int] = set()
        self.addresses: dict[str, str] = {}  # host → VIP, as status says
        self.served: list[tuple[float, str, float]] = []  # (when, what, seconds)
        self.probes = self.failed = self.late = 0
        self.failures: list[str] = []
        self.samples: list[tuple[float, float, dict[str, float]]] = []  # (when, CPU, MiB)

    @staticmethod
    def host(number: int) -> str:
        return f"{NAME}{number}.{DOMAIN}"

    def objects(self, number: int, version: int) -> list[dict[str, Any]]:
        """Service, EndpointSlice and Ingress of an application; its path tells the version."""
        items = manifests(
            NAME, number, domain=DOMAIN, endpoint=self.endpoint, namespace=self.namespace
        )
        items[-1]["spec"]["rules"][0]["http"]["paths"][0]["path"] = f"/v{version}"
        return items

    async def create(self, number: int) -> None:
        import orjson

        for item in self.objects(number, 0):
            path = self.paths[item["kind"]].path(self.namespace)
            await self.api.request("POST", path, None, orjson.dumps(item))
        self.versions[number] = 0

    async def change(self, number: int) -> None:
        import orjson

        version = self.versions[number] + 1
        rules = self.objects(number, version)[-1]["spec"]["rules"]
        await self.api.request(
            "PATCH",
            self.paths["Ingress"].path(self.namespace, f"{NAME}{number}"),
            None,
            orjson.dumps({"spec": {"rules": rules}}),
            "application/merge-patch+json",
        )
        self.versions[number] = version

    async def delete(self, number: int) -> None:
        for resource in reversed(self.paths.values()):
            path = resource.path(self.namespace, f"{NAME}{number}")
            await self.api.request("DELETE", path)
        del self.versions[number]

    def take(self, changes: list[Any]) -> None:
        """The informer's: follow status, as DNS would."""
        for change in changes:
            if change.obj is None:
                self.addresses.pop(f"{change.key.rpartition('/')[2]}.{DOMAIN}", None)
                continue
            for point in change.obj.status.load_balancer.ingress:
                self.addresses[point.hostname] = point.ip

    async def measure(
        self, what: str, web: Web, host: str, path: str, wanted: int, known: str | None = None
    ) -> None:
        """Ask until the answer is as wanted; the time is from the API server's answer on.

        At the address ``known``, else at the one that status says.
        """
        began = time.perf_counter()
        while True:
            address = known or self.addresses.get(host)
            if address is not None and await web.get(address, host, path) == wanted:
                self.served.append((time.time(), what, time.perf_counter() - began))
                return
            if time.perf_counter() - began > _SERVED_WITHIN_S:
                self.late += 1
                self.failures.append(f"{what} {host}{path}: not {wanted} within 30 s")
                return
            await asyncio.sleep(0.001)

    async def edit(self, web: Web, next_number: Callable[[], int]) -> None:
        """One change, one addition or one removal, and when it was served."""
        kind = self.random.choices(("change", "add", "delete"), (8, 1, 1))[0]
        if kind == "add":
            number = next_number()
            self.busy.add(number)
            await self.create(number)
            await self.measure("add", web, self.host(number), "/v0", 200)
        else:
            number = self.random.choice(list(self.versions))
            if number in self.busy:
                return
            self.busy.add(number)
            if kind == "change":
                await self.change(number)
                path = f"/v{self.versions[number]}"
                await self.measure("change", web, self.host(number), path, 200)
            else:
                path, address = f"/v{self.versions[number]}", self.addresses[self.host(number)]
                await self.delete(number)
                await self.measure("delete", web, self.host(number), path, 404, address)
        self.busy.discard(number)

    async def probe(self) -> None:
        """Random hosts that nobody is changing must answer 200."""
        web = Web(self.port)
        try:
            while True:
                numbers = list(self.versions)
                for _ in range(200):
                    number = self.random.choice(numbers)
                    if number in self.busy or number not in self.versions:
                        continue
                    host, version = self.host(number), self.versions[number]
                    if (address := self.addresses.get(host)) is None:
                        continue
                    answer = await web.get(address, host, f"/v{version}")
                    if number in self.busy or self.versions.get(number) != version:
                        continue  # it was changed meanwhile
                    self.probes += 1
                    if answer != 200:
                        self.failed += 1
                        self.failures.append(f"probe {host}/v{version} at {address}: {answer}")
                    await asyncio.sleep(0.002)
        finally:
            web.close()

    async def sample(self, state: Path) -> None:
        """Memory and processor time of akocore and its engines."""
        before: tuple[float, float] | None = None
        while True:
            about = (await asyncio.to_thread(ask, state, "Get", {"kind": "akocore"}))["items"][0]
            pids = {"akocore": about["status"]["pid"], **about["status"]["engines"]}
            now = time.time(), cpu_seconds(pids["akocore"])
            if before is not None:
                memory = {name: memory_mib(pid) for name, pid in pids.items()}
                self.samples.append((now[0], (now[1] - before[1]) / (now[0] - before[0]), memory))
            before = now
            await asyncio.sleep(_SAMPLE_S)

    async def stale(self) -> list[str]:
        """Hosts whose status is missing, or whose address does not serve them."""
        web = Web(self.port)
        out = []
        for number, version in self.versions.items():
            host = self.host(number)
            address = self.addresses.get(host)
            if address is None or await web.get(address, host, f"/v{version}") != 200:
                out.append(host)
        web.close()
        return out


@asynccontextmanager
async def _tasks(*works: Any) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(found, Exception):
                raise found


async def _fill(it: Soak, count: int, console: Console) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    bar = Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    numbers = iter(range(1, count + 1))
    with bar:
        task = bar.add_task(f"filling with {count} Ingresses", total=count)

        async def fill() -> None:
            for number in numbers:
                await it.create(number)
                bar.advance(task)

        await asyncio.gather(*(fill() for _ in range(_FILLERS)))


async def _churn(it: Soak, rate: float, seconds: float, first: int) -> None:
    """Edits at the rate, each in a task of its own, so that a slow one delays no other."""
    web = Web(it.port)
    number = first
    edits: set[asyncio.Task[None]] = set()

    def next_number() -> int:
        nonlocal number
        number += 1
        return number

    end = time.monotonic() + seconds
    due = time.monotonic()
    webs = [web]
    while time.monotonic() < end:
        free = webs.pop() if webs else Web(it.port)

        async def edit(own: Web) -> None:
            await it.edit(own, next_number)
            webs.append(own)

        task = asyncio.create_task(edit(free))
        edits.add(task)
        task.add_done_callback(edits.discard)
        due += 1 / rate
        await asyncio.sleep(max(0, due - time.monotonic()))
    await asyncio.gather(*edits)
    for one in webs:
        one.close()


def percentile(values: list[float], share: float) -> float:
    """Of sorted values; 0 when there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def _plot(it: Soak, report: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    report.mkdir(parents=True, exist_ok=True)
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(10, 10), sharex=True)
    start = it.samples[0][0] if it.samples else 0.0
    for what in ("change", "add", "delete"):
        points = [(at - start, s * 1000) for at, w, s in it.served if w == what]
        top.plot([p[0] for p in points], [p[1] for p in points], ".", ms=2, label=what)
    top.set_yscale("log")
    top.set_ylabel("time to served, ms")
    top.legend()
    for name in it.samples[-1][2] if it.samples else ():
        rows = [(at - start, memory.get(name, 0)) for at, _, memory in it.samples]
        middle.plot([r[0] for r in rows], [r[1] for r in rows], label=name)
    middle.set_ylabel("RSS, MiB")
    middle.set_ylim(bottom=0)
    middle.legend()
    bottom.plot([at - start for at, _, _ in it.samples], [cpu for _, cpu, _ in it.samples])
    bottom.set_ylabel("akocore, cores")
    bottom.set_xlabel("s")
    figure.tight_layout()
    figure.savefig(report / "soak.png", dpi=120)


async def _run(
    kubeconfig: Path | None,
    state: Path,
    count: int,
    rate: float,
    seconds: float,
    endpoint: str,
    namespace: str,
    port: int,
    report: Path | None,
    seed: int,
) -> bool:
    from rich.console import Console

    from akocore.kube.api import ApiServer
    from akocore.kube.credentials import find_credentials
    from akocore.kube.informer import Informer

    console = Console(soft_wrap=True)
    async with ApiServer(lambda: find_credentials(kubeconfig)) as api:
        it = Soak(api, namespace, endpoint, port, seed)
        informer = Informer(api, it.paths["Ingress"], it.take, namespace=namespace)
        async with _tasks(informer.run()):
            await _fill(it, count, console)
            began = time.monotonic()
            while len(it.addresses) < count:
                if time.monotonic() - began > 300:
                    console.print(f"only {len(it.addresses)} of {count} have a status after 300 s")
                    return False
                await asyncio.sleep(0.2)
            console.print(f"all have a status {time.monotonic() - began:.1f} s after the fill")
            async with _tasks(it.sample(state), *(it.probe() for _ in range(_PROBES))):
                await asyncio.sleep(5)
                await _churn(it, rate, seconds, count)
            await asyncio.sleep(3)
            stale = await it.stale()
    for what in ("change", "add", "delete"):
        times = sorted(s * 1000 for _, w, s in it.served if w == what)
        console.print(
            f"{what:7} {len(times):6}: time to served p50 {percentile(times, 0.5):.1f} ms,"
            f" p99 {percentile(times, 0.99):.1f} ms, max {percentile(times, 1):.1f} ms"
        )
    console.print(f"probes  {it.probes:6}: {it.failed} failed; {it.late} edits not served in 30 s")
    console.print(f"status  {len(it.versions):6}: {len(stale)} stale")
    if it.samples:
        for name in it.samples[-1][2]:
            rss = [memory.get(name, 0.0) for _, _, memory in it.samples]
            console.print(f"{name}: RSS {rss[0]:.0f} → {rss[-1]:.0f} MiB, highest {max(rss):.0f}")
        cpu = [one for _, one, _ in it.samples]
        console.print(f"akocore: {sum(cpu) / len(cpu):.3f} cores on average")
    for line in it.failures[:10]:
        console.print(line, style="red")
    if report is not None:
        _plot(it, report)
        console.print(f"plotted in {report / 'soak.png'}")
    return not (it.failed or it.late or stale)


def _seconds(text: str) -> float:
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        return float(number) * units[unit]
    except ValueError:
        raise typer.BadParameter(f"{text}: write a duration as 90s, 15m or 1h") from None


def soak(
    endpoint: Annotated[
        str, typer.Option(help="ADDRESS:PORT of a backend that answers 200 to everything")
    ],
    ingresses: Annotated[int, typer.Option(min=1)] = 10_000,
    rate: Annotated[float, typer.Option(help="edits a second", min=0.01)] = 10,
    duration: Annotated[str, typer.Option(help="as 90s, 15m, 1h")] = "15m",
    report: Annotated[Path | None, typer.Option(help="plot into this directory")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="default: as `controller`")] = None,
    state: StateOption = STATE,
    namespace: Annotated[str, typer.Option("--namespace", "-n")] = "default",
    port_offset: Annotated[int, typer.Option(help="of the controller")] = 0,
    seed: Annotated[int, typer.Option(help="of what is edited when")] = 1,
) -> None:
    """Fill a cluster with dummies, edit them at a rate, probe all the while; 0 when all is good."""
    from akocore.kube.api import ApiError
    from akocore.kube.credentials import CredentialsError

    seconds = _seconds(duration)
    port = 80 + port_offset
    try:
        good = asyncio.run(
            _run(
                kubeconfig,
                state,
                ingresses,
                rate,
                seconds,
                endpoint,
                namespace,
                port,
                report,
                seed,
            )
        )
    except (ApiError, CredentialsError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err
    if not good:
        raise typer.Exit(1)

"""A controller and agents as processes of their own, in the lab's network."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from akocore.engines.envoy.process import EngineError, find_envoy
from akocore.engines.frr.process import Frr, end
from akocore.lab.topology import Plan, Topology, sweep
from engines.authority import Authority
from frr.conftest import PREFIX, directory, frr

__all__ = ["directory", "frr"]

CONTROLLER = "10.10.20.11"
GROUP = "SE-Group-AKO-CRITICAL"
VIP = "10.10.16.224"
VS = "my-cluster--Shared-L7-critical.infra-0"
CONFIG = f"""
serviceEngineGroups:
  Default-Group: {{}}
  {GROUP}: {{minSePerVs: 2, maxSePerVs: 4, maxSe: 4}}
moveGraceSeconds: 0.5
"""


class Process:
    """``akocore WORDS`` inside a part of the lab."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                command, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    async def ended(self, within_s: float = 30) -> int:
        async with asyncio.timeout(within_s):
            while (code := self._popen.poll()) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return code


class Site:
    """The lab with nobody in it yet, a directory of manifests, a certificate authority."""

    def __init__(self, topology: Topology, home: Path) -> None:
        self.topology = topology
        self.home = home
        self.manifests = home / "manifests"
        self.manifests.mkdir()
        self.config = home / "config.yaml"
        self.config.write_text(CONFIG)
        self.authority = Authority(home / "pki")
        self._port = 20_000  # of the client's next connection
        self.processes: dict[str, Process] = {}

    def write(self, name: str, *objects: dict[str, Any]) -> None:
        part = self.manifests / f".{name}.part"
        part.write_bytes(orjson.dumps({"kind": "List", "items": objects}))
        part.replace(self.manifests / f"{name}.json")

    def group(self, **spec: Any) -> None:
        """What the group of the agents is, for a controller that is started then."""
        groups = {"Default-Group": {}, GROUP: spec}
        config = {"serviceEngineGroups": groups, "moveGraceSeconds": 0.5}
        self.config.write_bytes(orjson.dumps(config))

    def inside(self, where: str, *words: str, before: Sequence[str] = ()) -> list[str]:
        return self.topology.namespaces.command(
            where, [*before, sys.executable, "-m", "akocore", *words]
        )

    def controller(self, name: str = "one", port: int = 18000) -> Process:
        """A controller, at the pods' address."""
        pair = self.authority.issue(name, name, ips=[CONTROLLER])
        command = self.inside(
            "pods",
            *("serve", str(self.manifests), "--state", str(self.home / name)),
            *("--config", str(self.config), "--metrics-listen", ""),
            *("--engines", "external", "--xds-listen", f"{CONTROLLER}:{port}"),
            *("--xds-cert", str(pair.certificate), "--xds-key", str(pair.key)),
            *("--xds-client-ca", str(self.authority.ca)),
        )
        made = self.processes[name] = Process(command, self.home / f"{name}.log")
        return made

    async def place(self, number: int) -> str:
        """Lay the cables of a Service Engine; the part of the lab that it is."""
        where = f"se-{number}"
        if where not in self.topology.namespaces.names():
            await self.topology.lay_se(number)
        return where

    async def agent(
        self,
        number: int,
        *more: str,
        ports: Sequence[int] = (18000,),
        common_name: str = "",
        before: Sequence[str] = (),
        environment: Sequence[str] = (),
    ) -> Process:
        """The agent of Service Engine ``number``, as ``se-1`` in the part of that name."""
        name = where = await self.place(number)
        pair = self.authority.issue(f"{name}-{len(self.processes)}", common_name or name)
        command = self.inside(
            where,
            *("se", "run", "--name", name, "--group", GROUP, "--state", str(self.state(number))),
            *("--controller", ",".join(f"{CONTROLLER}:{port}" for port in ports)),
            *("--cert", str(pair.certificate), "--key", str(pair.key)),
            *("--ca", str(self.authority.ca), "--address", f"10.10.16.{191 + number}"),
            *("--drain", "0.3", "--flows", "5", *more),
            before=before,
        )
        made = self.processes[name] = Process(command, self.home / f"{name}.log")
        return made

    def state(self, number: int) -> Path:
        return self.home / f"a{number}"

    def envoy(self, number: int) -> int:
        """The pid of its Envoy."""
        raw = orjson.loads((self.state(number) / "envoy" / f"se-{number}.pid").read_bytes())
        return int(raw["pid"])

    def capabilities(self, number: int) -> int:
        """What its Envoy may do, as a mask."""
        status = Path(f"/proc/{self.envoy(number)}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("CapEff"))
        return int(line.split()[1], 16)

    async def ask(self, method: str, controller: str = "one", **question: Any) -> Any:
        import grpc

        socket = self.home / controller / "control.sock"
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            call: Any = channel.unary_unary(f"/akocore.v1alpha1.Control/{method}")
            return orjson.loads(await call(orjson.dumps(question), wait_for_ready=True))

    async def get(self, kind: str, name: str, controller: str = "one") -> dict[str, Any]:
        items = (await self.ask("Get", controller, kind=kind))["items"]
        found: dict[str, Any] = {i["metadata"]["name"]: i["status"] for i in items}.get(name, {})
        return found

    async def until(self, true: Callable[[], Any], within_s: float = 60) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not await true():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            for name, process in self.processes.items():
                print(f"── {name}\n{process.log.read_text()[-4000:]}")
            with contextlib.suppress(Exception):
                async with asyncio.timeout(3):
                    for kind in ("vs", "se", "events"):
                        print(kind, orjson.dumps(await self.ask("Get", kind=kind)).decode())
            raise

    async def until_ways(self, vip: str, *last: int) -> None:
        wanted = {f"10.10.16.{n}" for n in last}

        async def there() -> bool:
            return {h.address for h in await self.topology.next_hops(vip)} == wanted

        await self.until(there)

    async def until_status(self, kind: str, name: str, **wanted: Any) -> None:
        async def there() -> bool:
            said = await self.get(kind, name)
            return all(said.get(key) == value for key, value in wanted.items())

        await self.until(there)

    async def until_says(self, kind: str, name: str, field: str, text: str) -> None:
        async def there() -> bool:
            return text in str((await self.get(kind, name)).get(field, ""))

        await self.until(there)

    async def akocore(self, *words: str) -> str:
        """What a command prints that asks the controller."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "akocore", *words, "--state", str(self.home / "one")),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    async def requests(self, vip: str, host: str, count: int) -> dict[str, int]:
        """Answers by kind, of requests on connections of their own."""
        first, self._port = self._port, self._port + count
        words = [sys.executable, "-m", "akocore.lab.client", host, str(first), str(count)]
        out = await self.topology.namespaces.run("client", words, f"{vip}\n")
        answers: dict[str, int] = orjson.loads(out)["answers"]
        return answers

    def stop(self) -> None:
        for process in self.processes.values():
            if process.running:
                process.send(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while any(p.running for p in self.processes.values()) and time.monotonic() < deadline:
            time.sleep(0.01)


def end_routers(directory: Path) -> None:
    """What they leave outside of their directories, ended as they were, goes, too."""
    for run in directory.rglob("zebra.run"):
        end(run.parent)


@pytest.fixture
async def site(
    request: pytest.FixtureRequest,
    frr: Frr,
    directory: Path,
    require_real: Callable[[bool, str], None],
) -> AsyncIterator[Site]:
    """``request.param``: what of the lab's plan is to be otherwise."""
    try:
        find_envoy()
    except EngineError as err:
        require_real(False, str(err))
        raise
    topology = Topology(
        directory / "lab", frr, Plan(prefix=f"{PREFIX}g-", **getattr(request, "param", {}))
    )
    made = None
    try:
        await topology.up(0)
        made = Site(topology, directory)
        yield made
    finally:
        if made is not None:
            made.stop()
        topology.release()
        await sweep(directory / "lab", topology.plan.prefix)
        end_routers(directory)

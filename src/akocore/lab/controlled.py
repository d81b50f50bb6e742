"""A lab whose Service Engines a controller makes, and that controller as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from akocore.config import Config
from akocore.engines.envoy.process import Envoy
from akocore.engines.frr.process import Frr
from akocore.engines.processes import start_ticks
from akocore.lab.fleet import Fleet
from akocore.lab.namespaces import LabError
from akocore.lab.topology import Plan, Topology
from akocore.serve import Serve, of_directory

__all__ = ["Controlled", "control", "end_controller", "load"]

_READY_S = 20.0


async def control(
    directory: Path, manifests: Path, plan: Plan, config: Config, envoy: Envoy, frr: Frr
) -> None:
    """Bring a lab up in ``directory`` and drive it, until SIGTERM; then nothing of it stays."""
    topology = Topology(directory, frr, plan)
    await topology.up(0)
    pid = os.getpid()
    (directory / "controller.json").write_text(json.dumps({"pid": pid, "ticks": start_ticks(pid)}))
    serve = Serve(
        *(of_directory(manifests), directory / "controller", config, envoy),
        engines=partial(Fleet, topology),
    )
    try:
        await serve.run()
    finally:
        await topology.down()


def end_controller(directory: Path) -> None:
    """End the controller of a lab at once; the lab stays as it is."""
    try:
        known = json.loads((directory / "controller.json").read_bytes())
    except (OSError, ValueError):
        return
    if start_ticks(known["pid"]) == known["ticks"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(known["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 5
        while start_ticks(known["pid"]) == known["ticks"] and time.monotonic() < deadline:
            time.sleep(0.01)
    (directory / "controller.json").unlink(missing_ok=True)


class Controlled:
    """A lab of `control` in ``directory``, asked from outside."""

    def __init__(self, directory: Path, frr: Frr) -> None:
        self.directory = directory
        self._frr = frr

    async def start(self, *words: str) -> None:
        """Start ``akocore lab controller WORDS`` in the background.

        Returns when it answers.  Raises `LabError` with its last words.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        log = self.directory.with_name(f"{self.directory.name}.log")
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "akocore", "lab", "controller", *words),
                stdout=file,
                stderr=file,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_S
        while True:
            with contextlib.suppress(LabError):
                await self.ask("Get", kind="akocore")
                return
            if process.returncode is not None or time.monotonic() > deadline:
                said = log.read_text("utf-8", "replace").strip().splitlines()
                raise LabError(f"the controller doesn't answer: {said[-1] if said else log}")
            await asyncio.sleep(0.05)

    def topology(self) -> Topology:
        """The lab as it is now, to look at."""
        return Topology.open(self.directory, self._frr)

    async def ask(self, method: str, **question: Any) -> Any:
        """The controller's answer.  Raises `LabError` when it has none."""
        return await asyncio.to_thread(self._ask, method, json.dumps(question).encode())

    def _ask(self, method: str, question: bytes) -> Any:
        import grpc

        socket = self.directory / "controller" / "control.sock"
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            call: Any = channel.unary_unary(f"/akocore.v1alpha1.Control/{method}")
            try:
                return json.loads(call(question, timeout=10))
            except grpc.RpcError as err:
                raise LabError(f"no controller answers in {self.directory}.") from err

    async def status(self, kind: str) -> dict[str, dict[str, Any]]:
        items = (await self.ask("Get", kind=kind))["items"]
        return {item["metadata"]["name"]: item["status"] for item in items}

    async def until(
        self, what: str, true: Callable[[], Awaitable[bool]], within_s: float = 30
    ) -> float:
        """Milliseconds until it is so.  Raises `LabError` when it isn't in time."""
        began = time.perf_counter()
        while not await true():
            if time.perf_counter() - began > within_s:
                raise LabError(f"{what}: not so after {within_s:g} s.")
            await asyncio.sleep(0.01)
        return (time.perf_counter() - began) * 1000


@contextlib.asynccontextmanager
async def load(
    topology: Topology, vip: str, host: str, *, rate: float, kept: int = 0, patience_ms: float
) -> AsyncIterator[dict[str, Any]]:
    """Traffic from the lab's client all the while; afterwards the answer has what came of it."""
    words = [vip, host, f"{rate:g}", str(kept), f"{patience_ms:g}"]
    process = await asyncio.create_subprocess_exec(
        *topology.namespaces.command("client", [sys.executable, "-m", "akocore.lab.load", *words]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    said: dict[str, Any] = {}
    try:
        await process.stdout.readline()
        yield said
        out, _ = await process.communicate(b"")  # which closes its input
        said |= json.loads(out)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()

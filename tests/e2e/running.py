"""``akocore serve`` as a process of its own, backends, and a small HTTP client to ask it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import orjson

from akocore.cli.dummy import manifests

OFFSET = 9100
_LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)


class Backend(asyncio.Protocol):
    """Answers every request with "ok" at once."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.ANSWER * data.count(b"\r\n\r\n"))


class Client:
    """HTTP/1.1 on kept connections, one an address; `get` gives the status code.

    0: the connection broke before an answer, on a connection that was not old, or there was none
    for 30 s.
    """

    def __init__(self, port: int = 80 + OFFSET) -> None:
        self.port = port
        self._kept: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def get(self, address: str, host: str, path: str = "/") -> int:
        old = address in self._kept
        try:
            return await self._get(address, host, path)
        except TimeoutError:
            self._drop(address)
            return 0
        except (OSError, asyncio.IncompleteReadError):
            self._drop(address)
            if not old:
                return 0
        try:  # the other side may close an idle connection at any time: RFC 9112, 9.6
            return await self._get(address, host, path)
        except (OSError, asyncio.IncompleteReadError):
            self._drop(address)
            return 0

    async def _get(self, address: str, host: str, path: str) -> int:
        async with asyncio.timeout(30):
            return await self._ask(address, host, path)

    async def _ask(self, address: str, host: str, path: str) -> int:
        kept = self._kept.get(address)
        if kept is None:
            kept = self._kept[address] = await asyncio.open_connection(address, self.port)
        reader, writer = kept
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if length := _LENGTH.search(head):
            await reader.readexactly(int(length[1]))
        if b"connection: close" in head.lower():
            self._drop(address)
        return int(head[9:12])

    def _drop(self, address: str) -> None:
        if kept := self._kept.pop(address, None):
            kept[1].transport.abort()

    def close(self) -> None:
        for address in list(self._kept):
            self._drop(address)


class Running:
    """One ``akocore serve`` over ``scratch/manifests``; `start` again after `kill`.

    ``options`` and ``environment`` are added to those of each start.
    """

    def __init__(self, scratch: Path, backend_port: int) -> None:
        self.directory = scratch / "manifests"
        self.directory.mkdir()
        # Not below scratch: a unix socket's path has 107 bytes, and an engine's name is part of it.
        short = tempfile.mkdtemp(prefix="ako-")
        self._away = weakref.finalize(self, shutil.rmtree, short, ignore_errors=True)
        self.state = Path(short) / "state"
        self.log = scratch / "akocore.log"
        self.endpoint = f"127.0.0.1:{backend_port}"
        self.config = ""
        self.python = [sys.executable]
        self.options = ["--metrics-listen", ""]
        self.environment: dict[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def dummy(self, name: str, number: int, ingress_class: str | None = None) -> Path:
        """Write Service, EndpointSlice and Ingress ``NAMEnumber`` with one rename."""
        items = manifests(name, number, endpoint=self.endpoint, ingress_class=ingress_class)
        return self.write(f"{name}{number}.json", {"kind": "List", "items": items})

    def write(self, name: str, body: str | dict[str, Any]) -> Path:
        part = self.directory / f".{name}.part"
        part.write_bytes(body.encode() if isinstance(body, str) else orjson.dumps(body))
        return part.replace(self.directory / name)

    def source(self) -> list[str]:
        """The command and its source."""
        return ["serve", str(self.directory)]

    async def start(self) -> None:
        command = [*self.python, "-m", "akocore", *self.source()]
        command += ["--state", str(self.state), "--port-offset", str(OFFSET), *self.options]
        if self.config:
            file = self.state.with_name("config.yaml")
            file.write_text(self.config)
            command += ["--config", str(file)]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stderr=log, env={**os.environ, **self.environment}
            )

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await asyncio.wait_for(self._process.wait(), 60)
            assert self._process.returncode == 0, self.log.read_text()[-2000:]

    async def kill(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def __aenter__(self) -> Running:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self.stop()

    async def ask(self, kind: str) -> list[dict[str, Any]]:
        """The items of ``akocore get KIND -o json``; none while akocore starts."""
        unlimited = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(
            f"unix:{self.state / 'control.sock'}", unlimited
        ) as at:
            call: Any = at.unary_unary("/akocore.v1alpha1.Control/Get")
            try:
                answer = await call(orjson.dumps({"kind": kind}), timeout=30)
            except grpc.aio.AioRpcError:
                assert self._process is None or self._process.returncode is None, (
                    self.log.read_text()[-2000:]
                )
                return []
        items: list[dict[str, Any]] = orjson.loads(answer)["items"]
        return items

    async def explain(self, key: str) -> dict[str, Any]:
        """``akocore explain ingress/KEY -o json``."""
        async with grpc.aio.insecure_channel(f"unix:{self.state / 'control.sock'}") as at:
            call: Any = at.unary_unary("/akocore.v1alpha1.Control/Explain")
            question = orjson.dumps({"ingress": key})
            found: dict[str, Any] = orjson.loads(await call(question, timeout=30))
        return found

    async def addresses(self) -> dict[str, str]:
        """Host → VIP, as status says."""
        return {
            point["hostname"]: point["ip"]
            for item in await self.ask("ingress")
            for point in item["status"]["loadBalancer"]["ingress"]
        }

    async def engines(self) -> dict[str, dict[str, Any]]:
        """Status of each Service Engine, by name."""
        return {e["metadata"]["name"]: e["status"] for e in await self.ask("se")}

    async def until_up_to_date(self, hosts: int, seconds: float = 60) -> dict[str, str]:
        """Wait until every engine is up to date and ``hosts`` hosts have an address."""
        async with asyncio.timeout(seconds):
            while True:
                engines = await self.engines()
                if engines and all(e["upToDate"] for e in engines.values()):
                    shown = await self.addresses()
                    if len(shown) == hosts:
                        return shown
                await asyncio.sleep(0.05)

"""``akocore serve DIR``: a directory of manifests, local Envoys, one loop.

Also answers `get` on the same unix socket, as the gRPC method
``akocore.v1alpha1.Control/Get`` (JSON in, JSON out).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import orjson

from akocore import status
from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.process import Engines, Envoy
from akocore.manifests import Batch, ManifestDirectory
from akocore.place.state import State, StateError
from akocore.reconcile import Move, Reconciler

__all__ = ["CONTROL", "Serve"]

log = logging.getLogger(__name__)

CONTROL = "akocore.v1alpha1.Control"


class Serve:
    """One akocore over one directory."""

    def __init__(
        self, directory: Path, state_dir: Path, config: Config, envoy: Envoy, port_offset: int = 0
    ) -> None:
        self.config = config
        self.state = State(state_dir)
        socket = state_dir / "xds.sock"
        self.ads = AdsServer(socket, self._progress)
        self.engines = Engines(
            state_dir / "engines", envoy, socket, concurrency=config.envoy_concurrency
        )
        self._moving: list[Move] = []
        self.reconciler = Reconciler(
            config,
            self.state,
            self.ads,
            now=lambda: datetime.now(UTC),
            on_move=self._moving.append,
            port_offset=port_offset,
        )
        self.source = ManifestDirectory(
            directory, self.state, lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        self.file_refusals: dict[str, list[dict[str, Any]]] = {}
        self.ready = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`.  Service Engines end with it; a kill -9 leaves them serving."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        self.engines.open()
        try:
            method: Any = grpc.unary_unary_rpc_method_handler(self._get)
            await self.ads.start(grpc.method_handlers_generic_handler(CONTROL, {"Get": method}))
            await self._batch(await asyncio.to_thread(self.source.load))
            self.ads.open()
            self.ready.set()
            on_ready()
            async for batch in self.source.watch(self._stop):
                await self._batch(batch)
        finally:
            await self.engines.stop_all()
            await self.ads.stop()
            self.state.close()

    def stop(self) -> None:
        self._stop.set()

    async def _batch(self, batch: Batch) -> None:
        for path, refusals in batch.refusals.items():
            self.file_refusals.pop(path, None)
            if refusals:
                self.file_refusals[path] = [
                    {
                        "object": r.object,
                        "field": r.field,
                        "line": r.line,
                        "reason": r.reason,
                        "remedy": r.remedy,
                    }
                    for r in refusals
                ]
                for r in refusals:
                    log.warning("%s:%s %s %s: %s", path, r.line, r.object, r.reason, r.remedy)
        touched = self.reconciler.apply(batch.changes)
        for key in touched:
            if self.reconciler.store.ingress(key) is not None:
                for r in status.ingress_refusals(self.reconciler, key):
                    log.warning("%s %s %s: %s", r.object, r.field, r.reason, r.remedy)
        await self._commit()
        await self._engines()

    async def _commit(self) -> None:
        taken = self.state.take()
        if taken:
            try:
                await asyncio.to_thread(self.state.commit, taken)
            except StateError as err:
                self.state.restore(taken)
                log.error("%s", err)

    async def _engines(self) -> None:
        wanted = self.reconciler.wanted_engines()
        names: set[str] = set()
        for group, count in wanted.items():
            mine = [f"{group}-se-{i + 1}" for i in range(count)]
            names.update(mine)
            if any(name not in self.engines.running for name in mine):
                await self.engines.ensure(group, mine)
        surplus = [name for name in self.engines.running if name not in names]
        if surplus:
            await self.engines.stop(surplus)

    def _progress(self, _group: str) -> None:
        for move in list(self._moving):
            if all(self.ads.acknowledged(g) >= n for g, n in move.waits.items()):
                self._moving.remove(move)
                self.reconciler.settle_move(move)
                loop = asyncio.get_running_loop()
                loop.call_later(self.config.move_grace_seconds, self._finish, move)

    def _finish(self, move: Move) -> None:
        self.reconciler.finish_move(move)
        self._tidy = asyncio.ensure_future(self._after_move())

    async def _after_move(self) -> None:
        await self._commit()
        await self._engines()

    async def _get(self, request: bytes, _context: Any) -> bytes:
        kind = orjson.loads(request)["kind"]
        at = self.reconciler
        items: list[dict[str, Any]]
        if kind == "ingress":
            items = status.ingresses(at)
        elif kind == "vs":
            items = status.virtual_services(at)
        elif kind == "aviinfrasetting":
            items = status.settings(at)
        else:
            items = [{"path": p, "refusals": r} for p, r in self.file_refusals.items()]
        return orjson.dumps({"items": items})

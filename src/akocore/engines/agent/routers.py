"""The controller's side of the agents: what each one is, and what its router is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

import grpc
import msgspec
from msgspec import Struct, field

from akocore.engines.agent.messages import (
    METHOD,
    SERVICE,
    Order,
    Report,
    decode_report,
    encode,
)
from akocore.engines.agent.rings import UNSEEN_S, Candidate, Rings
from akocore.engines.envoy.process import EngineProcess
from akocore.engines.frr.config import RouterConfig
from akocore.engines.frr.observe import Observed
from akocore.engines.handover import Member
from akocore.kube.objects import ReplicaRouter

__all__ = ["Routers"]

log = logging.getLogger(__name__)

_Admit = Callable[[Any, str, str], Awaitable[None]]


class _Agent(Struct):
    """One agent that is connected here."""

    report: Report
    queue: asyncio.Queue[Order | None] = field(default_factory=asyncio.Queue)
    last: Order | None = None


class Routers:
    """The routers of Service Engines elsewhere, as their agents tell and obey.

    ``elsewhere``: those whose agents are connected to other replicas.  ``on_hello(report)``:
    an agent came, with what it announces; ``on_change(name)``: it went, or
    its Envoy is another one; ``on_report(name)``: anything else about it has changed.
    """

    held_s = 1.0  # how long an address that is given up still answers

    def __init__(self) -> None:
        self.config_of: Callable[[str, str], RouterConfig] | None = None
        self.elsewhere: Mapping[str, ReplicaRouter] = {}
        self.on_hello: Callable[[Report], None] = lambda _report: None
        self.on_change: Callable[[str], None] = lambda _name: None
        self.on_report: Callable[[str], None] = lambda _name: None
        self.on_elsewhere: Callable[[], None] = lambda: None  # `elsewhere` has changed
        self.opened: Callable[[], Awaitable[object]] | None = None  # orders are given after it
        self._agents: dict[str, _Agent] = {}
        self._rings = Rings()

    # ── as route health asks ────────────────────────────────────────────────────────────────

    @property
    def running(self) -> dict[str, EngineProcess]:
        """Those that are connected here and don't leave.  ``pid`` is no pid of this machine."""
        return {
            name: EngineProcess(
                group=agent.report.group,
                pid=agent.report.life or None,
                started=0.0,
                restarts=agent.report.restarts,
                last_exit=agent.report.last_exit,
                hangs=not agent.report.alive,
            )
            for name, agent in self._agents.items()
            if not agent.report.leaving
        }

    def reports(self) -> dict[str, Report]:
        """What those that are connected here have said last."""
        return {name: agent.report for name, agent in self._agents.items()}

    def address(self, name: str) -> str:
        agent = self._agents.get(name)
        return agent.report.address if agent is not None else ""

    def router_id(self, name: str) -> str:
        agent = self._agents.get(name)
        return agent.report.router_id if agent is not None else ""

    def snat(self, name: str) -> str:
        agent = self._agents.get(name)
        return agent.report.snat if agent is not None else ""

    def problems_of(self, group: str) -> dict[str, str]:
        """What keeps agents of a group from doing what they should, by name."""
        return {
            name: "; ".join(agent.report.problems)
            for name, agent in self._agents.items()
            if agent.report.group == group and agent.report.problems
        }

    @property
    def lacks(self) -> bool:
        return False  # an agent sees to itself

    def load(self, name: str) -> float | None:
        """How busy its Envoy's workers are, from 0 to 1; None: not known."""
        agent = self._agents.get(name)
        return agent.report.cpu / agent.report.concurrency if agent is not None else None

    def route(self, name: str, config: RouterConfig, handed: Collection[str] | None = None) -> None:
        """Tell its router, unless it was told just that."""
        agent = self._agents.get(name)
        if agent is None or agent.report.leaving:
            return
        ring = self._rings.ring(name, handed) if handed is not None else None
        last, life = agent.last, agent.report.life
        if last is not None and (last.life, last.router, last.ring) == (life, config, ring):
            return
        number = last.number + 1 if last else 1
        agent.last = Order(number=number, life=life, router=config, ring=ring)
        agent.queue.put_nowait(agent.last)

    @property
    def leaving(self) -> dict[str, str]:
        """Groups of those here that leave and own flows still."""
        return {
            name: agent.report.group
            for name, agent in self._agents.items()
            if agent.report.leaving and not agent.report.ended
        }

    def hands_over(self, name: str) -> bool:
        """Whether others may hand flows to it."""
        agent = self._agents.get(name)
        return agent is not None and _hands_over(agent.report)

    def look_round(self) -> None:
        """See who may be in a ring now.  Cost: all of them."""
        loop = asyncio.get_running_loop()
        elsewhere = {
            name: Candidate(
                Member(name=name, address=one.address), one.group, one.hands_over, one.leaving
            )
            for name, one in self.elsewhere.items()
            if one.address
        }
        here = {
            name: Candidate(
                Member(name=name, address=agent.report.address),
                agent.report.group,
                _hands_over(agent.report),
                agent.report.leaving,
            )
            for name, agent in self._agents.items()
        }
        if self._rings.see((elsewhere | here).values(), loop.time()):
            loop.call_later(UNSEEN_S + 0.01, self.on_elsewhere)

    async def observe(self, name: str) -> Observed | None:
        agent = self._agents.get(name)
        return agent.report.observed if agent is not None else None

    # ── the stream ──────────────────────────────────────────────────────────────────────────

    def service(self, admit: _Admit) -> grpc.GenericRpcHandler:
        """``admit(context, name, group)``: aborts the call of one that may not be this engine."""
        method: Any = grpc.stream_stream_rpc_method_handler(partial(self._stream, admit))
        return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})

    async def _stream(
        self, admit: _Admit, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        first = await anext(aiter(requests), None)
        if first is None:
            return
        try:
            report = decode_report(first)
        except msgspec.MsgspecError as err:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no report: {err}")
            return
        await admit(context, report.name, report.group)
        if self.opened is not None:
            await self.opened()
        await context.send_initial_metadata(())
        name, agent = report.name, _Agent(report)
        if (replaced := self._agents.get(name)) is not None:
            replaced.queue.put_nowait(None)
        self._agents[name] = agent
        log.info("event=agent_connected se=%s group=%s", name, report.group)
        self._rings.hear(report.group, report.ring, asyncio.get_running_loop().time())
        self.on_hello(report)
        self.on_change(name)
        reader = asyncio.create_task(self._read(agent, requests))
        try:
            while (order := await agent.queue.get()) is not None:
                if agent.queue.empty():  # else a newer one says it all
                    yield encode(order)
        finally:
            reader.cancel()
            log.info("event=agent_disconnected se=%s group=%s", name, report.group)
            if self._agents.get(name) is agent:
                del self._agents[name]
                self.on_change(name)

    async def _read(self, agent: _Agent, requests: AsyncIterator[bytes]) -> None:
        try:
            async for raw in requests:
                before, now = agent.report, decode_report(raw)
                if (now.name, now.group) != (before.name, before.group):
                    log.warning("event=agent_posed se=%s as=%r", before.name, now.name)
                    return
                agent.report = now
                self._heard(agent, before)
        except msgspec.MsgspecError as err:
            log.warning("event=report_not_read se=%s why=%r", agent.report.name, str(err))
        finally:
            agent.queue.put_nowait(None)

    def _heard(self, agent: _Agent, before: Report) -> None:
        now = agent.report
        if self._agents.get(now.name) is not agent:
            return
        if _state(before) != _state(now):
            self.on_change(now.name)
        elif before != now:
            self.on_report(now.name)

    def send_away(self) -> None:
        """End every stream: the agents look for another controller."""
        for agent in self._agents.values():
            agent.queue.put_nowait(None)


def _state(report: Report) -> object:
    """What of a report may change an order."""
    one = report
    return one.life, one.alive, one.leaving, one.ended, bool(one.ring)


def _hands_over(report: Report) -> bool:
    """While it leaves, its Envoy answers for nothing new."""
    return bool(report.ring) and (report.alive or report.leaving) and not report.ended

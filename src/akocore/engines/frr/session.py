"""One Service Engine's routing: what it must do in, what it does out.

`Session.apply` moves a router from what it was last told to what it must do now, by the changed
lines alone; an added VIP resets no session.  The addresses of VIPs come before their
announcement and go after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address

import msgspec
from msgspec import Struct

from akocore.engines.frr.addresses import Loopback
from akocore.engines.frr.config import DAEMONS, RouterConfig, VipState, canonical, render
from akocore.engines.frr.delta import Delta, delta, is_secret, to_refresh
from akocore.engines.frr.observe import (
    Observed,
    advertised_routes,
    bfd_sessions,
    bgp_sessions,
)
from akocore.engines.frr.process import Router
from akocore.engines.frr.segment import Segment
from akocore.engines.frr.vty import VtyError

__all__ = ["Applied", "Session", "SessionError", "observe"]

_GONE_ALREADY = (13,)  # CMD_WARNING_CONFIG_FAILED: nothing there to take back
_TELL_S = 60.0  # a thousand VIPs at once take seconds

_log = logging.getLogger(__name__)


class SessionError(Exception):
    """A router could not be brought to what it must do; the same can be applied again."""


class Applied(Struct, frozen=True):
    """What a `Session.apply` changed."""

    lines: int = 0
    refreshed: tuple[str, ...] = ()  # peers that were told their routes anew
    added: tuple[str, ...] = ()  # addresses
    removed: tuple[str, ...] = ()


async def observe(router: Router, loopback: Loopback, before: Observed | None = None) -> Observed:
    """What a router does now.  Raises `VtyError` or `AddressError`.

    ``before``: an earlier look, so that peers who were told nothing since are not asked about.
    Needs no `Router.start`: it asks what runs in the router's directory, whoever started it.
    Cost: some 10 ms, most of it for ``ip``, and the prefixes of peers who were told something.
    """
    (neighbors,) = await router.ask("bgpd", ["show bgp neighbors json"])
    sessions = bgp_sessions(neighbors)
    told = {s.peer: before.still_told(s) if before is not None else None for s in sessions}
    peers = [peer for peer, prefixes in told.items() if prefixes is None]
    commands = [
        f"show bgp {'ipv4' if ip_address(peer).version == 4 else 'ipv6'} unicast"
        f" neighbors {peer} advertised-routes json"
        for peer in peers
    ]
    routes = await router.ask("bgpd", commands) if commands else []
    fresh = {peer: advertised_routes(a) for peer, a in zip(peers, routes, strict=True)}
    (bfd,) = await router.ask("bfdd", ["show bfd peers json"])
    return Observed(
        bgp=sessions,
        bfd=bfd_sessions(bfd),
        advertised={peer: prefixes or fresh.get(peer, ()) for peer, prefixes in told.items()},
        addresses=await loopback.held(),
    )


class Session:
    """The routing of one Service Engine.  One call at a time goes on; others wait."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.loopback = Loopback(router.directory / "addresses.json", router.namespace)
        self.segment = Segment(router.directory / "answered.json", router.namespace)
        self.config: RouterConfig | None = None  # what was applied last
        self._observed: Observed | None = None
        self._turn = asyncio.Lock()

    async def start(self, config: RouterConfig) -> Applied:
        """Start the daemons or adopt them, and bring them to ``config``.

        Raises `FrrError` when FRR can't be run at all, else as `apply`.
        """
        await self.router.start(render(config))
        return await self.apply(config)

    async def apply(self, config: RouterConfig) -> Applied:
        """Bring the router to ``config`` by what changed.  Equal to what it has: nothing is sent.

        A daemon that is down is left to start with its new text.  Raises `SessionError` or
        `AddressError`; what was done by then stays, and applying again does the rest.
        """
        async with self._turn:
            return await self._apply(config)

    async def _apply(self, config: RouterConfig) -> Applied:
        wanted = render(config)
        router = self.router
        changes = {d: delta(router.told(d), wanted.of(d), router.attempted(d)) for d in DAEMONS}
        peers = {canonical(peer.address) for peer in config.peers}
        refreshed = tuple(peer for peer in to_refresh(changes["bgpd"]) if peer in peers)
        addresses = config.addresses
        added = await self.loopback.add(addresses)
        await self.segment.answer(
            vip.address for vip in config.vips if vip.state is VipState.ANSWERED
        )
        up = {}
        for daemon in (d for d in DAEMONS if changes[d]):
            if await self._is_up(daemon):
                up[daemon] = router.daemons[daemon].restarts
            else:
                router.keep(daemon, wanted.of(daemon))  # at once: it may start any moment
        sent = 0
        for daemon in up:
            router.attempt(daemon, wanted.of(daemon))
            sent += await self._tell(daemon, changes[daemon])
        for daemon in reversed(up):
            sent += await self._untell(daemon, changes[daemon])
        if refreshed and "bgpd" in up:
            await self._refresh(refreshed)
        for daemon, restarts in up.items():
            if router.daemons[daemon].restarts != restarts:
                raise SessionError(f"{daemon} ended while it was told.")
            router.keep(daemon, wanted.of(daemon))
        removed = await self.loopback.keep_only(addresses)
        self.config = config
        done = Applied(sent, refreshed if "bgpd" in up else (), added, removed)
        if done != Applied():
            _log.info(
                "event=frr_applied se=%s lines=%d refreshed=%d added=%d removed=%d",
                *(config.name, sent, len(done.refreshed), len(added), len(removed)),
            )
        return done

    async def withdraw(
        self,
        addresses: Collection[str],
        *,
        drain_s: float = 1.0,
        hold_s: float = 1.0,
        until: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Take VIPs off this Service Engine without losing a packet that is on its way.

        For ``drain_s`` they are announced as about to go, and routers that have another way
        use that (RFC 8326); then they are withdrawn, and answer for ``hold_s`` more, and on
        till ``until`` returns: till flows that others hand over are at their end.
        """
        mine = {canonical(a) for a in addresses}
        for state, wait_s in ((VipState.DRAINING, drain_s), (VipState.HELD, hold_s)):
            await self._change(mine, state)
            await asyncio.sleep(wait_s)
        if until is not None:
            await until()
        await self._change(mine, None)

    async def _change(self, addresses: Collection[str], state: VipState | None) -> None:
        async with self._turn:
            if (config := self.config) is None:
                raise SessionError("nothing was applied yet: start the session first.")
            vips = [
                vip
                if canonical(vip.address) not in addresses
                else msgspec.structs.replace(vip, state=state)
                for vip in config.vips
                if state is not None or canonical(vip.address) not in addresses
            ]
            await self._apply(msgspec.structs.replace(config, vips=tuple(vips)))

    async def leave(
        self,
        *,
        drain_s: float = 1.0,
        hold_s: float = 1.0,
        until: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Withdraw everything as `withdraw` does, and stop."""
        if self.config is not None:
            async with self._turn:
                await self._apply(msgspec.structs.replace(self.config, graceful_shutdown=True))
            await asyncio.sleep(drain_s)
            vips = [vip.address for vip in self.config.vips]
            await self.withdraw(vips, drain_s=0, hold_s=hold_s, until=until)
        await self.stop()

    async def stop(self) -> None:
        """End the daemons and remove their addresses; peers hear of it, traffic may be lost."""
        async with self._turn:
            await self.router.stop()
            await self.segment.answer(())
            await self.segment.told()
            await self.loopback.keep_only(())
            self.config = None

    def release(self) -> None:
        """Leave all as it is, for the next akocore to adopt."""
        self.router.release()

    async def observe(self) -> Observed:
        """What the router does now.  Raises `SessionError` when a daemon doesn't answer."""
        try:
            self._observed = await observe(self.router, self.loopback, self._observed)
        except VtyError as err:
            raise SessionError(str(err)) from err
        except msgspec.MsgspecError as err:  # a daemon that starts, or is another release
            raise SessionError(f"an answer of FRR can't be read: {err}") from err
        return self._observed

    # ─── telling a daemon

    async def _is_up(self, daemon: str) -> bool:
        """Whether it must be told; False: it is down and reads its new text when it starts."""
        if await self.router.until_ready(daemon):
            return True
        if self.router.daemons[daemon].pid is not None:
            raise SessionError(f"{daemon} runs and doesn't answer.")
        return False

    async def _tell(self, daemon: str, change: Delta) -> int:
        await self._configure(daemon, change.before, _GONE_ALREADY)
        await self._configure(daemon, change.added, ())
        return len(change.before) + len(change.added)

    async def _untell(self, daemon: str, change: Delta) -> int:
        await self._configure(daemon, change.removed, _GONE_ALREADY)
        return len(change.removed)

    async def _configure(
        self, daemon: str, lines: Collection[str], tolerate: tuple[int, ...]
    ) -> None:
        if not lines:
            return
        try:
            await self.router.ask(daemon, ["configure terminal", *lines], tolerate, _TELL_S)
        except VtyError as err:
            if err.refused < 0:
                raise SessionError(f"{daemon}: {err}") from err
            line = ["configure terminal", *lines][err.refused]
            if is_secret(line):
                raise SessionError(f"{daemon} refused a password.") from None
            raise SessionError(f"{daemon} refused {line!r}: {err}") from err

    async def _refresh(self, peers: tuple[str, ...]) -> None:
        families = {4: "ipv4", 6: "ipv6"}
        lines = [f"clear bgp {families[ip_address(p).version]} unicast {p} soft out" for p in peers]
        try:
            await self.router.ask("bgpd", lines)
        except VtyError as err:
            raise SessionError(f"bgpd: {err}") from err

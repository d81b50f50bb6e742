"""What a router really does, from the JSON of FRR's show commands.  Pure.

Commands: ``show bgp neighbors json``, ``show bgp FAMILY unicast neighbors PEER
advertised-routes json`` and ``show bfd peers json``, as FRR 8.4 answers them.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_network

import msgspec
from msgspec import Struct

__all__ = [
    "BfdSession",
    "BgpSession",
    "Down",
    "Observed",
    "advertised_routes",
    "bfd_sessions",
    "bgp_sessions",
]


class Down(StrEnum):
    """Why a BGP session isn't established."""

    CONNECTING = "Connecting"  # nothing has failed yet
    NO_TCP = "NoTcp"  # no answer on port 179, or a password of the two sides differs
    NO_ROUTE = "NoRoute"  # it is on none of our networks
    WRONG_AS = "WrongAs"
    CLOSED = "Closed"  # the other side hung up: it doesn't know us, or stopped
    REFUSED = "Refused"  # by a notification of either side, other than of the AS
    BFD_DOWN = "BfdDown"
    HOLD_TIMER = "HoldTimer"
    SHUT_DOWN = "ShutDown"  # by one side's administrator


class BgpSession(Struct, frozen=True, kw_only=True):
    """One BGP session.  ``why`` is None while it is established; ``said`` is FRR's own account."""

    peer: str
    remote_as: int
    state: str  # RFC 4271: Idle, Connect, Active, OpenSent, OpenConfirm, Established
    up_s: float  # 0 when it is not established
    established: int  # how often it was, since bgpd started
    dropped: int
    updates: int  # that the peer was sent, in all its sessions
    told: int  # prefixes that the peer has from us
    heard: int  # prefixes that we use from the peer
    why: Down | None
    said: str = ""


class BfdSession(Struct, frozen=True, kw_only=True):
    """One BFD session.  ``detect_ms``: how long the peer may be silent."""

    peer: str
    state: str  # RFC 5880: up, down, init, shutdown
    local_id: int
    remote_id: int
    up_s: int
    detect_ms: int
    said: str = ""  # the diagnostic, when it isn't up
    interface: str = ""


class Observed(Struct, frozen=True, kw_only=True):
    """One Service Engine's routing as it is."""

    bgp: tuple[BgpSession, ...]
    bfd: tuple[BfdSession, ...]
    advertised: dict[str, tuple[str, ...]]  # peer → prefixes
    addresses: tuple[str, ...]  # on the loopback interface

    @property
    def established(self) -> bool:
        """Whether there is a peer and no session is down."""
        return bool(self.bgp) and all(session.why is None for session in self.bgp)

    def still_told(self, session: BgpSession) -> tuple[str, ...] | None:
        """What the peer of a later look has as it had it then; None: it may have something else."""
        prefixes = self.advertised.get(session.peer, ())
        for before in self.bgp:
            if before.peer == session.peer and _of(before) == _of(session):
                same = before.up_s <= session.up_s and len(prefixes) == session.told
                return prefixes if same else None
        return None


def _of(session: BgpSession) -> tuple[object, ...]:
    """Equal while a peer keeps what it was told."""
    return session.state, session.established, session.dropped, session.updates, session.told


class _Family(Struct, rename="camel"):
    accepted_prefix_counter: int = 0
    sent_prefix_counter: int = 0


class _Messages(Struct, frozen=True, rename="camel"):
    opens_sent: int = 0
    opens_recv: int = 0
    updates_sent: int = 0


class _Neighbor(Struct, rename="camel"):
    remote_as: int
    bgp_state: str
    bgp_timer_up_msec: int = 0
    connections_established: int = 0
    connections_dropped: int = 0
    last_reset_due_to: str = ""
    last_reset_timer_msecs: int = 0
    connect_retry_timer: int = 120
    last_notification_reason: str = ""
    message_stats: _Messages = _Messages()
    last_error_code_subcode: str = ""
    address_family_info: dict[str, _Family] = {}


class _BfdPeer(Struct, rename="kebab"):
    peer: str
    status: str
    id: int = 0
    remote_id: int = 0
    uptime: int = 0
    diagnostic: str = ""
    interface: str = ""
    receive_interval: int = 0
    remote_transmit_interval: int = 0
    remote_detect_multiplier: int = 0


class _Advertised(Struct, rename="camel"):
    advertised_routes: dict[str, msgspec.Raw] = {}


_BAD_PEER_AS = "0202"  # RFC 4271 6.2
_CEASE_SHUTDOWN = ("0602", "0609")  # RFC 4486 and 8538
_HOLD_TIMER = "0400"
_ATTEMPT_S = 2
_LASTING = ("BFD down received", "Waiting for NHT")
_NOTIFIED = ("BGP Notification received", "BGP Notification send")


def bgp_sessions(answer: str) -> tuple[BgpSession, ...]:
    """All sessions of one daemon."""
    found = msgspec.json.decode(answer, type=dict[str, _Neighbor])
    return tuple(
        BgpSession(
            peer=peer,
            remote_as=n.remote_as,
            state=n.bgp_state,
            up_s=n.bgp_timer_up_msec / 1000 if n.bgp_state == "Established" else 0.0,
            established=n.connections_established,
            dropped=n.connections_dropped,
            updates=n.message_stats.updates_sent,
            told=sum(f.sent_prefix_counter for f in n.address_family_info.values()),
            heard=sum(f.accepted_prefix_counter for f in n.address_family_info.values()),
            why=_why(n),
            said=_said(n),
        )
        for peer, n in found.items()
    )


def _why(n: _Neighbor) -> Down | None:
    if n.bgp_state == "Established":
        return None
    if n.bgp_state in ("Connect", "Active") and n.last_reset_due_to not in _LASTING:
        # It tries, so what ended the last session is the reason only as long as it is news.
        if n.last_reset_timer_msecs > 1000 * (n.connect_retry_timer + _ATTEMPT_S):
            return Down.NO_TCP
        reason = _why_reset(n)
        return Down.NO_TCP if reason is Down.CONNECTING else reason
    return _why_reset(n)


def _why_reset(n: _Neighbor) -> Down:
    match n.last_reset_due_to:
        case "BGP Notification received" | "BGP Notification send":
            if n.last_error_code_subcode == _BAD_PEER_AS:
                return Down.WRONG_AS
            if n.last_error_code_subcode == _HOLD_TIMER:
                return Down.HOLD_TIMER
            if n.last_error_code_subcode in _CEASE_SHUTDOWN:
                return Down.SHUT_DOWN
            return Down.REFUSED
        case "BFD down received":
            return Down.BFD_DOWN
        case "Admin. shutdown":
            return Down.SHUT_DOWN
        case "No path to specified Neighbor" | "Waiting for NHT":
            return Down.NO_ROUTE
        case "Waiting for peer OPEN" if n.message_stats.opens_sent > n.message_stats.opens_recv:
            return Down.CLOSED
        case "Peer closed the session":
            return Down.CLOSED
        case _:
            return Down.CONNECTING


def _said(n: _Neighbor) -> str:
    if n.bgp_state == "Established":
        return ""
    if n.last_reset_due_to in _NOTIFIED and n.last_notification_reason:
        return f"{n.last_reset_due_to}: {n.last_notification_reason}"
    return n.last_reset_due_to


def advertised_routes(answer: str) -> tuple[str, ...]:
    """Prefixes that one peer has from us, in one address family; sorted."""
    found = msgspec.json.decode(answer, type=_Advertised).advertised_routes
    return tuple(sorted(found, key=_order))


@lru_cache(maxsize=1 << 16)
def _order(prefix: str) -> tuple[int, int, int]:
    net = ip_network(prefix)
    return net.version, int(net.network_address), net.prefixlen


def bfd_sessions(answer: str) -> tuple[BfdSession, ...]:
    """All sessions of one daemon."""
    return tuple(
        BfdSession(
            peer=b.peer,
            state=b.status,
            local_id=b.id,
            remote_id=b.remote_id,
            up_s=b.uptime,
            # RFC 5880 6.8.4: what the peer multiplies is the longer of the two intervals.
            detect_ms=b.remote_detect_multiplier
            * max(b.receive_interval, b.remote_transmit_interval),
            said="" if b.status == "up" else b.diagnostic,
            interface=b.interface,
        )
        for b in sorted(msgspec.json.decode(answer, type=list[_BfdPeer]), key=lambda b: b.peer)
    )

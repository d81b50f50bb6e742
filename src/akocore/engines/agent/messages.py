"""What an agent and a controller say to each other: JSON on one stream of gRPC.

The agent says how things are, whenever they change and every few seconds; the controller says
what the router is to do.  What is said last is what counts: nothing depends on all that was said
before.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from akocore.engines.frr.config import RouterConfig
from akocore.engines.frr.observe import Observed
from akocore.engines.handover import Counters, Member

__all__ = [
    "METHOD",
    "SERVICE",
    "SIGN",
    "CertificateRequest",
    "Certified",
    "HandOver",
    "Order",
    "Report",
    "decode_certified",
    "decode_order",
    "decode_report",
    "decode_request",
    "encode",
]

CANT_HAND_OVER = "flows can't be handed over"  # begins the problem that says why
SERVICE, METHOD = "akocore.v1alpha1.Routers", "Follow"
SIGN = "/akocore.v1alpha1.Certificates/Sign"
"""The one method of the port where certificates are signed."""


class _Message(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pass


class Report(_Message, frozen=True):
    """A Service Engine as it is.

    ``life``: a number of its Envoy's process, another one after each start; 0: it doesn't run.
    ``announced``: the addresses that its router is told to announce.  ``problems``: what keeps it
    from doing what it should, in words.  ``ring``: whom it hands flows over to, itself among them;
    ``flows``: those of the ring's VIPs that it owns; ``ended``: it leaves, and owns none any more.
    """

    name: str
    group: str
    address: str  # where it speaks BGP from
    router_id: str
    snat: str = ""  # its own address, that it asks backends from
    life: int = 0
    alive: bool = False  # its Envoy answers
    restarts: int = 0
    last_exit: str = ""
    order: int = 0  # the number of the order that is in force
    announced: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()  # of `announced`: as the worse way
    answered: tuple[str, ...] = ()  # of `announced`: by ARP and ND instead
    observed: Observed | None = None
    problems: tuple[str, ...] = ()
    leaving: bool = False
    connections: int = 0  # of clients
    requests: dict[str, int] = {}  # since its Envoy started, by virtual service
    overflows: dict[str, int] = {}  # what met an open breaker since then, by Service port
    cpu: float = 0.0  # of one processor, by its Envoy
    concurrency: int = 1  # workers of its Envoy
    version: str = ""
    ring: tuple[Member, ...] = ()
    flows: int = 0
    handed: Counters | None = None
    ended: bool = False
    connection_limit: int = 0  # of clients at once
    bounds: tuple[str, ...] = ()  # why it is bounded otherwise than asked for, in words


class HandOver(_Message, frozen=True):
    """Whom to hand flows over to: what of a `handover.Ring` a controller knows."""

    members: tuple[Member, ...]
    vips: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    back: bool = False


class Order(_Message, frozen=True):
    """What a router is to do while its Envoy is in ``life``; in another, it announces nothing.

    ``ring``: comes before the router; None: no flow is handed over.
    """

    number: int
    life: int
    router: RouterConfig
    ring: HandOver | None = None


class CertificateRequest(_Message, frozen=True):
    """``request``: PKCS #10, PEM; ``token``: of the pod that asks."""

    token: str
    request: str


class Certified(_Message, frozen=True):
    """``certificate``: PEM."""

    certificate: str


_requests, _certified = msgspec.json.Decoder(CertificateRequest), msgspec.json.Decoder(Certified)
_orders, _reports = msgspec.json.Decoder(Order), msgspec.json.Decoder(Report)
encode = msgspec.json.encode


def decode_order(raw: bytes) -> Order:
    """Raises `msgspec.MsgspecError`."""
    return _orders.decode(raw)


def decode_report(raw: bytes) -> Report:
    """Raises `msgspec.MsgspecError`."""
    return _reports.decode(raw)


def decode_request(raw: bytes) -> CertificateRequest:
    """Raises `msgspec.MsgspecError`."""
    return _requests.decode(raw)


def decode_certified(raw: bytes) -> Certified:
    """Raises `msgspec.MsgspecError`."""
    return _certified.decode(raw)

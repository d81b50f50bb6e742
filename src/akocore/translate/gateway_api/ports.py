"""Listeners of one port of a Gateway → the chains by which an engine tells its clients apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from akocore.model_http import Backend
from akocore.translate.gateway_api.found import ListenerId
from akocore.translate.gateway_api.listeners import ClientValidation, ListenerView

__all__ = ["GatewayPort", "PortChain", "gateway_port"]


class PortChain(Struct, frozen=True, gc=False):
    """Clients of one listener of a port.

    ``host``: of the TLS server name ("": any other); ``http``: its requests are routed by host;
    otherwise its connections go to ``backends``, of which there may be none: they are closed.
    """

    name: str
    host: str
    http: bool
    certificates: tuple[str, ...] = ()  # Secrets "namespace/name"; (): TLS does not end here
    clients: ClientValidation | None = None
    backends: tuple[Backend, ...] = ()


class GatewayPort(Struct, frozen=True, gc=False):
    """One port of a Gateway, over TCP or UDP: the unit of its listeners' work."""

    protocol: str  # TCP or UDP
    port: int
    chains: tuple[PortChain, ...]


def chain_of(listener: ListenerView) -> str:
    """The chain of a listener: all of HTTP share one, those with TLS are told by server name."""
    if listener.mode:
        return listener.hostname or "*"
    return ""


def gateway_port(
    transport: tuple[str, int],
    listeners: Iterable[ListenerView],
    backends: Mapping[ListenerId, tuple[Backend, ...]],
) -> GatewayPort | None:
    """One port; None: nobody is to be let in.  ``backends``: of what is not routed by host.

    Cost: the listeners of that port.
    """
    chains: dict[str, PortChain] = {}
    for one in listeners:
        if not one.serves or one.transport != transport:
            continue
        http = one.protocol in ("HTTP", "HTTPS")
        shares = backends.get(one.id, ())
        if one.protocol in ("TCP", "UDP") and not shares:
            continue  # as a listener of L4 without a pool: refused at once
        name = chain_of(one)
        chains[name] = PortChain(
            name, one.hostname if one.mode else "", http, one.certificates, one.clients, shares
        )
    if not chains:
        return None
    return GatewayPort(*transport, tuple(chains[name] for name in sorted(chains)))

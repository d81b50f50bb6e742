"""Listeners of one port of a Gateway → the chains by which an engine tells its clients apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from akocore.model_http import Backend, Chain, ChainTls, ClientCertificates
from akocore.translate.gateway_api.found import ListenerId
from akocore.translate.gateway_api.hostnames import most_specific
from akocore.translate.gateway_api.listeners import ListenerView

__all__ = ["GatewayPort", "chain_of", "gateway_port", "meant"]


class GatewayPort(Struct, frozen=True, gc=False):
    """One port of a Gateway: the unit of its listeners' work.  ``udp``: backends of a UDP port."""

    port: int
    chains: tuple[Chain, ...] = ()
    udp: tuple[Backend, ...] = ()


def chain_of(listener: ListenerView) -> str:
    """The chain of a listener: all of HTTP share one, those with TLS are told by server name."""
    if listener.mode:
        return f"tls-{listener.hostname or 'any'}"
    return "http"


def meant(host: str, like: ListenerView, listeners: Iterable[ListenerView]) -> str | None:
    """Of the listeners that share a port, the hostname of the one that ``host`` means."""
    tls = bool(like.mode)
    alike = (one for one in listeners if one.transport == like.transport and bool(one.mode) == tls)
    return most_specific(host, (one.hostname for one in alike if one.accepted))


def gateway_port(
    transport: tuple[str, int],
    listeners: Iterable[ListenerView],
    backends: Mapping[ListenerId, Mapping[str, tuple[Backend, ...]]],
    authorities: Callable[[str], str],
) -> GatewayPort | None:
    """One port; None: nobody is to be let in.  Cost: the listeners of that port.

    ``backends``: by listener and host, of what is not HTTP; ``authorities``: the PEM certificates
    of a ConfigMap.
    """
    port = transport[1]
    mine = [one for one in listeners if one.serves and one.transport == transport]
    chains: dict[str, Chain] = {}
    for one in mine:
        shares = backends.get(one.id, {})
        if one.protocol == "UDP":
            found = shares.get("", ())
            return GatewayPort(port, udp=found) if found else None
        if one.protocol == "TCP":
            if "" in shares:
                chains["tcp"] = Chain("tcp", tcp=shares[""])
        elif one.protocol == "TLS":
            for host, tcp in shares.items():
                if meant(host, one, mine) == one.hostname:
                    name = f"tls-{host or 'any'}"
                    chains[name] = Chain(
                        name, _names(host), _tls(one, authorities), one.mode == "Passthrough", tcp
                    )
        else:
            name = chain_of(one)
            server_names = _names(one.hostname) if one.mode else ()
            chains[name] = Chain(name, server_names, _tls(one, authorities))
    if not chains:
        return None
    return GatewayPort(port, tuple(chains[name] for name in sorted(chains)))


def _names(host: str) -> tuple[str, ...]:
    return (host,) if host else ()


def _tls(listener: ListenerView, authorities: Callable[[str], str]) -> ChainTls | None:
    if listener.mode != "Terminate":
        return None
    clients = None
    if listener.clients is not None:
        pem = "\n".join(authorities(key) for key in listener.clients.authorities)
        clients = ClientCertificates(pem, not listener.clients.insecure)
    return ChainTls(listener.certificates, clients)

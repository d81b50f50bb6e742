"""What of a Gateway is published, and where: its ports and their hosts."""

from __future__ import annotations

from msgspec import Struct, field

from akocore.model_http import HttpHost
from akocore.translate.gateway_api.found import ListenerId
from akocore.translate.gateway_api.ports import GatewayPort

__all__ = ["HostAt", "PlacedFloor", "PlacedGateway", "PlacedHost", "PlacedPort"]

Backends = frozenset[tuple[str, str, str]]  # (group, virtual service, cluster's key)


class HostAt(Struct, frozen=True, gc=False, order=True):
    """A host of a port; ``chain``: of the clients that have come by that listener's server name."""

    port: int
    chain: str
    host: str


class PlacedHost(Struct):
    """One host and what of it is published.  ``owner``: the listener that speaks for it."""

    owner: ListenerId
    model: HttpHost
    scopes: frozenset[tuple[str, str]] = frozenset()  # (group, scope's name)
    backends: Backends = frozenset()


class PlacedFloor(Struct):
    """What a chain of HTTP has for hosts that it does not know.  ``wildcards``: that it has."""

    wildcards: set[str]
    scopes: frozenset[tuple[str, str]] = frozenset()


class PlacedPort(Struct):
    """One port, by transport, and what of it is published."""

    model: GatewayPort
    # (group, address) → the publication that brought it there
    sequence: dict[tuple[str, str], int] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)  # → the resource's name
    backends: Backends = frozenset()
    secrets: Backends = frozenset()  # (group, virtual service, Secret)


class PlacedGateway(Struct):
    """The ports and hosts of one virtual service."""

    ports: dict[tuple[str, int], PlacedPort] = field(default_factory=dict)
    hosts: dict[HostAt, PlacedHost] = field(default_factory=dict)
    floors: dict[tuple[int, str], PlacedFloor] = field(default_factory=dict)  # by port and chain

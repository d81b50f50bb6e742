"""The one configuration file: a frozen Struct, read once at the start.

``akocore config`` prints it with its defaults, ``akocore config --schema`` its JSON schema.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from akocore.client_limits import ClientLimits
from akocore.fields import explained, no_such_field, unknown_fields
from akocore.kube.objects import AddressRange, NetworkSpec, ServiceEngineGroupSpec

__all__ = [
    "Config",
    "ConfigError",
    "Defaults",
    "EndpointsConfig",
    "FqdnReusePolicy",
    "Limits",
    "ShardSize",
    "load_config",
]


class ConfigError(Exception):
    """The configuration can't be used; the text says which field and what to do."""


class ShardSize(StrEnum):
    """How many virtual services the hosts of one setting share."""

    SMALL = "SMALL"
    MEDIUM = "MEDIUM"
    LARGE = "LARGE"
    DEDICATED = "DEDICATED"

    @property
    def shards(self) -> int:
        """1, 4 or 8 shared virtual services; 0: one virtual service for each host."""
        return {"SMALL": 1, "MEDIUM": 4, "LARGE": 8, "DEDICATED": 0}[self.value]


_MAPPED: Final = IPv6Network("::ffff:0:0/96")  # addresses of IPv4, written as IPv6


class _Section(
    Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=False
):
    pass


class Defaults(_Section, frozen=True):
    """What governs an Ingress that no AviInfraSetting speaks for."""

    se_group: Annotated[str, Meta(description="ServiceEngineGroup")] = "Default-Group"
    network: Annotated[str, Meta(description="Network that VIPs are taken from")] = "default"
    other_network: Annotated[
        str, Meta(description="Network of the other address family: of Services with VIPs of both")
    ] = ""
    shard_size: Annotated[ShardSize, Meta(description="LARGE 8, MEDIUM 4, SMALL 1 VIPs")] = (
        ShardSize.LARGE
    )
    enable_rhi: Annotated[bool, Meta(description="announce VIPs by BGP")] = False
    bgp_peer_labels: Annotated[
        tuple[str, ...], Meta(description="to peers with these labels; none: to all")
    ] = ()
    client_limits: Annotated[
        ClientLimits, Meta(description="what clients may take of a Service Engine")
    ] = ClientLimits()


class IngressClassConfig(_Section, frozen=True):
    """The IngressClass ``avi-lb``."""

    create: Annotated[bool, Meta(description="make it when the source has none")] = True
    default: Annotated[bool, Meta(description="made as the cluster's default class")] = True


class FqdnReusePolicy(StrEnum):
    """Who may name a host that an Ingress or a route of another namespace has, as AKO spells it."""

    INTER_NAMESPACE_ALLOWED = "InterNamespaceAllowed"
    STRICT = "Strict"


class L7Config(_Section, frozen=True):
    """Ingresses, and routes of the Gateway API."""

    fqdn_reuse_policy: Annotated[
        FqdnReusePolicy | None,
        Meta(
            description="Strict: a host is of the namespace that named it first;"
            " InterNamespaceAllowed: others may add paths; none: Strict for Ingresses, and routes"
            " share a host as the listener's allowedRoutes lets them"
        ),
    ] = None

    @property
    def strict_ingresses(self) -> bool:
        """Whether a host of Ingresses is one namespace's alone."""
        return self.fqdn_reuse_policy is not FqdnReusePolicy.INTER_NAMESPACE_ALLOWED

    @property
    def strict_routes(self) -> bool:
        """Whether a host that routes name is one namespace's alone, on each listener."""
        return self.fqdn_reuse_policy is FqdnReusePolicy.STRICT


class L4Config(_Section, frozen=True):
    """Services of type LoadBalancer."""

    default_controller: Annotated[
        bool, Meta(description="serve those that name no loadBalancerClass")
    ] = True


class Limits(_Section, frozen=True):
    """What one object, host or client may cost; what is beyond is left out and told."""

    expression_size: Annotated[
        int, Meta(ge=1, le=2000, description="instructions (RE2) of one regular expression")
    ] = 300
    expression_states: Annotated[
        int, Meta(ge=1, le=10_000, description="states of the automaton of one of them")
    ] = 1000
    host_expression_size: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="instructions of all that a host has, each counted as often as it is"
            " tried, and as 64 at least",
        ),
    ] = 3000
    host_expression_states: Annotated[
        int, Meta(ge=1, le=100_000, description="states of all that a host has")
    ] = 5000

    hosts: Annotated[
        int, Meta(ge=1, le=100_000, description="of an Ingress, and entries of its tls")
    ] = 5000
    paths: Annotated[
        int, Meta(ge=1, le=1_000_000, description="of an Ingress, matches of a route")
    ] = 10_000
    host_paths: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="of one host, of all Ingresses or routes together"),
    ] = 10_000
    listeners: Annotated[
        int, Meta(ge=1, le=10_000, description="of a Gateway and its ListenerSets together")
    ] = 512
    ports: Annotated[
        int,
        Meta(ge=1, le=65_535, description="of a LoadBalancer Service, listeners of an L4 Gateway"),
    ] = 256
    source_ranges: Annotated[
        int, Meta(ge=1, le=100_000, description="loadBalancerSourceRanges of a Service")
    ] = 1000
    endpoints: Annotated[int, Meta(ge=1, le=1_000_000, description="of a port of a Service")] = (
        50_000
    )
    certificate_bytes: Annotated[
        int,
        Meta(ge=1, le=1 << 20, description="of tls.crt and tls.key: few clients take as much"),
    ] = 100_000
    authorities_bytes: Annotated[
        int, Meta(ge=1, le=1 << 20, description="of ca.crt in a ConfigMap")
    ] = 500_000
    server_names: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="names that an engine keeps a certificate for though they are no host's"
            " own: under a wildcard, or spelt otherwise",
        ),
    ] = 1000
    backend_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="connections of one Service Engine to one Service port, and requests there",
        ),
    ] = 25_000
    udp_sessions: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="sessions of UDP of one Service Engine with one Service port: each has a"
            " port of the machine for a minute",
        ),
    ] = 5_000
    hops: Annotated[
        int,
        Meta(
            ge=2,
            le=100,
            description="times that a request may come by before it is answered with 502",
        ),
    ] = 4


class EndpointsConfig(_Section, frozen=True):
    """Which addresses of EndpointSlices may be endpoints.

    VIPs, addresses of Service Engines, link-local, multicast and the like never are by themselves.
    """

    deny: Annotated[
        tuple[str, ...],
        Meta(description="CIDRs in which nothing is an endpoint: nodes, metadata services"),
    ] = ()
    allow: Annotated[
        tuple[str, ...],
        Meta(description="CIDRs that may be endpoints all the same; VIPs never may"),
    ] = ()
    allow_loopback: Annotated[
        bool | None,
        Meta(description="null: where a directory is served by Service Engines of this machine"),
    ] = None

    def __post_init__(self) -> None:
        for text in (*self.deny, *self.allow):
            try:
                network = ip_network(text)
            except ValueError as err:
                raise ValueError(f"{err} (write it as 10.10.16.0/24)") from err
            if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
                raise ValueError(f"{text!r} has addresses of IPv4 in IPv6: write these as IPv4")


_LOOPBACK = NetworkSpec(
    subnet="127.10.15.0/24", vip_ranges=(AddressRange(begin="127.10.15.161", end="127.10.15.254"),)
)


class Config(_Section, frozen=True):
    """Everything that can be set, with the embedded defaults."""

    cluster_name: Annotated[
        str, Meta(pattern="^[a-zA-Z0-9-_]{1,32}$", description="prefix of every object's name")
    ] = "my-cluster"
    defaults: Defaults = Defaults()
    ingress_class: IngressClassConfig = IngressClassConfig()
    l7: L7Config = L7Config()
    l4: L4Config = L4Config()
    limits: Limits = Limits()
    endpoints: EndpointsConfig = EndpointsConfig()
    service_engine_groups: Annotated[
        dict[str, ServiceEngineGroupSpec],
        Meta(description="groups that exist without an object; an object of that name wins"),
    ] = msgspec.field(default_factory=lambda: {"Default-Group": ServiceEngineGroupSpec()})
    networks: Annotated[
        dict[str, NetworkSpec],
        Meta(description="networks that exist without an object; an object of that name wins"),
    ] = msgspec.field(default_factory=lambda: {"default": _LOOPBACK})
    watch_namespaces: Annotated[
        tuple[Annotated[str, Meta(pattern="^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")], ...],
        Meta(
            description="of a cluster's objects, read those of these namespaces alone; none: all."
            " What another namespace holds (a Service, a Secret) is not there for akocore"
        ),
    ] = ()
    move_grace_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="how long an old address serves on after a move"),
    ] = 10.0
    envoy_concurrency: Annotated[
        int, Meta(ge=1, le=256, description="worker threads of each local Service Engine")
    ] = 1

    def __post_init__(self) -> None:
        names = self.watch_namespaces
        twice = next((one for i, one in enumerate(names) if one in names[:i]), None)
        if twice is not None:
            raise ValueError(f"watchNamespaces has {twice} twice")


def load_config(path: Path | None) -> Config:
    """The configuration in the YAML or JSON file ``path``; the defaults when it is None.

    Raises `ConfigError` naming the field.
    """
    if path is None:
        return Config()
    try:
        text = path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}. Give a readable file to --config.") from err
    see = "See `akocore config --schema`."
    try:
        written = msgspec.yaml.decode(text)
        if written is None:  # nothing, or comments alone
            return Config()
        config = msgspec.convert(written, Config)
    except msgspec.ValidationError as err:
        raise ConfigError(f"{path}: {explained(str(err), written, Config)[1]} {see}") from err
    except msgspec.MsgspecError as err:
        raise ConfigError(f"{path}: {err}. {see}") from err
    for field, there in unknown_fields(written, config):
        raise ConfigError(f"{path}: {no_such_field(field, there)} {see}")
    return config

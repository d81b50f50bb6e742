"""Which class and which AviInfraSetting govern an Ingress, and what a setting comes to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from akocore.client_limits import ClientLimits
from akocore.config import Defaults, ShardSize
from akocore.kube.objects import (
    AviInfraSettingSpec,
    InfraNetwork,
    Ingress,
    IngressClass,
    NetworkSpec,
    ServiceEngineGroupSpec,
)
from akocore.model import Refusal
from akocore.shown import quoted

if TYPE_CHECKING:
    from akocore.store import Store

__all__ = [
    "CONTROLLER",
    "HA_MODES",
    "SCALE_OUT_ANNOTATION",
    "Governed",
    "Infra",
    "Listener",
    "govern",
    "infra_of",
]

HA_MODES = ("ActiveActive", "NPlusM", "ActiveStandby")
SCALE_OUT_ANNOTATION = "akocore.io/scale-out"
CONTROLLER = "ako.vmware.com/avi-lb"
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")  # RFC 1123, roughly
DEFAULT_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
SETTING_ANNOTATION = "aviinfrasetting.ako.vmware.com/name"


class Governed(Struct, frozen=True, gc=False):
    """``ours``: akocore serves it; ``setting``: by this AviInfraSetting ("" the defaults)."""

    ours: bool
    ingress_class: str = ""
    setting: str = ""
    refusal: Refusal | None = None


def setting_of_class(cls: IngressClass) -> str | None:
    """The AviInfraSetting that a class names."""
    parameters = cls.spec.parameters
    if parameters is None or cls.spec.controller != CONTROLLER:
        return None
    if parameters.api_group != "ako.vmware.com" or parameters.kind != "AviInfraSetting":
        return None
    return parameters.name


def is_default(cls: IngressClass) -> bool:
    return cls.metadata.annotation(DEFAULT_ANNOTATION) == "true"


def default_class(store: Store) -> IngressClass | None:
    """Our default class: the newest of several, as the API server chooses, then by name."""
    ours = [
        cls
        for cls in store.all("IngressClass").values()
        if isinstance(cls, IngressClass) and cls.spec.controller == CONTROLLER and is_default(cls)
    ]
    ours.sort(key=lambda cls: cls.metadata.name)
    return max(ours, key=lambda cls: cls.metadata.creation_timestamp, default=None)


def govern(ingress: Ingress, store: Store, default: IngressClass | None) -> Governed:
    """Who serves an Ingress.  Cost: constant."""
    name = ingress.spec.ingress_class_name
    by_annotation = name is None and ingress.metadata.annotation(CLASS_ANNOTATION)
    if name is None and not by_annotation:
        if default is None:
            return Governed(False)
        cls: IngressClass | None = default
    else:
        cls = store.ingress_class(name or str(by_annotation))
    if cls is None:
        if by_annotation:
            return Governed(False)  # another controller's, by the old custom
        return Governed(
            False,
            name or "",
            refusal=Refusal(
                object=f"Ingress/{ingress.metadata.key}",
                field="spec.ingressClassName",
                reason="IngressClassNotFound",
                remedy=f"Create IngressClass {name}, or name one that exists.",
            ),
        )
    if cls.spec.controller != CONTROLLER:
        return Governed(False, cls.metadata.name)
    setting = setting_of_class(cls)
    if setting is None:
        namespace = store.namespace(ingress.metadata.namespace)
        setting = namespace.metadata.annotation(SETTING_ANNOTATION) if namespace else None
    return Governed(True, cls.metadata.name, setting or "")


class Listener(Struct, frozen=True, gc=False):
    """A port of every virtual service of a setting."""

    port: int
    tls: bool
    http2: bool


class Infra(Struct, frozen=True, gc=False):
    """What an AviInfraSetting, or the defaults, comes to."""

    setting: str
    group: str
    network: str  # that VIPs are taken from
    shard_size: ShardSize
    listeners: tuple[Listener, ...]
    rhi: bool = False  # its VIPs are announced by BGP
    bgp_peer_labels: tuple[str, ...] = ()  # only to peers with one of them; (): to all
    scale_out: int = 0  # Service Engines of each virtual service; 0: as its group has it
    other_network: str = ""  # of the other address family: of Services with VIPs of both
    limits: ClientLimits = ClientLimits()

    @property
    def networks(self) -> tuple[str, ...]:
        return (self.network, self.other_network) if self.other_network else (self.network,)


_LISTENERS = (Listener(80, False, False), Listener(443, True, True))


def infra_of(
    setting: str,
    spec: AviInfraSettingSpec | None,
    defaults: Defaults,
    groups: Mapping[str, ServiceEngineGroupSpec],
    networks: Mapping[str, NetworkSpec],
    *,
    speaks_bgp: bool = False,
    scale_out: str | None = None,
) -> tuple[Infra | None, tuple[Refusal, ...]]:
    """``spec`` (None: the defaults alone) as an `Infra`; None when it can't be accepted.

    ``speaks_bgp``: the Service Engines here have a router.  A field that nothing acts on is
    refused, never passed over.  ``scale_out``: what its annotation of that name has.
    """
    no: list[Refusal] = []
    owner = f"AviInfraSetting/{setting}" if setting else "Config"

    def refuse(field: str, reason: str, remedy: str) -> None:
        no.append(Refusal(object=owner, field=field, reason=reason, remedy=remedy))

    def unsupported(field: str, what: str) -> None:
        refuse(field, "Unsupported", f"Local Service Engines can't {what}. Take the field out.")

    spec = _with_default_rhi(spec or AviInfraSettingSpec(), defaults)
    group = spec.se_group.name if spec.se_group else defaults.se_group
    if group not in groups:
        refuse(
            "spec.seGroup.name" if spec.se_group else "defaults.seGroup",
            "ServiceEngineGroupNotFound",
            f'serviceenginegroup "{group}" not found: '
            + _to_make("ServiceEngineGroup", group, "serviceEngineGroups", "."),
        )
    elif groups[group].ha_mode not in HA_MODES:
        refuse(
            "spec.seGroup.name" if spec.se_group else "defaults.seGroup",
            "InvalidHaMode",
            f"ServiceEngineGroup {group} has haMode {quoted(groups[group].ha_mode)}."
            f" Write {', '.join(HA_MODES)}.",
        )
    elif groups[group].ha_mode != "ActiveActive" and not speaks_bgp:
        refuse(
            "spec.seGroup.name" if spec.se_group else "defaults.seGroup",
            "Unsupported",
            f"ServiceEngineGroup {group} has haMode {quoted(groups[group].ha_mode)}; local Service"
            " Engines know ActiveActive.",
        )
    network, field = defaults.network, "defaults.network"
    others = {defaults.other_network: "defaults.otherNetwork"} if defaults.other_network else {}
    listeners = {listener.port: listener for listener in _LISTENERS}
    if (net := spec.network) is not None:
        named = [
            (n.network_name, f"spec.network.vipNetworks[{i}].networkName")
            for i, n in enumerate(net.vip_networks)
            if n.network_name or not n.network_uuid
        ]
        named += [(n, f"spec.network.names[{i}]") for i, n in enumerate(net.names)]
        named += [(net.name, "spec.network.name")] if net.name else []
        if named:
            network, field = named[0]
            others = {n: at for n, at in named if n != network}
        for i, n in enumerate(net.vip_networks):
            at = f"spec.network.vipNetworks[{i}]"
            if n.network_uuid:
                unsupported(f"{at}.networkUUID", "look up networks by UUID; use networkName")
            if n.cidr or n.v6cidr:
                part = "cidr" if n.cidr else "v6cidr"
                unsupported(f"{at}.{part}", "narrow a Network; its vipRanges say it all")
        if net.node_networks:
            unsupported("spec.network.nodeNetworks", "be placed on node networks")
        if net.enable_rhi and not speaks_bgp:
            unsupported("spec.network.enableRhi", "advertise routes by BGP")
        if net.enable_public_ip:
            unsupported("spec.network.enablePublicIP", "get public addresses of a cloud")
        if net.bgp_peer_labels:
            if not net.enable_rhi:
                refuse(
                    "spec.network.bgpPeerLabels",
                    "InvalidField",
                    "BGPPeerLabels cannot be set if EnableRhi is false.",
                )
            elif not speaks_bgp:
                unsupported("spec.network.bgpPeerLabels", "choose BGP peers")
        if net.listeners and not any(listener.enable_ssl for listener in net.listeners):
            refuse(
                "spec.network.listeners",
                "InvalidField",
                "One of the port in aviInfraSetting must have SSL enabled",
            )
        for listener in net.listeners:
            tls = bool(listener.enable_ssl)
            http2 = tls if listener.enable_http2 is None else listener.enable_http2
            listeners[listener.port] = Listener(listener.port, tls, http2)
    engines = 0
    if scale_out is not None:
        at = f"metadata.annotations[{SCALE_OUT_ANNOTATION}]"
        most = min(groups[group].max_se_per_vs, groups[group].max_se) if group in groups else 0
        if not speaks_bgp:
            unsupported(at, "be chosen for each virtual service")
        elif not re.fullmatch(r"[1-9][0-9]{0,3}", scale_out):
            refuse(at, "InvalidScaleOut", f"{scale_out!r} is no number of Service Engines.")
        elif group in groups and int(scale_out) > most:
            refuse(
                at,
                "TooManyServiceEngines",
                f"ServiceEngineGroup {group} allows {most} (maxSePerVs, maxSe): raise these, or ask"
                " for less.",
            )
        else:
            engines = int(scale_out)
    if spec.nsx_settings is not None:
        unsupported("spec.nsxSettings.t1lr", "attach to an NSX-T tier-1 router")
    other = ""
    for name, at in others.items():
        if name not in networks:
            refuse(at, "NetworkNotFound", _missing_network(name))
        elif len(others) > 1 or (network in networks and _alike(networks, network, name)):
            refuse(at, "Unsupported", "Name one VIP network, or one of IPv4 and one of IPv6.")
            break
        else:
            other = name
    if network not in networks:
        refuse(field, "NetworkNotFound", _missing_network(network))
    elif spec.network is not None and spec.network.enable_rhi and speaks_bgp:
        for name in filter(None, (network, other)):
            labels = spec.network.bgp_peer_labels
            for at, reason, remedy in _rhi_problems(name, networks[name], labels):
                refuse(at, reason, remedy)
    size = defaults.shard_size
    if spec.l7_settings is not None:
        try:
            size = ShardSize(spec.l7_settings.shard_size)
        except ValueError:
            refuse(
                "spec.l7Settings.shardSize",
                "InvalidShardSize",
                f"{quoted(spec.l7_settings.shard_size)} is unknown."
                " Write SMALL, MEDIUM, LARGE or DEDICATED.",
            )
    if no:
        return None, tuple(no)
    ports = tuple(sorted(listeners.values(), key=lambda listener: listener.port))
    rhi = spec.network is not None and bool(spec.network.enable_rhi)
    labels = tuple(spec.network.bgp_peer_labels) if spec.network is not None else ()
    limits = defaults.client_limits.with_part(spec.client_limits)
    return Infra(setting, group, network, size, ports, rhi, labels, engines, other, limits), ()


def _alike(networks: Mapping[str, NetworkSpec], one: str, other: str) -> bool:
    return networks[one].family == networks[other].family


def _missing_network(name: str) -> str:
    how = _to_make("Network", name, "networks", " with good ranges.")
    return f'network "{name}" not found: {how}'


def _to_make(kind: str, name: str, key: str, how: str) -> str:
    """How to bring something of that name about: Avi's names may be none of Kubernetes'."""
    if _OBJECT_NAME.match(name):
        return f"create {kind} {name}{how}"
    return (
        f"add it to {key} of the configuration (--config){how[:-1]}:"
        f" no {kind} of Kubernetes can have that name."
    )


def _with_default_rhi(spec: AviInfraSettingSpec, defaults: Defaults) -> AviInfraSettingSpec:
    """A setting that doesn't speak of RHI has that of the defaults."""
    net = spec.network or InfraNetwork()
    if not defaults.enable_rhi or net.enable_rhi is not None:
        return spec
    labels = net.bgp_peer_labels or defaults.bgp_peer_labels
    net = msgspec.structs.replace(net, enable_rhi=True, bgp_peer_labels=labels)
    return msgspec.structs.replace(spec, network=net)


def _rhi_problems(
    network: str, spec: NetworkSpec, labels: Iterable[str]
) -> Iterator[tuple[str, str, str]]:
    """(field, reason, remedy) of what keeps VIPs of a Network from being announced."""
    if spec.bgp is None:
        yield (
            "spec.network.enableRhi",
            "NetworkWithoutBgp",
            f"Network {network} has no bgp: give it localAs and peers, or take enableRhi out.",
        )
        return
    there = sorted({peer.label for peer in spec.bgp.peers if peer.label})
    for i, label in enumerate(labels):
        if label not in there:
            yield (
                f"spec.network.bgpPeerLabels[{i}]",
                "BgpPeerLabelNotFound",
                (
                    f"No BGP peer of Network {network} has label {label}."
                    f" Its labels: {', '.join(there) or 'none'}."
                ),
            )

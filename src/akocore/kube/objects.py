"""Kubernetes objects as msgspec Structs of just the fields that akocore uses.

Unknown fields are kept quiet; a wrong type is a ``msgspec.ValidationError`` whose message
ends with the path of the field (``- at `$.spec.rules[0].host` ``).
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from sys import intern
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from akocore.client_limits import ClientLimitsPart
from akocore.kube.gateway_objects import GATEWAY_KINDS, ConfigMap, CustomResourceDefinition
from akocore.kube.meta import Condition, LabelledMeta, LabelSelector, Object, ObjectMeta, Part, Port
from akocore.model import Refusal
from akocore.revisions import Received

__all__ = [
    "KINDS",
    "OWN_KINDS",
    "AviInfraSetting",
    "Batch",
    "Change",
    "Condition",
    "EndpointSlice",
    "Gateway",
    "GatewayClass",
    "Ingress",
    "IngressClass",
    "LabelledMeta",
    "Namespace",
    "Network",
    "Object",
    "ObjectMeta",
    "Replica",
    "Secret",
    "Service",
    "ServiceEngine",
    "ServiceEngineGroup",
    "VirtualService",
    "VsVip",
    "decode",
    "key_of",
    "share",
]

_Alike = TypeVar("_Alike", bound=Hashable)
Protocol = Literal["TCP", "UDP", "SCTP"]

_OWN_LABELS: Final = "ako.vmware.com/"
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"

# ── networking.k8s.io/v1 ────────────────────────────────────────────────────────────────────


class IngressClassParameters(Part, frozen=True):
    kind: str
    name: str
    api_group: str | None = None
    scope: str | None = None
    namespace: str | None = None


class IngressClassSpec(Part, frozen=True):
    controller: str = ""
    parameters: IngressClassParameters | None = None


class IngressClass(Object, frozen=True, gc=False, kw_only=True):
    GROUP = "networking.k8s.io"
    KIND = "IngressClass"
    NAMESPACED = False
    spec: IngressClassSpec = IngressClassSpec()


class ServiceBackendPort(Part, frozen=True):
    name: str = ""
    number: int = 0


class IngressServiceBackend(Part, frozen=True):
    name: str
    port: ServiceBackendPort = ServiceBackendPort()


class TypedLocalObjectReference(Part, frozen=True):
    kind: str
    name: str
    api_group: str | None = None


class IngressBackend(Part, frozen=True):
    service: IngressServiceBackend | None = None
    resource: TypedLocalObjectReference | None = None


class HTTPIngressPath(Part, frozen=True):
    backend: IngressBackend
    path: str = ""
    path_type: str = "ImplementationSpecific"


class HTTPIngressRuleValue(Part, frozen=True):
    paths: tuple[HTTPIngressPath, ...] = ()


class IngressRule(Part, frozen=True):
    host: str = ""
    http: HTTPIngressRuleValue | None = None


class IngressTLS(Part, frozen=True):
    hosts: tuple[str, ...] = ()
    secret_name: str = ""


class IngressSpec(Part, frozen=True):
    ingress_class_name: str | None = None
    default_backend: IngressBackend | None = None
    tls: tuple[IngressTLS, ...] = ()
    rules: tuple[IngressRule, ...] = ()


class IngressPoint(Part, frozen=True):
    """``ipMode``: of a Service's; Proxy: nodes themselves send nothing past Service Engines."""

    ip: str = ""
    hostname: str = ""
    ip_mode: str = ""


class IngressLoadBalancer(Part, frozen=True):
    ingress: tuple[IngressPoint, ...] = ()


class IngressStatus(Part, frozen=True):
    load_balancer: IngressLoadBalancer = IngressLoadBalancer()


class Ingress(Object, frozen=True, gc=False, kw_only=True):
    GROUP = "networking.k8s.io"
    KIND = "Ingress"
    spec: IngressSpec = IngressSpec()
    status: IngressStatus = IngressStatus()


# ── core/v1 and discovery.k8s.io/v1 ─────────────────────────────────────────────────────────


class ServicePort(Part, frozen=True):
    port: Port
    name: str = ""
    protocol: Protocol = "TCP"
    target_port: int | str | None = None
    app_protocol: str | None = None


class ServiceSpec(Part, frozen=True):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    ports: tuple[ServicePort, ...] = ()
    external_name: str = ""
    load_balancer_class: str | None = None
    load_balancer_ip: str = msgspec.field(default="", name="loadBalancerIP")
    load_balancer_source_ranges: tuple[str, ...] = ()
    session_affinity: Literal["None", "ClientIP"] = "None"
    external_traffic_policy: Literal["", "Cluster", "Local"] = ""
    ip_families: tuple[Literal["IPv4", "IPv6"], ...] = ()
    ip_family_policy: Literal["", "SingleStack", "PreferDualStack", "RequireDualStack"] = ""


class ServiceStatus(Part, frozen=True):
    load_balancer: IngressLoadBalancer = IngressLoadBalancer()
    conditions: tuple[Condition, ...] = ()


class Service(Object, frozen=True, gc=False, kw_only=True):
    KIND = "Service"
    metadata: LabelledMeta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(Part, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(Part, frozen=True):
    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()


class EndpointPort(Part, frozen=True):
    port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    name: str | None = None
    protocol: Protocol | None = None


class SliceLabels(Struct, frozen=True, gc=False):
    """The one label of an EndpointSlice that says something: the Service that it is of."""

    service: str = msgspec.field(default="", name="kubernetes.io/service-name")


class SliceMeta(ObjectMeta, frozen=True):
    labels: SliceLabels | None = None


class EndpointSlice(Object, frozen=True, gc=False, kw_only=True):
    GROUP = "discovery.k8s.io"
    KIND = "EndpointSlice"
    metadata: SliceMeta
    address_type: Literal["IPv4", "IPv6", "FQDN"] = "IPv4"
    endpoints: tuple[Endpoint, ...] | None = ()
    ports: tuple[EndpointPort, ...] | None = ()

    @property
    def service(self) -> str | None:
        """Key of the Service that the slice belongs to (its well-known label)."""
        labels = self.metadata.labels
        name = labels.service if labels else ""
        return f"{self.metadata.namespace}/{name}" if name else None


class Secret(Object, frozen=True, gc=False, kw_only=True):
    """``data`` is base64 as on the wire; ``stringData`` (manifests only) wins over it."""

    KIND = "Secret"
    type: str = "Opaque"
    data: dict[str, str] | None = None
    string_data: dict[str, str] | None = None


class Namespace(Object, frozen=True, gc=False, kw_only=True):
    KIND = "Namespace"
    NAMESPACED = False
    metadata: LabelledMeta


# ── ako.vmware.com ──────────────────────────────────────────────────────────────────────────


class SeGroupRef(Part, frozen=True):
    name: str


class VipNetwork(Part, frozen=True):
    network_name: str = ""
    network_uuid: str = msgspec.field(default="", name="networkUUID")
    cidr: str = ""
    v6cidr: str = ""


class NodeNetwork(Part, frozen=True):
    network_name: str = ""
    network_uuid: str = msgspec.field(default="", name="networkUUID")
    cidrs: tuple[str, ...] = ()


class InfraListener(Part, frozen=True):
    port: Port
    enable_ssl: bool | None = msgspec.field(default=None, name="enableSSL")
    enable_http2: bool | None = msgspec.field(default=None, name="enableHTTP2")


class InfraNetwork(Part, frozen=True):
    """``names`` is the spelling before AKO 1.5.1; ``vipNetworks`` is today's."""

    vip_networks: tuple[VipNetwork, ...] = ()
    node_networks: tuple[NodeNetwork, ...] = ()
    names: tuple[str, ...] = ()
    name: str = ""
    enable_rhi: bool | None = None
    enable_public_ip: bool | None = msgspec.field(default=None, name="enablePublicIP")
    bgp_peer_labels: tuple[str, ...] = ()
    listeners: tuple[InfraListener, ...] = ()


class L7Settings(Part, frozen=True):
    shard_size: str


class NsxSettings(Part, frozen=True):
    t1lr: str


class AviInfraSettingSpec(Part, frozen=True):
    se_group: SeGroupRef | None = None
    network: InfraNetwork | None = None
    l7_settings: L7Settings | None = None
    client_limits: ClientLimitsPart | None = None
    nsx_settings: NsxSettings | None = None


class AcceptedStatus(Part, frozen=True):
    """``status`` and ``error`` as AKO writes them, and conditions as others do."""

    status: str = ""
    error: str = ""
    conditions: tuple[Condition, ...] = ()


class AviInfraSetting(Object, frozen=True, gc=False, kw_only=True):
    GROUP = "ako.vmware.com"
    VERSIONS = ("v1alpha1", "v1beta1")
    KIND = "AviInfraSetting"
    NAMESPACED = False
    spec: AviInfraSettingSpec = AviInfraSettingSpec()
    status: AcceptedStatus = AcceptedStatus()


# ── networking.x-k8s.io/v1alpha1 ────────────────────────────────────────────────────────────


class ParametersReference(Part, frozen=True):
    group: str
    kind: str
    name: str
    scope: str = ""
    namespace: str = ""


class GatewayClassSpec(Part, frozen=True):
    controller: str
    parameters_ref: ParametersReference | None = None


class GatewayClassStatus(Part, frozen=True):
    conditions: tuple[Condition, ...] = ()


class GatewayClass(Object, frozen=True, gc=False, kw_only=True):
    GROUP = "networking.x-k8s.io"
    VERSIONS = ("v1alpha1",)
    KIND = "GatewayClass"
    NAMESPACED = False
    spec: GatewayClassSpec
    status: GatewayClassStatus = GatewayClassStatus()


class RouteNamespaces(Part, frozen=True):
    """``from``: All, Same or Selector."""

    from_: str = msgspec.field(default="All", name="from")


class RouteBindingSelector(Part, frozen=True):
    """Which routes a listener takes: here, Services by their labels."""

    group: str = "v1"
    kind: str = "Service"
    selector: LabelSelector = LabelSelector()
    namespaces: RouteNamespaces = RouteNamespaces()


class GatewayTLS(Part, frozen=True):
    mode: str = ""


class GatewayListener(Part, frozen=True):
    port: Port
    protocol: str
    routes: RouteBindingSelector
    hostname: str = ""
    tls: GatewayTLS | None = None


class GatewayAddress(Part, frozen=True):
    value: str
    type: str = "IPAddress"


class GatewaySpec(Part, frozen=True):
    gateway_class_name: str
    listeners: tuple[GatewayListener, ...] = ()
    addresses: tuple[GatewayAddress, ...] = ()


class GatewayListenerStatus(Part, frozen=True):
    port: int
    protocol: str
    conditions: tuple[Condition, ...] = ()


class GatewayStatus(Part, frozen=True):
    """Nothing is there before a controller has written it."""

    addresses: tuple[GatewayAddress, ...] = ()
    conditions: tuple[Condition, ...] = ()
    listeners: tuple[GatewayListenerStatus, ...] = ()


class Gateway(Object, frozen=True, gc=False, kw_only=True):
    GROUP = "networking.x-k8s.io"
    VERSIONS = ("v1alpha1",)
    KIND = "Gateway"
    spec: GatewaySpec
    status: GatewayStatus = GatewayStatus()


# ── akocore.io/v1alpha1 ─────────────────────────────────────────────────────────────────────


class Toleration(Part, frozen=True):
    """``core/v1 Toleration``."""

    key: str = ""
    operator: str = ""
    value: str = ""
    effect: str = ""


class ServiceEnginePods(Part, frozen=True):
    """How Service Engines run that are pods of the cluster.

    ``hostNetwork``: with the network of their node, where routers see them; one to a node then.
    ``drainSeconds``: how long connections may go on when one leaves.
    """

    host_network: bool = True
    node_selector: dict[str, str] = msgspec.field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    requests: dict[str, str] = msgspec.field(default_factory=dict)
    limits: dict[str, str] = msgspec.field(default_factory=dict)
    priority_class_name: str = ""
    drain_seconds: Annotated[int, Meta(ge=0, le=3600)] = 20


class ServiceEngineGroupSpec(Part, frozen=True):
    """``minSePerVs``: how many Service Engines serve each virtual service at once.

    ``haMode``: ActiveActive; NPlusM: ``bufferSe`` Service Engines stay free for those that fail;
    ActiveStandby: one serves, and a second one stands by.  ``flowHandover``: those that have
    agents hand packets of each other's connections on, so that none breaks when one comes or
    leaves; through UDP port 14789 between them.
    """

    ha_mode: str = "ActiveActive"
    buffer_se: Annotated[int, Meta(ge=0, le=64)] = 1
    min_se_per_vs: Annotated[int, Meta(ge=1, le=64)] = 2
    max_se_per_vs: Annotated[int, Meta(ge=1, le=64)] = 4
    max_se: Annotated[int, Meta(ge=1, le=64)] = 10
    auto_rebalance: bool = False
    flow_handover: bool = True
    pods: ServiceEnginePods = ServiceEnginePods()


class ServiceEngineGroup(Object, frozen=True, gc=False, kw_only=True):
    GROUP = "akocore.io"
    VERSIONS = ("v1alpha1",)
    KIND = "ServiceEngineGroup"
    NAMESPACED = False
    spec: ServiceEngineGroupSpec = ServiceEngineGroupSpec()


class AddressRange(Part, frozen=True):
    """Both ends belong to the range."""

    begin: str
    end: str


class BfdTimers(Part, frozen=True):
    """How fast BFD finds a failure: ``multiplier`` intervals without a packet."""

    transmit_ms: int = 100
    receive_ms: int = 100
    multiplier: int = 3


class SecretRef(Part, frozen=True):
    name: str
    namespace: str


class BgpPeer(Part, frozen=True):
    """A router that Service Engines tell their VIPs.  Timers are in seconds.

    ``ebgpMultihop``: how many hops away it may be; 0: on the same network.
    ``passwordSecret``: a Secret whose key ``password`` both sides sign with (RFC 2385).
    ``ttlSecurity``: both sides send with a TTL of 255 and take nothing that was routed (RFC 5082).
    """

    address: str
    remote_as: int
    ebgp_multihop: int = 0
    bfd: bool = False
    bfd_timers: BfdTimers = BfdTimers()
    advertise_vip: bool = True
    advertise_snat: bool = msgspec.field(default=False, name="advertiseSnat")
    label: str = ""
    connect_timer: int = 10
    advertisement_interval: int = 0
    keepalive_timer: int = 60
    hold_timer: int = 180
    password_secret: SecretRef | None = None
    ttl_security: bool = False


class BgpProfile(Part, frozen=True):
    """``prefix``: what VIPs may be announced from; "": the Network's subnet.

    ``communities``: what every announcement carries, as 65000:1 or 65000:1:1 or no-export.
    """

    local_as: int
    prefix: str = ""
    communities: tuple[str, ...] = ()
    peers: tuple[BgpPeer, ...] = ()


class NetworkSpec(Part, frozen=True):
    """``vipRanges``: what IPAM hands out; all of it must lie in ``subnet``.

    ``vipsPerNamespace``: how many of these one namespace may have; 0: any number.
    """

    subnet: str
    vip_ranges: tuple[AddressRange, ...] = ()
    se_ranges: tuple[AddressRange, ...] = ()
    vips_per_namespace: Annotated[int, Meta(ge=0)] = 0
    bgp: BgpProfile | None = None

    @property
    def family(self) -> Literal["IPv4", "IPv6"]:
        return "IPv6" if ":" in self.subnet else "IPv4"


class Network(Object, frozen=True, gc=False, kw_only=True):
    GROUP = "akocore.io"
    VERSIONS = ("v1alpha1",)
    KIND = "Network"
    NAMESPACED = False
    spec: NetworkSpec
    status: AcceptedStatus = AcceptedStatus()


class VsVipSpec(Part, frozen=True):
    address: str
    network: str
    virtual_service: str


class VsVip(Object, frozen=True, gc=False, kw_only=True):
    """An address and who has it: what IPAM remembers in a cluster, one object an address."""

    GROUP = "akocore.io"
    VERSIONS = ("v1alpha1",)
    KIND = "VsVip"
    NAMESPACED = False
    spec: VsVipSpec


class VirtualServiceStatus(Part, frozen=True):
    """As ``akocore get vs`` shows it; hosts are counted, a dedicated one is named.

    ``listeners``: of L4, as ``TCP/80``.
    """

    name: str = ""
    vip: str = ""
    shard: int | None = None
    host: str = ""
    hosts: int = 0
    listeners: tuple[str, ...] = ()
    avi_infra_setting: str = ""
    network: str = ""
    se_group: str = ""
    pools_up: int = 0
    pools: int = 0
    service_engines: tuple[str, ...] = ()
    announced_by: tuple[str, ...] = ()
    state: str = ""
    why: str = ""


class VirtualService(Object, frozen=True, gc=False, kw_only=True):
    """A read-only mirror of one virtual service."""

    GROUP = "akocore.io"
    VERSIONS = ("v1alpha1",)
    KIND = "VirtualService"
    NAMESPACED = False
    metadata: LabelledMeta
    status: VirtualServiceStatus = VirtualServiceStatus()


class RouterSession(Part, frozen=True):
    """A BGP or BFD session of a Service Engine.  ``why`` it is down; "": it is up."""

    peer: str
    state: str
    remote_as: int = 0
    why: str = ""


class ServiceEngineStatus(Part, frozen=True):
    """``controller``: the replica that it is connected to.

    ``vips``: addresses that it announces; ``bgpUp``: as 1/1, of its sessions those that are up.
    """

    se_group: str = ""
    state: str = ""
    up_to_date: bool = False
    virtual_services: int = 0
    restarts: int = 0
    rejected: int = 0
    controller: str = ""
    address: str = ""
    vips: tuple[str, ...] = ()
    bgp_up: str = ""
    bgp: tuple[RouterSession, ...] = ()
    bfd: tuple[RouterSession, ...] = ()
    why: str = ""


class ServiceEngine(Object, frozen=True, gc=False, kw_only=True):
    """A read-only mirror of one Service Engine."""

    GROUP = "akocore.io"
    VERSIONS = ("v1alpha1",)
    KIND = "ServiceEngine"
    NAMESPACED = False
    status: ServiceEngineStatus = ServiceEngineStatus()


class EngineRejection(Part, frozen=True):
    """A resource that an engine refuses, with its own words."""

    type: str
    name: str
    message: str = ""


class ReplicaEngine(Part, frozen=True):
    """A Service Engine as the replica has it that it is connected to.

    ``received``: how far in each kind's stream of changes it has what was made of them.
    """

    name: str
    group: str
    since: float
    answers: bool = False
    nacks: int = 0
    received: dict[str, int] = msgspec.field(default_factory=dict)
    rejected: tuple[EngineRejection, ...] = ()


class ReplicaRouter(Part, frozen=True):
    """A Service Engine's router as the replica has it that its agent is connected to.

    ``snat``: its own address, that it asks backends from.
    ``usable``: its Envoy serves; ``weight``: how much it is to get, 1 as others; ``announced``:
    addresses that it is told to announce, ``standby``: those of them that others serve while they
    can; ``advertised``: prefixes that a peer has.  ``handsOver``: others may hand flows to it;
    ``leaving``: it serves just the connections that it has.
    """

    name: str
    group: str
    address: str = ""
    snat: str = ""
    usable: bool = False
    hands_over: bool = False
    leaving: bool = False
    weight: float = 1.0
    announced: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()
    advertised: tuple[str, ...] = ()
    bgp: tuple[RouterSession, ...] = ()
    bfd: tuple[RouterSession, ...] = ()
    why: str = ""


class ReplicaStatus(Part, frozen=True):
    """``leaseSeconds``: not renewed for so long, a replica is no more.

    ``seen``: of each kind, the last object of which something came that may be in its engines.
    ``config``: a digest; what replicas with different ones make of the same objects differs.
    """

    identity: str = ""
    renewed: str = ""
    lease_seconds: float = 0
    leads: bool = False
    config: str = ""
    seen: dict[str, int] = msgspec.field(default_factory=dict)
    engines: tuple[ReplicaEngine, ...] = ()
    routers: tuple[ReplicaRouter, ...] = ()


class Replica(Object, frozen=True, gc=False, kw_only=True):
    """What one replica tells the others: it alone writes it."""

    GROUP = "akocore.io"
    VERSIONS = ("v1alpha1",)
    KIND = "Replica"
    NAMESPACED = False
    status: ReplicaStatus = ReplicaStatus()


OWN_KINDS: Final[tuple[type[Object], ...]] = (VsVip, VirtualService, ServiceEngine, Replica)
"""What akocore itself writes into a cluster."""

_READ: Final[tuple[type[Object], ...]] = (
    IngressClass,
    Ingress,
    Service,
    EndpointSlice,
    Secret,
    Namespace,
    AviInfraSetting,
    GatewayClass,
    Gateway,
    ServiceEngineGroup,
    Network,
    ConfigMap,
    CustomResourceDefinition,
    *GATEWAY_KINDS,
)
KINDS: Final[dict[tuple[str, str], type[Object]]] = {
    (f"{t.GROUP}/{v}" if t.GROUP else v, t.KIND): t for t in _READ for v in t.VERSIONS
}
"""(apiVersion, kind) → Struct, for every kind that a user writes and akocore acts on."""


class Change(Struct, frozen=True, gc=False):
    """One object as it is now, or ``obj=None`` when it is gone.  ``key`` as `ObjectMeta.key`."""

    kind: str
    key: str
    obj: Object | None


class Batch(Struct, frozen=True):
    """What a source brought at once.

    ``refusals``: by file or object, all there are of it now; () when it is fine again.
    ``at``: `time.monotonic` when the first of it was seen.  ``received``: how far the source has
    come with it, for one that others have as well.
    """

    changes: tuple[Change, ...]
    refusals: dict[str, tuple[Refusal, ...]]
    at: float
    received: Received | None = None


@lru_cache(4096)
def _once(part: _Alike) -> _Alike:
    """The first of all that are equal."""
    return part


def share(obj: Object) -> None:
    """Keep once what many objects have alike, and not at all what nobody here reads.

    Cost: a microsecond or two; it is a fifth of what 10,000 applications take.
    """
    change, meta = msgspec.structs.force_setattr, obj.metadata
    change(meta, "namespace", intern(meta.namespace))
    change(meta, "creation_timestamp", intern(meta.creation_timestamp))
    if meta.annotations is not None:
        meta.annotations.pop(_LAST_APPLIED, None)
    if isinstance(obj, Ingress):
        if obj.spec.ingress_class_name is not None:
            change(obj.spec, "ingress_class_name", intern(obj.spec.ingress_class_name))
        for rule in obj.spec.rules:
            for path in rule.http.paths if rule.http is not None else ():
                change(path, "path_type", intern(path.path_type))
                change(path, "path", intern(path.path))
    elif isinstance(obj, Service):
        labels = obj.metadata.labels
        if labels is not None and not any(name.startswith(_OWN_LABELS) for name in labels):
            change(meta, "labels", None)
        change(obj, "spec", _once(obj.spec))
    elif isinstance(obj, EndpointSlice):
        change(meta, "uid", "")  # no event and no status is ever of one
        change(obj, "ports", _once(obj.ports))


def key_of(kind: str, key: str) -> str:
    """How refusals and the command line name an object: ``Ingress/shop/web``."""
    return f"{kind}/{key}"


def decode(document: object, kind: type[Object]) -> Object:
    """A plain mapping (from YAML or JSON) as ``kind``.

    Raises `msgspec.ValidationError` naming the path of the first field of a wrong type.
    """
    return msgspec.convert(document, kind, strict=True, str_keys=True)

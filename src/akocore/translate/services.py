"""Service → what it asks of L4: who has its VIP, and which ports lead to it.

`view` depends on one Service alone and is kept with it.  `service_listener` makes the model of
one protocol and port from the Services that want it, oldest first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from msgspec import Struct

from akocore.kube.objects import Service
from akocore.model import L4Listener, L4Pool, Refusal
from akocore.shown import quoted
from akocore.translate.classes import CONTROLLER, SETTING_ANNOTATION
from akocore.translate.names import Names

__all__ = [
    "GATEWAY_NAME",
    "GATEWAY_NAMESPACE",
    "SHARED_ANNOTATION",
    "Front",
    "ServiceView",
    "is_address",
    "is_attached",
    "pool_of",
    "proxy_problem",
    "proxy_protocol",
    "refused",
    "service_listener",
    "view",
]

GATEWAY_NAMESPACE: Final = "ako.vmware.com/gateway-namespace"
GATEWAY_NAME: Final = "ako.vmware.com/gateway-name"
ADDRESS_ANNOTATION: Final = "ako.vmware.com/load-balancer-ip"
PROXY_ANNOTATION: Final = "akocore.io/proxy-protocol"
SHARED_ANNOTATION: Final = "ako.vmware.com/enable-shared-vip"
_NOT_YET: Final = {
    "ako.vmware.com/l4rule": "apply an L4Rule",
    "ako.vmware.com/application-profile": "choose an application profile",
    "ako.vmware.com/disable-traffic": "disable a virtual service",
}
_SHARED_KEY: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?")
_PROTOCOLS: Final = ("TCP", "UDP")

Kind = Literal["Gateway", "Service", "SharedVip"]


class Front(Struct, frozen=True, gc=False, order=True):
    """Who has a virtual service of L4: a Gateway, one Service, or those that share a VIP.

    ``name``: the Gateway's, the Service's, or the key that is shared.  ``family``: of the second
    virtual service, where there is one in IPv4 and one in IPv6.
    """

    kind: Kind
    namespace: str
    name: str
    family: Literal["", "IPv4", "IPv6"] = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind}/{self.key}"


class ServiceView(Struct, frozen=True, gc=False):
    """What one Service asks of L4.

    ``front`` None: it asks for something that can't be; ``second``: with an address of the other
    family, which it can do without unless ``dual`` is RequireDualStack.  ``family``: of the first
    address, "" any.  ``ports``: field by (protocol, port); ``shown``: its status names the VIPs;
    ``age`` orders it among others.
    """

    key: str
    front: Front | None
    second: Front | None
    family: str
    dual: str
    ports: dict[tuple[str, int], str]
    shown: bool
    address: str
    address_field: str
    setting: str | None
    sticky: bool
    ranges: tuple[str, ...]
    labels: frozenset[tuple[str, str]]
    refusals: tuple[Refusal, ...]
    age: tuple[str, str]

    @property
    def fronts(self) -> tuple[Front, ...]:
        return tuple(one for one in (self.front, self.second) if one is not None)


def proxy_protocol(service: Service) -> str:
    """How its endpoints are told who a client is: "v1", "v2"; "": they are not told."""
    said = service.metadata.annotation(PROXY_ANNOTATION)
    return said if said in ("v1", "v2") else ""


def proxy_problem(service: Service) -> str:
    """What is wrong with its annotation; "": nothing."""
    said = service.metadata.annotation(PROXY_ANNOTATION)
    if not said or proxy_protocol(service):
        return ""
    return (
        f"{PROXY_ANNOTATION} of Service {service.metadata.key} is {quoted(said)}: write v1 or v2."
    )


def is_address(text: str) -> bool:
    try:
        return "%" not in text and bool(ip_address(text))
    except ValueError:
        return False


def is_attached(service: Service) -> bool:
    """Whether its labels choose a Gateway."""
    labels = service.metadata.labels or {}
    return GATEWAY_NAMESPACE in labels or GATEWAY_NAME in labels


def refused(service: Service, refusal: Refusal) -> ServiceView:
    """The view of a Service of which nothing can be served."""
    meta = service.metadata
    return ServiceView(
        key=meta.key,
        front=None,
        second=None,
        family="",
        dual="",
        ports={},
        shown=True,
        address="",
        address_field="",
        setting=None,
        sticky=False,
        ranges=(),
        labels=frozenset(),
        refusals=(refusal,),
        age=(meta.creation_timestamp or "~", meta.key),
    )


def _range(text: str) -> str:
    if "%" in text:
        raise ValueError("a zone is no part of a network")
    return str(ip_network(text, strict=False))


def view(service: Service, default_controller: bool) -> ServiceView | None:
    """What ``service`` asks for; None: nothing of us.  Cost: its ports."""
    meta, spec = service.metadata, service.spec
    labels = meta.labels or {}
    namespace, name = labels.get(GATEWAY_NAMESPACE), labels.get(GATEWAY_NAME)
    cls = spec.load_balancer_class
    balanced = spec.type == "LoadBalancer"
    ours = balanced and (cls == CONTROLLER or (cls is None and default_controller))
    if not ours and namespace is None and name is None:
        return None
    no: list[Refusal] = []

    def refuse(field: str, reason: str, remedy: str, warning: bool = False) -> None:
        object_ = f"Service/{meta.key}"
        no.append(
            Refusal(object=object_, field=field, reason=reason, remedy=remedy, warning=warning)
        )

    front: Front | None
    attached = namespace is not None or name is not None
    shared = meta.annotation(SHARED_ANNOTATION)
    if attached:
        front = Front("Gateway", namespace, name) if namespace and name else None
        if front is None:
            missing = GATEWAY_NAME if namespace else GATEWAY_NAMESPACE
            refuse(
                f"metadata.labels[{missing}]",
                "IncompleteGatewayLabels",
                f"Two labels choose a Gateway: add {missing}, or take out the other one.",
            )
    elif shared is not None:
        front = Front("SharedVip", meta.namespace, shared)
        if not _SHARED_KEY.fullmatch(shared) or shared.endswith("-L7-dedicated"):
            front = None
            refuse(
                f"metadata.annotations[{SHARED_ANNOTATION}]",
                "InvalidField",
                "Write a key of at most 63 letters, digits, '-', '_' and '.'.",
            )
    else:
        front = Front("Service", meta.namespace, meta.name)

    second: Front | None = None
    family: str = spec.ip_families[0] if spec.ip_families else ""
    if front is not None and not attached and spec.ip_family_policy.endswith("DualStack"):
        family = family or "IPv4"
        other: Literal["IPv4", "IPv6"] = "IPv6" if family == "IPv4" else "IPv4"
        second = Front(front.kind, front.namespace, front.name, other)

    address, address_field = spec.load_balancer_ip, "spec.loadBalancerIP"
    if not address and (text := meta.annotation(ADDRESS_ANNOTATION)):
        address, address_field = text, f"metadata.annotations[{ADDRESS_ANNOTATION}]"
    setting = meta.annotation(SETTING_ANNOTATION)
    if attached:
        decided = {
            address_field: address,
            f"metadata.annotations[{SHARED_ANNOTATION}]": shared,
            f"metadata.annotations[{SETTING_ANNOTATION}]": setting,
        }
        for field in [field for field, value in decided.items() if value]:
            refuse(
                field,
                "GatewayDecides",
                f"The Gateway {namespace}/{name} decides it for its Services. Take it out.",
                True,
            )
        address, setting = "", None
    elif address and not is_address(address):
        refuse(
            address_field, "InvalidAddress", f"{quoted(address)} is no address. Write 10.10.16.232."
        )
    if problem := proxy_problem(service):
        refuse(f"metadata.annotations[{PROXY_ANNOTATION}]", "InvalidField", problem)
    for annotation, what in _NOT_YET.items():
        if meta.annotation(annotation):
            refuse(
                f"metadata.annotations[{annotation}]",
                "Unsupported",
                f"Service Engines can't {what} yet: it is served without. Take it out.",
                True,
            )
    if spec.external_traffic_policy == "Local" and balanced:
        refuse(
            "spec.externalTrafficPolicy",
            "SourceAddressNotKept",
            "Service Engines send straight to the endpoints, on whatever node, and from an address"
            " of their own: there is no second hop, but the client's address is not kept."
            " Write Cluster.",
            True,
        )

    ports: dict[tuple[str, int], str] = {}
    if spec.type == "ExternalName":
        refuse(
            "spec.type",
            "ExternalNameService",
            "A Service of type ExternalName has no endpoints here. Use one with EndpointSlices.",
        )
    else:
        for i, port in enumerate(spec.ports):
            if port.protocol in _PROTOCOLS:
                ports[port.protocol, port.port] = f"spec.ports[{i}]"
            else:
                refuse(
                    f"spec.ports[{i}].protocol",
                    "UnsupportedProtocol",
                    f"{quoted(port.protocol)} is not served. Write TCP or UDP.",
                )
    ranges = []
    for i, text in enumerate(spec.load_balancer_source_ranges):
        try:
            ranges.append(_range(text.strip()))
        except ValueError:
            refuse(
                f"spec.loadBalancerSourceRanges[{i}]",
                "InvalidSourceRange",
                f"{quoted(text)} is no network: nobody is let in for it. Write 10.0.0.0/8.",
            )
    if spec.load_balancer_source_ranges and not ranges:
        ports = {}  # nobody may come, and () would be anybody
    return ServiceView(
        key=meta.key,
        front=front,
        second=second,
        family=family,
        dual=spec.ip_family_policy,
        ports=ports,
        shown=ours or (balanced and cls is None),
        address=address,
        address_field=address_field,
        setting=setting,
        sticky=spec.session_affinity == "ClientIP",
        ranges=tuple(sorted(set(ranges))),
        labels=frozenset(labels.items()),
        refusals=tuple(no),
        age=(meta.creation_timestamp or "~", meta.key),
    )


def pool_of(service: ServiceView, front: Front, protocol: str, port: int, names: Names) -> L4Pool:
    """The pool that a Service is behind one port of a front."""
    own = service.key.partition("/")[2]
    vip = "" if front.kind == "Service" else front.name
    end = "" if protocol == "TCP" else f"/{protocol}"
    return L4Pool(
        name=names.l4_pool(front.namespace, own, protocol, port, vip, front.family),
        backend=f"{service.key}/{port}{end}",
        sticky=service.sticky,
        ranges=service.ranges,
    )


def service_listener(
    front: Front,
    protocol: str,
    port: int,
    services: Iterable[ServiceView],
    leader: ServiceView,
    served: bool,
    names: Names,
) -> tuple[L4Listener | None, list[Refusal]]:
    """One port of a Service's own VIP, or of a shared one.

    ``services``: that want it, oldest first; ``leader``: the oldest of all that share the VIP;
    ``served``: it is not refused.  Of several that want a port the oldest has it.
    """
    no: list[Refusal] = []
    at = (protocol, port)
    has: ServiceView | None = None
    for one in services:

        def refuse(field: str, reason: str, remedy: str, key: str = one.key) -> None:
            no.append(Refusal(object=f"Service/{key}", field=field, reason=reason, remedy=remedy))

        if not served:
            if one is not leader:
                refuse(
                    f"metadata.annotations[{SHARED_ANNOTATION}]",
                    "SharedVipRefused",
                    f"Service {leader.key}, the oldest that shares VIP {front.name}, is refused:"
                    " correct that one.",
                )
        elif one.address != leader.address or one.setting != leader.setting:
            what = "address" if one.address != leader.address else "AviInfraSetting"
            refuse(
                one.address_field
                if one.address != leader.address
                else f"metadata.annotations[{SETTING_ANNOTATION}]",
                "SharedVipConflict",
                f"Service {leader.key}, which shares VIP {front.name} and came first, asks for"
                f" another {what}. Ask for the same.",
            )
        elif has is not None:
            refuse(
                f"{one.ports[at]}.port",
                "PortConflict",
                f"Service {has.key}, which came first, has {protocol}/{port} of VIP"
                f" {front.name}. Choose another port or another VIP.",
            )
        else:
            has = one
    if has is None:
        return None, no
    return L4Listener(protocol, port, pool_of(has, front, protocol, port, names)), no

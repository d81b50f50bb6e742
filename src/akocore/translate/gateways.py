"""GatewayClass and Gateway (networking.x-k8s.io/v1alpha1) → what they ask for.

As for a Service: `view` depends on one Gateway alone, `gateway_listener` makes the model of one
listener from the Services that its labels choose, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, cast

from msgspec import Struct

from akocore.kube.objects import Gateway, GatewayClass, GatewayListener
from akocore.model import L4Listener, Refusal
from akocore.shown import quoted
from akocore.translate.classes import CONTROLLER, SETTING_ANNOTATION
from akocore.translate.names import Names
from akocore.translate.services import (
    GATEWAY_NAME,
    GATEWAY_NAMESPACE,
    Front,
    ServiceView,
    is_address,
    pool_of,
)

if TYPE_CHECKING:
    from akocore.store import Store

__all__ = [
    "GatewayView",
    "GovernedGateway",
    "ListenerView",
    "class_refusals",
    "gateway_listener",
    "govern_gateway",
    "setting_named",
    "view",
]

_ROUTES: Final = ("v1", "core", "")


class ListenerView(Struct, frozen=True, gc=False):
    """One listener: ``labels`` that a Service needs to be behind it."""

    field: str
    labels: frozenset[tuple[str, str]]
    same_namespace: bool


class GatewayView(Struct, frozen=True, gc=False):
    """What one Gateway asks for: listeners by (protocol, port); ``address`` "" is any."""

    listeners: dict[tuple[str, int], ListenerView]
    address: str
    refusals: tuple[Refusal, ...]


class GovernedGateway(Struct, frozen=True, gc=False):
    """``ours``: a class of ours has it; ``setting`` None: what it asks for can't be.

    ``named``: the setting that was looked for, if it came to that.
    """

    ours: bool
    setting: str | None = None
    refusal: Refusal | None = None
    named: str | None = None


def view(gateway: Gateway) -> GatewayView:
    """What ``gateway`` asks for.  Cost: its listeners."""
    no: list[Refusal] = []
    object_ = f"Gateway/{gateway.metadata.key}"

    def refuse(field: str, reason: str, remedy: str, warning: bool = False) -> None:
        no.append(
            Refusal(object=object_, field=field, reason=reason, remedy=remedy, warning=warning)
        )

    listeners: dict[tuple[str, int], ListenerView] = {}
    if not gateway.spec.listeners:
        refuse("spec.listeners", "NoListeners", "Add a listener with protocol, port and routes.")
    for i, one in enumerate(gateway.spec.listeners):
        field = f"spec.listeners[{i}]"
        problem = _problem(gateway, one)
        at = (one.protocol, one.port)
        if problem is not None:
            refuse(f"{field}.{problem[0]}", problem[1], problem[2])
        elif at in listeners:
            refuse(
                f"{field}.port",
                "PortConflict",
                f"{listeners[at].field} has {one.protocol}/{one.port} already, and keeps it."
                " Choose another port.",
            )
        else:
            listeners[at] = ListenerView(
                field=field,
                labels=frozenset((one.routes.selector.match_labels or {}).items()),
                same_namespace=one.routes.namespaces.from_ == "Same",
            )
            if one.hostname:
                refuse(
                    f"{field}.hostname",
                    "Unsupported",
                    f"{one.protocol} has no host names: every client is served. Take it out.",
                    True,
                )
    addresses = gateway.spec.addresses
    for i, address in enumerate(addresses):
        field = f"spec.addresses[{i}]"
        if i:
            refuse(field, "UnsupportedAddress", "A Gateway has one address. Take this one out.")
        elif address.type != "IPAddress":
            refuse(f"{field}.type", "UnsupportedAddress", "Write type IPAddress and an address.")
        elif not is_address(address.value):
            remedy = f"{quoted(address.value)} is no address. Write 10.10.16.232."
            refuse(f"{field}.value", "InvalidAddress", remedy)
    return GatewayView(listeners, addresses[0].value if addresses else "", tuple(no))


def _problem(gateway: Gateway, one: GatewayListener) -> tuple[str, str, str] | None:
    """(field, reason, remedy) of what keeps a listener from being served."""
    meta, routes = gateway.metadata, one.routes
    if one.protocol not in ("TCP", "UDP"):
        said = quoted(one.protocol)
        remedy = f"A listener is L4 here: write TCP or UDP, not {said}, or an Ingress."
        return "protocol", "UnsupportedProtocol", remedy
    if one.tls is not None:
        return "tls", "Unsupported", "TLS ends in an Ingress, not here. Take it out."
    if routes.kind != "Service" or routes.group not in _ROUTES:
        what = f"{quoted(routes.kind)} of group {quoted(routes.group)}"
        remedy = f"{what} is no backend here. Write group: v1 and kind: Service."
        return "routes.kind", "UnsupportedRoute", remedy
    if routes.namespaces.from_ not in ("All", "Same"):
        return "routes.namespaces.from", "Unsupported", "Write All or Same."
    if routes.selector.match_expressions:
        remedy = "Labels are compared one by one. Write matchLabels."
        return "routes.selector.matchExpressions", "Unsupported", remedy
    labels = routes.selector.match_labels or {}
    if (labels.get(GATEWAY_NAMESPACE), labels.get(GATEWAY_NAME)) != (meta.namespace, meta.name):
        own = f"{GATEWAY_NAMESPACE}: {meta.namespace} and {GATEWAY_NAME}: {meta.name}"
        remedy = f"It must choose the Services of this Gateway: {own}."
        return "routes.selector.matchLabels", "SelectorMismatch", remedy
    return None


# ── classes ─────────────────────────────────────────────────────────────────────────────────


def setting_named(cls: GatewayClass) -> str | None:
    """The AviInfraSetting that a class names."""
    ref = cls.spec.parameters_ref
    named = ref is not None and ref.group == "ako.vmware.com" and ref.kind == "AviInfraSetting"
    return ref.name if ref is not None and named else None


def class_refusals(cls: GatewayClass, usable: Iterable[str], known: bool) -> tuple[Refusal, ...]:
    """What is wrong with a class of ours.

    ``usable``: the settings in force; ``known``: whether the one that it names is there at all.
    """
    ref = cls.spec.parameters_ref
    if ref is None:
        return ()
    setting = setting_named(cls)
    if setting is None:
        field = "kind" if ref.group == "ako.vmware.com" else "group"
        return (
            Refusal(
                object=f"GatewayClass/{cls.metadata.name}",
                field=f"spec.parametersRef.{field}",
                reason="InvalidParameters",
                remedy=f"{quoted(ref.kind)} of group {quoted(ref.group)} is no parameter here:"
                " write group ako.vmware.com and kind AviInfraSetting. Until then its Gateways are"
                " not served.",
            ),
        )
    if setting in usable:
        return ()
    return (
        Refusal(
            object=f"GatewayClass/{cls.metadata.name}",
            field="spec.parametersRef.name",
            reason="AviInfraSettingRejected" if known else "AviInfraSettingNotFound",
            remedy=unusable(setting, known),
        ),
    )


def unusable(setting: str, known: bool) -> str:
    fix = "Correct it; its status says how." if known else "Create it."
    return f"AviInfraSetting {quoted(setting)} can't be used. {fix}"


def govern_gateway(gateway: Gateway, store: Store, usable: Iterable[str]) -> GovernedGateway:
    """Which class and setting have a Gateway.  Cost: constant.

    ``usable``: the settings in force ("" the defaults).  Fail closed: never the defaults instead.
    """
    name = gateway.spec.gateway_class_name
    cls = cast("GatewayClass | None", store.all("GatewayClass").get(name))
    setting: str | None = None

    def no(ours: bool, reason: str, remedy: str, field: str = "") -> GovernedGateway:
        refusal = Refusal(
            object=f"Gateway/{gateway.metadata.key}",
            field=field or "spec.gatewayClassName",
            reason=reason,
            remedy=remedy,
        )
        return GovernedGateway(ours, None, refusal, setting)

    if cls is None:
        remedy = f"Create GatewayClass {name}, or name one that exists."
        return no(False, "NoSuchGatewayClass", remedy)
    if cls.spec.controller != CONTROLLER:
        return GovernedGateway(False)
    setting, field = setting_named(cls), ""
    if setting is None:
        if cls.spec.parameters_ref is not None:
            remedy = f"Correct the parametersRef of GatewayClass {name}; its status says how."
            return no(True, "InvalidParameters", remedy)
        namespace = store.namespace(gateway.metadata.namespace)
        setting = (namespace.metadata.annotation(SETTING_ANNOTATION) if namespace else None) or ""
        field = f"metadata.namespace ({SETTING_ANNOTATION})" if setting else ""
    if setting not in usable:
        known = store.setting(setting) is not None if setting else True
        reason = "AviInfraSettingRejected" if known else "AviInfraSettingNotFound"
        return no(True, reason, unusable(setting or "of the defaults", known), field)
    return GovernedGateway(True, setting, None, setting)


# ── listeners ───────────────────────────────────────────────────────────────────────────────


def _at_home(one: ServiceView, front: Front) -> bool:
    return one.key.partition("/")[0] == front.namespace


def gateway_listener(
    front: Front,
    seen: GatewayView | None,
    served: bool,
    protocol: str,
    port: int,
    services: Iterable[ServiceView],
    names: Names,
) -> tuple[L4Listener | None, list[Refusal]]:
    """One listener of a Gateway; None: it has none of that protocol and port.

    ``services``: that name the Gateway and have the port, oldest first.  Of these the oldest of the
    Gateway's namespace serves, or else the oldest: who may label a Service elsewhere takes nothing
    away.  ``seen`` None: there is no such Gateway; ``served``: a class of ours has it.
    """
    no: list[Refusal] = []
    at = (protocol, port)
    listener = seen.listeners.get(at) if seen is not None else None
    has: ServiceView | None = None
    for one in sorted(services, key=lambda one: not _at_home(one, front)):

        def refuse(field: str, reason: str, remedy: str, key: str = one.key) -> None:
            no.append(Refusal(object=f"Service/{key}", field=field, reason=reason, remedy=remedy))

        if seen is None:
            refuse(
                f"metadata.labels[{GATEWAY_NAME}]",
                "GatewayNotFound",
                f"Create Gateway {front.key}, or correct the labels.",
            )
        elif not served:
            refuse(
                f"metadata.labels[{GATEWAY_NAME}]",
                "GatewayNotServed",
                f"Gateway {front.key} is not served: its status says why.",
            )
        elif listener is None:
            refuse(
                f"{one.ports[at]}.port",
                "NoMatchingListener",
                f"Gateway {front.key} has no listener {protocol}/{port}. Add one, or choose a port"
                " that it has.",
            )
        elif not listener.labels <= one.labels:
            lacks = ", ".join(f"{k}={v}" for k, v in sorted(listener.labels - one.labels))
            refuse(
                "metadata.labels",
                "NotSelected",
                f"{listener.field} of Gateway {front.key} takes Services with {quoted(lacks)}."
                " Add it.",
            )
        elif listener.same_namespace and not _at_home(one, front):
            refuse(
                "metadata.namespace",
                "NamespaceNotAllowed",
                f"{listener.field} of Gateway {front.key} takes Services of its own namespace."
                " Let it write namespaces.from: All.",
            )
        elif has is not None:
            first = "came first" if has.age < one.age else "is of the Gateway's namespace"
            refuse(
                f"{one.ports[at]}.port",
                "PortConflict",
                f"Service {has.key}, which {first}, is behind {protocol}/{port} of Gateway"
                f" {front.key}. Choose another port.",
            )
            no.append(
                Refusal(
                    object=str(front),
                    field=f"{listener.field}.routes.selector",
                    reason="SeveralServices",
                    remedy=f"Services {has.key} and {one.key} have {protocol}/{port}: the first,"
                    f" which {first.replace('came first', 'is older')}, serves."
                    " Leave one of them.",
                    warning=True,
                )
            )
        else:
            has = one
    if listener is None or not served:
        return None, no
    pool = pool_of(has, front, protocol, port, names) if has is not None else None
    return L4Listener(protocol, port, pool), no

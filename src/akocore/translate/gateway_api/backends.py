"""backendRefs → backends: a Service port, how to talk to it, or why it can't be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from akocore.config import Limits
from akocore.kube.gateway_objects import BackendObjectReference, BackendRef, HTTPBackendRef
from akocore.kube.objects import Service, ServicePort
from akocore.model import Refusal
from akocore.model_http import Backend, BackendTls, HeaderEdit, HttpRule
from akocore.shown import quoted
from akocore.translate.gateway_api.budget import Weight
from akocore.translate.gateway_api.found import Finding
from akocore.translate.gateway_api.values import WEIGHTS, number_problem
from akocore.translate.services import proxy_problem

__all__ = ["Context", "Found", "Translation", "resolve"]

AnyRef = BackendObjectReference | BackendRef | HTTPBackendRef

_H2C: Final = ("kubernetes.io/h2c", "grpc")
_TLS: Final = ("kubernetes.io/wss", "https", "tls")


class Context(Struct, frozen=True):
    """What a route is translated against.

    ``permits``: as of `listeners`; ``tls``: by Service and port, how a BackendTLSPolicy wants it,
    or False: it wants what can't be.  ``expressions``: the regular expressions that a rule
    comes to, and whether each decides about it; an engine takes none that is larger
    than ``largest``.
    """

    service: Callable[[str], Service | None]
    permits: Callable[[str, str, str, str], bool]
    tls: Callable[[str, ServicePort], BackendTls | bool | None]
    limits: Limits = Limits()
    expressions: Callable[[HttpRule], Iterable[tuple[str, bool]]] = lambda _rule: ()
    largest: int = 5000


class Translation(Struct):
    """A route while it is translated: what is wrong with it, and what it depends on."""

    kind: str
    namespace: str
    object: str
    context: Context
    findings: list[Finding]
    refers: set[str]
    spent: Weight = Weight()  # by its regular expressions so far

    def no(self, type_: str, field: str, reason: str, remedy: str) -> None:
        refusal = Refusal(object=self.object, field=field, reason=reason, remedy=remedy)
        self.findings.append(Finding(type_, refusal))  # type: ignore[arg-type]

    def warn(self, field: str, reason: str, remedy: str) -> None:
        refusal = Refusal(
            object=self.object, field=field, reason=reason, remedy=remedy, warning=True
        )
        self.findings.append(Finding("Warning", refusal))


class Found(Struct, frozen=True, gc=False):
    """A Service port that a reference means."""

    backend: str  # "namespace/service/port", of UDP "namespace/service/port/UDP"
    port: ServicePort
    tls: BackendTls | None


def resolve(at: Translation, ref: AnyRef, field: str, protocol: str = "TCP") -> Found | None:
    """What a reference means; None: nothing that can be served, and it is noted why."""

    def no(part: str, reason: str, remedy: str) -> None:
        at.no("ResolvedRefs", f"{field}.{part}" if part else field, reason, remedy)

    if ref.group not in ("", "core") or ref.kind != "Service":
        what = f"{quoted(ref.kind)} of group {quoted(ref.group or 'core')}"
        no("kind", "InvalidKind", f"{what} is no backend here: name a Service.")
        return None
    namespace = ref.namespace or at.namespace
    key = f"{namespace}/{ref.name}"
    at.refers.add(f"Service/{key}")
    if namespace != at.namespace:
        at.refers.add(f"ReferenceGrant/{namespace}")
        if not at.context.permits(at.kind, at.namespace, "Service", key):
            remedy = f"Create a ReferenceGrant in {namespace} for {at.kind}s of {at.namespace}."
            no("namespace", "RefNotPermitted", remedy)
            return None
    service = at.context.service(key)
    if service is None:
        no("name", "BackendNotFound", f"Create Service {key} with port {ref.port or 80}.")
        return None
    if service.spec.type == "ExternalName":
        remedy = f"Service {key} is of type ExternalName, which has no endpoints here."
        no("name", "UnsupportedValue", f"{remedy} Use one with EndpointSlices.")
        return None
    ports = [port for port in service.spec.ports if port.protocol == protocol]
    port = next((port for port in ports if port.port == ref.port), None)
    if port is None:
        has = ", ".join(str(port.port) for port in ports) or "none"
        what = f"{protocol} port {ref.port}" if ref.port else "port without a number"
        no("port", "BackendNotFound", f"Service {key} has no {what}; it has {has}.")
        return None
    http = at.kind in ("HTTPRoute", "GRPCRoute")
    tls = at.context.tls(key, port) if http else None
    if isinstance(tls, bool):
        remedy = f"The BackendTLSPolicy of Service {key} can't be applied; its status says why."
        at.warn(field, "InvalidBackendTLSPolicy", remedy)
        return None
    if tls is None and port.app_protocol in _TLS and http:
        remedy = f"Service {key} wants {port.app_protocol}: give it a BackendTLSPolicy."
        no("", "UnsupportedProtocol", remedy)
        return None
    if problem := proxy_problem(service):
        at.warn(field, "InvalidProxyProtocol", f"{problem} Clients are not told until then.")
    end = "" if protocol == "TCP" else f"/{protocol}"
    return Found(f"{key}/{port.port}{end}", port, tls)


def backend(
    at: Translation,
    ref: AnyRef,
    field: str,
    request: HeaderEdit = HeaderEdit(),  # noqa: B008  (frozen)
    response: HeaderEdit = HeaderEdit(),  # noqa: B008
) -> Backend:
    """A share of an HTTP or gRPC rule."""
    weight = 1 if isinstance(ref, BackendObjectReference) else ref.weight
    if problem := number_problem(weight, *WEIGHTS):
        at.no("PartiallyInvalid", f"{field}.weight", "UnsupportedValue", problem)
        return Backend(None, 1)
    found = resolve(at, ref, field)
    if found is None:
        return Backend(None, weight)
    h2c = found.port.app_protocol in _H2C or (
        at.kind == "GRPCRoute" and found.port.app_protocol is None
    )
    protocol = "h2c" if h2c else "http1"
    return Backend(found.backend, weight, protocol, found.tls, request, response)  # type: ignore[arg-type]


def l4_backends(
    at: Translation, refs: tuple[BackendRef, ...], field: str, protocol: str
) -> tuple[Backend, ...]:
    """Who shares the connections of a rule; ``backend`` None: its share is closed at once."""
    out = []
    for i, ref in enumerate(refs):
        found = resolve(at, ref, f"{field}[{i}]", protocol)
        if problem := number_problem(ref.weight, *WEIGHTS):
            at.no("PartiallyInvalid", f"{field}[{i}].weight", "UnsupportedValue", problem)
        elif ref.weight:
            out.append(Backend(found.backend if found is not None else None, ref.weight))
    return tuple(out)

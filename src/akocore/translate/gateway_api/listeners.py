"""Listeners of a Gateway and of the ListenerSets that join it → what each may serve, or why not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec
from msgspec import Struct

from akocore.kube.gateway_objects import (
    GATEWAY_API,
    FrontendTLS,
    FrontendValidation,
    GatewayApiGateway,
    Listener,
    ListenerSet,
    ObjectReference,
    RouteNamespaces,
)
from akocore.model import Refusal
from akocore.shown import quoted
from akocore.translate.gateway_api.found import Finding, ListenerId, Type
from akocore.translate.gateway_api.hostnames import is_hostname

__all__ = ["ClientValidation", "ListenerView", "listeners"]

KINDS: Final[dict[str, tuple[str, ...]]] = {
    "HTTP": ("HTTPRoute", "GRPCRoute"),
    "HTTPS": ("HTTPRoute", "GRPCRoute"),
    "TLS": ("TLSRoute",),
    "TCP": ("TCPRoute",),
    "UDP": ("UDPRoute",),
}
"""Which routes a listener of a protocol may have."""

_HOSTS: Final = ("HTTP", "HTTPS", "TLS")

Check = Callable[[str, str], tuple[str, str] | None]
"""Of a Secret or ConfigMap ("namespace/name") and a kind: (reason, remedy) of what is wrong."""

Permits = Callable[[str, str, str, str], bool]
"""Whether a kind of a namespace may name a kind's object ("namespace/name") elsewhere."""


class ClientValidation(Struct, frozen=True, gc=False):
    """Clients must show a certificate of these authorities (ConfigMaps "namespace/name")."""

    authorities: tuple[str, ...]
    insecure: bool  # whoever shows none, or a bad one, is let in all the same


class ListenerView(Struct, frozen=True, gc=False):
    """One listener.  ``kinds``: of the routes that may attach; ``findings``: what is wrong."""

    id: ListenerId
    field: str
    port: int
    protocol: str
    hostname: str
    mode: Literal["", "Terminate", "Passthrough"]
    kinds: tuple[str, ...]
    namespace: str
    namespaces: RouteNamespaces
    certificates: tuple[str, ...]  # Secrets "namespace/name"
    clients: ClientValidation | None
    findings: tuple[Finding, ...]

    @property
    def transport(self) -> tuple[str, int]:
        return ("UDP" if self.protocol == "UDP" else "TCP", self.port)

    @property
    def accepted(self) -> bool:
        return not any(one.type in ("Accepted", "Conflicted") for one in self.findings)

    @property
    def serves(self) -> bool:
        """Whether clients are let in: its references may be bad as long as it can work."""
        return self.accepted and not any(one.type == "Programmed" for one in self.findings)


class _Draft(Struct):
    """A listener while it is looked at."""

    id: ListenerId
    object: str
    field: str
    spec: Listener
    namespace: str
    findings: list[Finding]

    def no(self, type_: Type, field: str, reason: str, remedy: str) -> None:
        at = f"{self.field}.{field}" if field else self.field
        refusal = Refusal(object=self.object, field=at, reason=reason, remedy=remedy)
        self.findings.append(Finding(type_, refusal))

    def warn(self, field: str, remedy: str) -> None:
        refusal = Refusal(
            object=self.object,
            field=f"{self.field}.{field}",
            reason="UnsupportedValue",
            remedy=remedy,
            warning=True,
        )
        self.findings.append(Finding("Warning", refusal))


def _drafts(kind: str, key: str, object_: str, listeners: tuple[Listener, ...]) -> list[_Draft]:
    namespace = key.partition("/")[0]
    return [
        _Draft((kind, key, one.name), object_, f"spec.listeners[{i}]", one, namespace, [])
        for i, one in enumerate(listeners)
    ]


def listeners(
    gateway: GatewayApiGateway,
    sets: Iterable[ListenerSet],
    check: Check,
    permits: Permits,
    most: int = 512,
) -> tuple[ListenerView, ...]:
    """Every listener of a Gateway, in order of precedence.  Cost: these.

    ``sets``: the ListenerSets that may join it, oldest first.  ``most``: all that are served.
    """
    key = gateway.metadata.key
    groups = [_drafts("Gateway", key, f"{gateway.stored()}/{key}", gateway.spec.listeners)]
    for one in sets:
        own = one.metadata.key
        groups.append(_drafts("ListenerSet", own, f"ListenerSet/{own}", one.spec.listeners))
    all_ = [draft for group in groups for draft in group]
    for draft in all_[most:]:
        remedy = f"A Gateway and its ListenerSets have {most} listeners at most, of {len(all_)}."
        draft.no("Accepted", "", "TooLarge", f"{remedy} Use another Gateway.")
    _conflicts(groups)
    frontend = gateway.spec.tls.frontend if gateway.spec.tls is not None else None
    return tuple(
        _view(draft, frontend, gateway.metadata.namespace, check, permits)
        for group in groups
        for draft in group
    )


# ── conflicts ───────────────────────────────────────────────────────────────────────────────


def _conflicts(groups: list[list[_Draft]]) -> None:
    """Of one object all indistinct ones are refused; of several the one that came first stays."""
    taken: dict[tuple[bool, int], list[_Draft]] = defaultdict(list)
    for group in groups:
        mine: dict[tuple[bool, int], list[_Draft]] = defaultdict(list)
        for draft in group:
            if draft.spec.protocol in KINDS:
                mine[draft.spec.protocol == "UDP", draft.spec.port].append(draft)
        for at, drafts in mine.items():
            _refuse(drafts, taken[at])
            _refuse(rest := [one for one in drafts if not one.findings], rest)
            taken[at] += [one for one in rest if not one.findings]


def _refuse(drafts: list[_Draft], others: list[_Draft]) -> None:
    """Refuse those that can't be told from one of ``others``."""
    found = [(draft, _conflict(draft, others)) for draft in drafts]
    for draft, problem in found:
        if problem is not None:
            draft.no("Conflicted", "", *problem)


def _conflict(draft: _Draft, others: Iterable[_Draft]) -> tuple[str, str] | None:
    """(reason, remedy) of the first of ``others`` that can't be told from it."""
    spec = draft.spec
    for other in others:
        if other is draft:
            continue
        has = other.spec
        named = f"{other.field} ({has.name}) of {other.id[0]} {other.id[1]}"
        if spec.protocol in ("TCP", "UDP") or has.protocol in ("TCP", "UDP"):
            remedy = f"{named} has port {spec.port}. Choose another port."
            return "ProtocolConflict", remedy
        if "HTTP" in (spec.protocol, has.protocol) and spec.protocol != has.protocol:
            remedy = f"{named} has port {spec.port} for {has.protocol}. Choose another port."
            return "ProtocolConflict", remedy
        if spec.hostname.lower() == has.hostname.lower():
            host = spec.hostname or "any host"
            remedy = f"{named} has {host} on port {spec.port}. Choose another hostname or port."
            mixed = spec.protocol != has.protocol
            return ("ProtocolConflict" if mixed else "HostnameConflict"), remedy
    return None


# ── one listener ────────────────────────────────────────────────────────────────────────────


def _view(
    draft: _Draft, frontend: FrontendTLS | None, home: str, check: Check, permits: Permits
) -> ListenerView:
    spec = draft.spec
    kinds = _kinds(draft)
    mode: Literal["", "Terminate", "Passthrough"] = ""
    certificates: tuple[str, ...] = ()
    clients = None
    if spec.hostname and spec.protocol in _HOSTS and not is_hostname(spec.hostname):
        remedy = f"{quoted(spec.hostname)} is no DNS name. Write one, with *. only at the start."
        draft.no("Accepted", "hostname", "UnsupportedValue", remedy)
    if spec.protocol not in KINDS:
        remedy = f"{quoted(spec.protocol)} is not served. Write HTTP, HTTPS, TLS, TCP or UDP."
        draft.no("Accepted", "protocol", "UnsupportedProtocol", remedy)
    elif spec.protocol in ("HTTPS", "TLS"):
        asked = spec.tls.mode if spec.tls is not None else "Terminate"
        if asked == "Passthrough" and spec.protocol == "TLS":
            mode = "Passthrough"
        elif asked != "Terminate":
            said = quoted(asked)
            remedy = f"A listener of {spec.protocol} can't have mode {said}. Write Terminate."
            draft.no("Accepted", "tls.mode", "UnsupportedValue", remedy)
        else:
            mode = "Terminate"
            certificates = _certificates(draft, check, permits)
            if spec.protocol == "HTTPS":
                clients = _clients(draft, frontend, home, check, permits)
    elif spec.tls is not None:
        remedy = (
            f"A listener of {quoted(spec.protocol)} has no TLS. Take it out, or write HTTPS or TLS."
        )
        draft.no("Accepted", "tls", "UnsupportedValue", remedy)
    for name in sorted((spec.tls.options if spec.tls is not None else None) or ()):
        draft.warn(f"tls.options[{quoted(name)}]", "It is not known, and passed over. Take it out.")
    return ListenerView(
        id=draft.id,
        field=draft.field,
        port=spec.port,
        protocol=spec.protocol,
        hostname=spec.hostname.lower() if spec.protocol not in ("TCP", "UDP") else "",
        mode=mode,
        kinds=kinds,
        namespace=draft.namespace,
        namespaces=spec.allowed_routes.namespaces,
        certificates=certificates,
        clients=clients,
        findings=tuple(draft.findings),
    )


def _kinds(draft: _Draft) -> tuple[str, ...]:
    usual = KINDS.get(draft.spec.protocol, ())
    asked = draft.spec.allowed_routes.kinds
    if not asked or not usual:
        return usual
    for i, one in enumerate(asked):
        if one.group != GATEWAY_API or one.kind not in usual:
            draft.no(
                "ResolvedRefs",
                f"allowedRoutes.kinds[{i}]",
                "InvalidRouteKinds",
                f"A listener of {draft.spec.protocol} can't have {quoted(one.kind)} of group"
                f" {quoted(one.group)}. Write {' or '.join(usual)}.",
            )
    good = [one.kind for one in asked if one.group == GATEWAY_API and one.kind in usual]
    return tuple(dict.fromkeys(good))


def _resolve(
    ref: ObjectReference, kind: str, owner: str, namespace: str, check: Check, permits: Permits
) -> tuple[str, tuple[str, str] | None]:
    """The key that a reference of an ``owner`` means, and what is wrong with it."""
    key = f"{ref.namespace or namespace}/{ref.name}"
    if ref.namespace not in ("", namespace) and not permits(owner, namespace, kind, key):
        remedy = f"Create a ReferenceGrant in {ref.namespace} for {owner}s of {namespace}."
        return key, ("RefNotPermitted", remedy)
    return key, check(kind, key)


def _certificates(draft: _Draft, check: Check, permits: Permits) -> tuple[str, ...]:
    refs = draft.spec.tls.certificate_refs if draft.spec.tls is not None else ()
    good: list[str] = []
    if not refs:
        remedy = "Name a Secret of type kubernetes.io/tls."
        draft.no("ResolvedRefs", "tls.certificateRefs", "InvalidCertificateRef", remedy)
    for i, ref in enumerate(refs):
        field = f"tls.certificateRefs[{i}]"
        if ref.group not in ("", "core") or ref.kind != "Secret":
            what = f"{quoted(ref.kind)} of group {quoted(ref.group or 'core')}"
            remedy = f"{what} holds no certificate: name a Secret."
            draft.no("ResolvedRefs", field, "InvalidCertificateRef", remedy)
            continue
        key, problem = _resolve(ref, "Secret", draft.id[0], draft.namespace, check, permits)
        if problem is None:
            good.append(key)
        else:
            reason = (
                "RefNotPermitted" if problem[0] == "RefNotPermitted" else "InvalidCertificateRef"
            )
            draft.no("ResolvedRefs", field, reason, problem[1])
    if not good:
        remedy = "No certificate can be used: nobody is let in."
        draft.no("Programmed", "tls.certificateRefs", "Invalid", remedy)
    return tuple(dict.fromkeys(good))


def _clients(
    draft: _Draft, frontend: FrontendTLS | None, home: str, check: Check, permits: Permits
) -> ClientValidation | None:
    """How clients are to show who they are; the fields are the Gateway's."""
    if frontend is None:
        return None
    own = next((i for i, p in enumerate(frontend.per_port) if p.port == draft.spec.port), None)
    config = frontend.default if own is None else frontend.per_port[own].tls
    at = "spec.tls.frontend.default" if own is None else f"spec.tls.frontend.perPort[{own}].tls"
    validation: FrontendValidation | None = config.validation
    if validation is None:
        return None
    good: list[str] = []

    def no(type_: Type, field: str, reason: str, remedy: str) -> None:
        refusal = Refusal(object=draft.object, field=field, reason=reason, remedy=remedy)
        draft.findings.append(Finding(type_, refusal))

    for i, ref in enumerate(validation.ca_certificate_refs):
        field = f"{at}.validation.caCertificateRefs[{i}]"
        if ref.group not in ("", "core") or ref.kind != "ConfigMap":
            what = f"{quoted(ref.kind)} of group {quoted(ref.group or 'core')}"
            remedy = f"{what} is not read: name a ConfigMap."
            no("ResolvedRefs", field, "InvalidCACertificateKind", remedy)
            continue
        key, problem = _resolve(ref, "ConfigMap", "Gateway", home, check, permits)
        if problem is None:
            good.append(key)
        else:
            permitted = problem[0] != "RefNotPermitted"
            reason = "InvalidCACertificateRef" if permitted else "RefNotPermitted"
            no("ResolvedRefs", field, reason, problem[1])
    if not good:
        remedy = "No certificate of an authority can be used: nobody is let in."
        no("Accepted", f"{at}.validation.caCertificateRefs", "NoValidCACertificate", remedy)
    return ClientValidation(tuple(good), validation.mode == "AllowInsecureFallback")


def without_findings(view: ListenerView) -> ListenerView:
    """What of a listener routes depend on."""
    return msgspec.structs.replace(view, findings=(), certificates=(), clients=None)

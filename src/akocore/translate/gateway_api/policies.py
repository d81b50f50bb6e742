"""BackendTLSPolicy → how the connections to a Service are encrypted, or why they can't be."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from akocore.kube.gateway_objects import BackendTLSPolicy
from akocore.model import Refusal
from akocore.model_http import BackendTls
from akocore.shown import quoted
from akocore.translate.gateway_api.found import Finding, Type
from akocore.translate.gateway_api.listeners import Check

__all__ = ["PolicyView", "Target", "refused", "view"]

Target = tuple[str, str]
"""(Service's key, its port's name or "" for all of them)."""


class PolicyView(Struct, frozen=True, gc=False):
    """What one policy asks for.  ``tls`` None: it can't be, and its targets get a 5xx.

    ``targets``: in the order of its targetRefs; ``age`` orders it among others.
    """

    targets: tuple[Target, ...]
    tls: BackendTls | None
    findings: tuple[Finding, ...]
    age: tuple[str, str]


def refused(policy: BackendTLSPolicy, refusal: Refusal) -> PolicyView:
    """The view of a policy that can't be applied: its targets get a 5xx."""
    meta = policy.metadata
    targets = tuple(
        (f"{meta.namespace}/{ref.name}", ref.section_name) for ref in policy.spec.target_refs
    )
    age = (meta.creation_timestamp or "~", meta.key)
    return PolicyView(targets, None, (Finding("Accepted", refusal),), age)


def view(policy: BackendTLSPolicy, check: Check, authorities: Callable[[str], str]) -> PolicyView:
    """What a policy asks for.  Cost: its references.

    ``check``: of its ConfigMaps; ``authorities``: their PEM certificates.
    """
    meta, spec = policy.metadata, policy.spec
    found: list[Finding] = []

    def no(type_: Type, field: str, reason: str, remedy: str, *, warning: bool = False) -> None:
        refusal = Refusal(
            object=f"BackendTLSPolicy/{meta.key}",
            field=field,
            reason=reason,
            remedy=remedy,
            warning=warning,
        )
        found.append(Finding(type_, refusal))

    targets = []
    for i, ref in enumerate(spec.target_refs):
        if ref.group in ("", "core") and ref.kind == "Service":
            targets.append((f"{meta.namespace}/{ref.name}", ref.section_name))
        else:
            what = f"{quoted(ref.kind)} of group {quoted(ref.group or 'core')}"
            remedy = f"{what} is no target: name a Service."
            no("Accepted", f"spec.targetRefs[{i}]", "Invalid", remedy)
    for name in sorted(spec.options or ()):
        remedy = "It is not known, and passed over. Take it out."
        no("Warning", f"spec.options[{name}]", "UnsupportedValue", remedy, warning=True)
    asked = spec.validation
    field = "spec.validation"
    good: list[str] = []
    for i, local in enumerate(asked.ca_certificate_refs):
        at = f"{field}.caCertificateRefs[{i}]"
        key = f"{meta.namespace}/{local.name}"
        if local.group not in ("", "core") or local.kind != "ConfigMap":
            what = f"{quoted(local.kind)} of group {quoted(local.group or 'core')}"
            no("ResolvedRefs", at, "InvalidKind", f"{what} is not read: name a ConfigMap.")
        elif (problem := check("ConfigMap", key)) is not None:
            no("ResolvedRefs", at, "InvalidCACertificateRef", problem[1])
        else:
            good.append(authorities(key))
    system = asked.well_known_ca_certificates == "System"
    if asked.well_known_ca_certificates and not system:
        what = asked.well_known_ca_certificates
        no("Accepted", f"{field}.wellKnownCACertificates", "Invalid", f"{what}: write System.")
    elif not good and not system:
        remedy = "No certificate of an authority can be used: requests get a 5xx."
        no("Accepted", f"{field}.caCertificateRefs", "NoValidCACertificate", remedy)
    names = []
    for i, alt in enumerate(asked.subject_alt_names):
        if alt.type == "Hostname" and alt.hostname:
            names.append(("dns", alt.hostname))
        elif alt.type == "URI" and alt.uri:
            names.append(("uri", alt.uri))
        else:
            remedy = "Write type Hostname or URI, and its field."
            no("Accepted", f"{field}.subjectAltNames[{i}]", "Invalid", remedy)
    tls = None
    if all(one.type != "Accepted" for one in found):
        tls = BackendTls(asked.hostname, "\n".join(good), system, tuple(names))  # type: ignore[arg-type]
    age = (meta.creation_timestamp or "~", meta.key)
    return PolicyView(tuple(dict.fromkeys(targets)), tls, tuple(found), age)

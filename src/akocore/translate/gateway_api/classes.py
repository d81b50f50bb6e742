"""GatewayClass (gateway.networking.k8s.io) and what governs a Gateway: class and setting."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, cast

from msgspec import Struct

from akocore.kube.gateway_objects import (
    GATEWAY_CLASS,
    GatewayApiClass,
    GatewayApiGateway,
    ParametersReference,
)
from akocore.model import Refusal
from akocore.shown import quoted
from akocore.translate.classes import CONTROLLER, SETTING_ANNOTATION
from akocore.translate.gateways import unusable

if TYPE_CHECKING:
    from akocore.store import Store

__all__ = [
    "BUNDLE_VERSION",
    "FEATURES",
    "SERVED_RELEASES",
    "GovernedByClass",
    "class_refusals",
    "govern",
]

BUNDLE_VERSION: Final = "gateway.networking.k8s.io/bundle-version"
SERVED_RELEASES: Final = ("v1.6.",)
"""Releases of the definitions that have all kinds that are read, in the versions that are."""

FEATURES: Final = (
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
)
"""What is served, in the terms of the Gateway API; sorted."""


class GovernedByClass(Struct, frozen=True, gc=False):
    """``ours``: a class of ours has the Gateway; ``setting`` None: it can't be served so.

    ``refers``: what decided it.
    """

    ours: bool
    setting: str | None
    refusal: Refusal | None
    refers: frozenset[str]


def _setting_of(ref: ParametersReference) -> str | None:
    good = ref.group == "ako.vmware.com" and ref.kind == "AviInfraSetting"
    return ref.name if good else None


def _wrong_kind(object_: str, field: str, ref: ParametersReference, what: str) -> Refusal:
    part = "kind" if ref.group == "ako.vmware.com" else "group"
    return Refusal(
        object=object_,
        field=f"{field}.{part}",
        reason="InvalidParameters",
        remedy=f"{quoted(ref.kind)} of group {quoted(ref.group or 'core')} is no parameter here:"
        f" write group ako.vmware.com and kind AviInfraSetting. Until then {what} not served.",
    )


def class_refusals(
    cls: GatewayApiClass, usable: Collection[str], store: Store
) -> tuple[Refusal, ...]:
    """What is wrong with a class of ours.  ``usable``: the settings in force."""
    ref = cls.spec.parameters_ref
    if ref is None:
        return ()
    object_ = f"{GATEWAY_CLASS}/{cls.metadata.name}"
    setting = _setting_of(ref)
    if setting is None:
        return (_wrong_kind(object_, "spec.parametersRef", ref, "its Gateways are"),)
    if setting in usable:
        return ()
    return (
        Refusal(
            object=object_,
            field="spec.parametersRef.name",
            reason="InvalidParameters",
            remedy=unusable(setting, store.setting(setting) is not None),
        ),
    )


def govern(gateway: GatewayApiGateway, store: Store, usable: Collection[str]) -> GovernedByClass:
    """Which class and setting have a Gateway.  Cost: constant.

    Its own ``infrastructure.parametersRef`` goes before its class, that before its Namespace.
    Fail closed: never the defaults instead of a setting that can't be used.
    """
    meta = gateway.metadata
    object_ = f"{gateway.stored()}/{meta.key}"
    name = gateway.spec.gateway_class_name
    cls = cast("GatewayApiClass | None", store.all(GATEWAY_CLASS).get(name))
    refers = {f"{GATEWAY_CLASS}/{name}"}
    if cls is None or cls.spec.controller_name != CONTROLLER:
        return GovernedByClass(False, None, None, frozenset(refers))

    def no(field: str, remedy: str) -> GovernedByClass:
        refusal = Refusal(object=object_, field=field, reason="InvalidParameters", remedy=remedy)
        return GovernedByClass(True, None, refusal, frozenset(refers))

    infrastructure = gateway.spec.infrastructure
    ref = infrastructure.parameters_ref if infrastructure is not None else None
    field = "spec.infrastructure.parametersRef"
    if ref is None and (ref := cls.spec.parameters_ref) is not None:
        field = "spec.gatewayClassName"
        if _setting_of(ref) is None:
            remedy = f"Correct the parametersRef of GatewayClass {name}; its status says how."
            return no(field, remedy)
    if ref is not None:
        setting = _setting_of(ref)
        if setting is None:
            wrong = _wrong_kind(object_, field, ref, "it is")
            return GovernedByClass(True, None, wrong, frozenset(refers))
    else:
        namespace = store.namespace(meta.namespace)
        refers.add(f"Namespace/{meta.namespace}")
        setting = (namespace.metadata.annotation(SETTING_ANNOTATION) if namespace else None) or ""
        field = f"metadata.namespace ({SETTING_ANNOTATION})" if setting else "spec.gatewayClassName"
    refers.add(f"AviInfraSetting/{setting}")
    if setting not in usable:
        known = store.setting(setting) is not None if setting else True
        return no(field, unusable(setting or "of the defaults", known))
    return GovernedByClass(True, setting, None, frozenset(refers))

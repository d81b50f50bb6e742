"""Gateway API (gateway.networking.k8s.io) as msgspec Structs of just the fields that akocore uses.

Defaults are those of the published definitions, since a directory of manifests has no API server
to fill them in.  Two of the kinds share their names with networking.x-k8s.io: they are stored
under their group's name, too (``Gateway.gateway.networking.k8s.io``).
"""

from __future__ import annotations

from typing import Final

import msgspec

from akocore.kube.meta import Condition, LabelSelector, Object, Part, Port

__all__ = [
    "DEFINITION",
    "GATEWAY",
    "GATEWAY_API",
    "GATEWAY_CLASS",
    "GATEWAY_KINDS",
    "ROUTE_KINDS",
    "BackendRef",
    "BackendTLSPolicy",
    "ConfigMap",
    "CustomResourceDefinition",
    "GRPCRoute",
    "GatewayApiClass",
    "GatewayApiGateway",
    "HTTPRoute",
    "ListenerSet",
    "ParentReference",
    "ReferenceGrant",
    "Route",
    "RouteParentStatus",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
]

GATEWAY_API: Final = "gateway.networking.k8s.io"
DEFINITION: Final = f"gatewayclasses.{GATEWAY_API}"
"""The definition that says which release of the Gateway API is there."""

GATEWAY: Final = f"Gateway.{GATEWAY_API}"
GATEWAY_CLASS: Final = f"GatewayClass.{GATEWAY_API}"


class ConfigMap(Object, frozen=True, gc=False, kw_only=True):
    """Read for the certificates of authorities (``ca.crt``)."""

    KIND = "ConfigMap"
    data: dict[str, str] | None = None


class CustomResourceDefinition(Object, frozen=True, gc=False, kw_only=True):
    """Read for the release of the Gateway API that it belongs to (an annotation)."""

    GROUP = "apiextensions.k8s.io"
    KIND = "CustomResourceDefinition"
    NAMESPACED = False


# ── classes ─────────────────────────────────────────────────────────────────────────────────


class ParametersReference(Part, frozen=True):
    group: str
    kind: str
    name: str
    namespace: str = ""


class GatewayClassSpec(Part, frozen=True):
    controller_name: str
    parameters_ref: ParametersReference | None = None


class SupportedFeature(Part, frozen=True):
    name: str


class GatewayClassStatus(Part, frozen=True):
    conditions: tuple[Condition, ...] = ()
    supported_features: tuple[SupportedFeature, ...] = ()


class GatewayApiClass(Object, frozen=True, gc=False, kw_only=True):
    GROUP = GATEWAY_API
    VERSIONS = ("v1beta1", "v1")
    KIND = "GatewayClass"
    STORED = GATEWAY_CLASS
    NAMESPACED = False
    spec: GatewayClassSpec
    status: GatewayClassStatus = GatewayClassStatus()


# ── listeners: Gateway and ListenerSet ──────────────────────────────────────────────────────


class ObjectReference(Part, frozen=True):
    """To a Secret, ConfigMap ...; ``namespace`` "": the referrer's own."""

    name: str
    group: str = ""
    kind: str = "Secret"
    namespace: str = ""


class RouteNamespaces(Part, frozen=True):
    """``from``: Same, All, Selector or None."""

    from_: str = msgspec.field(default="Same", name="from")
    selector: LabelSelector | None = None


class RouteGroupKind(Part, frozen=True):
    kind: str
    group: str = GATEWAY_API


class AllowedRoutes(Part, frozen=True):
    namespaces: RouteNamespaces = RouteNamespaces()
    kinds: tuple[RouteGroupKind, ...] = ()


class ListenerTLS(Part, frozen=True):
    mode: str = "Terminate"
    certificate_refs: tuple[ObjectReference, ...] = ()
    options: dict[str, str] | None = None


class Listener(Part, frozen=True):
    name: str
    port: Port
    protocol: str
    hostname: str = ""
    tls: ListenerTLS | None = None
    allowed_routes: AllowedRoutes = AllowedRoutes()


class GatewayAddress(Part, frozen=True):
    type: str = "IPAddress"
    value: str = ""


class GatewayInfrastructure(Part, frozen=True):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    parameters_ref: ParametersReference | None = None


class ListenerNamespaces(Part, frozen=True):
    from_: str = msgspec.field(default="None", name="from")
    selector: LabelSelector | None = None


class AllowedListeners(Part, frozen=True):
    namespaces: ListenerNamespaces = ListenerNamespaces()


class FrontendValidation(Part, frozen=True):
    ca_certificate_refs: tuple[ObjectReference, ...] = ()
    mode: str = "AllowValidOnly"


class FrontendTLSConfig(Part, frozen=True):
    validation: FrontendValidation | None = None


class FrontendTLSPort(Part, frozen=True):
    port: Port
    tls: FrontendTLSConfig = FrontendTLSConfig()


class FrontendTLS(Part, frozen=True):
    default: FrontendTLSConfig = FrontendTLSConfig()
    per_port: tuple[FrontendTLSPort, ...] = ()


class BackendTLS(Part, frozen=True):
    client_certificate_ref: ObjectReference | None = None


class GatewayTLS(Part, frozen=True):
    backend: BackendTLS | None = None
    frontend: FrontendTLS | None = None


class GatewaySpec(Part, frozen=True):
    gateway_class_name: str
    listeners: tuple[Listener, ...] = ()
    addresses: tuple[GatewayAddress, ...] = ()
    infrastructure: GatewayInfrastructure | None = None
    allowed_listeners: AllowedListeners = AllowedListeners()
    tls: GatewayTLS | None = None
    default_scope: str = ""


class ListenerStatus(Part, frozen=True):
    name: str
    supported_kinds: tuple[RouteGroupKind, ...] = ()
    attached_routes: int = 0
    conditions: tuple[Condition, ...] = ()


class GatewayStatus(Part, frozen=True):
    addresses: tuple[GatewayAddress, ...] = ()
    conditions: tuple[Condition, ...] = ()
    listeners: tuple[ListenerStatus, ...] = ()
    attached_listener_sets: int | None = None


class GatewayApiGateway(Object, frozen=True, gc=False, kw_only=True):
    GROUP = GATEWAY_API
    VERSIONS = ("v1beta1", "v1")
    KIND = "Gateway"
    STORED = GATEWAY
    spec: GatewaySpec
    status: GatewayStatus = GatewayStatus()


class ParentReference(Part, frozen=True):
    """What a route, or a ListenerSet, attaches to; ``port`` 0 and "" are any."""

    name: str
    group: str | None = None
    kind: str | None = None
    namespace: str | None = None
    section_name: str | None = None
    port: int | None = None


class ListenerSetSpec(Part, frozen=True):
    parent_ref: ParentReference
    listeners: tuple[Listener, ...] = ()


class ListenerSetStatus(Part, frozen=True):
    conditions: tuple[Condition, ...] = ()
    listeners: tuple[ListenerStatus, ...] = ()


class ListenerSet(Object, frozen=True, gc=False, kw_only=True):
    GROUP = GATEWAY_API
    VERSIONS = ("v1",)
    KIND = "ListenerSet"
    spec: ListenerSetSpec
    status: ListenerSetStatus = ListenerSetStatus()


# ── routes ──────────────────────────────────────────────────────────────────────────────────


class RouteParentStatus(Part, frozen=True):
    """What one controller says of a route under one of its parents."""

    parent_ref: ParentReference
    controller_name: str
    conditions: tuple[Condition, ...] = ()


class RouteStatus(Part, frozen=True):
    parents: tuple[RouteParentStatus, ...] = ()


class Route(Object, frozen=True, gc=False, kw_only=True):
    """Any route: its status is the same for all of them."""

    GROUP = GATEWAY_API
    status: RouteStatus = RouteStatus()


class BackendObjectReference(Part, frozen=True):
    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str = ""
    port: int = 0


class BackendRef(Part, frozen=True):
    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str = ""
    port: int = 0
    weight: int = 1


class HTTPHeader(Part, frozen=True):
    name: str
    value: str = ""


class HTTPHeaderFilter(Part, frozen=True):
    set: tuple[HTTPHeader, ...] = ()
    add: tuple[HTTPHeader, ...] = ()
    remove: tuple[str, ...] = ()


class HTTPPathModifier(Part, frozen=True):
    type: str
    replace_full_path: str | None = None
    replace_prefix_match: str | None = None


class HTTPRequestRedirectFilter(Part, frozen=True):
    scheme: str = ""
    hostname: str = ""
    path: HTTPPathModifier | None = None
    port: int = 0
    status_code: int = 302


class HTTPURLRewriteFilter(Part, frozen=True):
    hostname: str = ""
    path: HTTPPathModifier | None = None


class Fraction(Part, frozen=True):
    numerator: int
    denominator: int = 100


class HTTPRequestMirrorFilter(Part, frozen=True):
    backend_ref: BackendObjectReference
    percent: int | None = None
    fraction: Fraction | None = None


class HTTPCORSFilter(Part, frozen=True):
    allow_origins: tuple[str, ...] = ()
    allow_credentials: bool = False
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age: int = 5


class GRPCAuthConfig(Part, frozen=True):
    allowed_headers: tuple[str, ...] = ()


class HTTPAuthConfig(Part, frozen=True):
    path: str = ""
    allowed_headers: tuple[str, ...] = ()
    allowed_response_headers: tuple[str, ...] = ()


class ForwardBody(Part, frozen=True):
    max_size: int = 0


class HTTPExternalAuthFilter(Part, frozen=True):
    backend_ref: BackendObjectReference
    protocol: str
    grpc: GRPCAuthConfig | None = None
    http: HTTPAuthConfig | None = None
    forward_body: ForwardBody | None = None


class LocalObjectReference(Part, frozen=True):
    group: str
    kind: str
    name: str


class HTTPRouteFilter(Part, frozen=True):
    """Also a GRPCRoute's, which has fewer of them."""

    type: str
    request_header_modifier: HTTPHeaderFilter | None = None
    response_header_modifier: HTTPHeaderFilter | None = None
    request_mirror: HTTPRequestMirrorFilter | None = None
    request_redirect: HTTPRequestRedirectFilter | None = None
    url_rewrite: HTTPURLRewriteFilter | None = None
    cors: HTTPCORSFilter | None = None
    external_auth: HTTPExternalAuthFilter | None = None
    extension_ref: LocalObjectReference | None = None


class HTTPBackendRef(Part, frozen=True):
    """A `BackendRef` with filters of its own."""

    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str = ""
    port: int = 0
    weight: int = 1
    filters: tuple[HTTPRouteFilter, ...] = ()


class HTTPPathMatch(Part, frozen=True):
    type: str = "PathPrefix"
    value: str = "/"


class KeyValueMatch(Part, frozen=True):
    """A header or a query parameter."""

    name: str
    value: str = ""
    type: str = "Exact"


class HTTPRouteMatch(Part, frozen=True):
    path: HTTPPathMatch = HTTPPathMatch()
    headers: tuple[KeyValueMatch, ...] = ()
    query_params: tuple[KeyValueMatch, ...] = ()
    method: str = ""


class HTTPRouteTimeouts(Part, frozen=True):
    request: str | None = None
    backend_request: str | None = None


class HTTPRouteRetry(Part, frozen=True):
    codes: tuple[int, ...] = ()
    attempts: int | None = None
    backoff: str | None = None


class CookieConfig(Part, frozen=True):
    lifetime_type: str = "Session"


class SessionPersistence(Part, frozen=True):
    session_name: str = ""
    absolute_timeout: str | None = None
    idle_timeout: str | None = None
    type: str = "Cookie"
    cookie_config: CookieConfig | None = None


class HTTPRouteRule(Part, frozen=True):
    name: str = ""
    matches: tuple[HTTPRouteMatch, ...] = ()
    filters: tuple[HTTPRouteFilter, ...] = ()
    backend_refs: tuple[HTTPBackendRef, ...] = ()
    timeouts: HTTPRouteTimeouts | None = None
    retry: HTTPRouteRetry | None = None
    session_persistence: SessionPersistence | None = None


class HTTPRouteSpec(Part, frozen=True):
    parent_refs: tuple[ParentReference, ...] = ()
    use_default_gateways: str = ""
    hostnames: tuple[str, ...] = ()
    rules: tuple[HTTPRouteRule, ...] = (HTTPRouteRule(),)


class HTTPRoute(Route, frozen=True, gc=False, kw_only=True):
    VERSIONS = ("v1beta1", "v1")
    KIND = "HTTPRoute"
    spec: HTTPRouteSpec = HTTPRouteSpec()


class GRPCMethodMatch(Part, frozen=True):
    type: str = "Exact"
    service: str = ""
    method: str = ""


class GRPCRouteMatch(Part, frozen=True):
    method: GRPCMethodMatch | None = None
    headers: tuple[KeyValueMatch, ...] = ()


class GRPCRouteRule(Part, frozen=True):
    name: str = ""
    matches: tuple[GRPCRouteMatch, ...] = ()
    filters: tuple[HTTPRouteFilter, ...] = ()
    backend_refs: tuple[HTTPBackendRef, ...] = ()
    session_persistence: SessionPersistence | None = None


class GRPCRouteSpec(Part, frozen=True):
    parent_refs: tuple[ParentReference, ...] = ()
    use_default_gateways: str = ""
    hostnames: tuple[str, ...] = ()
    rules: tuple[GRPCRouteRule, ...] = (GRPCRouteRule(),)


class GRPCRoute(Route, frozen=True, gc=False, kw_only=True):
    VERSIONS = ("v1",)
    KIND = "GRPCRoute"
    spec: GRPCRouteSpec = GRPCRouteSpec()


class L4RouteRule(Part, frozen=True):
    name: str = ""
    backend_refs: tuple[BackendRef, ...] = ()


class L4RouteSpec(Part, frozen=True):
    """Of a TLSRoute, a TCPRoute and a UDPRoute; ``hostnames``: of a TLSRoute alone."""

    parent_refs: tuple[ParentReference, ...] = ()
    use_default_gateways: str = ""
    hostnames: tuple[str, ...] = ()
    rules: tuple[L4RouteRule, ...] = ()


class TLSRoute(Route, frozen=True, gc=False, kw_only=True):
    VERSIONS = ("v1alpha2", "v1alpha3", "v1")
    KIND = "TLSRoute"
    spec: L4RouteSpec = L4RouteSpec()


class TCPRoute(Route, frozen=True, gc=False, kw_only=True):
    VERSIONS = ("v1alpha2", "v1")
    KIND = "TCPRoute"
    spec: L4RouteSpec = L4RouteSpec()


class UDPRoute(Route, frozen=True, gc=False, kw_only=True):
    VERSIONS = ("v1alpha2", "v1")
    KIND = "UDPRoute"
    spec: L4RouteSpec = L4RouteSpec()


# ── grants and policies ─────────────────────────────────────────────────────────────────────


class ReferenceGrantFrom(Part, frozen=True):
    group: str
    kind: str
    namespace: str


class ReferenceGrantTo(Part, frozen=True):
    group: str
    kind: str
    name: str = ""


class ReferenceGrantSpec(Part, frozen=True):
    from_: tuple[ReferenceGrantFrom, ...] = msgspec.field(default=(), name="from")
    to: tuple[ReferenceGrantTo, ...] = ()


class ReferenceGrant(Object, frozen=True, gc=False, kw_only=True):
    """Read in the version that every release has."""

    GROUP = GATEWAY_API
    VERSIONS = ("v1", "v1beta1")
    KIND = "ReferenceGrant"
    spec: ReferenceGrantSpec = ReferenceGrantSpec()


class PolicyTargetReference(Part, frozen=True):
    group: str
    kind: str
    name: str
    section_name: str = ""


class SubjectAltName(Part, frozen=True):
    type: str
    hostname: str = ""
    uri: str = ""


class BackendTLSPolicyValidation(Part, frozen=True):
    hostname: str
    ca_certificate_refs: tuple[LocalObjectReference, ...] = ()
    well_known_ca_certificates: str = msgspec.field(default="", name="wellKnownCACertificates")
    subject_alt_names: tuple[SubjectAltName, ...] = ()


class BackendTLSPolicySpec(Part, frozen=True):
    target_refs: tuple[PolicyTargetReference, ...]
    validation: BackendTLSPolicyValidation
    options: dict[str, str] | None = None


class PolicyAncestorStatus(Part, frozen=True):
    ancestor_ref: ParentReference
    controller_name: str
    conditions: tuple[Condition, ...] = ()


class PolicyStatus(Part, frozen=True):
    ancestors: tuple[PolicyAncestorStatus, ...] = ()


class BackendTLSPolicy(Object, frozen=True, gc=False, kw_only=True):
    GROUP = GATEWAY_API
    VERSIONS = ("v1alpha3", "v1")
    KIND = "BackendTLSPolicy"
    spec: BackendTLSPolicySpec
    status: PolicyStatus = PolicyStatus()


ROUTE_KINDS: Final[tuple[type[Route], ...]] = (HTTPRoute, GRPCRoute, TLSRoute, TCPRoute, UDPRoute)
GATEWAY_KINDS: Final[tuple[type[Object], ...]] = (
    GatewayApiClass,
    GatewayApiGateway,
    ListenerSet,
    *ROUTE_KINDS,
    ReferenceGrant,
    BackendTLSPolicy,
)
"""What the published definitions bring; none of it needs to be there."""

"""Model → Envoy resources, as bytes that are encoded once, when something changes.

The shape was chosen by measurement at 10,000 hosts:

* **Scoped routes** keyed by ``:authority`` with one small route configuration a host: a change
  costs Envoy about 2 ms; one route configuration a shard costs it 22 ms at 1,250 hosts.
* One **xdstp collection of scopes** a virtual service and port, so a virtual service answers
  its own hosts only.
* **Clusters with inline endpoints**, one a Service port: they are ready at once, so a route
  sent after its cluster never meets a missing one (with EDS there was a window of 503s).
* **Certificates on demand by SNI**: a new TLS host touches no listener.
* Wildcard hosts and "any host" have no scope key of their own: a chain of three small Lua
  filters tries lower case, ``*.rest`` and ``*`` in turn.  Hosts that match at once switch the
  chain off in their route configuration, so it costs them nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2, extension_pb2, proxy_protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, scoped_route_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.transport_sockets.proxy_protocol.v3 import upstream_proxy_protocol_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from msgspec import Struct, structs

from akocore._fast.diff import fingerprint
from akocore.client_limits import ClientLimits
from akocore.engines.envoy.bootstrap import BACKEND_PREFIX, HTTP_OPTIONS
from akocore.engines.envoy.bounds import Bounds, breakers, hop_filter, overflow_log
from akocore.engines.envoy.limits import limit_chain, limit_listener, limit_requests
from akocore.model import HostModel, Route
from akocore.translate.tls import Certificate

__all__ = [
    "ADS",
    "CDS",
    "COLLECTIONS",
    "EDS",
    "FALLBACK",
    "FALLBACK_OFF",
    "LDS",
    "LONGEST_AUTHORITY",
    "SDS",
    "SRDS",
    "Encoded",
    "any_cluster",
    "balance",
    "cluster",
    "cluster_name",
    "collection",
    "connection_manager",
    "elsewhere",
    "encoded",
    "fill",
    "floor_scope",
    "http_options",
    "listener",
    "lower_case_filter",
    "packed",
    "plain_sni",
    "redirect_scope",
    "scope",
    "scope_name",
    "secret",
    "tell_clients",
    "udp_cluster",
    "udp_endpoints",
    "unseen_retry",
]

_T = "type.googleapis.com/"
CDS: Final = f"{_T}envoy.config.cluster.v3.Cluster"
LDS: Final = f"{_T}envoy.config.listener.v3.Listener"
EDS: Final = f"{_T}envoy.config.endpoint.v3.ClusterLoadAssignment"
SRDS: Final = f"{_T}envoy.config.route.v3.ScopedRouteConfiguration"
SDS: Final = f"{_T}envoy.extensions.transport_sockets.tls.v3.Secret"

COLLECTIONS: Final = "xdstp://akocore/envoy.config.route.v3.ScopedRouteConfiguration/"
FALLBACK: Final = "akocore.fallback"  # the filters' shared name, so that one entry switches all off
_IDLE_S: Final = 4  # that a connection to an endpoint is kept though nobody needs it

_SHORT: Final = tuple(bytes((n,)) for n in range(128))


class Encoded(Struct, frozen=True, gc=False):
    """One resource.  ``frame``: its bytes as a field of a DeltaDiscoveryResponse."""

    type_url: str
    name: str
    frame: bytes
    collection: str = ""  # of a scope: the collection that it belongs to
    collections: tuple[str, ...] = ()  # of a listener: those that it asks for

    @property
    def version(self) -> str:
        """The resource's version, 32 digits: it is in the frame, after a tag and two lengths."""
        at = 1
        while self.frame[at] & 128:
            at += 1
        return self.frame[at + 3 : at + 35].decode()

    @property
    def fingerprint(self) -> bytes:
        """16 bytes: the version's digits."""
        return bytes.fromhex(self.version)


def _varint(n: int) -> bytes:
    if n < 128:
        return _SHORT[n]
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


@cache
def _any_head(type_url: str) -> bytes:
    """What an Any of this type begins with: its type, and the tag of its value."""
    return b"\x0a" + _varint(len(type_url)) + type_url.encode() + b"\x12"


def encoded(
    type_url: str,
    name: str,
    message: Message,
    collection: str = "",
    collections: tuple[str, ...] = (),
    common: bytes = b"",
) -> Encoded:
    """A message as it is sent; its version is its fingerprint.

    ``common``: what it has besides, encoded: messages that follow each other are one.
    """
    value = common + message.SerializeToString(deterministic=True)
    # discovery.v3.Resource (version 1, resource 2, name 3) as field 2 of the response, by hand:
    # the value is in place already, and 10,000 of these are a fifth of a start.
    head, size = _any_head(type_url), _varint(len(value))
    own = name.encode()
    body = (
        b"\x0a\x20",
        fingerprint(value).hex().encode(),
        b"\x12",
        _varint(len(head) + len(size) + len(value)),
        head,
        size,
        value,
        b"\x1a",
        _varint(len(own)),
        own,
    )
    frame = b"".join(body)
    frame = b"\x12" + _varint(len(frame)) + frame
    return Encoded(type_url, name, frame, collection, collections)


def _within(message: Message, field: str, value: bytes) -> bytes:
    """An encoded message as this field of another: to be put before or after that one's bytes."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def packed(message: Message) -> any_pb2.Any:
    out = any_pb2.Any()
    out.Pack(message)
    return out


ADS: Final = config_source_pb2.ConfigSource(
    ads=config_source_pb2.AggregatedConfigSource(),
    resource_api_version=config_source_pb2.ApiVersion.V3,
)
FALLBACK_OFF: Final = packed(route_components_pb2.FilterConfig(disabled=True))


# ── clusters: Service ports ─────────────────────────────────────────────────────────────────


_TABLE: Final = 4093  # of a sticky cluster: a prime, and even to some 1 % with 40 endpoints


_MANY: Final = 500  # endpoints, routes: more are encoded one by one, and kept so


def cluster_name(backend: str) -> str:
    return BACKEND_PREFIX + backend


def http_options(*, http2: bool = False) -> http_protocol_options_pb2.HttpProtocolOptions:
    """How endpoints are spoken to: for `HTTP_OPTIONS` of a cluster."""
    out = http_protocol_options_pb2.HttpProtocolOptions()
    out.common_http_protocol_options.idle_timeout.seconds = _IDLE_S
    if http2:
        out.explicit_http_config.http2_protocol_options.SetInParent()
    else:
        out.explicit_http_config.http_protocol_options.SetInParent()
    return out


@lru_cache
def any_cluster(bounds: Bounds) -> bytes:
    """What all clusters have in common, encoded.

    An endpoint that doesn't answer twice in a row, as on a node that has lost its power, is left
    out for some seconds: the cluster's own API needs 40 s to notice.  What it answers never
    counts; when none is left, all are asked.  A connection that nobody needs is closed before an
    endpoint of the common kind closes it (Node.js, Apache: 5 s), which a request could meet; and
    one whose endpoint is silent by now is not taken for another request.
    """
    out = cluster_pb2.Cluster(type=cluster_pb2.Cluster.STATIC)
    out.connect_timeout.seconds = 2
    out.per_connection_buffer_limit_bytes.value = ClientLimits().buffer_kib << 10
    out.circuit_breakers.CopyFrom(breakers(bounds.connections))
    silent = out.outlier_detection
    silent.split_external_local_origin_errors = True
    silent.consecutive_local_origin_failure.value = 2
    for unused in ("consecutive_5xx", "success_rate", "local_origin_success_rate"):
        getattr(silent, f"enforcing_{unused}").value = 0
    silent.interval.seconds = silent.base_ejection_time.seconds = 10
    silent.max_ejection_time.seconds = 30
    silent.max_ejection_percent.value = 100
    out.common_lb_config.healthy_panic_threshold.value = 1
    out.common_lb_config.update_merge_window.SetInParent()  # 0: none being left is seen at once
    out.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(packed(http_options()))
    common: bytes = out.SerializeToString(deterministic=True)
    return common


def cluster(
    backend: str,
    endpoints: Iterable[tuple[str, int]],
    *,
    sticky: bool = False,
    proxy: str = "",
    bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
) -> Encoded:
    """The cluster of one Service port.  ``endpoints``: (address, port); none is a served 503.

    ``sticky``: who asks with a hash gets the same endpoint again; who asks without, any.
    ``proxy``: as of `tell_clients`.
    """
    name = cluster_name(backend)
    out = cluster_pb2.Cluster(name=name)
    balance(out, sticky)
    tell_clients(out, proxy)
    common, known = any_cluster(bounds), list(endpoints)
    if len(known) > _MANY:
        fill(out, ())
        del out.load_assignment.endpoints[:]
        members = b"".join([_member(*one) for one in known])
        common += _within(
            out, "load_assignment", _within(out.load_assignment, "endpoints", members)
        )
    else:
        fill(out, known)
    return encoded(CDS, name, out, common=common)


def udp_cluster(
    backend: str,
    *,
    sticky: bool = False,
    bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
) -> Encoded:
    """The cluster of one UDP port, whose endpoints come by themselves (`udp_endpoints`).

    A cluster that is another one ends all sessions; endpoints that come or go end their own.  A
    session has a port of the machine, of which UDP has one set for all, so there are few.
    """
    name = cluster_name(backend)
    out = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS)
    out.eds_cluster_config.eds_config.CopyFrom(ADS)
    balance(out, sticky)
    few = structs.replace(bounds, connections=min(bounds.sessions, bounds.connections))
    return encoded(CDS, name, out, common=any_cluster(few))


def udp_endpoints(backend: str, members: Iterable[tuple[str, int]]) -> Encoded:
    """The endpoints, (address, port), of a `udp_cluster`."""
    name = cluster_name(backend)
    out = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    _fill(out, members)
    return encoded(EDS, name, out)


def balance(out: cluster_pb2.Cluster, sticky: bool) -> None:
    if sticky:
        out.lb_policy = cluster_pb2.Cluster.MAGLEV
        out.maglev_lb_config.table_size.value = _TABLE


def tell_clients(out: cluster_pb2.Cluster, version: str) -> None:
    """Begin each connection with who its client is, by the PROXY protocol: "v1", "v2"; "": don't.

    https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
    """
    if not version:
        return
    config = upstream_proxy_protocol_pb2.ProxyProtocolUpstreamTransport()
    config.config.version = proxy_protocol_pb2.ProxyProtocolConfig.Version.Value(version.upper())
    inner = config.transport_socket
    if out.HasField("transport_socket"):
        inner.CopyFrom(out.transport_socket)
    else:
        inner.name = "envoy.transport_sockets.raw_buffer"
        inner.typed_config.Pack(raw_buffer_pb2.RawBuffer())
    out.transport_socket.name = "envoy.transport_sockets.upstream_proxy_protocol"
    out.transport_socket.typed_config.Pack(config)


def fill(out: cluster_pb2.Cluster, endpoints: Iterable[tuple[str, int]]) -> None:
    out.load_assignment.cluster_name = "-"  # must be something; nobody looks at it
    _fill(out.load_assignment, endpoints)


@lru_cache(200_000)
def _member(address: str, port: int) -> bytes:
    """An endpoint, encoded as one of many: when one of these changes, the others are at hand."""
    one = endpoint_components_pb2.LocalityLbEndpoints()
    socket = one.lb_endpoints.add().endpoint.address.socket_address
    socket.address = address
    socket.port_value = port
    encoded_: bytes = one.SerializeToString(deterministic=True)
    return encoded_


def _fill(out: endpoint_pb2.ClusterLoadAssignment, endpoints: Iterable[tuple[str, int]]) -> None:
    members = out.endpoints.add()
    known = list(endpoints)
    if len(known) > _MANY:
        members.MergeFromString(b"".join([_member(*one) for one in known]))
        return
    for address, port in known:
        socket = members.lb_endpoints.add().endpoint.address.socket_address
        socket.address = address
        socket.port_value = port


# ── scopes: hosts ───────────────────────────────────────────────────────────────────────────


@lru_cache(1024)
def collection(vs: str, port: int) -> str:
    """The collection of the scopes of one virtual service and port."""
    return f"{COLLECTIONS}{vs.replace('*', '_')}/{port}/*"


def scope_name(vs: str, port: int, host: str) -> str:
    return f"{collection(vs, port)[:-1]}{host.replace('*', '_') or '_'}"


_CHALLENGE = "/.well-known/acme-challenge/"


def _scope(
    vs: str, port: int, host: str
) -> tuple[scoped_route_pb2.ScopedRouteConfiguration, route_components_pb2.VirtualHost]:
    name = scope_name(vs, port, host)
    out = scoped_route_pb2.ScopedRouteConfiguration(name=name)
    out.key.fragments.add().string_key = host or "*"
    config = out.route_configuration
    config.name = host or "*"  # the scope says the rest
    # One whose cluster is refused, or comes later as another was, takes no host with it: a 503.
    config.validate_clusters.value = False
    if host and not host.startswith("*"):
        config.typed_per_filter_config[FALLBACK].CopyFrom(FALLBACK_OFF)
    virtual_host = config.virtual_hosts.add()
    virtual_host.name = host or "*"
    virtual_host.domains.append("*")
    return out, virtual_host


@cache
def unseen_retry() -> route_components_pb2.RetryPolicy:
    """What no backend has seen may be tried again elsewhere."""
    out = route_components_pb2.RetryPolicy(
        retry_on="connect-failure,refused-stream,reset-before-request"
    )
    out.num_retries.value = 2
    elsewhere(out)
    return out


def elsewhere(policy: route_components_pb2.RetryPolicy) -> None:
    """Try again at endpoints that have not been tried."""
    others = policy.retry_host_predicate.add(name="envoy.retry_host_predicates.previous_hosts")
    others.typed_config.Pack(previous_hosts_pb2.PreviousHostsPredicate())
    policy.host_selection_retry_max_attempts = 3


def scope(vs: str, port: int, model: HostModel) -> Encoded:
    """A host's routes on one virtual service and port."""
    out, virtual_host = _scope(vs, port, model.host)
    virtual_host.retry_policy.CopyFrom(unseen_retry())
    routes, common = virtual_host.routes, b""
    many = len(model.routes) > _MANY
    if not many:
        for route in model.routes:
            _fill_route(routes.add(), route)
    if not any(not route.exact and not route.path for route in model.routes):
        rest = routes.add()
        rest.name = "not-found"
        rest.match.prefix = "/"
        rest.direct_response.status = 404
    if many:
        first = b"".join([_one_of_many(route) for route in model.routes])
        hosts = _within(
            out.route_configuration, "virtual_hosts", first + virtual_host.SerializeToString()
        )
        common = _within(out, "route_configuration", hosts)
        del out.route_configuration.virtual_hosts[:]
    return encoded(SRDS, out.name, out, collection(vs, port), common=common)


@lru_cache(20_000)
def _one_of_many(route: Route) -> bytes:
    """A route, encoded as one of many of a virtual host: most stay when one of them changes."""
    holder = route_components_pb2.VirtualHost()
    _fill_route(holder.routes.add(), route)
    encoded_: bytes = holder.SerializeToString(deterministic=True)
    return encoded_


def _fill_route(one: route_components_pb2.Route, route: Route) -> None:
    one.name = route.pool.name
    if route.exact:
        one.match.path = route.path
    elif route.path:
        one.match.path_separated_prefix = route.path
    else:
        one.match.prefix = "/"
    if route.pool.backend is None or route.answer:
        one.direct_response.status = route.answer or 503
    else:
        one.route.cluster = cluster_name(route.pool.backend)
        one.route.timeout.seconds = 0


def redirect_scope(vs: str, port: int, model: HostModel, to_port: int) -> Encoded:
    """http → https (302, as AKO does) of a TLS host on a port without TLS.

    Not of challenges of ACME (RFC 8555, 8.3): they are how the host comes to a certificate.
    """
    out, virtual_host = _scope(vs, port, model.host)
    for answer in model.routes:
        if answer.path.startswith(_CHALLENGE):
            _fill_route(virtual_host.routes.add(), answer)
    route = virtual_host.routes.add()
    route.name = "https-redirect"
    route.match.prefix = "/"
    route.redirect.https_redirect = True
    route.redirect.response_code = route_components_pb2.RedirectAction.FOUND
    if to_port != 443:
        route.redirect.port_redirect = to_port
    return encoded(SRDS, out.name, out, collection(vs, port))


def floor_scope(vs: str, port: int) -> Encoded:
    """A scope that no request has, so that no collection is ever empty.

    Envoy holds a listener back for 15 s while a collection that it asked for stays empty.
    """
    out, virtual_host = _scope(vs, port, "akocore.invalid")
    route = virtual_host.routes.add()
    route.match.prefix = "/"
    route.direct_response.status = 404
    return encoded(SRDS, out.name, out, collection(vs, port))


# ── listeners: VIP and port ─────────────────────────────────────────────────────────────────

LONGEST_AUTHORITY: Final = 253 + len(".:65535")
"""No host is longer: a longer one is nobody's, and not looked for."""

# ``metadata()`` makes Envoy choose the route again, with the scope of the host as it is then;
# it does so once in each filter, hence three.  The host itself goes on unchanged.
_TRY = """
function envoy_on_request(handle)
  if handle:streamInfo():routeName() ~= "" then return end
  local headers = handle:headers()
  local asked = headers:get(":authority") or ""
  if #asked > {longest} then return end
  local host = asked:lower():gsub(":%d+$", ""):gsub("%.$", "")
  local key = {key}
  if key == nil or key == asked then return end
  headers:replace(":authority", key)
  handle:clearRouteCache()
  local _ = handle:metadata():get("akocore")
  headers:replace(":authority", asked)
end
"""
_KEYS = ("host", 'host:find(".", 1, true) and "*" .. host:sub((host:find(".", 1, true)))', '"*"')


def _try(key: str) -> hcm_pb2.HttpFilter:
    out = hcm_pb2.HttpFilter(name=FALLBACK)
    lua = lua_pb2.Lua()
    text = _TRY.replace("{key}", key).replace("{longest}", str(LONGEST_AUTHORITY))
    lua.default_source_code.inline_string = text
    lua.clear_route_cache.value = False
    out.typed_config.Pack(lua)
    return out


@cache
def lower_case_filter() -> hcm_pb2.HttpFilter:
    """Tries the host as DNS means it: lower case, no port, no dot at the end."""
    return _try(_KEYS[0])


@lru_cache
def _filters(bounds: Bounds) -> tuple[hcm_pb2.HttpFilter, ...]:
    out = [hop_filter(bounds), *(_try(key) for key in _KEYS)]
    router = hcm_pb2.HttpFilter(name="envoy.filters.http.router")
    router.typed_config.Pack(router_pb2.Router(suppress_envoy_headers=True))
    return (*out, router)


def connection_manager(
    vs: str,
    name: str,
    scopes: str,
    filters: Iterable[hcm_pb2.HttpFilter],
    limits: ClientLimits,
) -> hcm_pb2.HttpConnectionManager:
    """HTTP by the hosts of a collection of scopes.  ``name``: of their routes as one."""
    out = hcm_pb2.HttpConnectionManager(stat_prefix=vs, codec_type=0)
    scoped = out.scoped_routes
    scoped.name = name
    key = scoped.scope_key_builder.fragments.add().header_value_extractor
    key.name, key.element_separator, key.index = ":authority", ":", 0
    scoped.rds_config_source.CopyFrom(ADS)
    scoped.scoped_rds.scoped_rds_config_source.CopyFrom(ADS)
    scoped.scoped_rds.srds_resources_locator = scopes
    out.http_filters.extend(filters)
    out.access_log.append(overflow_log())
    out.use_remote_address.value = True
    out.normalize_path.value = True
    out.strip_trailing_host_dot = True
    out.server_header_transformation = hcm_pb2.HttpConnectionManager.PASS_THROUGH
    out.http_protocol_options.accept_http_10 = True
    out.drain_timeout.seconds = 1
    out.upgrade_configs.add().upgrade_type = "websocket"
    limit_requests(out, limits)
    return out


@cache
def _on_demand_messages() -> tuple[type[Message], type[Message]]:
    """Envoy's certificate selector and SNI mapper, which the published protobufs still lack.

    Fields as in Envoy 1.40's own descriptors of
    ``envoy.extensions.transport_sockets.tls.cert_selectors.on_demand_secret.v3.Config`` and
    ``...cert_mappers.sni.v3.SNI``.
    """
    pool = descriptor_pool.Default()
    field = descriptor_pb2.FieldDescriptorProto
    base = "envoy.extensions.transport_sockets.tls"

    def define(package: str, message: str, *fields: tuple[str, int, str]) -> type[Message]:
        file = descriptor_pb2.FileDescriptorProto(
            name=f"akocore/{package}.proto",
            package=package,
            syntax="proto3",
            dependency=[
                "envoy/config/core/v3/config_source.proto",
                "envoy/config/core/v3/extension.proto",
            ],
        )
        proto = file.message_type.add(name=message)
        for name, number, type_name in fields:
            proto.field.add(
                name=name,
                number=number,
                label=field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if type_name else field.TYPE_STRING,
                type_name=type_name or None,
            )
        pool.Add(file)
        found = pool.FindMessageTypeByName(f"{package}.{message}")
        return message_factory.GetMessageClass(found)

    core = ".envoy.config.core.v3"
    config = define(
        f"{base}.cert_selectors.on_demand_secret.v3",
        "Config",
        ("config_source", 1, f"{core}.ConfigSource"),
        ("certificate_mapper", 2, f"{core}.TypedExtensionConfig"),
    )
    return config, define(f"{base}.cert_mappers.sni.v3", "SNI", ("default_value", 1, ""))


NO_SNI: Final = "*"
"""The certificate that a client without SNI is asked for."""


def plain_sni(sni: str) -> str:
    """The host that a client means: Envoy asks for the name as the client spells it."""
    return sni.lower().rstrip(".")


@cache
def _tls_socket(http2: bool) -> any_pb2.Any:
    """Certificates are fetched by SNI at a host's first handshake and kept up to date."""
    config, sni = _on_demand_messages()
    mapper = extension_pb2.TypedExtensionConfig(
        name="sni", typed_config=packed(sni(default_value=NO_SNI))
    )
    out = tls_pb2.DownstreamTlsContext(
        disable_stateless_session_resumption=True, disable_stateful_session_resumption=True
    )
    common = out.common_tls_context
    common.alpn_protocols.extend(["h2", "http/1.1"] if http2 else ["http/1.1"])
    selector = common.custom_tls_certificate_selector
    selector.name = "on-demand"
    selector.typed_config.CopyFrom(packed(config(config_source=ADS, certificate_mapper=mapper)))
    return packed(out)


def listener(
    vs: str,
    address: str,
    port: int,
    *,
    tls: bool,
    http2: bool,
    port_offset: int = 0,
    freebind: bool = False,
    limits: ClientLimits = ClientLimits(),  # noqa: B008
    bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
) -> Encoded:
    """One port of a virtual service on one address.  Nothing in it depends on the hosts.

    ``freebind``: it listens before the address is there.
    """
    name = f"{vs}/{address}:{port}"
    out = listener_pb2.Listener(name=name)
    out.address.socket_address.address = address
    out.address.socket_address.port_value = port + port_offset
    if freebind:
        out.freebind.value = True
    limit_listener(out, limits)
    chain = out.filter_chains.add()
    limit_chain(chain, vs, limits)
    one = chain.filters.add()
    one.name = "envoy.filters.network.http_connection_manager"
    manager = connection_manager(vs, f"{vs}/{port}", collection(vs, port), _filters(bounds), limits)
    if not http2:
        manager.codec_type = hcm_pb2.HttpConnectionManager.HTTP1
    one.typed_config.Pack(manager)
    if tls:
        chain.transport_socket.name = "envoy.transport_sockets.tls"
        chain.transport_socket.typed_config.CopyFrom(_tls_socket(http2))
    return encoded(LDS, name, out, collections=(collection(vs, port),))


def secret(name: str, certificate: Certificate) -> Encoded:
    out = secret_pb2.Secret(name=name)
    out.tls_certificate.certificate_chain.inline_bytes = certificate.chain
    out.tls_certificate.private_key.inline_bytes = certificate.key
    return encoded(SDS, name, out)

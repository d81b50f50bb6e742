"""Gateways → Envoy: a listener a port, in it a chain a kind of connection, and hosts by scopes.

A listener depends on its chains alone: hosts and rules of a chain are scopes of its collection,
and every filter that a rule may need is there from the start and does nothing until a route says
so.  A chain that comes, goes or changes leaves connections of the others as they are: Envoy
updates a listener in place when nothing but its chains differs.

**Wildcards.**  A host to the letter is found by its scope at once, and its route configuration
switches all that follows off.  For any other, `gateway_floor` has the names of the chain's
wildcards as metadata: a Lua filter takes one label after the other off the host that was asked
for until it finds one there, which is the longest, and has the route chosen anew by that scope.
Cost: a look-up a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Final

from envoy.config.core.v3 import address_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, scoped_route_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.http.stateful_session.v3 import stateful_session_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.filters.udp.udp_proxy.v3 import route_pb2, udp_proxy_pb2
from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2
from envoy.extensions.matching.input_matchers.runtime_fraction.v3 import runtime_fraction_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import any_pb2
from xds.type.matcher.v3 import matcher_pb2

from akocore.client_limits import ClientLimits
from akocore.engines.envoy.bounds import Bounds, hop_filter, overflow_log
from akocore.engines.envoy.gateway_cluster import (
    NOWHERE,
    gateway_cluster,
    gateway_cluster_name,
    secret_name,
)
from akocore.engines.envoy.http_rule import (
    AUTH,
    SESSION,
    At,
    backends_of,
    routes,
)
from akocore.engines.envoy.l4 import l4_name
from akocore.engines.envoy.limits import limit_chain, limit_listener, seconds
from akocore.engines.envoy.resources import (
    ADS,
    COLLECTIONS,
    FALLBACK,
    FALLBACK_OFF,
    LDS,
    LONGEST_AUTHORITY,
    SRDS,
    Encoded,
    connection_manager,
    encoded,
    lower_case_filter,
    packed,
    unseen_retry,
)
from akocore.model_http import Backend, Chain, ChainTls, HttpHost

__all__ = [
    "backends_of",
    "chain_collection",
    "gateway_cluster",
    "gateway_cluster_name",
    "gateway_floor",
    "gateway_listener",
    "gateway_listener_name",
    "gateway_udp",
    "http_scope",
    "http_scope_name",
    "secret_name",
]

_NOBODY: Final = "akocore.invalid"  # the key of the scope that no request has
_ATTEMPTS: Final = 3
_MILLION: Final = 1_000_000


# ── scopes: hosts of a chain ────────────────────────────────────────────────────────────────


def _plain(text: str) -> str:
    return text.replace("*", "_")


def chain_collection(vs: str, port: int, chain: str) -> str:
    """The collection of the scopes of one chain of a port."""
    return f"{COLLECTIONS}{_plain(vs)}/{port}/{_plain(chain)}/*"


def http_scope_name(vs: str, port: int, chain: str, host: str) -> str:
    return f"{chain_collection(vs, port, chain)[:-1]}{_plain(host) or '_'}"


def _scope(
    vs: str, port: int, chain: str, host: str
) -> tuple[scoped_route_pb2.ScopedRouteConfiguration, route_components_pb2.VirtualHost]:
    name = http_scope_name(vs, port, chain, host)
    out = scoped_route_pb2.ScopedRouteConfiguration()
    out.CopyFrom(_any_scope(bool(host) and not host.startswith("*")))
    out.name = name
    out.key.fragments.add().string_key = host or "*"
    config = out.route_configuration
    config.name = name
    virtual_host = config.virtual_hosts.add(name=host or "*")
    virtual_host.domains.append("*")
    return out, virtual_host


@cache
def _any_scope(exact: bool) -> scoped_route_pb2.ScopedRouteConfiguration:
    """What all scopes of hosts to the letter, or of all others, have in common."""
    out = scoped_route_pb2.ScopedRouteConfiguration()
    config = out.route_configuration
    config.validate_clusters.value = False
    # Not "disabled" as such: who is found by the fallback has all filters by then.
    off = packed(ext_authz_pb2.ExtAuthzPerRoute(disabled=True))
    config.typed_per_filter_config[AUTH].CopyFrom(off)
    if exact:
        for name in (FALLBACK, SESSION):
            config.typed_per_filter_config[name].CopyFrom(FALLBACK_OFF)
    return out


def http_scope(
    vs: str,
    port: int,
    chain: str,
    host: HttpHost,
    *,
    tls: bool = False,
    port_offset: int = 0,
    limits: ClientLimits = ClientLimits(),  # noqa: B008
) -> Encoded:
    """What a host serves in one chain of a port.

    ``tls``: clients come to it over TLS; ``limits``: those of its listener.
    """
    out, virtual_host = _scope(vs, port, chain, host.host)
    virtual_host.retry_policy.CopyFrom(unseen_retry())
    exact = "" if host.host.startswith("*") else host.host
    at = At(exact, port, tls, port_offset, limits.stream_idle_seconds)
    for rule in host.rules:
        virtual_host.routes.extend(routes(rule, at))
    _not_found(virtual_host)
    return encoded(SRDS, out.name, out, chain_collection(vs, port, chain))


def _not_found(virtual_host: route_components_pb2.VirtualHost) -> route_components_pb2.Route:
    rest = virtual_host.routes.add(name="not-found")
    rest.match.prefix = "/"
    rest.direct_response.status = 404
    return rest


def gateway_floor(vs: str, port: int, chain: str, hosts: Iterable[str]) -> Encoded:
    """The scope that every chain has: which wildcards there are.

    ``hosts``: all of the chain; of them "*.example.test" and "" (any other) count.  Without the
    floor Envoy holds the listener back for 15 s.
    """
    out, virtual_host = _scope(vs, port, chain, _NOBODY)
    del out.route_configuration.typed_per_filter_config[FALLBACK]
    rest = _not_found(virtual_host)
    index = rest.metadata.filter_metadata[FALLBACK]
    for host in sorted(set(hosts)):
        if not host or host.startswith("*."):
            index.fields[host[2:] or "*"].bool_value = True
    return encoded(SRDS, out.name, out, chain_collection(vs, port, chain))


# ``metadata()`` makes Envoy choose the route again, once in each filter.  The first takes the
# scope that is the index, and finds there which one the second is to take.
_FIND = """
function envoy_on_request(handle)
  local info = handle:streamInfo()
  if info:routeName() ~= "" then return end
  local headers = handle:headers()
  local asked = headers:get(":authority") or ""
  if #asked > {longest} then return end
  local rest = asked:lower():gsub(":%d+$", ""):gsub("%.$", "")
  headers:replace(":authority", "{nobody}")
  handle:clearRouteCache()
  local index = handle:metadata()
  headers:replace(":authority", asked)
  local key = index:get("*") and "*" or "{nobody}"
  local dot = rest:find(".", 1, true)
  while dot do
    rest = rest:sub(dot + 1)
    if index:get(rest) then
      key = "*." .. rest
      break
    end
    dot = rest:find(".", 1, true)
  end
  if key ~= "{nobody}" then
    info:dynamicMetadata():set("{fallback}", "key", key .. (asked:match(":%d+$") or ""))
  end
end
"""
_TAKE = """
function envoy_on_request(handle)
  local found = handle:streamInfo():dynamicMetadata():get("{fallback}")
  if found == nil then return end
  local headers = handle:headers()
  local asked = headers:get(":authority") or ""
  headers:replace(":authority", found["key"])
  handle:clearRouteCache()
  local _ = handle:metadata():get("akocore")
  headers:replace(":authority", asked)
end
"""


@lru_cache
def _filters(bounds: Bounds) -> tuple[hcm_pb2.HttpFilter, ...]:
    out = [hop_filter(bounds), lower_case_filter()]
    for source in (_FIND, _TAKE):
        lua = lua_pb2.Lua()
        text = source.replace("{nobody}", _NOBODY).replace("{fallback}", FALLBACK)
        text = text.replace("{longest}", str(LONGEST_AUTHORITY))
        lua.default_source_code.inline_string = text
        lua.clear_route_cache.value = False
        out.append(_filter(FALLBACK, packed(lua)))
    auth = ext_authz_pb2.ExtAuthz(transport_api_version=2)  # V3
    auth.grpc_service.envoy_grpc.cluster_name = NOWHERE
    auth.with_request_body.max_request_bytes = 1  # routes say how many, but not that:
    auth.with_request_body.pack_as_bytes = True
    # An authorizer changes neither the length of a request nor how often it came by.
    kept = auth.decoder_header_mutation_rules.disallow_expression
    kept.regex = "(?i)cdn-loop|content-length|transfer-encoding"
    out.append(_filter(AUTH, packed(auth)))
    out.append(_filter(SESSION, packed(stateful_session_pb2.StatefulSession())))
    out.append(
        _filter("envoy.filters.http.router", packed(router_pb2.Router(suppress_envoy_headers=True)))
    )
    return tuple(out)


def _filter(name: str, config: any_pb2.Any) -> hcm_pb2.HttpFilter:
    return hcm_pb2.HttpFilter(name=name, typed_config=config)


# ── listeners ───────────────────────────────────────────────────────────────────────────────


def gateway_listener_name(vs: str, address: str, port: int) -> str:
    return f"{vs}/{address}:{port}"


def gateway_listener(
    vs: str,
    address: str,
    port: int,
    chains: Sequence[Chain],
    port_offset: int = 0,
    *,
    freebind: bool = False,
    limits: ClientLimits = ClientLimits(),  # noqa: B008
    bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
) -> Encoded:
    """One TCP port of a Gateway on one address.

    ``freebind``: as of `akocore.engines.envoy.resources.listener`.  Chains must differ in their
    server names.  Raises `ValueError` without a chain.
    """
    if not chains:
        raise ValueError(f"no chain at port {port} of {vs}")
    name = gateway_listener_name(vs, address, port)
    out = listener_pb2.Listener(name=name)
    out.address.socket_address.address = address
    out.address.socket_address.port_value = port + port_offset
    if freebind:
        out.freebind.value = True
    if any(chain.tls is not None or chain.passthrough for chain in chains):
        sni = out.listener_filters.add(name="envoy.filters.listener.tls_inspector")
        sni.typed_config.Pack(tls_inspector_pb2.TlsInspector())
    limit_listener(out, limits)
    for chain in sorted(chains, key=lambda one: one.name):
        _chain(out.filter_chains.add(name=chain.name), vs, port, chain, limits, bounds)
    asked = tuple(chain_collection(vs, port, c.name) for c in chains if c.tcp is None)
    return encoded(LDS, name, out, collections=tuple(sorted(asked)))


def _chain(
    out: listener_components_pb2.FilterChain,
    vs: str,
    port: int,
    chain: Chain,
    limits: ClientLimits,
    bounds: Bounds,
) -> None:
    limit_chain(out, vs, limits)
    out.filter_chain_match.server_names.extend(sorted(set(chain.server_names)))
    if chain.tls is not None or chain.passthrough:
        out.filter_chain_match.transport_protocol = "tls"
    if chain.tls is not None:
        out.transport_socket.name = "envoy.transport_sockets.tls"
        out.transport_socket.typed_config.CopyFrom(_tls(chain.tls, chain.tcp is None))
    if chain.tcp is not None:
        tcp = out.filters.add(name="envoy.filters.network.tcp_proxy")
        tcp.typed_config.Pack(_tcp(vs, chain.tcp, limits))
        return
    http = out.filters.add(name="envoy.filters.network.http_connection_manager")
    scopes = chain_collection(vs, port, chain.name)
    name = f"{vs}/{port}/{chain.name}"
    http.typed_config.Pack(connection_manager(vs, name, scopes, _filters(bounds), limits))


def _tls(tls: ChainTls, http: bool) -> any_pb2.Any:
    out = tls_pb2.DownstreamTlsContext()
    common = out.common_tls_context
    if http:
        common.alpn_protocols.extend(["h2", "http/1.1"])
    for key in tls.secrets:
        one = common.tls_certificate_sds_secret_configs.add(name=secret_name(key))
        one.sds_config.CopyFrom(ADS)
    if tls.clients is not None:
        validation = common.validation_context
        validation.trusted_ca.inline_string = tls.clients.authorities
        out.require_client_certificate.value = tls.clients.required
        if not tls.clients.required:
            validation.trust_chain_verification = (
                common_pb2.CertificateValidationContext.ACCEPT_UNTRUSTED
            )
    return packed(out)


def _tcp(vs: str, backends: Sequence[Backend], limits: ClientLimits) -> tcp_proxy_pb2.TcpProxy:
    out = tcp_proxy_pb2.TcpProxy(stat_prefix=vs)
    out.idle_timeout.CopyFrom(seconds(limits.tcp_idle_seconds))
    out.access_log.append(overflow_log())
    out.max_connect_attempts.value = _ATTEMPTS
    out.hash_policy.add().source_ip.SetInParent()  # a Service's session affinity
    shares = [one for one in backends if one.weight > 0]
    if len(shares) < 2:
        out.cluster = gateway_cluster_name(shares[0]) if shares else NOWHERE
    else:
        for one in shares:
            out.weighted_clusters.clusters.add(name=gateway_cluster_name(one), weight=one.weight)
    return out


def gateway_udp(
    vs: str,
    address: str,
    port: int,
    backends: Sequence[Backend],
    port_offset: int = 0,
    *,
    freebind: bool = False,
) -> Encoded:
    """One UDP port of a Gateway.  A session, by its client's address and port, has one backend."""
    name = l4_name(vs, address, "UDP", port)
    out = listener_pb2.Listener(name=name)
    socket = out.address.socket_address
    socket.address, socket.port_value = address, port + port_offset
    socket.protocol = address_pb2.SocketAddress.UDP
    if freebind:
        out.freebind.value = True
    out.udp_listener_config.SetInParent()
    config = udp_proxy_pb2.UdpProxyConfig(stat_prefix=vs)
    config.hash_policies.add(source_ip=True)
    shares = [one for one in backends if one.weight > 0]
    left = sum(one.weight for one in shares)
    for one in shares[:-1]:
        choice = config.matcher.matcher_list.matchers.add()
        single = choice.predicate.single_predicate
        single.input.name = "source-port"
        single.input.typed_config.Pack(network_inputs_pb2.SourcePortInput())
        fraction = runtime_fraction_pb2.RuntimeFraction(seed=left)
        fraction.runtime_fraction.default_value.numerator = round(one.weight * _MILLION / left)
        fraction.runtime_fraction.default_value.denominator = percent_pb2.FractionalPercent.MILLION
        single.custom_match.name = "share"
        single.custom_match.typed_config.Pack(fraction)
        _udp_route(choice.on_match, one)
        left -= one.weight
    if shares:
        _udp_route(config.matcher.on_no_match, shares[-1])
    proxy = out.listener_filters.add(name="envoy.filters.udp_listener.udp_proxy")
    proxy.typed_config.Pack(config)
    return encoded(LDS, name, out)


def _udp_route(out: matcher_pb2.Matcher.OnMatch, backend: Backend) -> None:
    out.action.name = "route"
    out.action.typed_config.Pack(route_pb2.Route(cluster=gateway_cluster_name(backend)))

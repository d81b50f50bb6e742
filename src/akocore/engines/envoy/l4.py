"""A listener of L4 → an Envoy listener: TCP and UDP proxies, one a VIP, port and protocol.

What a listener leads to is the cluster of a Service port, the very one that an Ingress uses.
Who may not come has no filter chain (TCP: accepted and closed at once) or no route (UDP: dropped).
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

from envoy.config.core.v3 import address_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.filters.udp.udp_proxy.v3 import route_pb2, udp_proxy_pb2
from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2
from google.protobuf.message import Message
from xds.core.v3 import cidr_pb2
from xds.type.matcher.v3 import ip_pb2, matcher_pb2

from akocore.client_limits import ClientLimits
from akocore.engines.envoy.bounds import overflow_log
from akocore.engines.envoy.limits import limit_chain, limit_listener, seconds
from akocore.engines.envoy.resources import LDS, Encoded, cluster_name, encoded
from akocore.model import L4Pool

__all__ = ["l4_listener", "l4_name"]

_ATTEMPTS: Final = 3  # endpoints that are tried before a client is turned away


def l4_name(vs: str, address: str, protocol: str, port: int) -> str:
    return f"{vs}/{address}:{port}/{protocol}"


def l4_listener(
    vs: str,
    address: str,
    protocol: str,
    port: int,
    pool: L4Pool,
    port_offset: int = 0,
    *,
    freebind: bool = False,
    limits: ClientLimits = ClientLimits(),  # noqa: B008
) -> Encoded:
    """One port of a virtual service of L4 on one address; ``freebind`` as of `listener`."""
    name = l4_name(vs, address, protocol, port)
    out = listener_pb2.Listener(name=name)
    socket = out.address.socket_address
    socket.address, socket.port_value = address, port + port_offset
    if freebind:
        out.freebind.value = True
    if protocol == "UDP":
        socket.protocol = address_pb2.SocketAddress.UDP
        out.udp_listener_config.SetInParent()
        udp = out.listener_filters.add(name="envoy.filters.udp_listener.udp_proxy")
        udp.typed_config.Pack(_udp(vs, pool))
    else:
        limit_listener(out, limits)
        chain = out.filter_chains.add()
        limit_chain(chain, vs, limits)
        for text in pool.ranges:
            network = ip_network(text)
            one = chain.filter_chain_match.source_prefix_ranges.add()
            one.address_prefix = str(network.network_address)
            one.prefix_len.value = network.prefixlen
        tcp = chain.filters.add(name="envoy.filters.network.tcp_proxy")
        tcp.typed_config.Pack(_tcp(vs, pool, limits))
    return encoded(LDS, name, out)


def _tcp(vs: str, pool: L4Pool, limits: ClientLimits) -> tcp_proxy_pb2.TcpProxy:
    out = tcp_proxy_pb2.TcpProxy(stat_prefix=vs, cluster=cluster_name(pool.backend))
    out.idle_timeout.CopyFrom(seconds(limits.tcp_idle_seconds))
    out.max_connect_attempts.value = _ATTEMPTS
    out.access_log.append(overflow_log())
    if pool.sticky:
        out.hash_policy.add().source_ip.SetInParent()
    return out


def _udp(vs: str, pool: L4Pool) -> udp_proxy_pb2.UdpProxyConfig:
    out = udp_proxy_pb2.UdpProxyConfig(stat_prefix=vs)
    if pool.sticky:
        out.hash_policies.add(source_ip=True)
    found = matcher_pb2.Matcher.OnMatch()
    found.action.name = "route"
    found.action.typed_config.Pack(route_pb2.Route(cluster=cluster_name(pool.backend)))
    if not pool.ranges:
        out.matcher.on_no_match.CopyFrom(found)
        return out
    tree = out.matcher.matcher_tree
    _pack(tree.input, "source-ip", network_inputs_pb2.SourceIPInput())
    ranges = ip_pb2.IPMatcher()
    one = ranges.range_matchers.add()
    for text in pool.ranges:
        network = ip_network(text)
        cidr = cidr_pb2.CidrRange(address_prefix=str(network.network_address))
        cidr.prefix_len.value = network.prefixlen
        one.ranges.append(cidr)
    one.on_match.CopyFrom(found)
    _pack(tree.custom_match, "ip", ranges)
    return out


def _pack(where: Message, name: str, message: Message) -> None:
    where.name = name  # type: ignore[attr-defined]
    where.typed_config.Pack(message)  # type: ignore[attr-defined]

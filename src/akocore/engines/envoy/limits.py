"""`ClientLimits` in a listener: how long clients may be slow, how much they may take.

Envoy's own advice for who faces strangers:
https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/best_practices/edge
"""

from __future__ import annotations

from typing import Final

from envoy.config.core.v3 import protocol_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.network.connection_limit.v3 import connection_limit_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from google.protobuf import duration_pb2

from akocore.client_limits import ClientLimits

__all__ = ["limit_chain", "limit_listener", "limit_requests", "seconds"]

_Manager = hcm_pb2.HttpConnectionManager
_UNDERSCORES: Final = {
    "Allow": protocol_pb2.HttpProtocolOptions.ALLOW,
    "Drop": protocol_pb2.HttpProtocolOptions.DROP_HEADER,
    "Reject": protocol_pb2.HttpProtocolOptions.REJECT_REQUEST,
}
_SLASHES: Final = {
    "KeepUnchanged": _Manager.KEEP_UNCHANGED,
    "RejectRequest": _Manager.REJECT_REQUEST,
    "UnescapeAndForward": _Manager.UNESCAPE_AND_FORWARD,
    "UnescapeAndRedirect": _Manager.UNESCAPE_AND_REDIRECT,
}


def seconds(number: int) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=number)


def limit_listener(out: listener_pb2.Listener, limits: ClientLimits) -> None:
    """Of all that comes to a TCP listener, before anything is known of it."""
    out.per_connection_buffer_limit_bytes.value = limits.buffer_kib << 10
    out.listener_filters_timeout.CopyFrom(seconds(limits.handshake_seconds))


def limit_chain(out: listener_components_pb2.FilterChain, name: str, limits: ClientLimits) -> None:
    """How many connections at once, and how long a handshake.  It must have no filter yet."""
    counted = connection_limit_pb2.ConnectionLimit(stat_prefix=name)
    counted.max_connections.value = limits.connections
    out.filters.add(name="envoy.filters.network.connection_limit").typed_config.Pack(counted)
    out.transport_socket_connect_timeout.CopyFrom(seconds(limits.handshake_seconds))


def limit_requests(out: hcm_pb2.HttpConnectionManager, limits: ClientLimits) -> None:
    """Of connections and requests of HTTP."""
    out.request_headers_timeout.CopyFrom(seconds(limits.headers_seconds))
    out.request_timeout.CopyFrom(seconds(limits.request_seconds))
    out.stream_idle_timeout.CopyFrom(seconds(limits.stream_idle_seconds))
    out.max_request_headers_kb.value = limits.headers_kib
    out.merge_slashes = limits.merge_slashes
    out.path_with_escaped_slashes_action = _SLASHES[limits.escaped_slashes]
    common = out.common_http_protocol_options
    common.idle_timeout.CopyFrom(seconds(limits.idle_seconds))
    common.max_headers_count.value = limits.headers
    common.headers_with_underscores_action = _UNDERSCORES[limits.underscores]
    http2 = out.http2_protocol_options
    http2.max_concurrent_streams.value = limits.http2_streams
    http2.initial_stream_window_size.value = limits.http2_stream_window_kib << 10
    http2.initial_connection_window_size.value = limits.http2_connection_window_kib << 10

"""What keeps one application, or a loop through others, from filling a Service Engine.

Breakers bound what an engine has open to one Service port.  Requests carry how often they came by
(``CDN-Loop``, RFC 8586): who sends them round through load balancers of others gets 502 after some
times.  A breaker that is open is counted by cluster: clusters have no statistics of their own.
"""

from __future__ import annotations

from functools import lru_cache

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.cluster.v3 import circuit_breaker_pb2
from envoy.extensions.access_loggers.stats.v3 import stats_pb2
from envoy.extensions.filters.http.cdn_loop.v3 import cdn_loop_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from mmh3 import mmh3_x64_128_digest
from msgspec import Struct

from akocore.engines.envoy.bootstrap import OVERFLOW

__all__ = ["Bounds", "bounds_of", "breakers", "hop_filter", "overflow_log"]


class Bounds(Struct, frozen=True):
    """``connections``: to one Service port; as many requests.  ``hops``: of one request.

    ``hop``: what akocore calls itself there.  ``sessions``: of UDP, to one Service port.
    """

    connections: int = 25_000
    hops: int = 4
    hop: str = "akocore"
    sessions: int = 5_000


def bounds_of(cluster_name: str, connections: int, hops: int, sessions: int = 5_000) -> Bounds:
    """Those of an installation: its name stays its own business."""
    hop = f"akocore-{mmh3_x64_128_digest(cluster_name.encode()).hex()[:8]}"
    return Bounds(connections, hops, hop, sessions)


@lru_cache
def breakers(connections: int) -> circuit_breaker_pb2.CircuitBreakers:
    """Half as many requests may wait for a connection; a quarter may be tried again at once."""
    out = circuit_breaker_pb2.CircuitBreakers()
    one = out.thresholds.add()
    one.max_connections.value = one.max_requests.value = connections
    one.max_connection_pools.value = connections
    one.max_pending_requests.value = max(connections // 2, 1)
    one.max_retries.value = max(connections // 4, 1)
    return out


@lru_cache
def hop_filter(bounds: Bounds) -> hcm_pb2.HttpFilter:
    out = hcm_pb2.HttpFilter(name="envoy.filters.http.cdn_loop")
    config = cdn_loop_pb2.CdnLoopConfig(cdn_id=bounds.hop, max_allowed_occurrences=bounds.hops - 1)
    out.typed_config.Pack(config)
    return out


@lru_cache
def overflow_log() -> accesslog_pb2.AccessLog:
    """Counts what met an open breaker, by cluster."""
    out = accesslog_pb2.AccessLog(name="envoy.access_loggers.stats")
    out.filter.response_flag_filter.flags.append("UO")
    config = stats_pb2.Config(stat_prefix=OVERFLOW)
    one = config.counters.add()
    one.stat.name = "refused"
    one.stat.tags.add(name="backend", value_format="%UPSTREAM_CLUSTER%")
    one.value_fixed.value = 1
    out.typed_config.Pack(config)
    return out

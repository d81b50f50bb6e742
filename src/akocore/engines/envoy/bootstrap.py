"""What an Envoy is told at its start: who it is, where its controller listens, what it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

__all__ = ["BACKEND_PREFIX", "XDS_CLUSTER", "bootstrap"]

XDS_CLUSTER = "xds"
"""The one static cluster: akocore itself."""

BACKEND_PREFIX = "b/"
"""Clusters of backends are named with it; they have no statistics (10,000 would be a million)."""

# Prefixes that end in a dot are compared on encoded names: the cheapest matcher Envoy has.
_COUNTED = (
    "server.",
    "listener_manager.",
    "cluster_manager.",
    "control_plane.",
    "overload.",
    "listener.",
    "http.",
    "tcp.",
    f"cluster.{XDS_CLUSTER}.",
)

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECTION_LIMIT = (
    "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
)


def _type(name: str) -> str:
    return f"type.googleapis.com/{name}"


def bootstrap(
    name: str,
    group: str,
    xds_socket: Path,
    admin_socket: Path,
    *,
    max_connections: int = 50_000,
    reconnect_base_ms: int = 50,
    reconnect_max_ms: int = 1000,
) -> bytes:
    """The bootstrap of Service Engine ``name`` as JSON; equal arguments give equal bytes.

    Listeners and clusters come by delta ADS over the unix socket ``xds_socket``; when it goes
    away Envoy serves on with what it has and asks again after ``reconnect_base_ms`` ..
    ``reconnect_max_ms``.
    """
    ads: dict[str, Any] = {"ads": {}, "resource_api_version": "V3"}
    return orjson.dumps(
        {
            "node": {"id": name, "cluster": group},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": True,
                    "grpc_services": [
                        {
                            "envoy_grpc": {
                                "cluster_name": XDS_CLUSTER,
                                "retry_policy": {
                                    "retry_back_off": {
                                        "base_interval": f"{reconnect_base_ms / 1000:g}s",
                                        "max_interval": f"{reconnect_max_ms / 1000:g}s",
                                    }
                                },
                            }
                        }
                    ],
                },
                "lds_config": ads,
                "cds_config": ads,
            },
            "static_resources": {
                "clusters": [
                    {
                        "name": XDS_CLUSTER,
                        "type": "STATIC",
                        "connect_timeout": "1s",
                        "typed_extension_protocol_options": {
                            _HTTP_OPTIONS: {
                                "@type": _type(_HTTP_OPTIONS),
                                "explicit_http_config": {
                                    "http2_protocol_options": {
                                        "initial_stream_window_size": 16 << 20,
                                        "initial_connection_window_size": 16 << 20,
                                    }
                                },
                            }
                        },
                        "load_assignment": {
                            "cluster_name": XDS_CLUSTER,
                            "endpoints": [
                                {
                                    "lb_endpoints": [
                                        {
                                            "endpoint": {
                                                "address": {"pipe": {"path": str(xds_socket)}}
                                            }
                                        }
                                    ]
                                }
                            ],
                        },
                    }
                ]
            },
            "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
            "stats_flush_on_admin": True,
            "stats_config": {
                "use_all_default_tags": False,
                "stats_matcher": {
                    "inclusion_list": {"patterns": [{"prefix": prefix} for prefix in _COUNTED]}
                },
            },
            "overload_manager": {
                "resource_monitors": [
                    {
                        "name": "envoy.resource_monitors.global_downstream_max_connections",
                        "typed_config": {
                            "@type": _type(_CONNECTION_LIMIT),
                            "max_active_downstream_connections": max_connections,
                        },
                    }
                ]
            },
        },
        option=orjson.OPT_SORT_KEYS,
    )

"""What an Envoy is told at its start: who it is, where its controller listens, what it counts."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

__all__ = [
    "BACKEND_PREFIX",
    "FILES_FULL",
    "HTTP_OPTIONS",
    "LARGEST_EXPRESSION",
    "OVERFLOW",
    "XDS_CLUSTER",
    "Tls",
    "bootstrap",
    "secrets",
]

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
"""The type of a cluster's options of HTTP, and their name in it."""

XDS_CLUSTER = "xds"
"""The one static cluster: akocore itself."""

FILES_FULL = 0.9
"""A share of its open files from which on an Envoy takes no connection and no request more."""

BACKEND_PREFIX = "b/"
"""Clusters of backends are named with it; they have no statistics (10,000 would be a million)."""

OVERFLOW = "overflow"
"""What the statistics of open breakers begin with: those of a listener, by cluster."""

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
    f"{OVERFLOW}.",
    f"cluster.{XDS_CLUSTER}.",
)

_UPSTREAM_TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"
_MONITORS = "envoy.extensions.resource_monitors"
_HEAP = "envoy.resource_monitors.fixed_heap"
_FILES = "envoy.resource_monitors.injected_resource"
_SCALED = "envoy.config.overload.v3.ScaleTimersOverloadActionConfig"

LARGEST_EXPRESSION = 5000
"""Instructions that an expression may have at most: the longest lists of names come to that.

What a route may ask for is far less: `akocore.config.Limits`.
"""

_PROGRAM = {"error_level": LARGEST_EXPRESSION, "warn_level": LARGEST_EXPRESSION}
_RUNTIME = {"re2": {"max_program_size": _PROGRAM}}


def _type(name: str) -> str:
    return f"type.googleapis.com/{name}"


Place = Path | tuple[str, int]
"""A unix socket, or a host (name or address) and port."""


class Tls(Struct, frozen=True, kw_only=True):
    """How an engine and its controllers prove to each other who they are: PEM files.

    ``names``: a controller's certificate must have one of these as its DNS name or IP address;
    without any, the hosts at which the controllers are asked for.  ``secrets``: the directory
    that has what `secrets` says; from there Envoy takes files as they are replaced, else once at
    its start.
    """

    certificate: Path
    key: Path
    ca: Path
    names: tuple[str, ...] = ()
    secrets: Path | None = None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _address(place: Place) -> dict[str, Any]:
    if isinstance(place, Path):
        return {"pipe": {"path": str(place)}}
    return {"socket_address": {"address": place[0], "port_value": place[1]}}


def _certificate(tls: Tls) -> dict[str, Any]:
    return {
        "certificate_chain": {"filename": str(tls.certificate)},
        "private_key": {"filename": str(tls.key)},
    }


def _validation(tls: Tls, names: Sequence[str]) -> dict[str, Any]:
    return {
        "trusted_ca": {"filename": str(tls.ca)},
        "match_typed_subject_alt_names": [
            {
                "san_type": "IP_ADDRESS" if _is_address(name) else "DNS",
                "matcher": {"exact": name},
            }
            for name in names
        ],
    }


_IDENTITY, _TRUST = "identity", "trust"


def _names(tls: Tls, controllers: Sequence[tuple[str, int]]) -> list[str]:
    return list(dict.fromkeys(tls.names or (host for host, _ in controllers)))


def secrets(tls: Tls, controllers: Sequence[tuple[str, int]]) -> dict[Path, bytes]:
    """The files that must be in ``tls.secrets``: Envoy follows the PEM files that they name."""
    if tls.secrets is None:
        return {}

    def followed(path: Path) -> dict[str, Any]:
        return {"watched_directory": {"path": str(path.parent)}}

    found = {
        _IDENTITY: {"tls_certificate": _certificate(tls) | followed(tls.certificate)},
        _TRUST: {
            "validation_context": _validation(tls, _names(tls, controllers)) | followed(tls.ca)
        },
    }
    kind = {"@type": _type("envoy.extensions.transport_sockets.tls.v3.Secret")}
    return {
        tls.secrets / f"{name}.json": orjson.dumps({"resources": [kind | {"name": name} | secret]})
        for name, secret in found.items()
    }


def _transport(tls: Tls, controllers: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """TLS to the controllers: our certificate, and whose we take."""
    names = _names(tls, controllers)
    common: dict[str, Any] = {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
    }
    if tls.secrets is None:
        common["tls_certificates"] = [_certificate(tls)]
        common["validation_context"] = _validation(tls, names)
    else:
        identity, trust = (
            {
                "name": name,
                "sds_config": {
                    "resource_api_version": "V3",
                    "path_config_source": {"path": str(tls.secrets / f"{name}.json")},
                },
            }
            for name in (_IDENTITY, _TRUST)
        )
        common["tls_certificate_sds_secret_configs"] = [identity]
        common["validation_context_sds_secret_config"] = trust
    context: dict[str, Any] = {"@type": _type(_UPSTREAM_TLS), "common_tls_context": common}
    if sni := next((name for name in names if not _is_address(name)), ""):
        context["sni"] = sni
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _from(address: str) -> dict[str, Any]:
    return {"source_address": {"address": address, "port_value": 0}}


def _alive(socket: Path) -> dict[str, Any]:
    """A listener that says that the workers are at work; it counts for no client's."""
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    return {
        "name": "alive",
        "stat_prefix": "admin.alive",
        "address": {"pipe": {"path": str(socket), "mode": 0o660}},
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": {
                            "@type": _type(manager),
                            "stat_prefix": "admin.alive",
                            "codec_type": "HTTP1",
                            "route_config": {
                                "virtual_hosts": [
                                    {"name": "alive", "domains": ["*"], "routes": [route]}
                                ]
                            },
                            "http_filters": [
                                {
                                    "name": "envoy.filters.http.router",
                                    "typed_config": {"@type": _type(_ROUTER)},
                                }
                            ],
                        },
                    }
                ]
            }
        ],
    }


def _monitor(name: str, kind: str, **config: Any) -> dict[str, Any]:
    return {
        "name": name,
        "typed_config": {"@type": _type(f"{_MONITORS}.{kind}"), **config},
    }


def _at(name: str, share: float) -> dict[str, Any]:
    return {"name": name, "threshold": {"value": share}}


def _overload(max_connections: int, heap: int, files: Path | None) -> dict[str, Any]:
    """What it does when connections, memory or open files run out: it turns clients away.

    Envoy's own advice for memory; ``files``: before there is none for a connection to an endpoint.
    """
    monitors = [
        _monitor(
            "envoy.resource_monitors.global_downstream_max_connections",
            "downstream_connections.v3.DownstreamConnectionsConfig",
            max_active_downstream_connections=max_connections,
        )
    ]
    refused: list[dict[str, Any]] = []  # requests
    actions: list[dict[str, Any]] = []
    if heap:
        monitors.append(
            _monitor(_HEAP, "fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=str(heap))
        )
        refused.append(_at(_HEAP, 0.98))
        idle = {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "2s"}
        shorter = {"scaling_threshold": 0.85, "saturation_threshold": 0.95}
        actions += [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": [_at(_HEAP, 0.95)]},
            {
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": [{"name": _HEAP, "scaled": shorter}],
                "typed_config": {"@type": _type(_SCALED), "timer_scale_factors": [idle]},
            },
            {
                "name": "envoy.overload_actions.stop_accepting_connections",
                "triggers": [_at(_HEAP, 0.98)],
            },
        ]
    out: dict[str, Any] = {"resource_monitors": monitors}
    if files is not None:
        monitors.append(
            _monitor(_FILES, "injected_resource.v3.InjectedResourceConfig", filename=f"./{files}")
        )
        refused.append(_at(_FILES, FILES_FULL))
        out["refresh_interval"] = "0.25s"
        out["loadshed_points"] = [
            {"name": f"envoy.load_shed_points.{point}", "triggers": [_at(_FILES, FILES_FULL)]}
            for point in (
                "tcp_listener_accept",
                "connection_pool_new_connection",
                "tcp_proxy_upstream_connect",
            )
        ]
    if refused:
        actions.append(
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": refused}
        )
    return out | {"actions": actions}


def bootstrap(
    name: str,
    group: str,
    controllers: Path | Sequence[tuple[str, int]],
    admin: Place | None,
    *,
    tls: Tls | None = None,
    max_connections: int = 50_000,
    reconnect_base_ms: int = 50,
    reconnect_max_ms: int = 1000,
    alive: Path | None = None,
    source: str = "",
    heap: int = 0,
    files: Path | None = None,
) -> bytes:
    """The bootstrap of Service Engine ``name`` as JSON; equal arguments give equal bytes.

    Listeners and clusters come by delta ADS from one of the ``controllers``: a unix socket on this
    machine, or hosts and ports over ``tls``.  When it goes away Envoy serves on with what it has
    and asks again after ``reconnect_base_ms`` .. ``reconnect_max_ms``: the next one, if there
    are several.  A remote controller that answers no ping for some seconds is away.
    ``alive``: a socket at which its workers answer every request, as those of clients.
    ``source``: the address that backends are asked from; "": the one on the way to them.
    ``heap``: bytes that its memory may have; 0: no limit.  ``files``: has the share of the open
    files that it may have, and is replaced when that changes; it must be there.
    """
    ads: dict[str, Any] = {"ads": {}, "resource_api_version": "V3"}
    http2: dict[str, Any] = {
        "initial_stream_window_size": 16 << 20,
        "initial_connection_window_size": 16 << 20,
    }
    xds: dict[str, Any] = {
        "name": XDS_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: {
                "@type": _type(HTTP_OPTIONS),
                "explicit_http_config": {"http2_protocol_options": http2},
            }
        },
    }
    places: Sequence[Place] = [controllers] if isinstance(controllers, Path) else controllers
    xds["load_assignment"] = {
        "cluster_name": XDS_CLUSTER,
        "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": _address(place)}} for place in places]}
        ],
    }
    if not isinstance(controllers, Path):
        if tls is None:
            raise ValueError("controllers on a network are asked over TLS only")
        http2["connection_keepalive"] = {"interval": "3s", "timeout": "3s"}
        xds["transport_socket"] = _transport(tls, controllers)
        if not all(_is_address(host) for host, _ in controllers):
            xds |= {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"}
    start: dict[str, Any] = {
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
        "static_resources": {"clusters": [xds]},
        "layered_runtime": {"layers": [{"name": "akocore", "static_layer": _RUNTIME}]},
        "stats_config": {
            "use_all_default_tags": False,
            "stats_matcher": {
                "inclusion_list": {"patterns": [{"prefix": prefix} for prefix in _COUNTED]}
            },
        },
        "overload_manager": _overload(max_connections, heap, files),
    }
    if source:
        start["cluster_manager"] = {"upstream_bind_config": _from(source)}
        xds["upstream_bind_config"] = _from("::" if ":" in source else "0.0.0.0")
    if alive is not None:
        start["static_resources"]["listeners"] = [_alive(alive)]
    if admin is not None:
        start["admin"] = {"address": _address(admin)}
        start["stats_flush_on_admin"] = True
        if isinstance(admin, Path):
            start["admin"]["address"]["pipe"]["mode"] = 0o660
    return orjson.dumps(start, option=orjson.OPT_SORT_KEYS)

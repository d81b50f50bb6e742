"""A backend of a Gateway API route → an Envoy cluster.

A plain one is the cluster of its Service port, the very one that an Ingress uses; another
protocol, or TLS of its own, makes it another cluster of the same endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Final

import msgspec
from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import any_pb2

from akocore._fast.diff import fingerprint
from akocore.engines.envoy.resources import (
    ADS,
    CDS,
    Encoded,
    any_cluster,
    balance,
    cluster,
    cluster_name,
    encoded,
    fill,
    packed,
)
from akocore.model_http import Backend, BackendTls

__all__ = [
    "NOWHERE",
    "SECRET_PREFIX",
    "gateway_cluster",
    "gateway_cluster_name",
    "secret_name",
]

NOWHERE: Final = "nowhere"
"""A cluster that there never is: what is sent there fails."""

SECRET_PREFIX: Final = "secret/".ljust(256, "/")
"""What names of fixed certificates begin with: longer than any server name that clients ask for."""

SYSTEM_AUTHORITIES: Final = "/etc/ssl/certs/ca-certificates.crt"  # Debian, Alpine, distroless
_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_SAN: Final = common_pb2.SubjectAltNameMatcher


def secret_name(key: str) -> str:
    """The resource of a Secret "namespace/name" that listeners or clusters name outright."""
    return SECRET_PREFIX + key


def gateway_cluster_name(backend: Backend) -> str:
    if backend.backend is None:
        return NOWHERE
    name = cluster_name(backend.backend)
    if backend.protocol != "http1":
        name += f"~{backend.protocol}"
    if backend.tls is not None:
        name += f"~tls-{fingerprint(msgspec.json.encode(backend.tls)).hex()[:16]}"
    return name


def gateway_cluster(
    backend: Backend, endpoints: Iterable[tuple[str, int]], *, sticky: bool = False
) -> Encoded:
    """The cluster of a backend.  ``endpoints``: (address, port); none is a served 503.

    Raises `ValueError` for a backend None.
    """
    if backend.backend is None:
        raise ValueError("nowhere is no cluster")
    if backend.protocol == "http1" and backend.tls is None:
        return cluster(backend.backend, endpoints, sticky=sticky)
    name = gateway_cluster_name(backend)
    out = cluster_pb2.Cluster()
    out.CopyFrom(any_cluster())
    out.name = name
    balance(out, sticky)
    if backend.protocol == "h2c":
        out.typed_extension_protocol_options[_OPTIONS].CopyFrom(_http2())
    if backend.tls is not None:
        out.transport_socket.name = "envoy.transport_sockets.tls"
        out.transport_socket.typed_config.CopyFrom(_tls(backend.tls, backend.protocol == "h2c"))
    fill(out, endpoints)
    return encoded(CDS, name, out)


@cache
def _http2() -> any_pb2.Any:
    out = http_protocol_options_pb2.HttpProtocolOptions()
    out.explicit_http_config.http2_protocol_options.SetInParent()
    return packed(out)


@lru_cache(1024)
def _tls(tls: BackendTls, http2: bool) -> any_pb2.Any:
    out = tls_pb2.UpstreamTlsContext(sni=tls.hostname)
    common = out.common_tls_context
    common.alpn_protocols.append("h2" if http2 else "http/1.1")
    validation = common.validation_context
    if tls.system:
        validation.trusted_ca.filename = SYSTEM_AUTHORITIES
    else:
        validation.trusted_ca.inline_string = tls.authorities
    for kind, name in tls.names or (("dns", tls.hostname),):
        one = validation.match_typed_subject_alt_names.add()
        one.san_type = _SAN.DNS if kind == "dns" else _SAN.URI
        one.matcher.exact = name
    if tls.certificate:
        one_secret = common.tls_certificate_sds_secret_configs.add()
        one_secret.name = secret_name(tls.certificate)
        one_secret.sds_config.CopyFrom(ADS)
    return packed(out)

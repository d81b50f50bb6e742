"""A backend of a Gateway API route → an Envoy cluster.

A plain one is the cluster of its Service port, the very one that an Ingress uses; another
protocol, or TLS of its own, makes it another cluster of the same endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Final

import msgspec
from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from google.protobuf import any_pb2

from akocore._fast.diff import fingerprint
from akocore.engines.envoy.bootstrap import HTTP_OPTIONS
from akocore.engines.envoy.bounds import Bounds
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
    http_options,
    packed,
    tell_clients,
)
from akocore.model_http import Backend, BackendTls

__all__ = [
    "NOWHERE",
    "SECRET_PREFIX",
    "gateway_cluster",
    "gateway_cluster_name",
    "other_headers",
    "secret_name",
]

NOWHERE: Final = "nowhere"
"""A cluster that there never is: what is sent there fails."""

SECRET_PREFIX: Final = "secret/".ljust(256, "/")
"""What names of fixed certificates begin with: longer than any server name that clients ask for."""

SYSTEM_AUTHORITIES: Final = "/etc/ssl/certs/ca-certificates.crt"  # Debian, Alpine, distroless
_FRAMING: Final = ("host", "content-length", "transfer-encoding", "connection", "te")
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
        name += f"~tls-{_mark(backend.tls)}"
    if backend.only_headers:
        name += f"~only-{_mark(backend.only_headers)}"
    return name


def _mark(what: object) -> str:
    return fingerprint(msgspec.json.encode(what)).hex()[:16]


def all_but(only: Iterable[str]) -> str:
    """An expression of the names of headers that a backend with ``only_headers`` never gets."""
    return other_headers([*only, *_FRAMING])


def other_headers(names: Iterable[str]) -> str:
    """An expression (RE2) of the names of all headers but these and HTTP/2's own."""
    return _other(names, ":")


def _other(words: Iterable[str], firsts: str = "") -> str:
    """Of every text that is not empty, has no first letter of ``firsts`` and is no word."""
    tree: dict[str, list[str]] = {}
    for word in words:
        if word:
            tree.setdefault(word[0], []).append(word[1:])
    firsts += "".join(tree)
    ways = [f"{_letter(firsts)}{_letter('')}*"]
    for first, rests in sorted(tree.items()):
        ways.append(f"{re.escape(first)}{_other(rests)}{'' if '' in rests else '?'}")
    return f"(?:{'|'.join(ways)})"


def _letter(but: str) -> str:
    """Any character of a header's name but these: far fewer instructions than any of Unicode."""
    edges = [0x20, *sorted({ord(c) for c in but}), 0x7F]
    spans = [(a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1]
    return f"[{''.join(f'{re.escape(chr(a))}-{re.escape(chr(b))}' for a, b in spans)}]"


def gateway_cluster(
    backend: Backend,
    endpoints: Iterable[tuple[str, int]],
    *,
    sticky: bool = False,
    proxy: str = "",
    bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
) -> Encoded:
    """The cluster of a backend.  ``endpoints``: (address, port); none is a served 503.

    ``proxy``: as of `akocore.engines.envoy.resources.tell_clients`.

    Raises `ValueError` for a backend None.
    """
    if backend.backend is None:
        raise ValueError("nowhere is no cluster")
    if backend.protocol == "http1" and backend.tls is None and not backend.only_headers:
        return cluster(backend.backend, endpoints, sticky=sticky, proxy=proxy, bounds=bounds)
    name = gateway_cluster_name(backend)
    out = cluster_pb2.Cluster(name=name)
    balance(out, sticky)
    http2 = backend.protocol == "h2c"
    if http2 or backend.only_headers:
        options = out.typed_extension_protocol_options[HTTP_OPTIONS]
        options.CopyFrom(_options(http2, backend.only_headers))
    if backend.tls is not None:
        out.transport_socket.name = "envoy.transport_sockets.tls"
        out.transport_socket.typed_config.CopyFrom(_tls(backend.tls, http2))
    tell_clients(out, proxy)
    fill(out, endpoints)
    return encoded(CDS, name, out, common=any_cluster(bounds))


@lru_cache(1024)
def _options(http2: bool, only: tuple[str, ...]) -> any_pb2.Any:
    out = http_options(http2=http2)
    if only:
        mutation = header_mutation_pb2.HeaderMutation()
        rest = mutation.mutations.request_mutations.add().remove_on_match.key_matcher
        rest.safe_regex.regex = all_but(only)
        one = out.http_filters.add(name="envoy.filters.http.header_mutation")
        one.typed_config.Pack(mutation)
        codec = out.http_filters.add(name="envoy.filters.http.upstream_codec")
        codec.typed_config.Pack(upstream_codec_pb2.UpstreamCodec())
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

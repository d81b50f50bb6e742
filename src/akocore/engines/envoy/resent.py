"""A resource in other bytes, which mean the same: as it goes to an engine that may have refused it.

Envoy takes scopes of a response one by one and gives them to its workers at the end.  When it
refuses one, those before it stay in its map and are used by nobody; a secret stays where it is
though no context could be made of it.  The same bytes again are then "no change": acknowledged,
listed in the config dump, and not used.  Bytes that differ are taken as new, so that what Envoy
says of them is true.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
from envoy.config.route.v3 import scoped_route_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2

from akocore.engines.envoy.resources import SDS, SRDS, Encoded

__all__ = ["resent"]

_VERSION = 34  # bytes of the version in a resource


def resent(one: Encoded, mark: str) -> Encoded:
    """The same with ``mark`` somewhere in it where nobody looks.  Its version stays.

    Cost: its size.  Clusters, listeners and endpoints are as they were: Envoy keeps none that it
    does not use.
    """
    if one.type_url == SRDS:
        return _longer(one, _more(mark))  # a message after another one: they are merged
    if one.type_url == SDS:
        return _secret(one, mark)
    return one


@lru_cache(1)
def _more(mark: str) -> bytes:
    scope = scoped_route_pb2.ScopedRouteConfiguration()
    fields = scope.route_configuration.metadata.filter_metadata["akocore.sent"].fields
    fields["mark"].string_value = mark
    out: bytes = scope.SerializeToString()
    return out


def _secret(one: Encoded, mark: str) -> Encoded:
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(one.frame)
    resource = response.resources[0]
    secret = secret_pb2.Secret()
    resource.resource.Unpack(secret)
    # What is outside of the lines of a PEM block is nothing.
    secret.tls_certificate.certificate_chain.inline_bytes += f"\n{mark}\n".encode()
    resource.resource.value = secret.SerializeToString(deterministic=True)
    return msgspec.structs.replace(one, frame=response.SerializeToString())


def _longer(one: Encoded, more: bytes) -> Encoded:
    """A resource with ``more`` at the end of its message."""
    frame = one.frame
    _, at = _read(frame, 1)
    version = frame[at : at + _VERSION]
    size, at = _read(frame, at + _VERSION + 1)
    rest = frame[at + size :]
    head = at + 3 + len(one.type_url)  # two tags, a length below 128
    length, value = _read(frame, head)
    value_size = _size(length + len(more))
    any_size = head - at + len(value_size) + length + len(more)
    body = b"".join(
        (
            version,
            b"\x12",
            _size(any_size),
            frame[at:head],
            value_size,
            frame[value : value + length],
            more,
            rest,
        )
    )
    return msgspec.structs.replace(one, frame=b"\x12" + _size(len(body)) + body)


def _read(data: bytes, at: int) -> tuple[int, int]:
    """A length as protobuf writes it; where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _size(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)

"""What one client, and all clients of one virtual service, may take of a Service Engine.

Seconds are how long a client may be slow at something, before its connection or request ends.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

__all__ = ["ClientLimits", "ClientLimitsPart", "EscapedSlashes", "Underscores"]

_DAY: Final = 86_400
_YEAR: Final = 365 * _DAY

Underscores = Literal["Allow", "Drop", "Reject"]
"""What happens to a request header whose name has an underscore."""

EscapedSlashes = Literal[
    "KeepUnchanged", "RejectRequest", "UnescapeAndForward", "UnescapeAndRedirect"
]
"""What happens to %2F and %5C in a path."""

_Wait = Annotated[int, Meta(ge=1, le=3600)]
_Idle = Annotated[int, Meta(ge=0, le=_YEAR)]
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]
_Window = Annotated[int, Meta(ge=64, le=1 << 20)]
_Headers = Annotated[int, Meta(ge=10, le=10_000)]
_HeaderKib = Annotated[int, Meta(ge=4, le=8192)]
_Buffer = Annotated[int, Meta(ge=16, le=1 << 20)]


class ClientLimits(
    Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename="camel",
    omit_defaults=False,
    gc=False,
):
    """The limits in force.  0 seconds: no limit, where 0 is allowed."""

    connections: Annotated[
        _Count, Meta(description="at once, at each port of a virtual service, on each engine")
    ] = 10_000
    handshake_seconds: Annotated[_Wait, Meta(description="for a TLS handshake")] = 10
    headers_seconds: Annotated[_Wait, Meta(description="for all headers of a request")] = 10
    request_seconds: Annotated[
        _Idle, Meta(description="for a whole request, its body included; 0: no limit")
    ] = _DAY
    idle_seconds: Annotated[
        _Idle, Meta(description="a connection of HTTP without a request; 0: no limit")
    ] = 600
    stream_idle_seconds: Annotated[
        _Idle, Meta(description="a request, or WebSocket, that nothing moves in; 0: no limit")
    ] = 300
    tcp_idle_seconds: Annotated[
        _Idle, Meta(description="a connection of L4 that nothing moves in; 0: no limit")
    ] = 3600
    http2_streams: Annotated[_Count, Meta(description="requests at once of a connection")] = 100
    http2_stream_window_kib: Annotated[
        _Window, Meta(description="of a body, sent before the endpoint takes it")
    ] = msgspec.field(default=64, name="http2StreamWindowKiB")
    http2_connection_window_kib: Annotated[
        _Window, Meta(description="the same, of all requests of a connection")
    ] = msgspec.field(default=1024, name="http2ConnectionWindowKiB")
    headers: Annotated[_Headers, Meta(description="of a request, how many")] = 100
    headers_kib: Annotated[_HeaderKib, Meta(description="of a request, all together")] = (
        msgspec.field(default=48, name="headersKiB")
    )
    buffer_kib: Annotated[
        _Buffer, Meta(description="kept of what one side sends faster than the other takes")
    ] = msgspec.field(default=32, name="bufferKiB")
    underscores: Annotated[
        Underscores, Meta(description="request headers with an underscore in their names")
    ] = "Allow"
    merge_slashes: Annotated[bool, Meta(description="// in a path is /")] = True
    escaped_slashes: Annotated[EscapedSlashes, Meta(description="%2F and %5C in a path")] = (
        "UnescapeAndRedirect"
    )

    def with_part(self, part: ClientLimitsPart | None) -> ClientLimits:
        """These, but for what ``part`` says."""
        if part is None:
            return self
        said = {
            name: value
            for name in part.__struct_fields__
            if (value := getattr(part, name)) is not None
        }
        return msgspec.structs.replace(self, **said)


class ClientLimitsPart(Struct, frozen=True, rename="camel", gc=False):
    """Some of `ClientLimits`, as an AviInfraSetting has them; None: as the defaults are."""

    connections: _Count | None = None
    handshake_seconds: _Wait | None = None
    headers_seconds: _Wait | None = None
    request_seconds: _Idle | None = None
    idle_seconds: _Idle | None = None
    stream_idle_seconds: _Idle | None = None
    tcp_idle_seconds: _Idle | None = None
    http2_streams: _Count | None = None
    http2_stream_window_kib: _Window | None = msgspec.field(
        default=None, name="http2StreamWindowKiB"
    )
    http2_connection_window_kib: _Window | None = msgspec.field(
        default=None, name="http2ConnectionWindowKiB"
    )
    headers: _Headers | None = None
    headers_kib: _HeaderKib | None = msgspec.field(default=None, name="headersKiB")
    buffer_kib: _Buffer | None = msgspec.field(default=None, name="bufferKiB")
    underscores: Underscores | None = None
    merge_slashes: bool | None = None
    escaped_slashes: EscapedSlashes | None = None

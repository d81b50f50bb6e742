"""gRPC at a unix socket that is our user's alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc

from akocore.engines.children import check_socket_path
from akocore.engines.envoy.admin import EngineError

__all__ = ["UNLIMITED", "UnixServer"]

UNLIMITED: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""Options of a server whose messages have any size."""

_GRACE_S: Final = 0.2  # for calls that are not over when it stops


class UnixServer:
    """Services at ``socket``, from `start` to `stop`; messages may have any size."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._server: grpc.aio.Server | None = None

    async def start(self, *services: grpc.GenericRpcHandler) -> None:
        """Listen, in place of whoever left the socket behind.  Raises `EngineError`."""
        check_socket_path(self.socket, EngineError)
        self.socket.unlink(missing_ok=True)
        self._server = grpc.aio.server(options=UNLIMITED)
        self._server.add_generic_rpc_handlers(services)
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()
        self.socket.chmod(0o600)

    async def stop(self) -> None:
        """Listen no more, and end the calls that there are."""
        if self._server is not None:
            await self._server.stop(_GRACE_S)
        self.socket.unlink(missing_ok=True)

"""What answers commands is not what Service Engines are let at."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
import pytest

from e2e.running import Running

pytestmark = pytest.mark.real


async def test_engines_have_a_socket_that_answers_no_command(tmp_path: Path) -> None:
    async with Running(tmp_path, 1) as running:
        while not await running.ask("akocore"):
            pass
        own, engines = running.state / "control.sock", running.state / "xds.sock"
        assert stat.S_IMODE(own.lstat().st_mode) == 0o600
        async with grpc.aio.insecure_channel(f"unix:{engines}") as at:
            with pytest.raises(grpc.aio.AioRpcError) as said:
                await at.unary_unary("/akocore.v1alpha1.Control/Get")(b'{"kind": "se"}')
        assert said.value.code() is grpc.StatusCode.UNIMPLEMENTED

"""What answers commands is not what Service Engines are let at."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from e2e.running import Running

pytestmark = pytest.mark.real


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with Running(tmp_path, 1) as made:
        while not await made.ask("akocore"):
            pass
        yield made


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


@pytest.mark.parametrize(
    ("method", "question"),
    [
        ("Get", b""),
        ("Get", b"[]"),
        ("Get", b'{"kind": 5}'),
        ("Get", b'{"kind": "%s"}' % (b"a" * 100_000)),
        ("Explain", b"{}"),
        ("Explain", b'{"ingress": "a", "service": "b"}'),
        ("Explain", b"\xff"),
        ("Scale", b"{}"),
        ("Scale", b'{"vs": "a", "to": "b"}'),
    ],
)
async def test_what_is_no_question_is_said_so_and_is_no_fault_in_the_log(
    running: Running, method: str, question: bytes
) -> None:
    async with grpc.aio.insecure_channel(f"unix:{running.state / 'control.sock'}") as at:
        with pytest.raises(grpc.aio.AioRpcError) as said:
            await at.unary_unary(f"/akocore.v1alpha1.Control/{method}")(question)
    assert said.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(said.value.details() or "") < 200
    assert "Traceback" not in running.log.read_text()


async def test_a_state_directory_too_deep_for_a_socket_is_a_sentence(tmp_path: Path) -> None:
    running = Running(tmp_path, 1)
    running.state = tmp_path / ("x" * 100)
    await running.start()
    while running.running:
        await asyncio.sleep(0.05)
    said = running.log.read_text()
    assert "Choose a shorter directory with --state." in said
    assert "Traceback" not in said

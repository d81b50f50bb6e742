"""A port that nobody fills up."""

from __future__ import annotations

import asyncio

from akocore.observe.listening import Listening, OnceAMinute


async def test_a_silent_connection_ends_by_itself() -> None:
    listening = Listening(asyncio.Protocol, life_s=0.2)
    (at,) = await listening.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*at)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    listening.close()


def test_the_same_is_said_once_a_minute() -> None:
    times = iter((0.0, 1.0, 59.0, 60.0, 61.0, 130.0))
    once = OnceAMinute(lambda: next(times))
    assert [once.due() for _ in range(6)] == [True, False, False, True, False, True]

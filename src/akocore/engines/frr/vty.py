"""Asking an FRR daemon on its vty socket, as vtysh does.

A command is its text and a NUL; the answer is text, three NULs and a byte, 0 for success
(FRR's lib/vty.c and lib/command.h).  Here a question costs less than a millisecond; a vtysh
takes 35 ms of processor time to build its tree of commands, and shows them to every user of
the machine in its arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["VtyError", "ask"]

_END = b"\0\0\0"
_MAX_ANSWER_BYTES = 1 << 28


class VtyError(Exception):
    """A daemon doesn't answer (``refused`` -1), or refused the command of that number."""

    def __init__(self, text: str, refused: int = -1) -> None:
        super().__init__(text)
        self.refused = refused


async def ask(
    socket_path: Path,
    commands: Sequence[str],
    *,
    timeout_s: float = 5.0,
    tolerate: Sequence[int] = (),
) -> list[str]:
    """The answers to ``commands``, one after another in one session, with all rights.

    Raises `VtyError` at the first answer whose code is neither 0 nor in ``tolerate``; it holds
    what the daemon said and not the command, which may hold a password.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(
                socket_path, limit=_MAX_ANSWER_BYTES
            )
            try:
                answers = []
                for number, command in enumerate(("enable", *commands), start=-1):
                    writer.write(command.encode() + b"\0")
                    text = (await reader.readuntil(_END))[: -len(_END)].decode("utf-8", "replace")
                    (code,) = await reader.readexactly(1)
                    if code and code not in tolerate:
                        said = " ".join(text.split()) or "no reason given"
                        raise VtyError(f"{socket_path.name}: code {code}: {said}", number)
                    answers.append(text)
                return answers[1:]
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError as err:
        raise VtyError(f"{socket_path}: no answer within {timeout_s:g} s.") from err
    except (OSError, asyncio.IncompleteReadError) as err:
        said = getattr(err, "strerror", None) or "it ended"
        raise VtyError(f"{socket_path}: the daemon doesn't answer: {said}.") from err

"""VIPs as addresses of the loopback interface, of one network namespace.

Which of them are ours is written down before they are added, so that no address of somebody
else is ever removed and none of ours stays after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import msgspec
from msgspec import Struct

from akocore.engines.frr.config import canonical, host_prefix, in_order
from akocore.engines.frr.process import in_namespace

__all__ = ["AddressError", "Loopback", "ip"]


class AddressError(Exception):
    """The kernel refused an address; the text says which and why."""


async def ip(namespace: Path | None, *words: str, stdin: str = "") -> bytes:
    """What ``ip WORDS`` prints in a network namespace.  Raises `AddressError`."""
    try:
        process = await asyncio.create_subprocess_exec(
            *in_namespace(namespace, ["ip", *words]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as err:
        raise AddressError(f"{err.filename} can't be run. Install iproute2.") from err
    out, said = await process.communicate(stdin.encode())
    if process.returncode:
        raise AddressError(" ".join(said.decode("utf-8", "replace").split()))
    return out


class _Address(Struct):
    local: str
    prefixlen: int


class _Link(Struct):
    addr_info: list[_Address] = []


class Loopback:
    """``lo`` of ``namespace`` (None: of ours); ``file``: where what we added is written down."""

    def __init__(self, file: Path, namespace: Path | None = None) -> None:
        self._file = file
        self._namespace = namespace

    async def held(self) -> tuple[str, ...]:
        """The addresses that ``lo`` has for itself alone: /32 and /128, without ::1; sorted."""
        shown = await self._ip("-j", "addr", "show", "dev", "lo")
        return in_order(
            a.local
            for link in msgspec.json.decode(shown, type=list[_Link])
            for a in link.addr_info
            if f"{a.local}/{a.prefixlen}" == host_prefix(a.local)
            and not ip_address(a.local).is_loopback
        )

    async def add(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Have ``addresses`` on ``lo``; those that were missing.  Cost: 10 ms and 0.1 ms each."""
        missing = sorted({canonical(a) for a in addresses} - set(await self.held()))
        if missing:
            self._write({*self._ours(), *missing})
            lines = ["link set lo up", *(f"addr replace {host_prefix(a)} dev lo" for a in missing)]
            await self._batch(lines)
        return tuple(missing)

    async def keep_only(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Remove those of ours that are not among ``addresses``; what was removed."""
        ours, wanted = self._ours(), {canonical(a) for a in addresses}
        if not (gone := ours - wanted):
            return ()
        there = sorted(gone & set(await self.held()))
        await self._batch([f"addr del {host_prefix(a)} dev lo" for a in there])
        self._write(ours & wanted)
        return tuple(there)

    def _ours(self) -> set[str]:
        try:
            return set(msgspec.json.decode(self._file.read_bytes(), type=list[str]))
        except (OSError, msgspec.MsgspecError):
            return set()

    def _write(self, ours: set[str]) -> None:
        if not ours:
            self._file.unlink(missing_ok=True)
            return
        part = self._file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(sorted(ours)))
        part.replace(self._file)

    async def _batch(self, lines: list[str]) -> None:
        if lines:
            await self._ip("-batch", "-", stdin="\n".join(lines))

    async def _ip(self, *words: str, stdin: str = "") -> bytes:
        return await ip(self._namespace, *words, stdin=stdin)

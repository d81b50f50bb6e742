"""VIPs that nobody announces: neighbours on their segment ask who has them, and one answers.

An address of the loopback interface is answered for by none of the others here (``arp_ignore``).
So it is also put on the interface that has its subnet, and the neighbours are told, lest they go
on to send to whoever answered before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Collection, Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
from msgspec import Struct

from akocore.engines.frr.addresses import AddressError, ip
from akocore.engines.frr.config import host_prefix
from akocore.engines.frr.process import in_namespace

__all__ = ["Segment"]

_TELL = Path(__file__).with_name("tell_neighbours.py")

log = logging.getLogger(__name__)


class _Address(Struct):
    local: str = ""
    prefixlen: int = 0


class _Link(Struct):
    ifname: str = ""  # ip shows what doesn't match as {}
    addr_info: list[_Address] = []


class Segment:
    """The interfaces of ``namespace`` (None: of ours); ``file``: what we added, written down.

    ``unanswered``: addresses that no interface here can answer for, and why.
    """

    def __init__(self, file: Path, namespace: Path | None = None) -> None:
        self.unanswered: dict[str, str] = {}
        self._file = file
        self._namespace = namespace
        self._telling: dict[asyncio.Task[None], dict[str, str]] = {}  # address → interface

    async def answer(self, addresses: Iterable[str]) -> None:
        """Answer for just these.  Raises `AddressError`.  Cost when nothing changes: one read."""
        ours, wanted = self._ours(), {str(ip_address(a)) for a in addresses}
        self.unanswered = {a: why for a, why in self.unanswered.items() if a in wanted}
        gone = {a: interface for a, interface in ours.items() if a not in wanted}
        new: dict[str, str] = {}
        if missing := sorted(wanted - ours.keys() - self.unanswered.keys()):
            links = await self._links()
            for address in missing:
                if interface := _on(links, address):
                    new[address] = interface
                else:
                    why = f"no interface here is on a network of {address}"
                    self.unanswered[address] = f"{why}, so nobody answers for it"
                    log.warning("event=vip_unanswered vip=%s why=%r", address, why)
        if not gone and not new:
            return
        await self._hush(gone)
        self._write(ours | new)
        lines = [
            f"addr replace {host_prefix(a)} dev {interface} nodad" for a, interface in new.items()
        ]
        if lines:
            await ip(self._namespace, "-batch", "-", stdin="\n".join(lines))
            self._begin_to_tell(new)
        for address, interface in gone.items():
            try:
                await ip(self._namespace, "addr", "del", host_prefix(address), "dev", interface)
            except AddressError as err:
                log.warning("event=address_not_removed vip=%s why=%r", address, str(err))
        self._write({a: i for a, i in (ours | new).items() if a in wanted})

    async def told(self) -> None:
        """Until the neighbours have been told of what was added so far."""
        await asyncio.gather(*self._telling, return_exceptions=True)

    async def _links(self) -> list[_Link]:
        shown = await ip(self._namespace, "-j", "addr", "show", "up")
        try:
            return msgspec.json.decode(shown, type=list[_Link])
        except msgspec.MsgspecError as err:
            raise AddressError(f"`ip -j addr` can't be read: {err}") from err

    def _begin_to_tell(self, places: dict[str, str]) -> None:
        task = asyncio.create_task(self._tell(places))
        self._telling[task] = places
        task.add_done_callback(self._telling.pop)

    async def _hush(self, gone: Collection[str]) -> None:
        """Tell of these no more: who has them now may have begun, and the last word counts."""
        for task, places in list(self._telling.items()):
            if any(address in places for address in gone):
                task.cancel()
                await asyncio.wait([task])
                if rest := {a: i for a, i in places.items() if a not in gone}:
                    self._begin_to_tell(rest)

    async def _tell(self, places: dict[str, str]) -> None:
        words = [f"{interface}={address}" for address, interface in places.items()]
        process = await asyncio.create_subprocess_exec(
            *in_namespace(self._namespace, [sys.executable, "-I", "-S", str(_TELL), *words]),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if process.returncode:
            last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
            log.warning("event=neighbours_not_told vips=%s why=%r", ",".join(places), last)
        else:
            log.info("event=neighbours_told vips=%s", ",".join(places))

    def _ours(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _write(self, ours: dict[str, str]) -> None:
        if not ours:
            self._file.unlink(missing_ok=True)
            return
        part = self._file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(ours))
        part.replace(self._file)


def _on(links: Iterable[_Link], address: str) -> str:
    """The interface that has the subnet of an address; "": none."""
    wanted = ip_address(address)
    for link in links:
        for one in link.addr_info if link.ifname != "lo" else ():
            if not one.local or one.prefixlen == wanted.max_prefixlen:
                continue
            if wanted in ip_network(f"{one.local}/{one.prefixlen}", strict=False):
                return link.ifname
    return ""

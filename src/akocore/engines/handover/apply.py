"""A Service Engine's handover: its rules in a network namespace, and the flows that it owns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
)
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from akocore.engines.frr.process import in_namespace
from akocore.engines.handover.interface_settings import set_interface
from akocore.engines.handover.plan import (
    DEVICE,
    PORT,
    TABLE,
    USUALLY_TRACKED,
    Ring,
    Rule,
    batch,
    delta,
    link,
    only_elements_differ,
    sysctls,
    undo,
)

__all__ = ["Counters", "Handover", "HandoverError", "bring", "interface_of"]

_MOST_TRACKED = "net/netfilter/nf_conntrack_max"
_STRICT = "net/ipv4/conf/all/rp_filter"
_AT_ONCE = 100  # prefixes in one command

_log = logging.getLogger(__name__)


class HandoverError(Exception):
    """The kernel refused a rule or a setting; the text says which and why."""


class _State(Struct):
    """What must be known after a crash.  ``before``: settings as they were."""

    before: dict[str, str] = {}
    ring: Ring | None = None  # None: the packet filter may be any


class Counters(Struct, frozen=True):
    """Packets since the rules were written as a whole.

    ``begun``: foreign ones that the router brought; ``passed``: those that another member handed
    here and that went on; ``unowned``: those that nobody owns, so that they ended here;
    ``limited``: first ones of foreign flows that were dropped, as too many begin.
    """

    begun: int = 0
    passed: int = 0
    unowned: int = 0
    limited: int = 0


class _Interface(Struct):
    """Of ``ip -j addr show to``, which shows those that don't match as ``{}``."""

    ifname: str = ""
    mtu: int = 0


class _Vxlan(Struct):
    port: int = 0
    external: bool = False
    gpe: bool = False


class _LinkInfo(Struct):
    info_kind: str = ""
    info_data: _Vxlan | None = None


class _Link(Struct):
    """Of ``ip -d -j link show``."""

    flags: list[str]
    linkinfo: _LinkInfo | None = None

    @property
    def good(self) -> bool:
        data = self.linkinfo.info_data if self.linkinfo is not None else None
        return data == _Vxlan(PORT, external=True, gpe=True) and "UP" in self.flags


def _is_right(key: str, there: Mapping[str, str]) -> bool:
    """Whether a setting does as it is.  Of a reverse-path filter the greater value counts."""
    if key.endswith("/rp_filter"):
        return max(there[key], there[_STRICT]) != "1"
    return there[key] == "1" or (there[key] == "" and "conntrack" in key)  # not loaded yet


def _set_otherwise(key: str, value: str) -> bool:
    """Set one that /proc/sys doesn't take, if it is an interface's; whether that went."""
    *path, device, name = key.split("/")
    if path != ["net", "ipv4", "conf"]:
        return False
    try:
        set_interface(device, name, int(value))
    except (KeyError, OSError):
        return False
    return True


def _remedy(key: str) -> str:
    """What an administrator sets, so that it is as it must be for us."""
    if key.endswith("/rp_filter"):
        return "net.ipv4.conf.all.rp_filter=2"
    if key.startswith("net/ipv4/conf/"):
        return "net.ipv4.ip_forward=1"
    return f"{key.replace('/', '.')}=1"


class _Counter(Struct):
    name: str
    packets: int


class _Shown(Struct):
    counter: _Counter | None = None


class _Answer(Struct):
    nftables: list[_Shown]


class Handover:
    """That of one Service Engine in ``namespace`` (None: ours); ``file``: what it remembers.

    One call at a time goes on; others wait.
    """

    def __init__(self, file: Path, namespace: Path | None = None) -> None:
        self._file = file
        self._namespace = namespace
        self._turn = asyncio.Lock()
        self._applied: Ring | None = None  # by us, and nothing has failed since

    @property
    def ring(self) -> Ring | None:
        """What was applied last, also by an earlier process; None: nothing, or half of it."""
        return self._read().ring

    async def apply(self, ring: Ring) -> None:
        """Bring the kernel to ``ring``.  Raises `HandoverError`; then apply again.

        The tunnel, settings and routes come before the packet filter, which changes in one
        transaction: no packet is marked for a table that isn't there.  A setting is written only
        if it is not as it must be.  Cost: some 40 ms, most of it processes; 5 ms when only VIPs
        or those that may join are others than we applied last.
        """
        async with self._turn:
            if await self._apply_elements(ring):
                return
            self._applied = None
            state = self._read()
            await self._make_tunnel()
            wanted = sysctls(ring)
            there = await self._settings([*wanted, _STRICT, _MOST_TRACKED])
            tracked = ring.tracked or int(there[_MOST_TRACKED] or USUALLY_TRACKED)
            ring = structs.replace(ring, tracked=tracked)
            changes = delta(state.ring if await self._has_table() else None, ring)
            wrong = {key: value for key, value in wanted.items() if not _is_right(key, there)}
            kept = {key: there[key] for key in wrong if DEVICE not in key} | state.before
            self._write(_State(kept, None))
            await self._set(wrong)
            for version in (4, 6):
                lines = batch(ring, version, await self._rules(version))
                await self._ip(version, lines)
            if changes:
                await self._nft(changes)
            self._write(_State(kept, ring))
            self._applied = ring
            if len(ring.members) > 1:
                await self.forget_ended(ring.vips)
            _log.info(
                "event=handover_applied se=%s members=%d vips=%d back=%s",
                *(ring.me, len(ring.members), len(ring.vips), ring.back),
            )

    async def _apply_elements(self, ring: Ring) -> bool:
        """Bring just sets to ``ring``, if no more has changed; whether that did."""
        before = self._applied
        if before is not None and not ring.tracked:
            ring = structs.replace(ring, tracked=before.tracked)
        if before is None or ring == before or not only_elements_differ(before, ring):
            return False
        settings = self._read().before
        self._write(_State(settings, None))
        try:
            if changes := delta(before, ring):
                await self._nft(changes)
        except HandoverError:
            return False  # somebody has taken the table away
        self._write(_State(settings, ring))
        self._applied = ring
        return True

    async def remove(self) -> None:
        """Leave the kernel as it was before the first `apply`, wherever that one ended."""
        async with self._turn:
            self._applied = None
            await self._nft(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
            for version in (4, 6):
                await self._ip(version, undo(version, await self._rules(version)))
            if DEVICE.encode() in await self._run(["ip", "-br", "link"]):
                await self._run(["ip", "link", "del", DEVICE])
            before = self._read().before
            await self._set(dict(reversed(before.items())))
            self._file.unlink(missing_ok=True)

    async def counters(self) -> Counters:
        """What the packet filter counted."""
        out = await self._run(["nft", "-j", "list", "counters", "table", "inet", TABLE])
        found = msgspec.json.decode(out, type=_Answer).nftables
        return Counters(**{s.counter.name: s.counter.packets for s in found if s.counter})

    async def owned(self, *vips: str) -> int:
        """How many flows of VIPs this Service Engine owns: its TCP sockets that may get data.

        Sockets, not entries of connection tracking: of a process that ended these stay for days.
        Cost: all sockets of the network namespace.
        """
        states = ["exclude", "listening", "exclude", "closed", "exclude", "time-wait"]
        out = await self._run(["ss", "-Htn", *states])
        wanted = {ip_address(vip) for vip in vips}
        return sum(_local(line) in wanted for line in out.decode().splitlines())

    async def forget_ended(self, vips: Collection[str]) -> None:
        """End all of VIPs' sockets that are in TIME_WAIT.

        The kernel does not forward a packet of a 5-tuple that it has such a socket of, so whoever
        has closed a connection of a port that a client uses again could not hand the next one on
        (`ip_forward` drops what early demultiplexing found a socket for).  A packet that was lost
        so is sent again.  Needs CONFIG_INET_DIAG_DESTROY.  Cost: all sockets of the namespace.
        """
        ips = [ip_address(vip) for vip in vips]
        four = collapse_addresses(IPv4Network(ip) for ip in ips if isinstance(ip, IPv4Address))
        six = collapse_addresses(IPv6Network(ip) for ip in ips if isinstance(ip, IPv6Address))
        prefixes = [*(f"src {net}" for net in four), *(f"src [{net}]" for net in six)]
        for i in range(0, len(prefixes), _AT_ONCE):
            some = " or ".join(prefixes[i : i + _AT_ONCE])
            await self._run(["ss", "-HKtn", "state", "time-wait", f"( {some} )"])

    async def drained(self, vips: Collection[str], within_s: float, poll_s: float = 0.1) -> int:
        """Wait until no flow of ``vips`` is left, at most ``within_s``; how many are left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while left := await self.owned(*vips):
            if (wait_s := min(poll_s, deadline - loop.time())) <= 0:
                break
            await asyncio.sleep(wait_s)
        _log.info("event=handover_drained at=%s left=%d", self._file.stem, left)
        return left

    # ─── the kernel

    async def _rules(self, version: int) -> list[Rule]:
        out = await self._run(["ip", f"-{version}", "-j", "rule", "show"])
        return msgspec.json.decode(out or b"[]", type=list[Rule])

    async def _ip(self, version: int, lines: Sequence[str]) -> None:
        flushes = [line for line in lines if line.startswith("route flush")]
        if rest := [line for line in lines if line not in flushes]:
            await self._run(["ip", f"-{version}", "-batch", "-"], "\n".join(rest))
        if flushes:  # of a table that never was: an error that means nothing
            with contextlib.suppress(HandoverError):
                await self._run(["ip", f"-{version}", "-force", "-batch", "-"], "\n".join(flushes))

    async def _has_table(self) -> bool:
        out = await self._run(["nft", "list", "tables", "inet"])
        return f"table inet {TABLE}".encode() in out.splitlines()

    async def _nft(self, text: str) -> None:
        await self._run(["nft", "-f", "-"], text)

    async def _make_tunnel(self) -> None:
        """Unless it is there as it must be."""
        if DEVICE.encode() in await self._run(["ip", "-br", "link"]):
            out = await self._run(["ip", "-d", "-j", "link", "show", DEVICE])
            (there,) = msgspec.json.decode(out, type=list[_Link])
            if there.good:
                return
            await self._run(["ip", "link", "del", DEVICE])
        for words in link():
            await self._run(words)

    async def _settings(self, keys: Collection[str]) -> dict[str, str]:
        """As they are; "": the kernel has no such setting."""
        script = 'for f; do cat "$f" 2>/dev/null || echo; done'
        words = ["sh", "-c", script, "sh", *(f"/proc/sys/{key}" for key in keys)]
        lines = (await self._run(words)).decode().splitlines()
        return dict(zip(keys, lines, strict=True))

    async def _set(self, values: dict[str, str]) -> None:
        for key, value in values.items():
            try:
                await self._run(["sh", "-c", f"echo {value} >/proc/sys/{key}"])
            except HandoverError as err:
                if self._namespace is None and _set_otherwise(key, value):
                    continue
                name = _remedy(key)
                raise HandoverError(
                    f"{key.replace('/', '.')} can't be set to {value} here."
                    f" Set {name} on this node (sysctl -w {name})."
                ) from err

    async def _run(self, words: Sequence[str], stdin: str = "") -> bytes:
        return await _run(in_namespace(self._namespace, words), stdin)

    # ─── what it remembers

    def _read(self) -> _State:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_State)
        except (OSError, msgspec.MsgspecError):
            return _State()

    def _write(self, state: _State) -> None:
        part = self._file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(state))
        part.replace(self._file)


async def bring(handovers: Mapping[str, Handover], wanted: Mapping[str, Ring]) -> None:
    """Bring all members of a ring, by name, to what each is to know; no packet misses meanwhile.

    All of them, or `HandoverError`; then no route may change yet: bring them there again.
    """
    done = (handovers[name].apply(ring) for name, ring in wanted.items())
    for outcome in await asyncio.gather(*done, return_exceptions=True):
        if outcome is not None:
            raise outcome


async def interface_of(address: str) -> tuple[str, int]:
    """The interface here that has an address, and its MTU in bytes.  Raises `HandoverError`."""
    out = await _run(["ip", "-j", "addr", "show", "to", address])
    found = [one for one in msgspec.json.decode(out or b"[]", type=list[_Interface]) if one.ifname]
    if not found:
        raise HandoverError(f"{address} is on no interface here. Give --address one that is.")
    return found[0].ifname, found[0].mtu


def _local(line: str) -> IPv4Address | IPv6Address:
    """The local address of a line of ``ss -Htn``."""
    text = line.split()[3].rpartition(":")[0].strip("[]").partition("%")[0]
    ip = ip_address(text)
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


async def _run(words: Sequence[str], stdin: str = "") -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as err:
        raise HandoverError(
            f"{err.filename} can't be run. Install nftables, iproute2 and util-linux."
        ) from err
    out, said = await process.communicate(stdin.encode())
    if process.returncode:
        text = " ".join(said.decode("utf-8", "replace").split())
        raise HandoverError(f"{' '.join(words)}: {text or 'failed'}")
    return out

"""Whether Envoys can listen where they are to, and what the kernel does with that."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Collection, Iterable
from ipaddress import ip_address
from pathlib import Path

from akocore.engines.envoy.admin import EngineError
from akocore.engines.processes import arguments, capabilities, pids

__all__ = ["may_listen", "migrate_requests", "preflight"]

_log = logging.getLogger(__name__)

_LISTEN = "0A"


def preflight(addresses: Iterable[tuple[str, int]], own: Collection[int] = ()) -> None:
    """Say now what Envoy would only refuse later: can each (address, port) be listened on?

    ``own``: pids of our Service Engines, which may hold them.  Raises one `EngineError` that
    names every address in the way, what is wrong with it and what to do.
    """
    problems: dict[str, None] = {}
    for address, port in addresses:
        problem = _problem(address, port, own)
        if problem:
            problems[problem] = None
    if problems:
        raise EngineError("\n".join(problems))


def may_listen(port: int) -> None:
    """Raises `EngineError` when listening on ``port`` needs a privilege that we don't have."""
    first = _first_free_port()
    if port < first and "NET_BIND_SERVICE" not in capabilities():
        raise EngineError(
            f"port {port} needs a privilege: below {first} only with CAP_NET_BIND_SERVICE."
            " Use --port-offset 8000, or as root: sysctl net.ipv4.ip_unprivileged_port_start=80."
        )


def _problem(address: str, port: int, own: Collection[int]) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError as err:
        return (
            f"{address} is not an address of this machine ({err.strerror})."
            " Add it, or choose a Network whose range is local (127.0.0.0/8 always is)."
        )
    taken = False
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind((address, port))
    except OSError as err:
        if err.errno != errno.EADDRINUSE:
            return f"{address}:{port} can't be listened on: {err.strerror}."
        taken = True
    inodes = _listening_inodes(address, port)
    found = _holders(inodes) if inodes else []
    holders = [pid for pid in found if pid not in own]
    if not holders and (found or not taken):  # ours may be another user's
        return ""
    who = ", ".join(f"{_command_name(pid)} (pid {pid})" for pid in holders)
    return (
        f"{address}:{port} is taken by {who or 'a process of another user'}."
        " Stop it, or choose other ports with --port-offset."
    )


def migrate_requests() -> None:
    """Have the kernel pass on what waits to be accepted when one of several listeners closes.

    For this network namespace; Linux 5.14, net/core/sock_reuseport.c: reuseport_migrate_sock().
    """
    path = Path("/proc/sys/net/ipv4/tcp_migrate_req")
    try:
        if path.read_text("ascii").strip() != "1":
            path.write_text("1")
    except OSError as err:
        # One alone on its addresses, as in a pod, has nobody to pass anything on to.
        remedy = "as root: sysctl net.ipv4.tcp_migrate_req=1"
        _log.info("event=sysctl_not_set name=%s why=%r do=%r", path, err.strerror, remedy)


def _first_free_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_bytes())
    except (OSError, ValueError):
        return 1024


def _proc_address(address: str) -> str:
    """As /proc/net/tcp writes it: 32-bit words in the machine's byte order."""
    packed = ip_address(address).packed
    words = (packed[i : i + 4] for i in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _listening_inodes(address: str, port: int) -> set[str]:
    """Sockets that listen on the address itself or on every address."""
    alike = [address, "::"] if ":" in address else [address, "0.0.0.0", "::", f"::ffff:{address}"]
    places = {f"{_proc_address(one)}:{port:04X}" for one in alike}
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table, encoding="ascii") as rows:
            for row in rows:
                fields = row.split()
                if fields[3] == _LISTEN and fields[1] in places:
                    inodes.add(fields[9])
    return inodes


def _holders(inodes: set[str]) -> list[int]:
    """Processes that have one of the sockets open, as far as we may see."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    holders = []
    for pid in pids():
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") in wanted:
                        holders.append(pid)
                        break
    return sorted(holders)


def _command_name(pid: int) -> str:
    argv = arguments(pid)
    return Path(argv[0]).name if argv else "?"

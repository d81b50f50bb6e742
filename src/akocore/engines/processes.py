"""What the kernel says about a process: enough to know it again after a restart of ours."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "arguments",
    "boot_id",
    "capabilities",
    "cpu_s",
    "exit_text",
    "is_stopped",
    "pids",
    "start_ticks",
    "uptime_s",
]

# Of capability.h, those that are asked for here.
_CAPABILITIES = {
    0: "CHOWN",
    5: "KILL",
    6: "SETGID",
    7: "SETUID",
    8: "SETPCAP",
    10: "NET_BIND_SERVICE",
    12: "NET_ADMIN",
    13: "NET_RAW",
    21: "SYS_ADMIN",
}


def capabilities() -> frozenset[str]:
    """Our effective capabilities, of those that matter to us."""
    status = Path("/proc/self/status").read_text("utf-8", "replace")
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    mask = int(match[1], 16) if match is not None else 0
    return frozenset(name for bit, name in _CAPABILITIES.items() if mask >> bit & 1)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def start_ticks(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks since boot; None: no such, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_stopped(pid: int) -> bool:
    """Whether process ``pid`` was told to stop, as by SIGSTOP, and not yet to go on."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] in (b"T", b"t")


def cpu_s(pid: int) -> float:
    """Processor time that process ``pid`` has used; 0 when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def arguments(pid: int) -> list[str]:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except OSError:
        return []


def pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            yield int(entry)


def exit_text(pidfd: int) -> str:
    """How the process behind ``pidfd`` ended; reaps it when it is our child."""
    try:
        done = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        done = None
    if done is None:
        return "ended (adopted, so its exit code isn't known)"
    if done.si_code == os.CLD_EXITED:
        return f"exit code {done.si_status}"
    return signal.Signals(done.si_status).name

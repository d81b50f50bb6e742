"""What the kernel says about a process: enough to know it again after a restart of ours."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["arguments", "boot_id", "exit_text", "pids", "start_ticks", "uptime_s"]


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

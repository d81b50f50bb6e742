"""The lab without root: in a user namespace, where we are root over our own network.

A holder process keeps the namespace between commands; every command goes on inside.  The lab is
gone with the last process in it, and `let_go` ends them all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from akocore.engines.processes import boot_id, pids, start_ticks
from akocore.lab.namespaces import LabError

__all__ = ["Holder", "find_holder", "hold", "let_go", "run_inside"]

# iproute2 keeps the names of namespaces in /run, which is not ours outside.
_HOLD = "mount -t tmpfs none /run && mkdir /run/netns && echo held && exec sleep infinity"


class Holder(Struct, frozen=True):
    """The process that keeps a lab's user namespace."""

    pid: int
    ticks: int
    boot: str
    namespace: str  # "user:[4026532281]"


def hold(directory: Path) -> Holder:
    """Make the user namespace of a lab.  Raises `LabError` where that isn't allowed."""
    if (there := find_holder(directory)) is not None and _inside(there.namespace):
        raise LabError(f"a lab is up in {directory}. Run `akocore lab down`.")
    for tool in ("unshare", "nsenter"):
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is missing. Install util-linux.")
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    process = subprocess.Popen(
        ["unshare", "-Urnm", "--", "sh", "-c", _HOLD],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        if process.stdout.readline() != "held\n":
            said = " ".join(process.stderr.read().split())
            process.wait()
            raise LabError(
                f"user namespaces are not allowed here ({said}). Run as root, or allow them:"
                " sysctl kernel.unprivileged_userns_clone=1 or"
                " kernel.apparmor_restrict_unprivileged_userns=0, as your system has it."
            )
    holder = Holder(
        process.pid,
        start_ticks(process.pid) or 0,
        boot_id(),
        os.readlink(f"/proc/{process.pid}/ns/user"),
    )
    process.returncode = 0  # it outlives us, and nobody here waits for it
    (directory / "holder.json").write_bytes(msgspec.json.encode(holder))
    return holder


def find_holder(directory: Path) -> Holder | None:
    """What `hold` wrote down since the machine started; it may have ended."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        holder = msgspec.json.decode((directory / "holder.json").read_bytes(), type=Holder)
        if holder.boot == boot_id():
            return holder
    return None


def run_inside(holder: Holder, arguments: Sequence[str]) -> int:
    """Run ``akocore ARGUMENTS`` inside a lab's user namespace; its exit code.

    Raises `LabError` when the holder has ended.
    """
    if start_ticks(holder.pid) != holder.ticks:
        raise LabError("the lab's user namespace is gone. Run `akocore lab down`.")
    sys.stdout.flush()
    return subprocess.call(
        [
            *("nsenter", "--preserve-credentials", "-U", "-m", "-n", "-t", str(holder.pid), "--"),
            *(sys.executable, "-m", "akocore", *arguments),
        ]
    )


def let_go(holder: Holder) -> None:
    """End every process of a lab, also after a crash; its namespaces go with the last one."""
    deadline = time.monotonic() + 5
    while there := _inside(holder.namespace):
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"processes {there} don't end.")
        time.sleep(0.01)
    if start_ticks(holder.pid) == holder.ticks:
        raise LabError(f"process {holder.pid} is another user's. Run this as who made the lab.")


def _inside(namespace: str) -> list[int]:
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/user") == namespace and start_ticks(pid) is not None:
                found.append(pid)
    return found

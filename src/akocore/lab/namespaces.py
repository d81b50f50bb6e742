"""Network namespaces whose names begin alike, with what is inside them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from akocore.engines.frr.process import in_namespace

__all__ = ["LabError", "Namespaces"]

_RUN = Path("/run/netns")  # where iproute2 keeps names


class LabError(Exception):
    """The lab can't go on; the text says why and what to do."""


class Namespaces:
    """The namespaces of one lab.  A short name ("se-1") is one without the prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def path(self, name: str) -> Path:
        """The file that holds the namespace, for nsenter."""
        return _RUN / f"{self.prefix}{name}"

    def names(self) -> list[str]:
        """Those that there are, also after a crash."""
        with contextlib.suppress(FileNotFoundError):
            found = [n for n in os.listdir(_RUN) if n.startswith(self.prefix)]
            return sorted(n.removeprefix(self.prefix) for n in found)
        return []

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        """``words`` as a command that runs inside."""
        return in_namespace(self.path(name), words)

    async def run(self, name: str | None, words: Sequence[str], stdin: str = "") -> str:
        """What a command inside prints (None: outside).  Raises `LabError` when it fails."""
        command = list(words) if name is None else self.command(name, words)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError as err:
            raise LabError(f"{command[0]} is missing. Install iproute2 and util-linux.") from err
        out, said = await process.communicate(stdin.encode())
        if process.returncode:
            text = " ".join(said.decode("utf-8", "replace").split())
            raise LabError(f"{' '.join(words)} in {name or 'this namespace'}: {text}")
        return out.decode("utf-8", "replace")

    async def ip(self, name: str | None, lines: Iterable[str]) -> None:
        """Lines of ``ip -batch``."""
        await self.run(name, ["ip", "-batch", "-"], "\n".join(lines))

    async def sysctl(self, name: str, values: Mapping[str, object]) -> None:
        """Set ``values`` (paths below /proc/sys) inside; those this kernel lacks are left out."""
        lines = "".join(f"/proc/sys/{key} {value}\n" for key, value in values.items())
        script = 'while read -r f v; do [ ! -e "$f" ] || echo "$v" >"$f" || exit 1; done'
        await self.run(name, ["sh", "-c", script], lines)

    async def add(self, names: Iterable[str]) -> None:
        """Make namespaces whose loopback is up.  Raises `LabError` that says what is missing."""
        names = list(names)
        if missing := [tool for tool in ("ip", "nsenter", "sh") if shutil.which(tool) is None]:
            raise LabError(f"{', '.join(missing)} is missing. Install iproute2 and util-linux.")
        try:
            await self.ip(None, [f"netns add {self.prefix}{name}" for name in names])
        except LabError as err:
            raise LabError(
                f"network namespaces can't be made here ({err})."
                " Run as root, or where unprivileged user namespaces are allowed."
            ) from err
        await asyncio.gather(*(self.ip(name, ["link set lo up"]) for name in names))

    async def connect(self, *pairs: tuple[str, str, str, str]) -> None:
        """Cables: (namespace, interface, namespace, interface), both ends down."""
        await self.ip(
            None,
            [
                f"link add {a_if} netns {self.prefix}{a} type veth"
                f" peer name {b_if} netns {self.prefix}{b}"
                for a, a_if, b, b_if in pairs
            ],
        )

    def spawn(self, name: str, words: Sequence[str], log: Path) -> int:
        """Start a process inside that outlives us; its pid."""
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        command = self.command(name, words)
        try:
            return os.posix_spawnp(
                command[0],
                command,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, descriptor, 1),
                    (os.POSIX_SPAWN_DUP2, descriptor, 2),
                ],
                setsid=True,
                setsigmask=(),
            )
        finally:
            os.close(descriptor)

    async def pids(self, name: str) -> list[int]:
        """Processes inside."""
        out = await self.run(None, ["ip", "netns", "pids", f"{self.prefix}{name}"])
        return [int(pid) for pid in out.split()]

    async def remove(self, names: Iterable[str]) -> None:
        """Kill what runs inside, and remove the namespaces with their interfaces."""
        there = [name for name in names if name in self.names()]
        killed: list[int] = []
        for _ in range(200):
            inside = [pid for name in there for pid in await self.pids(name)]
            for pid in inside:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed += inside
            if not inside:
                break
            await asyncio.sleep(0.01)
        _reap(killed)
        if there:
            await self.ip(None, [f"netns del {self.prefix}{name}" for name in there])


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # most are not our children
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

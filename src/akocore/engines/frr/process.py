"""One Service Engine's FRR as processes: find, start, watch, restart, adopt, stop.

zebra, bfdd and bgpd outlive their akocore as Envoys do, so a restart of akocore withdraws no
VIP: the next one finds them in the router's directory and takes them over.  One that ends by
itself is started again with what it was last told.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path

import msgspec
from msgspec import Struct

from akocore.engines.children import (
    HEALTHY_AFTER_S,
    check_socket_path,
    hold,
    last_lines,
    pause_s,
    spawn,
    take,
)
from akocore.engines.frr.config import DAEMONS, Rendered
from akocore.engines.frr.vty import VtyError, ask
from akocore.engines.processes import boot_id, capabilities, exit_text, start_ticks, uptime_s

__all__ = ["MINIMUM_FRR", "Daemon", "Frr", "FrrError", "Router", "end", "find_frr", "in_namespace"]

MINIMUM_FRR = (8, 4)
"""The first release whose commands and JSON akocore is written for."""

_PLACES = (Path("/usr/lib/frr"), Path("/usr/libexec/frr"))
_USER = "frr"  # as all packages of FRR are built: FRR's own default
_CRASH_LOGS = Path("/var/tmp/frr")
_CONFINED = Path(__file__).with_name("confined.py")
_READY_WITHIN_S = 10.0
_KEPT_ENV = ("PATH", "LD_LIBRARY_PATH", "TZ")

_log = logging.getLogger(__name__)


class FrrError(Exception):
    """A router can't be run; the text says why and what to do."""


class Frr(Struct, frozen=True):
    """FRR's daemons, whose version was asked."""

    directory: Path
    version: str


class Daemon(Struct, frozen=True, kw_only=True):
    """One daemon as it is now.  ``pid`` None: it is down and will be tried again."""

    pid: int | None
    started: float  # seconds since 1970, of the running process or the last one
    restarts: int = 0
    last_exit: str = ""  # "SIGKILL; <last log line>", "exit code 1; ...", "can't start: ..."
    adopted: bool = False  # found running, not started by this akocore


def find_frr(explicit: Path | None = None, environ: Mapping[str, str] = os.environ) -> Frr:
    """The FRR to run: ``explicit``, $AKOCORE_FRR_DIR, or where packages put it.

    Raises `FrrError` when there is none or it is too old.  Cost: one ``bgpd --version``.
    """
    directory = _frr_directory(explicit, environ)
    bgpd = directory / "bgpd"
    try:
        done = subprocess.run(
            [bgpd, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise FrrError(f"{bgpd} can't be run: {err}. Give another one with --frr-dir.") from err
    match = re.match(r"bgpd version (\d+)\.(\d+)(\S*)", done.stdout)
    if match is None:
        raise FrrError(
            f"{bgpd} doesn't answer --version as FRR does. Give another one with --frr-dir."
        )
    version = f"{match[1]}.{match[2]}{match[3]}"
    if (int(match[1]), int(match[2])) < MINIMUM_FRR:
        raise FrrError(
            f"{bgpd} is FRR {version}, and akocore needs {MINIMUM_FRR[0]}.{MINIMUM_FRR[1]} or"
            " later. Install a newer one or give it with --frr-dir."
        )
    return Frr(directory, version)


def _frr_directory(explicit: Path | None, environ: Mapping[str, str]) -> Path:
    named = (("--frr-dir", explicit), ("AKOCORE_FRR_DIR", environ.get("AKOCORE_FRR_DIR")))
    for source, value in named:
        if value:
            path = Path(value).absolute()
            if missing := _missing(path):
                raise FrrError(
                    f"{source}: {path} has no {', '.join(missing)}."
                    " Give the directory of FRR's daemons."
                )
            return path
    for path in _PLACES:
        if not _missing(path):
            return path
    raise FrrError(
        "there is no FRR here: run `apt-get install --no-install-recommends frr`"
        " (or your system's like), or give the directory of its daemons with --frr-dir."
    )


def _missing(directory: Path) -> list[str]:
    return [name for name in DAEMONS if not os.access(directory / name, os.X_OK)]


def in_namespace(namespace: Path | None, command: Sequence[str]) -> list[str]:
    """``command`` so that it runs in a network namespace (a file of nsfs); None: in ours."""
    return [*(["nsenter", f"--net={namespace}", "--"] if namespace is not None else []), *command]


class _As(Enum):
    """Who FRR's daemons run as."""

    FRR = auto()  # as they are packaged
    OTHER_ROOT = auto()  # root of a user namespace that has no user for them
    CONFINED = auto()  # root that may do little: of a container


_NEEDED = ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW")
_TO_BE_FRR = {"CHOWN", "SETGID", "SETUID", "SYS_ADMIN"}


def _who() -> _As:
    """Who the daemons can run as.

    Raises `FrrError` when we are no root at all or may too little, or FRR's user doesn't exist.
    """
    if os.geteuid() != 0:
        raise FrrError("FRR needs root. Run as root, or inside `unshare -Urnm`.")
    may = capabilities()
    if missing := [name for name in _NEEDED if name not in may]:
        raise FrrError(
            f"FRR needs the capabilities {', '.join(_NEEDED)}, and {', '.join(missing)}"
            f" {'is' if len(missing) == 1 else 'are'} missing. Add them to the container's"
            " securityContext, or run with all of root's."
        )
    try:
        user = pwd.getpwnam(_USER)
    except KeyError:
        raise FrrError(f"there is no user {_USER}. Install FRR by its package.") from None
    for row in Path("/proc/self/uid_map").read_text("ascii").splitlines():
        first, _, count = map(int, row.split())
        if first <= user.pw_uid < first + count:
            return _As.FRR if may >= _TO_BE_FRR else _As.CONFINED
    return _As.OTHER_ROOT if "SYS_ADMIN" in may else _As.CONFINED


def end(directory: Path) -> None:
    """End at once what runs in a router's directory, and remove what it leaves in others.

    For a directory that nobody supervises, as after a crash.
    """
    for name in DAEMONS:
        if (known := _read_run(directory, name)) is not None:
            _end(known)
            _forget_crash_logs(name, known)


def _read_run(directory: Path, name: str) -> _RunFile | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((directory / f"{name}.run").read_bytes(), type=_RunFile)
    return None


def _end(known: _RunFile) -> None:
    try:
        pidfd = os.pidfd_open(known.pid)
    except OSError:
        return
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended; not ours
        if known.boot == boot_id() and start_ticks(known.pid) == known.ticks:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 5)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    os.close(pidfd)


def _forget_crash_logs(name: str, known: _RunFile) -> None:
    if start_ticks(known.pid) is None:  # else the pid is another's, and so is what has its name
        shutil.rmtree(_CRASH_LOGS / f"{name}.{known.pid}", ignore_errors=True)


# ─── supervision ─────────────────────────────────────────────────────────────────────────────


class _RunFile(Struct, frozen=True):
    """What proves, later, that a pid is the daemon we started with those arguments."""

    pid: int
    ticks: int
    boot: str
    digest: str
    log_offset: int


class _Slot:
    """One daemon that is watched."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pidfd = -1
        self.stopping = False
        self.waits = False  # for zebra
        self.ended_for = ""  # why we ended it ourselves, to start it anew
        self.failures = 0
        self.log_offset = 0
        self.since_s = 0.0  # uptime of the machine when it started
        self.timer: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()
        self.record = Daemon(pid=None, started=0.0)


class Router:
    """The daemons of one Service Engine, in a directory of its own.

    ``namespace``: the network namespace they run in, as a file; None: the one we are in.
    ``listen``: the addresses at which peers find it, which must be there; (): all.
    ``on_change(daemon)`` is called in the event loop whenever ``daemons[daemon]`` changed.
    """

    def __init__(
        self,
        directory: Path,
        frr: Frr,
        namespace: Path | None = None,
        *,
        listen: Collection[str] = (),
        kill_after_s: float = 5.0,
        on_change: Callable[[str], None] = lambda _daemon: None,
    ) -> None:
        self.directory = directory.absolute()
        self.namespace = namespace
        self._listen = tuple(sorted(listen))
        self._frr = frr
        self._kill_after_s = kill_after_s
        self._on_change = on_change
        self._slots: dict[str, _Slot] = {}
        self._lock = -1
        self._as = _As.FRR
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def daemons(self) -> dict[str, Daemon]:
        """Every daemon that is watched, also one that is down for now."""
        return {name: self._slots[name].record for name in DAEMONS if name in self._slots}

    async def start(self, config: Rendered) -> None:
        """Have the daemons running; adopt those that do, with what they were told before.

        Returns when each has answered; one that doesn't is in its record, and is tried again.
        `told` then says what each runs with, which is ``config`` only if it was started now.
        Raises `FrrError`: the directory can't be used, or FRR can't be run here.
        """
        self._open()
        for name in DAEMONS:
            if name in self._slots:
                continue
            slot = self._slots[name] = _Slot(name)
            if not await self._adopt(slot):
                slot = self._slots[name] = _Slot(name)
                self._clear(name)
                try:
                    self.keep(name, config.of(name))
                except OSError as err:
                    raise FrrError(f"{self.directory} can't be written: {err.strerror}.") from err
                self._start(slot)
            await self.until_ready(name)

    async def until_ready(self, daemon: str) -> bool:
        """Wait until a daemon that was started answers.  False: it is down, or doesn't in 10 s."""
        slot = self._slots[daemon]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READY_WITHIN_S):
                while slot.record.pid is not None or (
                    slot.waits and self._slots["zebra"].record.pid is not None
                ):
                    try:
                        await self.ask(daemon, [])
                        return True
                    except VtyError:
                        await asyncio.sleep(0.005)
        return False

    def _zebra_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.directory / "zserv.api")) == 0

    def told(self, daemon: str) -> str:
        """The configuration that ``daemon`` has, as far as akocore brought it there."""
        try:
            return self._file(daemon, ".conf").read_text("utf-8")
        except FileNotFoundError:
            return ""

    def attempted(self, daemon: str) -> list[str]:
        """Other configurations that ``daemon`` may have some lines of; see `attempt`."""
        try:
            return msgspec.json.decode(self._file(daemon, ".next").read_bytes(), type=list[str])
        except (FileNotFoundError, msgspec.MsgspecError):
            return []

    def attempt(self, daemon: str, text: str) -> None:
        """Remember, before ``daemon`` is told, that it may get lines of ``text``."""
        texts = self.attempted(daemon)
        if text not in texts:
            self._write(self._file(daemon, ".next"), msgspec.json.encode([*texts, text]))

    def keep(self, daemon: str, text: str) -> None:
        """Remember what ``daemon`` has now; it starts with that the next time."""
        self._write(self._file(daemon, ".conf"), text.encode())
        self._file(daemon, ".next").unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_suffix(".part")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        self._give(part)
        part.replace(path)

    async def ask(
        self,
        daemon: str,
        commands: Sequence[str],
        tolerate: Sequence[int] = (),
        timeout_s: float = 5.0,
    ) -> list[str]:
        """The answers of one daemon; see `akocore.engines.frr.vty.ask`."""
        path = self._file(daemon, ".vty")
        return await ask(path, commands, tolerate=tolerate, timeout_s=timeout_s)

    async def stop(self) -> None:
        """End all daemons, bgpd first: its peers hear of it.  Nothing stays but the logs."""
        for name in reversed(DAEMONS):
            if (slot := self._slots.get(name)) is not None:
                await self._stop(slot)
        if self._lock >= 0:
            for name in ("zserv.api", "bfdd.sock", "group", "lock"):
                (self.directory / name).unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave the daemons running, for the next akocore to adopt, and give up the directory."""
        for slot in self._slots.values():
            if slot.timer is not None:
                slot.timer.cancel()
            self._unwatch(slot)
        self._slots.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ─── files

    def _file(self, daemon: str, suffix: str) -> Path:
        return self.directory / f"{daemon}{suffix}"

    def _give(self, path: Path) -> None:
        """FRR's daemons give up root before they read and write."""
        if self._as is _As.FRR:
            user = pwd.getpwnam(_USER)
            os.chown(path, user.pw_uid, user.pw_gid)

    def _open(self) -> None:
        if self._lock >= 0:
            return
        self._as = _who()
        check_socket_path(self.directory / "zserv.api", FrrError)
        needed = ["unshare", "sh"] if self._as is _As.OTHER_ROOT else []
        for tool in [*needed, *(["nsenter"] if self.namespace is not None else [])]:
            if shutil.which(tool) is None:
                raise FrrError(f"{tool} is missing. Install util-linux.")
        lock = take(self.directory, "the router", FrrError, 0o750)
        try:
            self._give(self.directory)
            self._check_reachable()
        except FrrError:
            os.close(lock)
            raise
        except OSError as err:
            os.close(lock)
            raise FrrError(f"{self.directory} can't be {_USER}'s: {err.strerror}.") from err
        self._lock = lock

    def _check_reachable(self) -> None:
        if self._as is _As.CONFINED:
            return
        if self._as is _As.OTHER_ROOT:
            if self.directory.is_relative_to(_CRASH_LOGS.parent):
                raise FrrError(
                    f"{self.directory}: {_CRASH_LOGS.parent} is hidden from FRR without root."
                    " Choose another directory with --state."
                )
            return
        for parent in self.directory.parents:
            if not parent.stat().st_mode & 0o001:
                raise FrrError(
                    f"user {_USER} can't enter {parent}, and its daemons must."
                    f" Run `chmod o+x {parent}` or choose another directory with --state."
                )

    # ─── one life

    def _command(self, name: str) -> list[str]:
        at = self.directory
        command = [
            *(str(self._frr.directory / name), "-f", str(self._file(name, ".conf"))),
            *("-i", str(self._file(name, ".pid")), "--vty_socket", str(at)),
            *("-z", str(at / "zserv.api"), "-A", "127.0.0.1", "-P", "0"),
            *("--log", "stdout", "--log-level", "informational"),
        ]
        if name == "bfdd":
            command += ["--bfdctl", str(at / "bfdd.sock")]
        if name == "bgpd":
            command += [word for address in self._listen for word in ("-l", address)]
        command = in_namespace(self.namespace, command)
        if self._as is _As.FRR:
            return command
        if self._as is _As.CONFINED:
            return [sys.executable, "-I", "-S", str(_CONFINED), *command]
        # FRR checks that its user is in its groups, and logs crashes to a directory of that user.
        hide = 'mount --bind "$1" /etc/group && mount -t tmpfs none "$2" && shift 2 && exec "$@"'
        hidden = [str(at / "group"), str(_CRASH_LOGS.parent)]
        as_root = ["-u", "root", "-g", "root"]
        return ["unshare", "--mount", "--", "sh", "-c", hide, "sh", *hidden, *command, *as_root]

    def _digest(self, name: str) -> str:
        parts = [self._frr.version, *self._command(name)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    async def _adopt(self, slot: _Slot) -> bool:
        """Take over what an earlier akocore left, if it is that and would be started so again."""
        if (known := _read_run(self.directory, slot.name)) is None:
            return False
        if known.boot != boot_id() or (pidfd := hold(known.pid, known.ticks)) < 0:
            return False
        age_s = uptime_s() - known.ticks / os.sysconf("SC_CLK_TCK")
        slot.log_offset = known.log_offset
        slot.record = Daemon(pid=known.pid, started=time.time() - age_s, adopted=True)
        self._watch(slot, pidfd)
        slot.since_s = uptime_s() - age_s
        if known.digest != self._digest(slot.name):
            await self._stop(slot)
            return False
        _log.info("event=frr_adopted at=%s daemon=%s pid=%d", self._name, slot.name, known.pid)
        return True

    @property
    def _name(self) -> str:
        return self.directory.name

    def _start(self, slot: _Slot) -> None:
        """Start the daemon, or say in the record why not and try again later."""
        slot.waits = slot.name != "zebra" and not self._zebra_listens()
        if slot.waits:
            # bgpd and bfdd look for zebra at once, and then only after seconds.
            slot.timer = asyncio.get_running_loop().call_later(0.01, self._start, slot)
            return
        slot.timer = None
        try:
            pid = self._spawn(slot)
        except OSError as err:
            self._failed(slot, f"can't start: {err.strerror}: {err.filename or slot.name}")
            return
        slot.record = Daemon(
            pid=pid,
            started=time.time(),
            restarts=slot.record.restarts,
            last_exit=slot.record.last_exit,
        )
        slot.since_s = uptime_s()
        self._watch(slot, os.pidfd_open(pid))
        known = _RunFile(
            pid, start_ticks(pid) or 0, boot_id(), self._digest(slot.name), slot.log_offset
        )
        with contextlib.suppress(OSError):  # a full disk: it runs all the same
            self._file(slot.name, ".run").write_bytes(msgspec.json.encode(known))
        _log.info(
            "event=frr_started at=%s daemon=%s pid=%d restarts=%d",
            *(self._name, slot.name, pid, slot.record.restarts),
        )
        self._on_change(slot.name)

    def _spawn(self, slot: _Slot) -> int:
        if self._as is _As.OTHER_ROOT:
            (self.directory / "group").write_text("frr:x:0:root\nfrrvty:x:0:root\n")
        environ = {key: value for key, value in os.environ.items() if key in _KEPT_ENV}
        log = self._file(slot.name, ".log")
        pid, slot.log_offset = spawn(self._command(slot.name), environ, log)
        return pid

    def _watch(self, slot: _Slot, pidfd: int) -> None:
        slot.pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._exited, slot)

    def _unwatch(self, slot: _Slot) -> None:
        if slot.pidfd >= 0:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(slot.pidfd)
            os.close(slot.pidfd)
            slot.pidfd = -1

    def _exited(self, slot: _Slot) -> None:
        text = exit_text(slot.pidfd)
        self._unwatch(slot)
        self._clear(slot.name)
        if slot.stopping:
            self._drop(slot)
            return
        if slot.ended_for:
            text, slot.ended_for = slot.ended_for, ""
        elif lines := last_lines(self._file(slot.name, ".log"), slot.log_offset):
            text = f"{text}; {lines[0]}"
        if slot.name == "zebra":
            self._end_with_zebra()
        if uptime_s() - slot.since_s >= HEALTHY_AFTER_S:
            slot.failures = 0
        self._failed(slot, text)

    def _end_with_zebra(self) -> None:
        """A bgpd that lost its zebra finds the next one late, and asks it only for what is new."""
        for slot in self._slots.values():
            if slot.name != "zebra" and slot.pidfd >= 0 and not slot.stopping:
                slot.ended_for = "zebra ended"
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(slot.pidfd, signal.SIGKILL)

    def _failed(self, slot: _Slot, text: str) -> None:
        slot.failures += 1
        delay_s = pause_s(slot.failures)
        slot.record = Daemon(
            pid=None,
            started=slot.record.started,
            restarts=slot.record.restarts + 1,
            last_exit=text,
        )
        slot.timer = asyncio.get_running_loop().call_later(delay_s, self._start, slot)
        _log.warning(
            "event=frr_down at=%s daemon=%s why=%r again_s=%g",
            *(self._name, slot.name, text, delay_s),
        )
        self._on_change(slot.name)

    def _clear(self, name: str) -> None:
        """Remove what a daemon that is no longer leaves behind, its configuration and log apart."""
        if (known := _read_run(self.directory, name)) is not None:
            _forget_crash_logs(name, known)
        for suffix in (".run", ".pid", ".vty"):
            self._file(name, suffix).unlink(missing_ok=True)

    def _drop(self, slot: _Slot) -> None:
        for suffix in (".conf", ".next"):
            self._file(slot.name, suffix).unlink(missing_ok=True)
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
        slot.gone.set()
        _log.info("event=frr_stopped at=%s daemon=%s", self._name, slot.name)
        self._on_change(slot.name)

    async def _stop(self, slot: _Slot) -> None:
        if slot.stopping:
            await slot.gone.wait()
            return
        slot.stopping = True
        if slot.timer is not None:
            slot.timer.cancel()
        if slot.pidfd < 0:
            self._drop(slot)
            return
        for number, patience_s in (
            (signal.SIGTERM, self._kill_after_s),
            (signal.SIGKILL, None),
        ):
            if slot.pidfd < 0:
                break
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(slot.pidfd, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await slot.gone.wait()

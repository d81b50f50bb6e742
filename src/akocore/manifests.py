"""A directory of manifests as a source of changes: the cluster that is made of files.

It gives what an API server would give: objects with a namespace and a creation time, each
one once, and the last good version of what is broken just now.  A file that is not fine
changes nothing but its own refusals.  The last good version outlives a restart, but for a Secret's:
that is in memory alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from akocore.big_files import BigFiles
from akocore.faults import INTERNAL_ERROR
from akocore.file_events import FileEvents, walk
from akocore.kube.objects import Batch, Change, Object, Secret
from akocore.manifest_file import BOUNDS, Reading, duplicate, read, too_large
from akocore.model import Refusal
from akocore.observe.listening import NO_FILES, OnceAMinute
from akocore.regular_file import NotAFileError, read_regular

log = logging.getLogger(__name__)

__all__ = ["Batch", "ManifestDirectory", "ManifestDirectoryError", "Memory"]

_LAST_GOOD: Final = "last-good"
_CREATED: Final = "created"
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_UNKNOWN: Final = -1  # no hash of bytes is -1
_INLINE_FILES: Final = 8  # more, or larger ones, are parsed in a thread
_INLINE_BYTES: Final = 32_768
_BIG_BYTES: Final = {".json": 32_768, ".yaml": 8_192, ".yml": 8_192}  # some 5 ms of reading
_PAUSE_FILES: Final = 128  # in a big batch others have their turn so often
_GONE_S: Final = 0.05  # after a removal: an editor or a move may bring it back
_GATHER_S: Final = (0.01, 0.25)  # in a burst: the first and the longest time to gather
_BURST: Final = 8  # files at once; somebody who edits one after another never waits
_ROOT_S: Final = 0.2  # how often a root that is away is looked for
_AGAIN_S: Final = 2.0  # after which what could not be read is looked at again


class ManifestDirectoryError(Exception):
    """The directory can't be used; the text says why and what to do."""


class Memory(Protocol):
    """Durable facts by room and key."""

    def room(self, name: str) -> Mapping[str, str]: ...
    def put(self, room: str, key: str, value: str) -> None: ...
    def drop(self, room: str, key: str) -> None: ...


class _File(Struct):
    """What is known of a file.  ``good``: by id, in the order of its documents."""

    good: dict[str, Object] = {}
    lines: dict[str, int] = {}
    own: tuple[Refusal, ...] = ()
    told: tuple[Refusal, ...] = ()
    digest: int = 0


class _Look(Struct):
    """One file as it was found.  ``reading=None``: it is not there."""

    path: str
    reading: Reading | None
    digest: int


class ManifestDirectory:
    """The manifests below ``root``.  First `load`, in any thread; then `watch`, in one task.

    ``now``: the time as RFC 3339 in UTC, for objects that don't say when they were created.
    """

    def __init__(self, root: Path, memory: Memory, now: Callable[[], str]) -> None:
        self._root = root
        self._memory = memory
        self._now = now
        self._files: dict[str, _File] = {}
        self._under: dict[str, set[str]] = {}  # directory → files at any depth below
        self._claims: dict[str, list[str]] = {}  # id → files that have it; the first one wins
        self._served: dict[str, Object] = {}
        self._gathering: _Gathering | None = None
        self._unread: set[str] = set()  # files that could not be read when they were looked at
        self._unlisted = False  # whether that is so of a directory
        self._no_files = OnceAMinute()
        self.received: Counter[str] = Counter()  # changes, by kind
        self._root_is_there = True

    @property
    def waiting(self) -> int:
        """How many paths wait to be looked at."""
        return self._gathering.waiting if self._gathering is not None else 0

    def load(self) -> Batch:
        """The first, whole look.  Raises `ManifestDirectoryError`."""
        at = time.monotonic()
        if not self._root.is_dir():
            raise ManifestDirectoryError(
                f"{self._root} is not a directory. Create it or name another."
            )
        for path, text in self._memory.room(_LAST_GOOD).items():
            self._files[path] = _File(good=_from_memory(text, path), digest=_UNKNOWN)
        batch = self._apply(self._look_at_all(), at)
        for id_ in [i for i in self._memory.room(_CREATED) if i not in self._claims]:
            self._memory.drop(_CREATED, id_)
        return batch

    async def first(self) -> Batch:
        """`load`, in a thread."""
        return await asyncio.to_thread(self.load)

    async def follow(self, wanted: set[str]) -> Batch | None:
        """All Secrets and ConfigMaps of the directory come anyway."""
        return None

    async def watch(self, stop: asyncio.Event) -> AsyncIterator[Batch]:
        """Batches as files change, until ``stop``.  Raises `ManifestDirectoryError`.

        Begins with what happened since `load`.  A root that goes away leaves all as it is.
        """
        while not stop.is_set():
            try:
                events = FileEvents(self._root, self._lost)
            except (FileNotFoundError, NotADirectoryError):
                if batch := self._root_is(False):
                    yield batch
                await asyncio.sleep(_ROOT_S)
                continue
            except OSError as err:
                if self._gathering is None or err.errno not in NO_FILES:
                    raise ManifestDirectoryError(f"{self._root} can't be watched: {err}.") from err
                self._say_no_files(err, ".")
                await asyncio.sleep(_AGAIN_S)
                continue
            gathering = self._gathering = _Gathering(events, stop, self._known)
            big = BigFiles(lambda path: self._look([path]), gathering.wake)
            gathering.beside = big
            try:
                at, looks = time.monotonic(), await asyncio.to_thread(self._look_at_all)
                while self._root.is_dir():  # else what is missing was not removed one by one
                    for batch in (self._root_is(True), await self._apply_gently(looks, at)):
                        if batch and (batch.changes or batch.refusals):
                            yield batch
                    unlisted, self._unlisted = self._unlisted, False
                    gathering.again(self._unread, anew=unlisted)
                    paths, at = await gathering.next()
                    if paths is None:
                        break
                    looks, later = await self._look_at_some(paths, big)
                    big.add(*later, at)
                    for found, since in big.take():
                        looks, at = [*looks, *found], min(at, since)
            finally:
                gathering.close()
                big.close()
                events.close()

    # ── looking: reads files, changes nothing here ──────────────────────────────────────────

    def _look_at_all(self) -> list[_Look]:
        found = {
            p
            for p, is_dir in walk(self._root, "", self._lost)
            if not is_dir and p.endswith(_SUFFIXES)
        }
        return self._look(found | self._files.keys())

    async def _look_at_some(
        self, paths: set[str], big: BigFiles[_Look]
    ) -> tuple[list[_Look], tuple[list[str], list[str]]]:
        """The small files of these, and what is to be read beside: big files, and some then."""
        if len(paths) <= _INLINE_FILES:
            wanted = self._files_of(paths)
            large = self._large(wanted, big)
            small = wanted.difference(large)
            if len(small) <= _INLINE_FILES and self._bytes(small) <= _INLINE_BYTES:
                return self._part(small, large)
        return await asyncio.to_thread(self._look_in_thread, paths, big)

    def _look_in_thread(
        self, paths: set[str], big: BigFiles[_Look]
    ) -> tuple[list[_Look], tuple[list[str], list[str]]]:
        wanted = self._files_of(paths)
        large = self._large(wanted, big)
        return self._part(wanted.difference(large), large)

    def _part(
        self, small: set[str], large: list[str]
    ) -> tuple[list[_Look], tuple[list[str], list[str]]]:
        """Whoever has lost an object, which may be in a big file now, is looked at after that."""
        looks = self._look(small)
        if not large:
            return looks, ([], [])
        losing = [look.path for look in looks if self._loses(look)]
        return [look for look in looks if look.path not in losing], (large, losing)

    def _loses(self, look: _Look) -> bool:
        has = {one.id for one in look.reading.documents} if look.reading is not None else set()
        old = self._files.get(look.path)
        return old is not None and not old.good.keys() <= has

    def _large(self, paths: set[str], big: BigFiles[_Look]) -> list[str]:
        """Those that are long to read, and those that are about to be read as such."""
        return sorted(
            (
                path
                for path in paths
                if path in big or self._bytes([path]) > _BIG_BYTES[os.path.splitext(path)[1]]
            ),
            key=_natural,
        )

    def _lost(self, path: str, err: OSError) -> None:
        """A directory that can't be listed: if for want of files, all is looked at again."""
        self._unlisted = self._unlisted or err.errno in NO_FILES
        self._say_no_files(err, path)

    def _say_no_files(self, err: OSError, path: str) -> None:
        if err.errno in NO_FILES and self._no_files.due():
            log.error("event=no_files_left what=%s why=%r", path or ".", err.strerror)

    def _files_of(self, paths: set[str]) -> set[str]:
        """The manifests that events on ``paths`` concern."""
        wanted: set[str] = set()
        for event in paths:
            directory, _, name = event.rpartition("/")
            path = directory if name.startswith("..") else event  # a mounted ConfigMap's swap
            if path in self._under or os.path.isdir(self._root / path):
                wanted |= self._under.get(path, set()) if path else self._files.keys()
                wanted.update(p for p, is_dir in walk(self._root, path, self._lost) if not is_dir)
            wanted.add(path)
        return {p for p in wanted if p.endswith(_SUFFIXES)}

    def _bytes(self, paths: Iterable[str]) -> int:
        total = 0
        for path in paths:
            with contextlib.suppress(OSError):
                total += os.stat(self._root / path).st_size
        return total

    def _look(self, paths: Iterable[str]) -> list[_Look]:
        """The files of ``paths`` that are not as they were, in natural order."""
        looks = []
        root = f"{self._root}/"
        for path in sorted(paths, key=_natural):
            old = self._files.get(path)
            self._unread.discard(path)
            try:
                found, data = read_regular(root + path, BOUNDS.size_bytes)
                if data is None:
                    digest = hash((found.st_size, found.st_mtime_ns))
                    looks.append(_Look(path, too_large(path, found.st_size), digest))
                    continue
            except NotAFileError:
                looks.append(_Look(path, _not_a_file(path), _UNKNOWN))
                continue
            except (FileNotFoundError, NotADirectoryError):
                if old is not None:
                    looks.append(_Look(path, None, 0))
                continue
            except OSError as err:
                self._unread.add(path)
                self._say_no_files(err, path)
                refusal = Refusal(
                    object=f"File/{path}",
                    field="",
                    reason="Unreadable",
                    remedy=f"Make the file readable: {err.strerror}.",
                )
                looks.append(_Look(path, Reading(refusals=(refusal,), partial=True), _UNKNOWN))
                continue
            digest = hash(data)
            if old is None or old.digest != digest:
                looks.append(_Look(path, _reading(data, path), digest))
        return looks

    # ── what follows from it ────────────────────────────────────────────────────────────────

    def _apply(self, looks: Sequence[_Look], at: float) -> Batch:
        for step in self._applying(looks, at):
            if step is not None:
                return step
        raise AssertionError("the last step is a batch")

    async def _apply_gently(self, looks: Sequence[_Look], at: float) -> Batch:
        """`_apply` with pauses for the rest of the event loop."""
        for step in self._applying(looks, at):
            if step is not None:
                return step
            await asyncio.sleep(0)
        raise AssertionError("the last step is a batch")

    def _applying(self, looks: Sequence[_Look], at: float) -> Iterator[Batch | None]:
        """Take in what was found; None is a pause.  Cost: the documents of these files."""
        touched: dict[str, None] = {}  # ids, in the order of their changes
        retell: dict[str, None] = {}  # files whose refusals may differ
        refusals: dict[str, tuple[Refusal, ...]] = {}
        stamp = _Stamp(self._memory, self._now)
        for n, look in enumerate(looks, 1):
            if n % _PAUSE_FILES == 0:
                yield None
            path, old = look.path, self._files.get(look.path) or _File()
            new = self._merge(old, look, stamp)
            for id_ in old.good:
                if id_ not in new.good:
                    touched[id_] = None
                    self._unclaim(id_, path)
            for id_ in new.good:
                touched.pop(id_, None)  # moved: its place is here
                touched[id_] = None
                claims = self._claims.setdefault(id_, [])
                if path not in claims:
                    claims.append(path)
            if look.reading is not None:
                self._remember(path, new)
                retell[path] = None
            else:
                self._forget(path)
                if old.told:
                    refusals[path] = ()

        changes = []
        for n, id_ in enumerate(touched, 1):
            if n % _PAUSE_FILES == 0:
                yield None
            claims = self._claims.get(id_, [])
            retell.update(dict.fromkeys(claims))
            obj = self._files[claims[0]].good[id_] if claims else None
            if obj is None:
                self._memory.drop(_CREATED, id_)
            if obj == self._served.get(id_):
                continue
            if obj is None:
                del self._served[id_]
            else:
                self._served[id_] = obj
            kind, _, key = id_.partition("/")
            changes.append(Change(kind, key, obj))
        for path in retell:
            file = self._files[path]
            told = self._refusals(path, file)
            if told != file.told:
                file.told = refusals[path] = told
        self.received.update(Counter(change.kind for change in changes))
        yield Batch(tuple(changes), refusals, at)

    def _merge(self, old: _File, look: _Look, stamp: _Stamp) -> _File:
        """The file as it is to be: what is good now, and the last good of what is not."""
        reading = look.reading
        if reading is None:
            return _File()
        new = _File(own=reading.refusals, told=old.told, digest=look.digest)
        bad = reading.partial
        for document in reading.documents:
            if document.obj is not None:
                obj = stamp(document.id, document.obj)
            else:
                bad = True
                if document.id not in old.good:
                    continue
                obj = old.good[document.id]
            new.good[document.id] = obj
            new.lines[document.id] = document.line
        if reading.partial:
            new.good = new.good | {i: o for i, o in old.good.items() if i not in new.good}
        if bad and any(not isinstance(obj, Secret) for obj in new.good.values()):
            self._memory.put(_LAST_GOOD, look.path, _to_memory(new.good))
        else:
            self._memory.drop(_LAST_GOOD, look.path)
        return new

    def _refusals(self, path: str, file: _File) -> tuple[Refusal, ...]:
        lost = [
            duplicate(id_, self._claims[id_][0], file.lines.get(id_, 0))
            for id_ in file.good
            if self._claims[id_][0] != path
        ]
        return tuple(sorted((*file.own, *lost), key=_line)) if lost else file.own

    def _unclaim(self, id_: str, path: str) -> None:
        claims = self._claims.get(id_, [])
        if path in claims:
            claims.remove(path)
            if not claims:
                del self._claims[id_]

    def _remember(self, path: str, file: _File) -> None:
        if path not in self._files:
            for directory in _above(path):
                self._under.setdefault(directory, set()).add(path)
        self._files[path] = file

    def _forget(self, path: str) -> None:
        self._memory.drop(_LAST_GOOD, path)
        self._files.pop(path, None)
        for directory in _above(path):
            files = self._under.get(directory, set())
            files.discard(path)
            if not files:
                self._under.pop(directory, None)

    def _known(self, path: str) -> bool:
        return path in self._files or path in self._under

    def _root_is(self, there: bool) -> Batch | None:
        """What to say when the root goes or comes back; None when that is no news."""
        if there == self._root_is_there:
            return None
        self._root_is_there = there
        refusal = Refusal(
            object="File/.",
            field="",
            reason="Unreadable",
            remedy=f"Bring {self._root} back. All objects stay as they were until then.",
        )
        return Batch((), {".": () if there else (refusal,)}, time.monotonic())


class _Stamp:
    """Gives each object its creation time: all of one look the same."""

    def __init__(self, memory: Memory, now: Callable[[], str]) -> None:
        self._memory, self._now, self._value = memory, now, ""
        self._created = memory.room(_CREATED)

    def __call__(self, id_: str, obj: Object) -> Object:
        if obj.metadata.creation_timestamp:
            return obj
        if (value := self._created.get(id_)) is None:
            value = self._value = self._value or self._now()
            self._memory.put(_CREATED, id_, value)
        meta = msgspec.structs.replace(obj.metadata, creation_timestamp=value)
        return msgspec.structs.replace(obj, metadata=meta)


class _Gathering:
    """File events as sets of paths: at once when it is quiet, more and more together in a burst."""

    def __init__(
        self, events: FileEvents, stop: asyncio.Event, known: Callable[[str], bool]
    ) -> None:
        self._events, self._stop, self._known = events, stop, known
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._paths: set[str] = set()
        self._count = 0  # files in the last set
        self._gone = False
        self._anew = False
        self.beside: Sized = ()  # what is read beside, and may be ready
        self._at = self._last = self._window = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._stopping = self._loop.create_task(stop.wait())
        self._stopping.add_done_callback(lambda _: self._woken.set())
        self._loop.add_reader(events.fileno(), self._collect)

    @property
    def waiting(self) -> int:
        return len(self._paths) + len(self.beside)

    def wake(self) -> None:
        """Something that was read beside is ready."""
        self._woken.set()

    def again(self, paths: Collection[str], *, anew: bool = False) -> None:
        """Look at these once more in a while; ``anew``: at all."""
        if (paths or anew) and self._later is None:
            self._later = self._loop.call_later(_AGAIN_S, self._due, set(paths), anew)

    def _due(self, paths: set[str], anew: bool) -> None:
        self._later = None
        self._anew = self._anew or anew
        self._paths |= paths
        self._at = time.monotonic()
        self._woken.set()

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._events.fileno())
        self._stopping.cancel()

    async def next(self) -> tuple[set[str] | None, float]:
        """(paths, when the first was seen); None: stopped, or to begin again from the whole."""
        await self._woken.wait()
        if not (self._paths or self._anew or self._stop.is_set()):
            self._woken.clear()
            return set(), time.monotonic()
        shortest, longest = _GATHER_S
        quick = time.monotonic() - self._last < max(shortest, self._window)
        if quick and self._count >= _BURST:
            self._window = min(max(2 * self._window, shortest), longest)
        else:
            self._window = 0.0
        wait = max(self._window, _GONE_S if self._gone else 0.0)
        if wait and not (self._anew or self._stop.is_set()):
            await asyncio.sleep(wait)
        if self._anew or self._stop.is_set():
            return None, self._at
        self._woken.clear()
        paths, self._paths, self._gone = self._paths, set(), False
        self._last, self._count = time.monotonic(), len(paths)
        return paths, self._at

    def _collect(self) -> None:
        at = time.monotonic()
        try:
            read = self._events.read()
        except OSError:  # a directory that can't be watched: the new beginning will say why
            read = None
        if read is None:
            self._loop.remove_reader(self._events.fileno())
            self._anew = True
        elif read[0]:
            self._gone = self._gone or any(map(self._known, read[1]))
        else:
            return
        if not self._woken.is_set():
            self._at = at
        if read is not None:
            self._paths |= read[0]
        self._woken.set()


def _reading(data: bytes, path: str) -> Reading:
    """`read`, whatever it meets: a fault of ours over a file is that file's."""
    try:
        return read(data, path)
    except Exception as err:
        log.exception("event=internal_error object=File/%s", path)
        refusal = Refusal(
            object=f"File/{path}",
            field="",
            reason=INTERNAL_ERROR,
            remedy=f"akocore failed over it ({type(err).__name__}): what it had stays. Report it"
            " with the log's traceback; until then write it otherwise.",
        )
        return Reading(refusals=(refusal,), partial=True)


def _not_a_file(path: str) -> Reading:
    """What is said of a pipe, a device or a socket: what was at its path before is gone."""
    refusal = Refusal(
        object=f"File/{path}",
        field="",
        reason="NotAFile",
        remedy="It is a pipe, a device or a socket. Put a file there, or give it another name.",
    )
    return Reading(refusals=(refusal,))


def _natural(path: str) -> tuple[list[str | int], str]:
    """Orders ``hello2`` before ``hello10``."""
    parts = _DIGITS.split(path)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], path


_DIGITS: Final = re.compile(r"([0-9]+)")


def _above(path: str) -> list[str]:
    """The directories that ``path`` is in, without the root."""
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _line(refusal: Refusal) -> int:
    return refusal.line


def _to_memory(good: Mapping[str, Object]) -> str:
    """The objects as a JSON list of documents, of just the fields that akocore uses.

    Without Secrets: what is private is never written to a file of ours.
    """
    documents = []
    for obj in good.values():
        if isinstance(obj, Secret):
            continue
        version = f"{obj.GROUP}/{obj.VERSIONS[0]}" if obj.GROUP else obj.VERSIONS[0]
        head = {"apiVersion": version, "kind": obj.KIND}
        documents.append(head | msgspec.to_builtins(obj))
    return msgspec.json.encode(documents).decode()


def _from_memory(text: str, path: str) -> dict[str, Object]:
    reading = read(b'{"kind": "List", "items": %s}' % text.encode(), path + ".json")
    return {d.id: d.obj for d in reading.documents if d.obj is not None}

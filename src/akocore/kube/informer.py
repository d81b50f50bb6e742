"""List and watch one kind, for ever: every object as it is now, no change lost or repeated.

Starts by streaming the list over the watch (KEP-3157, ``sendInitialEvents``) where the server
can, else by a paged list; resumes by resourceVersion, kept fresh by bookmarks (KEP-956); after
410 Gone lists again and delivers only the difference.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec
from msgspec import Raw, Struct

from akocore.kube.api import ApiError, ApiServer, Resource, Status
from akocore.kube.objects import Change, Object, ObjectMeta, share

__all__ = ["Informer", "Tally"]

log = logging.getLogger(__name__)

_PAGE = 500
_BACKOFF_S = (0.05, 10.0)  # the first wait, and the longest
_MISSING_S = 5.0  # between looks for a kind that the server doesn't have
_WATCH_S = 300  # the server ends a watch after it; resuming is cheap
_BURIED = 1000  # deletions remembered: what comes late comes soon
_INITIAL_END = "k8s.io/initial-events-end"


class _Event(Struct):
    type: str
    object: Raw


class _Meta(Struct):
    metadata: ObjectMeta


class _BookmarkMeta(Struct, rename="camel"):
    resource_version: str
    annotations: dict[str, str] | None = None


class _Bookmark(Struct):
    metadata: _BookmarkMeta


class _ListMeta(Struct, rename={"resource_version": "resourceVersion", "go_on": "continue"}):
    resource_version: str = ""
    go_on: str = ""


class _List(Struct):
    metadata: _ListMeta
    items: list[Raw] = []


class _Seen(Struct, frozen=True, gc=False):
    """An object of a list, or why it can't be read.  The bytes are not kept: there are many."""

    key: str
    what: Object | str


class _GoneError(Exception):
    """The server no longer has what happened since our resourceVersion."""


class Tally(Struct):
    """What the informers of one kind have done so far."""

    lists: int = 0
    watches: int = 0
    failures: int = 0


class Informer:
    """One kind, of one field selector if need be.

    ``deliver(changes)``: what changed, in order; the first call has the whole list (perhaps
    nothing).  ``refused(key, error)``: an object whose fields have wrong types; None: it is good
    again.  `missing`: the server doesn't know the kind; it is looked for again and again.
    """

    def __init__(
        self,
        api: ApiServer,
        resource: Resource,
        deliver: Callable[[list[Change]], None],
        *,
        refused: Callable[[str, str | None], None] = lambda _key, _error: None,
        namespace: str = "",
        field_selector: str = "",
        tally: Tally | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self.missing = False
        self.tally = tally if tally is not None else Tally()
        self.read = 0  # all changes up to this resourceVersion have been delivered
        self.seen = 0  # the last object's among them
        self._api = api
        self._deliver = deliver
        self._refused = refused
        self._path = resource.path(namespace)
        self._query = {"fieldSelector": field_selector} if field_selector else {}
        self._rng = rng or random.Random()
        self._known: dict[str, int] = {}  # key → resourceVersion delivered
        self._buried: dict[str, int] = {}  # key → resourceVersion at which it was deleted
        self._bad: set[str] = set()
        self._version = ""
        self._streams_lists = True
        self._decode_event = msgspec.json.Decoder(_Event)
        self._decode = msgspec.json.Decoder(resource.kind)
        self._decode_meta = msgspec.json.Decoder(_Meta)

    @property
    def kind(self) -> str:
        """The kind's name as in changes."""
        return self.resource.kind.stored()

    async def run(self) -> None:
        """Until cancelled.  What fails is tried again: at once, then ever later."""
        shortest, longest = _BACKOFF_S
        wait = 0.0
        while True:
            try:
                if not self._version:
                    await self._list()
                    wait = 0.0
                await self._watch()
                wait = 0.0
                continue
            except _GoneError:
                self._version = ""
                continue
            except ApiError as err:
                if err.code == 404:
                    self._absent()
                    await asyncio.sleep(_MISSING_S)
                    continue
                self.tally.failures += 1
                wait = err.retry_after_s or min(max(2 * wait, shortest), longest)
                log.warning("event=watch_broken kind=%s why=%r", self.resource.kind.KIND, str(err))
            except TimeoutError:
                self.tally.failures += 1
                wait = min(max(2 * wait, shortest), longest)
            await asyncio.sleep(wait * self._rng.uniform(0.5, 1))

    # ── the list ────────────────────────────────────────────────────────────────────────────

    async def _list(self) -> None:
        self.tally.lists += 1
        if self._streams_lists:
            try:
                await self._stream_list()
                return
            except ApiError as err:
                if err.code not in (400, 405, 415, 422):
                    raise
                self._streams_lists = False
        items: list[_Seen] = []
        query = {**self._query, "limit": str(_PAGE)}
        while True:
            raw = await self._api.request("GET", self._path, query)
            page = msgspec.json.decode(raw, type=_List)
            items += [self._see(item) for item in page.items]
            if not page.metadata.go_on:
                break
            query["continue"] = page.metadata.go_on
        self._replace(items, page.metadata.resource_version)

    async def _stream_list(self) -> None:
        query = {
            **self._query,
            "watch": "true",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        items: list[_Seen] = []
        late: list[_Event] = []  # changes while the list is on its way
        listing = True
        async for line in self._api.lines(self._path, query):
            event = self._decode_event.decode(line)
            if not listing:
                self._event(event)
            elif event.type == "ADDED":
                items.append(self._see(event.object))
            elif event.type == "BOOKMARK":
                meta = msgspec.json.decode(event.object, type=_Bookmark).metadata
                if (meta.annotations or {}).get(_INITIAL_END) == "true":
                    self._replace(items, meta.resource_version)
                    for one in late:
                        self._event(one)
                    items, late, listing = [], [], False
            elif event.type == "ERROR":
                self._raise(event.object)
            else:
                late.append(event)
        if listing:
            raise ApiError(0, "Disconnected", "the stream ended before the list did")

    def _replace(self, items: list[_Seen], version: str) -> None:
        """The whole list: deliver only what differs from what was delivered."""
        changes: list[Change] = []
        gone = set(self._known)
        for seen in items:
            gone.discard(seen.key)
            if (change := self._change(seen)) is not None:
                changes.append(change)
        changes += [self._gone(key) for key in sorted(gone)]
        self._version = version
        self.read = max(self.read, int(version or 0))
        self._buried.clear()
        self.missing = False
        self._deliver(changes)
        self.synced.set()

    def _absent(self) -> None:
        """The server doesn't have the kind: what was there is gone."""
        if not self.missing:
            log.warning("event=kind_missing kind=%s", self.resource.kind.KIND)
        self.missing = True
        self._version = ""
        self._deliver([self._gone(key) for key in sorted(self._known)])
        self.synced.set()

    # ── the watch ───────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        self.tally.watches += 1
        query = {
            **self._query,
            "watch": "true",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        try:
            async for line in self._api.lines(self._path, query):
                self._event(self._decode_event.decode(line))
        except ApiError as err:
            if err.code == 410:
                raise _GoneError from err
            raise

    def _event(self, event: _Event) -> None:
        match event.type:
            case "ADDED" | "MODIFIED":
                change = self._change(self._see(event.object))
                if change is not None:
                    self._deliver([change])
                self._reached(self._decode_meta.decode(event.object).metadata.resource_version)
            case "DELETED":
                meta = self._decode_meta.decode(event.object).metadata
                version = int(meta.resource_version or 0)
                if meta.key in self._known and version > self._known[meta.key]:
                    self._deliver([self._gone(meta.key)])
                    self._bury(meta.key, version)
                self._reached(meta.resource_version)
                self.seen = max(self.seen, version)
            case "BOOKMARK":
                found = msgspec.json.decode(event.object, type=_Bookmark).metadata
                self._reached(found.resource_version)
            case _:
                self._raise(event.object)

    def _raise(self, raw: Raw) -> None:
        said = msgspec.json.decode(raw, type=Status)
        if said.code == 410 or said.reason in ("Expired", "Gone"):
            raise _GoneError
        raise ApiError(said.code, said.reason, said.message)

    # ── objects ─────────────────────────────────────────────────────────────────────────────

    def _see(self, raw: Raw) -> _Seen:
        """What the server said, decoded; nothing is made of it yet."""
        try:
            obj = self._decode.decode(raw)
            share(obj)
            return _Seen(obj.key, obj)
        except msgspec.ValidationError as err:
            return _Seen(self._decode_meta.decode(raw).metadata.key, str(err))
        except Exception as err:  # a fault of ours: the other objects are read
            key = self._decode_meta.decode(raw).metadata.key
            kind = self.resource.kind.KIND
            log.exception("event=internal_error object=%s/%s", kind, key)
            return _Seen(key, f"akocore can't read it ({type(err).__name__})")

    def _change(self, seen: _Seen) -> Change | None:
        """None: known already as it is, or not to be read (then it stays as it was)."""
        kind, key, obj = self.resource.kind.stored(), seen.key, seen.what
        if isinstance(obj, str):
            self._bad.add(key)
            self._refused(f"{kind}/{key}", obj)
            return None
        version = int(obj.metadata.resource_version or 0)
        if key in self._bad:
            self._bad.discard(key)
            self._refused(f"{kind}/{key}", None)
        self.seen = max(self.seen, version)
        if version <= self._known.get(key, -1) or version <= self._buried.get(key, -1):
            return None  # again, or late: resourceVersions of one kind are ordered (KEP-5504)
        self._known[key] = version
        self._buried.pop(key, None)
        return Change(kind, key, obj)

    def _bury(self, key: str, version: int) -> None:
        """Nothing older than its deletion brings an object back."""
        self._buried[key] = version
        if len(self._buried) > _BURIED:
            del self._buried[next(iter(self._buried))]

    def _reached(self, version: str) -> None:
        if int(version or 0) > int(self._version or 0):
            self._version = version
        self.read = max(self.read, int(version or 0))

    def _gone(self, key: str) -> Change:
        kind = self.resource.kind.stored()
        self._known.pop(key, None)
        if key in self._bad:
            self._bad.discard(key)
            self._refused(f"{kind}/{key}", None)
        return Change(kind, key, None)

"""The controller's side of delta xDS: one stream of all types (ADS) for each Service Engine.

A `Catalog` is what the Service Engines of one group are to run.  `AdsServer.publish` changes
it and sends each connected engine just the difference, in an order in which nothing refers to
what is not there yet (clusters, listeners, scopes; removals the other way round).  An engine
that connects says what it has; it gets what differs.  So start, reconnect and resync are one
path.  Of the members of a collection (scopes) Envoy does not say which it has: it is told which
were dropped lately, and one that outlived its controller is asked by way of its admin interface.

Every publication has a sequence number.  An engine has *acknowledged* a number when it has
accepted, or refused for good, all that was sent with it.  A refused response (NACK) is halved
and sent again, in other bytes (`resent` says why), until the one resource at fault stands alone;
that one is kept in `Engine.rejected` until it changes, and everything else is served.  What an
engine refused once goes to others by itself, after the rest.

Source of the protocol: Envoy's "xDS REST and gRPC protocol", section "Incremental xDS".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from msgspec import Struct, field

from akocore._fast.diff import diff_fingerprints
from akocore.engines.envoy.learnt_names import LearntNames
from akocore.engines.envoy.one_by_one import Held, OneByOne, is_long
from akocore.engines.envoy.refusal import reason
from akocore.engines.envoy.resent import resent
from akocore.engines.envoy.resources import (
    CDS,
    COLLECTIONS,
    EDS,
    LDS,
    SDS,
    SRDS,
    Encoded,
    plain_sni,
)
from akocore.unix_server import UnixServer

__all__ = ["AdsServer", "Catalog", "Elsewhere", "Engine", "Rejection"]

log = logging.getLogger(__name__)

_DROPPED = 20_000  # scopes whose drop is remembered for engines that were away
_CHUNK = 500  # resources in one response: keeps Envoy's peak memory down
_PUT_ORDER = (CDS, EDS, LDS, SDS, SRDS)
_DROP_ORDER = (SRDS, SDS, LDS, EDS, CDS)
_KEPT_UNUSED = (SRDS, SDS)  # types of which Envoy may have what it does not use
_TRUST_S = 30.0  # that an engine's last stream is taken for the one before this

_Response = tuple[bytes, list[Encoded]]  # a DeltaDiscoveryResponse without, and its resources
_Admit = Callable[[Any, str, str], Awaitable[None]]


async def _admit_all(_context: Any, _name: str, _group: str) -> None:
    """On our own socket: who may open it may be any engine."""


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]


class Rejection(Struct, frozen=True):
    """A resource that an engine refuses, at this version, with its own words."""

    type_url: str
    name: str
    fingerprint: bytes
    message: str


class Catalog:
    """What the Service Engines of one group are to run, by type and name."""

    def __init__(self) -> None:
        self.resources: dict[str, dict[str, Encoded]] = {t: {} for t in (CDS, EDS, LDS, SRDS)}
        self.scopes: dict[str, dict[str, Encoded]] = {}  # collection → name → scope
        self.dropped: dict[str, str] = {}  # scope → its collection, of those dropped lately
        self.secret: Callable[[str], Encoded | None] = lambda _name: None
        self.own_name: Callable[[str], bool] = lambda _name: False  # a host's, as it spells it
        self.sequence = 0

    def put(self, one: Encoded) -> bool:
        """Take in a resource; False when it is there already, as it is."""
        resources = self.resources[one.type_url]
        old = resources.get(one.name)
        if old is not None and old.frame == one.frame:
            return False
        resources[one.name] = one
        if one.type_url == SRDS:
            self.scopes.setdefault(one.collection, {})[one.name] = one
            self.dropped.pop(one.name, None)
        return True

    def drop(self, type_url: str, name: str) -> Encoded | None:
        old = self.resources[type_url].pop(name, None)
        if old is not None and type_url == SRDS:
            scopes = self.scopes[old.collection]
            del scopes[name]
            if not scopes:
                del self.scopes[old.collection]
            self.dropped[name] = old.collection
            if len(self.dropped) > _DROPPED:
                del self.dropped[next(iter(self.dropped))]
        return old


class _Sent(Struct):
    """A response on its way: ``puts``, to be halved if the engine says no; ``gone``: not."""

    sequence: int
    type_url: str
    puts: list[Encoded]
    gone: list[str]

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.puts]


class Engine(Struct):
    """One connected Service Engine, as its stream shows it."""

    name: str
    group: str
    since: float = field(default_factory=time.time)
    queue: asyncio.Queue[_Response | None] = field(default_factory=asyncio.Queue)
    subscribed: dict[str, set[str]] = field(default_factory=dict)
    spellings: dict[str, set[str]] = field(default_factory=dict)  # host → SNIs asked for
    learnt: LearntNames = field(default_factory=LearntNames)
    nonce: int = 0
    outstanding: dict[str, _Sent] = field(default_factory=dict)
    awaited: dict[str, int] = field(default_factory=dict)  # collection not asked for yet → seq
    rejected: dict[tuple[str, str], Rejection] = field(default_factory=dict)
    held: Held | None = None  # what it is sent when another one has it
    doubted: set[tuple[str, str]] = field(default_factory=set)  # it may have, and not use
    unknown: set[str] = field(default_factory=set)  # types of which any may be so
    nacks: int = 0  # responses refused on this stream
    sent: int = 0  # resources, on this stream
    reached: int = 0  # the last sequence number sent
    joining: int = 0  # a new process listens nowhere before it has settled this number
    returned: bool = False  # it has run before, so it may have what is no longer wanted
    clearing: bool = False  # what that is is being looked for

    @property
    def acknowledged(self) -> int:
        """All publications up to this number are settled here.  Cost: what is on its way."""
        waiting = [sent.sequence for sent in self.outstanding.values()]
        waiting += self.awaited.values()
        if self.held is not None:
            waiting.append(self.held.sequence)
        return min(waiting) - 1 if waiting else self.reached

    def waits_for(self) -> list[str]:
        """What keeps it from being up to date, in words.  Cost: what is on its way."""
        out = [f"{len(s.puts)} of {_short(s.type_url)}" for s in self.outstanding.values()]
        out += [f"its request for {name}" for name in self.awaited]
        if self.held is not None:
            out.append(f"{self.held.behind or 'what is small'}, which goes first")
        return [*out, "a list of its scopes"] if self.clearing else out

    def names_of(self, host: str) -> list[str]:
        """The SNIs that ``host`` may speak for, of those asked for or refused.

        Cost: constant; of a wildcard, and of "" for any host: all that are asked for.
        """
        refused = {name for type_url, name in self.rejected if type_url == SDS}
        if host and not host.startswith("*"):
            known = self.spellings.get(host, set())
            return sorted(known | {name for name in refused if plain_sni(name) == host})
        asked = self.subscribed.get(SDS, set()) | refused
        return sorted(n for n in asked if not host or plain_sni(n).partition(".")[2] == host[2:])

    @property
    def answers(self) -> bool:
        """Whether clients can meet it: it kept its listeners, or has all that it was to get."""
        return not self.joining

    def doubts(self) -> set[tuple[str, str]]:
        """What is not known to be used by it: (type, name)."""
        waiting = [sent for sent in self.outstanding.values() if sent.type_url in _KEPT_UNUSED]
        return self.doubted | {(s.type_url, name) for s in waiting for name in s.names}


class Elsewhere(Struct, frozen=True):
    """A Service Engine that is connected to another replica, as that one tells it.

    ``number(group, has)``: which of our publications is in what it has.
    """

    name: str
    group: str
    since: float
    controller: str
    answers: bool
    has: Mapping[str, int]
    rejected: Mapping[tuple[str, str], Rejection]
    nacks: int
    number: Callable[[str, Mapping[str, int]], int]
    # What its replica knows better, and has taken into account.
    awaited: Mapping[str, int] = {}
    clearing: bool = False

    @property
    def acknowledged(self) -> int:
        """All publications of ours up to this number are settled there."""
        return self.number(self.group, self.has)

    def waits_for(self) -> list[str]:
        """What it has yet to acknowledge is known where it is connected."""
        return []


class AdsServer:
    """Serves the catalogs of all groups: on its unix socket, and on servers that offer `service`.

    ``on_progress(group)`` is called when an engine of the group comes, goes, or acknowledges,
    ``on_publish(group, sequence, began, pushed)`` after each change of its catalog: when that
    began, and whether an engine that clients can meet got it.
    ``scopes_of(engine)``: the names of the scopes that a running engine has; None: it is away.

    ``chunk``: resources in one response.

    ``engines`` are connected here; ``elsewhere`` to another replica; ``lost`` (name → group) were
    there not long ago.  ``limit(group)``: what is published beyond it may yet be forgotten, so no
    engine counts as having it.
    """

    def __init__(
        self,
        socket: Path,
        on_progress: Callable[[str], None],
        scopes_of: Callable[[str], Awaitable[Collection[str] | None]] | None = None,
        chunk: int = _CHUNK,
    ) -> None:
        self.socket = socket
        self.chunk = chunk
        self.catalogs: dict[str, Catalog] = {}
        self.engines: dict[str, Engine] = {}
        self.elsewhere: dict[str, Elsewhere] = {}
        self.lost: dict[str, str] = {}
        self.limit: Callable[[str], int] | None = None
        self.names_limit = 1000  # that an engine keeps and are no host's own
        self.one_machine = False  # all engines share its processors
        self._one_by_one: OneByOne[Engine] = OneByOne(
            self._send_held, lambda s, call: asyncio.get_running_loop().call_later(s, call)
        )
        self.nacks = 0
        self.on_publish: Callable[[str, int, float, bool], None] = lambda *_: None
        self._on_progress = on_progress
        self._scopes_of = scopes_of
        self._met: set[str] = set()  # engines that this server has served before
        # Engine → when its last stream ended, and what was in doubt then.
        self._left: dict[str, tuple[float, set[tuple[str, str]]]] = {}
        self._bad: dict[tuple[str, str], bytes] = {}  # (type, name) → what an engine refused of it
        self._clearing: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._server = UnixServer(socket)

    # ── life ────────────────────────────────────────────────────────────────────────────────

    async def start(self, *handlers: grpc.GenericRpcHandler) -> None:
        """Listen, with these services.  One of them may be `service`."""
        await self._server.start(*handlers)

    def service(self, admit: _Admit = _admit_all) -> grpc.GenericRpcHandler:
        """The discovery service, for any server to offer.

        Streams wait until `open`, so nobody is told to drop what is not read yet; one that has
        nothing gets the clusters that there are before.
        ``admit(context, name, group)``: aborts the call of one that may not be this engine.
        """
        method: Any = grpc.stream_stream_rpc_method_handler(
            partial(self._stream, admit),
            request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            response_serializer=None,
        )
        name = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        return grpc.method_handlers_generic_handler(name, {"DeltaAggregatedResources": method})

    def open(self) -> None:
        """The catalogs are complete: answer the engines."""
        self._open.set()

    async def opened(self) -> None:
        """Until the catalogs are complete."""
        await self._open.wait()

    @property
    def is_open(self) -> bool:
        """Whether engines are answered."""
        return self._open.is_set()

    async def stop(self) -> None:
        self.send_away()
        await self._server.stop()

    @property
    def fleet(self) -> Mapping[str, Engine | Elsewhere]:
        """Every engine, wherever it is connected; where it says so twice, the newer one."""
        if not self.elsewhere:
            return self.engines
        out: dict[str, Engine | Elsewhere] = {**self.elsewhere, **self.engines}
        for name in self.elsewhere.keys() & self.engines.keys():
            if self.elsewhere[name].since > self.engines[name].since:
                out[name] = self.elsewhere[name]
        return out

    def send_away(self) -> None:
        """End every stream: the engines look for another replica."""
        for engine in self.engines.values():
            engine.queue.put_nowait(None)

    # ── publishing ──────────────────────────────────────────────────────────────────────────

    def catalog(self, group: str) -> Catalog:
        found = self.catalogs.get(group)
        if found is None:
            found = self.catalogs[group] = Catalog()
        return found

    def publish(self, group: str, puts: Iterable[Encoded], drops: Iterable[tuple[str, str]]) -> int:
        """Change a group's catalog; the sequence number to wait for.  Cost: what changed."""
        began = time.monotonic()
        catalog = self.catalog(group)
        changed: dict[str, list[Encoded]] = {t: [] for t in _PUT_ORDER}
        removed: dict[str, list[Encoded]] = {t: [] for t in _DROP_ORDER}
        puts, drops, engines = list(puts), list(drops), self._of(group)
        self._one_by_one.hurry(engines, puts, removed=bool(drops))
        new = any(one.name not in catalog.resources.get(one.type_url, ()) for one in puts)
        for one in puts:
            if one.type_url == SDS or catalog.put(one):
                changed[one.type_url].append(one)
                self._bad.pop((one.type_url, one.name), None)
        for type_url, name in drops:
            if type_url == SDS:
                removed[SDS].append(Encoded(SDS, name, b""))
            elif (old := catalog.drop(type_url, name)) is not None:
                removed[type_url].append(old)
                self._bad.pop((type_url, name), None)
        if not any(changed.values()) and not any(removed.values()):
            return catalog.sequence
        # A cluster that is another one waits for its endpoints again, and asks for them no more.
        known = catalog.resources[EDS]
        again = {one.name: known[one.name] for one in changed[CDS] if one.name in known}
        changed[EDS] = list(({one.name: one for one in changed[EDS]} | again).values())
        catalog.sequence += 1
        if self.one_machine and not new and not any(removed.values()) and is_long(changed):
            self._one_by_one.hold([e for e in engines if e.answers], changed, catalog.sequence)
        # Of one answer Envoy drops listeners first: a new one gets the socket of its predecessor.
        replaced = removed[LDS] if changed[LDS] else []
        for engine in engines:
            engine.reached = catalog.sequence
            if engine.held is not None and engine.held.sequence == catalog.sequence:
                continue
            for one in (*changed[SDS], *removed[SDS]):
                engine.rejected.pop((SDS, one.name), None)  # it is another one now
            for one in changed[EDS]:  # a new cluster asks for them by itself
                if one.name not in engine.subscribed.get(EDS, ()):
                    engine.awaited.setdefault(one.name, catalog.sequence)
            for one in removed[EDS]:
                engine.awaited.pop(one.name, None)
            for type_url in _PUT_ORDER:
                if type_url == LDS:
                    self._await_scopes(engine, changed[LDS], catalog.sequence)
                wanted = self._wanted(engine, changed[type_url])
                former = self._wanted(engine, replaced) if type_url == LDS else []
                gone = [one.name for one in former]
                self._send(engine, type_url, wanted, gone, catalog.sequence)
            for type_url in _DROP_ORDER:
                gone = [one.name for one in self._wanted(engine, removed[type_url])]
                if type_url != LDS or not replaced:
                    self._send(engine, type_url, (), gone, catalog.sequence)
                for one in removed[type_url]:  # also of a collection that it asks for no more
                    engine.rejected.pop((type_url, one.name), None)
                if type_url == LDS:
                    self._await_no_more(engine, catalog)
        self.on_publish(group, catalog.sequence, began, any(e.answers for e in engines))
        return catalog.sequence

    def acknowledged(self, group: str) -> int:
        """The number that every engine that clients can meet has settled; 0 when there is none."""
        engines = [e for e in self.fleet.values() if e.group == group and e.answers]
        least = min((e.acknowledged for e in engines), default=0)
        return least if self.limit is None else min(least, self.limit(group))

    def retry_listeners(self) -> None:
        """Send refused listeners again: what held their address may be gone."""
        for engine in self.engines.values():
            refused = [name for type_url, name in engine.rejected if type_url == LDS]
            known = self.catalog(engine.group).resources[LDS]
            puts = [known[name] for name in refused if name in known]
            if puts and not any(sent.type_url == LDS for sent in engine.outstanding.values()):
                for one in puts:
                    self._send(engine, LDS, [one], (), engine.reached)

    def _send_held(self, engine: Engine, held: Held) -> None:
        """An engine is sent what another one was sent before."""
        resources = self.catalog(engine.group).resources
        for type_url in (CDS, SRDS):
            known = resources[type_url]
            puts = [known[name] for t, name in sorted(held.what) if t == type_url and name in known]
            self._send(engine, type_url, self._wanted(engine, puts), (), held.sequence)

    def _of(self, group: str) -> list[Engine]:
        return [engine for engine in self.engines.values() if engine.group == group]

    @staticmethod
    def _wanted(engine: Engine, resources: list[Encoded]) -> list[Encoded]:
        """Those that the engine has asked for; clusters and listeners it always has."""
        if not resources:
            return resources
        type_url = resources[0].type_url
        if type_url in (CDS, LDS):
            return resources if type_url in engine.subscribed else []
        asked = engine.subscribed.get(type_url, ())
        if type_url == SRDS:
            return [one for one in resources if one.collection in asked]
        return [one for one in resources if one.name in asked]

    @staticmethod
    def _await_scopes(engine: Engine, listeners: list[Encoded], sequence: int) -> None:
        """A new listener asks for its scopes by itself: it is not served before it has them."""
        asked = engine.subscribed.get(SRDS, ())
        for one in listeners:
            for name in one.collections:  # L4 has none
                if name not in asked:
                    engine.awaited.setdefault(name, sequence)

    @staticmethod
    def _await_no_more(engine: Engine, catalog: Catalog) -> None:
        """Scopes that no listener names are asked for by none.  Cost: nothing, as a rule."""
        if any(name.startswith(COLLECTIONS) for name in engine.awaited):
            named = {name for one in catalog.resources[LDS].values() for name in one.collections}
            for name in [n for n in engine.awaited if n.startswith(COLLECTIONS) and n not in named]:
                del engine.awaited[name]

    def _send(
        self,
        engine: Engine,
        type_url: str,
        puts: Iterable[Encoded],
        drops: Iterable[str],
        sequence: int,
        *,
        always: bool = False,
        chunk: int = 0,
    ) -> None:
        """``chunk``: resources in one response; 0: as many as there are in any."""
        chunk = chunk or self.chunk
        resources, gone = list(puts), list(drops)
        while resources or gone or always:
            part, resources = resources[:chunk], resources[chunk:]
            engine.nonce += 1
            engine.sent += len(part)
            nonce = str(engine.nonce)
            head = discovery_pb2.DeltaDiscoveryResponse(
                type_url=type_url, nonce=nonce, removed_resources=gone
            ).SerializeToString()
            engine.outstanding[nonce] = _Sent(sequence, type_url, part, gone)
            if engine.doubted or engine.unknown:
                part = self._in_other_bytes(engine, part)
            engine.queue.put_nowait((head, part))
            gone, always = [], False

    @staticmethod
    def _in_other_bytes(engine: Engine, resources: list[Encoded]) -> list[Encoded]:
        """Resources of a response, those in doubt so that what the engine says of them is true."""
        mark = uuid4().hex
        return [
            resent(one, mark)
            if one.type_url in engine.unknown or (one.type_url, one.name) in engine.doubted
            else one
            for one in resources
        ]

    # ── one engine ──────────────────────────────────────────────────────────────────────────

    async def _stream(
        self, admit: _Admit, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[bytes]:
        first = await anext(aiter(requests), None)
        if first is None:
            return
        await admit(context, first.node.id, first.node.cluster)
        returned = bool(first.initial_resource_versions)
        if returned or first.type_url != CDS:
            await self._open.wait()
        early = not self._open.is_set()
        engine = Engine(first.node.id, first.node.cluster, returned=returned)
        self._meet(engine)
        replaced = self.engines.get(engine.name)
        if replaced is not None:
            replaced.queue.put_nowait(None)
            self._leave(replaced)
        if returned:
            self._doubt(engine)
        self.engines[engine.name] = engine
        log.info(
            "event=se_connected se=%s group=%s from=%s", engine.name, engine.group, context.peer()
        )
        reader = asyncio.create_task(self._read(engine, first, requests, early=early))
        try:
            while (response := await engine.queue.get()) is not None:
                head, resources = response  # put together only now: many may wait
                yield head + b"".join([one.frame for one in resources])
        finally:
            reader.cancel()
            if self.engines.get(engine.name) is engine:
                del self.engines[engine.name]
                self._leave(engine)
                self._one_by_one.look(self._of(engine.group))
            log.info(
                "event=se_disconnected se=%s group=%s sent=%d",
                *(engine.name, engine.group, engine.sent),
            )
            self._on_progress(engine.group)

    def _meet(self, engine: Engine) -> None:
        engine.reached = self.catalog(engine.group).sequence
        engine.awaited["(connecting)"] = engine.reached
        engine.joining = 0 if engine.returned else engine.reached

    def _leave(self, engine: Engine) -> None:
        self._left[engine.name] = (time.monotonic(), engine.doubts())

    def _doubt(self, engine: Engine) -> None:
        """What one that has run before may have without using it.

        Not to know costs it some 0.1 ms a scope, once: it makes all of them anew.
        """
        left = self._left.pop(engine.name, None)
        if left is None or engine.name in self.elsewhere or time.monotonic() - left[0] > _TRUST_S:
            engine.unknown = set(_KEPT_UNUSED)
        else:
            engine.doubted = left[1]

    async def _read(
        self, engine: Engine, first: Any, requests: AsyncIterator[Any], *, early: bool
    ) -> None:
        try:
            self._request(engine, first)
            async for request in requests:
                if early and request.type_url != CDS:  # it has its clusters: now all else
                    await self._open.wait()
                    self._meet(engine)
                    early = False
                self._request(engine, request)
        except Exception:
            log.exception("event=se_stream_failed se=%s", engine.name)
        finally:
            engine.queue.put_nowait(None)

    def _request(self, engine: Engine, request: Any) -> None:
        type_url = request.type_url
        sent = engine.outstanding.pop(request.response_nonce, None)
        if sent is not None and request.HasField("error_detail"):
            self._refused(engine, sent, request.error_detail.message)
        elif sent is not None:
            self._taken(engine, sent)
        self._asked(engine, type_url, request)
        if engine.joining and engine.acknowledged >= engine.joining:
            engine.joining = 0
            self._met.add(engine.name)
            log.info("event=se_ready se=%s group=%s", engine.name, engine.group)
        self._one_by_one.look(self._of(engine.group))
        if sent is not None or request.resource_names_subscribe or not request.response_nonce:
            self._on_progress(engine.group)

    def _taken(self, engine: Engine, sent: _Sent) -> None:
        """It uses all that was in a response."""
        type_url = sent.type_url
        if engine.rejected:
            known = self.catalog(engine.group).resources.get(type_url, {})
            for name in sent.names:
                was = engine.rejected.pop((type_url, name), None)
                if was is not None and type_url == LDS and name in known:
                    self._await_scopes(engine, [known[name]], sent.sequence)
        if engine.doubted:
            engine.doubted.difference_update((type_url, name) for name in sent.names)

    def _asked(self, engine: Engine, type_url: str, request: Any) -> None:
        """Take in what a request subscribes to, and answer what is new."""
        known = engine.subscribed.get(type_url)
        asked = set(request.resource_names_subscribe)
        if type_url == SDS:
            engine.learnt.forget(request.resource_names_unsubscribe)
            for name in request.resource_names_unsubscribe:
                spelt = engine.spellings.get(plain_sni(name), set())
                spelt.discard(name)
                if not spelt:
                    engine.spellings.pop(plain_sni(name), None)
            for name in asked:
                engine.spellings.setdefault(plain_sni(name), set()).add(name)
        if known is None:
            engine.subscribed[type_url] = asked
            if type_url in (CDS, EDS, LDS, SRDS, SDS):
                self._greet(engine, type_url, asked, dict(request.initial_resource_versions))
        else:
            known -= set(request.resource_names_unsubscribe)
            known |= asked
            if asked:
                self._greet(engine, type_url, asked, {})

    def _greet(self, engine: Engine, type_url: str, asked: set[str], has: dict[str, str]) -> None:
        """Answer a subscription: the difference between what is wanted and what it has."""
        catalog = self.catalog(engine.group)
        sequence = engine.reached
        if type_url == SDS:
            found = {name: self._secret(engine, name) for name in asked}
            puts = [
                one
                for one in found.values()
                if one is not None and has.get(one.name) != one.version
            ]
            unknown = [name for name, one in found.items() if one is None]
            self._send(engine, SDS, puts, unknown, sequence)
            sizes = [(name, len(one.frame)) for name, one in found.items() if one is not None]
            self._bound_names(engine, sizes)
            engine.unknown.discard(SDS)
            return
        if type_url == SRDS:
            wanted: dict[str, Encoded] = {}
            for one in asked:
                wanted |= catalog.scopes.get(one, {})
                sequence = min(sequence, engine.awaited.pop(one, sequence))
        elif type_url == EDS:
            known = catalog.resources[EDS]
            wanted = {name: known[name] for name in asked if name in known}
            for name in asked:
                sequence = min(sequence, engine.awaited.pop(name, sequence))
        else:
            wanted = catalog.resources[type_url]
        if type_url == LDS:
            engine.awaited.pop("(connecting)", None)
            self._await_scopes(engine, list(wanted.values()), sequence)
        gone = [name for name in asked if name not in wanted] if type_url == EDS else []
        bad = self._refused_before(wanted) if self._bad else {}
        if bad:
            wanted = {name: one for name, one in wanted.items() if name not in bad}
        if type_url == SRDS and engine.returned and not engine.clearing:
            gone = [name for name, one in catalog.dropped.items() if one in asked]
            if engine.name not in self._met and self._scopes_of is not None:
                task = asyncio.create_task(self._clear(engine, self._scopes_of))
                self._clearing.add(task)
                task.add_done_callback(self._clearing.discard)
        if has:
            engine.returned, engine.joining = True, 0
            delta = diff_fingerprints(
                {name: one.fingerprint for name, one in wanted.items()},
                {name: bytes.fromhex(version) for name, version in has.items()},
            )
            puts = [wanted[name] for name in (*delta.added, *delta.changed)]
            removed = [name for name in delta.removed if name not in bad]  # it has former ones
            self._send(engine, type_url, puts, removed, sequence, always=True)
        else:
            # A listener opens with the first answer of its scopes: nobody is to meet half of them.
            chunk = len(wanted) or 1 if type_url == SRDS else 0
            puts = list(wanted.values())
            self._send(engine, type_url, puts, gone, sequence, always=True, chunk=chunk)
        self._send(engine, type_url, bad.values(), (), sequence, chunk=1)
        engine.unknown.discard(type_url)  # what it has is on its way to it, in other bytes

    def _refused_before(self, wanted: Mapping[str, Encoded]) -> dict[str, Encoded]:
        """Those of ``wanted`` that an engine refused as they are."""
        return {
            name: wanted[name]
            for (type_url, name), fingerprint in self._bad.items()
            if name in wanted
            and wanted[name].type_url == type_url
            and wanted[name].fingerprint == fingerprint
        }

    def _bound_names(self, engine: Engine, names: Iterable[tuple[str, int]]) -> None:
        """Have an engine forget the first names that it learnt, when there are too many.

        They go after all that it was sent before: no handshake waits for one of them any more.
        """
        own = self.catalog(engine.group).own_name
        self._send(
            engine, SDS, (), engine.learnt.learn(names, own, self.names_limit), engine.reached
        )
        refused = [at for at in engine.rejected if at[0] == SDS and not own(at[1])]
        for at in refused[: max(len(refused) - self.names_limit, 0)]:
            del engine.rejected[at]
            engine.doubted.discard(at)

    async def _clear(
        self, engine: Engine, scopes_of: Callable[[str], Awaitable[Collection[str] | None]]
    ) -> None:
        """Take from an engine that outlived its controller the scopes that nobody wants now.

        Costs the engine's main thread some 0.1 ms a scope, once; its workers serve on.
        """
        engine.clearing = True
        try:
            names = await scopes_of(engine.name)
            if names is None:
                return  # it went away again; the next time it is asked again
            known = self.catalog(engine.group).resources[SRDS]
            if gone := [name for name in names if name not in known]:
                self._send(engine, SRDS, (), gone, engine.reached)
            self._met.add(engine.name)
        finally:
            engine.clearing = False
            self._on_progress(engine.group)

    def _secret(self, engine: Engine, name: str) -> Encoded | None:
        """The certificate for an SNI; None also when the engine has refused just that one."""
        one = self.catalog(engine.group).secret(name)
        refused = engine.rejected.get((SDS, name))
        same = one is not None and refused is not None and refused.fingerprint == one.fingerprint
        return None if same else one

    def _refused(self, engine: Engine, sent: _Sent, message: str) -> None:
        """Find the resource at fault by halves; the rest goes again, in other bytes.

        Of several none is known to be at fault, also when the others are gone by now, and of one
        that is another now it is not known either: that goes again as it is.
        """
        type_url, why = sent.type_url, reason(message)
        if type_url == SDS:
            found = [self._secret(engine, name) for name in sent.names]
            live = [one for one in found if one is not None]
            gone = [name for name in sent.gone if self._secret(engine, name) is None]
        else:
            resources = self.catalog(engine.group).resources[type_url]
            live = [resources[name] for name in sent.names if name in resources]
            gone = [name for name in sent.gone if name not in resources]
        if type_url in _KEPT_UNUSED:
            engine.doubted.update((type_url, name) for name in sent.names)
        if gone and sent.puts:  # a response that fails its validation drops nothing either
            self._send(engine, type_url, (), gone, sent.sequence)
        if len(live) > 1:
            half = len(live) // 2
            self._send(engine, type_url, live[:half], (), sent.sequence)
            self._send(engine, type_url, live[half:], (), sent.sequence)
        elif live and (len(sent.puts) > 1 or live[0].fingerprint != sent.puts[0].fingerprint):
            self._send(engine, type_url, live, (), sent.sequence)
        elif live:
            one = live[0]
            new = Rejection(type_url, one.name, one.fingerprint, why)
            if engine.rejected.get((type_url, one.name)) == new:
                return  # asked again, refused again
            self._reject(engine, one, new, sent.sequence)
        self.nacks += 1
        engine.nacks += 1
        log.warning(
            "event=refused se=%s type=%s count=%d why=%r",
            *(engine.name, _short(type_url), len(live), why),
        )

    def _reject(self, engine: Engine, one: Encoded, found: Rejection, sequence: int) -> None:
        """An engine does without a resource."""
        engine.rejected[one.type_url, one.name] = found
        if one.type_url == SDS:  # else the handshakes that wait for it would wait on
            self._send(engine, SDS, (), (one.name,), sequence)
            return
        self._bad[one.type_url, one.name] = one.fingerprint
        if one.type_url == CDS:
            engine.awaited.pop(one.name, None)  # it asks for no endpoints
        elif one.type_url == LDS:
            listeners = self.catalog(engine.group).resources[LDS].values()
            used = {
                name
                for other in listeners
                if (LDS, other.name) not in engine.rejected
                for name in other.collections
            }
            for name in one.collections:  # it asks for no scopes
                if name not in used:
                    engine.awaited.pop(name, None)

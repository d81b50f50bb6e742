"""Several replicas, each with engines of its own: what all of them have, known to each.

An address is announced when every engine has what is announced, whichever replica it is connected
to.  So each replica keeps one `Replica` object that tells of the engines connected to it, and
reads those of the others.  How engines of two replicas compare: `akocore.revisions`.

Why an object a replica, and not one an engine: it has one writer for ever, where an engine's would
change hands as the engine does; it is one write, however many engines there are; and it is the
sign of life that a leftover is known by in either case.  The ``ServiceEngine`` objects that people
read are the leader's to write, from these.

* A replica that is gone: its engines come to another and count there from then on, the newer word
  before the older.  An engine that goes with it counts no more when the object has not been
  renewed for its time; the leader takes that away.
* A replica that has lost the API server, but not its engines, sends these away once, before its
  own time is over: they go to one that is up to date.
* An engine that comes to a replica that has read less than the engine has is let in when it has
  read as much, lest it is told to drop what is new.
* What is not kept in the cluster yet, as an address just given, counts for nobody as served: it
  would be forgotten with this replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import cast

import msgspec
from mmh3 import mmh3_x64_128_digest
from msgspec import Struct

from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer, Elsewhere, Engine, Rejection
from akocore.engines.envoy.remote import RemoteServer, Say
from akocore.kube.api import ApiError, ApiServer, resources
from akocore.kube.informer import Informer
from akocore.kube.mirrors import object_name
from akocore.kube.objects import (
    Batch,
    Change,
    EngineRejection,
    Replica,
    ReplicaEngine,
    ReplicaRouter,
    ReplicaStatus,
)
from akocore.revisions import Received, Revisions, reaches

__all__ = ["Replicas", "config_digest"]

log = logging.getLogger(__name__)

_FIELD_MANAGER = "akocore"
_GAP_S, _BURST = 0.1, 5  # between two reports in the long run; how many go at once
_IDLE_GAP_S = 1.0  # when nobody can be waiting for one
_RETRY_S, _REMEDY_S = 0.3, 5.0
_TIMEOUT_S = 5.0
_CATCH_UP_S = 5.0  # an engine is not held up for longer
_REJECTED = 50  # of an engine, in a report
_LOST = 10  # an engine that went is remembered for so many times of a lease


class _Other(Struct):
    """Another replica.  ``heard``: when it last said something, on the monotonic clock."""

    replica: Replica
    heard: float


def config_digest(config: Config, port_offset: int) -> str:
    """What must be the same for replicas to make the same of the same objects."""
    return mmh3_x64_128_digest(msgspec.json.encode((config, port_offset))).hex()[:16]


class Replicas:
    """The engines of this replica, on ``server``, and those of the others.

    ``leads()``: whether this one does; ``revision()``: the newest VsVip that it has made;
    ``waiting()``: whether something is to be announced; ``routers()``: those whose agents are here;
    ``progress(group)`` is called when engines elsewhere have got on; ``forgotten(engine)`` when
    one went long ago.
    """

    def __init__(
        self,
        api: ApiServer,
        ads: AdsServer,
        server: RemoteServer,
        *,
        identity: str,
        config: str,
        duration_s: float,
        leads: Callable[[], bool],
        revision: Callable[[], int],
        waiting: Callable[[], bool],
        progress: Callable[[str], None],
        forgotten: Callable[[str], None],
        routers: Callable[[], tuple[ReplicaRouter, ...]],
        say: Say,
    ) -> None:
        self.routers = server.routers
        self._routers = routers
        self.identity = identity
        self.written = 0
        self._api = api
        self._ads = ads
        self._server = server
        self._name = object_name(identity)
        self._config = config
        self._duration_s = duration_s
        self._leads = leads
        self._revision = revision
        self._waiting = waiting
        self._progress = progress
        self._forgotten = forgotten
        self._say = say
        self._resource = resources()[Replica.KIND]
        self._informer = Informer(api, self._resource, self._hear)
        self._revisions = Revisions()
        self._received = Received({}, {})
        self._others: dict[str, _Other] = {}
        self._here: dict[str, Engine] = {}
        self._lost: dict[str, float] = {}  # engine → when it went
        self._due = asyncio.Event()
        self._marked = asyncio.Event()
        self._hurry = 0.0  # when somebody last waited
        self._next = 0.0  # a steady ten reports a second would have the next one now
        self._said: ReplicaStatus | None = None
        self._wrote, self._contact = float("-inf"), time.monotonic()
        self._sent_away = False
        self._informing: asyncio.Task[None] | None = None
        ads.limit = self._revisions.published
        server.before = self._catch_up

    # ── life ────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Take the port, and learn of the other replicas.  Raises `EngineError`."""
        self._server.bind()
        self._informing = asyncio.create_task(self._informer.run(), name="informer Replica")
        await self._informer.synced.wait()
        if self._informer.missing:
            self._say("Config", "Warning", "ReplicasUnknown", "Run `akocore install`.")

    async def start(self) -> None:
        """The catalogs are complete: answer engines."""
        await self._server.start()

    async def run(self) -> None:
        """Tell the others, and notice who is gone, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._look())

    async def stop(self) -> None:
        await self._server.stop()
        if self._informing is not None:
            self._informing.cancel()
            await asyncio.gather(self._informing, return_exceptions=True)

    # ── what happens here ───────────────────────────────────────────────────────────────────

    def received(self, batch: Batch) -> None:
        """A batch has been applied."""
        if batch.received is not None:
            self._received = batch.received

    def mark(self) -> Callable[[], None]:
        """Now: what has been received is published.  To be called: and kept in the cluster."""
        received = self._received
        published = {group: one.sequence for group, one in self._ads.catalogs.items()}

        def kept() -> None:
            made = max(received.seen.get("VsVip", 0), self._revision())
            seen = received.seen | ({"VsVip": made} if made else {})
            if self._waiting():
                self._hurry = time.monotonic()
            before = {group: self._revisions.published(group) for group in published}
            if self._revisions.mark(Received(received.read, seen), published):
                self._marked.set()
                self._due.set()
                for group, number in published.items():
                    if before[group] != number:
                        self._progress(group)

        return kept

    def progressed(self) -> None:
        """An engine of ours came, went or acknowledged."""
        self._due.set()
        engines = dict(self._ads.engines)
        for name in engines.keys() - self._here.keys():
            note = f"It is connected to {self.identity}."
            self._say(f"ServiceEngine/{name}", "Normal", "EngineConnected", note)
            self._hurry = time.monotonic()
        for name in self._here.keys() - engines.keys():
            note = f"It is no longer connected to {self.identity}."
            self._say(f"ServiceEngine/{name}", "Warning", "EngineDisconnected", note)
            self._hurry = time.monotonic()
            self._lose(name, self._here[name].group)
        self._here = engines
        self._find()

    def routed(self) -> None:
        """A router whose agent is here came, went or does something else."""
        self._hurry = time.monotonic()
        self._due.set()

    def _lose(self, name: str, group: str) -> None:
        if name not in self._ads.fleet:
            self._lost[name] = time.monotonic()
            self._ads.lost[name] = group

    def _find(self) -> None:
        for name in self._lost.keys() & self._ads.fleet.keys():
            del self._lost[name], self._ads.lost[name]

    async def _catch_up(self, name: str) -> None:
        """Wait until we have read as much as an engine has that comes to us."""
        has: dict[str, int] = {}
        for other in self._others.values():
            said = other.replica.status
            if any(engine.name == name for engine in said.engines):
                for kind, version in said.seen.items():
                    has[kind] = max(has.get(kind, 0), version)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_S):
                while not reaches(self._revisions.last.read, has):
                    self._marked.clear()
                    await self._marked.wait()
                return
        log.warning("event=se_has_more se=%s has=%s we=%s", name, has, self._revisions.last.read)

    # ── what happens elsewhere ──────────────────────────────────────────────────────────────

    def _hear(self, changes: list[Change]) -> None:
        for change in changes:
            replica = cast("Replica | None", change.obj)
            if replica is None:
                self._others.pop(change.key, None)
            elif change.key != self._name:
                self._others[change.key] = _Other(replica, time.monotonic())
                if replica.status.config != self._config:
                    who = replica.status.identity
                    note = f"{who} has another configuration: its engines count as having nothing."
                    self._say("Config", "Warning", "ReplicasDiffer", note)
        self._count()

    def _count(self) -> None:
        """Work out what there is elsewhere.  Cost: all engines."""
        now = time.monotonic()
        found: dict[str, Elsewhere] = {}
        for other in self._others.values():
            said = other.replica.status
            if now - other.heard > said.lease_seconds:
                continue
            for one in said.engines:
                if one.name not in found or found[one.name].since < one.since:
                    found[one.name] = self._elsewhere(one, said)
        routers = {
            router.name: router
            for other in self._others.values()
            if now - other.heard <= other.replica.status.lease_seconds
            for router in other.replica.status.routers
        }
        if routers != self.routers.elsewhere:
            self.routers.elsewhere = routers
            self.routers.on_elsewhere()
        before, self._ads.elsewhere = self._ads.elsewhere, found
        for name in before.keys() - found.keys():
            self._lose(name, before[name].group)
        self._find()
        changed = [at for at in before.keys() | found.keys() if before.get(at) != found.get(at)]
        groups = {one[name].group for name in changed for one in (before, found) if name in one}
        for group in sorted(groups):
            self._progress(group)

    def _elsewhere(self, one: ReplicaEngine, by: ReplicaStatus) -> Elsewhere:
        return Elsewhere(
            one.name,
            one.group,
            one.since,
            by.identity,
            one.answers,
            one.received if by.config == self._config else {},
            {(r.type, r.name): Rejection(r.type, r.name, b"", r.message) for r in one.rejected},
            one.nacks,
            self._revisions.number,
        )

    async def _look(self) -> None:
        """Who has not been heard of for long; and whether it is us."""
        while True:
            await asyncio.sleep(min(self._duration_s / 10, 1.0))
            now = time.monotonic()
            self._count()
            for name in [n for n, at in self._lost.items() if now - at > _LOST * self._duration_s]:
                del self._lost[name], self._ads.lost[name]
                self._forgotten(name)
            if now - self._contact > self._duration_s * 2 / 3:
                if not self._sent_away and self._ads.engines:
                    log.warning("event=engines_sent_away count=%d", len(self._ads.engines))
                    self._ads.send_away()
                    self.routers.send_away()
                self._sent_away = True
            if self._leads():
                for name, other in list(self._others.items()):
                    if now - other.heard > 2 * other.replica.status.lease_seconds:
                        await self._remove(name, other.replica)

    async def _remove(self, name: str, replica: Replica) -> None:
        """A replica is no more: so is its object, unless it comes back at this moment."""
        meta = replica.metadata
        body = {"preconditions": {"uid": meta.uid, "resourceVersion": meta.resource_version}}
        with contextlib.suppress(ApiError, TimeoutError):
            await self._api.request(
                "DELETE",
                self._resource.path(name=name),
                None,
                msgspec.json.encode(body),
                timeout_s=_TIMEOUT_S,
            )
            log.info("event=replica_forgotten replica=%s", name)

    # ── what we say ─────────────────────────────────────────────────────────────────────────

    def _status(self) -> ReplicaStatus:
        return ReplicaStatus(
            identity=self.identity,
            lease_seconds=self._duration_s,
            leads=self._leads(),
            config=self._config,
            seen=self._revisions.last.seen,
            engines=tuple(
                ReplicaEngine(
                    name=name,
                    group=engine.group,
                    since=engine.since,
                    answers=engine.answers,
                    nacks=engine.nacks,
                    received=dict(self._revisions.had(engine.group, engine.acknowledged)),
                    rejected=_rejections(engine.rejected),
                )
                for name, engine in sorted(self._ads.engines.items())
            ),
            routers=self._routers(),
        )

    async def _write(self) -> None:
        """One report after another, each as things are then; renewed in time when nothing is new.

        At most ten a second, a few at once; one a second when nobody can be waiting for it.
        """
        while True:
            left = self._wrote + self._duration_s / 3 - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left, 0)):
                    await self._due.wait()
            while (left := self._not_before() - time.monotonic()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(min(left, _GAP_S))  # whether somebody waits has no event
            self._next = max(self._next, time.monotonic() - _BURST * _GAP_S) + _GAP_S
            self._due.clear()
            said = self._status()
            renew = time.monotonic() - self._wrote >= self._duration_s / 3
            if said != self._said or renew:
                await self._tell(said)

    def _not_before(self) -> float:
        now = time.monotonic()
        if self._waiting():
            self._hurry = now
        return self._next if now - self._hurry < _IDLE_GAP_S else self._wrote + _IDLE_GAP_S

    async def _tell(self, said: ReplicaStatus) -> None:
        renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = {
            "apiVersion": self._resource.api_version,
            "kind": Replica.KIND,
            "metadata": {"name": self._name},
            "status": msgspec.to_builtins(said) | {"renewed": renewed},
        }
        path = self._resource.path(name=self._name)
        began = time.monotonic()
        try:
            await self._api.apply(path, body, _FIELD_MANAGER, _TIMEOUT_S)
        except (ApiError, TimeoutError) as err:
            code = err.code if isinstance(err, ApiError) else 0
            self._due.set()
            if code in (403, 404):
                self._contact = began
                self._say("Config", "Warning", "ReplicaNotTold", f"{err}. Run `akocore install`.")
                await asyncio.sleep(_REMEDY_S)
            else:
                log.warning("event=replica_not_told why=%r", str(err) or "timeout")
                await asyncio.sleep(_RETRY_S)
            return
        self._said, self._wrote, self._contact, self._sent_away = said, began, began, False
        self.written += 1


def _rejections(
    found: Mapping[tuple[str, str], Rejection],
) -> tuple[EngineRejection, ...]:
    first = [found[at] for at in sorted(found)[:_REJECTED]]
    return tuple(
        EngineRejection(type=r.type_url, name=r.name, message=r.message[:300]) for r in first
    )

"""A cluster as a source: one informer a kind, changes gathered into batches.

A batch is closed when nobody waits for it: the first change after a quiet time goes through
after `WINDOW_S`; while a batch is being worked on, what comes is gathered, the newest state of
each object, so a storm of any size becomes a few batches and an object is never held twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection

from akocore.kube.api import ApiServer, resources
from akocore.kube.gateway_objects import GATEWAY_KINDS
from akocore.kube.informer import Informer, Tally
from akocore.kube.objects import Batch, Change
from akocore.model import Refusal
from akocore.revisions import Received

__all__ = ["WATCHED", "Cluster"]

WATCHED = (
    *("VsVip", "IngressClass", "Namespace", "AviInfraSetting", "ServiceEngineGroup", "Network"),
    *("GatewayClass", "Gateway", *(kind.stored() for kind in GATEWAY_KINDS)),
    *("Service", "EndpointSlice", "Ingress"),
)
_SECRETS_S = 5.0  # an API server that is away does not hold up everything else
WINDOW_S = 0.001  # what one `kubectl apply` makes within it goes together

_PATH = re.compile(r" - at `\$\.?(.*)`$")


class Cluster:
    """The objects of a cluster.  First `first`, then `watch`, in one task.

    Secrets and ConfigMaps are read one by one, as `follow` names them; nothing lists them.

    ``namespaces``: of objects that have one, just those in these are read, each namespace by an
    informer of its own, so that Roles there are all that is needed; none: those of all.
    """

    def __init__(self, api: ApiServer, namespaces: Collection[str] = ()) -> None:
        self._api = api
        self._namespaces = sorted(set(namespaces))
        self._pending: dict[tuple[str, str], Change] = {}
        self._refusals: dict[str, tuple[Refusal, ...]] = {}
        self._woken = asyncio.Event()
        self._first_at = 0.0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.informers: dict[str, Informer] = {}
        self.tallies: dict[str, Tally] = {}  # by kind: of all of its informers that ever were
        self.received: Counter[str] = Counter()  # changes, by kind

    @property
    def waiting(self) -> int:
        """How many objects wait for the next batch."""
        return len(self._pending)

    @property
    def missing(self) -> list[str]:
        """The kinds that the API server doesn't have."""
        return sorted({one.kind for one in self.informers.values() if one.missing})

    @property
    def unlisted(self) -> list[str]:
        """The kinds (at namespaces) of which not even the first list is there."""
        return sorted(kind for kind, one in self.informers.items() if not one.synced.is_set())

    async def first(self) -> Batch:
        """Everything that is there, when every kind has been listed."""
        at = time.monotonic()
        for kind in WATCHED:
            for stream, namespace in self._streams(kind):
                informer = self._informer(kind, namespace)
                self.informers[stream] = informer
                self._tasks[stream] = asyncio.create_task(informer.run(), name=f"informer {stream}")
        for one in self.informers.values():
            await one.synced.wait()
        order = {kind: i for i, kind in enumerate(WATCHED)}
        changes, self._pending = list(self._pending.values()), {}
        changes.sort(key=lambda c: (order[c.kind], *_age(c)))
        refusals, self._refusals = self._refusals, {}
        return Batch(tuple(changes), refusals, at, self._received())

    async def watch(self, stop: asyncio.Event) -> AsyncIterator[Batch]:
        """Batches as things change, until ``stop``."""
        stopping = asyncio.ensure_future(stop.wait())
        stopping.add_done_callback(lambda _: self._woken.set())
        try:
            while not stop.is_set():  # also when it came while a batch was gathered
                await self._woken.wait()
                if stop.is_set():
                    return
                await asyncio.sleep(WINDOW_S)
                self._woken.clear()
                yield self._batch(self._first_at)
        finally:
            stopping.cancel()
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def follow(self, wanted: set[str]) -> Batch | None:
        """Watch just these Secrets and ConfigMaps ("Kind/namespace/name"); what came with that.

        Cost: how many they are.
        """
        have = {name for name in self._tasks if "/" in name}
        for name in have - wanted:
            self._tasks.pop(name).cancel()
            kind, _, key = name.partition("/")
            self._take([Change(kind, key, None)])
        started = []
        for name in sorted(wanted - have):
            kind, *namespaces, own = name.split("/")
            namespace = namespaces[0] if namespaces else ""
            informer = self._informer(kind, namespace, f"metadata.name={own}")
            self._tasks[name] = asyncio.create_task(informer.run(), name=name)
            started.append(informer)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SECRETS_S):
                for informer in started:
                    await informer.synced.wait()
        return self._batch(self._first_at) if self._pending else None

    def _informer(self, kind: str, namespace: str = "", field_selector: str = "") -> Informer:
        return Informer(
            self._api,
            resources()[kind],
            self._take,
            refused=self._bad,
            namespace=namespace,
            field_selector=field_selector,
            tally=self.tallies.setdefault(kind, Tally()),
        )

    def _streams(self, kind: str) -> list[tuple[str, str]]:
        """(name, namespace) of each informer of a kind: one for all namespaces, or one for each."""
        if not self._namespaces or not resources()[kind].kind.NAMESPACED:
            return [(kind, "")]
        return [(f"{kind}@{namespace}", namespace) for namespace in self._namespaces]

    def _take(self, changes: list[Change]) -> None:
        if not changes:
            return
        self.received[changes[0].kind] += len(changes)
        if not self._pending:
            self._first_at = time.monotonic()
        for change in changes:
            at = (change.kind, change.key)
            self._pending.pop(at, None)  # its newest state, in the newest place
            self._pending[at] = change
        self._woken.set()

    def _bad(self, name: str, error: str | None) -> None:
        refusals: tuple[Refusal, ...] = ()
        if error is not None:
            path = _PATH.search(error)
            refusals = (
                Refusal(
                    object=name,
                    field=path[1] if path else "",
                    reason="InvalidObject",
                    remedy=f"{_PATH.sub('', error)}. Correct it; until then the object stays as it"
                    " was.",
                ),
            )
        if not self._refusals and not self._pending:
            self._first_at = time.monotonic()
        self._refusals[name] = refusals
        self._woken.set()

    def _batch(self, at: float) -> Batch:
        changes, self._pending = list(self._pending.values()), {}
        refusals, self._refusals = self._refusals, {}
        return Batch(tuple(changes), refusals, at, self._received())

    def _received(self) -> Received:
        """How far we are: nothing is on its way between an informer and a batch."""
        read = {kind: one.read for kind, one in self.informers.items()}
        return Received(read, {kind: one.seen for kind, one in self.informers.items()})


def _age(change: Change) -> tuple[str, list[tuple[int, str]]]:
    """Ingresses as they were created: it decides who gets which address first."""
    if change.kind != "Ingress" or change.obj is None:
        return "", []
    return change.obj.metadata.creation_timestamp, _natural(change.key)


def _natural(key: str) -> list[tuple[int, str]]:
    """Orders ``hello2`` before ``hello10``."""
    return [(int(p) if p.isdigit() else 0, p) for p in re.split(r"(\d+)", key)]

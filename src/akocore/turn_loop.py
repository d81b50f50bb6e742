"""What a running akocore does with the batches of its source: it takes turns (`akocore.turns`).

Small changes are applied as they come.  Big ones are applied a slice at a time, each when every
engine has the one before, so that neither the controller nor an Envoy ever has more than a slice
of them in front of what a neighbour wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence

from akocore.collector import left_alone
from akocore.kube.objects import Batch, Change
from akocore.observe.watch import Watch
from akocore.reconcile import Reconciler
from akocore.revisions import Received
from akocore.turns import SLICE_S, SMALL, Turn, Turns, namespace_of, weight

__all__ = ["TurnLoop"]

BYTE_S = 0.2e-6  # of an Envoy's main thread, for each byte that is sent to it: measured
_ACKNOWLEDGED_S = 0.25  # an engine that hangs holds nobody up for longer


class TurnLoop:
    """``applied(changes, touched)``: these were applied, and these Ingresses are to be told.

    ``clock``, ``worked``: seconds that have gone by, and that this thread has worked.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        watch: Watch,
        applied: Callable[[Sequence[Change], set[str]], None],
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
        small: int = SMALL,
    ) -> None:
        self.turns = Turns(clock, self._size, small)
        self._small = small
        self._at = reconciler
        self._watch = watch
        self._applied = applied
        self._clock = clock
        self._worked = worked
        self._due = asyncio.Event()
        self._begun: dict[str, list[int]] = {}  # namespace → batches of what it has begun
        self._received: deque[tuple[int, Received]] = deque()
        self._read: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._sent: dict[str, int] = {}  # group → the last slice's publication
        self._until = 0.0  # when that is waited for no longer

    @property
    def waiting(self) -> int:
        """How much of what was received is not applied yet."""
        return len(self.turns) + len(self._at.due.namespaces)

    @property
    def received(self) -> Received:
        """How far the source is in what has been applied; and what may have come to something."""
        while self._received and self._received[0][0] <= self.turns.complete:
            self._read = self._received.popleft()[1].read
        return Received(self._read, self._seen)

    def begin(self, received: Received | None) -> None:
        """So much has been applied at the start, when there was nobody to take turns with."""
        if received is not None:
            self._read, self._seen = received.read, received.seen

    def add(self, batch: Batch) -> None:
        """Take in what has changed."""
        number = self.turns.add(batch.changes, batch.at)
        if batch.received is not None:
            self._received.append((number, batch.received))
            self._seen = batch.received.seen
        if not batch.changes:
            self._applied((), set())
        self._due.set()

    def progressed(self) -> None:
        """An engine has acknowledged something."""
        if self._sent:
            self._due.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._due.clear()
            if not self.step():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s()):
                        await self._due.wait()
            await asyncio.sleep(0)

    def step(self) -> bool:
        """Take one turn; whether there was one to take."""
        owing = self._at.due.namespaces
        if (turn := self.turns.take()) is not None:
            self._apply(turn)
        elif (owing or self.turns) and self._acknowledged():
            namespace = self.turns.whose(owing)
            if namespace is None:
                return False
            with left_alone():
                self._big(namespace)
        else:
            return False
        return True

    def _wait_s(self) -> float | None:
        rest_s = self.turns.rest_s(self._at.due.namespaces)
        if rest_s is None or not self._sent:
            return rest_s
        return max(rest_s, self._until - self._clock())

    def _apply(self, turn: Turn) -> None:
        batch = Batch(turn.changes, {}, turn.at)
        with self._watch.batch(batch, self._at.realiser):
            touched = self._at.apply(turn.changes, self._small)
        owing = self._at.due.namespaces
        for change, number in zip(turn.changes, turn.numbers, strict=True):
            if (namespace := namespace_of(change.key)) in owing:  # it may have begun what is due
                self._begun.setdefault(namespace, []).append(number)
            else:
                self.turns.done(number)
        self._applied(turn.changes, touched)

    def _big(self, namespace: str) -> None:
        began, realiser = self._worked(), self._at.realiser
        before = realiser.put_bytes

        def cost_s() -> float:
            return self._worked() - began + (realiser.put_bytes - before) * BYTE_S

        catalogs = self._at.ads.catalogs
        sequences = {group: one.sequence for group, one in catalogs.items()}
        if namespace in self._at.due.namespaces:
            touched = self._at.go_on(namespace, lambda: cost_s() >= SLICE_S)
            if namespace not in self._at.due.namespaces:
                self.turns.done(*self._begun.pop(namespace, ()))
            self._applied((), touched)
        elif (turn := self.turns.take_big(namespace)) is not None:
            self._apply(turn)
        self.turns.spent(namespace, cost_s())
        self._sent = {
            group: one.sequence
            for group, one in catalogs.items()
            if one.sequence != sequences.get(group)
        }
        self._until = self._clock() + _ACKNOWLEDGED_S

    def _acknowledged(self) -> bool:
        """Whether the engines here have the last slice."""
        if self._sent and self._clock() < self._until:
            for engine in self._at.ads.engines.values():
                if engine.answers and engine.acknowledged < self._sent.get(engine.group, 0):
                    return False
        self._sent = {}
        return True

    def _size(self, change: Change) -> int:
        old = self._at.store.all(change.kind).get(change.key)
        unit, object_ = ("weight", change.kind, change.key), f"{change.kind}/{change.key}"
        found = self._at.faults.run(unit, object_, lambda: max(weight(change.obj), weight(old)))
        return found or 0

"""What one akocore is put together from: where objects come from, and where status goes; who leads;
who runs Service Engines that are no processes of ours.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from akocore.engines.agent.routers import Routers
from akocore.events import Event
from akocore.kube.objects import Batch

__all__ = ["External", "Lead", "Sink", "Source", "Workloads"]


class Source(Protocol):
    """Where the objects come from: a directory of manifests, or a cluster."""

    received: Counter[str]  # changes so far, by kind

    @property
    def waiting(self) -> int:
        """How much has changed that is not in a batch yet."""
        ...

    async def first(self) -> Batch:
        """Everything that is there."""
        ...

    def watch(self, stop: asyncio.Event) -> AsyncIterator[Batch]:
        """What changes from then on."""
        ...

    async def follow(self, wanted: set[str]) -> Batch | None:
        """Just these Secrets and ConfigMaps ("Kind/namespace/name") are needed; what came so."""
        ...


class Sink(Protocol):
    """Where status goes, for a source that wants it back."""

    written: int
    failed: int

    @property
    def waiting(self) -> int:
        """How many statuses are due."""
        ...

    @property
    def events_waiting(self) -> int:
        """How many events are to be told after that."""
        ...

    def touch(self, kind: str, key: str) -> None:
        """The status of this object may be another one now."""
        ...

    def touch_all(self) -> None:
        """This replica leads from now on: every status may be another one."""
        ...

    def event(self, event: Event) -> None:
        """Something new was said."""
        ...

    async def run(self) -> None:
        """Write what was touched, until cancelled."""
        ...


class Lead(Protocol):
    """Which of several replicas decides and writes.  ``on_change(held)`` is ours to set."""

    on_change: Callable[[bool], None]
    tried: asyncio.Event  # the first attempt is over

    @property
    def held(self) -> bool:
        """Whether it is this one, at this very moment."""
        ...

    async def run(self) -> None:
        """Seek and keep it, until cancelled."""
        ...

    async def release(self) -> None:
        """Give it up at a planned end."""
        ...


class Workloads(Protocol):
    """Who runs the Service Engines that are no processes of ours."""

    def due(self) -> None:
        """Placement may want other engines now."""
        ...

    async def run(self) -> None:
        """Keep them, until cancelled."""
        ...


class External(Protocol):
    """Service Engines that are no processes of ours, and replicas that have some of them."""

    async def open(self) -> None:
        """Get ready for them.  Raises `EngineError`."""
        ...

    async def start(self) -> None:
        """Answer them from now on."""
        ...

    async def run(self) -> None:
        """Keep in touch with other replicas, until cancelled."""
        ...

    async def stop(self) -> None: ...

    def received(self, batch: Batch) -> None:
        """A batch was applied."""
        ...

    def mark(self) -> Callable[[], None]:
        """What was applied is published; to be called when all of it is remembered, too."""
        ...

    def progressed(self) -> None:
        """An engine came, went or acknowledged."""
        ...

    @property
    def routers(self) -> Routers:
        """The routers of engines that have an agent."""
        ...

    def routed(self) -> None:
        """One of these came, went or does something else."""
        ...

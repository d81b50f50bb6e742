"""Made-up objects through translation, encoding and status, without an engine."""

from __future__ import annotations

from collections import Counter, deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from akocore import status, status_gateway, status_l4
from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.kube import gateway_status
from akocore.kube.objects import Change
from akocore.place.state import State
from akocore.reconcile import Reconciler
from fuzz.world import change, first

__all__ = ["Translation"]

_KEPT = 300


class Translation:
    """Follows made-up objects, of which the last few hundred are there at a time.

    ``faults``: what came up, by its reason: there must be nothing.
    """

    def __init__(self, scratch: Path) -> None:
        self.faults: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        ads = AdsServer(scratch / "xds.sock", lambda _group: None)
        now = datetime.now(UTC)
        self.at = Reconciler(Config(), State(scratch / "state"), ads, now=lambda: now)
        self.at.apply([change(one) for one in first(8080)])
        self._there: deque[Change] = deque()

    def take(self, documents: list[dict[str, Any]]) -> None:
        """Apply some objects at once, look at every status, and take the oldest away."""
        changes = []
        for one in documents:
            try:
                changes.append(change(one))
            except ValueError as err:  # told as a refusal of the object by whoever reads it
                self.unread[f"{one['kind']}: {err}"] += 1
        while len(self._there) > _KEPT:
            old = self._there.popleft()
            changes.insert(0, Change(old.kind, old.key, None))
        self.at.apply(changes)
        self._there.extend(one for one in changes if one.obj is not None)
        for one in changes:
            if one.obj is not None:
                self._look(one)
        for object_ in self.at.faults.touched:
            for refusal in self.at.faults.of(object_):
                self.faults[f"{object_.partition('/')[0]}: {refusal.remedy}"] += 1
        self.at.faults.touched.clear()

    def _look(self, one: Change) -> None:
        at = self.at
        if one.kind == "Ingress":
            found = status.ingress_refusals(at, one.key)
            status.ingress(at, one.key)
        elif one.kind in ("Gateway", "Service"):
            found = status_l4.refusals(at, one.kind, one.key) or []
        elif one.kind in gateway_status.KINDS:
            found = status_gateway.refusals(at, one.kind, one.key) or []
            if one.obj is not None:
                gateway_status.wanted(at, one.obj, lambda _vs: None)
        else:
            found = [*at.infrastructure.refusals(one.kind, one.key)]
        for refusal in found:
            if refusal.reason == "InternalError":
                self.faults[f"{one.kind}: {refusal.remedy}"] += 1

"""Made-up objects through translation, encoding and status, without an engine."""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from akocore import status, status_gateway, status_l4
from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.kube import gateway_status
from akocore.kube.objects import Change
from akocore.place.state import State
from akocore.reconcile import Reconciler
from fuzz.judge import Made
from fuzz.world import There, change, first

__all__ = ["Translation"]

_KEPT = 150
log = logging.getLogger(__name__)


class Translation:
    """Follows made-up objects, of which the last some are there at a time.

    ``faults``: what came up, with the object: there must be nothing.  After an exception that
    nothing caught the world begins anew.
    """

    def __init__(self, scratch: Path) -> None:
        self.faults: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self._scratch = scratch
        self._begun = 0
        self._begin()

    def _begin(self) -> None:
        self._begun += 1
        ads = AdsServer(self._scratch / "xds.sock", lambda _group: None)
        now = datetime.now(UTC)
        state = State(self._scratch / f"state-{self._begun}")
        self.at = Reconciler(Config(), state, ads, now=lambda: now)
        begin = [change(one) for one in first(8080, 8443)]
        self.at.apply(begin)
        self._there = There(begin, _KEPT)
        self._said: dict[str, str] = {}

    def take(self, made: list[Made]) -> None:
        """Apply some objects at once, look at every status, and take the oldest away."""
        changes = []
        for one in made:
            try:
                changes.append(change(one.document))
            except ValueError as err:  # told as a refusal of the object by whoever reads it
                self.unread[f"{one.document['kind']}: {err}"] += 1
                continue
            self._said[f"{changes[-1].kind}/{changes[-1].key}"] = one.said
        try:
            self._apply(self._there.take(changes))
        except Exception:
            self._blame(changes)

    def _apply(self, changes: list[Change]) -> None:
        self.at.apply(changes)
        for one in changes:
            if one.obj is not None:
                self._look(one)
        faults = getattr(self.at, "faults", None)
        if faults is None:
            return
        for object_ in faults.touched:
            for refusal in faults.of(object_):
                if refusal.reason == "InternalError":  # it has what is told of budgets, too
                    self._note(object_, refusal.remedy)
        faults.touched.clear()

    def _note(self, object_: str, text: str) -> None:
        self.faults[f"{text[:160]} | {self._said.get(object_, object_)}"] += 1

    def _blame(self, changes: list[Change]) -> None:
        """Begin anew, and find which of some objects it was: each by itself, in its order."""
        said = dict(self._said)
        was = traceback.format_exc(limit=-2)
        self._begin()
        found = False
        for one in changes:
            try:
                self.at.apply([one])
                self._look(one)
            except Exception as err:
                at = traceback.extract_tb(err.__traceback__)[-1]
                text = f"{type(err).__name__} {err!s:.80} at {Path(at.filename).name}:{at.lineno}"
                self.faults[f"{text} | {said.get(f'{one.kind}/{one.key}')}"] += 1
                found = True
                self._begin()
        if not found:
            self.faults[f"of several: {was[-300:]}"] += 1

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
                self._note(f"{one.kind}/{one.key}", refusal.remedy)

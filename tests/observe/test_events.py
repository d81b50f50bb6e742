"""What an event says of a refusal."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from akocore.events import Events
from akocore.model import Refusal


@pytest.mark.parametrize(
    ("told_of", "refused", "field", "note"),
    [
        ("Ingress/a/b", "Ingress/a/b", "spec.rules[0].host", "spec.rules[0].host: Mend it."),
        ("File/a.yaml", "File/a.yaml", "", "Mend it."),
        ("File/a.yaml", "Service/a/b", "spec.ports", "Service/a/b spec.ports: Mend it."),
    ],
)
def test_it_says_where_once(told_of: str, refused: str, field: str, note: str) -> None:
    events = Events(lambda: datetime.now(UTC))
    refusal = Refusal(object=refused, field=field, reason="Bad", remedy="Mend it.")
    events.refusals(told_of, [refusal])
    assert [(event.object, event.note) for event in events] == [(told_of, note)]

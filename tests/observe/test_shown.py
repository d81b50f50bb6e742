"""What others wrote, in sentences of ours and on terminals."""

from __future__ import annotations

import io
import logging
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from akocore.cli import app
from akocore.cli import explain as explain_module
from akocore.cli import get as get_module
from akocore.events import Events
from akocore.model import Refusal
from akocore.observe.logs import LogFormat, LogLevel, configure
from akocore.shown import LONGEST, bounded, printable, quoted

# A title, colours, a carriage return, a line of its own, C1's CSI, text that runs backwards.
EVIL = "a\x1b]0;title\x07b\x1b[31mc\rd\nIngress/other Accepted\x9b2Je\u202efg\u2028h\x00\x7f"


def harmless(text: str) -> bool:
    """Whether a terminal does nothing but show it, in lines that are ours."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def test_a_value_is_quoted_at_its_beginning_with_its_length() -> None:
    assert quoted("x" * LONGEST) == "x" * LONGEST
    assert quoted("x" * 250_000) == "x" * LONGEST + "… (250000 characters)"
    assert quoted(12) == "12"


def test_a_sentence_keeps_its_beginning_and_its_end() -> None:
    long = bounded(f"{'It is so. ' * 9_000}Take it out.")
    assert len(long) == 500
    assert long.startswith("It is so.")
    assert long.endswith("Take it out.")
    assert bounded(f"{'x' * 250_000} is wrong. Take it out.") == (
        f"{'x' * LONGEST}… is wrong. Take it out."
    )
    name = "x" * 253
    assert bounded(f"Create Secret {name}/{name[:63]}.") == f"Create Secret {name}/{name[:63]}."


def test_what_is_no_letter_is_escaped() -> None:
    assert printable("Zürich ☃ 東京 don't \\n") == "Zürich ☃ 東京 don't \\n"
    assert harmless(printable(EVIL))
    assert printable("a\x1b[0m\nb\u202e\x9b") == "a\\x1b[0m\\nb\\u202e\\x9b"


def test_two_thousand_events_of_a_long_value_fit_in_little_memory() -> None:
    events = Events(lambda: datetime.now(UTC))
    for number in range(2_000):
        remedy = f"{number} {'long value ' * 2_000}: write v1 or v2."
        no = Refusal(object="Service/a/b", field="f" * 5_000, reason="InvalidField", remedy=remedy)
        events.refusals("Service/a/b", [no])
        events.say("Service/a/b", "Warning", "Refused", remedy)
    assert sum(len(event.note) for event in events) < 2_000 * 1_000


@pytest.mark.parametrize("form", LogFormat)
def test_a_line_of_the_log_is_one_line_and_no_more_than_that(form: LogFormat) -> None:
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    try:
        configure(form, LogLevel.INFO, stream)
        log = logging.getLogger("akocore.test")
        log.info("event=tested object=%s", EVIL)
        log.info("event=tested object=%s", "long value " * 100_000)
        try:
            raise ValueError(EVIL + "x" * 1_000_000)
        except ValueError:
            log.exception("event=failed")
    finally:
        logging.getLogger().handlers[:] = before
    text = stream.getvalue()
    assert len(text) < 100_000
    assert harmless(text.replace("\n", ""))
    if form is LogFormat.TEXT:
        lines = text.splitlines()
        assert not any(line.startswith("Ingress/other") for line in lines)
        assert "object=a\\x1b]0;title" in lines[0]
    else:
        assert orjson.loads(text.splitlines()[0])["object"] == EVIL


ITEM: dict[str, Any] = {
    "lastObservedTime": "now",
    "type": "Warning",
    "reason": "InvalidField",
    "regarding": "Ingress/a/b",
    "note": EVIL,
}


def test_get_shows_a_terminal_nothing_but_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_module, "ask", lambda *_: {"items": [ITEM, ITEM]})
    shown = CliRunner().invoke(app(), ["get", "events"])
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) == 3
    assert harmless(shown.output.replace("\n", ""))
    exact = CliRunner().invoke(app(), ["get", "events", "-o", "json"])
    assert orjson.loads(exact.output)["items"][0]["note"] == EVIL


def test_events_of_one_namespace_are_those_of_its_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    of = (
        "Ingress/a/one",
        "Gateway.gateway.networking.k8s.io/a/two",
        "Ingress/b/a",
        "ServiceEngine/a",
    )
    items = [{**ITEM, "regarding": regarding} for regarding in of]
    monkeypatch.setattr(get_module, "ask", lambda *_: {"items": items})
    shown = CliRunner().invoke(app(), ["get", "events", "-n", "a", "-o", "json"])
    assert [item["regarding"] for item in orjson.loads(shown.output)["items"]] == list(of[:2])


def test_explain_shows_a_terminal_nothing_but_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "object": "Ingress/a/b",
        "class": {"name": EVIL, "from": "spec", "served": True},
        "hosts": [],
        "refused": [{"type": "Warning", "reason": "InvalidField", "message": EVIL}],
    }
    monkeypatch.setattr(explain_module, "ask", lambda *_: found)
    shown = CliRunner().invoke(app(), ["explain", "ingress/a/b"])
    assert shown.exit_code == 0
    assert harmless(shown.output.replace("\n", ""))
    assert not any(line.startswith("Ingress/other") for line in shown.output.splitlines())


def test_verdicts_of_migrate_stay_in_their_comments(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": "a",
            "annotations": {"nginx.ingress.kubernetes.io/x\nkind: Secret": EVIL},
        },
        "spec": {"ingressClassName": "nginx", "rules": [{"host": "a.test"}]},
    }
    file.write_bytes(orjson.dumps(ingress))
    shown = CliRunner().invoke(app(), ["migrate", "ingress", str(file)])
    assert "kind: Secret" in shown.output
    assert not any(line.startswith("kind: Secret") for line in shown.output.splitlines())

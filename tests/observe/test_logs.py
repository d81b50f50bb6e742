"""Lines of the log: their fields, and what never gets into one."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import akocore
from akocore.observe.logs import LogFormat, LogLevel, configure

log = logging.getLogger("akocore.tests")


@pytest.fixture
def restored() -> Iterator[None]:
    """The process's logging as it was."""
    root, ours = logging.getLogger(), logging.getLogger("akocore")
    before = (list(root.handlers), root.level, ours.level, sys.excepthook)
    yield
    root.handlers[:], level, our_level, sys.excepthook = before
    root.setLevel(level)
    ours.setLevel(our_level)


@pytest.fixture
def text(restored: None) -> io.StringIO:
    stream = io.StringIO()
    configure(LogFormat.TEXT, LogLevel.INFO, stream)
    return stream


@pytest.fixture
def lines(restored: None) -> io.StringIO:
    stream = io.StringIO()
    configure(LogFormat.JSON, LogLevel.INFO, stream)
    return stream


def fields(stream: io.StringIO) -> dict[str, Any]:
    """The fields of the one line, without those that every line has."""
    (line,) = stream.getvalue().splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert (found.pop("level"), found.pop("logger")) == ("info", "akocore.tests")
    return found


def test_text_is_the_event_and_its_fields_as_they_are_written(text: io.StringIO) -> None:
    log.info("event=se_down se=%s why=%r again_s=%g", "se-1", "it's over", 0.5)
    assert text.getvalue().split(" ", 2)[2] == (
        'INFO event=se_down se=se-1 why="it\'s over" again_s=0.5\n'
    )


def test_numbers_stay_numbers_and_text_is_not_quoted_twice(lines: io.StringIO) -> None:
    log.info(
        "event=%s se=%s count=%d ms=%.1f why=%r held=%s nobody=%s",
        *("refused", "se-1", 3, 12.345, 'it\'s "so"\nit says', True, None),
    )
    assert fields(lines) == {
        "event": "refused",
        "se": "se-1",
        "count": 3,
        "ms": 12.3,
        "why": 'it\'s "so"\nit says',
        "held": True,
        "nobody": None,
    }


def test_a_field_of_two_arguments_is_one_and_a_literal_is_itself(lines: io.StringIO) -> None:
    log.info("event=late object=%s/%s why='no answer' at=%s", "Ingress", "a/b", Path("/x"))
    assert fields(lines) == {
        "event": "late",
        "object": "Ingress/a/b",
        "why": "no answer",
        "at": "/x",
    }


def test_others_words_are_a_message(lines: io.StringIO) -> None:
    log.info("Using %s: event=no key=%d", "selector", 5)
    assert fields(lines) == {"message": "Using selector: event=no key=5"}


def test_words_in_a_value_make_no_fields_and_no_lines(lines: io.StringIO) -> None:
    log.info("event=told object=%s note=%r", "a event=b level=error", 'x\n{"event": "forged"}')
    assert fields(lines) == {
        "event": "told",
        "object": "a event=b level=error",
        "note": 'x\n{"event": "forged"}',
    }


def test_an_exception_has_its_trace_in_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("no good")
    except ValueError:
        log.exception("event=se_stream_failed se=%s", "se-1")
    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["event"] == "se_stream_failed"
    assert json.loads(line)["exception"].endswith("ValueError: no good")


def test_a_crash_is_a_line_too(lines: io.StringIO) -> None:
    try:
        raise ValueError("no good")
    except ValueError:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    (line,) = lines.getvalue().splitlines()
    found = json.loads(line)
    assert (found["level"], found["event"], found["why"]) == ("critical", "crashed", "no good")


SECRETS = {
    "a key in PEM": "-----BEGIN PRIVATE KEY-----\nMIGHsecret\n-----END PRIVATE KEY-----",
    "a cut key": "-----BEGIN EC PRIVATE KEY-----\nMIGHsecret",
    "a Secret's field": "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tsecret==",
    "a header": "Authorization: Bearer secret",
    "a token": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzZWNyZXQifQ.secret",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
def test_what_looks_like_a_secret_in_text_is_taken_out(text: io.StringIO, secret: str) -> None:
    log.info("event=odd why=%s", secret)
    assert "secret" not in text.getvalue()
    assert "event=odd" in text.getvalue()
    assert "[redacted]" in text.getvalue()


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
def test_what_looks_like_a_secret_in_json_is_taken_out(lines: io.StringIO, secret: str) -> None:
    log.info("event=odd why=%r more=%d", secret, 1)
    found = fields(lines)
    assert "secret" not in found["why"]
    assert "[redacted]" in found["why"]
    assert (found["event"], found["more"]) == ("odd", 1)


def calls() -> list[tuple[str, str]]:
    """(place, template) of each call of a logger in akocore."""
    out = []
    root = Path(akocore.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("log", "_log")
                and node.func.attr
                in ("debug", "info", "warning", "error", "exception", "critical", "log")
            ):
                arguments = node.args[node.func.attr == "log" :]
                assert isinstance(arguments[0], ast.Constant), (file, node.lineno)
                out.append((f"{file.relative_to(root)}:{node.lineno}", str(arguments[0].value)))
    assert len(out) > 20
    return out


@pytest.mark.parametrize("template", [template for _, template in calls()])
def test_each_call_in_akocore_names_an_event_and_its_fields(
    lines: io.StringIO, template: str
) -> None:
    count = template.replace("%%", "").count("%")
    log.info(template, *([1] * count))
    found = fields(lines)
    assert "event" in found
    assert "message" not in found
    assert len(found) == template.count("=")

"""The log: events with fields, as text or as JSON, one a line.

Every call in akocore is ``log.info("event=se_connected se=%s group=%s", name, group)``.  As text
that is the line.  As JSON the keys come from the template and the values from the arguments, so
nothing is parsed back from a line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO

from akocore.shown import bounded, printable

__all__ = ["LogFormat", "LogLevel", "configure"]


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least of what is told."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure(form: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr); libraries at level info at most."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(_Json() if form is LogFormat.JSON else _Text())
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    logging.getLogger("akocore").setLevel(number)
    if form is LogFormat.JSON:
        sys.excepthook = _crashed


def _crashed(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    log = logging.getLogger("akocore")
    log.critical("event=crashed why=%r", str(error), exc_info=(kind, error, where))


# ── no secrets ──────────────────────────────────────────────────────────────────────────────

_MARKS = ("-----BEGIN", "LS0tLS1CRUdJTi", "earer ", "eyJ")
_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*-----.*?(?:-----END [A-Z ]*-----|\Z)"  # PEM
    r"|LS0tLS1CRUdJTi[A-Za-z0-9+/=]*"  # PEM in base64, as in a Secret
    r"|(?<=[Bb]earer )[\w.~+/=-]+"
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*",  # a JSON web token
    re.DOTALL,
)


def _without_secrets(text: str) -> str:
    """No call logs a secret; what somebody else's words might bring is taken out here."""
    return _SECRETS.sub("[redacted]", text) if any(mark in text for mark in _MARKS) else text


# ── no more than a line ─────────────────────────────────────────────────────────────────────

_LINE = 16_384  # characters, of a traceback too


def _traceback(text: str) -> str:
    """Its lines are lines, but none of them begins an event, and no letter moves a terminal."""
    if len(text) > _LINE:
        text = f"{text[: _LINE // 2]}…\n…{text[-_LINE // 2 :]}"
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


# ── text ────────────────────────────────────────────────────────────────────────────────────


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return _without_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(bounded(super().formatMessage(record), _LINE))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _traceback(super().formatException(ei))


# ── JSON ────────────────────────────────────────────────────────────────────────────────────

_FIELD = re.compile(r"(?P<key>[a-z_]+)=(?P<value>'[^']*'|\S*)(?:\s+|\Z)")
_VERB = re.compile(r"%(?!%)[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]")


@lru_cache(maxsize=256)
def _fields(template: str) -> tuple[tuple[str, str, int], ...] | None:
    """(key, template of its value, how many arguments it takes); None: it is no event."""
    if not template.startswith("event="):
        return None
    out: list[tuple[str, str, int]] = []
    at = 0
    while at < len(template):
        match = _FIELD.match(template, at)
        if match is None:
            return None
        out.append((match["key"], match["value"], len(_VERB.findall(match["value"]))))
        at = match.end()
    return tuple(out)


def _value(template: str, arguments: tuple[Any, ...]) -> Any:
    """A number stays one; text is not quoted again."""
    if not arguments:
        return template.strip("'")
    if _VERB.fullmatch(template):
        (argument,) = arguments
        if template[-1] in "sr":
            plain = argument is None or isinstance(argument, (str, int, float, bool))
            return argument if plain else template % argument
        return float(template % argument) if template[-1] in "eEfFgG" else argument
    return template % arguments


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        arguments = record.args if isinstance(record.args, tuple) else ()
        fields = _fields(record.msg) if isinstance(record.msg, str) else None
        if fields is None or sum(count for _, _, count in fields) != len(arguments):
            line["message"] = record.getMessage()
        else:
            for key, template, count in fields:
                line[key], arguments = _value(template, arguments[:count]), arguments[count:]
        if record.exc_info:
            line["exception"] = _traceback(self.formatException(record.exc_info))
        for key, value in line.items():
            if isinstance(value, str):
                line[key] = _without_secrets(value if key == "exception" else bounded(value, _LINE))
        return json.dumps(line, default=str)

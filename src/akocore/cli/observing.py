"""The options by which ``serve`` and ``controller`` show themselves."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from akocore.observe.logs import LogFormat, LogLevel

__all__ = ["METRICS_LISTEN", "LogFormat", "LogLevel", "LogsAs", "LogsFrom", "MetricsListen", "fail"]

METRICS_LISTEN = "127.0.0.1:9810"

MetricsListen = Annotated[
    str,
    typer.Option(
        "--metrics-listen",
        metavar="HOST:PORT",
        help='/metrics, /healthz and /readyz; in a pod :9810; "": nowhere',
    ),
]
LogsAs = Annotated[LogFormat, typer.Option("--log-format", help="lines of text or of JSON")]
LogsFrom = Annotated[LogLevel, typer.Option("--log-level", help="the least that is logged")]


def fail(err: Exception, form: LogFormat) -> NoReturn:
    """Say why there is no akocore (any more), in the form of the log, and end."""
    if form is LogFormat.JSON:
        import logging

        logging.getLogger("akocore").error("event=failed why=%r", str(err))
    else:
        typer.echo(f"akocore: {err}", err=True)
    raise typer.Exit(1) from err

"""The command line: one module a command; nothing heavy is imported before it is needed."""

from __future__ import annotations

import typer

from akocore.cli.get import get
from akocore.cli.serve import serve
from akocore.cli.shard import shard

__all__ = ["app", "main"]

app = typer.Typer(help="An open load-balancer controller for Kubernetes.", no_args_is_help=True)
app.command()(serve)
app.command()(get)
app.command()(shard)


def main() -> None:
    app()

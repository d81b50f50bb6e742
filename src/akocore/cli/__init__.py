"""The command line: one module a command; nothing heavy is imported before it is needed."""

from __future__ import annotations

import typer

from akocore.cli.config import config
from akocore.cli.controller import controller
from akocore.cli.demo import demo
from akocore.cli.dummy import dummy
from akocore.cli.ecmp import ecmp
from akocore.cli.explain import explain
from akocore.cli.get import get
from akocore.cli.install import crds, install, uninstall
from akocore.cli.lab import lab
from akocore.cli.migrate import migrate
from akocore.cli.scale import scale
from akocore.cli.se import se
from akocore.cli.serve import serve
from akocore.cli.shard import shard
from akocore.cli.soak import soak

__all__ = ["app", "main"]

app = typer.Typer(
    help="An open load-balancer controller for Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    serve,
    controller,
    get,
    explain,
    demo,
    dummy,
    shard,
    config,
    crds,
    install,
    uninstall,
    soak,
    scale,
):
    app.command()(command)
app.add_typer(ecmp, name="ecmp")
app.add_typer(lab, name="lab")
app.add_typer(se, name="se")
app.add_typer(migrate, name="migrate")


def main() -> None:
    app()

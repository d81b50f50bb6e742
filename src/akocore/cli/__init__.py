"""The command line: one module a command; what is not asked for is not imported."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module

import typer

__all__ = ["app", "main"]

_COMMANDS = {  # in the order of the help → module
    "serve": "serve",
    "controller": "controller",
    "get": "get",
    "explain": "explain",
    "demo": "demo",
    "dummy": "dummy",
    "shard": "shard",
    "config": "config",
    "crds": "install",
    "install": "install",
    "uninstall": "install",
    "soak": "soak",
    "scale": "scale",
    "ecmp": "ecmp",
    "lab": "lab",
    "se": "se",
    "migrate": "migrate",
}


def app(names: Iterable[str] = tuple(_COMMANDS)) -> typer.Typer:
    """The command line with these commands."""
    out = typer.Typer(
        help="An open load-balancer controller for Kubernetes.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    out.callback()(_akocore)
    for name in names:
        command = getattr(import_module(f"akocore.cli.{_COMMANDS[name]}"), name)
        if isinstance(command, typer.Typer):
            out.add_typer(command, name=name)
        else:
            out.command()(command)
    return out


def _akocore() -> None:
    """Makes a command line of one command ask for its name all the same."""


def main() -> None:
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    app((asked,) if asked in _COMMANDS else _COMMANDS)()

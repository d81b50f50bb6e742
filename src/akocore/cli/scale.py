"""``akocore scale``: a virtual service on more or fewer Service Engines."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from akocore.cli.control import STATE, StateOption, ask

__all__ = ["scale"]


def scale(
    vs: Annotated[str, typer.Argument(help="vs/NAME; see `akocore get vs`")],
    out: Annotated[bool, typer.Option("--out", help="one more")] = False,
    in_: Annotated[bool, typer.Option("--in", help="one less, gracefully")] = False,
    to: Annotated[int, typer.Option("--to", help="exactly so many", min=0)] = 0,
    state: StateOption = STATE,
) -> None:
    """Have a virtual service on more or fewer Service Engines, which announce it by BGP."""
    if out + in_ + bool(to) != 1:
        typer.echo("akocore: give one of --out, --in and --to N.", err=True)
        raise typer.Exit(2)
    kind, _, name = vs.partition("/")
    if kind != "vs" or not name:
        typer.echo(f"akocore: {vs}: write vs/NAME.", err=True)
        raise typer.Exit(2)
    question: dict[str, Any] = {"vs": name, **({"to": to} if to else {"by": 1 if out else -1})}
    answer = ask(state, "Scale", question)
    if "refused" in answer:
        typer.echo(f"akocore: {answer['refused']}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{vs}: from {answer['before']} to {answer['wanted']} Service Engines")

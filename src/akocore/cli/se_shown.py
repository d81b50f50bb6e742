"""``akocore se list`` and the like: Service Engines and their routers, as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from akocore.cli.control import STATE, StateOption, ask
from akocore.shown import printable

__all__ = ["bfd", "bgp", "config", "list_", "routes", "show"]

_NameArgument = Annotated[str, typer.Argument(help="only this one")]


def _engines(state: Any, name: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = ask(state, "Get", {"kind": "se"})["items"]
    for item in items:
        if "fault" in item:
            typer.echo(f"akocore: {item['metadata']['name']}: {item['fault']}", err=True)
    items = [item for item in items if "fault" not in item]
    if not name:
        return items
    found = [item for item in items if item["metadata"]["name"] == name]
    if not found:
        there = ", ".join(item["metadata"]["name"] for item in items) or "none"
        typer.echo(f"akocore: there is no Service Engine {name}; there is {there}.", err=True)
        raise typer.Exit(1)
    return found


def _routing(item: dict[str, Any]) -> dict[str, Any]:
    routing: dict[str, Any] = item["status"].get("routing") or {}
    return routing


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    lines = [list(head), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        typer.echo("   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{left:02}"


def list_(state: StateOption = STATE) -> None:
    """Every Service Engine: where it is, what it announces, its sessions, what is wrong."""
    rows = []
    for item in _engines(state, ""):
        said, routing = item["status"], _routing(item)
        sessions = routing.get("bgp", ())
        up = sum(not s["why"] for s in sessions)
        bfd_up = sum(s["state"] == "up" for s in routing.get("bfd", ()))
        rows.append(
            [
                item["metadata"]["name"],
                item["spec"]["seGroup"],
                "hangs" if said.get("alive") is False and said["state"] == "up" else said["state"],
                routing.get("address", ""),
                ",".join(routing.get("announced", ())),
                f"{up}/{len(sessions)}" if sessions else "",
                f"{bfd_up}/{len(routing['bfd'])}" if routing.get("bfd") else "",
                said.get("connections", ""),
                routing.get("why", "") or said["lastExit"] or "",
            ]
        )
    head = ("NAME", "GROUP", "STATE", "ADDRESS", "VIPS", "BGP", "BFD", "CONNECTIONS", "WHY")
    _table(head, rows)


def show(
    name: Annotated[str, typer.Argument(help="of a Service Engine")], state: StateOption = STATE
) -> None:
    """All that is known of one, as YAML."""
    import yaml

    typer.echo(yaml.safe_dump(_engines(state, name)[0], sort_keys=False), nl=False)


def bgp(name: _NameArgument = "", state: StateOption = STATE) -> None:
    """BGP sessions, and why one is down."""
    _table(
        ("NAME", "PEER", "AS", "STATE", "UP", "PREFIXES", "WHY"),
        (
            [
                item["metadata"]["name"],
                session["peer"],
                session["remoteAs"],
                session["state"],
                _age(session.get("upSeconds")),
                session.get("prefixes", ""),
                session["why"],
            ]
            for item in _engines(state, name)
            for session in _routing(item).get("bgp", ())
        ),
    )


def bfd(name: _NameArgument = "", state: StateOption = STATE) -> None:
    """BFD sessions, and how fast each finds a failure."""
    _table(
        ("NAME", "PEER", "STATE", "UP", "DETECTS IN", "WHY"),
        (
            [
                item["metadata"]["name"],
                session["peer"],
                session["state"],
                _age(session.get("upSeconds")),
                f"{session['detectMs']} ms" if session.get("detectMs") else "",
                session["why"],
            ]
            for item in _engines(state, name)
            for session in _routing(item).get("bfd", ())
        ),
    )


def routes(name: _NameArgument = "", state: StateOption = STATE) -> None:
    """The VIPs that each Service Engine has, and whether its peers have been told."""
    rows = []
    for item in _engines(state, name):
        routing = _routing(item)
        announced, told = routing.get("announced", ()), routing.get("advertised", ())
        for address in sorted({*announced, *routing.get("addresses", ())}):
            prefix = f"{address}/{128 if ':' in address else 32}"
            rows.append(
                [
                    item["metadata"]["name"],
                    prefix,
                    "announced" if address in announced else "held",
                    "yes" if prefix in told else "no",
                ]
            )
    _table(("NAME", "PREFIX", "STATE", "PEERS HAVE IT"), rows)


def config(
    name: Annotated[str, typer.Argument(help="of a Service Engine")], state: StateOption = STATE
) -> None:
    """What FRR of a Service Engine is told; passwords are hidden."""
    items = ask(state, "Get", {"kind": "seconfig"})["items"]
    for item in items:
        if item["metadata"]["name"] == name:
            for daemon in ("zebra", "bfdd", "bgpd"):
                typer.echo(f"! {daemon}")
                for line in item[daemon].split("\n"):
                    typer.echo(printable(line))
            return
    _engines(state, name)
    typer.echo(
        f"akocore: {name} has no router that this replica tells: ask the one it is connected to"
        " (`kubectl get replicas -o yaml`).",
        err=True,
    )
    raise typer.Exit(1)

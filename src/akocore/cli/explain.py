"""``akocore explain KIND/NAME``: why an Ingress, Gateway, Service or route is where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from akocore.cli.control import STATE, StateOption, ask, parse_object
from akocore.shown import printable_all

if TYPE_CHECKING:
    from rich.tree import Tree

__all__ = ["explain"]


def explain(
    object_: Annotated[
        str,
        typer.Argument(
            metavar="OBJECT",
            help="ingress, gateway, service, httproute ... /NAME, or KIND/NAMESPACE/NAME",
        ),
    ],
    state: StateOption = STATE,
    output: Annotated[str, typer.Option("--output", "-o", help="text or json")] = "text",
) -> None:
    """Tell class, setting, shard or listeners, VIP, pools, and what was refused and why."""
    kind, key = parse_object(object_)
    found: dict[str, Any] | None = ask(state, "Explain", {kind: key})
    if found is None:
        typer.echo(f"akocore: there is no {kind.title()} {key} of ours.", err=True)
        raise typer.Exit(1)
    if output == "json":
        import orjson

        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    from rich.console import Console

    found = cast("dict[str, Any]", printable_all(found))
    if kind == "ingress":
        tree = _ingress(found)
    elif "rules" in found:
        tree = _route(found)
    else:
        tree = _front(found)
    console = Console()
    Console(width=None if console.is_terminal else 1000).print(tree)


def _ingress(found: dict[str, Any]) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    cls = found["class"]
    tree = Tree(f"[bold]{escape(found['object'])}")
    tree.add(f"class    {escape(cls['name'] or '(none)')}, from {cls['from']}")
    if not cls["served"]:
        tree.add("not served here: no class of akocore's governs it")
    if (setting := found.get("setting")) is not None:
        tree.add(
            f"setting  {escape(setting['name'])}: SE group {escape(setting['seGroup'])},"
            f" network {escape(setting['network'])}, shard size {setting['shardSize']}"
        )
    for host in found["hosts"]:
        vs = host["virtualService"]
        served = "served" if host["programmed"] else "not served yet"
        if not host["programmed"] and host["waitsFor"]:
            served += f": {', '.join(host['waitsFor'])} not so far"
        at = tree.add(f"host     [bold]{escape(host['host'] or '*')}[/]: {served}")
        at.add(
            f"virtual service {escape(vs['name'])} (shard {host['shard']}), VIP"
            f" [bold]{vs['vip'] or 'none'}[/], {vs['state']}"
            + (f": {escape(vs['why'])}" if vs["why"] else "")
        )
        at.add(f"Service Engines {', '.join(vs['serviceEngines']) or 'none'}")
        if host["certificate"]:
            at.add(
                f"certificate from Secret {escape(host['certificate'])}; http redirects to https"
            )
        for route in host["routes"]:
            servers = ", ".join(route["servers"]) or "no server: 503"
            at.add(
                f"{route['match']} {escape(route['path'])} → {escape(route['service'] or 'none')}"
                f" [{escape(servers)}] pool {escape(route['pool'])}".replace("[", "\\[")
            )
    _refused(tree, found)
    return tree


def _route(found: dict[str, Any]) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree(f"[bold]{escape(found['object'])}")
    for parent in found["parents"]:
        wrong = "; ".join(parent["wrong"])
        tree.add(f"parent   {escape(parent['parent'])}" + (f": {escape(wrong)}" if wrong else ""))
    for listener, hosts in found["hosts"].items():
        tree.add(f"at       {escape(listener)}: [bold]{escape(', '.join(hosts))}")
    for rule in found["rules"]:
        at = tree.add(f"rule     {escape(rule['match'])}")
        for one in rule["backends"]:
            servers = ", ".join(one["servers"]) or "no server"
            to = one["service"] or "nothing that can be used: 500"
            at.add(escape(f"{to} [{servers}] weight {one['weight']}"))
    _refused(tree, found)
    return tree


def _refused(tree: Tree, found: dict[str, Any]) -> None:
    from rich.markup import escape

    for refusal in found["refused"]:
        style = "yellow" if refusal["type"] == "Warning" else "red"
        tree.add(f"[{style}]{refusal['reason']}[/] {escape(refusal['message'])}")


def _front(found: dict[str, Any]) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree(f"[bold]{escape(found['object'])}")
    tree.add(f"by       {escape(found['by'])}")
    served = [one for one in (found, found.get("second")) if one is not None and "setting" in one]
    for one in served:
        _virtual_service(tree, one)
    if not served:
        tree.add("not served here")
    _refused(tree, found)
    return tree


def _virtual_service(tree: Tree, found: dict[str, Any]) -> None:
    from rich.markup import escape

    setting, vs = found["setting"], found["virtualService"]
    tree.add(
        f"setting  {escape(setting['name'])}: SE group {escape(setting['seGroup'])},"
        f" network {escape(setting['network'])}"
    )
    at = tree.add(
        f"virtual service {escape(vs['name'])}, VIP [bold]{vs['vip'] or 'none'}[/]"
        f" ({found['address']}), {vs['state']}" + (f": {escape(vs['why'])}" if vs["why"] else "")
    )
    at.add(f"Service Engines {', '.join(vs['serviceEngines']) or 'none'}")
    for one in found.get("ports", ()):
        routes = "1 route" if one["attachedRoutes"] == 1 else f"{one['attachedRoutes']} routes"
        whose = f" of {escape(one['of'])}" if one["of"] else ""
        why = "" if one["programmed"] else f" (not served: {escape(one['why'])})"
        at.add(f"{escape(one['listener'])}{whose}: {escape(one['serves'])}, {routes}{why}")
    for one in found.get("listeners", ()):
        if not one["pool"]:
            at.add(f"{one['listener']} → nobody: clients are refused at once")
            continue
        servers = ", ".join(one["servers"]) or "no server: closed at once"
        more = "; the same server for a client" if one["sticky"] else ""
        more += f"; only from {', '.join(one['ranges'])}" if one["ranges"] else ""
        served = "" if one["programmed"] else " (not served yet)"
        at.add(
            f"{one['listener']} → {escape(one['service'])} [{escape(servers)}]"
            f" pool {escape(one['pool'])}{more}{served}".replace("[", "\\[")
        )

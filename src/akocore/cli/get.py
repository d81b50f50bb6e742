"""``akocore get``: what a running akocore says of its objects."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from akocore.cli.control import STATE, StateOption, ask
from akocore.shown import printable

__all__ = ["get"]

Item = dict[str, Any]
Cell = Callable[[Item], object]


def at(path: str) -> Cell:
    """The value at a dotted path; "" where there is none."""

    def cell(item: Item) -> object:
        value: Any = item
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return "" if value is None else value

    return cell


def _hosts(item: Item) -> str:
    hosts = [host or "*" for host in item["spec"]["hosts"]]
    return ",".join(hosts[:3]) + (f" + {len(hosts) - 3} more" if len(hosts) > 3 else "")


def _address(item: Item) -> str:
    return ",".join(dict.fromkeys(p["ip"] for p in item["status"]["loadBalancer"]["ingress"]))


def _refused(item: Item) -> str:
    return ",".join(sorted({c["reason"] for c in item["status"]["conditions"]}))


def _members(item: Item) -> str:
    return f"{item['status']['pools']['up']}/{item['status']['pools']['total']}"


def _engines(item: Item) -> str:
    return ",".join(item["status"]["serviceEngines"])


def _vip(item: Item) -> str:
    return ",".join(one["value"] for one in item["status"]["addresses"])


def _accepted(item: Item) -> str:
    """Of each parent, whether it has accepted a route."""
    return ",".join(
        one["status"]
        for parent in item["status"]["parents"]
        for one in parent["conditions"]
        if one["type"] == "Accepted"
    )


def _why(item: Item) -> str:
    return "; ".join(c["message"] for c in item["status"]["conditions"])


def _sessions(kind: str) -> Cell:
    """``PEER state`` of each session of a Service Engine's router."""

    def cell(item: Item) -> object:
        sessions = item["status"].get("routing", {}).get(kind, ())
        return ",".join(f"{s['peer']} {s['state']}" for s in sessions)

    return cell


def _advertised(item: Item) -> str:
    return ",".join(item["status"].get("routing", {}).get("advertised", ()))


NAME = ("NAME", at("metadata.name"))

# Columns by kind: always, and with -o wide.
COLUMNS: dict[str, tuple[list[tuple[str, Cell]], list[tuple[str, Cell]]]] = {
    "ingress": (
        [
            ("NAMESPACE", at("metadata.namespace")),
            NAME,
            ("CLASS", at("spec.ingressClassName")),
            ("HOSTS", _hosts),
            ("ADDRESS", _address),
            ("PORTS", lambda item: "80, 443" if item["spec"]["tls"] else "80"),
            ("REFUSED", _refused),
        ],
        [("WHY", _why)],
    ),
    "gateway": (
        [
            ("NAMESPACE", at("metadata.namespace")),
            NAME,
            ("CLASS", at("spec.gatewayClassName")),
            ("ADDRESS", _vip),
            ("LISTENERS", lambda item: ",".join(item["spec"]["listeners"])),
            ("READY", at("status.ready")),
            ("REFUSED", _refused),
        ],
        [("VIRTUAL SERVICE", at("spec.virtualService")), ("WHY", _why)],
    ),
    **dict.fromkeys(
        ("httproute", "grpcroute", "tlsroute", "tcproute", "udproute"),
        (
            [
                ("NAMESPACE", at("metadata.namespace")),
                NAME,
                ("HOSTNAMES", lambda item: ",".join(item["spec"]["hostnames"])),
                ("PARENTS", lambda item: ",".join(p["name"] for p in item["status"]["parents"])),
                ("ACCEPTED", _accepted),
                ("REFUSED", _refused),
            ],
            [("WHY", _why)],
        ),
    ),
    "service": (
        [
            ("NAMESPACE", at("metadata.namespace")),
            NAME,
            ("TYPE", at("spec.type")),
            ("EXTERNAL-IP", _address),
            ("PORT(S)", lambda item: ",".join(item["spec"]["ports"])),
            ("BY", at("spec.front")),
            ("REFUSED", _refused),
        ],
        [("VIRTUAL SERVICE", at("spec.virtualService")), ("WHY", _why)],
    ),
    "vs": (
        [
            NAME,
            ("VIP", at("status.vip")),
            ("SHARD", at("status.shard")),
            ("HOSTS", lambda item: len(item["spec"]["hosts"])),
            ("LISTENERS", lambda item: ",".join(item["spec"]["listeners"])),
            ("POOLS", _members),
            ("SERVICE ENGINES", _engines),
            ("STATE", at("status.state")),
        ],
        [
            ("NETWORK", at("status.network")),
            ("SEGROUP", at("status.seGroup")),
            ("SETTING", at("spec.aviInfraSetting")),
            ("WHY", at("status.why")),
            ("ANNOUNCED BY", lambda item: ",".join(item["status"].get("announcedBy", ()))),
            ("HOSTNAMES", lambda item: ",".join(host or "*" for host in item["spec"]["hosts"])),
        ],
    ),
    "pools": (
        [
            NAME,
            ("SERVICE", at("spec.service")),
            ("SERVERS", lambda item: len(item["status"]["servers"])),
            ("STATE", at("status.state")),
        ],
        [
            ("VIRTUAL SERVICE", at("spec.virtualService")),
            ("HOST", lambda item: item["spec"]["host"] or "*"),
            ("PATH", at("spec.path")),
            ("ADDRESSES", lambda item: ",".join(item["status"]["servers"])),
        ],
    ),
    "se": (
        [
            NAME,
            ("SEGROUP", at("spec.seGroup")),
            ("VS", at("status.virtualServices")),
            ("REQUESTS", at("status.requests")),
            ("RESTARTS", at("status.restarts")),
            ("STATE", at("status.state")),
        ],
        [
            ("PID", at("status.pid")),
            ("UP TO DATE", at("status.upToDate")),
            ("REJECTED", at("status.rejected")),
            ("LAST EXIT", at("status.lastExit")),
            ("CONTROLLER", at("status.controller")),
            ("ADDRESS", at("status.routing.address")),
            ("BGP", _sessions("bgp")),
            ("BFD", _sessions("bfd")),
            ("ADVERTISED", _advertised),
            ("ROUTING WHY", at("status.routing.why")),
            ("MAX CONNECTIONS", at("status.connectionLimit")),
            ("BOUNDS", lambda item: "; ".join(item["status"].get("bounds") or ())),
        ],
    ),
    "aviinfrasetting": (
        [NAME, ("STATUS", at("status.status")), ("ERROR", at("status.error"))],
        [
            ("SEGROUP", at("status.inForce.seGroup")),
            ("NETWORK", at("status.inForce.network")),
            ("SHARDSIZE", at("status.inForce.shardSize")),
        ],
    ),
    "network": (
        [
            NAME,
            ("ADDRESSES", at("status.addresses.total")),
            ("FREE", at("status.addresses.free")),
            ("STATUS", at("status.status")),
            ("ERROR", at("status.error")),
        ],
        [],
    ),
    "serviceenginegroup": (
        [
            NAME,
            ("HAMODE", at("spec.haMode")),
            ("MIN", at("spec.minSePerVs")),
            ("MAX", at("spec.maxSePerVs")),
            ("SERVICE ENGINES", _engines),
        ],
        [],
    ),
    "files": (
        [
            ("FILE", at("metadata.name")),
            ("LINE", at("line")),
            ("OBJECT", at("object")),
            ("FIELD", at("field")),
            ("REASON", at("reason")),
            ("REMEDY", at("remedy")),
        ],
        [],
    ),
    "akocore": (
        [
            ("PID", at("status.pid")),
            ("INGRESSES", at("status.ingresses")),
            ("HOSTS", at("status.hosts")),
            ("VIPS", at("status.vips")),
            ("BATCHES", at("status.batches")),
            ("NACKS", at("status.nacks")),
            ("STATUS WRITTEN", at("status.statusWritten")),
            ("WAITING", at("status.statusWaiting")),
        ],
        [],
    ),
    "events": (
        [
            ("LAST SEEN", at("lastObservedTime")),
            ("TYPE", at("type")),
            ("REASON", at("reason")),
            ("OBJECT", at("regarding")),
            ("NOTE", at("note")),
        ],
        [("FIRST SEEN", at("eventTime")), ("COUNT", at("count"))],
    ),
}

ALIASES = {
    "ing": "ingress",
    "ingresses": "ingress",
    "gateways": "gateway",
    "gtw": "gateway",
    **{f"{one}routes": f"{one}route" for one in ("http", "grpc", "tls", "tcp", "udp")},
    "services": "service",
    "svc": "service",
    "virtualservice": "vs",
    "virtualservices": "vs",
    "pool": "pools",
    "serviceengine": "se",
    "serviceengines": "se",
    "aviinfrasettings": "aviinfrasetting",
    "networks": "network",
    "segroup": "serviceenginegroup",
    "serviceenginegroups": "serviceenginegroup",
    "file": "files",
    "event": "events",
}


class Output(StrEnum):
    """How to print."""

    TEXT = "text"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


def _sorted(items: list[Item], path: str) -> list[Item]:
    cell = at(path.strip("{}").lstrip("."))

    def key(item: Item) -> tuple[bool, Any]:
        value = cell(item)
        return (True, value) if isinstance(value, int | float) else (False, str(value))

    return sorted(items, key=key)


_WHERE = {"NAMESPACE": "namespace", "NAME": "name"}


def _row(item: Item, columns: list[tuple[str, Cell]]) -> list[str]:
    """Of what akocore fails to show: whose it is, and that."""
    if "fault" not in item:
        return [printable(str(cell(item))) for _, cell in columns]
    row = [printable(item["metadata"].get(_WHERE.get(title, ""), "")) for title, _ in columns]
    row[-1] = item["fault"] if columns[-1][0] in ("WHY", "ERROR") else "InternalError"
    return row


def _say_faults(kind: str, items: list[Item]) -> None:
    for item in items:
        if "fault" in item:
            name = "/".join(item["metadata"].get(one, "") for one in _WHERE.values()).lstrip("/")
            typer.echo(f"akocore: {kind} {printable(name)}: {item['fault']}", err=True)


def get(
    kind: Annotated[str, typer.Argument(help=", ".join(COLUMNS))],
    name: Annotated[str, typer.Argument(help="only the object of this name")] = "",
    state: StateOption = STATE,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="text, wide, json or yaml")
    ] = Output.TEXT,
    sort_by: Annotated[str, typer.Option(help="a field, as .status.vip or .metadata.name")] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="only this one")] = "",
) -> None:
    """Print objects as a running `akocore serve` sees them."""
    kind = ALIASES.get(kind.lower(), kind.lower())
    if kind not in COLUMNS:
        typer.echo(f"akocore: {kind} is unknown: write one of {', '.join(COLUMNS)}.", err=True)
        raise typer.Exit(2)
    items: list[Item] = ask(state, "Get", {"kind": kind})["items"]
    if namespace:
        items = [i for i in items if _namespace(i, namespace) == namespace]
    if name:
        items = [i for i in items if i.get("metadata", {}).get("name") == name]
        if not items:
            typer.echo(f"akocore: there is no {kind} {name}.", err=True)
            raise typer.Exit(1)
    _say_faults(kind, items)
    if sort_by:
        items = _sorted(items, sort_by)
    if output is Output.JSON:
        import orjson

        typer.echo(orjson.dumps({"items": items}, option=orjson.OPT_INDENT_2).decode())
        return
    if output is Output.YAML:
        import yaml

        typer.echo(yaml.safe_dump({"items": items}, sort_keys=False), nl=False)
        return
    if not items:
        typer.echo(f"No {kind} found.", err=True)
        return
    always, wide = COLUMNS[kind]
    columns = [*always, *wide] if output is Output.WIDE else always
    rows = [[title for title, _ in columns]]
    rows += [_row(item, columns) for item in items]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        typer.echo("   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _namespace(item: Item, otherwise: str) -> str:
    """Whose it is: of an event its object's; ``otherwise``: of what is nobody's."""
    if "regarding" in item:
        return str(item["regarding"]).split("/")[-2] if item["regarding"].count("/") == 2 else ""
    return str(item["metadata"].get("namespace", otherwise))

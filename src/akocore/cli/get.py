"""``akocore get``: what a running akocore says of its objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _rows(kind: str, items: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]]
    if kind == "ingress":
        rows = [("NAMESPACE", "NAME", "CLASS", "HOSTS", "ADDRESS", "REFUSED")]
        for item in items:
            points = item["status"]["loadBalancer"]["ingress"]
            rows.append(
                (
                    item["metadata"]["namespace"],
                    item["metadata"]["name"],
                    item["spec"]["ingressClassName"],
                    ",".join(host or "*" for host in item["spec"]["hosts"]),
                    ",".join(sorted({point["ip"] for point in points})),
                    ",".join(sorted({c["reason"] for c in item["status"]["conditions"]})),
                )
            )
        return rows
    if kind == "vs":
        rows = [("NAME", "VIP", "HOSTS", "POOLS", "SERVICE ENGINES", "STATE")]
        for item in items:
            s = item["status"]
            pools = f"{s['pools']['up']}/{s['pools']['total']}"
            engines = ",".join(s["serviceEngines"])
            name = item["metadata"]["name"]
            rows.append((name, s["vip"], str(s["hosts"]), pools, engines, s["state"]))
        return rows
    if kind == "aviinfrasetting":
        return [
            ("NAME", "STATUS", "ERROR"),
            *((i["metadata"]["name"], i["status"]["status"], i["status"]["error"]) for i in items),
        ]
    return [
        ("FILE", "LINE", "REASON", "REMEDY"),
        *(
            (i["path"], str(r["line"]), r["reason"], r["remedy"])
            for i in items
            for r in i["refusals"]
        ),
    ]


def get(
    kind: Annotated[str, typer.Argument(help="ingress, vs, aviinfrasetting or files")],
    state: Annotated[Path, typer.Option(help="state directory of the running akocore")] = Path(
        "/var/lib/akocore"
    ),
    output: Annotated[str, typer.Option("--output", "-o", help="text or json")] = "text",
) -> None:
    """Print objects as a running `akocore serve` sees them."""
    import grpc
    import orjson

    if kind not in ("ingress", "vs", "aviinfrasetting", "files"):
        typer.echo(f"akocore: {kind} is unknown: ingress, vs, aviinfrasetting or files", err=True)
        raise typer.Exit(2)
    with grpc.insecure_channel(f"unix:{(state / 'xds.sock').absolute()}") as channel:
        method: Any = channel.unary_unary("/akocore.v1alpha1.Control/Get")
        try:
            answer = orjson.loads(method(orjson.dumps({"kind": kind}), timeout=10))
        except grpc.RpcError as err:
            typer.echo(f"akocore: no akocore answers in {state}: start `akocore serve`", err=True)
            raise typer.Exit(1) from err
    if output == "json":
        typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
        return
    rows = _rows(kind, answer["items"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())

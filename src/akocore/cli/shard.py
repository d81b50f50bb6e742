"""``akocore shard``: which shard AKO's function gives a host."""

from __future__ import annotations

from typing import Annotated

import typer

from akocore.config import ShardSize


def shard(
    hosts: Annotated[list[str], typer.Argument(help="hostnames")],
    size: Annotated[ShardSize, typer.Option(help="SMALL, MEDIUM or LARGE")] = ShardSize.LARGE,
    output: Annotated[str, typer.Option("--output", "-o", help="text or json")] = "text",
) -> None:
    """Print HOST SHARD, a line for each host."""
    from akocore import shard_hosts

    if not size.shards:
        typer.echo("DEDICATED has no shards: every host has its own virtual service.", err=True)
        raise typer.Exit(2)
    shards = list(shard_hosts(hosts, size.shards))
    if output == "json":
        import orjson

        rows = [{"host": h, "shard": s} for h, s in zip(hosts, shards, strict=True)]
        typer.echo(orjson.dumps(rows).decode())
        return
    for host, number in zip(hosts, shards, strict=True):
        typer.echo(f"{host} {number}")

"""``akocore config``: the configuration with its defaults, or its JSON schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["config"]


def config(
    file: Annotated[Path | None, typer.Argument(help="check this file; default: none")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema")] = False,
) -> None:
    """Print the configuration in force with FILE (defaults filled in), or its schema."""
    import msgspec

    from akocore.config import Config, ConfigError, load_config

    if schema:
        text = msgspec.json.encode(msgspec.json.schema(Config))
        typer.echo(msgspec.json.format(text, indent=2).decode())
        return
    try:
        typer.echo(msgspec.yaml.encode(load_config(file)).decode(), nl=False)
    except ConfigError as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err

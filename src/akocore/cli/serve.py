"""``akocore serve DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    directory: Annotated[Path, typer.Argument(help="directory of manifests, watched live")],
    state: Annotated[Path, typer.Option(help="what must survive a restart")] = Path(
        "/var/lib/akocore"
    ),
    config: Annotated[Path | None, typer.Option(help="YAML; see Config")] = None,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    port_offset: Annotated[int, typer.Option(help="added to 80 and 443", min=0, max=60000)] = 0,
) -> None:
    """Serve a directory of Kubernetes manifests through local Envoys."""
    import asyncio
    import logging

    from akocore.config import ConfigError, load_config
    from akocore.engines.envoy.process import EngineError, find_envoy
    from akocore.manifests import ManifestDirectoryError
    from akocore.place.state import StateError
    from akocore.serve import Serve, of_directory

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    state = state.absolute()

    async def run() -> None:
        await Serve(
            of_directory(directory), state, load_config(config), find_envoy(envoy), port_offset
        ).run()

    try:
        asyncio.run(run())
    except (ConfigError, EngineError, StateError, ManifestDirectoryError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err

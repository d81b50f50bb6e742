"""``akocore controller``: the same house over a cluster."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["controller"]


class EnginesWhere(StrEnum):
    """Where Service Engines run."""

    LOCAL = "local"


def controller(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="default: $KUBECONFIG, ~/.kube/config, then the pod's own")
    ] = None,
    engines: Annotated[
        EnginesWhere, typer.Option(help="local: Envoy processes on this machine")
    ] = EnginesWhere.LOCAL,
    state: Annotated[Path, typer.Option(help="what must survive a restart")] = Path(
        "/var/lib/akocore"
    ),
    config: Annotated[Path | None, typer.Option(help="YAML; see `akocore config`")] = None,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    port_offset: Annotated[int, typer.Option(help="added to 80 and 443", min=0, max=60000)] = 0,
    status_qps: Annotated[float, typer.Option(help="writes a second at most", min=1)] = 500,
) -> None:
    """Serve the Ingresses of a cluster, and write their status back."""
    import asyncio
    import logging

    from akocore.config import ConfigError, load_config
    from akocore.engines.envoy.process import EngineError, find_envoy
    from akocore.kube.api import ApiError, ApiServer
    from akocore.kube.cluster import Cluster
    from akocore.kube.credentials import CredentialsError, find_credentials
    from akocore.kube.status_writer import StatusWriter
    from akocore.place.state import StateError
    from akocore.serve import Serve

    del engines  # the only one there is today
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    async def run() -> None:
        loaded, found = load_config(config), find_envoy(envoy)
        async with ApiServer(lambda: find_credentials(kubeconfig)) as api:
            await Serve(
                lambda _state: Cluster(api),
                state.absolute(),
                loaded,
                found,
                port_offset,
                sink=lambda serve: StatusWriter(api, serve.reconciler, status_qps),
            ).run()

    try:
        asyncio.run(run())
    except (ConfigError, EngineError, StateError, CredentialsError, ApiError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err

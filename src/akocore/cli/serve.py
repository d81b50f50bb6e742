"""``akocore serve DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from akocore.cli.observing import (
    METRICS_LISTEN,
    LogFormat,
    LogLevel,
    LogsAs,
    LogsFrom,
    MetricsListen,
    fail,
)


def serve(
    directory: Annotated[Path, typer.Argument(help="directory of manifests, watched live")],
    state: Annotated[Path, typer.Option(help="what must survive a restart")] = Path(
        "/var/lib/akocore"
    ),
    config: Annotated[Path | None, typer.Option(help="YAML; see Config")] = None,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    port_offset: Annotated[int, typer.Option(help="added to 80 and 443", min=0, max=60000)] = 0,
    metrics_listen: MetricsListen = METRICS_LISTEN,
    log_format: LogsAs = LogFormat.TEXT,
    log_level: LogsFrom = LogLevel.INFO,
) -> None:
    """Serve a directory of Kubernetes manifests through local Envoys."""
    import asyncio

    from akocore.config import ConfigError, load_config
    from akocore.engines.envoy.process import EngineError, find_envoy
    from akocore.manifests import ManifestDirectoryError
    from akocore.observe.logs import configure
    from akocore.observe.observation import ListenError, Observation
    from akocore.place.state import StateError
    from akocore.serve import Serve, of_directory

    configure(log_format, log_level)
    state = state.absolute()

    async def run() -> None:
        loaded, found = load_config(config), find_envoy(envoy)
        async with Observation(metrics_listen) as observation:
            source, watch = of_directory(directory), observation.watch
            serve = Serve(source, state, loaded, found, port_offset, watch=watch)
            observation.of(serve)
            await serve.run()

    try:
        asyncio.run(run())
    except (ConfigError, EngineError, ListenError, StateError, ManifestDirectoryError) as err:
        fail(err, log_format)

"""``akocore serve DIR``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from akocore.cli.elsewhere import (
    XDS_LISTEN,
    EnginesAre,
    EnginesWhere,
    XdsCa,
    XdsCert,
    XdsKey,
    XdsListen,
    tls_files,
)
from akocore.cli.observing import (
    METRICS_LISTEN,
    LogFormat,
    LogLevel,
    LogsAs,
    LogsFrom,
    MetricsListen,
    fail,
)
from akocore.cli.open_files import as_many_as_allowed

if TYPE_CHECKING:
    from akocore.engines.envoy.remote import TlsFiles
    from akocore.interfaces import External
    from akocore.serve import Serve


def serve(
    directory: Annotated[Path, typer.Argument(help="directory of manifests, watched live")],
    state: Annotated[Path, typer.Option(help="what must survive a restart")] = Path(
        "/var/lib/akocore"
    ),
    config: Annotated[Path | None, typer.Option(help="YAML; see Config")] = None,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    port_offset: Annotated[int, typer.Option(help="added to 80 and 443", min=0, max=60000)] = 0,
    engines: EnginesAre = EnginesWhere.LOCAL,
    xds_listen: XdsListen = XDS_LISTEN,
    xds_cert: XdsCert = None,
    xds_key: XdsKey = None,
    xds_client_ca: XdsCa = None,
    metrics_listen: MetricsListen = METRICS_LISTEN,
    log_format: LogsAs = LogFormat.TEXT,
    log_level: LogsFrom = LogLevel.INFO,
) -> None:
    """Serve a directory of Kubernetes manifests."""
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

    def external(files: TlsFiles) -> Callable[[Serve, Callable[[str], None]], External]:
        from akocore.engines.envoy.remote import Alone, RemoteServer

        return lambda serve, _progress: Alone(
            RemoteServer(xds_listen, files, serve.ads, serve.events.say)
        )

    async def run() -> None:
        loaded, files = load_config(config), tls_files(engines, xds_cert, xds_key, xds_client_ca)
        if loaded.watch_namespaces:
            raise ConfigError(
                "watchNamespaces is for a cluster (`akocore controller`). Take it out: of a"
                " directory everything is read."
            )
        found = find_envoy(envoy) if files is None else None
        async with Observation(metrics_listen) as observation:
            source, watch = of_directory(directory), observation.watch
            serve = Serve(
                *(source, state, loaded, found, port_offset),
                watch=watch,
                external=None if files is None else external(files),
                listens=[metrics_listen, *([xds_listen] if files is not None else [])],
            )
            observation.of(serve)
            await serve.run()

    try:
        as_many_as_allowed()
        asyncio.run(run())
    except (ConfigError, EngineError, ListenError, StateError, ManifestDirectoryError) as err:
        fail(err, log_format)

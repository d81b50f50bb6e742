"""``akocore controller``: the same house over a cluster."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from akocore.kube.api import ApiServer
    from akocore.kube.lease import Lease
    from akocore.kube.placement import ClusterFacts
    from akocore.kube.workloads import Workloads
    from akocore.serve import External, Serve

    _External = Callable[[Serve, Callable[[str], None]], External]

__all__ = ["controller"]


class EnginesWhere(StrEnum):
    """Where Service Engines run."""

    LOCAL = "local"
    EXTERNAL = "external"
    PODS = "pods"


def _identity(state: Path) -> str:
    """Ours for as long as the state directory is: only one akocore at a time can have that."""
    import socket

    from mmh3 import mmh3_x64_128_digest

    return f"{socket.gethostname()}_{mmh3_x64_128_digest(str(state).encode()).hex()[:8]}"


def controller(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="default: $KUBECONFIG, ~/.kube/config, then the pod's own")
    ] = None,
    engines: Annotated[
        EnginesWhere,
        typer.Option(
            help="local: Envoy processes on this machine; external: they come over mutual TLS;"
            " pods: the same, as workloads that the controller makes"
        ),
    ] = EnginesWhere.LOCAL,
    xds_listen: Annotated[str, typer.Option(help="for external engines")] = "0.0.0.0:18000",
    xds_cert: Annotated[
        Path | None, typer.Option(help="our certificate, PEM; followed when it is replaced")
    ] = None,
    xds_key: Annotated[Path | None, typer.Option(help="its key, PEM")] = None,
    xds_client_ca: Annotated[
        Path | None, typer.Option(help="who signs the engines' certificates, PEM")
    ] = None,
    xds_service: Annotated[
        str, typer.Option(help="for pods: HOST:PORT at which they find controllers")
    ] = "akocore-xds.akocore-system.svc:18000",
    se_image: Annotated[str, typer.Option(help="for pods: the Service Engine's image")] = "",
    se_image_pull_policy: Annotated[str, typer.Option(help="for pods")] = "IfNotPresent",
    state: Annotated[Path, typer.Option(help="run directory: engines and the admin socket")] = Path(
        "/var/lib/akocore"
    ),
    config: Annotated[Path | None, typer.Option(help="YAML; see `akocore config`")] = None,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    port_offset: Annotated[int, typer.Option(help="added to 80 and 443", min=0, max=60000)] = 0,
    status_qps: Annotated[float, typer.Option(help="writes a second at most", min=1)] = 500,
    namespace: Annotated[
        str, typer.Option(help="of the Lease and of what is remembered")
    ] = "akocore-system",
    lease_duration: Annotated[
        float, typer.Option(help="seconds until another replica takes over", min=1)
    ] = 15,
    metrics_listen: MetricsListen = METRICS_LISTEN,
    log_format: LogsAs = LogFormat.TEXT,
    log_level: LogsFrom = LogLevel.INFO,
) -> None:
    """Serve the Ingresses of a cluster, and write their status back."""
    import asyncio

    from akocore.config import Config, ConfigError, load_config
    from akocore.engines.envoy.process import EngineError, find_envoy
    from akocore.kube.credentials import Credentials, CredentialsError, find_credentials
    from akocore.observe.logs import configure
    from akocore.observe.observation import ListenError, Observation
    from akocore.place.state import StateError

    is_external, are_pods = engines is not EnginesWhere.LOCAL, engines is EnginesWhere.PODS
    configure(log_format, log_level)

    def external(api: ApiServer, lease: Lease, facts: ClusterFacts, config: Config) -> _External:
        from akocore.engines.envoy.remote import RemoteServer, TlsFiles
        from akocore.kube.replicas import Replicas, config_digest

        if are_pods:
            own = state.absolute() / "xds"
            files = TlsFiles(own / "tls.crt", own / "tls.key", own / "ca.crt")
        elif xds_cert is None or xds_key is None or xds_client_ca is None:
            raise EngineError("--engines external needs --xds-cert, --xds-key and --xds-client-ca.")
        else:
            files = TlsFiles(xds_cert, xds_key, xds_client_ca)
        return lambda serve, progress: Replicas(
            api,
            serve.ads,
            RemoteServer(xds_listen, files, serve.ads, serve.events.say),
            identity=lease.identity,
            config=config_digest(config, port_offset),
            duration_s=lease_duration,
            leads=lambda: lease.held,
            revision=lambda: facts.revision,
            waiting=lambda: serve.waits,
            progress=progress,
            forgotten=serve.engine_forgotten,
            say=serve.events.say,
        )

    async def workloads(api: ApiServer, lease: Lease) -> Callable[[Serve], Workloads]:
        """Also writes our own certificate, which `external` reads."""
        from akocore.kube.authority import Authority, is_due, utc_now, write_pair
        from akocore.kube.workloads import Image, Workloads

        if not se_image:
            raise EngineError("--engines pods needs --se-image.")
        authority, own = Authority(api, namespace, utc_now), state.absolute() / "xds"
        await authority.load()
        host = xds_service.rpartition(":")[0]

        def renew() -> None:
            file = own / "tls.crt"
            if not file.exists() or is_due(file.read_bytes(), authority.ca, utc_now()):
                write_pair(own, authority.issue("akocore", [host]), authority.ca)

        try:
            renew()
        except OSError as err:
            raise EngineError(f"{own}: {err.strerror}. Give a writable --state.") from err
        return lambda serve: Workloads(
            api,
            namespace,
            authority,
            Image(se_image, se_image_pull_policy, xds_service),
            leads=lambda: lease.held,
            groups=lambda: serve.reconciler.infrastructure.groups,
            wanted=serve.reconciler.wanted_engines,
            renew=renew,
            now=utc_now,
            say=serve.events.say,
        )

    async def run() -> None:
        if engines is not EnginesWhere.EXTERNAL and (xds_cert or xds_key or xds_client_ca):
            raise EngineError("--xds-cert, --xds-key, --xds-client-ca are for --engines external.")
        first = [asyncio.create_task(find_credentials(kubeconfig))]
        first[0].add_done_callback(lambda task: task.cancelled() or task.exception())  # told below
        await asyncio.sleep(0)  # it asks a child process: the rest of us is loaded meanwhile
        from akocore.kube.api import ApiError, ApiServer
        from akocore.kube.cluster import Cluster
        from akocore.kube.lease import Lease
        from akocore.kube.placement import ClusterFacts
        from akocore.kube.status_writer import StatusWriter
        from akocore.serve import Serve

        async def credentials() -> Credentials:
            return await (first.pop() if first else find_credentials(kubeconfig))

        loaded, where = load_config(config), state.absolute()
        found = None if is_external else await asyncio.to_thread(find_envoy, envoy)
        async with Observation(metrics_listen) as observation, ApiServer(credentials) as api:
            lease = Lease(
                api,
                namespace,
                "akocore",
                _identity(where),
                duration_s=lease_duration,
                renew_within_s=lease_duration * 2 / 3,
                retry_s=lease_duration * 2 / 15,
            )
            facts = ClusterFacts(api, namespace, lambda: lease.held)
            await facts.load()
            try:
                makes = await workloads(api, lease) if are_pods else None
            except ApiError as err:
                raise EngineError(f"the certificates of xDS can't be had: {err}.") from err
            serve = Serve(
                lambda _facts: Cluster(api),
                where,
                loaded,
                found,
                port_offset,
                sink=lambda serve: StatusWriter(
                    api,
                    serve,
                    leads=lambda: lease.held,
                    identity=lease.identity,
                    qps=status_qps,
                ),
                shared=facts,
                lead=lease,
                watch=observation.watch,
                external=external(api, lease, facts, loaded) if is_external else None,
                workloads=makes,
            )
            observation.of(serve)
            facts.on_taken = serve.address_taken
            await serve.run()

    try:
        asyncio.run(run())
    except (ConfigError, EngineError, ListenError, StateError, CredentialsError) as err:
        fail(err, log_format)

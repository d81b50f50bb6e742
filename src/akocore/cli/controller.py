"""``akocore controller``: the same house over a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from akocore.cli.elsewhere import (
    CERTIFICATES_LISTEN,
    XDS_LISTEN,
    CertificatesListen,
    CertificatesService,
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
    from akocore.kube.api import ApiServer
    from akocore.kube.lease import Lease
    from akocore.kube.placement import ClusterFacts
    from akocore.kube.signing import SigningServer
    from akocore.kube.workloads import Workloads
    from akocore.serve import Serve

    _External = Callable[[Serve, Callable[[str], None]], External]

__all__ = ["controller"]


def _identity(state: Path) -> str:
    """Ours for as long as the state directory is: only one akocore at a time can have that."""
    import socket

    from mmh3 import mmh3_x64_128_digest

    return f"{socket.gethostname()}_{mmh3_x64_128_digest(str(state).encode()).hex()[:8]}"


def controller(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="default: $KUBECONFIG, ~/.kube/config, then the pod's own")
    ] = None,
    engines: EnginesAre = EnginesWhere.LOCAL,
    xds_listen: XdsListen = XDS_LISTEN,
    xds_cert: XdsCert = None,
    xds_key: XdsKey = None,
    xds_client_ca: XdsCa = None,
    xds_service: Annotated[
        str, typer.Option(help="with --se-image: HOST:PORT at which pods find the controllers")
    ] = "akocore-xds.akocore-system.svc:18000",
    certificates_listen: CertificatesListen = CERTIFICATES_LISTEN,
    certificates_service: CertificatesService = "akocore-xds.akocore-system.svc:18001",
    se_image: Annotated[
        str,
        typer.Option(
            help="for external engines: make them, as pods of this image, and sign certificates"
        ),
    ] = "",
    se_image_pull_policy: Annotated[str, typer.Option(help="with --se-image")] = "IfNotPresent",
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
    from asyncio import sslproto

    from akocore.config import Config, ConfigError, load_config
    from akocore.engines.envoy.process import EngineError, find_envoy
    from akocore.kube.credentials import Credentials, CredentialsError, find_credentials
    from akocore.observe.logs import configure
    from akocore.observe.observation import ListenError, Observation
    from akocore.place.state import StateError

    # asyncio keeps 256 KiB for each TLS connection, and a controller has forty.
    sslproto.SSLProtocol.max_size = 1 << 15
    is_external = engines is EnginesWhere.EXTERNAL
    configure(log_format, log_level)
    files: TlsFiles | None = None
    signs: Callable[[Serve], SigningServer] | None = None

    def external(api: ApiServer, lease: Lease, facts: ClusterFacts, config: Config) -> _External:
        from akocore.engines.envoy.remote import RemoteServer
        from akocore.kube.replicas import Replicas, config_digest

        assert files is not None
        tls = files
        return lambda serve, progress: Replicas(
            api,
            serve.ads,
            RemoteServer(xds_listen, tls, serve.ads, serve.events.say),
            identity=lease.identity,
            config=config_digest(config, port_offset),
            duration_s=lease_duration,
            leads=lambda: lease.held,
            revision=lambda: facts.revision,
            waiting=lambda: serve.waits,
            progress=progress,
            forgotten=serve.engine_forgotten,
            routers=lambda: serve.routes.routers() if serve.routes is not None else (),
            say=serve.events.say,
        )

    async def workloads(api: ApiServer, lease: Lease) -> Callable[[Serve], Workloads]:
        """Also writes our own certificate, which `external` and ``signs`` read."""
        from akocore.kube.authority import Authority, utc_now
        from akocore.kube.signing import Signer, SigningServer
        from akocore.kube.workloads import Image, Workloads
        from akocore.pairs import is_due, write_pair

        authority, own = Authority(api, namespace, utc_now), state.absolute() / "xds"
        await authority.load()
        hosts = dict.fromkeys(one.rpartition(":")[0] for one in (xds_service, certificates_service))

        def renew() -> None:
            file = own / "tls.crt"
            if not file.exists() or is_due(file.read_bytes(), authority.ca, utc_now()):
                write_pair(own, authority.issue("akocore", [*hosts]), authority.ca)

        try:
            renew()
        except OSError as err:
            raise EngineError(f"{own}: {err.strerror}. Give a writable --state.") from err
        nonlocal files, signs
        pems = (own / "tls.crt", own / "tls.key", own / "ca.crt")
        files, again = tls_files(engines, *pems), tls_files(engines, *pems)
        assert again is not None
        signer = Signer(api, namespace, authority)
        signs = lambda serve: SigningServer(  # noqa: E731
            certificates_listen, again, signer, serve.events.say
        )
        return lambda serve: Workloads(
            api,
            namespace,
            authority,
            Image(se_image, se_image_pull_policy, xds_service, certificates_service),
            leads=lambda: lease.held,
            groups=lambda: serve.reconciler.infrastructure.groups,
            wanted=serve.reconciler.wanted_engines,
            renew=renew,
            now=utc_now,
            say=serve.events.say,
        )

    async def run() -> None:
        nonlocal files
        if not se_image:
            files = tls_files(engines, xds_cert, xds_key, xds_client_ca)
        elif not is_external or xds_cert or xds_key or xds_client_ca:
            raise EngineError("--se-image is for --engines external without --xds-cert, -key, -ca.")
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
                makes = await workloads(api, lease) if se_image else None
            except ApiError as err:
                raise EngineError(f"the certificates of xDS can't be had: {err}.") from err
            serve = Serve(
                lambda _facts: Cluster(api, loaded.watch_namespaces),
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
                listens=[
                    metrics_listen,
                    *([xds_listen] if is_external else []),
                    *([certificates_listen] if se_image else []),
                ],
                namespace=namespace,
            )
            observation.of(serve)
            facts.on_taken = serve.address_taken
            if signs is None:
                return await serve.run()
            signing = signs(serve)
            await signing.start()
            try:
                await serve.run()
            finally:
                await signing.stop()

    try:
        as_many_as_allowed()
        asyncio.run(run())
    except (ConfigError, EngineError, ListenError, StateError, CredentialsError) as err:
        fail(err, log_format)

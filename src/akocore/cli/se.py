"""``akocore se``: what a Service Engine elsewhere needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from akocore.cli.observing import LogFormat, LogLevel, LogsAs, LogsFrom, fail
from akocore.cli.se_shown import bfd, bgp, config, list_, routes, show

__all__ = ["se"]

se = typer.Typer(help="Service Engines, here and elsewhere.", no_args_is_help=True)
se.command("list")(list_)
for _command in (show, bgp, bfd, routes, config):
    se.command()(_command)


def _host_port(text: str, option: str) -> tuple[str, int]:
    host, _, port = text.strip().rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"{text!r}: write HOST:PORT", param_hint=option)
    return host.removeprefix("[").removesuffix("]"), int(port)


@se.command()
def bootstrap(
    name: Annotated[str, typer.Option(help="the engine's, as in its certificate")],
    group: Annotated[str, typer.Option(help="its ServiceEngineGroup")],
    controller: Annotated[
        str, typer.Option(help="HOST:PORT of akocore; several with commas, each as good as another")
    ],
    cert: Annotated[Path, typer.Option(help="the engine's certificate, PEM")],
    key: Annotated[Path, typer.Option(help="its key, PEM")],
    ca: Annotated[Path, typer.Option(help="who signs the controllers' certificates, PEM")],
    controller_name: Annotated[
        list[str] | None,
        typer.Option(help="in the controllers' certificate; default: the hosts of --controller"),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option(help="write two files here; Envoy then follows --cert, --key and --ca"),
    ] = None,
    admin: Annotated[
        str, typer.Option(help="Envoy's admin interface: a socket's path or HOST:PORT")
    ] = "",
    max_connections: Annotated[int, typer.Option(help="of clients, at once", min=1)] = 50_000,
) -> None:
    """Print the bootstrap of an Envoy that is a Service Engine of an akocore elsewhere.

    Run it with --drain-time-s 5 --drain-strategy immediate, as akocore does: an address that is
    given up rests for that long.
    """
    from akocore.engines.envoy.bootstrap import Tls
    from akocore.engines.envoy.bootstrap import bootstrap as made
    from akocore.engines.envoy.bootstrap import secrets as files
    from akocore.engines.envoy.process import may_name

    if not may_name(name):
        raise typer.BadParameter(f"{name!r}: use a-z, 0-9, -, _, .", param_hint="--name")
    controllers = [_host_port(one, "--controller") for one in controller.split(",")]
    tls = Tls(
        certificate=cert.absolute(),
        key=key.absolute(),
        ca=ca.absolute(),
        names=tuple(controller_name or ()),
        secrets=secrets.absolute() if secrets is not None else None,
    )
    place: Path | tuple[str, int] | None = None
    if admin:
        place = Path(admin) if "/" in admin else _host_port(admin, "--admin")
    try:
        for file, text in files(tls, controllers).items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)
    except OSError as err:
        typer.echo(f"akocore: {err}. Give a writable directory to --secrets.", err=True)
        raise typer.Exit(1) from err
    text = made(name, group, controllers, place, tls=tls, max_connections=max_connections)
    typer.echo(text.decode())


_ENV = "AKOCORE_SE_"


def _own_address(controllers: list[tuple[str, int]]) -> str:
    """The address that this machine has on the way to a controller; "": none yet."""
    import socket

    for host, port in controllers:
        try:
            ((family, _, _, _, place), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(place)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return ""


def _router_id(address: str, name: str) -> str:
    """An IPv4 address for BGP: the Service Engine's own, else one made of its name."""
    from ipaddress import IPv4Address, ip_address
    from zlib import crc32

    if ip_address(address).version == 4:
        return address
    return str(IPv4Address(crc32(name.encode()) or 1))


@se.command()
def run(
    name: Annotated[str, typer.Option(envvar=f"{_ENV}NAME", help="its own, as in its certificate")],
    group: Annotated[str, typer.Option(envvar=f"{_ENV}GROUP", help="its ServiceEngineGroup")],
    controller: Annotated[
        str,
        typer.Option(
            envvar=f"{_ENV}CONTROLLER",
            help="HOST:PORT of akocore; several with commas, each as good as another",
        ),
    ],
    ca: Annotated[
        Path, typer.Option(envvar=f"{_ENV}CA", help="who signs the controllers' certificates, PEM")
    ],
    cert: Annotated[
        Path | None, typer.Option(envvar=f"{_ENV}CERT", help="its certificate, PEM")
    ] = None,
    key: Annotated[Path | None, typer.Option(envvar=f"{_ENV}KEY", help="its key, PEM")] = None,
    token: Annotated[
        Path | None,
        typer.Option(
            envvar=f"{_ENV}TOKEN",
            help="instead of both: its pod's token, for which a controller signs a certificate",
        ),
    ] = None,
    certificates: Annotated[
        str,
        typer.Option(
            envvar=f"{_ENV}CERTIFICATES", help="with --token: HOST:PORT where controllers sign"
        ),
    ] = "",
    controller_name: Annotated[
        str,
        typer.Option(
            envvar=f"{_ENV}CONTROLLER_NAME",
            help="in the controllers' certificate, several with commas; default: their hosts",
        ),
    ] = "",
    address: Annotated[
        str,
        typer.Option(
            envvar=f"{_ENV}ADDRESS",
            help="where it speaks BGP from, and its router id; default: its address on the way"
            " to the controller",
        ),
    ] = "",
    snat: Annotated[
        str,
        typer.Option(
            envvar=f"{_ENV}SNAT",
            help="an address of its own to ask backends from, told to peers with advertiseSnat",
        ),
    ] = "",
    state: Annotated[
        Path, typer.Option(envvar=f"{_ENV}STATE", help="the one directory that it writes to")
    ] = Path("/run/akocore"),
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    frr_dir: Annotated[Path | None, typer.Option(help="directory of FRR's daemons")] = None,
    concurrency: Annotated[
        int, typer.Option(envvar=f"{_ENV}CONCURRENCY", help="Envoy's workers", min=1)
    ] = 1,
    max_connections: Annotated[
        int, typer.Option(envvar=f"{_ENV}MAX_CONNECTIONS", help="of clients, at once", min=1)
    ] = 50_000,
    drain: Annotated[
        float,
        typer.Option(
            envvar=f"{_ENV}DRAIN", help="seconds announced as about to go, before withdrawal", min=0
        ),
    ] = 2.0,
    flows: Annotated[
        float,
        typer.Option(
            envvar=f"{_ENV}FLOWS", help="seconds that connections have to end after that", min=0
        ),
    ] = 20.0,
    probe: Annotated[
        float,
        typer.Option(
            envvar=f"{_ENV}PROBE", help="an Envoy silent for so many seconds hangs", min=0.05
        ),
    ] = 1.0,
    metrics_listen: Annotated[
        str,
        typer.Option(
            envvar=f"{_ENV}METRICS_LISTEN",
            metavar="HOST:PORT",
            help='/metrics, /healthz and /readyz; in a pod :9811; "": nowhere',
        ),
    ] = "127.0.0.1:9811",
    log_format: LogsAs = LogFormat.TEXT,
    log_level: LogsFrom = LogLevel.INFO,
) -> None:
    """Be a Service Engine: run Envoy and FRR here, and do as a controller says.

    Wherever it is: a pod, a network namespace, a machine; as root, with the capabilities NET_ADMIN,
    NET_BIND_SERVICE and NET_RAW.  SIGTERM: it is announced as about to go, withdrawn, and gone when
    its last connection is over; a second one: at once.
    """
    import asyncio
    import signal
    from ipaddress import ip_address

    from akocore.engines.agent.agent import Agent, Settings
    from akocore.engines.agent.metrics import AgentMetrics, unready
    from akocore.engines.envoy.bootstrap import Tls
    from akocore.engines.envoy.process import Controllers, EngineError, find_envoy, may_name
    from akocore.engines.frr.process import FrrError, find_frr
    from akocore.observe.endpoints import Endpoints
    from akocore.observe.logs import configure
    from akocore.observe.observation import ListenError

    for value, option in ((name, "--name"), (group, "--group")):
        if not may_name(value):
            raise typer.BadParameter(f"{value!r}: use a-z, 0-9, -, _, .", param_hint=option)
    places = [_host_port(one, "--controller") for one in controller.split(",")]
    for value, option in ((address, "--address"), (snat, "--snat")):
        try:
            ip_address(value or "::")
        except ValueError as err:
            raise typer.BadParameter(f"{err}: write 10.10.16.192", param_hint=option) from err
    state = state.absolute()
    signers = [_host_port(one, "--certificates") for one in certificates.split(",") if one]
    if (token is None) == (cert is None) or (cert is None) != (key is None):
        raise typer.BadParameter("give --cert and --key, or --token and --certificates")
    if (token is None) != (not signers):
        raise typer.BadParameter("--token and --certificates go together")
    tls = Tls(
        certificate=(cert or state / "identity" / "tls.crt").absolute(),
        key=(key or state / "identity" / "tls.key").absolute(),
        ca=ca.absolute(),
        names=tuple(one.strip() for one in controller_name.split(",") if one.strip()),
        secrets=state / "secrets",
    )
    configure(log_format, log_level)

    async def serve() -> None:
        own = address
        while not own:  # a network that comes up, a name that isn't known yet
            if not (own := await asyncio.to_thread(_own_address, places)):
                await asyncio.sleep(1)
        frr, no_frr = None, ""
        try:
            frr = find_frr(frr_dir)
        except FrrError as err:
            no_frr = str(err)
        settings = Settings(
            name=name,
            group=group,
            address=own,
            router_id=_router_id(own, name),
            controllers=Controllers(tuple(places), tls),
            snat=snat,
            drained_s=drain,
            flows_s=flows,
            probe_s=probe,
            concurrency=concurrency,
            max_connections=max_connections,
        )
        identity = None
        if token is not None:
            from akocore.engines.agent.identity import Identity

            identity = Identity(name, tls, signers, token)
        agent = Agent(settings, state, find_envoy(envoy), frr, no_frr, identity=identity)
        stop, at_once = asyncio.Event(), asyncio.Event()

        def end() -> None:
            (at_once if stop.is_set() else stop).set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, end)
        if not metrics_listen:
            return await agent.run(stop, at_once)
        endpoints = Endpoints(metrics_listen, AgentMetrics(agent).text, lambda: unready(agent))
        await endpoints.start()
        try:
            await agent.run(stop, at_once)
        finally:
            await endpoints.stop()

    try:
        asyncio.run(serve())
    except (EngineError, ListenError) as err:
        fail(err, log_format)

"""``akocore se``: what a Service Engine elsewhere needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["se"]

se = typer.Typer(help="Service Engines that akocore doesn't run itself.", no_args_is_help=True)


@se.callback()
def _se() -> None:
    """Keeps ``bootstrap`` a command of its own while it is the only one."""


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

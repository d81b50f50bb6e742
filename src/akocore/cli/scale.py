"""``akocore scale``: a virtual service on more or fewer Service Engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from akocore.cli.control import STATE, StateOption, ask

__all__ = ["scale"]


def scale(
    vs: Annotated[str, typer.Argument(help="vs/NAME; see `akocore get vs`")],
    out: Annotated[bool, typer.Option("--out", help="one more")] = False,
    in_: Annotated[bool, typer.Option("--in", help="one less, gracefully")] = False,
    to: Annotated[int, typer.Option("--to", help="exactly so many", min=0)] = 0,
    state: StateOption = STATE,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="of a cluster: where annotation akocore.io/scale-out is written"),
    ] = None,
) -> None:
    """Have a virtual service on more or fewer Service Engines, which announce it by BGP.

    In a cluster that is an annotation of its AviInfraSetting, so for all virtual services of that.
    """
    if out + in_ + bool(to) != 1:
        typer.echo("akocore: give one of --out, --in and --to N.", err=True)
        raise typer.Exit(2)
    kind, _, name = vs.partition("/")
    if kind != "vs" or not name:
        typer.echo(f"akocore: {vs}: write vs/NAME.", err=True)
        raise typer.Exit(2)
    question: dict[str, Any] = {"vs": name, **({"to": to} if to else {"by": 1 if out else -1})}
    answer = ask(state, "Scale", question)
    if "refused" in answer:
        typer.echo(f"akocore: {answer['refused']}", err=True)
        raise typer.Exit(1)
    if "annotate" in answer:
        _annotate(answer["annotate"], answer["wanted"], kubeconfig)
    typer.echo(f"{vs}: from {answer['before']} to {answer['wanted']} Service Engines")


def _annotate(setting: str, number: int, kubeconfig: Path | None) -> None:
    """Write how many Service Engines virtual services of an AviInfraSetting are to be on."""
    import asyncio

    import orjson

    from akocore.kube.api import ApiError, ApiServer, resources
    from akocore.kube.credentials import CredentialsError, find_credentials
    from akocore.kube.objects import AviInfraSetting
    from akocore.translate.classes import SCALE_OUT_ANNOTATION

    path = resources()[AviInfraSetting.KIND].path(name=setting)
    body = orjson.dumps({"metadata": {"annotations": {SCALE_OUT_ANNOTATION: str(number)}}})

    async def write() -> None:
        async with ApiServer(lambda: find_credentials(kubeconfig)) as api:
            await api.request("PATCH", path, None, body, "application/merge-patch+json")

    try:
        asyncio.run(write())
    except (ApiError, CredentialsError, OSError, TimeoutError) as err:
        typer.echo(
            f"akocore: AviInfraSetting {setting} can't be annotated: {str(err) or 'no answer'}",
            err=True,
        )
        raise typer.Exit(1) from err
    typer.echo(f"AviInfraSetting/{setting}: annotation {SCALE_OUT_ANNOTATION} is {number}")

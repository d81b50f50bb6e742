"""``akocore crds`` and ``akocore install``: what a cluster needs before the controller starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["crds", "install"]


def _all(default_class: bool) -> list[dict[str, Any]]:
    from akocore.kube import crds as made

    return [*made.crds(), *made.access(), made.ingress_class(default_class)]


def _path(item: dict[str, Any]) -> str:
    """Where the API has an object: the kinds of `_all` have regular plurals."""
    version, kind, meta = item["apiVersion"], item["kind"].lower(), item["metadata"]
    plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    where = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
    return f"/{'apis' if '/' in version else 'api'}/{version}{where}/{plural}/{meta['name']}"


def crds() -> None:
    """Print the CustomResourceDefinitions, the access rules and IngressClass avi-lb as YAML."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, _data: object) -> bool:
            return True

    typer.echo(yaml.dump_all(_all(True), Dumper=Plain, sort_keys=False), nl=False)


def install(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="default: $KUBECONFIG, ~/.kube/config, then the pod's own")
    ] = None,
    default_class: Annotated[
        bool, typer.Option(help="avi-lb serves Ingresses that name no class")
    ] = True,
) -> None:
    """Apply CustomResourceDefinitions, access rules and IngressClass avi-lb to a cluster."""
    import asyncio

    from akocore.kube.api import ApiError, ApiServer
    from akocore.kube.credentials import CredentialsError, find_credentials

    async def run() -> None:
        async with ApiServer(lambda: find_credentials(kubeconfig)) as api:
            for item in _all(default_class):
                await api.apply(_path(item), item, "akocore-install")
                typer.echo(f"{item['kind']} {item['metadata']['name']} applied")

    try:
        asyncio.run(run())
    except (ApiError, CredentialsError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err

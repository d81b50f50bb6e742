"""``akocore install``, ``crds`` and ``uninstall``: a cluster before and after the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["chart_files", "crds", "install", "uninstall"]


def _all(default_class: bool) -> list[dict[str, Any]]:
    from akocore.kube import crds as made

    return [*made.crds(), *made.access(), made.ingress_class(default_class)]


def _path(item: dict[str, Any]) -> str:
    """Where the API has an object: the kinds of `_all` have regular plurals."""
    version, kind, meta = item["apiVersion"], item["kind"].lower(), item["metadata"]
    plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    where = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
    return f"/{'apis' if '/' in version else 'api'}/{version}{where}/{plural}/{meta['name']}"


def _yaml(objects: list[dict[str, Any]]) -> str:
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, _data: object) -> bool:
            return True

    return yaml.dump_all(objects, Dumper=Plain, sort_keys=False)


def chart_files() -> dict[str, str]:
    """What the Helm chart has of ours in its ``files``, by name."""
    from akocore.kube import crds as made
    from akocore.kube.admission import admission_policy

    kept = {"helm.sh/resource-policy": "keep"}
    definitions = [
        one | {"metadata": one["metadata"] | {"annotations": kept}} for one in made.crds()
    ]
    rules = (*made.divided_rules(), made.rules()[1], *made.clean_up_rules())
    names = ("ofCluster", "ofNamespaces", "atHome", "cleanUp", "cleanUpAtHome")
    return {
        "crds.yaml": _yaml(definitions),
        "rules.yaml": _yaml([dict(zip(names, rules, strict=True))]),
        "admission.yaml": _yaml(admission_policy("RELEASE_NAMESPACE", "ENGINES_IMAGE")),
    }


def crds(
    chart: Annotated[
        Path | None, typer.Option(help="write the Helm chart's part of it into this directory")
    ] = None,
) -> None:
    """Print the CustomResourceDefinitions, the access rules and IngressClass avi-lb as YAML."""
    from akocore.kube.chart_values import values_schema

    if chart is None:
        typer.echo(_yaml(_all(True)), nl=False)
        return
    for name, text in chart_files().items():
        (chart / "files" / name).write_text(text)
    schema = chart / "values.schema.json"
    schema.write_text(values_schema(schema.read_text()))


def uninstall(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="default: $KUBECONFIG, ~/.kube/config, then the pod's own")
    ] = None,
    namespace: Annotated[str, typer.Option(help="of the controller")] = "akocore-system",
) -> None:
    """Take back status, mirrors and workloads, when no controller runs any more."""
    import asyncio

    from akocore.kube.api import ApiError, ApiServer
    from akocore.kube.credentials import CredentialsError, find_credentials
    from akocore.kube.uninstall import uninstall as take_back

    async def run() -> None:
        async with ApiServer(lambda: find_credentials(kubeconfig)) as api:
            await take_back(api, namespace, typer.echo)

    try:
        asyncio.run(run())
    except (ApiError, CredentialsError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err


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

"""``akocore migrate ingress``: Gateways and HTTPRoutes in place of Ingresses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from akocore.shown import printable

if TYPE_CHECKING:
    from akocore.store import Store

__all__ = ["migrate"]

migrate = typer.Typer(help="Gateway API in place of older objects.", no_args_is_help=True)

_KINDS = ("Ingress", "IngressClass", "Service", "Namespace", "AviInfraSetting")


@migrate.callback()
def _group() -> None:
    """Gateway API in place of older objects."""


@migrate.command()
def ingress(
    files: Annotated[
        list[Path] | None, typer.Argument(help="manifests, or directories of them")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="without files: the cluster's objects (default as kubectl)")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="which are taken: avi-lb, nginx or both")
    ] = None,
    gateway_class: Annotated[str, typer.Option(help="name of the GatewayClass")] = "avi-lb",
    namespace: Annotated[
        str, typer.Option(help="of Gateways whose routes are in several namespaces")
    ] = "",
    addresses: Annotated[bool, typer.Option(help="keep the VIPs that Ingresses have")] = True,
    strict: Annotated[bool, typer.Option(help="exit with 1 if something is lost")] = False,
) -> None:
    """Print Gateways and HTTPRoutes that answer as the Ingresses of class avi-lb and nginx do.

    A comment at the top has a verdict on every annotation; nothing is written to a cluster.
    """
    import yaml

    from akocore.translate.migration.annotations import Dialect
    from akocore.translate.migration.ingress import migrate

    dialects: dict[str, Dialect] = {}
    for name in classes or ("avi-lb", "nginx"):
        dialects[name] = "nginx" if "nginx" in name else "avi"
    store = _of_files(files) if files else _of_cluster(kubeconfig)
    found = migrate(
        store,
        dialects,
        gateway_class=gateway_class,
        namespace=namespace,
        addresses=addresses,
    )

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, _data: object) -> bool:
            return True

    for one in found.verdicts:
        said = f"{one.verdict}: {one.object} {one.field}: {one.text}"
        typer.echo(f"# {printable(said)}")
    if found.manifests:
        typer.echo(
            yaml.dump_all(found.manifests, Dumper=Plain, sort_keys=False, width=100), nl=False
        )
    lost = sum(one.verdict == "untranslatable" for one in found.verdicts)
    kinds = [str(one["kind"]) for one in found.manifests]
    typer.echo(
        f"{kinds.count('Gateway')} Gateways, {kinds.count('HTTPRoute')} HTTPRoutes;"
        f" {lost} things are not translatable",
        err=True,
    )
    if lost and strict:
        raise typer.Exit(1)


def _paths(files: Iterable[Path]) -> Iterable[Path]:
    for path in files:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml", ".json"))
        else:
            yield path


def _of_files(files: Iterable[Path]) -> Store:
    from akocore.kube.objects import Change
    from akocore.manifest_file import read
    from akocore.store import Store

    store = Store()
    for path in _paths(files):
        try:
            data = path.read_bytes()
        except OSError as err:
            typer.echo(f"akocore: {err}", err=True)
            raise typer.Exit(1) from err
        reading = read(data, str(path))
        for refusal in reading.refusals:
            at = f"{path}:{refusal.line}" if refusal.line else str(path)
            said = f"{at}: {refusal.field} {refusal.reason}: {refusal.remedy}"
            typer.echo(printable(said), err=True)
        for document in reading.documents:
            if document.obj is not None and document.obj.KIND in _KINDS:
                obj = document.obj
                store.apply(Change(obj.KIND, obj.key, obj))
    return store


def _of_cluster(kubeconfig: Path | None) -> Store:
    import asyncio

    import orjson

    from akocore.kube.api import ApiError, ApiServer, resources
    from akocore.kube.credentials import CredentialsError, find_credentials
    from akocore.kube.objects import Change, decode
    from akocore.store import Store

    store = Store()

    async def run() -> None:
        async with ApiServer(lambda: find_credentials(kubeconfig)) as api:
            for kind in _KINDS:
                resource = resources()[kind]
                try:
                    answer = await api.request("GET", resource.path())
                except ApiError as err:
                    if err.code == 404:  # a CRD that is not there
                        continue
                    raise
                for item in orjson.loads(answer)["items"]:
                    obj = decode(item, resource.kind)
                    store.apply(Change(kind, obj.key, obj))

    try:
        asyncio.run(run())
    except (ApiError, CredentialsError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err
    return store

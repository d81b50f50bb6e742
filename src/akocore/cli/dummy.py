"""``akocore dummy N apply|delete NAME``: N Services and Ingresses NAME1..N to try things with."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["dummy", "manifests"]

_CHUNK = 500  # objects that one kubectl call takes


class Action(StrEnum):
    """What kubectl would do with them."""

    APPLY = "apply"
    DELETE = "delete"


def manifests(
    name: str,
    number: int,
    *,
    ingress_class: str | None = None,
    domain: str = "avi.iberia.local",
    endpoint: str | None = None,
    namespace: str = "default",
) -> list[dict[str, Any]]:
    """Service and Ingress NAMEnumber with host ``NAMEnumber.domain``.

    With ``endpoint`` ("address:port") also the EndpointSlice, which in a cluster the Service's
    selector makes.
    """
    full = f"{name}{number}"
    meta = {"name": full, "namespace": namespace, "labels": {"app": full}}
    port: dict[str, Any] = {"name": "http", "port": 80, "targetPort": 8080}
    service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": meta}
    service["spec"] = (
        {"ports": [port]} if endpoint else {"ports": [port], "selector": {"app": name}}
    )
    out = [service]
    if endpoint:
        address, _, at = endpoint.rpartition(":")
        labels = {"kubernetes.io/service-name": full, "app": full}
        out.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": full, "namespace": namespace, "labels": labels},
                "addressType": "IPv6" if ":" in address else "IPv4",
                "ports": [{"name": "http", "port": int(at)}],
                "endpoints": [{"addresses": [address.strip("[]")]}],
            }
        )
    backend = {"service": {"name": full, "port": {"number": 80}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    spec: dict[str, Any] = {"rules": [{"host": f"{full}.{domain}", "http": {"paths": [path]}}]}
    if ingress_class:
        spec["ingressClassName"] = ingress_class
    kind = "Ingress"
    out.append({"apiVersion": "networking.k8s.io/v1", "kind": kind, "metadata": meta, "spec": spec})
    return out


def _into_directory(directory: Path, objects: Iterator[tuple[str, list[dict[str, Any]]]]) -> None:
    import orjson

    directory.mkdir(parents=True, exist_ok=True)
    for name, items in objects:
        body = {"apiVersion": "v1", "kind": "List", "items": items}
        part = directory / f".{name}.json.part"
        part.write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2))
        part.replace(directory / f"{name}.json")


def _with_kubectl(action: Action, objects: Iterator[tuple[str, list[dict[str, Any]]]]) -> None:
    import orjson

    kubectl = shutil.which("kubectl")
    if kubectl is None:
        typer.echo("akocore: there is no kubectl here. Install it or give --dir.", err=True)
        raise typer.Exit(1)
    command = [kubectl, action.value, "-f", "-"]
    command.append("--server-side" if action is Action.APPLY else "--ignore-not-found")

    def send(items: list[dict[str, Any]]) -> None:
        body = orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        done = subprocess.run(command, input=body, capture_output=True, check=False)
        if done.returncode:
            typer.echo(f"akocore: kubectl: {done.stderr.decode().strip()}", err=True)
            raise typer.Exit(1)

    waiting: list[dict[str, Any]] = []
    for _, items in objects:
        waiting += items
        if len(waiting) >= _CHUNK:
            send(waiting)
            waiting = []
    if waiting:
        send(waiting)


def dummy(
    count: Annotated[int, typer.Argument(metavar="N", help="how many", min=1, max=1_000_000)],
    action: Annotated[Action, typer.Argument(help="apply or delete")],
    name: Annotated[str, typer.Argument(help="their name; numbers 1..N are added")],
    ingress_class: Annotated[
        str | None, typer.Option("--class", help="ingressClassName; default: the default class")
    ] = None,
    domain: Annotated[str, typer.Option(help="hosts are NAMEn.DOMAIN")] = "avi.iberia.local",
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="into this directory; default: kubectl's current context"),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="ADDRESS:PORT that all of them lead to (adds EndpointSlices)"),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n")] = "default",
) -> None:
    """Make or delete N Services and Ingresses NAME1..N."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    if endpoint is not None and not endpoint.rpartition(":")[2].isdigit():
        typer.echo(f"akocore: --endpoint {endpoint}: write ADDRESS:PORT.", err=True)
        raise typer.Exit(2)
    bar = Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    def objects() -> Iterator[tuple[str, list[dict[str, Any]]]]:
        task = bar.add_task(f"{action} {name}1..{count}", total=count)
        for number in range(1, count + 1):
            items = manifests(
                name,
                number,
                ingress_class=ingress_class,
                domain=domain,
                endpoint=endpoint,
                namespace=namespace,
            )
            yield f"{name}{number}", items
            bar.advance(task)

    with bar:
        if directory is None:
            _with_kubectl(action, objects())
        elif action is Action.APPLY:
            _into_directory(directory, objects())
        else:
            for file, _ in objects():
                (directory / f"{file}.json").unlink(missing_ok=True)

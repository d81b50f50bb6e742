"""The Gateway API's own examples: what each comes to, one golden file an example.

They are read from the API's module, and changed in two ways: their Gateways have a class of ours,
and the Services that they name as backends are there.
``pytest --update-golden`` writes the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from akocore.kube.objects import KINDS
from cluster.gateway_api import GROUP, module
from translate.test_golden import Case
from translate.test_golden_gateway import outcome

GOLDEN = Path(__file__).parent / "golden_gateway_examples"
CLASS = {
    "apiVersion": f"{GROUP}/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "ours"},
    "spec": {"controllerName": "ako.vmware.com/avi-lb"},
}


@pytest.fixture(scope="module")
def examples(require_real: Callable[[bool, str], None]) -> Path:
    require_real(shutil.which("go") is not None, "go")
    return module() / "examples"


def _backends(part: Any) -> Iterator[dict[str, Any]]:
    """All references to backends, wherever they are."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "backendRefs":
                yield from value
            elif key == "backendRef":
                yield value
            yield from _backends(value)
    elif isinstance(part, list):
        for value in part:
            yield from _backends(value)


def _adapted(text: str) -> list[dict[str, Any]]:
    found = [one for one in yaml.safe_load_all(text) if one]
    objects = [one for one in found if (one.get("apiVersion"), one.get("kind")) in KINDS]
    objects = [one for one in objects if one["kind"] != "GatewayClass"]
    services: dict[tuple[str, str], set[int]] = {}
    for one in objects:
        own = one["metadata"].setdefault("namespace", "default")
        if one["kind"] not in ("Namespace", "Service"):
            one["metadata"].pop("labels", None)  # nobody reads them
        if one["kind"] == "Gateway":
            one["spec"]["gatewayClassName"] = "ours"
        for ref in _backends(one.get("spec")):
            if ref.get("kind", "Service") == "Service" and "port" in ref:
                named = (ref.get("namespace", own), ref["name"])
                services.setdefault(named, set()).add(ref["port"])
    there = {
        (one["metadata"]["namespace"], one["metadata"]["name"])
        for one in objects
        if one["kind"] == "Service"
    }
    for (namespace, name), ports in sorted(services.items()):
        if (namespace, name) not in there:
            listed = [{"name": f"p{port}", "port": port} for port in sorted(ports)]
            objects.append(
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {"name": name, "namespace": namespace},
                    "spec": {"ports": listed},
                }
            )
    return [CLASS, *objects]


def _name(path: Path, examples: Path) -> str:
    return "-".join(path.relative_to(examples).with_suffix("").parts)


def test_every_example_comes_to_what_its_golden_says(
    examples: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    update = request.config.getoption("--update-golden")
    paths = {_name(path, examples): path for path in sorted(examples.rglob("*.yaml"))}
    wrong = {}
    for name, path in paths.items():
        manifests = _adapted(path.read_text())
        if manifests == [CLASS]:
            continue  # none of our kinds
        got = outcome(Case(manifests), tmp_path / name)
        golden = GOLDEN / f"{name}.yaml"
        if update:
            golden.write_text(
                yaml.safe_dump(
                    got, sort_keys=False, width=96, allow_unicode=True, default_flow_style=None
                )
            )
        elif not golden.exists() or got != yaml.safe_load(golden.read_text()):
            wrong[name] = got
    assert wrong == {}
    assert {path.stem for path in GOLDEN.glob("*.yaml")} <= paths.keys()

"""Ingresses in, Gateways, routes and verdicts out: one self-contained YAML file a case.

``in:`` manifests, ``options:`` those of the command, ``out:`` what it prints.
``pytest --update-golden`` writes ``out:`` anew; read the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from akocore.kube.objects import KINDS, Change, decode
from akocore.store import Store
from akocore.translate.migration.annotations import Dialect
from akocore.translate.migration.ingress import migrate
from translate.test_golden import Case as GatewayCase
from translate.test_golden_gateway import outcome

CASES = sorted((Path(__file__).parent / "golden_migration").glob("*.yaml"))


class Case(msgspec.Struct, forbid_unknown_fields=True, rename={"manifests": "in"}):
    """The skeleton of a file; a misspelt key is an error."""

    manifests: list[dict[str, Any]]
    options: dict[str, Any] = {}
    out: dict[str, Any] | None = None


def _store(manifests: list[dict[str, Any]]) -> Store:
    store = Store()
    for manifest in manifests:
        document = dict(manifest)
        struct = KINDS[document.pop("apiVersion"), document.pop("kind")]
        obj = decode(document, struct)
        store.apply(Change(struct.KIND, obj.key, obj))
    return store


DIALECTS: dict[str, Dialect] = {"avi-lb": "avi", "nginx": "nginx"}


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text()
    case = msgspec.convert(yaml.safe_load(text), Case)
    found = migrate(_store(case.manifests), DIALECTS, **case.options)
    out = {
        "verdicts": [f"{v.verdict}: {v.object} {v.field}: {v.text}" for v in found.verdicts],
        "manifests": list(found.manifests),
    }
    if request.config.getoption("--update-golden"):
        head = text.partition("\nout:")[0].rstrip("\n")

        class Plain(yaml.SafeDumper):
            def ignore_aliases(self, _data: object) -> bool:
                return True

        shown = yaml.dump({"out": out}, Dumper=Plain, sort_keys=False, width=100)
        path.write_text(f"{head}\n{shown}")
        return
    assert out == case.out


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_every_route_is_accepted_as_it_is_written(path: Path, tmp_path: Path) -> None:
    case = msgspec.convert(yaml.safe_load(path.read_text()), Case)
    assert case.out is not None
    made: list[dict[str, Any]] = case.out["manifests"]
    named = {"apiVersion": "v1", "kind": "Namespace"}
    spaces = {one["metadata"]["namespace"] for one in made if "namespace" in one["metadata"]}
    namespaces = [
        named | {"metadata": {"name": one, "labels": {"kubernetes.io/metadata.name": one}}}
        for one in sorted(spaces)
    ]
    kept = [one for one in case.manifests if one["kind"] != "Ingress"]
    found = outcome(GatewayCase([*kept, *namespaces, *made]), tmp_path)
    routes: Any = found["HTTPRoute"]
    assert len(routes) == sum(one["kind"] == "HTTPRoute" for one in made)
    for key, route in routes.items():
        for parent in route["status"]:
            assert parent["Accepted"] == "True Accepted", key
            assert "PartiallyInvalid" not in parent, key

"""Manifests in, host models and refusals out: one self-contained YAML file a case.

``config:`` (optional) is akocore's configuration, ``in:`` ordinary manifests, ``out:`` what they
come to.  ``pytest --update-golden`` writes ``out:`` anew; read the difference.

What is empty or false is left out of ``out:``, except the backend of a route: null is a 503.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import msgspec.inspect as mi
import pytest
import yaml

from akocore.config import Config
from akocore.kube.objects import (
    KINDS,
    AviInfraSetting,
    Change,
    Ingress,
    Network,
    ServiceEngineGroup,
    decode,
)
from akocore.model import HostModel, Refusal
from akocore.store import Store
from akocore.translate.classes import Infra, default_class, govern, infra_of
from akocore.translate.ingress import host_model
from akocore.translate.names import Names

CASES = sorted((Path(__file__).parent / "golden").glob("*.yaml"))


class Case(msgspec.Struct, forbid_unknown_fields=True, rename={"manifests": "in"}):
    """The skeleton of a file; a misspelt key is an error."""

    manifests: list[dict[str, Any]]
    config: Config = Config()
    out: dict[str, Any] | None = None


KUBERNETES_OWN = {"selector", "clusterIP"}  # of a Service: nothing here acts on it


def check_known(value: object, kind: mi.Type, at: str) -> None:
    """A field that the Struct does not know would be passed over: in a case it is a mistake."""
    if isinstance(kind, mi.UnionType):
        kind = next(t for t in kind.types if not isinstance(t, mi.NoneType))
    if isinstance(kind, mi.StructType) and isinstance(value, dict):
        fields = {f.encode_name: f.type for f in kind.fields}
        for name in value.keys() - KUBERNETES_OWN:
            inner = value[name]
            assert name in fields, f"{at}.{name} is unknown"
            check_known(inner, fields[name], f"{at}.{name}")
    elif isinstance(kind, mi.VarTupleType) and isinstance(value, list):
        for i, inner in enumerate(value):
            check_known(inner, kind.item_type, f"{at}[{i}]")


def _store(manifests: list[dict[str, Any]]) -> Store:
    store = Store()
    for i, manifest in enumerate(manifests):
        document = dict(manifest)
        struct = KINDS[document.pop("apiVersion"), document.pop("kind")]
        check_known(document, mi.type_info(struct), f"in[{i}]")
        obj = decode(document, struct)
        store.apply(Change(struct.stored(), obj.key, obj))
    return store


def _said(refusal: Refusal) -> dict[str, object]:
    said: dict[str, object] = {
        "field": refusal.field,
        "reason": refusal.reason,
        "remedy": refusal.remedy,
    }
    return {**said, "warning": True} if refusal.warning else said


def _shown(model: HostModel) -> dict[str, object]:
    routes = [
        {
            "path": route.path,
            **({"exact": True} if route.exact else {}),
            "pool": route.pool.name,
            "backend": route.pool.backend,
        }
        for route in model.routes
    ]
    shown = {
        "setting": model.setting,
        "routes": routes,
        "certificate": model.certificate,
        "redirect": model.redirect,
    }
    return {name: value for name, value in shown.items() if value}


def _settings(
    store: Store, config: Config
) -> tuple[dict[str, Infra], dict[str, dict[str, object]]]:
    groups = config.service_engine_groups | {
        key: cast(ServiceEngineGroup, obj).spec
        for key, obj in store.all("ServiceEngineGroup").items()
    }
    networks = config.networks | {
        key: cast(Network, obj).spec for key, obj in store.all("Network").items()
    }
    infras: dict[str, Infra] = {}
    shown: dict[str, dict[str, object]] = {}
    objects = cast("dict[str, AviInfraSetting]", store.all("AviInfraSetting"))
    for name in ("", *objects):
        spec = objects[name].spec if name else None
        infra, refusals = infra_of(name, spec, config.defaults, groups, networks)
        if infra is not None:
            infras[name] = infra
        if name or refusals:
            shown[name or "(defaults)"] = {}
        if refusals:
            shown[name or "(defaults)"]["refusals"] = [_said(r) for r in refusals]
        elif name:
            assert infra is not None
            assert infra.setting == name
            shown[name] = {
                "group": infra.group,
                "network": infra.network,
                "shardSize": infra.shard_size.value,
                "listeners": [
                    " ".join([str(p.port), *["tls"] * p.tls, *["http2"] * p.http2])
                    for p in infra.listeners
                ],
            }
    return infras, shown


def outcome(case: Case) -> dict[str, object]:
    """What the manifests come to, as plain data."""
    store = _store(case.manifests)
    names = Names(case.config.cluster_name)
    infras, settings = _settings(store, case.config)
    default = default_class(store)
    ingresses: dict[str, dict[str, Any]] = {}
    claims: dict[str, dict[str, list[Ingress]]] = {}
    objects = cast("list[Ingress]", list(store.all("Ingress").values()))
    objects.sort(key=lambda i: (i.metadata.creation_timestamp or "~", i.metadata.key))
    for ingress in objects:
        key = ingress.metadata.key
        by = govern(ingress, store, default)
        shown = ingresses[key] = {"class": by.ingress_class, "setting": by.setting}
        shown = {name: value for name, value in shown.items() if value}
        ingresses[key] = shown if by.ours else {"foreign": True, **shown}
        refusals = [by.refusal] if by.refusal else []
        if by.ours:
            refusals += store.view(key).refusals
        assert all(r.object == f"Ingress/{key}" for r in refusals)
        ingresses[key]["refusals"] = [_said(r) for r in refusals]
        if by.ours and by.setting in infras:
            for host in store.hosts_of(key):
                claims.setdefault(host, {}).setdefault(by.setting, []).append(ingress)
    hosts: dict[str, object] = {}
    for host in sorted(claims):
        ((setting, mine),) = claims[host].items()  # a host under two settings is the loop's work
        dedicated = not infras[setting].shard_size.shards
        model, no = host_model(host, setting, dedicated, mine, store, names)
        assert (model.host, model.setting) == (host, setting)
        hosts[host or "(any host)"] = _shown(model)
        for key, refusals in no.items():
            assert all(r.object == f"Ingress/{key}" for r in refusals)
            ingresses[key]["refusals"] += [_said(r) for r in refusals]
    for shown in ingresses.values():
        if not shown["refusals"]:
            del shown["refusals"]
    parts = {"hosts": hosts, "ingresses": ingresses, "settings": settings}
    return {name: part for name, part in parts.items() if part}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_manifests_come_to_what_the_golden_says(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text()
    case = msgspec.convert(yaml.safe_load(text), Case)
    got = outcome(case)
    if request.config.getoption("--update-golden"):
        before = text.partition("\nout:")[0].rstrip("\n")
        dumped = yaml.safe_dump(
            {"out": got}, sort_keys=False, width=96, allow_unicode=True, default_flow_style=None
        )
        path.write_text(f"{before}\n{dumped}")
    else:
        assert got == case.out


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_order_of_arrival_changes_nothing(path: Path) -> None:
    case = msgspec.convert(yaml.safe_load(path.read_text()), Case)
    turned = Case(case.manifests[::-1], case.config)
    assert outcome(turned) == outcome(case)


def test_a_misspelt_key_of_a_case_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `inn`"):
        msgspec.convert({"in": [], "inn": []}, Case)


def test_a_misspelt_field_of_a_cases_manifest_is_an_error() -> None:
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"rules": [{"hots": "a.test"}]},
    }
    with pytest.raises(AssertionError, match=r"in\[0\]\.spec\.rules\[0\]\.hots is unknown"):
        _store([manifest])

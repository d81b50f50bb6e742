"""Manifests in; virtual services, hosts, conditions of the Gateway API out: one YAML file a case.

``config:`` (optional) is akocore's configuration, ``in:`` ordinary manifests, ``out:`` what they
come to while no Service Engine has connected yet.  ``pytest --update-golden`` writes ``out:``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from akocore.engines.envoy.ads import AdsServer
from akocore.kube import gateway_status
from akocore.kube.gateway_objects import GATEWAY_API, Route
from akocore.kube.meta import Object
from akocore.model_http import HttpHost
from akocore.place.state import State
from akocore.place.virtual_services import VirtualService
from akocore.reconcile import Reconciler
from akocore.status_gateway import refusals
from translate.test_golden import Case
from translate.test_golden_l4 import _changes, _said

CASES = sorted((Path(__file__).parent / "golden_gateway").glob("*.yaml"))
NOW = "2026-01-01T00:00:00Z"


def _plain(value: Any) -> Any:
    """What is not as it always is."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, msgspec.Struct):
        out = {}
        for field in msgspec.structs.fields(value):
            one = getattr(value, field.name)
            if one != field.default:
                out[field.name] = _plain(one)
        return out
    return value


def _host(model: HttpHost) -> list[dict[str, Any]]:
    out = []
    for rule in model.rules:
        plain = _plain(rule)
        match = plain.pop("match")
        path = match.pop("path")
        plain["match"] = {path["kind"]: path["value"], **match}
        out.append(plain)
    return out


def _virtual_service(service: VirtualService) -> dict[str, Any]:
    assert service.gateway is not None
    hosts = {
        f"{at.port}/{at.chain}/{at.host or '(any)'}": _host(placed.model)
        for at, placed in sorted(service.gateway.hosts.items())
    }
    ports = {
        f"{protocol}/{port}": {k: v for k, v in _plain(placed.model).items() if k != "port"}
        for (protocol, port), placed in sorted(service.gateway.ports.items())
    }
    vip = service.shown.address if service.shown else None
    return {"vip": vip, "setting": service.infra.setting, "ports": ports, "hosts": hosts}


def _words(conditions: list[dict[str, Any]]) -> dict[str, str]:
    """Conditions as ``status reason: message``, all of them since `NOW`."""
    assert all(one["lastTransitionTime"] == NOW for one in conditions)
    return {
        one["type"]: f"{one['status']} {one['reason']}"
        + (f": {one['message']}" if one["message"] else "")
        for one in conditions
    }


def _status(at: Reconciler, obj: Object) -> object:
    status = gateway_status.wanted(at, obj, lambda _vs: None)
    if status is None:
        return "not ours"
    if isinstance(obj, Route):
        return [{**one["parentRef"], **_words(one["conditions"])} for one in status["parents"]]
    if "ancestors" in status:
        return [{**one["ancestorRef"], **_words(one["conditions"])} for one in status["ancestors"]]
    out: dict[str, object] = dict(_words(status["conditions"]))
    if status.get("attachedListenerSets"):
        out["attachedListenerSets"] = status["attachedListenerSets"]
    if "listeners" in status:
        out["listeners"] = {
            one["name"]: {
                "kinds": [kind["kind"] for kind in one["supportedKinds"]],
                "attached": one["attachedRoutes"],
                **_words(one["conditions"]),
            }
            for one in status["listeners"]
        }
    return out


def outcome(case: Case, directory: Path) -> dict[str, object]:
    """What the manifests come to, as plain data."""
    state = State(directory)
    try:
        ads = AdsServer(directory / "xds.sock", lambda _group: None)
        now = datetime.fromisoformat(NOW)
        at = Reconciler(case.config, state, ads, now=lambda: now.astimezone(UTC))
        at.apply(_changes(case.manifests))
        out: dict[str, Any] = {
            "virtualServices": {
                name: _virtual_service(one)
                for name, one in sorted(at.placement.services.items())
                if one.gateway is not None
            }
        }
        for kind in gateway_status.KINDS:
            for key, obj in sorted(at.store.all(kind).items()):
                found = refusals(at, kind, key)
                shown: dict[str, object] = {"status": _status(at, obj)}
                if found:
                    assert all(r.object == f"{kind}/{key}" for r in found)
                    shown["refusals"] = [_said(r) for r in found]
                out.setdefault(kind.removesuffix(f".{GATEWAY_API}"), {})[key] = shown
        plain: dict[str, object] = msgspec.json.decode(msgspec.json.encode(out))
        return {name: part for name, part in plain.items() if part}
    finally:
        state.close()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_manifests_come_to_what_the_golden_says(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    text = path.read_text()
    case = msgspec.convert(yaml.safe_load(text), Case)
    got = outcome(case, tmp_path)
    if request.config.getoption("--update-golden"):
        before = text.partition("\nout:")[0].rstrip("\n")
        dumped = yaml.safe_dump(
            {"out": got}, sort_keys=False, width=96, allow_unicode=True, default_flow_style=None
        )
        path.write_text(f"{before}\n{dumped}")
    else:
        assert got == case.out


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_order_of_arrival_changes_nothing(path: Path, tmp_path: Path) -> None:
    case = msgspec.convert(yaml.safe_load(path.read_text()), Case)
    turned = Case(case.manifests[::-1], case.config)
    assert outcome(turned, tmp_path / "turned") == outcome(case, tmp_path / "as-it-is")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_one_by_one_comes_to_the_same_as_all_at_once(path: Path, tmp_path: Path) -> None:
    case = msgspec.convert(yaml.safe_load(path.read_text()), Case)
    state = State(tmp_path / "one")
    try:
        ads = AdsServer(tmp_path / "xds.sock", lambda _group: None)
        now = datetime.fromisoformat(NOW)
        at = Reconciler(case.config, state, ads, now=lambda: now.astimezone(UTC))
        for change in _changes(case.manifests):
            at.apply([change])
        got = {
            name: _virtual_service(one)
            for name, one in sorted(at.placement.services.items())
            if one.gateway is not None and not one.closed
        }
        for one in got.values():
            del one["vip"]  # who came first has the first
        wanted = dict(case.out).get("virtualServices", {})
        assert isinstance(wanted, dict)
        for one in wanted.values():
            del one["vip"]
        assert msgspec.json.decode(msgspec.json.encode(got)) == wanted
    finally:
        state.close()

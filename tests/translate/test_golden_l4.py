"""Manifests in; virtual services, refusals and statuses of L4 out: one YAML file a case.

``config:`` (optional) is akocore's configuration, ``in:`` ordinary manifests, ``out:`` what they
come to while no Service Engine has connected yet.  ``pytest --update-golden`` writes ``out:``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect as mi
import pytest
import yaml

from akocore.engines.envoy.ads import AdsServer
from akocore.kube import l4_status
from akocore.kube.objects import KINDS, Change, decode
from akocore.model import Refusal
from akocore.place.state import State
from akocore.place.virtual_services import VirtualService
from akocore.reconcile import Reconciler
from akocore.status_l4 import refusals
from translate.test_golden import Case, check_known

CASES = sorted((Path(__file__).parent / "golden_l4").glob("*.yaml"))
NOW = "2026-01-01T00:00:00Z"


def _changes(manifests: list[dict[str, Any]]) -> list[Change]:
    out = []
    for i, manifest in enumerate(manifests):
        document = dict(manifest)
        struct = KINDS[document.pop("apiVersion"), document.pop("kind")]
        check_known(document, mi.type_info(struct), f"in[{i}]")
        meta = document["metadata"]
        if struct.NAMESPACED:
            document["metadata"] = {**meta, "namespace": meta.get("namespace", "default")}
        obj = decode(document, struct)
        out.append(Change(struct.stored(), obj.key, obj))
    return out


def _said(refusal: Refusal) -> dict[str, object]:
    said = {"field": refusal.field, "reason": refusal.reason, "remedy": refusal.remedy}
    return {**said, "warning": True} if refusal.warning else said


def _virtual_service(service: VirtualService) -> dict[str, object]:
    listeners: dict[str, object] = {}
    for (protocol, port), placed in sorted((service.listeners or {}).items()):
        plain = msgspec.json.decode(msgspec.json.encode(placed.model.pool))
        listeners[f"{protocol}/{port}"] = plain and {k: v for k, v in plain.items() if v}
    shown = {
        "vip": service.shown.address if service.shown else None,
        "setting": service.infra.setting,
        "network": service.infra.network,
        "group": service.infra.group,
        "listeners": listeners,
    }
    return {name: value for name, value in shown.items() if value != ""}


def _status(at: Reconciler, kind: str, key: str) -> object:
    """Conditions as ``status reason: message``, all of them since `NOW`."""
    status = l4_status.wanted(at, kind, key, lambda _vs: None)
    if status is None:
        return "not ours"

    def words(conditions: list[dict[str, Any]]) -> dict[str, str]:
        assert {one["lastTransitionTime"] for one in conditions} == {NOW}
        return {
            one["type"]: f"{one['status']} {one['reason']}"
            + (f": {one['message']}" if one["message"] else "")
            for one in conditions
        }

    out: dict[str, object] = {"conditions": words(status["conditions"])}
    if kind == "Gateway":
        out["addresses"] = [one["value"] for one in status["addresses"]]
        out["listeners"] = [
            {"port": one["port"], "protocol": one["protocol"], **words(one["conditions"])}
            for one in status["listeners"]
        ]
    return out


def outcome(case: Case, directory: Path) -> dict[str, object]:
    """What the manifests come to, as plain data."""
    state = State(directory)
    try:
        ads = AdsServer(directory / "xds.sock", lambda _group: None)
        now = datetime.fromisoformat(NOW)
        at = Reconciler(case.config, state, ads, now=lambda: now.astimezone(UTC))
        at.apply(_changes(case.manifests))
        out: dict[str, dict[str, object]] = {
            "virtualServices": {
                name: _virtual_service(one)
                for name, one in sorted(at.placement.services.items())
                if one.listeners is not None
            }
        }
        for kind in ("GatewayClass", "Gateway", "Service"):
            for key in sorted(at.store.all(kind)):
                found = refusals(at, kind, key)
                shown: dict[str, object] = {"status": _status(at, kind, key)}
                if found:
                    assert all(r.object == f"{kind}/{key}" for r in found)
                    shown["refusals"] = [_said(r) for r in found]
                out.setdefault(f"{kind[0].lower()}{kind[1:]}", {})[key] = shown
        return {name: part for name, part in out.items() if part}
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

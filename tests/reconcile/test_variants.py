"""How backends are talked to is forgotten with who needs it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.objects import KINDS, Change, decode
from akocore.place.state import State
from akocore.reconcile import Reconciler

_API = "gateway.networking.k8s.io/v1"


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Reconciler]:
    state = State(tmp_path)
    ads = AdsServer(tmp_path / "xds.sock", lambda _group: None)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    yield Reconciler(Config(), state, ads, now=lambda: now)
    state.close()


def change(api: str, kind: str, name: str, spec: dict[str, Any], namespace: str = "d") -> Change:
    body = {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "spec": spec,
    }
    obj = decode(body, KINDS[api, kind])
    return Change(obj.stored(), obj.key, obj)


def route(name: str, to: str) -> Change:
    spec = {
        "parentRefs": [{"name": "web"}],
        "hostnames": [f"{name}.test"],
        "rules": [{"backendRefs": [{"name": to, "port": 80}]}],
    }
    return change(_API, "HTTPRoute", name, spec)


def service(name: str) -> Change:
    ports = [{"port": 80, "appProtocol": "kubernetes.io/h2c"}]
    return change("v1", "Service", name, {"ports": ports})


def gone(change: Change) -> Change:
    return Change(change.kind, change.key, None)


def test_how_a_backend_is_talked_to_is_forgotten_with_its_last_user(at: Reconciler) -> None:
    ranges = [{"begin": "10.10.16.225", "end": "10.10.16.254"}]
    network = {"subnet": "10.10.16.0/24", "vipRanges": ranges}
    listeners = [{"name": "http", "port": 80, "protocol": "HTTP"}]
    at.apply(
        [
            change("akocore.io/v1alpha1", "Network", "uplink", network, ""),
            change(_API, "GatewayClass", "lb", {"controllerName": "ako.vmware.com/avi-lb"}, ""),
            change(_API, "Gateway", "web", {"gatewayClassName": "lb", "listeners": listeners}),
            *(service(f"s{i}") for i in range(20)),
            route("one", "s0"),
            route("two", "s0"),
        ]
    )
    variants = at.realiser.gateway.variants
    assert len(variants) == 1
    for i in range(1, 20):  # a route that leads elsewhere each time
        at.apply([route("one", f"s{i}")])
        assert len(variants) == 2
    at.apply([gone(route("one", "s19"))])
    assert len(variants) == 1
    at.apply([service("s0")])  # who still uses it is none the worse
    assert len(variants) == 1
    at.apply([gone(route("two", "s0"))])
    assert not variants

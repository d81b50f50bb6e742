"""VIPs that a namespace may have: who gets none, what is never taken away, who comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from akocore import status, status_gateway, status_l4
from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.objects import KINDS, Change, decode
from akocore.place.state import State
from akocore.reconcile import Reconciler

LABELS = {"ako.vmware.com/gateway-namespace": "a", "ako.vmware.com/gateway-name": "gw"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Reconciler]]:
    states: list[State] = []

    def start() -> Reconciler:
        for one in states[-1:]:
            asyncio.run(one.flush())
            one.close()
        states.append(State(tmp_path))
        ads = AdsServer(tmp_path / "xds.sock", lambda _group: None)
        return Reconciler(Config(), states[-1], ads, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    yield start
    states[-1].close()


def change(api: str, kind: str, name: str, namespace: str = "", **body: Any) -> Change:
    meta = {"name": name, "namespace": namespace, "creationTimestamp": body.pop("age", "")}
    obj = decode({"apiVersion": api, "kind": kind, "metadata": meta, **body}, KINDS[api, kind])
    return Change(obj.stored(), obj.key, obj)


def network(limit: int) -> Change:
    spec = {
        "subnet": "10.10.16.0/24",
        "vipRanges": [{"begin": "10.10.16.225", "end": "10.10.16.254"}],
        "vipsPerNamespace": limit,
    }
    return change("akocore.io/v1alpha1", "Network", "uplink", spec=spec)


def base(limit: int) -> list[Change]:
    params = {"apiGroup": "ako.vmware.com", "kind": "AviInfraSetting", "name": "s"}
    reference = {"group": "ako.vmware.com", "kind": "AviInfraSetting", "name": "s"}
    controller = "ako.vmware.com/avi-lb"
    return [
        network(limit),
        change(
            *("ako.vmware.com/v1alpha1", "AviInfraSetting", "s"),
            spec={"network": {"names": ["uplink"]}, "l7Settings": {"shardSize": "DEDICATED"}},
        ),
        change(
            *("networking.k8s.io/v1", "IngressClass", "c"),
            spec={"controller": controller, "parameters": params},
        ),
        change(
            *("gateway.networking.k8s.io/v1", "GatewayClass", "c"),
            spec={"controllerName": controller, "parametersRef": reference},
        ),
        change("v1", "Namespace", "a"),
    ]


def ingress(name: str, namespace: str) -> Change:
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    return change(
        *("networking.k8s.io/v1", "Ingress", name, namespace),
        spec={
            "ingressClassName": "c",
            "rules": [{"host": f"{name}.test", "http": {"paths": [path]}}],
        },
    )


def gateway(name: str, namespace: str) -> Change:
    listeners = [{"name": "http", "port": 80, "protocol": "HTTP"}]
    spec = {"gatewayClassName": "c", "listeners": listeners}
    return change("gateway.networking.k8s.io/v1", "Gateway", name, namespace, spec=spec)


def service(name: str, namespace: str) -> Change:
    spec = {"type": "LoadBalancer", "ports": [{"port": 80}]}
    return change("v1", "Service", name, namespace, spec=spec)


def vips(at: Reconciler) -> dict[str, set[str]]:
    """Addresses of Network uplink, by the namespace of their owner."""
    out: dict[str, set[str]] = {}
    for one in at.placement.services.values():
        for home in one.homes:
            if home.network == "uplink":
                out.setdefault(one.namespace, set()).add(home.address)
    return out


def told(at: Reconciler, key: str) -> list[str]:
    return [one.remedy for one in status.ingress_refusals(at, key) if "Limit" in one.reason]


def test_one_over_the_limit_has_none_and_is_told_the_figure(
    start: Callable[[], Reconciler],
) -> None:
    at = start()
    at.apply([*base(2), *(ingress(f"i{n}", "a") for n in range(4)), ingress("other", "b")])
    assert {key: len(found) for key, found in vips(at).items()} == {"a": 2, "b": 1}
    said = [told(at, f"a/i{n}") for n in range(4)]
    assert [len(one) for one in said] == [0, 0, 1, 1]
    assert "Namespace a may have 2 VIPs of Network uplink (vipsPerNamespace)" in said[2][0]
    assert not told(at, "b/other")


def test_gateways_and_services_count_as_hosts_do(start: Callable[[], Reconciler]) -> None:
    at = start()
    at.apply([*base(1), gateway("one", "a"), gateway("two", "a"), gateway("one", "b")])
    assert {key: len(found) for key, found in vips(at).items()} == {"a": 1, "b": 1}
    refused = status_gateway.refusals(at, "Gateway.gateway.networking.k8s.io", "a/two") or (
        status_gateway.refusals(at, gateway("two", "a").kind, "a/two")
    )
    assert refused is not None
    assert ["vipsPerNamespace" in one.remedy for one in refused] == [True]
    at.apply([change("v1", "Namespace", "c", spec={})])
    setting = change(
        *("v1", "Namespace", "c"),
        metadata={"name": "c", "annotations": {"aviinfrasetting.ako.vmware.com/name": "s"}},
    )
    at.apply([setting, service("one", "c"), service("two", "c")])
    assert len(vips(at)["c"]) == 1
    said = status_l4.refusals(at, "Service", "c/two") or []
    assert [one.reason for one in said] == ["VipLimitReached"]


def test_a_vip_that_goes_is_the_next_ones(start: Callable[[], Reconciler]) -> None:
    at = start()
    at.apply([*base(2), *(ingress(f"i{n}", "a") for n in range(4))])
    at.apply([Change("Ingress", "a/i0", None)])
    assert len(vips(at)["a"]) == 2
    assert [len(told(at, f"a/i{n}")) for n in range(1, 4)] == [0, 0, 1]
    at.apply([Change("Ingress", "a/i3", None), Change("Ingress", "a/i1", None)])
    assert len(vips(at)["a"]) == 1


def test_what_there_is_is_never_taken_away(start: Callable[[], Reconciler]) -> None:
    at = start()
    at.apply([*base(0), *(ingress(f"i{n}", "a") for n in range(4))])
    before = vips(at)
    assert len(before["a"]) == 4
    at.apply([network(2)])
    assert vips(at) == before
    at.apply([ingress("late", "a")])
    assert vips(at) == before
    assert told(at, "a/late")
    at.apply([network(5)])
    assert len(vips(at)["a"]) == 5
    assert not told(at, "a/late")


def test_who_had_one_before_a_restart_has_it_again_whoever_is_read_first(
    start: Callable[[], Reconciler],
) -> None:
    at = start()
    at.apply([*base(2), ingress("x", "a"), ingress("y", "a")])
    at.forget_absent()
    before = vips(at)
    again = start()
    again.apply([*base(2), ingress("b", "a"), ingress("x", "a")])  # a start may come in parts
    again.apply([ingress("y", "a")])
    again.forget_absent()
    assert vips(again) == before
    assert told(again, "a/b")
    once_more = start()
    once_more.apply([*base(2), ingress("b", "a"), ingress("x", "a")])  # y went meanwhile
    once_more.forget_absent()
    assert len(vips(once_more)["a"]) == 2
    assert not told(once_more, "a/b")


def test_the_vip_of_a_host_counts_for_its_oldest_ingress(start: Callable[[], Reconciler]) -> None:
    at = start()
    old, new = ingress("i", "a"), ingress("i", "b")
    at.apply([*base(1), old])
    at.apply([new])
    assert set(vips(at)) == {"a"}
    at.apply([Change("Ingress", "a/i", None)])
    assert set(vips(at)) == {"b"}
    at.apply([ingress("more", "b"), ingress("more2", "a")])
    assert told(at, "b/more")
    assert not told(at, "a/more2")

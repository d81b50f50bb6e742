"""Endpoints that are none: who is told, and what comes and goes with Networks and engines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from akocore import status, status_gateway, status_l4
from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.objects import KINDS, Change, decode
from akocore.model import Refusal
from akocore.place.state import State
from akocore.reconcile import Reconciler

NAME = "EndpointNotAllowed"


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Reconciler]:
    state = State(tmp_path)
    ads = AdsServer(tmp_path / "xds.sock", lambda _group: None)
    yield Reconciler(
        Config(), state, ads, now=lambda: datetime(2026, 1, 1, tzinfo=UTC), namespace="akocore"
    )
    state.close()


def change(api: str, kind: str, name: str, namespace: str = "shop", **body: Any) -> Change:
    meta = {"name": name, "namespace": namespace, **body.pop("meta", {})}
    if kind == "GatewayClass":
        meta["namespace"] = ""
    obj = decode({"apiVersion": api, "kind": kind, "metadata": meta, **body}, KINDS[api, kind])
    return Change(obj.stored(), obj.key, obj)


def network(subnet: str = "10.10.16.0/24", begin: str = "10.10.16.225") -> Change:
    end = f"{begin.rpartition('.')[0]}.254"
    spec = {"subnet": subnet, "vipRanges": [{"begin": begin, "end": end}]}
    meta = {"namespace": ""}
    return change("akocore.io/v1alpha1", "Network", "uplink", spec=spec, meta=meta)


def slice_(
    *addresses: str, name: str = "web-1", service: str = "web", namespace: str = "shop"
) -> Change:
    return change(
        *("discovery.k8s.io/v1", "EndpointSlice", name, namespace),
        meta={"labels": {"kubernetes.io/service-name": service}},
        ports=[{"port": 8080}],
        endpoints=[{"addresses": [one]} for one in addresses],
    )


def application() -> list[Change]:
    """A Service, and one of each kind that leads to it."""
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    gateway = "gateway.networking.k8s.io/v1"
    labels = {"ako.vmware.com/gateway-name": "old", "ako.vmware.com/gateway-namespace": "shop"}
    listeners = [{"name": "http", "port": 80, "protocol": "HTTP"}]
    old = {"protocol": "TCP", "port": 80, "routes": {"kind": "Service", "selector": {}}}
    controller = "ako.vmware.com/avi-lb"
    old["routes"] = {"group": "v1", "kind": "Service", "selector": {"matchLabels": labels}}
    return [
        change("v1", "Service", "web", spec={"ports": [{"port": 80}], "type": "LoadBalancer"}),
        change("v1", "Service", "l4", spec={"ports": [{"port": 80}]}, meta={"labels": labels}),
        change(
            *("networking.k8s.io/v1", "Ingress", "web"),
            spec={"rules": [{"host": "web.test", "http": {"paths": [path]}}]},
        ),
        change(gateway, "GatewayClass", "lb", spec={"controllerName": controller}),
        change(gateway, "Gateway", "new", spec={"gatewayClassName": "lb", "listeners": listeners}),
        change(
            *(gateway, "HTTPRoute", "web"),
            spec={
                "parentRefs": [{"name": "new"}],
                "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
            },
        ),
        change(
            "networking.x-k8s.io/v1alpha1",
            "GatewayClass",
            "lb",
            spec={
                "controller": controller,
                "parametersRef": {
                    "group": "ako.vmware.com",
                    "kind": "AviInfraSetting",
                    "name": "setting",
                },
            },
        ),
        change(
            "ako.vmware.com/v1alpha1",
            "AviInfraSetting",
            "setting",
            meta={"namespace": ""},
            spec={"network": {"names": ["uplink"]}},
        ),
        change(
            *("networking.x-k8s.io/v1alpha1", "Gateway", "old"),
            spec={"gatewayClassName": "lb", "listeners": [old]},
        ),
    ]


def told(at: Reconciler) -> dict[str, list[Refusal]]:
    """Who is told what of endpoints."""
    found = [
        *status.ingress_refusals(at, "shop/web"),
        *(status_l4.refusals(at, "Service", "shop/web") or ()),
        *(status_l4.refusals(at, "Gateway", "shop/old") or ()),
        *(status_gateway.refusals(at, "HTTPRoute", "shop/web") or ()),
    ]
    out: dict[str, list[Refusal]] = {}
    for one in found:
        if one.reason == NAME:
            out.setdefault(one.object, []).append(one)
    return out


def test_who_leads_to_an_endpoint_that_is_none_is_told(at: Reconciler) -> None:
    touched = at.apply([network(), *application(), slice_("10.0.0.1", "10.10.16.230", "127.0.0.1")])
    at.apply([slice_("::ffff:10.10.16.230", name="l4-1", service="l4")])
    assert at.realiser.members("shop/web/80") == [("10.0.0.1", 8080)]
    assert at.realiser.members("shop/l4/80") == []
    assert "shop/web" in touched
    said = told(at)
    assert set(said) == {
        *("Ingress/shop/web", "Service/shop/web", "Gateway/shop/old", "HTTPRoute/shop/web")
    }
    assert all(len(one) == 1 for one in said.values())
    assert "10.10.16.230 (a VIP of Network uplink), 127.0.0.1 (loopback), in EndpointSlice" in (
        said["Ingress/shop/web"][0].remedy
    )
    ((_, says),) = status_gateway.route(at, ("HTTPRoute", "shop/web"))
    assert [(one.type, one.true) for one in says] == [
        *(("Accepted", True), ("ResolvedRefs", True), ("akocore.io/EndpointsLeftOut", True))
    ]
    at.l4.touched.clear()
    at.gateway_api.touched.clear()
    assert at.apply([slice_("10.0.0.1")]) == {"shop/web"}
    assert ("Service", "shop/web") in at.l4.touched
    assert ("HTTPRoute", "shop/web") in at.gateway_api.touched
    assert set(told(at)) == {"Gateway/shop/old"}


def test_a_network_that_comes_or_goes_decides_of_endpoints_that_are_there(at: Reconciler) -> None:
    at.apply([*application(), slice_("10.0.0.1", "10.10.16.230", "10.10.17.230")])
    assert len(at.realiser.members("shop/web/80")) == 3
    assert not told(at)
    assert "shop/web" in at.apply([network()])
    assert [a for a, _ in at.realiser.members("shop/web/80")] == ["10.0.0.1", "10.10.17.230"]
    assert "shop/web" in at.apply([network("10.10.17.0/24", "10.10.17.225")])
    assert "10.10.16.230" in [a for a, _ in at.realiser.members("shop/web/80")]
    assert "10.10.17.230" not in [a for a, _ in at.realiser.members("shop/web/80")]


def test_an_engine_that_comes_or_goes_decides_too(at: Reconciler) -> None:
    at.apply([network(), *application(), slice_("10.0.0.1", "10.0.0.2")])
    assert at.know_engines({"10.0.0.2": "Service Engine se-1"}) == {"shop/web"}
    assert at.realiser.members("shop/web/80") == [("10.0.0.1", 8080)]
    assert "10.0.0.2 (Service Engine se-1)" in told(at)["Ingress/shop/web"][0].remedy
    assert at.know_engines({"10.0.0.9": "Service Engine se-1"}) == {"shop/web"}
    assert at.know_engines({}) == set()
    assert len(at.realiser.members("shop/web/80")) == 2
    assert not told(at)


def test_who_has_a_slice_in_the_controllers_namespace_is_a_controller(at: Reconciler) -> None:
    mine = slice_("10.0.0.7", name="metrics", service="metrics", namespace="akocore")
    at.apply([network(), *application(), slice_("10.0.0.1", "10.0.0.7"), mine])
    assert at.realiser.members("shop/web/80") == [("10.0.0.1", 8080)]
    at.apply([Change("EndpointSlice", "akocore/metrics", None)])
    assert len(at.realiser.members("shop/web/80")) == 2


def test_a_slice_that_becomes_anothers_takes_what_is_left_out_along(at: Reconciler) -> None:
    at.apply([network(), *application(), slice_("10.10.16.230")])
    at.apply([slice_("10.10.16.230", service="l4")])
    assert set(told(at)) == {"Gateway/shop/old"}
    at.apply([Change("EndpointSlice", "shop/web-1", None)])
    assert not told(at)
    assert not at.endpoints


def test_old_vips_outside_of_every_network_are_none_while_they_are_served(
    at: Reconciler,
) -> None:
    at.apply([network(), *application()])
    before = {h.address for s in at.placement.services.values() for h in s.homes}
    vip = max(one for one in before if one.startswith("10.10.16."))
    at.apply([network("10.10.17.0/24", "10.10.17.225"), slice_(vip)])
    assert at.realiser.members("shop/web/80") == []
    at.apply([Change("Gateway", "shop/old", None)])
    at.forget_strays()
    homes = {h.address for s in at.placement.services.values() for h in s.homes}
    assert bool(at.realiser.members("shop/web/80")) == (vip not in homes)

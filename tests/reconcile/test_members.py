"""Which endpoints serve a Service port."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.route.v3.scoped_route_pb2 import ScopedRouteConfiguration
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse

from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.resources import cluster, scope
from akocore.kube.objects import KINDS, Change, EndpointSlice, decode
from akocore.members import Parts
from akocore.model import HostModel, Pool, Route
from akocore.place.state import State
from akocore.reconcile import Reconciler


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Reconciler]:
    state = State(tmp_path)
    ads = AdsServer(tmp_path / "xds.sock", lambda _group: None)
    yield Reconciler(Config(), state, ads, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    state.close()


def change(body: dict[str, Any]) -> Change:
    obj = decode(body, KINDS[body["apiVersion"], body["kind"]])
    return Change(body["kind"], obj.key, obj)


def service(*ports: dict[str, Any]) -> Change:
    meta = {"name": "s", "namespace": "d"}
    spec = {"ports": list(ports)}
    return change({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})


def slice_(
    ports: list[dict[str, Any]], endpoints: list[dict[str, Any]], name: str = "s-1"
) -> Change:
    labels = {"kubernetes.io/service-name": "s"}
    return change(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "d", "labels": labels},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": endpoints,
        }
    )


def endpoint(address: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "conditions": conditions}


def test_a_udp_port_of_the_same_number_is_another_port(at: Reconciler) -> None:
    udp = {"name": "dns", "port": 53, "protocol": "UDP"}
    tcp = {"name": "dns-tcp", "port": 53, "protocol": "TCP"}
    ports = [
        {"name": "dns", "port": 5300, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 5301, "protocol": "TCP"},
    ]
    at.apply([service(udp, tcp), slice_(ports, [endpoint("10.0.0.1")])])
    assert at.realiser.members("d/s/53") == [("10.0.0.1", 5301)]


def test_terminating_endpoints_serve_only_when_no_other_is_ready(at: Reconciler) -> None:
    port = {"port": 80}
    going = endpoint("10.0.0.1", ready=False, serving=True, terminating=True)
    broken = endpoint("10.0.0.2", ready=False)
    ready = endpoint("10.0.0.3", ready=True)
    at.apply([service(port), slice_([{"port": 8080}], [going, broken, ready])])
    assert at.realiser.members("d/s/80") == [("10.0.0.3", 8080)]
    at.apply([slice_([{"port": 8080}], [going, broken])])
    assert at.realiser.members("d/s/80") == [("10.0.0.1", 8080)]
    at.apply([slice_([{"port": 8080}], [broken])])
    assert at.realiser.members("d/s/80") == []


def test_slices_are_added_up_and_repeats_count_once(at: Reconciler) -> None:
    at.apply(
        [
            service({"port": 80}),
            slice_([{"port": 8080}], [endpoint("10.0.0.2"), endpoint("10.0.0.1")]),
            slice_([{"port": 8080}], [endpoint("10.0.0.2")], name="s-2"),
        ]
    )
    assert at.realiser.members("d/s/80") == [("10.0.0.1", 8080), ("10.0.0.2", 8080)]
    assert at.realiser.members("d/s/81") == []


def test_of_many_slices_only_what_changed_is_looked_at_again() -> None:
    def made(i: int, address: str) -> EndpointSlice:
        found = slice_([{"port": 8080}], [endpoint(address)], name=f"s-{i}").obj
        assert isinstance(found, EndpointSlice)
        return found

    parts = Parts()
    nothing: Mapping[str, str] = {}
    slices = [made(i, f"10.0.0.{i}") for i in range(10)]
    before = parts.of("d/s/80", slices, "", "TCP", lambda _key: nothing)
    slices[3] = made(3, "10.0.1.3")
    after = parts.of("d/s/80", slices, "", "TCP", lambda _key: nothing)
    assert [i for i in range(10) if after[i] is not before[i]] == [3]
    assert after[3].ready == (("10.0.1.3", 8080),)
    left_out = {"10.0.0.5": "why"}
    last = parts.of("d/s/80", slices, "", "TCP", lambda k: left_out if k == "d/s-5" else nothing)
    assert last[5].ready == ()
    named = parts.of("d/s/80", slices, "other", "TCP", lambda _key: nothing)
    assert not any(one.ready for one in named)


def test_many_endpoints_are_encoded_as_few_are() -> None:
    many = [(f"10.0.{i >> 8}.{i & 255}", 8080 + i % 2) for i in range(1200)]

    def sent(members: list[tuple[str, int]]) -> list[tuple[str, int]]:
        response = DeltaDiscoveryResponse.FromString(cluster("d/s/80", members).frame)
        found = Cluster()
        response.resources[0].resource.Unpack(found)
        assert len(found.load_assignment.endpoints) == 1
        at = [
            one.endpoint.address.socket_address
            for one in found.load_assignment.endpoints[0].lb_endpoints
        ]
        return [(one.address, one.port_value) for one in at]

    assert sent(many) == many
    assert sent(many[:3]) == many[:3]


def test_many_routes_are_encoded_as_few_are() -> None:
    def model(count: int) -> HostModel:
        routes = [
            Route(f"/p/{i}", i % 3 == 0, Pool(f"pool-{i}", "d/s/80" if i % 2 else None))
            for i in range(count)
        ]
        return HostModel("a.test", "", tuple(routes), "", False)

    def sent(count: int) -> list[bytes]:
        response = DeltaDiscoveryResponse.FromString(scope("vs", 80, model(count)).frame)
        found = ScopedRouteConfiguration()
        response.resources[0].resource.Unpack(found)
        (host,) = found.route_configuration.virtual_hosts
        assert host.HasField("retry_policy")
        return [one.SerializeToString(deterministic=True) for one in host.routes]

    few, many = sent(400), sent(800)
    assert many[:400] == few[:400]
    assert (len(few), len(many), few[-1]) == (401, 801, many[-1])

"""What is put together from encoded parts says the same as what is encoded as a whole."""

import gc
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import scoped_route_pb2
from envoy.service.discovery.v3 import discovery_pb2

from akocore.collector import left_alone
from akocore.engines.envoy import resources
from akocore.engines.envoy.resources import Encoded, cluster, scope
from akocore.model import HostModel, Pool, Route


def decoded(one: Encoded, into: Any) -> Any:
    [found] = discovery_pb2.DeltaDiscoveryResponse.FromString(one.frame).resources
    assert found.resource.Unpack(into)
    return into


@pytest.mark.parametrize("default", [False, True], ids=["no path for the rest", "one for the rest"])
def test_a_host_of_many_paths(monkeypatch: pytest.MonkeyPatch, default: bool) -> None:
    paths = [f"/p/{i}" for i in range(600)] + ([""] if default else [])
    routes = tuple(Route(path, False, Pool(f"pool{path}", "a/b/80")) for path in paths)
    model = HostModel("big.test", "", routes, "", False)
    found = decoded(scope("vs", 80, model), scoped_route_pb2.ScopedRouteConfiguration())
    monkeypatch.setattr(resources, "_MANY", 10_000)
    assert found == decoded(scope("vs", 80, model), scoped_route_pb2.ScopedRouteConfiguration())
    [virtual_host] = found.route_configuration.virtual_hosts
    assert len(virtual_host.routes) == 601


@pytest.mark.parametrize("proxy", ["", "v2"])
def test_a_service_of_many_endpoints(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    members = [(f"10.0.{i >> 8}.{i & 255}", 80) for i in range(600)]
    found = decoded(cluster("a/b/80", members, proxy=proxy), cluster_pb2.Cluster())
    monkeypatch.setattr(resources, "_MANY", 10_000)
    assert found == decoded(cluster("a/b/80", members, proxy=proxy), cluster_pb2.Cluster())
    [locality] = found.load_assignment.endpoints
    assert len(locality.lb_endpoints) == 600


def test_the_collector_is_left_alone_until_the_last_stretch_is_over() -> None:
    assert gc.isenabled()
    with left_alone():
        with left_alone():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()

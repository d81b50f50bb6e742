"""Objects beyond a limit: which part of them is served, and what they are told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from akocore import status, status_gateway, status_l4
from akocore.config import Config, Limits
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.gateway_objects import GATEWAY
from akocore.kube.objects import KINDS, Change, Secret, decode
from akocore.model import Refusal
from akocore.place.state import State
from akocore.reconcile import Reconciler
from akocore.translate.tls import Certificate, CertificateProblem, certificate
from e2e.test_tls import pair

LIMITS = Limits(
    hosts=3,
    paths=4,
    host_paths=5,
    listeners=3,
    ports=2,
    source_ranges=2,
    endpoints=3,
    certificate_bytes=1500,
    authorities_bytes=900,
)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Reconciler]:
    state = State(tmp_path)
    ads = AdsServer(tmp_path / "xds.sock", lambda _group: None)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    yield Reconciler(Config(limits=LIMITS), state, ads, now=lambda: now)
    state.close()


def obj(version: str, kind: str, name: str, created: int = 1, **fields: Any) -> Change:
    meta = {"name": name, "namespace": "d", "creationTimestamp": f"2025-01-0{created}T00:00:00Z"}
    body = {"metadata": {**meta, **fields.pop("metadata", {})}, **fields}
    made = decode(body, KINDS[version, kind])
    return Change(made.stored(), made.key, made)


def service(name: str = "s", ports: int = 1, **spec: Any) -> Change:
    listed = [{"port": 80 + i, "name": f"p{i}"} for i in range(ports)]
    return obj("v1", "Service", name, spec={"ports": listed, **spec})


def ingress(name: str, hosts: dict[str, list[str]], created: int = 1, **spec: Any) -> Change:
    backend = {"service": {"name": "s", "port": {"number": 80}}}
    rules = [
        {
            "host": host,
            "http": {
                "paths": [{"path": p, "pathType": "Prefix", "backend": backend} for p in paths]
            },
        }
        for host, paths in hosts.items()
    ]
    return obj("networking.k8s.io/v1", "Ingress", name, created, spec={"rules": rules, **spec})


def slice_(name: str, *addresses: str) -> Change:
    return obj(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        name,
        metadata={"labels": {"kubernetes.io/service-name": "s"}},
        addressType="IPv4",
        ports=[{"port": 8080, "name": "p0"}],
        endpoints=[{"addresses": [one]} for one in addresses],
    )


def told(found: list[Refusal] | None) -> list[tuple[str, str]]:
    return [(one.field, one.remedy) for one in found or () if one.reason == "TooLarge"]


def paths(at: Reconciler, host: str) -> list[str]:
    return sorted(route.path for route in at.hosts[host].model.routes)


def test_the_first_hosts_of_an_ingress_are_served(at: Reconciler) -> None:
    hosts = {f"{name}.test": ["/"] for name in "zyxwv"}
    at.apply([service(), ingress("big", hosts), ingress("small", {"other.test": ["/"]})])
    assert set(at.hosts) == {"z.test", "y.test", "x.test", "other.test"}
    assert told(status.ingress_refusals(at, "d/big")) == [
        ("spec.rules", "Its first 3 hosts are served, of 5. Make another Ingress of the rest.")
    ]
    assert not status.ingress_refusals(at, "d/small")
    at.apply([ingress("big", dict(list(hosts.items())[2:]))])
    assert set(at.hosts) == {"x.test", "w.test", "v.test", "other.test"}
    assert not status.ingress_refusals(at, "d/big")


def test_the_first_paths_of_an_ingress_are_served(at: Reconciler) -> None:
    at.apply([service(), ingress("big", {"a.test": ["/1", "/2", "/3"], "b.test": ["/4", "/5"]})])
    assert paths(at, "a.test") == ["/1", "/2", "/3"]
    assert paths(at, "b.test") == ["/4"]
    assert told(status.ingress_refusals(at, "d/big")) == [
        ("spec.rules", "Its first 4 paths are served, of 5. Make another Ingress of the rest.")
    ]


def test_the_first_entries_of_tls_count(at: Reconciler) -> None:
    tls = [{"hosts": [f"{i}.test"], "secretName": f"s{i}"} for i in range(4)]
    at.apply([service(), ingress("big", {f"{i}.test": ["/"] for i in range(3)}, tls=tls)])
    found = told(status.ingress_refusals(at, "d/big"))
    assert found == [
        ("spec.tls", "Its first 3 entries are served, of 4. Make another Ingress of the rest.")
    ]
    some = [{"hosts": [f"{i}.{n}.test" for i in range(3)], "secretName": "s"} for n in range(2)]
    at.apply([ingress("big", {"0.0.test": ["/"], "2.1.test": ["/"]}, tls=some)])
    found = told(status.ingress_refusals(at, "d/big"))
    assert [field for field, _ in found] == ["spec.tls"]
    assert at.hosts["0.0.test"].model.certificate == "d/s"
    assert not at.hosts["2.1.test"].model.certificate


def test_a_host_has_a_number_of_paths_and_the_older_ingress_has_them(at: Reconciler) -> None:
    younger = ingress("younger", {"a.test": ["/5", "/6", "/7"], "b.test": ["/"]}, created=2)
    older = ingress("older", {"a.test": ["/1", "/2", "/3", "/4"]}, created=1)
    at.apply([service(), younger, older])
    assert paths(at, "a.test") == ["/1", "/2", "/3", "/4", "/5"]
    assert paths(at, "b.test") == [""]
    assert not status.ingress_refusals(at, "d/older")
    (field, remedy), *rest = told(status.ingress_refusals(at, "d/younger"))
    assert (field, rest) == ("spec.rules", [])
    assert "5 paths already" in remedy
    assert "2 of this one are not served" in remedy


def test_endpoints_of_a_service_are_the_first_by_address_in_whatever_order(at: Reconciler) -> None:
    slices = [slice_("s-1", "10.0.0.9", "10.0.0.1"), slice_("s-2", "10.0.0.5", "10.0.0.3")]
    at.apply([service(), ingress("web", {"a.test": ["/"]})])
    for some in permutations([*slices, slice_("s-3", "10.0.0.7")]):
        for one in some:
            at.apply([one])
        assert at.realiser.members("d/s/80") == [(f"10.0.0.{i}", 8080) for i in (1, 3, 5)]
        (field, remedy), *rest = told(status.ingress_refusals(at, "d/web"))
        assert (field, rest) == ("spec.rules[0].http.paths[0].backend.service", [])
        assert remedy.startswith("Of the 5 endpoints of Service d/s the first 3, by address,")
        touched = at.apply([Change("EndpointSlice", "d/s-3", None)])
        assert "d/web" in touched
        at.apply([Change("EndpointSlice", "d/s-2", None)])
        assert not told(status.ingress_refusals(at, "d/web"))
        assert at.realiser.members("d/s/80") == [(f"10.0.0.{i}", 8080) for i in (1, 9)]
        at.apply([Change("EndpointSlice", "d/s-1", None)])


def test_the_first_ports_and_ranges_of_a_service_are_served(at: Reconciler) -> None:
    ranges = [f"10.{i}.0.0/16" for i in range(4)]
    spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}
    at.apply([service("lb", 3, **spec)])
    seen = at.l4.services["d/lb"]
    assert set(seen.ports) == {("TCP", 80), ("TCP", 81)}
    assert seen.ranges == ("10.0.0.0/16", "10.1.0.0/16")
    found = told(status_l4.service_refusals(at, "d/lb"))
    assert [(field, remedy.partition(".")[0]) for field, remedy in found] == [
        ("spec.ports", "Its first 2 ports are served, of 3"),
        ("spec.loadBalancerSourceRanges", "Its first 2 ranges are served, of 4"),
    ]


GATEWAY_API = "gateway.networking.k8s.io/v1"


def gateway_and_sets() -> list[Change]:
    def http(port: int) -> dict[str, Any]:
        return {"name": f"p{port}", "port": port, "protocol": "HTTP"}

    cls = decode(
        {
            "metadata": {"name": "ours"},
            "spec": {"controllerName": "ako.vmware.com/avi-lb"},
        },
        KINDS[GATEWAY_API, "GatewayClass"],
    )
    parent = {"name": "web", "kind": "Gateway", "group": "gateway.networking.k8s.io"}
    return [
        Change(cls.stored(), cls.key, cls),
        obj(
            GATEWAY_API,
            "Gateway",
            "web",
            spec={
                "gatewayClassName": "ours",
                "allowedListeners": {"namespaces": {"from": "All"}},
                "listeners": [http(80)],
            },
        ),
        obj(
            GATEWAY_API,
            "ListenerSet",
            "younger",
            3,
            spec={"parentRef": parent, "listeners": [http(84), http(85)]},
        ),
        obj(
            GATEWAY_API,
            "ListenerSet",
            "older",
            2,
            spec={"parentRef": parent, "listeners": [http(82)]},
        ),
    ]


def test_listeners_of_a_gateway_and_its_sets_are_counted_together(at: Reconciler) -> None:
    at.apply(gateway_and_sets())
    service_ = next(iter(at.placement.services.values()))
    assert service_.gateway is not None
    assert sorted(port for _, port in service_.gateway.ports) == [80, 82, 84]
    found = told(status_gateway.refusals(at, "ListenerSet", "d/younger"))
    assert [field for field, _ in found] == ["spec.listeners[1]"]
    assert not told(status_gateway.refusals(at, "ListenerSet", "d/older"))
    assert not told(status_gateway.refusals(at, GATEWAY, "d/web"))


def route(name: str, created: int, *found: str) -> Change:
    rules = [{"matches": [{"path": {"value": path}} for path in one.split()]} for one in found]
    spec = {"parentRefs": [{"name": "web"}], "hostnames": ["a.test"], "rules": rules}
    return obj(GATEWAY_API, "HTTPRoute", name, created, spec=spec)


def test_matches_of_a_route_and_of_a_host_are_counted(at: Reconciler) -> None:
    many = route("many", 1, "/1 /2 /3", "/4 /5", "/6")
    at.apply([*gateway_and_sets()[:2], route("younger", 2, "/7 /8", "/9"), many])
    state = next(iter(at.placement.services.values()))
    assert state.gateway is not None
    host = next(one for place, one in state.gateway.hosts.items() if place.host == "a.test")
    served = sorted(rule.match.path.value for rule in host.model.rules)
    assert served == ["/1", "/2", "/3", "/6", "/9"]
    found = told(status_gateway.refusals(at, "HTTPRoute", "d/many"))
    assert [field for field, _ in found] == ["spec.rules[1].matches"]
    found = told(status_gateway.refusals(at, "HTTPRoute", "d/younger"))
    assert [field for field, _ in found] == ["spec.rules[0].matches"]
    at.apply([Change("HTTPRoute", "d/many", None)])
    assert not told(status_gateway.refusals(at, "HTTPRoute", "d/younger"))


def secret(chain: bytes, key: bytes) -> Secret:
    body = {
        "metadata": {"name": "s", "namespace": "d"},
        "stringData": {"tls.crt": chain.decode(), "tls.key": key.decode()},
    }
    return decode(body, Secret)


def test_a_certificate_that_few_clients_take_is_refused() -> None:
    chain, key, _ = pair("a.test")
    now = datetime.now(UTC) + timedelta(days=1)
    most = len(chain) + len(key)
    assert isinstance(certificate(secret(chain, key), now, most), Certificate)
    found = certificate(secret(chain, key), now, most - 1)
    assert isinstance(found, CertificateProblem)
    assert (found.field, found.reason) == ("data[tls.crt]", "TooLarge")
    assert f"{most} bytes, at most {most - 1}" in found.remedy


def test_the_first_listeners_of_an_l4_gateway_are_served(at: Reconciler) -> None:
    labels = {"gateway-namespace": "d", "gateway-name": "l4"}
    selector = {"matchLabels": {f"ako.vmware.com/{k}": v for k, v in labels.items()}}
    routes = {"group": "v1", "kind": "Service", "selector": selector}
    listeners = [{"port": 80 + i, "protocol": "TCP", "routes": routes} for i in range(4)]
    spec = {"gatewayClassName": "ours", "listeners": listeners}
    at.apply([obj("networking.x-k8s.io/v1alpha1", "Gateway", "l4", spec=spec)])
    seen = at.l4.gateways["d/l4"]
    assert [port for _, port in seen.listeners] == [80, 81]
    assert [field for field, _ in told(list(seen.refusals))] == ["spec.listeners"]


def test_authorities_beyond_the_limit_are_refused(at: Reconciler) -> None:
    chain, _, _ = pair("ca.test")
    validation = {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]}
    refs = [{"group": "", "kind": "Service", "name": "s"}]
    spec = {"targetRefs": refs, "validation": {**validation, "hostname": "s.test"}}
    policy = obj(GATEWAY_API, "BackendTLSPolicy", "tls", spec=spec)
    for count in (1, 2):
        text = chain.decode() * count
        at.apply([service(), obj("v1", "ConfigMap", "ca", data={"ca.crt": text}), policy])
        found = status_gateway.refusals(at, "BackendTLSPolicy", "d/tls")
        said = [one.remedy for one in found or () if "at most 900" in one.remedy]
        assert len(said) == (len(text) > LIMITS.authorities_bytes)
        assert count == 1 or said

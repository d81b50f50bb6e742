"""Hosts, Services and Gateways whose virtual services AKO would call alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from akocore.config import Config, Defaults, ShardSize
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.api import ApiServer
from akocore.kube.mirrors import object_name
from akocore.kube.objects import KINDS, Change, VsVip, decode
from akocore.kube.placement import ClusterFacts
from akocore.place.state import State
from akocore.reconcile import Reconciler

VICTIM, OTHER, THIRD = "buy.test", "eu-buy.test", "prod-eu-buy.test"
ALIKE = "my-cluster--prod-eu-buy.test-L7-dedicated"


def change(body: dict[str, Any]) -> Change:
    struct = KINDS[body["apiVersion"], body["kind"]]
    obj = decode(body, struct)
    return Change(struct.stored(), obj.key, obj)


def network(name: str, net: str) -> Change:
    ranges = [{"begin": f"{net}.10", "end": f"{net}.99"}]
    spec = {"subnet": f"{net}.0/24", "vipRanges": ranges}
    return change(
        {"apiVersion": "akocore.io/v1alpha1", "kind": "Network"}
        | {"metadata": {"name": name}, "spec": spec}
    )


def setting(name: str, net: str) -> list[Change]:
    """An AviInfraSetting, DEDICATED, of a Network of its own, and its IngressClass."""
    spec = {"network": {"names": [f"net-{name}"]}, "l7Settings": {"shardSize": "DEDICATED"}}
    parameters = {"apiGroup": "ako.vmware.com", "kind": "AviInfraSetting", "name": name}
    return [
        network(f"net-{name}", net),
        change(
            {"apiVersion": "ako.vmware.com/v1alpha1", "kind": "AviInfraSetting"}
            | {"metadata": {"name": name}, "spec": spec}
        ),
        change(
            {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass"}
            | {"metadata": {"name": name}}
            | {"spec": {"controller": "ako.vmware.com/avi-lb", "parameters": parameters}}
        ),
    ]


def ingress(host: str, by: str, namespace: str, day: int = 1) -> Change:
    created = f"2026-01-{day:02}T00:00:00Z"
    meta = {"name": "web", "namespace": namespace, "creationTimestamp": created}
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    http = {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}
    return change(
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta}
        | {"spec": {"ingressClassName": by, "rules": [{"host": host, "http": http}]}}
    )


def balancer(key: str) -> Change:
    namespace, _, name = key.partition("/")
    return change(
        {"apiVersion": "v1", "kind": "Service"}
        | {"metadata": {"name": name, "namespace": namespace}}
        | {"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}
    )


def gateway(key: str) -> Change:
    namespace, _, name = key.partition("/")
    return change(
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway"}
        | {"metadata": {"name": name, "namespace": namespace}}
        | {
            "spec": {
                "gatewayClassName": "avi-lb",
                "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
            }
        }
    )


SETTINGS = [*setting("prod", "127.20.1"), *setting("prod-eu", "127.20.2")]
GATEWAY_CLASS = change(
    {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass"}
    | {"metadata": {"name": "avi-lb"}, "spec": {"controllerName": "ako.vmware.com/avi-lb"}}
)
INGRESSES = {
    VICTIM: ingress(VICTIM, "prod-eu", "shop", day=1),
    OTHER: ingress(OTHER, "prod", "evil", day=2),
    THIRD: ingress(THIRD, "avi-lb", "other", day=3),
}
OBJECTS = [
    *INGRESSES.values(),
    *(balancer(key) for key in ("a/b-c", "a-b/c")),
    *(gateway(key) for key in ("a/b-c", "a-b/c")),
]


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.begin()

    def begin(self) -> None:
        self.state = State(self.directory)
        self.at = reconciler(self.directory, self.state)

    def restart(self, *changes: Change) -> None:
        self.state.commit(self.state.take())
        self.state.close()
        self.begin()
        self.at.apply(changes)
        self.at.forget_absent()

    def places(self) -> dict[str, tuple[str, list[str]]]:
        """Key → name and addresses of every virtual service."""
        return {
            one.key: (one.name, [home.address for home in one.homes])
            for one in self.at.placement.services.values()
        }


def reconciler(directory: Path, facts: State | ClusterFacts) -> Reconciler:
    config = Config(defaults=Defaults(shard_size=ShardSize.DEDICATED))
    ads = AdsServer(directory / "xds.sock", lambda _group: None)
    now = datetime(2026, 6, 1, tzinfo=UTC)
    shared = facts if isinstance(facts, ClusterFacts) else None
    return Reconciler(config, facts, ads, now=lambda: now, shared=shared)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.state.close()


def test_a_host_whose_name_is_alike_moves_nobody(bench: Bench) -> None:
    bench.at.apply([*SETTINGS, INGRESSES[VICTIM]])
    before = bench.places()
    assert before == {f"Host/prod-eu/{VICTIM}": (ALIKE, ["127.20.2.10"])}
    scopes = bench.at.hosts[VICTIM].scopes
    bench.at.apply([INGRESSES[OTHER], INGRESSES[THIRD]])
    now = bench.places()
    assert now.items() > before.items()
    assert len({name for name, _ in now.values()}) == 3
    assert all(name.startswith(ALIKE) for name, _ in now.values())
    assert now[f"Host/prod/{OTHER}"][1] == ["127.20.1.10"]
    assert bench.at.hosts[VICTIM].scopes == scopes
    assert not {*bench.at.hosts[OTHER].scopes} & {*scopes}
    assert not bench.at.hosts[VICTIM].old


def test_of_hosts_that_come_together_the_oldest_has_the_plain_name(bench: Bench) -> None:
    bench.at.apply([*SETTINGS, *reversed(INGRESSES.values())])
    assert bench.at.hosts[VICTIM].vs == ALIKE


@pytest.mark.parametrize("seed", range(20))
def test_every_virtual_service_is_where_it_was_after_a_restart_in_any_order(
    bench: Bench, seed: int
) -> None:
    order = random.Random(seed)
    come = order.sample(OBJECTS, len(OBJECTS))
    bench.at.apply([*SETTINGS, GATEWAY_CLASS])
    before: dict[str, tuple[str, list[str]]] = {}
    for one in come:
        bench.at.apply([one])
        now = bench.places()
        assert now.items() >= before.items()
        assert len(now) == len(before) + 1
        before = now
    bench.restart(*SETTINGS, GATEWAY_CLASS, *order.sample(OBJECTS, len(OBJECTS)))
    assert bench.places() == before
    gone = order.choice(come)
    bench.at.apply([Change(gone.kind, gone.key, None)])
    left = bench.places()
    assert len(left) == len(before) - 1
    assert before.items() > left.items()
    bench.restart(*SETTINGS, GATEWAY_CLASS, *(one for one in OBJECTS if one is not gone))
    assert bench.places() == left


def test_mirrors_of_names_that_differ_have_names_that_differ() -> None:
    names = ["my-cluster--Shared-L7-0", "my-cluster--shared-l7-0", ALIKE, ALIKE.lower()]
    names += ["ako-gw-my-cluster--a-b-EVH", "ako-gw-my-cluster--a-b-evh"]
    assert len({object_name(name) for name in names}) == len(names)
    assert object_name("my-cluster--Shared-L7-0") == "my-cluster--shared-l7-0"


# ── replicas ────────────────────────────────────────────────────────────────────────────────


def vs_vip(address: str, network: str, name: str, key: str) -> Change:
    """What a leader has written for an address; ``key`` "": as leaders of before did."""
    annotations = {"annotations": {"akocore.io/virtual-service-of": key}} if key else {}
    spec = {"address": address, "network": network, "virtualService": name}
    meta = {"name": address, "uid": address, **annotations}
    return Change("VsVip", address, decode({"metadata": meta, "spec": spec}, VsVip))


@pytest.fixture
def follower(tmp_path: Path) -> Reconciler:
    """A replica that doesn't lead; it hears of the API server only what a test tells it."""
    at = reconciler(tmp_path, ClusterFacts(cast(ApiServer, None), "x", lambda: False))
    at.placement.decides = False
    return at


def shown(at: Reconciler) -> dict[str, tuple[str, list[str]]]:
    services = at.placement.services
    return {
        host: (placed.vs, [home.address for home in services[placed.vs].homes])
        for host, placed in at.hosts.items()
    }


@pytest.mark.parametrize("when", ["before", "between", "after"])
@pytest.mark.parametrize("said", [True, False], ids=["at once", "later, of the first"])
def test_a_follower_calls_everybody_as_the_leader_does_whatever_it_hears_first(
    follower: Reconciler, when: str, said: bool
) -> None:
    """The other came first at the leader, though its Ingress is the younger one."""
    suffixed = f"{ALIKE}-a9b0cb38"
    whole = vs_vip("127.20.1.10", "net-prod", ALIKE, f"Host/prod/{OTHER}")
    words = [
        whole if said else vs_vip("127.20.1.10", "net-prod", ALIKE, ""),
        vs_vip("127.20.2.10", "net-prod-eu", suffixed, f"Host/prod-eu/{VICTIM}"),
    ]
    hosts = [INGRESSES[VICTIM], INGRESSES[OTHER]]
    follower.apply(SETTINGS)
    if when == "before":
        follower.apply(words)
        follower.apply(hosts)
    elif when == "between":
        follower.apply([hosts[0], *words])
        follower.apply([hosts[1]])
    else:
        follower.apply(hosts)
        for word in words:
            follower.apply([word])
    assert shown(follower)[VICTIM] == (suffixed, ["127.20.2.10"])
    if not said:
        follower.apply([whole])
    assert shown(follower) == {
        VICTIM: (suffixed, ["127.20.2.10"]),
        OTHER: (ALIKE, ["127.20.1.10"]),
    }
    assert follower.hosts[OTHER].scopes
    assert not {*follower.hosts[OTHER].scopes} & {*follower.hosts[VICTIM].scopes}


def test_what_a_leader_of_before_has_written_is_kept(follower: Reconciler) -> None:
    follower.apply([*SETTINGS, vs_vip("127.20.2.10", "net-prod-eu", ALIKE, "")])
    follower.apply([INGRESSES[VICTIM]])
    assert shown(follower) == {VICTIM: (ALIKE, ["127.20.2.10"])}
    follower.lead(True)
    assert shown(follower) == {VICTIM: (ALIKE, ["127.20.2.10"])}
    follower.apply([INGRESSES[OTHER]])
    assert shown(follower)[VICTIM] == (ALIKE, ["127.20.2.10"])
    assert shown(follower)[OTHER][1] == ["127.20.1.10"]

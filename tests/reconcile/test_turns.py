"""Namespaces take turns: in what order, and that it makes no difference in the end."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from akocore import status
from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.resources import CDS, SRDS
from akocore.kube.objects import KINDS, Batch, Change, decode
from akocore.observe.watch import Watch
from akocore.place.state import State
from akocore.reconcile import Reconciler
from akocore.turn_loop import TurnLoop
from akocore.turns import Turns

Manifest = dict[str, Any]
CONFIG = msgspec.convert(
    {
        "networks": {
            "default": {
                "subnet": "127.10.15.0/24",
                "vipRanges": [{"begin": "127.10.15.161", "end": "127.10.15.190"}],
            }
        }
    },
    Config,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def change(kind: str, key: str, spec: Manifest | None, **more: Any) -> Change:
    version = {"Ingress": "networking.k8s.io/v1", "EndpointSlice": "discovery.k8s.io/v1"}
    struct = KINDS[version.get(kind, "v1"), kind]
    if spec is None:
        return Change(kind, key, None)
    namespace, _, name = key.rpartition("/")
    age = sum(map(ord, f"{kind}{key}")) % 60
    meta = {
        "name": name,
        "namespace": namespace,
        "creationTimestamp": f"2026-01-01T00:00:{age:02d}Z",
        **more,
    }
    return Change(kind, key, decode({"metadata": meta, **spec}, struct))


def ingress(key: str, hosts: dict[str, list[str]], service: str = "s", tls: str = "") -> Change:
    backend = {"service": {"name": service, "port": {"number": 80}}}
    rules = [
        {
            "host": host,
            "http": {"paths": [{"path": p, "pathType": "Exact", "backend": backend} for p in ps]},
        }
        for host, ps in hosts.items()
    ]
    named = [{"hosts": list(hosts), "secretName": tls}] if tls else []
    return change("Ingress", key, {"spec": {"rules": rules, "tls": named}})


def service(key: str, port: int = 80) -> Change:
    return change("Service", key, {"spec": {"ports": [{"port": port}]}})


def slice_(key: str, addresses: Sequence[str]) -> Change:
    labels = {"kubernetes.io/service-name": "s"}
    body = {
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [one]} for one in addresses],
    }
    return change("EndpointSlice", key, body, labels=labels)


def keys(turns: Turns) -> list[str] | None:
    turn = turns.take()
    return None if turn is None else [one.key for one in turn.changes]


# ── whose turn ──────────────────────────────────────────────────────────────────────────────


def test_a_namespace_that_has_much_waits_for_one_that_has_little() -> None:
    turns = Turns(Clock(), small=2)
    for i in range(6):
        turns.add([service(f"much/s{i}")], 0.0)
    turns.add([service("little/s")], 0.0)
    assert keys(turns) == ["much/s0", "little/s"]
    turns.add([service("late/s")], 0.0)
    assert keys(turns) == ["much/s1", "late/s"]
    assert [keys(turns) for _ in range(5)] == [
        *(["much/s2"], ["much/s3"], ["much/s4"], ["much/s5"]),
        None,
    ]


def test_what_came_together_goes_together() -> None:
    turns = Turns(Clock(), small=10)
    turns.add([service("a/s"), ingress("a/i", {"a.test": ["/"]}), service("b/s")], 0.0)
    assert keys(turns) == ["a/s", "a/i", "b/s"]


def test_of_an_object_only_the_newest_state_waits_and_keeps_its_batch() -> None:
    turns = Turns(Clock())
    turns.add([service("a/s", 80)], 1.0)
    turns.add([service("b/s")], 2.0)
    turns.add([service("a/s", 81)], 3.0)
    assert (len(turns), turns.complete) == (2, 0)
    turn = turns.take()
    assert turn is not None
    assert [(one.key, one.obj.spec.ports[0].port) for one in turn.changes] == [  # type: ignore[union-attr]
        ("b/s", 80),
        ("a/s", 81),
    ]
    assert turn.at == 1.0
    turns.done(*turn.numbers)
    assert turns.complete == 3


def test_a_removal_waits_for_what_came_with_it_elsewhere() -> None:
    turns = Turns(Clock(), small=1)
    hosts = {f"h{i}.test": ["/"] for i in range(3)}
    turns.add([change("Ingress", "here/i", None), ingress("there/i", hosts)], 0.0)
    turns.add([change("Ingress", "other/i", None)], 0.0)
    assert keys(turns) == ["other/i"]
    assert keys(turns) is None
    assert turns.whose(set()) == "there"
    assert turns.take_big("there") is not None
    assert keys(turns) == ["here/i"]


def test_who_spent_much_rests_and_others_have_big_turns_meanwhile() -> None:
    clock = Clock()
    turns = Turns(clock, small=1)
    many = {f"h{i}.test": ["/"] for i in range(3)}
    turns.add([ingress("a/i", many), ingress("b/i", many)], 0.0)
    assert turns.whose(set()) == "a"
    assert turns.take_big("a") is not None
    turns.spent("a", 1.0)
    turns.add([ingress("a/i", many)], 0.0)
    assert turns.whose(set()) is None  # what one did at a time rests all a little
    clock.now += 0.25
    assert turns.whose(set()) == "b"
    turns.take_big("b")
    turns.spent("b", 0.001)
    assert turns.whose({"a"}) is None
    rest = turns.rest_s({"a"})
    assert rest is not None
    clock.now += rest + 0.001
    assert turns.whose({"a"}) == "a"


# ── what comes of it ────────────────────────────────────────────────────────────────────────


def boot(scratch: Path) -> Reconciler:
    ads = AdsServer(scratch / "xds.sock", lambda _group: None)
    return Reconciler(CONFIG, State(scratch), ads, now=lambda: datetime.now(UTC))


class Loop:
    """A loop over a controller without engines, and the clock that it goes by."""

    def __init__(self, scratch: Path, small: int) -> None:
        self.at = boot(scratch)
        self.clock = Clock()
        self.told: list[set[str]] = []
        self.turns = TurnLoop(
            self.at,
            Watch(),
            lambda _changes, touched: self.told.append(touched),
            clock=self.clock,
            worked=self.clock,
            small=small,
        )

    def add(self, *changes: Change) -> None:
        self.turns.add(Batch(tuple(changes), {}, self.clock()))

    def settle(self) -> int:
        """Turn after turn, as time goes by; how many it took."""
        count = 0
        while self.turns.waiting:
            self.clock.now += 0.002
            count += self.turns.step()
        return count


def test_a_small_edit_is_served_between_two_slices_of_a_big_one(tmp_path: Path) -> None:
    loop = Loop(tmp_path, small=5)
    loop.add(service("big/s"), service("small/s"))
    loop.settle()
    loop.add(ingress("big/i", {f"h{i}.test": ["/"] for i in range(200)}))
    while "h5.test" not in loop.at.hosts:
        loop.clock.now += 0.002
        loop.turns.step()
    served = len(loop.at.hosts)
    assert served < 200
    assert not any("big/i" in told for told in loop.told)  # not before all of it is served
    loop.add(ingress("small/i", {"small.test": ["/"]}))
    assert loop.turns.step()
    assert "small.test" in loop.at.hosts
    assert len(loop.at.hosts) == served + 1
    loop.settle()
    assert len(loop.at.hosts) == 201
    assert {"big/i"} in loop.told


def test_who_edits_without_end_is_served_all_the_same(tmp_path: Path) -> None:
    loop = Loop(tmp_path, small=5)
    loop.add(service("big/s"))
    served = set()
    for version in range(400):
        loop.add(ingress("big/i", {f"h{i}.test": [f"/v{version}"] for i in range(50)}))
        loop.clock.now += 0.02
        loop.turns.step()
        if "h49.test" in loop.at.hosts:
            served.add(loop.at.hosts["h49.test"].model.routes[0].path)
    assert len(served) > 3
    loop.settle()
    assert {placed.model.routes[0].path for placed in loop.at.hosts.values()} == {"/v399"}


def test_an_edit_of_one_path_costs_its_own_host(tmp_path: Path) -> None:
    loop = Loop(tmp_path, small=5)
    hosts = {f"h{i}.test": ["/"] for i in range(300)}
    loop.add(service("big/s"), ingress("big/i", hosts))
    loop.settle()
    before = loop.at.realiser.realised
    loop.add(ingress("big/i", hosts | {"h7.test": ["/new"]}))
    loop.settle()
    assert loop.at.realiser.realised == before + 1
    assert [route.path for route in loop.at.hosts["h7.test"].model.routes] == ["/new"]


NAMESPACES = st.sampled_from(["d", "e", "f"])
HOSTS = st.sampled_from(["", "a.test", "b.test", "*.test", "c.test", "d.test"])
PATHS = st.lists(st.sampled_from(["/", "/a", "/b"]), min_size=0, max_size=2, unique=True)


@st.composite
def edits(draw: st.DrawFn) -> Change:
    namespace = draw(NAMESPACES)
    gone = draw(st.integers(0, 4)) == 0
    match draw(st.sampled_from(["ingress", "ingress", "ingress", "service", "slice", "class"])):
        case "ingress":
            key = f"{namespace}/{draw(st.sampled_from('ij'))}"
            hosts = draw(st.dictionaries(HOSTS, PATHS, max_size=4))
            tls = draw(st.sampled_from(["", "", "c"]))
            made = ingress(key, hosts, draw(st.sampled_from(["s", "s", "t"])), tls)
        case "service":
            made = service(f"{namespace}/s", draw(st.sampled_from([80, 80, 81])))
        case "slice":
            addresses = draw(st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2"]), unique=True))
            made = slice_(f"{namespace}/s-{draw(st.sampled_from('12'))}", addresses)
        case _:
            note = {"aviinfrasetting.ako.vmware.com/name": draw(st.sampled_from(["gone", ""]))}
            body: Manifest = {}
            made = change("Namespace", namespace, body, annotations=note)
    return Change(made.kind, made.key, None) if gone else made


def world(at: Reconciler) -> dict[str, Any]:
    """What was made of the objects; who got which address is a matter of history."""
    return {
        "hosts": {host: placed.model for host, placed in at.hosts.items()},
        "said": {
            key: sorted((r.field, r.reason, r.remedy) for r in status.ingress_refusals(at, key))
            for key in at.store.all("Ingress")
        },
        "published": {
            group: {
                CDS: catalog.resources[CDS],
                SRDS: {n: one.frame for n, one in catalog.resources[SRDS].items()},
            }
            for group, catalog in at.ads.catalogs.items()
        },
    }


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(edits(), max_size=6), min_size=1, max_size=8),
    st.integers(1, 6),
    st.data(),
)
def test_whosever_turn_it_is_it_ends_as_a_clean_boot_does(
    batches: list[list[Change]], small: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(Path(scratch) / "lived", small)
        last: dict[tuple[str, str], Change] = {}
        for batch in batches:
            newest = {(one.kind, one.key): one for one in batch}
            loop.add(*newest.values())
            last |= newest
            for _ in range(data.draw(st.integers(0, 3))):
                loop.clock.now += data.draw(st.sampled_from([0.0, 0.01, 1.0]))
                loop.turns.step()
        loop.settle()
        assert loop.turns.turns.complete == len(batches)
        booted = boot(Path(scratch) / "booted")
        for fact, value in loop.at.state.room("accepted").items():
            booted.state.put("accepted", fact, value)  # who joined whose host, and when
        booted.apply([one for one in last.values() if one.obj is not None])
        lived, clean = world(loop.at), world(booted)
        for found in (lived["published"], clean["published"]):
            for group in [g for g, one in found.items() if not any(one.values())]:
                del found[group]
        assert lived["hosts"] == clean["hosts"]
        assert lived["said"] == clean["said"]
        assert lived["published"] == clean["published"]

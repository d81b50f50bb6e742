"""Virtual services whose AKO names are alike: each has a name and an address, for good."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from akocore.config import ShardSize
from akocore.kube.objects import AddressRange, NetworkSpec
from akocore.place.spellings import spelling_of, spellings
from akocore.place.state import State
from akocore.place.virtual_services import DEDICATED_SHARD, Placement, VirtualService
from akocore.translate.classes import Infra, Listener
from akocore.translate.names import Names

NAMES = Names("cluster")
LISTENERS = (Listener(80, False, False),)


class Wanted(Struct, frozen=True, order=True):
    """Something that has a virtual service: a host of a setting, or an object of a namespace."""

    kind: str  # Host, Service or Gateway
    first: str
    second: str

    @property
    def plain(self) -> str:
        if self.kind == "Host":
            return NAMES.dedicated(self.first, self.second)
        return (NAMES.l4 if self.kind == "Service" else NAMES.gateway)(self.first, self.second)

    def made(self, placement: Placement) -> VirtualService:
        """Its virtual service; made, and settled, when it has none."""
        network = "blue" if self.first < "b" else "red"
        infra = Infra(self.first, "group", network, ShardSize.DEDICATED, LISTENERS)
        if self.kind == "Host":
            service = placement.service_of(infra, self.second, DEDICATED_SHARD)
        else:
            key = f"{self.kind}/{self.first}/{self.second}"
            service = placement.l4_service(placement.named(key, self.plain), infra, key)
        placement.settle(service)
        return service


# Every way to put the dash: all of a kind come to the same name.
ALIKE = [
    Wanted(kind, *pair)
    for kind, pairs in {
        "Host": [("", "a-b-c.test"), ("a", "b-c.test"), ("a-b", "c.test")],
        "Service": [("a", "b-c"), ("a-b", "c"), ("b", "d")],
        "Gateway": [("a", "b-c"), ("a-b", "c")],
    }.items()
    for pair in pairs
]


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.begin()

    def begin(self) -> None:
        self.state = State(self.directory)
        self.placement = Placement(NAMES, self.state)
        self.placement.set_networks(
            {
                name: NetworkSpec(
                    subnet=f"{net}.0/24",
                    vip_ranges=(AddressRange(begin=f"{net}.1", end=f"{net}.99"),),
                )
                for name, net in (("blue", "10.0.0"), ("red", "10.0.1"))
            }
        )

    def restart(self) -> None:
        self.state.commit(self.state.take())
        self.state.close()
        self.begin()


def place(service: VirtualService) -> tuple[str, str]:
    return service.name, service.homes[-1].address


STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "go", "restart"]), st.sampled_from(ALIKE), st.randoms()),
    max_size=30,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_nobodys_name_or_address_changes_whoever_comes_or_goes_and_over_restarts(
    steps: list[tuple[str, Wanted, object]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        had: dict[Wanted, tuple[str, str]] = {}
        for step, one, random in steps:
            if step == "come":
                now = place(one.made(bench.placement))
                assert had.setdefault(one, now) == now
            elif step == "go" and had.pop(one, None) is not None:
                bench.placement.retire(one.made(bench.placement))
            elif step == "restart":
                bench.restart()
                order = sorted({*had, one})  # a newcomer may be seen first
                random.shuffle(order)  # type: ignore[attr-defined]
                for known in order:
                    now = place(known.made(bench.placement))
                    assert had.setdefault(known, now) == now
                bench.placement.forget_absent(())
            names, addresses = {n for n, _ in had.values()}, {a for _, a in had.values()}
            assert len(names) == len(addresses) == len(had)
            assert all(name.startswith(one.plain) for one, (name, _) in had.items())
            services = bench.placement.services
            assert {n: s.homes[-1].address for n, s in services.items()} == dict(had.values())
        bench.state.close()


def test_who_comes_first_has_akos_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for one in ALIKE:
        if one.first in ("", "a"):
            service = one.made(bench.placement)
            assert (service.name == one.plain) == (one != Wanted("Host", "a", "b-c.test"))
    bench.state.close()


def test_a_placement_of_before_keys_keeps_every_address(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    before = {one: place(one.made(bench.placement)) for one in ALIKE[1::3]}
    for name in list(bench.state.room("owner")):
        bench.state.drop("owner", name)  # as it was written before
    bench.restart()
    assert {one: place(one.made(bench.placement)) for one in before} == before
    for one in ALIKE:
        one.made(bench.placement)
    bench.restart()
    assert {one: place(one.made(bench.placement)) for one in before} == before
    bench.state.close()


def test_names_that_are_in_the_way_of_a_suffix_only_make_it_longer(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    mine = Wanted("Service", "a", "b-c")
    key = "Service/a/b-c"
    ways = []
    for name in spellings(mine.plain, key):
        ways.append(Wanted("Service", "a", name.removeprefix("cluster--a-")))
        if len(ways) == 5:
            break
    Wanted("Service", "a-b", "c").made(bench.placement)
    for one in ways[1:]:
        one.made(bench.placement)
    had = place(mine.made(bench.placement))
    assert had[0] not in {one.plain for one in ways}
    bench.restart()
    for one in [*ways[1:], Wanted("Service", "a-b", "c")]:
        one.made(bench.placement)
    assert place(mine.made(bench.placement)) == had
    bench.state.close()


@pytest.mark.parametrize("number", range(3))
def test_a_spelling_is_read_back_by_whose_it_is_alone(number: int) -> None:
    for at, name in enumerate(spellings("cluster--a-b-c", "Service/a/b-c")):
        if at == number:
            assert spelling_of(name, "Service/a/b-c") == "cluster--a-b-c"
            assert spelling_of(name, "Service/a-b/c") == name
            return

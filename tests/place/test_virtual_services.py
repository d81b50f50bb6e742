"""Where hosts are served: sticky over restarts, first come lowest free, make before break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from akocore.config import ShardSize
from akocore.kube.objects import AddressRange, NetworkSpec
from akocore.place.state import State
from akocore.place.virtual_services import DEDICATED_SHARD, Home, Placement, VirtualService
from akocore.translate.classes import Infra, Listener
from akocore.translate.names import Names
from reference.shard import shard_hosts as by_the_book

HOSTS = [f"hello{i}.avi.iberia.local" for i in range(1, 21)]
LISTENERS = (Listener(80, False, False), Listener(443, True, True))


def infra(
    setting: str = "",
    size: ShardSize = ShardSize.LARGE,
    *,
    network: str = "blue",
    group: str = "Default-Group",
) -> Infra:
    return Infra(setting, group, network, size, LISTENERS)


def addresses(first: int, last: int, net: str = "10.0.0") -> NetworkSpec:
    return NetworkSpec(
        subnet=f"{net}.0/24",
        vip_ranges=(AddressRange(begin=f"{net}.{first}", end=f"{net}.{last}"),),
    )


class Bench:
    """One state directory; `restart` is a process that begins anew on it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.networks: dict[str, NetworkSpec] = {"blue": addresses(1, 9)}
        self._begin()

    def _begin(self) -> None:
        self.state = State(self._directory)
        self.placement = Placement(Names("cluster"), self.state)
        self.placement.set_networks(self.networks)

    def restart(self) -> Placement:
        self.state.commit(self.state.take())
        self.state.close()
        self._begin()
        return self.placement

    def service(self, number: int, by: Infra | None = None) -> VirtualService:
        """The virtual service of a shard."""
        return self.placement.service_of(by or infra(), "a.test", number)

    def settled(self, number: int, by: Infra | None = None) -> str:
        """The address of a shard's virtual service, settled if it was not."""
        service = self.service(number, by)
        self.placement.settle(service)
        return service.homes[-1].address


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.state.close()


# ── shards ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "size, buckets",
    [
        (
            ShardSize.LARGE,
            [
                [6, 13],
                [7, 12],
                [4, 11, 19],
                [5, 10, 18],
                [2, 17],
                [3, 16],
                [8, 15, 20],
                [1, 9, 14],
            ],
        ),
        (
            ShardSize.MEDIUM,
            [[2, 6, 13, 17], [3, 7, 12, 16], [4, 8, 11, 15, 19, 20], [1, 5, 9, 10, 14, 18]],
        ),
        (ShardSize.SMALL, [list(range(1, 21))]),
    ],
)
def test_hosts_are_sharded_as_ako_does(
    bench: Bench, size: ShardSize, buckets: list[list[int]]
) -> None:
    shards = bench.placement.shards(infra(size=size), HOSTS)
    for shard, numbers in enumerate(buckets):
        assert [i for i, s in enumerate(shards, 1) if s == shard] == numbers


def test_dedicated_hosts_have_no_shard_and_nothing_is_remembered(bench: Bench) -> None:
    by = infra(size=ShardSize.DEDICATED)
    assert bench.placement.shards(by, HOSTS) == [DEDICATED_SHARD] * 20
    assert not bench.state.dirty


def test_the_host_of_any_is_sharded_as_a_star(bench: Bench) -> None:
    shards = bench.placement.shards(infra(), ["", "*.a.test"])
    assert shards == list(by_the_book(["*", "*.a.test"], 8))


def test_a_remembered_shard_goes_before_the_function(bench: Bench) -> None:
    bench.placement.shards(infra(), ["foo.com"])
    bench.state.put("shard", "/foo.com", "LARGE 5")
    assert bench.restart().shards(infra(), ["foo.com"]) == [5]


def test_the_same_hosts_give_no_new_facts_after_a_restart(bench: Bench) -> None:
    first = bench.placement.shards(infra("gold"), HOSTS)
    again = bench.restart()
    assert again.shards(infra("gold"), HOSTS[::-1]) == first[::-1]
    assert not bench.state.dirty


def test_another_shard_size_shards_anew_by_the_function(bench: Bench) -> None:
    bench.placement.shards(infra(), HOSTS)
    for host in HOSTS:
        bench.state.put("shard", f"/{host}", "LARGE 6")
    for size in (ShardSize.MEDIUM, ShardSize.SMALL, ShardSize.LARGE):
        shards = bench.placement.shards(infra(size=size), HOSTS)
        assert shards == list(by_the_book(HOSTS, size.shards))


def test_settings_remember_their_hosts_apart(bench: Bench) -> None:
    bench.state.put("shard", "gold/foo.com", "LARGE 5")
    assert bench.placement.shards(infra("gold"), ["foo.com"]) == [5]
    assert bench.placement.shards(infra(), ["foo.com"]) == [0]


def test_a_forgotten_host_is_sharded_by_the_function(bench: Bench) -> None:
    bench.state.put("shard", "/foo.com", "LARGE 5")
    bench.placement.forget_host("", "foo.com")
    assert bench.placement.shards(infra(), ["foo.com"]) == [0]


# ── virtual services ────────────────────────────────────────────────────────────────────────


def test_hosts_of_a_shard_share_a_virtual_service(bench: Bench) -> None:
    by = infra("gold")
    one = bench.placement.service_of(by, "a.test", 3)
    assert bench.placement.service_of(by, "b.test", 3) is one
    assert one.name == "cluster--Shared-L7-gold-3"
    assert (one.homes, one.shown, one.infra, one.shard) == ([], None, by, 3)


def test_a_dedicated_host_has_a_virtual_service_of_its_own(bench: Bench) -> None:
    by = infra(size=ShardSize.DEDICATED)
    names = [bench.placement.service_of(by, h, DEDICATED_SHARD).name for h in ("a.test", "")]
    assert names == ["cluster--a.test-L7-dedicated", "cluster--any-host-L7-dedicated"]


# ── addresses ───────────────────────────────────────────────────────────────────────────────


def test_the_first_virtual_service_has_the_lowest_address(bench: Bench) -> None:
    assert [bench.settled(n) for n in (7, 0, 3)] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_settling_again_changes_nothing(bench: Bench) -> None:
    service = bench.service(0)
    home = bench.placement.settle(service)
    assert home == Home("Default-Group", "blue", "10.0.0.1")
    assert bench.placement.settle(service) is None
    assert service.homes == [home]
    assert service.shown == home


def test_addresses_are_the_same_after_a_restart_in_another_order(bench: Bench) -> None:
    before = {n: bench.settled(n) for n in (5, 1, 3)}
    bench.restart()
    assert {n: bench.settled(n) for n in (2, 1, 3, 5)} == {**before, 2: "10.0.0.4"}


def test_a_retired_service_gives_its_address_back_for_good(bench: Bench) -> None:
    for n in range(3):
        bench.settled(n)
    service = bench.service(1)
    assert bench.placement.retire(service) == [Home("Default-Group", "blue", "10.0.0.2")]
    assert service.name not in bench.placement.services
    assert service.homes == []
    bench.restart()
    assert bench.settled(7) == "10.0.0.2"


def test_a_retired_service_that_returns_is_a_new_one(bench: Bench) -> None:
    old = bench.service(0)
    bench.placement.settle(old)
    bench.placement.retire(old)
    assert bench.service(0) is not old


def test_without_an_address_a_service_waits_and_names_the_network(bench: Bench) -> None:
    bench.placement.set_networks({"blue": addresses(1, 1)})
    first, late = bench.service(0), bench.service(1)
    bench.placement.settle(first)
    assert bench.placement.settle(late) is None
    assert late.exhausted == "blue"
    assert late.homes == []
    assert bench.placement.waiting == {late.name}
    bench.placement.retire(first)
    assert bench.placement.settle(late) == Home("Default-Group", "blue", "10.0.0.1")
    assert late.exhausted == ""
    assert bench.placement.waiting == set()


def test_a_service_that_waits_and_is_retired_waits_no_more(bench: Bench) -> None:
    bench.placement.set_networks({})
    service = bench.service(0)
    assert bench.placement.settle(service) is None
    assert bench.placement.retire(service) == []
    assert bench.placement.waiting == set()


def test_a_wider_network_helps_who_waits_and_moves_nobody(bench: Bench) -> None:
    bench.placement.set_networks({"blue": addresses(5, 5)})
    bench.settled(0)
    bench.placement.settle(bench.service(1))
    assert bench.placement.set_networks({"blue": addresses(1, 9)}) == {"blue"}
    assert bench.settled(0) == "10.0.0.5"
    assert bench.settled(1) == "10.0.0.1"


def test_the_same_networks_are_no_change(bench: Bench) -> None:
    assert bench.placement.set_networks({"blue": addresses(1, 9)}) == set()
    assert bench.placement.set_networks({"red": addresses(1, 9, "10.1.0")}) == {"blue", "red"}


# ── moves ───────────────────────────────────────────────────────────────────────────────────


def test_on_another_network_the_new_home_comes_before_the_old_one_goes(bench: Bench) -> None:
    bench.placement.set_networks({"blue": addresses(1, 9), "red": addresses(1, 9, "10.1.0")})
    service = bench.service(0)
    old = bench.placement.settle(service)
    assert old is not None
    service.infra = infra(network="red")
    new = bench.placement.settle(service)
    assert new == Home("Default-Group", "red", "10.1.0.1")
    assert service.homes == [old, new]
    assert service.shown == old, "status names what every engine has"
    assert bench.settled(1) == "10.0.0.2", "the old address is not another's yet"
    service.settled = new.address
    assert service.shown == new
    bench.placement.leave(service, old)
    assert service.homes == [new]
    assert bench.settled(2) == "10.0.0.1"


def test_on_another_group_the_address_stays(bench: Bench) -> None:
    service = bench.service(0)
    old = bench.placement.settle(service)
    assert old is not None
    service.infra = infra(group="fast")
    new = bench.placement.settle(service)
    assert new == Home("fast", "blue", "10.0.0.1")
    bench.placement.leave(service, old)
    assert service.homes == [new]
    assert bench.settled(1) == "10.0.0.2", "the address left with the old group is still in use"


def test_who_moves_back_before_the_move_is_over_is_where_it_was(bench: Bench) -> None:
    bench.placement.set_networks({"blue": addresses(1, 9), "red": addresses(1, 9, "10.1.0")})
    service = bench.service(0)
    old = bench.placement.settle(service)
    service.infra = infra(network="red")
    new = bench.placement.settle(service)
    assert old is not None
    assert new is not None
    service.infra = infra()
    assert bench.placement.settle(service) == old
    assert service.homes == [new, old]
    bench.placement.leave(service, new)
    bench.restart()
    assert bench.settled(0) == old.address


def test_without_room_on_the_other_network_the_old_home_serves_on(bench: Bench) -> None:
    bench.placement.set_networks({"blue": addresses(1, 9), "red": addresses(1, 1, "10.1.0")})
    bench.settled(1, infra("gold", network="red"))
    service = bench.service(0)
    old = bench.placement.settle(service)
    service.infra = infra(network="red")
    assert bench.placement.settle(service) is None
    assert service.exhausted == "red"
    assert service.homes == [old]


def test_an_address_that_the_network_loses_is_changed_for_one_it_has(bench: Bench) -> None:
    service = bench.service(0)
    old = bench.placement.settle(service)
    assert old is not None
    bench.placement.set_networks({"blue": addresses(20, 29)})
    new = bench.placement.settle(service)
    assert new == Home("Default-Group", "blue", "10.0.0.20")
    assert service.homes == [old, new]
    bench.placement.leave(service, old)
    bench.networks = {"blue": addresses(20, 29)}
    bench.restart()
    assert bench.settled(0) == "10.0.0.20"


def test_an_address_that_still_serves_is_nobody_elses_though_its_network_returns(
    bench: Bench,
) -> None:
    service = bench.service(0)
    old = bench.placement.settle(service)
    assert old is not None
    bench.placement.set_networks({"blue": addresses(20, 29)})
    new = bench.placement.settle(service)
    assert new is not None
    bench.placement.set_networks({"blue": addresses(1, 29)})
    assert service.homes == [old, new]
    assert bench.settled(1) != old.address
    bench.placement.leave(service, old)
    assert bench.settled(2) == old.address


def test_an_address_that_still_serves_is_nobody_elses_though_another_network_has_it(
    bench: Bench,
) -> None:
    service = bench.service(0)
    old = bench.placement.settle(service)
    assert old is not None
    bench.placement.set_networks({"blue": addresses(20, 29), "red": addresses(1, 9)})
    bench.placement.settle(service)
    assert bench.settled(1, infra("gold", network="red")) != old.address
    bench.placement.leave(service, old)
    assert bench.settled(2, infra("gold", network="red")) == old.address


def test_addresses_of_a_network_that_goes_and_returns_are_remembered(bench: Bench) -> None:
    for n in range(3):
        bench.settled(n)
    bench.placement.set_networks({})
    service = bench.service(2)
    assert bench.placement.settle(service) is None
    assert [h.address for h in service.homes] == ["10.0.0.3"], "what serves goes on serving"
    bench.placement.set_networks({"blue": addresses(1, 9)})
    assert bench.settled(2) == "10.0.0.3"
    assert bench.settled(3) == "10.0.0.4"


def test_what_is_absent_after_the_first_list_is_forgotten(bench: Bench) -> None:
    bench.placement.shards(infra("gold"), ["a.test", "gone.test"])
    for n in range(3):
        bench.settled(n)
    bench.restart()
    assert bench.settled(1) == "10.0.0.2"
    bench.placement.forget_absent({"a.test"})
    assert set(bench.state.room("shard")) == {"gold/a.test"}
    assert dict(bench.state.room("vip")) == {"blue/cluster--Shared-L7-1": "10.0.0.2"}
    assert bench.settled(5) == "10.0.0.1"


def test_an_address_of_its_own_is_a_new_home_and_the_old_one_is_nobodys_meanwhile(
    bench: Bench,
) -> None:
    service = bench.placement.l4_service("cluster--d-gw", infra())
    bench.placement.settle(service)
    assert [home.address for home in service.homes] == ["10.0.0.1"]
    service.wanted = "10.0.0.7"
    bench.placement.settle(service)
    assert [home.address for home in service.homes] == ["10.0.0.1", "10.0.0.7"]
    assert service.shown is not None
    assert service.shown.address == "10.0.0.1"  # until every engine has the other
    other = bench.placement.l4_service("cluster--d-other", infra())
    bench.placement.settle(other)
    assert other.homes[-1].address == "10.0.0.2"
    bench.placement.leave(service, service.homes[0])
    third = bench.placement.l4_service("cluster--d-third", infra())
    bench.placement.settle(third)
    assert third.homes[-1].address == "10.0.0.1"


@pytest.mark.parametrize("wanted", ["10.0.0.2", "10.9.9.9", "nonsense"])
def test_an_address_that_it_may_not_have_leaves_it_where_it_is(bench: Bench, wanted: str) -> None:
    service, other = (bench.placement.l4_service(name, infra()) for name in ("a", "b"))
    for one in (service, other):
        bench.placement.settle(one)
    service.wanted = wanted
    assert bench.placement.settle(service) is None
    assert [home.address for home in service.homes] == ["10.0.0.1"]
    assert (service.misplaced, service.exhausted) == (True, "")
    bench.placement.retire(other)
    assert (bench.placement.settle(service) is not None) == (wanted == "10.0.0.2")


def test_an_address_of_its_own_is_remembered_and_what_it_had_before_is_free(bench: Bench) -> None:
    service = bench.placement.l4_service("a", infra())
    bench.placement.settle(service)
    placement = bench.restart()
    service = placement.l4_service("a", infra())
    service.wanted = "10.0.0.9"  # edited while nobody ran
    placement.settle(service)
    assert [home.address for home in service.homes] == ["10.0.0.9"]
    assert placement.pools["blue"].free == 8
    placement = bench.restart()
    service = placement.l4_service("a", infra())
    placement.settle(service)
    assert [home.address for home in service.homes] == ["10.0.0.9"]


def test_a_restart_leaves_it_where_it_is_while_it_may_not_have_the_address(bench: Bench) -> None:
    bench.settled(0)
    service = bench.placement.l4_service("a", infra())
    bench.placement.settle(service)
    assert service.homes[-1].address == "10.0.0.2"
    placement = bench.restart()
    bench.settled(0)
    service = placement.l4_service("a", infra())
    service.wanted = "10.0.0.1"
    placement.settle(service)
    assert [home.address for home in service.homes] == ["10.0.0.2"]
    assert service.misplaced
    assert "a" in placement.waiting


def test_a_restart_leaves_it_in_the_network_that_it_could_not_leave(bench: Bench) -> None:
    bench.networks["red"] = addresses(1, 1, "10.0.1")
    bench.placement.set_networks(bench.networks)
    bench.settled(0, infra(network="red"))
    assert bench.settled(1) == "10.0.0.1"
    service = bench.service(1)
    service.infra = infra(network="red")
    assert bench.placement.settle(service) is None
    placement = bench.restart()
    bench.settled(0, infra(network="red"))
    service = bench.service(1, infra(network="red"))
    placement.settle(service)
    assert [(home.network, home.address) for home in service.homes] == [("blue", "10.0.0.1")]
    assert service.exhausted == "red"

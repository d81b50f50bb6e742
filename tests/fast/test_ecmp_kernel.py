"""The ECMP kernel against the Linux of this machine, in a network namespace that the tests make."""

import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from akocore import EcmpGroup, Flows, ResilientGroup
from fast import kernel_router
from fast.kernel_router import HOPS, Flow, Hop, Router, random_flows

IPV4, IPV6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize("family", [IPV4, IPV6], ids=["IPv4", "IPv6"])
GROUP = 900  # and more; nexthops have the numbers below
Weighted = list[tuple[Hop, int]]

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def router(require_real: Callable[[bool, str], None]) -> Iterator[Router]:
    require_real(os.geteuid() == 0, "root for a network namespace")
    require_real(shutil.which("ip") is not None, "`ip` command (iproute2)")
    with kernel_router.router(require_real) as made:
        yield made


def columns(flows: list[Flow]) -> Flows:
    return Flows(*zip(*flows, strict=True))


def named(hops: Weighted) -> list[tuple[str, int]]:
    return [(hop.name, weight) for hop, weight in hops]


def some_hops(family: int, rng: random.Random) -> Weighted:
    """From 2 to 16 hops in any order, of one weight, of a few, or of any."""
    count = rng.randint(2, kernel_router.MOST_HOPS)
    top = rng.choice([1, 3, 256])
    return [(hop, rng.randint(1, top)) for hop in rng.sample(HOPS[family], count)]


def some_hashing(rng: random.Random) -> dict[str, Any]:
    policy = rng.choice([0, 1, 1, 3, 3])
    fields = rng.choice([0x37, 0x37, rng.randint(1, 0x3F)]) if policy == 3 else 0x37
    return {"seed": rng.randint(1, 2**32 - 1), "policy": policy, "fields": fields}


def compare(router: Router, family: int, kind: str, look_ups: int, each: int = 2_000) -> None:
    """Group after group at random, until so many look-ups have been compared."""
    rng = random.Random(f"{family} {kind}")
    # `RTM_GETROUTE` with an input interface takes the path of forwarded packets for IPv4, but for
    # IPv6 that of local ones, which doesn't mix under policy 3.
    forwarded = family == IPV4
    compared = 0
    while compared < look_ups:
        hops, hashing = some_hops(family, rng), some_hashing(rng)
        flows = random_flows(family, each, rng)
        router.hash_by(**hashing)
        group: EcmpGroup | ResilientGroup
        if kind == "resilient group":
            buckets = rng.choice([8, 31, 128, 1000, 4096])
            # A table persists, so each needs a group of its own.
            number = 10_000 * family + compared // each
            router.group(number, hops, buckets=buckets)
            router.route_to_group(family, number)
            group = ResilientGroup(named(hops), buckets=buckets, forwarded=forwarded, **hashing)
        else:
            if kind == "route":
                router.route(hops)
            else:
                router.group(GROUP + family, hops)
                router.route_to_group(family, GROUP + family)
            group = EcmpGroup(named(hops), forwarded=forwarded, **hashing)
        predicted = [group.hops[i][0] for i in group.select(columns(flows))]
        assert router.look_up(flows) == predicted, (hops, hashing)
        compared += each
    router.ip(f"route del {'::/0' if family == IPV6 else '0.0.0.0/0'}")


KINDS = pytest.mark.parametrize("kind", ["route", "nexthop group", "resilient group"])


@FAMILIES
@KINDS
def test_the_kernel_of_this_machine_picks_the_same_hops(
    router: Router, family: int, kind: str
) -> None:
    compare(router, family, kind, 17_000)


@pytest.mark.slow
@FAMILIES
@KINDS
def test_the_kernel_picks_the_same_hops_a_million_times(
    router: Router, family: int, kind: str
) -> None:
    compare(router, family, kind, 170_000)


@FAMILIES
@pytest.mark.parametrize("policy, fields", [(0, 0x37), (1, 0x37), (3, 0x37), (3, 0x1A)])
def test_real_packets_go_where_predicted(
    router: Router, family: int, policy: int, fields: int
) -> None:
    rng = random.Random(f"{family} {policy} {fields}")
    hops = some_hops(family, rng)
    flows = random_flows(family, 1_000, rng)
    seed = rng.randint(1, 2**32 - 1)
    router.hash_by(seed=seed, policy=policy, fields=fields)
    router.route(hops)
    group = EcmpGroup(named(hops), seed=seed, policy=policy, fields=fields)
    assert router.forward(flows) == [group.hops[i][0] for i in group.select(columns(flows))]


def test_weights_of_16_bits_are_exact(
    router: Router, require_real: Callable[[bool, str], None]
) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    require_real(release >= (6, 12), "kernel with weights of 16 bits (Linux 6.12)")
    rng = random.Random(16)
    hops = [(hop, rng.choice([1, 300, 65535])) for hop in HOPS[IPV4]]
    flows = random_flows(IPV4, 2_000, rng)
    router.hash_by(seed=16, policy=1)
    router.group(GROUP, hops)
    router.route_to_group(IPV4, GROUP)
    group = EcmpGroup(named(hops), seed=16, policy=1)
    assert router.look_up(flows) == [group.hops[i][0] for i in group.select(columns(flows))]


@pytest.mark.parametrize(
    "family, kind",
    [(IPV4, "route"), (IPV4, "nexthop group"), (IPV6, "nexthop group")],
    ids=["IPv4 route", "IPv4 group", "IPv6 group"],
)
@pytest.mark.parametrize("down", [[0], [1, 2], [0, 4], [0, 1, 2, 3, 4]], ids=str)
def test_hops_whose_neighbours_are_unreachable_are_passed_over(
    router: Router, family: int, kind: str, down: list[int]
) -> None:
    rng = random.Random(f"{family} {down}")
    hops = [(hop, rng.randint(1, 9)) for hop in HOPS[family][:5]]
    flows = random_flows(family, 500, rng)
    router.hash_by(seed=77, policy=1)
    router.sysctl("net.ipv4.fib_multipath_use_neigh", 1)
    if kind == "route":
        router.route(hops)
    else:
        router.group(GROUP + family, hops)
        router.route_to_group(family, GROUP + family)
    group = EcmpGroup(named(hops), seed=77, policy=1, down=[hops[i][0].name for i in down])
    neighbours = [f"neigh replace {hops[i][0].address} dev out0" for i in down]
    try:
        router.ip(*(f"{neighbour} nud failed" for neighbour in neighbours))
        picked = router.look_up(flows)
    finally:
        router.sysctl("net.ipv4.fib_multipath_use_neigh", 0)
        router.ip(
            *(
                f"{neighbour} lladdr {hops[i][0].mac.hex(':')} nud permanent"
                for i, neighbour in zip(down, neighbours, strict=True)
            )
        )
    assert picked == [group.hops[i][0] for i in group.select(columns(flows))]


class Table:
    """A resilient group of the kernel's beside its model, under one clock."""

    def __init__(self, router: Router, number: int, hops: Weighted, **shape: Any) -> None:
        self.router, self.number = router, number
        self.ids = {hop.name: hop.id for hop in HOPS[IPV4]}
        router.hash_by(seed=31, policy=1)
        router.group(number, hops, **shape)
        router.route_to_group(IPV4, number)
        self.model = ResilientGroup(named(hops), seed=31, policy=1, now_ms=now_ms(), **shape)

    def replace(self, hops: Weighted, **timers: int) -> None:
        self.router.group(self.number, hops, resilient=True, **timers)
        self.model.replace(named(hops), now_ms(), **timers)

    def use(self, flows: list[Flow]) -> None:
        """Looks flows up in both, which must agree."""
        time.sleep(0.02)  # a bucket used in the jiffy in which it was moved counts as idle
        predicted = [self.model.hops[hop][0] for hop in self.model.select(columns(flows))]
        assert self.router.look_up(flows) == predicted
        if len(self.model.hops) > 1:  # for a single hop the kernel looks no bucket up
            self.model.touch(self.model.hashes(columns(flows)), now_ms())
        time.sleep(0.02)

    def check(self) -> None:
        hops = self.model.hops
        assert self.router.table(self.number) == [self.ids[hops[i][0]] for i in self.model.table]


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def another(hops: Weighted, rng: random.Random) -> Weighted:
    """The hops after one or two of: one added, one removed, another order, another weight."""
    hops = list(hops)
    for change in rng.sample(["add", "remove", "reorder", "reweight"], rng.choice([1, 1, 2])):
        spare = [hop for hop in HOPS[IPV4] if hop not in dict(hops)]
        if change == "add" and spare:
            hops.insert(rng.randint(0, len(hops)), (rng.choice(spare), rng.randint(1, 4)))
        elif change == "remove" and len(hops) > 1:
            hops.pop(rng.randrange(len(hops)))
        elif change == "reorder":
            rng.shuffle(hops)
        else:
            i = rng.randrange(len(hops))
            hops[i] = (hops[i][0], rng.randint(1, 9))
    return hops


def update_and_compare(router: Router, number: int, buckets: int, updates: int) -> None:
    rng = random.Random(number)
    hops = some_hops(IPV4, rng)
    table = Table(router, number, hops, buckets=buckets, idle_ms=600_000)
    table.check()
    for _ in range(updates):
        # Some buckets are in use, and stay; now and then all are taken for idle.
        table.use(random_flows(IPV4, rng.choice([1, buckets // 2, 2 * buckets]), rng))
        hops = another(hops, rng)
        table.replace(hops, idle_ms=rng.choice([0, 600_000, 600_000]))
        table.check()


@pytest.mark.parametrize("buckets", [8, 31, 128, 1000])
def test_a_bucket_table_is_the_kernels_after_any_update(router: Router, buckets: int) -> None:
    update_and_compare(router, 5_000 + buckets, buckets, 15)


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [5, 64, 333, 2_000])
def test_a_bucket_table_is_the_kernels_after_hundreds_of_updates(
    router: Router, buckets: int
) -> None:
    update_and_compare(router, 30_000 + buckets, buckets, 200)


def test_a_member_whose_nexthop_is_deleted_leaves_as_by_an_update(router: Router) -> None:
    hops = [(hop, 1) for hop in HOPS[IPV4][:5]]
    table = Table(router, 7_000, hops, buckets=64, idle_ms=600_000)
    table.use(random_flows(IPV4, 200, random.Random(1)))
    gone = hops[2][0]
    router.ip(f"nexthop del id {gone.id}")
    table.model.replace([pair for pair in named(hops) if pair[0] != gone.name], now_ms())
    router.ip(f"nexthop add id {gone.id} via {gone.address} dev out0")
    table.check()


def test_busy_buckets_move_when_their_idle_timer_or_the_unbalanced_timer_runs_out(
    router: Router,
) -> None:
    before = [(hop, 1) for hop in HOPS[IPV4][:3]]
    after = [(hop, 1) for hop in HOPS[IPV4][:5]]
    flows = random_flows(IPV4, 2_000, random.Random(2))
    shapes: list[dict[str, int]] = [
        {"buckets": 64, "idle_ms": 2_000},
        {"buckets": 100, "idle_ms": 600_000, "unbalanced_ms": 2_000},
        {"buckets": 64, "idle_ms": 600_000},
    ]
    tables = []
    for number, shape in enumerate(shapes):
        table = Table(router, 8_000 + number, before, **shape)
        table.use(flows)
        settled = list(table.model.table)
        table.replace(after)
        table.check()
        assert list(table.model.table) == settled, "all buckets were in use"
        tables.append(table)
    time.sleep(3.5)
    for table in tables:
        table.model.advance(now_ms())
        table.check()
    assert [table.model.due_ms is None for table in tables] == [True, True, False]

"""Addresses: lowest free, never two owners, kept until given back."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from akocore.kube.objects import AddressRange, BgpPeer, BgpProfile, NetworkSpec
from akocore.model import Refusal
from akocore.place.ipam import Ipam, check_network, check_overlaps

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def network(*ranges: str, subnet: str = "10.0.0.0/24") -> NetworkSpec:
    """A Network of ranges written as "10.0.0.1-10.0.0.9"."""
    ends = [text.split("-") for text in ranges]
    return NetworkSpec(
        subnet=subnet, vip_ranges=tuple(AddressRange(begin=b, end=e) for b, e in ends)
    )


def addresses(spec: NetworkSpec) -> list[str]:
    """Every address of a Network in the order of its ranges."""
    return [
        str(ip_address(r.begin) + n)
        for r in spec.vip_ranges
        for n in range(int(ip_address(r.end)) - int(ip_address(r.begin)) + 1)
    ]


SPECS = st.sampled_from(
    [
        network("10.0.0.1-10.0.0.1"),
        network("10.0.0.1-10.0.0.6"),
        network("10.0.0.250-10.0.0.255"),
        network("10.0.0.1-10.0.0.2", "10.0.0.9-10.0.0.11"),
        network("10.0.0.20-10.0.0.22", "10.0.0.1-10.0.0.2", "10.0.0.7-10.0.0.7"),
        network("fd00::fffe-fd00::1:2", subnet="fd00::/64"),
        network("fd00::1-fd00::2", "fd00::a-fd00::c", subnet="fd00::/64"),
    ]
)


class Addresses(RuleBasedStateMachine):
    """Against the plainest model: a dict, and the first address that is not in it."""

    owner = Bundle("owner")

    @initialize(spec=SPECS)
    def begin(self, spec: NetworkSpec) -> None:
        self.ipam = Ipam(spec)
        self.all = addresses(spec)
        self.owners: dict[str, str] = {}
        self.held: dict[str, str] = {}  # address left, not let go yet → who had it

    @rule(target=owner, n=st.integers(0, 9))
    def somebody(self, n: int) -> str:
        return f"vs-{n}"

    @rule(owner=owner)
    def give(self, owner: str) -> None:
        taken = {*self.owners.values(), *self.held}
        free = [a for a in self.all if a not in taken]
        want = self.owners.get(owner) or next(iter(free), None)
        assert self.ipam.give(owner) == want
        if want is not None:
            self.owners[owner] = want

    @rule(owner=owner, data=st.data())
    def give_just_one(self, owner: str, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from([*self.all, "192.0.2.1", "2001:db8::1", "nonsense"]))
        holder = self._holder(address) or owner
        want = address if address in self.all and holder == owner else None
        assert self.ipam.give(owner, address) == want
        if want is not None:
            had = self.owners.get(owner)
            self.held.pop(want, None)
            if had not in (None, want):
                self.held[str(had)] = owner
            self.owners[owner] = want
        assert self.ipam.holder(address) == self._holder(address)

    def _holder(self, address: str) -> str | None:
        return next((o for o, a in self.owners.items() if a == address), self.held.get(address))

    @rule(owner=owner, data=st.data())
    def let_go(self, owner: str, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(self.all))
        self.ipam.let_go(owner, address)
        if self.held.get(address) == owner:
            del self.held[address]

    @rule(owner=owner)
    def release(self, owner: str) -> None:
        self.ipam.release(owner)
        self.owners.pop(owner, None)

    @rule(owner=owner, data=st.data())
    def take(self, owner: str, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from([*self.all, "192.0.2.1", "2001:db8::1"]))
        holder = self._holder(address) or owner
        can = address in self.all and holder == owner and self.owners.get(owner, address) == address
        assert self.ipam.take(owner, address) == can
        if can:
            self.held.pop(address, None)
            self.owners[owner] = address

    @rule()
    def restart(self) -> None:
        fresh = Ipam(self.ipam.spec)
        for owner, address in self.owners.items():
            assert fresh.take(owner, address)
        self.held.clear()
        self.ipam = fresh

    @invariant()
    def nobody_shares_and_the_count_is_right(self) -> None:
        assert self.ipam.owners == self.owners
        assert len(set(self.owners.values())) == len(self.owners)
        assert self.ipam.free == len(self.all) - len(self.owners) - len(self.held)


TestAddresses = Addresses.TestCase


@CALM
@given(SPECS)
def test_all_addresses_are_given_in_order_and_then_none(spec: NetworkSpec) -> None:
    ipam = Ipam(spec)
    want = addresses(spec)
    assert ipam.size == ipam.free == len(want)
    assert [ipam.give(f"vs-{i}") for i in range(len(want))] == want
    assert ipam.give("late") is None
    assert ipam.free == 0


def test_an_owner_is_given_its_address_again() -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.9"))
    assert ipam.give("a") == ipam.give("a") == "10.0.0.1"
    assert ipam.free == 8


def test_after_exhaustion_the_one_given_back_is_given() -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.2"))
    ipam.give("a")
    ipam.give("b")
    assert ipam.give("c") is None
    ipam.release("a")
    assert ipam.give("c") == "10.0.0.1"


def test_of_several_given_back_the_lowest_is_given_first() -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.9"))
    for owner in "abcde":
        ipam.give(owner)
    for owner in "dbc":
        ipam.release(owner)
    assert [ipam.give(x) for x in "xyz"] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    assert ipam.give("w") == "10.0.0.6"


def test_ranges_are_used_in_the_order_they_are_written() -> None:
    ipam = Ipam(network("10.0.0.50-10.0.0.50", "10.0.0.1-10.0.0.1"))
    assert [ipam.give(x) for x in "abc"] == ["10.0.0.50", "10.0.0.1", None]


def test_a_remembered_address_is_passed_over() -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.3"))
    assert ipam.take("old", "10.0.0.1")
    assert ipam.give("new") == "10.0.0.2"
    assert ipam.give("old") == "10.0.0.1"


@pytest.mark.parametrize(
    "address", ["10.0.0.9", "10.1.0.1", "fd00::1"], ids=["out-of-range", "foreign", "v6"]
)
def test_an_address_of_elsewhere_is_not_taken(address: str) -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.3"))
    assert not ipam.take("a", address)
    assert ipam.owners == {}


def test_anothers_address_is_not_taken() -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.3"))
    ipam.give("a")
    assert not ipam.take("b", "10.0.0.1")
    assert ipam.owners == {"a": "10.0.0.1"}


def test_releasing_a_stranger_does_nothing() -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.3"))
    ipam.release("nobody")
    assert ipam.free == 3


def test_a_held_address_is_nobody_elses_until_let_go() -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.3"))
    ipam.hold("a", "10.0.0.1")
    ipam.hold("a", "192.0.2.1")
    assert ipam.give("a") == "10.0.0.2"
    assert not ipam.take("b", "10.0.0.1")
    assert (ipam.give("b"), ipam.give("c")) == ("10.0.0.3", None)
    ipam.let_go("b", "10.0.0.1")
    assert ipam.give("c") is None
    ipam.let_go("a", "10.0.0.1")
    ipam.let_go("a", "10.0.0.2")
    assert ipam.give("c") == "10.0.0.1"
    assert ipam.give("d") is None


def test_a_held_address_can_become_its_holders_own() -> None:
    ipam = Ipam(network("10.0.0.1-10.0.0.3"))
    ipam.hold("a", "10.0.0.2")
    assert ipam.take("a", "10.0.0.2")
    ipam.let_go("a", "10.0.0.2")
    assert [ipam.give(x) for x in "abc"] == ["10.0.0.2", "10.0.0.1", "10.0.0.3"]


@pytest.mark.parametrize(
    "spec",
    [
        network("10.0.0.1-10.0.0.9"),
        network("10.0.0.1-10.0.0.1", "10.0.0.2-10.0.0.3"),
        network("10.0.0.9-10.0.0.9", "10.0.0.1-10.0.0.8"),
        network("fd00::1-fd00::f", subnet="fd00::/64"),
        network("10.0.0.0-10.0.0.255"),
        network("10.0.0.0-10.15.255.255", subnet="10.0.0.0/8"),
    ],
    ids=["one-range", "adjoining", "unsorted", "v6", "whole-subnet", "as-many-as-allowed"],
)
def test_a_good_network_has_no_fault(spec: NetworkSpec) -> None:
    assert check_network("blue", spec) == ()


@pytest.mark.parametrize(
    "spec, field, remedy",
    [
        (
            network("10.0.0.1-10.0.0.9", subnet="10.0.0.1/24"),
            "spec.subnet",
            "10.0.0.1/24 has host bits set. Write it as 10.10.16.0/24.",
        ),
        (
            network("10.0.0.1-10.0.0.9", subnet="blue"),
            "spec.subnet",
            "'blue' does not appear to be an IPv4 or IPv6 network. Write it as 10.10.16.0/24.",
        ),
        (network(), "spec.vipRanges", "Add at least one range of addresses for VIPs."),
        (
            network("10.0.0.1-10.0.0.2", "10.0.0.3-10.0.0.300"),
            "spec.vipRanges[1]",
            (
                "'10.0.0.300' does not appear to be an IPv4 or IPv6 address."
                " Write begin and end as plain addresses."
            ),
        ),
        (
            network("10.0.0.1-10.0.0.2", "10.0.1.3-10.0.1.9"),
            "spec.vipRanges[1]",
            "10.0.1.3-10.0.1.9 is not inside 10.0.0.0/24. Move it inside.",
        ),
        (
            network("10.0.0.250-10.0.1.9"),
            "spec.vipRanges[0]",
            "10.0.0.250-10.0.1.9 is not inside 10.0.0.0/24. Move it inside.",
        ),
        (
            network("fd00::1-fd00::2"),
            "spec.vipRanges[0]",
            "fd00::1-fd00::2 is not inside 10.0.0.0/24. Move it inside.",
        ),
        (
            network("10.0.0.9-10.0.0.1"),
            "spec.vipRanges[0]",
            "begin 10.0.0.9 is after end 10.0.0.1. Exchange them.",
        ),
        (
            network("10.0.0.0-10.16.0.0", subnet="10.0.0.0/8"),
            "spec.vipRanges[0]",
            "A range holds at most 1048576 addresses. Make it smaller.",
        ),
        (
            network("fd00::-fd00::ffff:ffff", subnet="fd00::/64"),
            "spec.vipRanges[0]",
            "A range holds at most 1048576 addresses. Make it smaller.",
        ),
        (
            network("10.0.0.1-10.0.0.9", "10.0.0.20-10.0.0.30", "10.0.0.5-10.0.0.10"),
            "spec.vipRanges[2]",
            "It overlaps spec.vipRanges[0]. Separate them.",
        ),
    ],
    ids=[
        "host-bits",
        "no-subnet",
        "no-ranges",
        "no-address",
        "outside",
        "half-outside",
        "another-family",
        "turned-round",
        "too-many",
        "too-many-v6",
        "ranges-overlap",
    ],
)
def test_a_bad_network_says_where_and_what_to_do(
    spec: NetworkSpec, field: str, remedy: str
) -> None:
    assert check_network("blue", spec) == (
        Refusal(object="Network/blue", field=field, reason="InvalidNetwork", remedy=remedy),
    )


def test_bgp_is_a_warning() -> None:
    spec = NetworkSpec(
        subnet="10.0.0.0/24",
        vip_ranges=(AddressRange(begin="10.0.0.1", end="10.0.0.9"),),
        bgp=BgpProfile(local_as=65000, peers=(BgpPeer(address="10.0.0.254", remote_as=65001),)),
    )
    (refusal,) = check_network("blue", spec)
    assert refusal.warning
    assert (refusal.field, refusal.reason) == ("spec.bgp", "Unsupported")


def test_networks_apart_do_not_overlap() -> None:
    assert (
        check_overlaps(
            {
                "a": network("10.0.0.1-10.0.0.9"),
                "b": network("10.0.0.10-10.0.0.19"),
                "c": network("::a00:1-::a00:9", subnet="::/64"),
            }
        )
        == {}
    )


def test_of_overlapping_networks_the_one_that_stands_first_is_used() -> None:
    spec = network("10.0.0.1-10.0.0.9")
    other = network("10.0.0.200-10.0.0.201", "10.0.0.9-10.0.0.12")
    assert check_overlaps({"b": spec, "a": other}) == {
        "a": Refusal(
            object="Network/a",
            field="spec.vipRanges",
            reason="OverlappingNetworks",
            remedy="Some of its addresses belong to Network b. Separate them.",
        )
    }


def test_a_network_that_is_not_used_takes_nothing_from_a_third() -> None:
    found = check_overlaps(
        {
            "a": network("10.0.0.1-10.0.0.5"),
            "b": network("10.0.0.5-10.0.0.9"),
            "c": network("10.0.0.6-10.0.0.9"),
        }
    )
    assert set(found) == {"b"}

"""The lines from one configuration to another; test_golden.py proves on FRR where they lead."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from akocore.engines.frr.config import Bfd, Peer, RouterConfig, Vip, VipState, render
from akocore.engines.frr.delta import Delta, delta, is_secret, to_refresh

PEER = Peer(address="10.0.0.250", remote_as=6000, networks=("n",), bfd=Bfd(), password="s3cret")
ROUTER = RouterConfig(name="se-1", router_id="10.0.0.1", local_as=5000, peers=(PEER,))


def vip(n: int, state: VipState = VipState.ADVERTISED, **more: Any) -> Vip:
    return Vip(address=f"10.1.0.{n}", network="n", state=state, **more)


def bgpd(router: RouterConfig = ROUTER, **fields: Any) -> str:
    return render(msgspec.structs.replace(router, **fields)).bgpd


def peer(**fields: Any) -> tuple[Peer, ...]:
    return (msgspec.structs.replace(PEER, **fields),)


def test_equal_texts_need_no_line() -> None:
    assert not delta(bgpd(), bgpd())


def test_a_vip_more_or_less_is_one_line_in_its_block() -> None:
    one, two = bgpd(vips=(vip(1),)), bgpd(vips=(vip(1), vip(2)))
    block = ("router bgp 5000", "address-family ipv4 unicast")
    line = "network 10.1.0.2/32 route-map VIP_RM/n"
    assert delta(one, two) == Delta(added=(*block, line, "exit", "exit"))
    assert delta(two, one) == Delta(removed=(*block, "no network 10.1.0.2/32", "exit", "exit"))


def test_what_a_line_names_is_there_before_it_and_goes_after_it() -> None:
    change = delta(bgpd(), bgpd(vips=(vip(1, labels=("x",)),), peers=peer(label="x")))
    (tag,) = [line for line in change.added if line.startswith("set tag ")]
    order = [tag, f"match{tag[3:]}", "network 10.1.0.1/32 route-map VIP_RM/n/x"]
    assert [line for line in change.added if line in order] == order
    back = delta(bgpd(vips=(vip(1, labels=("x",)),), peers=peer(label="x")), bgpd())
    order = ["no network 10.1.0.1/32", "no route-map VIP_RM/n/x permit 10"]
    assert [line for line in back.removed if line in order] == order


def test_a_vip_that_drains_gets_another_map_and_is_never_withdrawn() -> None:
    change = delta(bgpd(vips=(vip(1),)), bgpd(vips=(vip(1, VipState.DRAINING),)))
    assert "network 10.1.0.1/32 route-map DRAIN_RM/n" in change.added
    assert change.removed == ("no route-map VIP_RM/n permit 10",)


@pytest.mark.parametrize(
    ("after", "line"),
    [
        ({"peers": peer(connect_s=60)}, "neighbor 10.0.0.250 timers connect 60"),
        ({"peers": peer(keepalive_s=3, hold_s=9)}, "neighbor 10.0.0.250 timers 3 9"),
        ({"peers": peer(password="other")}, "neighbor 10.0.0.250 password other"),
        ({"peers": peer(remote_as=7000)}, "neighbor 10.0.0.250 remote-as 7000"),
        ({"router_id": "10.0.0.9"}, "bgp router-id 10.0.0.9"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_new_value_replaces_the_old_without_a_no(after: dict[str, Any], line: str) -> None:
    assert delta(bgpd(), bgpd(**after)) == Delta(added=("router bgp 5000", line, "exit"))


def test_a_peer_goes_in_one_line_and_its_policy_after_it() -> None:
    change = delta(bgpd(vips=(vip(1),)), bgpd(vips=(vip(1),), peers=()))
    lines = [line for line in change.removed if line.startswith("no ")]
    assert lines[0] == "no neighbor 10.0.0.250"
    assert [line for line in lines if "neighbor" in line] == lines[:1]
    assert lines[1:4] == [
        "no route-map PEER_RM_OUT_10.0.0.250 deny 65535",
        "no route-map PEER_RM_OUT_10.0.0.250 permit 10",
        "no route-map PEER_RM_IN_10.0.0.250 deny 10",
    ]


def test_the_password_is_in_no_line_that_takes_it_back() -> None:
    for after in (peer(password=""), ()):
        change = delta(bgpd(), bgpd(peers=after))
        assert "s3cret" not in str(change)
    assert "no neighbor 10.0.0.250 password" in delta(bgpd(), bgpd(peers=peer(password=""))).removed


def test_another_as_is_another_router_and_the_old_goes_first() -> None:
    change = delta(bgpd(), bgpd(local_as=5001))
    assert change.before == ("no router bgp 5000",)
    assert change.added[0] == "router bgp 5001"
    assert "neighbor 10.0.0.250 remote-as 6000" in change.added


def test_what_was_attempted_is_taken_back_and_what_is_doubtful_said_again() -> None:
    """FRR has ``old`` or some of ``tried``: all that one of them lacks is not certain."""
    old, tried = bgpd(vips=(vip(1),)), bgpd(vips=(vip(2),))
    change = delta(old, old, [tried])
    block = ("router bgp 5000", "address-family ipv4 unicast")
    again = "network 10.1.0.1/32 route-map VIP_RM/n"
    assert change == Delta(
        added=(*block, again, "exit", "exit"),
        removed=(*block, "no network 10.1.0.2/32", "exit", "exit"),
    )


def test_peers_are_refreshed_when_routes_stay_and_their_policy_changes() -> None:
    one = bgpd(vips=(vip(1),))
    assert to_refresh(delta(one, bgpd(vips=(vip(1), vip(2))))) == ()
    draining = bgpd(vips=(vip(1, VipState.DRAINING),))
    assert to_refresh(delta(one, draining)) == ()
    assert to_refresh(delta(draining, bgpd(vips=(vip(1, VipState.HELD),)))) == ("10.0.0.250",)
    marked = bgpd(vips=(vip(1),), peers=peer(communities=("1:1",)))
    assert to_refresh(delta(one, marked)) == ("10.0.0.250",)
    assert to_refresh(delta(one, bgpd(vips=(vip(1),), peers=peer(connect_s=60)))) == ()


def test_a_peer_is_told_what_its_networks_labels_and_switches_say() -> None:
    vips = (vip(1), vip(2, labels=("x", "y")), vip(3, VipState.HELD), vip(4, VipState.DRAINING))
    router = msgspec.structs.replace(ROUTER, vips=vips)
    assert router.told(PEER) == ("10.1.0.1/32", "10.1.0.4/32")
    (labelled,) = peer(label="y")
    assert router.told(labelled) == ("10.1.0.1/32", "10.1.0.2/32", "10.1.0.4/32")
    (elsewhere,) = peer(networks=("m",))
    (silent,) = peer(advertise_vip=False)
    (six,) = peer(address="fd00::250")
    assert [router.told(p) for p in (elsewhere, silent, six)] == [(), (), ()]


def test_two_sets_of_vips_with_one_tag_are_an_error() -> None:
    """CRC-32 of "VIP/plumless" is that of "VIP/buckeroo"."""
    names = ("plumless", "buckeroo")
    vips = tuple(Vip(address=f"10.1.0.{n}", network=name) for n, name in enumerate(names))
    with pytest.raises(ValueError, match="have one tag: rename one"):
        bgpd(vips=vips)


def test_a_line_with_a_password_is_a_secret() -> None:
    assert [line for line in bgpd().splitlines() if is_secret(line)] == [
        " neighbor 10.0.0.250 password s3cret"
    ]
    assert "s3cret" not in repr(ROUTER)
    assert "s3cret" not in repr(render(ROUTER))

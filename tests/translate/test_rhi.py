"""What is wrong with a Network's BGP, and the router that comes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from akocore.engines.frr.config import Bfd, Peer, Vip
from akocore.kube.crds import crd
from akocore.kube.objects import Network, NetworkSpec, SecretRef
from akocore.place.ipam import check_network
from akocore.translate.rhi import (
    check_bgp,
    check_bgp_together,
    check_password,
    check_router_ids,
    router_config,
)

# The walkthrough's table of settings.
WALKTHROUGH: dict[str, Any] = {
    "subnet": "10.10.16.0/24",
    "vipRanges": [{"begin": "10.10.16.224", "end": "10.10.16.249"}],
    "seRanges": [{"begin": "10.10.16.192", "end": "10.10.16.223"}],
    "bgp": {
        "localAs": 5000,
        "prefix": "10.10.16.0/24",
        "peers": [
            {
                "address": "10.10.16.250",
                "remoteAs": 6000,
                "ebgpMultihop": 0,
                "bfd": True,
                "advertiseVip": True,
                "advertiseSnat": True,
            }
        ],
    },
}


def spec(
    bgp: dict[str, Any] | None = None, peer: dict[str, Any] | None = None, **fields: Any
) -> NetworkSpec:
    """The walkthrough's Network with other fields."""
    first = WALKTHROUGH["bgp"]["peers"][0] | (peer or {})
    raw = {**WALKTHROUGH, "bgp": {**WALKTHROUGH["bgp"], "peers": [first], **(bgp or {})}, **fields}
    return msgspec.convert(raw, NetworkSpec)


def test_the_walkthroughs_settings_are_good() -> None:
    assert check_bgp("blue", spec()) == ()
    assert [r.warning for r in check_network("blue", spec())] == [True]
    assert check_bgp("blue", NetworkSpec(subnet="10.0.0.0/24")) == ()


def test_every_field_of_a_peer_is_taken() -> None:
    full = spec(
        bgp={"communities": ["65000:1", "1:2:3", "no-export", "4200000000:0:0"]},
        peer={
            "ebgpMultihop": 255,
            "bfdTimers": {"transmitMs": 10, "receiveMs": 60000, "multiplier": 255},
            "label": "rack-1_a.b",
            "connectTimer": 65535,
            "advertisementInterval": 600,
            "keepaliveTimer": 3,
            "holdTimer": 9,
            "passwordSecret": {"name": "bgp.pass", "namespace": "avi-system"},
        },
    )
    assert check_bgp("blue", full) == ()


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "an AS of 0": ({"bgp": {"localAs": 0}}, "spec.bgp.localAs", "0 is not from 1 to 4294967295"),
    "an AS of 5 bytes": ({"bgp": {"localAs": 1 << 32}}, "spec.bgp.localAs", "is not from 1 to"),
    "AS_TRANS": ({"peer": {"remoteAs": 23456}}, "spec.bgp.peers[0].remoteAs", "is reserved"),
    "a prefix that is none": ({"bgp": {"prefix": "10.10.16.1/24"}}, "spec.bgp.prefix", "host bits"),
    "VIPs outside the prefix": (
        {"bgp": {"prefix": "10.10.16.0/25"}},
        "spec.vipRanges[0]",
        "is not inside spec.bgp.prefix 10.10.16.0/25",
    ),
    "a prefix of the other family": (
        {"bgp": {"prefix": "fd00::/64"}},
        "spec.vipRanges[0]",
        "is not inside spec.bgp.prefix fd00::/64",
    ),
    "no peer": ({"bgp": {"peers": []}}, "spec.bgp.peers", "Add the router"),
    "a name as address": (
        {"peer": {"address": "router-1"}},
        "spec.bgp.peers[0].address",
        "'router-1' does not appear to be an IPv4 or IPv6 address",
    ),
    "a multicast address": (
        {"peer": {"address": "224.0.0.1"}},
        "spec.bgp.peers[0].address",
        "can't be a router's address",
    ),
    "a peer among the VIPs": (
        {"peer": {"address": "10.10.16.230"}},
        "spec.bgp.peers[0].address",
        "is in spec.vipRanges[0]",
    ),
    "a peer among the Service Engines": (
        {"peer": {"address": "10.10.16.200"}},
        "spec.bgp.peers[0].address",
        "is in spec.seRanges[0]",
    ),
    "one peer twice": (
        {
            "bgp": {
                "peers": [
                    {"address": "fd00::1", "remoteAs": 6000},
                    {"address": "fd00:0:0::1", "remoteAs": 6001},
                ]
            }
        },
        "spec.bgp.peers[1].address",
        "spec.bgp.peers[0] is fd00::1 already",
    ),
    "too many hops": (
        {"peer": {"ebgpMultihop": 256}},
        "spec.bgp.peers[0].ebgpMultihop",
        "256 hops",
    ),
    "hops to our own AS": (
        {"peer": {"ebgpMultihop": 2, "remoteAs": 5000}},
        "spec.bgp.peers[0].ebgpMultihop",
        "any number of hops",
    ),
    "nothing routed, over hops": (
        {"peer": {"ebgpMultihop": 2, "ttlSecurity": True}},
        "spec.bgp.peers[0].ttlSecurity",
        "Take one of them out",
    ),
    "BFD too fast": (
        {"peer": {"bfdTimers": {"transmitMs": 9}}},
        "spec.bgp.peers[0].bfdTimers.transmitMs",
        "9 ms is not from 10 to 60000",
    ),
    "BFD after one packet": (
        {"peer": {"bfdTimers": {"multiplier": 1}}},
        "spec.bgp.peers[0].bfdTimers.multiplier",
        "1 intervals is not from 2 to 255",
    ),
    "a connect timer of 0": (
        {"peer": {"connectTimer": 0}},
        "spec.bgp.peers[0].connectTimer",
        "0 s is not from 1 to 65535",
    ),
    "an advertisement interval too long": (
        {"peer": {"advertisementInterval": 601}},
        "spec.bgp.peers[0].advertisementInterval",
        "601 s is not from 0 to 600",
    ),
    "a hold time of 2": (
        {"peer": {"holdTimer": 2}},
        "spec.bgp.peers[0].holdTimer",
        "2 s is neither 0 nor from 3 to 65535",
    ),
    "a keepalive too rare for its hold time": (
        {"peer": {"keepaliveTimer": 4, "holdTimer": 9}},
        "spec.bgp.peers[0].keepaliveTimer",
        "more than a third of holdTimer 9 s",
    ),
    "a label of two words": (
        {"peer": {"label": "rack 1"}},
        "spec.bgp.peers[0].label",
        "'rack 1' is no label",
    ),
    "a community out of range": (
        {"bgp": {"communities": ["65000:1", "65536:1"]}},
        "spec.bgp.communities[1]",
        "'65536:1' is no community",
    ),
    "a community that would be a command": (
        {"bgp": {"communities": ["1:1\nexit"]}},
        "spec.bgp.communities[0]",
        "is no community",
    ),
    "a Secret without a namespace": (
        {"peer": {"passwordSecret": {"name": "bgp", "namespace": ""}}},
        "spec.bgp.peers[0].passwordSecret.namespace",
        "'' can't be a namespace",
    ),
    "a Secret in capitals": (
        {"peer": {"passwordSecret": {"name": "BGP", "namespace": "avi"}}},
        "spec.bgp.peers[0].passwordSecret.name",
        "'BGP' can't be a name",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_field_is_refused_by_its_path(name: str) -> None:
    fields, field, said = BAD[name]
    (refusal,) = check_bgp("blue", spec(**fields))
    assert (refusal.object, refusal.field, refusal.reason) == ("Network/blue", field, "InvalidBgp")
    assert said in refusal.remedy
    assert not refusal.warning


def test_all_that_is_wrong_is_said_at_once() -> None:
    bad = spec(bgp={"localAs": 0}, peer={"remoteAs": -1, "connectTimer": 0, "holdTimer": 1})
    assert [r.field for r in check_bgp("blue", bad)] == [
        "spec.bgp.localAs",
        *(f"spec.bgp.peers[0].{field}" for field in ("remoteAs", "connectTimer", "holdTimer")),
    ]


def test_a_secret_reference_without_its_fields_is_a_wrong_type() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"`namespace`.*passwordSecret"):
        spec(peer={"passwordSecret": {"name": "bgp"}})


# ─── several Networks


def green(**bgp: Any) -> NetworkSpec:
    return spec(
        bgp={"prefix": "", **bgp},
        subnet="10.10.17.0/24",
        vipRanges=[{"begin": "10.10.17.10", "end": "10.10.17.99"}],
        seRanges=[],
    )


def test_two_networks_of_one_router_are_good() -> None:
    assert check_bgp_together({"blue": spec(), "green": green()}) == {}


def test_of_two_networks_with_one_prefix_the_later_by_name_is_refused() -> None:
    wide = green(prefix="10.10.0.0/16")
    found = check_bgp_together({"green": wide, "blue": spec()})
    assert list(found) == ["green"]
    ((refusal),) = found["green"]
    assert (refusal.field, refusal.reason) == ("spec.bgp.prefix", "OverlappingPrefixes")
    assert "10.10.16.0/24, which Network blue announces" in refusal.remedy
    # A Network that is not announced claims nothing.
    silent = NetworkSpec(subnet="10.10.0.0/16")
    assert check_bgp_together({"green": silent, "blue": spec()}) == {}


def test_networks_that_differ_on_our_as_or_on_a_peer_are_refused() -> None:
    found = check_bgp_together({"blue": spec(), "green": green(localAs=5001)})
    assert [r.reason for r in found["green"]] == ["ConflictingLocalAs"]
    other = {**WALKTHROUGH["bgp"]["peers"][0], "remoteAs": 6001}
    found = check_bgp_together({"blue": spec(), "green": green(peers=[other])})
    assert [(r.field, r.reason) for r in found["green"]] == [
        ("spec.bgp.peers[0]", "ConflictingPeers")
    ]
    found = check_bgp_together({"blue": spec(), "green": green(communities=["1:1"])})
    assert [r.reason for r in found["green"]] == ["ConflictingPeers"]


def test_a_refused_network_refuses_no_other() -> None:
    found = check_bgp_together(
        {"a": spec(), "b": spec(bgp={"localAs": 5001}), "c": green(), "d": green(localAs=5001)}
    )
    assert set(found) == {"b", "d"}


def test_of_two_engines_with_one_router_id_the_later_by_name_is_refused() -> None:
    found = check_router_ids({"se-2": "10.0.0.1", "se-1": "10.0.0.1", "se-3": "10.0.0.3"})
    assert list(found) == ["se-2"]
    assert found["se-2"].reason == "DuplicateRouterId"
    assert "router id of se-1" in found["se-2"].remedy


@pytest.mark.parametrize("bad", ["", "x" * 81, "two words", "line\nbreak", "é", "nul\0"])
def test_a_password_that_can_not_be_configured_is_refused_and_not_repeated(bad: str) -> None:
    refusal = check_password("blue", "spec.bgp.peers[0].passwordSecret", bad)
    assert refusal is not None
    assert refusal.reason == "InvalidPassword"
    assert not bad or bad not in refusal.remedy


def test_any_printable_password_is_good() -> None:
    assert check_password("blue", "f", "".join(map(chr, range(33, 113)))) is None


# ─── the router


def test_a_network_comes_to_the_walkthroughs_router() -> None:
    vips = (Vip(address="10.10.16.224", network="blue"),)
    router = router_config("se-1", "10.10.16.192", {"blue": spec()}, vips)
    assert router is not None
    assert (router.local_as, router.router_id, router.vips) == (5000, "10.10.16.192", vips)
    assert router.peers == (
        Peer(
            address="10.10.16.250",
            remote_as=6000,
            networks=("blue",),
            bfd=Bfd(transmit_ms=100, receive_ms=100, multiplier=3),
            advertise_vip=True,
            advertise_snat=True,
            connect_s=10,
        ),
    )


def test_a_peer_of_two_networks_is_one_neighbor_that_is_told_both() -> None:
    router = router_config("se-1", "10.10.16.192", {"green": green(), "blue": spec()})
    assert router is not None
    assert [peer.networks for peer in router.peers] == [("blue", "green")]


def test_networks_without_bgp_need_no_router() -> None:
    assert router_config("se-1", "10.0.0.1", {"n": NetworkSpec(subnet="10.0.0.0/24")}) is None


def test_a_peer_whose_password_is_not_known_waits() -> None:
    network = spec(peer={"passwordSecret": {"name": "bgp", "namespace": "avi"}})
    router = router_config("se-1", "10.0.0.1", {"blue": network})
    assert router is not None
    assert router.peers == ()
    known = {("avi", "bgp"): "s3cret"}
    router = router_config("se-1", "10.0.0.1", {"blue": network}, passwords=known)
    assert router is not None
    assert [peer.password for peer in router.peers] == ["s3cret"]


# ─── the CRD


def test_the_crd_has_every_field_with_its_default() -> None:
    schema = crd(Network)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    bgp = schema["properties"]["spec"]["properties"]["bgp"]
    assert bgp["required"] == ["localAs"]
    peer = bgp["properties"]["peers"]["items"]
    assert peer["required"] == ["address", "remoteAs"]
    assert peer["properties"]["connectTimer"] == {"type": "integer", "default": 10}
    assert peer["properties"]["holdTimer"] == {"type": "integer", "default": 180}
    assert peer["properties"]["bfdTimers"]["properties"]["transmitMs"]["default"] == 100
    assert peer["properties"]["passwordSecret"]["required"] == ["name", "namespace"]
    assert SecretRef.__struct_encode_fields__ == ("name", "namespace")

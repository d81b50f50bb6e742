"""Which addresses are no endpoints."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akocore.kube.objects import AddressRange, Endpoint, EndpointPort, EndpointSlice, NetworkSpec
from akocore.kube.objects import SliceMeta as Meta
from akocore.translate.endpoints import Known, Table, left_out, not_allowed, plain_address

NETWORKS = {
    "uplink": NetworkSpec(
        subnet="10.10.16.0/24",
        vip_ranges=(AddressRange(begin="10.10.16.225", end="10.10.16.254"),),
        se_ranges=(AddressRange(begin="10.10.16.192", end="10.10.16.223"),),
    ),
    "uplink6": NetworkSpec(
        subnet="2001:db8:16::/64",
        vip_ranges=(AddressRange(begin="2001:db8:16::e1", end="2001:db8:16::fe"),),
    ),
}
TABLE = Table(Known(vips=NETWORKS, engines={"10.10.16.10": "Service Engine se-1"}))


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("10.10.16.225", "a VIP of Network uplink"),
        ("10.10.16.254", "a VIP of Network uplink"),
        ("2001:db8:16::f0", "a VIP of Network uplink6"),
        ("2001:0db8:0016:0:0:0:0:00f0", "a VIP of Network uplink6"),
        ("::ffff:10.10.16.230", "a VIP of Network uplink"),
        ("10.10.16.200", "a Service Engine's, of Network uplink"),
        ("10.10.16.10", "Service Engine se-1"),
        ("::ffff:a0a:100a", "Service Engine se-1"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("127.000.000.001", "loopback"),
        ("::1", "loopback"),
        ("0:0:0:0:0:0:0:1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("::ffff:0:127.0.0.1", "loopback"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b:1::7f00:1", "loopback"),
        ("64:ff9b:1:7f00:0:100::", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("2001:0:0:0:0:0:80ff:fffe", "loopback"),
        ("fd00::5efe:127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("0.0.0.0", "no address of anybody"),
        ("::", "no address of anybody"),
        ("::ffff:0.0.0.0", "no address of anybody"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("fe80::1%eth0", "no address"),
        ("", "no address"),
        ("10.0.0", "no address"),
        ("hello", "no address"),
    ],
)
def test_these_are_no_endpoints(address: str, what: str) -> None:
    assert TABLE.why(address) == what


@pytest.mark.parametrize(
    "address",
    [
        *("10.10.16.224", "10.10.16.255", "10.0.0.1", "192.168.1.5", "240.0.0.1", "010.0.0.1"),
        *("2001:db8:16::ff", "2001:db8::1", "fd00::7f00:1", "64:ff9b::8.8.8.8", "::ffff:10.0.0.1"),
        "64:ff9b:1:808:8:800::",
    ],
)
def test_these_are(address: str) -> None:
    assert TABLE.why(address) == ""


def test_what_is_allowed_wins_over_all_but_vips() -> None:
    allow = ("10.10.16.0/24", "127.0.0.1/32", "224.0.0.0/4", "fe80::/10")
    known = Known(vips=NETWORKS, engines={"10.10.16.10": "se-1"}, allow=allow, deny=("0.0.0.0/0",))
    table = Table(known)
    assert [table.why(a) for a in ("10.10.16.10", "10.10.16.192", "127.0.0.1", "fe80::1")] == [
        *("", "", "", "")
    ]
    assert table.why("10.10.16.225") == "a VIP of Network uplink"
    assert table.why("224.0.0.1") == "multicast"
    assert table.why("10.0.0.1") == "in endpoints.deny"


def slice_(*addresses: str, port: int = 8080, family: str = "IPv4") -> EndpointSlice:
    return EndpointSlice(
        metadata=Meta(name="web-1", namespace="shop"),
        address_type=family,  # type: ignore[arg-type]
        endpoints=tuple(Endpoint((address,)) for address in addresses),
        ports=(EndpointPort(port),),
    )


def test_akocores_own_ports_are_no_endpoints_where_loopback_is_one() -> None:
    here = frozenset({"192.168.1.5"})
    table = Table(Known(loopback=True, ports=frozenset({9810}), here=here))
    addresses = ("127.0.0.1", "192.168.1.5", "::ffff:127.9.9.9", "192.168.1.6")
    assert left_out(slice_(*addresses), table) == {}
    mine = "a port of akocore's own"
    assert left_out(slice_(*addresses, port=9810), table) == dict.fromkeys(addresses[:3], mine)


def test_a_refusal_names_some_the_count_and_the_slice() -> None:
    found = left_out(slice_(*(f"127.0.0.{n}" for n in range(1, 1001))), TABLE)
    said = not_allowed("Ingress/shop/web", "spec.rules", "shop/web", {"shop/web-1": found})
    assert said.reason == "EndpointNotAllowed"
    assert "127.0.0.1 (loopback), 127.0.0.2 (loopback), 127.0.0.3 (loopback) and 997 more" in (
        said.remedy
    )
    assert "EndpointSlice shop/web-1" in said.remedy
    assert len(said.remedy) < 400
    long = left_out(slice_("\x1b]0;owned\a" * 1000), TABLE)
    said = not_allowed("Ingress/shop/web", "spec.rules", "shop/web", {"shop/web-1": long})
    assert said.remedy.isprintable()
    assert len(said.remedy) < 400


def _plainly(known: Known, address: str) -> bool:
    """Whether an address is refused, without a table: the sum of the rules, one after the other."""
    at = ip_address(address)
    for spec in known.vips.values():
        for one in spec.vip_ranges:
            first, last = ip_address(one.begin), ip_address(one.end)
            if first.version == at.version and int(first) <= int(at) <= int(last):
                return True
    if at.is_multicast or at.is_loopback or at.is_link_local or at.is_unspecified:
        return True
    return address.startswith("0.") or address == "255.255.255.255"


@given(
    st.ip_addresses(v=4) | st.ip_addresses(v=4, network="10.10.16.0/24"),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=4),
)
def test_the_compiled_table_says_what_the_rules_say(
    address: object, ends: list[tuple[int, int]]
) -> None:
    ranges = tuple(
        AddressRange(begin=f"10.10.16.{min(pair)}", end=f"10.10.16.{max(pair)}") for pair in ends
    )
    known = Known(vips={"n": NetworkSpec(subnet="10.10.16.0/24", vip_ranges=ranges)})
    assert bool(Table(known).why(str(address))) == _plainly(known, str(address))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("010.0.0.1", "10.0.0.1"),
        ("10.020.0.009", "10.20.0.9"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:a00:1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("fd00::ffff", "fd00::ffff"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_an_address_is_read_as_kube_proxy_reads_it(written: str, read: str) -> None:
    assert plain_address(written) == read

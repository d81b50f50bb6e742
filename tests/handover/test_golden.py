"""A ring in, the kernel's rules out: one self-contained YAML file a case.

``pytest --update-golden`` writes ``out:`` anew; read the difference.  Each text is then proven by
the program that reads it: `nft -c`, and `ip -batch` in a namespace of its own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from akocore.engines.handover.plan import (
    Member,
    Ring,
    Rule,
    batch,
    delta,
    link,
    looks_back,
    ruleset,
    sysctls,
    undo,
)

CASES = sorted((Path(__file__).parent / "golden").glob("*.yaml"))
FRESH = [Rule(priority=0, table="local"), Rule(priority=32766, table="main")]


class Out(msgspec.Struct, forbid_unknown_fields=True):
    sysctl: dict[str, str]
    ip4: list[str]
    ip6: list[str]
    nft: str


class Case(msgspec.Struct, forbid_unknown_fields=True, rename={"ring": "in"}):
    """The skeleton of a file; a misspelt key is an error."""

    ring: Ring
    out: Out | None = None


class _Literal(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")


_Literal.add_representer(str, _text)


def load(path: Path) -> Case:
    return msgspec.convert(yaml.safe_load(path.read_text()), Case)


def out(ring: Ring) -> Out:
    text = ruleset(ring).replace("\t", "  ")
    return Out(sysctls(ring), batch(ring, 4, FRESH), batch(ring, 6, FRESH), text)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_ring_becomes_the_rules_that_the_golden_says(
    path: Path, request: pytest.FixtureRequest
) -> None:
    case = load(path)
    got = out(case.ring)
    if request.config.getoption("--update-golden"):
        before = path.read_text().partition("\nout:")[0].rstrip("\n")
        dumped = yaml.dump(
            {"out": msgspec.to_builtins(got)}, Dumper=_Literal, sort_keys=False, width=200
        )
        path.write_text(f"{before}\n{dumped}")
    else:
        assert got == case.out


@pytest.fixture
def namespace(nft: str) -> Iterator[list[str]]:
    """The command that runs others in a namespace with an eth0 and the tunnel."""
    name = f"akoh-{os.getpid()}-golden"
    inside = ["nsenter", f"--net=/run/netns/{name}", "--"]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in link():
            subprocess.run([*inside, *words], check=True)
        subprocess.run(
            [*inside, "ip", "-batch", "-"],
            input=(
                "link add eth0 type veth peer name other\nlink set eth0 up\n"
                "addr add 10.10.16.240/24 dev eth0\n"
                "addr add fd00:10:10:16::240/64 dev eth0 nodad\n"
            ),
            text=True,
            check=True,
        )
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.real
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_kernel_takes_what_the_golden_says(path: Path, namespace: list[str]) -> None:
    ring = load(path).ring

    def run(words: list[str], text: str = "") -> str:
        done = subprocess.run(
            [*namespace, *words], input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(["nft", "-c", "-f", "-"], ruleset(ring))
    run(["nft", "-f", "-"], ruleset(ring))
    run(["nft", "-f", "-"], ruleset(ring))  # in place of itself
    fewer = msgspec.structs.replace(ring, vips=("10.10.16.230",))
    run(["nft", "-f", "-"], delta(ring, fewer))
    run(["nft", "-f", "-"], delta(fewer, ring))
    alone = msgspec.structs.replace(ring, members=ring.members[-1:], me=ring.members[-1].name)
    run(["nft", "-f", "-"], delta(ring, alone))
    run(["nft", "-f", "-"], delta(alone, ring))
    for version in ("4", "6"):
        before = run(["ip", f"-{version}", "rule"])
        for _ in range(2):
            rules = msgspec.json.decode(run(["ip", "-j", f"-{version}", "rule"]), type=list[Rule])
            lines = [b for b in batch(ring, int(version), rules) if "flush" not in b]
            run(["ip", f"-{version}", "-batch", "-"], "\n".join(lines))
        first, second, third, *_ = run(["ip", f"-{version}", "rule"]).splitlines()
        assert "fwmark 0xa4c0001" in first
        assert "fwmark 0xa4c0002" in second
        assert third == "0:\tfrom all lookup local"
        rules = msgspec.json.decode(run(["ip", "-j", f"-{version}", "rule"]), type=list[Rule])
        lines = [u for u in undo(int(version), rules) if "flush" not in u]
        run(["ip", f"-{version}", "-batch", "-"], "\n".join(lines))
        assert run(["ip", f"-{version}", "rule"]) == before


# ─── what changes, and only that


def member(number: int) -> Member:
    return Member(
        name=f"se-{number}",
        address=f"10.10.16.{191 + number}",
    )


def ring_of(count: int, me: int = 1, **others: object) -> Ring:
    members = tuple(member(n) for n in range(1, count + 1))
    return msgspec.structs.replace(Ring(me=f"se-{me}", members=members), **others)


def test_a_vip_comes_and_goes_as_an_element_of_a_set() -> None:
    old, new = ring_of(3, vips=("10.0.0.1", "10.0.0.2")), ring_of(3, vips=("10.0.0.3", "10.0.0.2"))
    assert delta(old, new) == (
        "delete element inet akocore_handover vips4 { 10.0.0.1 }\n"
        "add element inet akocore_handover vips4 { 10.0.0.3 }\n"
    )
    assert delta(new, new) == ""
    assert delta(None, new) == ruleset(new)


def test_the_order_of_vips_changes_nothing() -> None:
    one, other = (
        ring_of(3, vips=("10.0.0.1", "fd00::1")),
        ring_of(3, vips=("fd00:0::1", "10.0.0.1")),
    )
    assert ruleset(one) == ruleset(other)


def test_what_else_changes_is_told_without_a_loss_of_what_was_counted() -> None:
    two, alone = ring_of(2, vips=("10.0.0.1",)), ring_of(1, vips=("10.0.0.1",))
    changes = delta(alone, two)
    assert "add element inet akocore_handover peers4 { 10.10.16.193 }" in changes
    assert "flush chain inet akocore_handover ip_flow" in changes
    assert "counter begun {" not in changes
    assert "delete table" not in changes


@pytest.mark.parametrize(
    "before, after, back",
    [
        ("ab", "abc", "abc"),  # one at the end: all look back
        ("abc", "ab", ""),  # the last leaves: all look forward
        ("bc", "abc", ""),  # one at the start
        ("abcd", "abd", "d"),  # one from the middle: towards it
        ("ab", "ab", ""),
    ],
    ids=["joins at the end", "leaves the end", "joins at the start", "leaves the middle", "stays"],
)
def test_the_likely_owner_is_told_from_the_next_hops_before(
    before: str, after: str, back: str
) -> None:
    found = {me for me in after if looks_back(me, tuple(before), tuple(after))}
    assert found >= set(back) - set(after[0])  # the first one has all others on either side
    assert found - set(after[0]) == set(back) - set(after[0])


# ─── what no caller may do


@pytest.mark.parametrize(
    "ring, says",
    [
        (ring_of(33), "at most 32 members"),
        (ring_of(2, 3), "has se-3 once"),
        (ring_of(2, device='eth0" accept'), "no name of an interface"),
        (
            msgspec.structs.replace(ring_of(1), members=(Member(name="se-1", address="; drop"),)),
            "does not appear to be an IPv4 or IPv6 address",
        ),
        (ring_of(2, vips=("fd00::1%} drop",)), "has a scope"),
        (ring_of(2, vips=("10.0.0.1 }",)), "does not appear to be an IPv4 or IPv6 address"),
    ],
    ids=[
        "too many",
        "not a member",
        "a device",
        "an address",
        "a scope",
        "a VIP",
    ],
)
def test_what_would_be_more_than_a_rule_is_an_error(ring: Ring, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ruleset(ring)

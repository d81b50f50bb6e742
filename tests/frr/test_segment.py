"""An address that one machine answers for on its segment: the neighbours hear of it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from akocore.engines.frr.process import Frr
from akocore.engines.frr.segment import Segment
from frr.conftest import PREFIX

pytestmark = pytest.mark.real

US, THEM = f"{PREFIX}us", f"{PREFIX}them"
ELSEWHERE = "02:aa:aa:aa:aa:aa"


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def segment(frr: Frr, directory: Path) -> Iterator[Segment]:
    """Ours, one neighbour that knows the addresses elsewhere, and an interface that is down."""
    try:
        for name in (US, THEM):
            ip("netns", "add", name)
        ip("link", "add", "e0", "netns", US, "type", "veth", "peer", "name", "e0", "netns", THEM)
        ip("-n", US, "link", "add", "down0", "type", "veth", "peer", "name", "down1")
        for name, last in ((US, 1), (THEM, 2)):
            ip("-n", name, "link", "set", "e0", "up")
            ip("-n", name, "addr", "add", f"10.0.0.{last}/24", "dev", "e0")
            ip("-n", name, "addr", "add", f"fd00::{last}/64", "dev", "e0", "nodad")
        for address in ("10.0.0.99", "fd00::99"):
            words = ["neigh", "add", address, "lladdr", ELSEWHERE, "dev", "e0", "nud", "stale"]
            ip("-n", THEM, *words)
        yield Segment(directory / "answered.json", Path("/run/netns") / US)
    finally:
        for name in (US, THEM):
            subprocess.run(["ip", "netns", "del", name], check=False)


def known(address: str) -> str:
    return ip("-n", THEM, "neigh", "show", address).partition("lladdr ")[2].partition(" ")[0]


async def test_neighbours_are_told_and_an_address_on_no_network_of_ours_is_said(
    segment: Segment,
) -> None:
    await segment.answer(["10.0.0.99", "fd00::99", "192.0.2.9"])
    assert list(segment.unanswered) == ["192.0.2.9"]
    assert "no interface here is on a network of 192.0.2.9" in segment.unanswered["192.0.2.9"]
    mac = ip("-n", US, "-br", "link", "show", "e0").split()[2]
    async with asyncio.timeout(10):
        while {known("10.0.0.99"), known("fd00::99")} != {mac}:
            await asyncio.sleep(0.05)
    await segment.told()
    shown = ip("-n", US, "addr", "show", "e0")
    assert "10.0.0.99/32" in shown
    assert "fd00::99/128" in shown

    # Also by another process of ours, which knows what the first one added.
    await Segment(segment._file, segment._namespace).answer(["fd00::99"])
    shown = ip("-n", US, "addr", "show", "e0")
    assert "10.0.0.99" not in shown
    assert "10.0.0.1/24" in shown
    assert "fd00::99/128" in shown


async def test_what_is_given_up_is_told_of_no_more(segment: Segment) -> None:
    mac = ip("-n", US, "-br", "link", "show", "e0").split()[2]
    await segment.answer(["10.0.0.99", "10.0.0.98"])
    async with asyncio.timeout(10):
        while known("10.0.0.99") != mac:
            await asyncio.sleep(0.005)
    await segment.answer(["10.0.0.98"])
    words = ["neigh", "replace", "10.0.0.99", "lladdr", ELSEWHERE, "dev", "e0", "nud", "stale"]
    ip("-n", THEM, *words)  # another one has it, and told so
    await segment.told()
    await asyncio.sleep(0.4)
    assert known("10.0.0.99") == ELSEWHERE
    assert "10.0.0.98/32" in ip("-n", US, "addr", "show", "e0")

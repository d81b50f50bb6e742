"""Rules in a network namespace: they come, change and go, also after a crash."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from akocore.engines.handover import Handover, HandoverError, Member, Ring
from akocore.engines.handover.plan import Rule, batch, link
from akocore.lab.namespaces import Namespaces
from handover.conftest import MakeRig
from handover.rig import PREFIX, VIP, resets

pytestmark = pytest.mark.real

MEMBERS = tuple(
    Member(
        name=f"se-{n}",
        address=f"10.10.16.{191 + n}",
    )
    for n in (1, 2, 3)
)
RING = Ring(me="se-1", members=MEMBERS, vips=(VIP, "fd00:10:10:16::224"))


@pytest.fixture
async def space(nft: str) -> AsyncIterator[Namespaces]:
    """A namespace "one" with an interface, another's rules, and another's packet filter."""
    made = Namespaces(f"{PREFIX}apply-")
    await made.add(["one", "other"])
    try:
        await made.connect(("one", "eth0", "other", "eth0"))
        await made.ip(
            "one",
            [
                "link set eth0 up",
                "addr add 10.10.16.192/24 dev eth0",
                "addr add fd00:10:10:16::192/64 dev eth0 nodad",
                "rule add pref 50 fwmark 7 lookup 77",
                "route add 10.77.0.0/16 via 10.10.16.250 table 77",
            ],
        )
        await made.run("one", ["nft", "-f", "-"], "add table inet another\n")
        yield made
    finally:
        await made.remove(["one", "other"])


async def kernel(space: Namespaces) -> dict[str, str]:
    """All that a handover may touch."""
    keys = " ".join(
        f"/proc/sys/net/{key}"
        for key in (
            "netfilter/nf_conntrack_tcp_loose",
            "ipv4/ip_forward",
            *(f"ipv4/conf/{i}/{k}" for i in ("all", "eth0") for k in ("forwarding",)),
            "ipv6/conf/all/forwarding",
            "ipv6/conf/eth0/forwarding",
        )
    )
    commands = (
        "nft list ruleset",
        "ip -4 rule",
        "ip -6 rule",
        "ip -br link",
        "ip -4 route show table all",
        "ip -6 route show table all",
        f"head -n 99 {keys}",
    )
    found = {c: await space.run("one", c.split()) for c in commands}
    # Those of a device that came later stand later.
    return {c: "\n".join(sorted(t.splitlines())) if "route" in c else t for c, t in found.items()}


async def test_what_is_removed_leaves_the_kernel_as_it_was(
    space: Namespaces, tmp_path: Path
) -> None:
    before = await kernel(space)
    handover = Handover(tmp_path / "one.json", space.path("one"))
    await handover.apply(RING)
    after = await kernel(space)
    assert all(after[command] != before[command] for command in before)
    assert "table inet another" in after["nft list ruleset"]
    assert "50:\tfrom all fwmark 0x7 lookup 77" in after["ip -4 rule"]
    await handover.apply(RING)
    assert await kernel(space) == after
    await handover.remove()
    assert await kernel(space) == before
    assert os.listdir(tmp_path) == []
    await handover.remove()  # nothing is there
    assert await kernel(space) == before


async def test_wherever_a_crash_ended_it_applying_again_does_the_rest(
    space: Namespaces, tmp_path: Path
) -> None:
    file = tmp_path / "one.json"
    before = await kernel(space)
    await Handover(file, space.path("one")).apply(RING)
    wanted = await kernel(space)
    lines = batch(RING, 4, [Rule(priority=0, table="local")])
    for done in range(len(lines) + 1):
        await Handover(file, space.path("one")).remove()
        await begin(space, lines[:done])
        assert "lookup local" in await space.run("one", ["ip", "-4", "rule"])
        await Handover(file, space.path("one")).apply(RING)
        assert await kernel(space) == wanted
        await Handover(file, space.path("one")).remove()
        await begin(space, lines[:done])
        await Handover(file, space.path("one")).remove()
        assert await kernel(space) == before


async def begin(space: Namespaces, lines: list[str]) -> None:
    """Make the tunnel, and the first rules."""
    for words in link():
        await space.run("one", words)
    await space.ip("one", lines)


async def test_a_lost_packet_filter_and_a_lost_file_are_mended(
    space: Namespaces, tmp_path: Path
) -> None:
    file = tmp_path / "one.json"
    await Handover(file, space.path("one")).apply(RING)
    wanted = await kernel(space)
    await space.run("one", ["nft", "delete", "table", "inet", "akocore_handover"])
    await Handover(file, space.path("one")).apply(RING)
    assert await kernel(space) == wanted
    file.write_text("not what was written")
    await Handover(file, space.path("one")).apply(RING)
    assert await kernel(space) == wanted


async def test_a_change_of_vips_after_the_table_was_taken_away_brings_all_of_it(
    space: Namespaces, tmp_path: Path
) -> None:
    handover = Handover(tmp_path / "one.json", space.path("one"))
    more = msgspec.structs.replace(RING, vips=(*RING.vips, "10.10.16.225"))
    await handover.apply(RING)
    await handover.apply(more)
    wanted = await kernel(space)
    await handover.apply(RING)
    await space.run("one", ["nft", "delete", "table", "inet", "akocore_handover"])
    await handover.apply(more)
    assert await kernel(space) == wanted


async def test_a_change_of_vips_keeps_what_was_counted(rig: MakeRig) -> None:
    async with rig(2) as running:
        await running.ring(*running.engines)
        await running.spread(*running.engines)
        assert len(await resets(running, 10)) == 10
        before = await running.counted()
        for name, ring in running.rings(*running.engines).items():
            more = msgspec.structs.replace(ring, vips=(*ring.vips, "10.10.16.225"))
            await running.handovers[name].apply(more)
            shown = await running.namespaces.run(name, ["nft", "list", "ruleset"])
            assert "10.10.16.225" in shown
        assert await running.counted() == before
        assert before["begun"] == 10


async def test_traffic_that_is_not_for_a_vip_is_left_alone(rig: MakeRig) -> None:
    async with rig(2) as running:
        await running.ring(*running.engines)
        own = running.members["se-1"].address
        assert len(await resets(running, 10, vip=own)) == 10
        assert await running.counted() == dict.fromkeys(
            ("begun", "passed", "unowned", "limited"), 0
        )

        # A Service Engine is no router but for what it hands over.
        await running.namespaces.ip("router", [f"route add 10.99.0.9 via {own}"])
        await running.namespaces.ip("se-2", ["addr add 10.99.0.9/32 dev lo"])
        other = running.members["se-2"].address
        await running.namespaces.ip("se-1", [f"route add 10.99.0.9 via {other}"])
        assert not await arrives(running.namespaces)
        await running.handovers["se-1"].apply(
            msgspec.structs.replace(running.rings(*running.engines)["se-1"], forwards=True)
        )
        assert await arrives(running.namespaces)  # so it was the rules that stopped it


async def arrives(space: Namespaces) -> bool:
    """Whether one of some datagrams for 10.99.0.9 gets to se-2."""
    receive = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "s.bind(('10.99.0.9', 9)); s.settimeout(1)\n"
        "try: print(s.recv(9).decode())\n"
        "except TimeoutError: print('nothing')"
    )
    send = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(10): s.sendto(b'x', ('10.99.0.9', 9)); time.sleep(0.05)"
    )
    got, _ = await asyncio.gather(
        space.run("se-2", [sys.executable, "-c", receive]),
        space.run("client", [sys.executable, "-c", send]),
    )
    return got.strip() == "x"


async def test_what_the_kernel_refuses_is_said(space: Namespaces, tmp_path: Path) -> None:
    handover = Handover(tmp_path / "one.json", space.path("one"))
    ring = msgspec.structs.replace(RING, device="eth7")
    with pytest.raises(HandoverError, match="eth7"):
        await handover.apply(ring)
    assert handover.ring is None
    await handover.apply(RING)
    known = Handover(tmp_path / "one.json").ring
    assert known is not None
    assert msgspec.structs.replace(known, tracked=0) == RING


async def test_rules_of_an_older_release_are_written_anew_with_the_kernels_own_figures(
    space: Namespaces, tmp_path: Path
) -> None:
    file = tmp_path / "one.json"
    await Handover(file, space.path("one")).apply(RING)
    wanted = await kernel(space)
    tracked = int(await space.run("one", ["cat", "/proc/sys/net/netfilter/nf_conntrack_max"]))
    assert f"burst {tracked * 2 // 5} packets" in wanted["nft list ruleset"]
    older = msgspec.json.decode(file.read_bytes())
    del older["ring"]["tracked"]
    file.write_bytes(msgspec.json.encode(older))
    chain = "inet akocore_handover ip_begins"
    await space.run("one", ["nft", "-f", "-"], f"flush chain {chain}\n")
    await Handover(file, space.path("one")).apply(RING)
    assert await kernel(space) == wanted


async def test_a_tunnel_that_is_not_as_it_must_be_is_made_anew(
    space: Namespaces, tmp_path: Path
) -> None:
    handover = Handover(tmp_path / "one.json", space.path("one"))
    await handover.apply(RING)
    wanted = await kernel(space)
    other = "type vxlan id 7 dev eth0 dstport 14789"
    for lines in (
        ["link set akocore-ho down"],
        ["link del akocore-ho"],
        ["link del akocore-ho", f"link add akocore-ho {other}", "link set akocore-ho up"],
    ):
        await space.ip("one", lines)
        await handover.apply(RING)
        assert await kernel(space) == wanted


async def test_without_writable_settings_it_does_what_it_may_and_names_the_others(
    space: Namespaces, tmp_path: Path
) -> None:
    """As in a pod, where /proc/sys is read-only."""
    read_only = (
        "import asyncio, sys; from pathlib import Path; import msgspec;"
        "from akocore.engines.handover import Handover, HandoverError, Ring\n"
        "ring = msgspec.json.decode(sys.argv[1], type=Ring)\n"
        "try: asyncio.run(Handover(Path(sys.argv[2])).apply(ring)); print('applied')\n"
        "except HandoverError as err: print(err)"
    )
    mount = (
        "mount -t proc proc /proc && mount --bind /proc/sys /proc/sys"
        ' && mount -o remount,ro,bind /proc/sys && exec "$@"'
    )
    words = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", read_only]

    async def tried(ring: Ring) -> str:
        text = msgspec.json.encode(ring).decode()
        return await space.run("one", [*words, text, str(tmp_path / "one.json")])

    ipv4 = msgspec.structs.replace(RING, vips=(VIP,))

    async def values() -> str:
        keys = ("akocore-ho/rp_filter", "akocore-ho/forwarding", "eth0/forwarding")
        paths = (f"/proc/sys/net/ipv4/conf/{key}" for key in keys)
        return await space.run("one", ["cat", *paths])

    # What an interface is to do goes by netlink.
    await space.sysctl("one", {"net/ipv4/ip_forward": 0, "net/ipv4/conf/all/rp_filter": 1})
    assert await tried(ipv4) == "applied\n"
    assert await values() == "2\n1\n1\n"

    loose = "net/netfilter/nf_conntrack_tcp_loose"
    await space.sysctl("one", {loose: 0})
    assert "Set net.netfilter.nf_conntrack_tcp_loose=1 on this node" in await tried(ipv4)
    await space.sysctl("one", {loose: 1})
    assert "Set net.ipv6.conf.all.forwarding=1 on this node" in await tried(RING)
    await space.sysctl("one", {"net/ipv6/conf/all/forwarding": 1})
    assert await tried(RING) == "applied\n"

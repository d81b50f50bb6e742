"""What handing flows over costs: a round trip by hops, and packets through one Service Engine.

All of it is in network namespaces, and the client is held on one processor, on which the kernel
then does the whole way of a packet.  Physical limits, measured just before: a round trip without
rules, and the same packets forwarded by a route as any router does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.conftest import Measure
from handover.rig import CLIENT, SERVER_CODE, VIP, Rig, says, until

ECHOES = 500
PACKETS = 5_000
ROUNDS = 21
PLAIN = "10.10.16.225"  # a VIP of se-5 alone, which has no rules

# Round trips on one kept connection, so many for each line.
_ECHO = """
    import os, socket, sys
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    address, source, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    one = socket.create_connection((address, 80), 5, (source, 0))
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(count):
            one.send(b"x")
            one.recv(1)
        print("ready", flush=True)
"""

# Segments in the middle of a connection that nobody has, so many for each line.
_FLOOD = """
    import os, socket, struct, sys
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    address, source, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.bind((source, 0))
    raw.connect((address, 0))
    tcp = struct.pack("!HHIIBBHHH", 30_000, 80, 7, 9, 5 << 4, 0x10, 1000, 0, 0)
    text = socket.inet_aton(source) + socket.inet_aton(address)
    text += struct.pack("!HH", 6, len(tcp)) + tcp
    total = sum(struct.unpack(f"!{len(text) // 2}H", text))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    packet = tcp[:16] + struct.pack("!H", ~total & 0xFFFF) + tcp[18:]
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(count):
            raw.send(packet)
        print("ready", flush=True)
"""

# Where the flood ends: counted, and answered by nobody.
_SINK = """
table inet sink {
  counter seen { }
  chain c {
    type filter hook prerouting priority raw; policy accept;
    ip daddr 10.10.16.224 tcp sport 30000 counter name seen drop
  }
}
"""


class Client:
    """A process in the client's namespace that does its one thing when it is told."""

    def __init__(self, rig: Rig, code: str, vip: str, count: int) -> None:
        command = [sys.executable, "-c", textwrap.dedent(code), vip, CLIENT, str(count)]
        self._process = subprocess.Popen(
            rig.namespaces.command("client", command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._wait()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __call__(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._wait()

    def took_s(self) -> float:
        start = time.perf_counter()
        self()
        return time.perf_counter() - start

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class Bench:
    """A rig of five Service Engines; se-5 has no rules.  The router knows one at a time."""

    def __init__(self, directory: Path, runner: asyncio.Runner) -> None:
        self.rig = Rig(directory, 5)
        self.run = runner.run

    def to(self, name: str) -> None:
        self.run(self.rig.spread(name))

    def rules(self, *names: str) -> None:
        self.rig.spread_over = ()  # so all look forward
        self.run(self.rig.ring(*names))

    def in_turns_s(self, *calls: Callable[[], float]) -> list[float]:
        """The median of each; in turns, since others use this machine too."""
        took = [[call() for call in calls] for _ in range(ROUNDS)]
        return [statistics.median(times) for times in zip(*took[1:], strict=True)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    if os.geteuid() != 0 or shutil.which("nft") is None:
        pytest.skip("needs root and nftables")
    with tempfile.TemporaryDirectory() as scratch, asyncio.Runner() as runner:
        made = Bench(Path(scratch), runner)
        try:
            runner.run(made.rig.up())
            runner.run(_plain(made.rig))
            yield made
        finally:
            runner.run(made.rig.down())


@pytest.mark.benchmark(group="handover")
@pytest.mark.parametrize("hops", [0, 1, 3])
def test_a_round_trip_by_hops(
    measure: Measure, bench: Bench, hops: int, note: Callable[[str], None]
) -> None:
    names = bench.rig.engines[: hops + 1]
    bench.rules(*names)
    bench.to("se-1")
    plain, client = (Client(bench.rig, _ECHO, vip, ECHOES) for vip in (PLAIN, VIP))
    bench.to(names[1 % len(names)])  # from there forwards round to the first: all others see it
    try:
        limit_s, took_s = bench.in_turns_s(plain.took_s, client.took_s)
        measure(client, ECHOES, limit_s)
        note(
            f"  a round trip with rules and {hops} hops: {took_s / ECHOES * 1e6:.1f} µs,"
            f" without rules {limit_s / ECHOES * 1e6:.1f} µs"
        )
        counted = bench.run(bench.rig.counted())
        assert (counted["begun"] > ECHOES) == (hops > 0)
        assert counted["unowned"] == 0
    finally:
        client.end()
        plain.end()


@pytest.mark.benchmark(group="handover")
def test_packets_through_one_service_engine(
    measure: Measure, bench: Bench, note: Callable[[str], None]
) -> None:
    """Ring of two: the first has the packets from the router and hands them to the second."""
    space = bench.rig.namespaces
    to = bench.rig.members["se-2"].address
    bench.run(space.run("se-2", ["nft", "-f", "-"], _SINK))
    off = ("ip_forward", "conf/all/send_redirects", "conf/eth0/send_redirects")
    settings = {f"net/ipv4/{key}": value for key, value in zip(off, (1, 0, 0), strict=True)}
    bench.run(space.sysctl("se-5", settings))
    bench.run(space.ip("se-5", [f"addr del {VIP}/32 dev lo", f"route add {VIP} via {to}"]))
    bench.rules("se-1", "se-2")
    client = Client(bench.rig, _FLOOD, VIP, PACKETS)

    def by(name: str) -> float:
        bench.to(name)
        return client.took_s()

    try:
        limit_s, took_s = bench.in_turns_s(lambda: by("se-5"), lambda: by("se-1"))
        assert bench.run(_seen(bench.rig)) == 2 * ROUNDS * PACKETS  # none was lost on the way
        measure(client, PACKETS, limit_s)
        note(
            f"  packets a second from the client through one Service Engine: handed over"
            f" {PACKETS / took_s:,.0f}, routed {PACKETS / limit_s:,.0f}"
        )
    finally:
        client.end()


async def _plain(rig: Rig) -> None:
    """Have the VIP of `PLAIN`."""
    at = rig.members["se-5"].address
    await rig.namespaces.ip("se-5", [f"addr add {PLAIN}/32 dev lo"])
    await rig.namespaces.ip("router", [f"route add {PLAIN} via {at}"])
    log = rig.directory / "plain.log"
    rig.namespaces.spawn("se-5", [sys.executable, "-c", SERVER_CODE, PLAIN], log)
    await until(says(log, "listening"))


async def _seen(rig: Rig) -> int:
    words = ["nft", "list", "counter", "inet", "sink", "seen"]
    out = await rig.namespaces.run("se-2", words)
    return int(out.split("packets")[1].split()[0])

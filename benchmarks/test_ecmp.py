"""Next hops of 1,000 IPv4 flows from Python objects, and of a million from typed buffers.

Physical limit: SipHash-2-4 over 48 bytes is 18 rounds, each of four dependent steps, so one flow
after the other takes some 72 cycles. What the kernel needs beyond is reading Python objects: five
per flow, two of them addresses that must be parsed unless they come packed.

From buffers, several flows are hashed side by side, and of their messages three 64-bit words vary
(IPv6: six; one more where protocols are mixed, and two of zeros behind it); the limit is how many
vector operations the machine starts a cycle.
"""

import random
import socket
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from akocore import (
    EcmpGroup,
    Flows,
    MaglevGroup,
    ModuloGroup,
    RendezvousGroup,
    ResilientGroup,
)
from akocore._fast import ecmp as kernel
from benchmarks.conftest import Measure
from benchmarks.limits import read_s, siphash_s, siphash_side_by_side_s
from reference import ecmp as reference

HOPS = [("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.3", 2)]
FLOWS = [(f"10.0.{i >> 8}.{i & 255}", "192.0.2.1", 6, 1024 + i, 443) for i in range(1_000)]
COLUMNS = Flows(*zip(*FLOWS, strict=True))
PACKED = COLUMNS._replace(
    src=[socket.inet_aton(flow[0]) for flow in FLOWS],
    dst=[socket.inet_aton(flow[1]) for flow in FLOWS],
)
GROUP = EcmpGroup(HOPS, seed=7)
MANY = 1_000_000
OUT = array("H", bytes(2 * MANY))


def many(size: int, protos: tuple[int, ...] = (6,), count: int = MANY) -> Flows:
    """Flows as buffers, with addresses of so many bytes."""
    rng = random.Random(size)
    return Flows(
        rng.randbytes(size * count),
        rng.randbytes(size * count),
        bytes(rng.choices(protos, k=count)),
        array("H", rng.randbytes(2 * count)),
        array("H", [443]) * count,
    )


def as_objects(flows: Any, size: int) -> list[Any]:
    """The same as tuples, for the twin."""
    addresses = [
        [column[i : i + size] for i in range(0, len(column), size)] for column in flows[:2]
    ]
    return list(zip(*addresses, *flows[2:5], strict=True))


@pytest.mark.benchmark(group="ecmp-1k")
@pytest.mark.parametrize(
    "call",
    [
        lambda: GROUP.select(FLOWS),
        lambda: GROUP.select(COLUMNS),
        lambda: GROUP.select(PACKED),
        lambda: reference.select(HOPS, FLOWS, seed=7),
    ],
    ids=["cython", "cython columns", "cython packed columns", "python"],
)
def test_select(measure: Measure, call: Callable[[], Any]) -> None:
    assert set(measure(call, len(FLOWS), siphash_s(len(FLOWS)))) == {0, 1, 2}


@pytest.mark.benchmark(group="ecmp-1m")
@pytest.mark.parametrize(
    "size, protos, words",
    [(4, (6,), 3), (4, (6, 17), 6), (16, (6,), 6), (16, (6, 17), 9)],
    ids=["IPv4", "IPv4 TCP and UDP", "IPv6", "IPv6 TCP and UDP"],
)
def test_select_from_buffers(
    measure: Measure, size: int, protos: tuple[int, ...], words: int
) -> None:
    flows = many(size, protos)
    limit_s = siphash_side_by_side_s(MANY, words, kernel._instruction_sets()[-1])
    assert set(measure(lambda: GROUP.select(flows, OUT), MANY, limit_s)) == {0, 1, 2}


@pytest.mark.benchmark(group="ecmp-1m-by-instruction-set")
@pytest.mark.parametrize("instruction_set", kernel._instruction_sets())
@pytest.mark.parametrize("size, words", [(4, 3), (16, 6)], ids=["IPv4", "IPv6"])
def test_hashes_by_instruction_set(
    measure: Measure, size: int, words: int, instruction_set: str
) -> None:
    flows = many(size)
    limit_s = siphash_side_by_side_s(MANY, words, instruction_set)
    measure(lambda: kernel._hashes_by(instruction_set, GROUP, flows), MANY, limit_s)


@pytest.mark.benchmark(group="ecmp-place-1m")
@pytest.mark.parametrize(
    "group",
    [
        GROUP,
        EcmpGroup([f"10.0.{i >> 8}.{i & 255}" for i in range(1_000)], seed=7),
        ResilientGroup(HOPS, seed=7, buckets=1_024),
        ModuloGroup(HOPS, seed=7),
        MaglevGroup(HOPS, seed=7),
        RendezvousGroup([name for name, _ in HOPS], seed=7),
        RendezvousGroup(HOPS, seed=7),
    ],
    ids=[
        "hash-threshold",
        "hash-threshold 1,000 hops",
        "resilient",
        "modulo",
        "maglev",
        "rendezvous",
        "rendezvous weighted",
    ],
)
def test_place(measure: Measure, group: kernel.HopGroup) -> None:
    """Hashes to hops, beside reading the hashes once and writing the hops."""
    hashes = GROUP.hashes(many(4))
    measure(lambda: group.place(hashes, OUT), MANY, read_s(6 * MANY))


@pytest.mark.benchmark(group="ecmp-update")
@pytest.mark.parametrize("buckets", [128, 65_535])
def test_update_of_a_resilient_group(measure: Measure, buckets: int) -> None:
    """A hop that comes and goes, by bucket, beside reading the table once."""
    group = ResilientGroup(HOPS, seed=7, buckets=buckets)

    def come_and_go() -> int:
        return group.replace([*HOPS, ("10.0.0.4", 1)], 0) + group.replace(HOPS, 0)

    moved = measure(come_and_go, 2 * buckets, 2 * read_s(18 * buckets))
    assert moved == pytest.approx(2 * buckets / 5, rel=0.2)

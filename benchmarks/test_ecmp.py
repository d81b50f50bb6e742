"""Next hops of 1,000 IPv4 flows.

Physical limit: SipHash-2-4 over 48 bytes is 18 rounds, each of four dependent steps, so one flow
after the other takes some 72 cycles. What the kernel needs beyond is reading Python objects: five
per flow, two of them addresses that must be parsed unless they come packed.
"""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from akocore import EcmpGroup, Flows
from benchmarks.conftest import Measure
from benchmarks.limits import siphash_s
from reference import ecmp as reference

HOPS = [("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.3", 2)]
FLOWS = [(f"10.0.{i >> 8}.{i & 255}", "192.0.2.1", 6, 1024 + i, 443) for i in range(1_000)]
COLUMNS = Flows(*zip(*FLOWS, strict=True))
PACKED = COLUMNS._replace(
    src=[socket.inet_aton(str(a)) for a in COLUMNS.src],
    dst=[socket.inet_aton(str(a)) for a in COLUMNS.dst],
)
GROUP = EcmpGroup(HOPS, seed=7)


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

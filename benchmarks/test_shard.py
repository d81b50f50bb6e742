"""Shards of 10,000 hosts.

Physical limit of AKO's function: FNV-1a needs one 32-bit multiply for each byte. With eight
lanes to a vector and one vector multiply a cycle, n bytes need n / 8 cycles; one chain alone,
without lanes, needs some 4 cycles a byte. Reaching it is out of sight: each byte also needs an
xor, a shift and a mask, and its quarter of a gathered word. The other two schemes are set beside
the same limit, for the bytes that they hash too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mmh3
import pytest

import akocore
from benchmarks.conftest import Measure
from benchmarks.limits import multiply_s
from reference import shard as reference

HOSTS = [f"hello{i}.apps.example.test" for i in range(10_000)]
RAGGED = [f"{'x' * (i * 7919 % 50)}{i}.apps.example.test" for i in range(10_000)]


def mmh3_per_host(hosts: Sequence[str], shards: int) -> list[int]:
    return [mmh3.hash(host, signed=False) & (shards - 1) for host in hosts]


@pytest.mark.benchmark(group="shard-10k")
@pytest.mark.parametrize("hosts", [HOSTS, RAGGED], ids=["25 bytes", "16 to 70 bytes"])
@pytest.mark.parametrize(
    "impl",
    [akocore.shard_hosts, mmh3_per_host, reference.shard_hosts],
    ids=["cython", "mmh3 per host", "python"],
)
def test_shard_hosts(measure: Measure, impl: Callable[..., Any], hosts: list[str]) -> None:
    out = measure(lambda: impl(hosts, 8), len(hosts), multiply_s(sum(map(len, hosts))))
    assert set(out) == set(range(8))


@pytest.mark.benchmark(group="jump-10k")
@pytest.mark.parametrize(
    "impl", [akocore.jump_hosts, reference.jump_hosts], ids=["cython", "python"]
)
def test_jump_hosts(measure: Measure, impl: Callable[..., Any]) -> None:
    out = measure(lambda: impl(HOSTS, 7), len(HOSTS), multiply_s(sum(map(len, HOSTS))))
    assert set(out) == set(range(7))


@pytest.mark.benchmark(group="rendezvous-10k")
@pytest.mark.parametrize(
    "impl", [akocore.rendezvous_hosts, reference.rendezvous_hosts], ids=["cython", "python"]
)
def test_rendezvous_hosts(measure: Measure, impl: Callable[..., Any]) -> None:
    out = measure(lambda: impl(HOSTS, 8), len(HOSTS), multiply_s(sum(map(len, HOSTS))))
    assert set(out) == set(range(8))

"""Flows as typed buffers: the same answers, by every copy of the hash, and what is refused."""

import mmap
import random
import socket
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from akocore import EcmpGroup, Flows, RendezvousGroup
from akocore._fast import ecmp as kernel
from reference import ecmp as reference

HOPS = [("a", 1), ("b", 2), ("c", 3)]
LENGTHS = [0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 255, 256, 257, 511, 513, 600]


def columns(count: int, size: int, rng: random.Random, protos: int = 3) -> Flows:
    """Flows of few different values, so that halves of addresses, and ports, are often alike."""
    few = [rng.randbytes(4) for _ in range(3)]
    return Flows(
        b"".join(rng.choice(few) for _ in range(count * size // 4)),
        b"".join(rng.choice(few) for _ in range(count * size // 4)),
        bytes(rng.choice((6, 17, 255)[:protos]) for _ in range(count)),
        array("H", (rng.choice([0, 1, 256, 443, 65535]) for _ in range(count))),
        array("H", rng.randbytes(2 * count)),
        array("I", (rng.randrange(1 << 20) for _ in range(count))) if size == 16 else None,
    )


def rows(flows: Any) -> list[Any]:
    """The same as tuples, for the twin."""
    count = len(flows.proto)
    size = len(flows.src) // count if count else 4
    addresses = [[column[i * size : (i + 1) * size] for i in range(count)] for column in flows[:2]]
    return list(zip(*addresses, *flows[2:5], flows.label or [0] * count, strict=True))


@given(
    st.sampled_from(LENGTHS),
    st.sampled_from([4, 16]),
    st.integers(),
    st.integers(1, 3),
    st.integers(1, 2**32 - 1),
    st.sampled_from([0, 1, 3]),
    st.integers(1, 63),
    st.booleans(),
)
@example(600, 16, 1, 3, 7, 3, 0x3F, True)
@example(600, 4, 1, 1, 7, 3, 0x37, True)
def test_every_copy_of_the_hash_is_the_twins(
    count: int,
    size: int,
    random_seed: int,
    protos: int,
    seed: int,
    policy: int,
    fields: int,
    forwarded: bool,
) -> None:
    flows = columns(count, size, random.Random(random_seed), protos)
    hashing: dict[str, Any] = {
        "seed": seed,
        "policy": policy,
        "fields": fields,
        "forwarded": forwarded,
    }
    group = EcmpGroup(HOPS, **hashing)
    expected = reference.hashes(rows(flows), **hashing)
    for instruction_set in kernel._instruction_sets():
        assert list(kernel._hashes_by(instruction_set, group, flows)) == expected
    assert list(group.hashes(flows)) == expected
    assert list(group.select(flows)) == reference.place_by_threshold(HOPS, expected)
    five_tuples = [row[:5] for row in rows(flows)]
    assert group.select(five_tuples) == group.select(flows._replace(label=None))


def test_any_machine_has_a_copy_of_the_hash_and_an_unknown_one_is_an_error() -> None:
    assert kernel._instruction_sets()[0] == "any"
    with pytest.raises(ValueError, match="no sse9"):
        kernel._hashes_by("sse9", EcmpGroup(HOPS, seed=1), [])


def test_addresses_may_be_numbers() -> None:
    texts = [f"10.{i}.3.{255 - i}" for i in range(200)]
    packed = b"".join(map(socket.inet_aton, texts))
    numbers = array("I", (int.from_bytes(socket.inet_aton(text), "big") for text in texts))
    dst = b"".join(map(socket.inet_aton, reversed(texts)))
    rest = (bytes([6]) * 200, array("H", range(200)), array("H", [443]) * 200)
    group = EcmpGroup(HOPS, seed=3)
    expected = group.select(Flows(texts, texts[::-1], *map(list, rest)))
    assert group.select(Flows(packed, dst, *rest)) == expected
    assert group.select(Flows(numbers, numbers[::-1], *rest)) == expected
    assert group.select(Flows(packed, numbers[::-1], *rest)) == expected


def test_numpy_mmap_and_memoryviews_are_buffers_too(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    flows: Any = columns(100, 16, random.Random(5))
    group = EcmpGroup(HOPS, seed=3)
    expected = group.select(flows)
    (tmp_path / "src").write_bytes(flows.src)
    with open(tmp_path / "src", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert group.select(flows._replace(src=mapped)) == expected
    matrix = numpy.frombuffer(flows.src, numpy.uint8).reshape(100, 16)
    ports = numpy.asarray(flows.sport)
    out = numpy.zeros(100, numpy.uint16)
    assert group.select(flows._replace(src=matrix, sport=ports), out) is out
    assert out.tolist() == list(expected)
    strings = numpy.frombuffer(flows.src, "S16")
    assert group.select(flows._replace(src=memoryview(strings))) == expected
    with pytest.raises(ValueError, match="src must be C-contiguous: "):
        group.select(flows._replace(src=matrix[:, ::-1]))
    with pytest.raises(ValueError, match="dport must be C-contiguous: "):
        group.select(flows._replace(dport=memoryview(bytes(400)).cast("H")[::2]))


def test_out_is_written_and_returned() -> None:
    flows = columns(300, 4, random.Random(6))
    group = EcmpGroup(HOPS, seed=3)
    out, hashes = array("H", bytes(600)), array("I", bytes(1200))
    assert group.select(flows, out) is out
    assert group.hashes(flows, hashes) is hashes
    assert out == group.select(flows)
    assert hashes == group.hashes(flows)
    placed = memoryview(bytearray(600)).cast("H")
    assert group.place(hashes, placed) is placed
    assert array("H", placed) == out
    again = array("H", bytes(600))
    assert group.select([row[:5] for row in rows(flows)], again) == out
    assert group.shares(flows) == {name: list(out).count(i) for i, (name, _) in enumerate(HOPS)}


def test_threads_may_share_a_group() -> None:
    group = EcmpGroup(HOPS, seed=3)
    parts = [columns(5_000, size, random.Random(size + i)) for i in range(4) for size in (4, 16)]
    expected = [group.select(flows) for flows in parts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            assert list(pool.map(group.select, parts)) == expected


GOOD = columns(4, 4, random.Random(7))


@pytest.mark.parametrize(
    "field, column, error, text",
    [
        ("proto", array("H", [6] * 4), TypeError, "proto must be a buffer of uint8, not of 'H'"),
        ("sport", array("I", [1] * 4), TypeError, "sport must be a buffer of uint16, not of 'I'"),
        ("dport", array("h", [1] * 4), TypeError, "dport must be a buffer of uint16, not of 'h'"),
        ("sport", array("H", [1] * 3), ValueError, "4 of proto, 3 of sport, 4 of dport"),
        ("src", bytes(15), ValueError, "src has 15 bytes for 4 flows, neither 4 nor 16 each"),
        ("dst", bytes(64), ValueError, "dst has 64 bytes for 4 flows, not 4 each as src"),
        ("src", array("d", [1] * 4), TypeError, "src must be a buffer of uint8 or bytes or uint32"),
        ("src", array("I", [1] * 16), TypeError, "src must be a buffer of uint8 for IPv6"),
        ("label", array("I", [0] * 3), ValueError, "label has 3 items for 4 flows"),
        ("label", array("I", [0, 0, 1, 0]), ValueError, "flow 2: label must be 0 for IPv4, not 1"),
        ("label", array("H", [0] * 4), TypeError, "label must be a buffer of uint32"),
        ("label", [0] * 4, TypeError, "label must be a buffer of uint32, not list"),
    ],
)
def test_a_column_of_another_shape_is_an_error_that_names_it(
    field: str, column: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        EcmpGroup(HOPS, seed=1).select(GOOD._replace(**{field: column}))


@pytest.mark.parametrize(
    "out, error, text",
    [
        (array("H", [0] * 3), ValueError, "out has 3 places for 4 flows"),
        (array("I", [0] * 4), TypeError, "out must be a buffer of uint16, not of 'I'"),
        (bytearray(8), TypeError, "out must be a buffer of uint16, not of 'B'"),
        (memoryview(bytes(8)).cast("H"), ValueError, "out must be C-contiguous and writable"),
        ([0] * 4, TypeError, "out must be a buffer of uint16, not list"),
    ],
)
def test_an_out_that_does_not_fit_is_an_error(out: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        EcmpGroup(HOPS, seed=1).select(GOOD, out)


@pytest.mark.parametrize("group", [EcmpGroup(HOPS, seed=1), RendezvousGroup(HOPS, seed=1)])
def test_a_hash_beyond_the_groups_bits_is_an_error_that_names_its_place(group: Any) -> None:
    assert len(group.place(array("I", [0, 2**31 - 1]))) == 2
    with pytest.raises(ValueError, match=r"hash 1 must be below 2\^31, not 2147483648"):
        group.place(array("I", [0, 2**31]))
    with pytest.raises(TypeError, match="hashes must be a buffer of uint32, not of 'Q'"):
        group.place(array("Q", [0]))

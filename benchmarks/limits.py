"""What the machine itself allows, so that a figure can be read against it."""

import re
import time
from collections.abc import Callable
from pathlib import Path


def best_s(call: Callable[[], object], rounds: int = 7, at_least_s: float = 0.005) -> float:
    """Seconds a call takes: the best of some rounds, each long enough for the clock."""
    number = 1
    while True:
        start = time.perf_counter()
        for _ in range(number):
            call()
        took = time.perf_counter() - start
        if took >= at_least_s or number >= 1 << 20:
            break
        number *= 2
    best = took / number
    for _ in range(rounds - 1):
        start = time.perf_counter()
        for _ in range(number):
            call()
        best = min(best, (time.perf_counter() - start) / number)
    return best


def clock_hz() -> float:
    """The processor's clock as Linux tells it (boost may be higher), else 3 GHz."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"cpu MHz\s*:\s*([0-9.]+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return float(found[1]) * 1e6 if found else 3e9


def multiply_s(hashed_bytes: int) -> float:
    """One 32-bit multiply a byte, eight lanes to a vector, one vector multiply a cycle."""
    return hashed_bytes / 8 / clock_hz()


def read_s(touched_bytes: int) -> float:
    """Reading that many bytes once, in order: measured as half of a plain copy."""
    block = bytes(touched_bytes)
    return best_s(lambda: bytearray(block)) / 2


def siphash_s(flows: int, words: int = 6) -> float:
    """SipHash-2-4 of so many words, each round four dependent steps."""
    return flows * ((words + 1) * 2 + 4) * 4 / clock_hz()


def siphash_side_by_side_s(flows: int, words: int, instruction_set: str) -> float:
    """The same of many flows at a time: what counts is how many operations a cycle starts.

    A round has four additions, four exclusive ors and six rotations, each of these three
    operations where there is no instruction for it. Scalar: four a cycle; AVX2: three of four
    lanes; AVX-512: two of eight lanes. Nothing else is counted.
    """
    lanes_a_cycle, rotation = {"any": (4, 1), "avx2": (12, 3), "avx512": (16, 1)}[instruction_set]
    rounds = (words + 1) * 2 + 4
    return flows * rounds * (8 + 6 * rotation) / lanes_a_cycle / clock_hz()

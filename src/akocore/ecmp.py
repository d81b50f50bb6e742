"""What ECMP does to flows: how evenly it spreads them, how many move when the next hops change,
and what two routers in a row do together.

Over the groups of the kernels (`akocore.EcmpGroup` and its kin); flows are `akocore.Flows` or
5-tuples. Figures that follow from the ranges or tables of a group alone are exact over all hash
values; the rest is counted over the flows given. Nothing here draws random numbers but
`make_flows`, from a seed.
"""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist

from msgspec import Struct

from akocore import EcmpGroup, Flows, ResilientGroup
from akocore._fast.ecmp import HopGroup, TableGroup

__all__ = [
    "Distribution",
    "HopShare",
    "Insertion",
    "Interval",
    "Moves",
    "Tiers",
    "Traffic",
    "distribution",
    "imbalance_interval",
    "insertions",
    "make_flows",
    "moved_hashes",
    "moves",
    "proportion_interval",
    "shares_of_hashes",
    "two_tiers",
    "updated",
]

AnyFlows = Flows | Sequence[tuple[str | bytes, str | bytes, int, int, int]]
Hops = Sequence[tuple[str, int]]


class Interval(Struct, frozen=True):
    """Where a figure lies with the confidence asked for."""

    low: float
    high: float


class HopShare(Struct, frozen=True):
    """One hop's part. Shares are fractions of 1."""

    hop: str
    weight: int
    due: float  # by weight
    hashes: float | None  # of all hash values, exactly; None where only flows can tell
    flows: int
    share: float  # of the flows


class Distribution(Struct, frozen=True):
    """How flows spread over hops.

    ``imbalance``: the most that a hop has for its weight, over the mean (1: perfect). ``fair``:
    where it lies for so many random flows, so one above tells of a hash that is not random enough
    for these flows, or of too few hash values (buckets) for the weights.
    """

    flows: int
    hops: tuple[HopShare, ...]
    imbalance: float
    fair: Interval


class Moves(Struct, frozen=True):
    """What a change of the hops does to flows.

    ``fraction`` of the flows given have another hop; ``interval``: where the fraction of all flows
    like these lies; ``hashes``: of all hash values, exactly, None where only flows can tell.
    ``pairs``: how many flows by hop before and hop after, those that stay included.
    """

    flows: int
    moved: int
    fraction: float
    interval: Interval
    hashes: float | None
    pairs: dict[str, dict[str, int]]


class Insertion(Struct, frozen=True):
    """A place for a new hop in the order (0: first), and what part of the flows it moves."""

    place: int
    hops: tuple[tuple[str, int], ...]
    moved: float


class Tiers(Struct, frozen=True):
    """Flows through two routers in a row: each hop of the first is a router with hops of its own.

    ``used`` of ``paths`` get any flow; ``imbalance``: the most that a path has for its weights,
    over the mean.
    """

    flows: int
    paths: int
    used: int
    imbalance: float
    routers: dict[str, dict[str, int]]


class Traffic(StrEnum):
    """Flows that look like something."""

    RANDOM = "random"  # any client, any port
    CLIENTS = "clients"  # clients in a row, 16 connections each from ports in a row
    NAT = "nat"  # one address after the other, all of its ports


def make_flows(
    count: int,
    traffic: Traffic = Traffic.RANDOM,
    *,
    seed: int = 0,
    vips: int = 1,
    ipv6: bool = False,
) -> Flows:
    """TCP flows to port 443 of so many addresses in a row, as buffers. At most 0.5 us a flow."""
    if count < 0 or not 1 <= vips <= 65_536:
        raise ValueError(f"make_flows: {count} flows to {vips} addresses")
    rng = random.Random(seed)
    if traffic is Traffic.RANDOM:
        clients = array("I", rng.randbytes(4 * count))
        sports = array("H", rng.randbytes(2 * count))
        targets = array("I", rng.choices(range(vips), k=count)) if vips > 1 else None
    else:
        each, first = (16, 32_768) if traffic is Traffic.CLIENTS else (64_512, 1_024)
        clients = array("I", (0x0A000001 + i // each & 0xFFFFFFFF for i in range(count)))
        sports = array("H", (first + i % each for i in range(count)))
        targets = array("I", (i % vips for i in range(count))) if vips > 1 else None
    numbers = array("I", [0xC0000201]) * count
    if targets is not None:
        numbers = array("I", (0xC0000201 + target for target in targets))
    dports = array("H", [443]) * count
    protos = bytes([6]) * count
    if not ipv6:
        return Flows(clients, numbers, protos, sports, dports)
    prefixes = (bytes.fromhex("20010db8000a") + bytes(6), bytes.fromhex("20010db8000b") + bytes(6))
    src, dst = map(_long, prefixes, (clients, numbers))
    return Flows(src, dst, protos, sports, dports)


def _long(prefix: bytes, numbers: array[int]) -> bytes:
    """IPv6 addresses of 12 bytes of prefix and a number each."""
    out = bytearray((prefix + bytes(4)) * len(numbers))
    raw = numbers.tobytes()
    order = range(4) if memoryview(array("H", [1])).cast("B")[0] == 0 else range(3, -1, -1)
    for k, at in enumerate(order):
        out[12 + k :: 16] = raw[at::4]
    return bytes(out)


def shares_of_hashes(group: HopGroup) -> list[float] | None:
    """Each hop's part of all hash values, exactly; None for a group that has no ranges or table."""
    sizes = [0] * len(group.hops)
    pieces = _pieces(group)
    if pieces is None:
        return None
    for hop, size in pieces:
        sizes[hop] += size
    return [size / (1 << group.bits) for size in sizes]


def _pieces(group: HopGroup) -> list[tuple[int, int]] | None:
    """(hop, number of hash values): of ranges in order, or of a table's remainders in order."""
    if isinstance(group, EcmpGroup):
        uppers = sorted({bound for bound in group.bounds if bound >= 0})
        hops = group.place(array("I", uppers))  # which a hop that is down leaves to others
        sizes = [upper - lower for lower, upper in zip([-1, *uppers], uppers, strict=False)]
        return list(zip(hops, sizes, strict=True))
    if isinstance(group, TableGroup):
        table = group.table
        each, more = divmod(1 << group.bits, len(table))
        return [(hop, each + (i < more)) for i, hop in enumerate(table)]
    return None


def distribution(group: HopGroup, flows: AnyFlows, confidence: float = 0.95) -> Distribution:
    """How the flows spread over the group's hops."""
    counts = list(group.shares(flows).values())
    total = sum(counts)
    if not total:
        raise ValueError("distribution: there are no flows")
    weights = [weight for _, weight in group.hops]
    hashes = shares_of_hashes(group)
    every = sum(weights)
    return Distribution(
        flows=total,
        hops=tuple(
            HopShare(
                hop=name,
                weight=weight,
                due=weight / every,
                hashes=None if hashes is None else hashes[i],
                flows=counts[i],
                share=counts[i] / total,
            )
            for i, (name, weight) in enumerate(group.hops)
        ),
        imbalance=max(c * every / w for c, w in zip(counts, weights, strict=True)) / total,
        fair=imbalance_interval(weights, total, confidence=confidence, shares=hashes),
    )


def imbalance_interval(
    weights: Sequence[int],
    flows: int,
    *,
    confidence: float = 0.95,
    shares: Sequence[float] | None = None,
) -> Interval:
    """Where max/mean lies for so many random flows over hops of these weights.

    ``shares``: the chance of each hop, where rounding makes it differ from its weight's. The
    counts are multinomial; the chance that none exceeds its limit comes from Levin's
    representation by truncated Poisson variables (Annals of Statistics 9(5), 1981) with his
    Edgeworth approximation, which is off by less than 0.01 here; for two hops it is exact.
    """
    _check_confidence(confidence)
    if flows < 1 or not weights:
        raise ValueError(f"imbalance_interval: {flows} flows over {len(weights)} hops")
    due = [weight / sum(weights) for weight in weights]
    chances = due if shares is None else list(shares)

    def chance(ratio: float) -> float:
        limits = [math.floor(ratio * flows * part + 1e-9) for part in due]
        return _chance_of_none_above(limits, chances, flows)

    tail = (1 - confidence) / 2
    return Interval(_least(chance, tail), _least(chance, 1 - tail))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence must lie inside 0 to 1, not {confidence}")


def _least(chance: Callable[[float], float], level: float) -> float:
    """The least imbalance of at least that chance, to four digits."""
    low, high = 1.0, 2.0
    if chance(low) >= level:
        return low
    while chance(high) < level and high < 1e9:
        low, high = high, high * 2
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if chance(middle) >= level else (middle, high)
    return high


@lru_cache(maxsize=64)
def _poisson(mean: float) -> tuple[int, list[tuple[float, ...]]]:
    """From the first of the counts that matter on: sums of chance × (count - mean)^k, k 0 to 4."""
    half = int(10 * math.sqrt(mean)) + 20
    first = max(0, int(mean) - half)

    def terms() -> Iterator[tuple[float, ...]]:
        for count in range(first, int(mean) + half + 1):
            chance = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
            off = count - mean
            yield chance, chance * off, chance * off**2, chance * off**3, chance * off**4

    def add(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    return first, list(accumulate(terms(), add))


def _chance_of_none_above(limits: list[int], chances: Sequence[float], n: int) -> float:
    """P(count_i <= limits[i] for all i) of n flows."""
    parts = [(limit, p) for limit, p in zip(limits, chances, strict=True) if p > 0]
    if len(parts) == 1:
        return float(parts[0][0] >= n)
    if len(parts) == 2:
        (top, p), (other_top, _) = parts
        q, log_n = 1 - p, math.lgamma(n + 1)
        half = 10 * math.sqrt(n * p * q) + 20
        low, high = int(n * p - half), int(n * p + half)
        return min(
            1.0,
            sum(
                math.exp(
                    log_n
                    - math.lgamma(k + 1)
                    - math.lgamma(n - k + 1)
                    + k * math.log(p)
                    + (n - k) * math.log(q)
                )
                for k in range(max(0, n - other_top, low), min(n, top, high) + 1)
            ),
        )
    log_all = mean = variance = third = fourth = 0.0
    for limit, p in parts:
        first, sums = _poisson(n * p)
        if limit < first:
            return 0.0
        s0, s1, s2, s3, s4 = sums[min(limit - first, len(sums) - 1)]
        m1, m2, m3, m4 = s1 / s0, s2 / s0, s3 / s0, s4 / s0
        own = m2 - m1**2
        log_all += math.log(s0)
        mean += n * p + m1
        variance += own
        third += m3 - 3 * m1 * m2 + 2 * m1**3
        fourth += m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4 - 3 * own**2
    z = (n - mean) / math.sqrt(variance)
    skew, excess = third / variance**1.5, fourth / variance**2
    edgeworth: float = (
        1
        + skew / 6 * (z**3 - 3 * z)
        + excess / 24 * (z**4 - 6 * z**2 + 3)
        + skew**2 / 72 * (z**6 - 15 * z**4 + 45 * z**2 - 15)
    )
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi * variance) * edgeworth
    log_of_n = n * math.log(n) - n - math.lgamma(n + 1)  # of a Poisson variable of mean n
    return min(1.0, max(0.0, math.exp(log_all - log_of_n) * density))


def proportion_interval(hits: int, of: int, confidence: float = 0.95) -> Interval:
    """Where a proportion lies after so many hits (Wilson's score interval, 1927)."""
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = hits / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def moves(before: HopGroup, after: HopGroup, flows: AnyFlows, confidence: float = 0.95) -> Moves:
    """What part of the flows has another hop (by name) after the change than before."""
    was = [name for name, _ in before.hops]
    now = [name for name, _ in after.hops]
    chosen, chosen_after = before.select(flows), after.select(flows)
    if not chosen:
        raise ValueError("moves: there are no flows")
    pairs = {name: dict.fromkeys(now, 0) for name in was}
    for (a, b), count in Counter(zip(chosen, chosen_after, strict=True)).items():
        pairs[was[a]][now[b]] = count
    moved = sum(n for a, row in pairs.items() for b, n in row.items() if a != b)
    return Moves(
        flows=len(chosen),
        moved=moved,
        fraction=moved / len(chosen),
        interval=proportion_interval(moved, len(chosen), confidence),
        hashes=moved_hashes(before, after),
        pairs=pairs,
    )


def moved_hashes(before: HopGroup, after: HopGroup) -> float | None:
    """The part of all hash values that has another hop, exactly; None where only flows can tell."""
    alike = all(
        getattr(before, setting) == getattr(after, setting)
        for setting in ("seed", "policy", "fields", "forwarded", "bits")
    )
    old, new = _pieces(before), _pieces(after)
    if not alike or old is None or new is None:
        return None
    was, now = before.hops, after.hops
    if isinstance(before, EcmpGroup) and isinstance(after, EcmpGroup):
        return _overlap(
            [(was[hop][0], size) for hop, size in old], [(now[hop][0], size) for hop, size in new]
        )
    if isinstance(before, EcmpGroup) or isinstance(after, EcmpGroup) or len(old) != len(new):
        return None
    moved = sum(size for (a, size), (b, _) in zip(old, new, strict=True) if was[a][0] != now[b][0])
    return moved / (1 << before.bits)


def _overlap(old: list[tuple[str, int]], new: list[tuple[str, int]]) -> float:
    """What part of a line has another name in one cutting than in the other."""
    whole, moved, i, j = sum(size for _, size in old), 0, 0, 0
    old, new = list(old), list(new)
    while i < len(old) and j < len(new):
        (a, x), (b, y) = old[i], new[j]
        step = min(x, y)
        moved += step * (a != b)
        old[i], new[j] = (a, x - step), (b, y - step)
        i, j = i + (x == step), j + (y == step)
    return moved / whole


def insertions(
    before: HopGroup,
    make: Callable[[Hops], HopGroup],
    hop: tuple[str, int],
    flows: AnyFlows,
    into: Hops | None = None,
) -> list[Insertion]:
    """Every place in the order for a new hop, those that move the fewest flows first.

    ``make``: the group of other hops that follows ``before``; ``into``: the hops that the new one
    joins, those of ``before`` unless others change too. Exact where the groups allow it, else
    counted over the flows. Cost: a group and, where counted, two passes over the flows a place.
    """
    found = []
    others = tuple(before.hops if into is None else into)
    for place in range(len(others) + 1):
        hops = (*others[:place], hop, *others[place:])
        after = make(hops)
        moved = moved_hashes(before, after)
        if moved is None:
            moved = moves(before, after, flows).fraction
        found.append(Insertion(place, hops, moved))
    return sorted(found, key=lambda insertion: (insertion.moved, insertion.place))


def updated(group: ResilientGroup, hops: Hops, in_use_by: AnyFlows = ()) -> ResilientGroup:
    """A copy of a resilient group right after an update; buckets that no flow uses are idle."""
    after = group.copy()
    now_ms = after.now_ms + 1
    after.touch(after.hashes(in_use_by), now_ms)
    after.replace(hops, now_ms, idle_ms=after.idle_ms if in_use_by else 0)
    return after


def two_tiers(first: HopGroup, second: HopGroup | Sequence[HopGroup], flows: AnyFlows) -> Tiers:
    """Where flows go that pass two routers; ``second``: one group for all of them, or one each.

    Routers that hash the same fields with the same seed polarise: a flow that reaches the i-th
    router has a hash in its part, so there it finds only some of the hops.
    """
    seconds = [second] * len(first.hops) if isinstance(second, HopGroup) else list(second)
    if len(seconds) != len(first.hops):
        raise ValueError(f"two_tiers: {len(seconds)} groups behind {len(first.hops)} hops")
    chosen = first.select(flows)
    if not chosen:
        raise ValueError("two_tiers: there are no flows")
    later = {id(group): group.select(flows) for group in seconds}
    routers: dict[str, dict[str, int]] = {}
    for i, ((name, _), group) in enumerate(zip(first.hops, seconds, strict=True)):
        routers[name] = dict.fromkeys((hop for hop, _ in group.hops), 0)
        pairs = zip(chosen, later[id(group)], strict=True)
        for hop, count in Counter(b for a, b in pairs if a == i).items():
            routers[name][group.hops[hop][0]] = count
    counts = [count for row in routers.values() for count in row.values()]
    every = sum(weight for _, weight in first.hops)
    due = [
        weight / every * own / sum(weight for _, weight in group.hops)
        for (_, weight), group in zip(first.hops, seconds, strict=True)
        for _, own in group.hops
    ]
    return Tiers(
        flows=len(chosen),
        paths=len(counts),
        used=sum(map(bool, counts)),
        imbalance=max(c / part for c, part in zip(counts, due, strict=True)) / len(chosen),
        routers=routers,
    )

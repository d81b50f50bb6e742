"""Twin of akocore._fast.ecmp: Linux' multipath choice, and what other routers do, in plain Python.

Sources as there: net/core/flow_dissector.c, net/ipv4/route.c, net/ipv4/nexthop.c; the papers.
"""

import math
import socket
from collections.abc import Sequence

M32, M64 = 2**32 - 1, 2**64 - 1
Flow = (
    tuple[str | bytes, str | bytes, int, int, int]
    | tuple[str | bytes, str | bytes, int, int, int, int]
)
Hops = Sequence[tuple[str, int]]


def _rotl(x: int, b: int, bits: int = 64) -> int:
    return (x << b | x >> (bits - b)) & (1 << bits) - 1


def siphash_2_4(data: bytes, k0: int, k1: int) -> int:
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 255])
    words = [int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8)]
    for m, rounds in [(word, 2) for word in words] + [(-1, 4)]:
        if m >= 0:
            v3 ^= m
        else:
            v2 ^= 255
        for _ in range(rounds):
            v0, v2 = (v0 + v1) & M64, (v2 + v3) & M64
            v1, v3 = _rotl(v1, 13) ^ v0, _rotl(v3, 16) ^ v2
            v0, v2 = (_rotl(v0, 32) + v3) & M64, (v2 + v1) & M64
            v3, v1 = _rotl(v3, 21) ^ v0, _rotl(v1, 17) ^ v2
            v2 = _rotl(v2, 32)
        if m >= 0:
            v0 ^= m
    return v0 ^ v1 ^ v2 ^ v3


def jhash_2words(a: int, b: int, initval: int) -> int:
    start = initval + 0xDEADBEEF + (2 << 2)
    a, b, c = (a + start) & M32, (b + start) & M32, start & M32
    c = ((c ^ b) - _rotl(b, 14, 32)) & M32
    a = ((a ^ c) - _rotl(c, 11, 32)) & M32
    b = ((b ^ a) - _rotl(a, 25, 32)) & M32
    c = ((c ^ b) - _rotl(b, 16, 32)) & M32
    a = ((a ^ c) - _rotl(c, 4, 32)) & M32
    b = ((b ^ a) - _rotl(a, 14, 32)) & M32
    return ((c ^ b) - _rotl(b, 24, 32)) & M32


def packed(address: str | bytes) -> bytes:
    if isinstance(address, bytes):
        if len(address) not in (4, 16):
            raise ValueError(address)
        return address
    if not isinstance(address, str):
        raise TypeError(address)
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except OSError as error:
        raise ValueError(address) from error


def flow_hash(flow: Flow, fields: int, seed: int, dissected: bool = False) -> int:
    src, dst = packed(flow[0]), packed(flow[1])
    if len(src) != len(dst):
        raise ValueError(flow)
    proto, sport, dport, label = (*flow[2:], 0)[:4]
    top_label = 0xFFFFF if len(src) == 16 else 0
    for number, top in ((proto, 255), (sport, 65535), (dport, 65535), (label, top_label)):
        if not isinstance(number, int):
            raise TypeError(number)
        if not 0 <= number <= top:
            raise ValueError(number)
    src = src if fields & 1 else bytes(len(src))
    dst = dst if fields & 2 else bytes(len(dst))
    ports = [sport * (fields >> 4 & 1), dport * (fields >> 5 & 1)]
    # IPv4 addresses and ports compare as little-endian words, IPv6 addresses byte by byte.
    step = -1 if len(src) == 4 else 1
    addresses = dst + src if dst[::step] < src[::step] else src + dst
    first, second = (port.to_bytes(2, "big") for port in ports)
    two = second + first if second[::-1] < first[::-1] else first + second
    head = bytes([0, 0, proto if fields & 4 else 0, 0])
    # The packet dissector leaves the flow label in the order of the (little-endian) machine.
    head += (label if fields & 8 else 0).to_bytes(4, "little" if dissected else "big")
    head += bytes(16 + 4)
    key = seed << 32 | seed
    return siphash_2_4(head + two + bytes(4) + addresses + bytes(4), key, key) & M32 or 1


def hashes(
    flows: Sequence[Flow],
    *,
    seed: int,
    policy: int = 3,
    fields: int = 0x37,
    forwarded: bool = True,
    bits: int = 31,
) -> list[int]:
    out = []
    for flow in flows:
        used = {0: 15 if len(packed(flow[0])) == 16 else 3, 1: 0x37, 3: fields}[policy]
        dissected = policy == 3 and forwarded
        value = flow_hash(flow, used, seed, dissected)
        if dissected:
            value = jhash_2words(value, 0, 0)
        out.append(value >> (32 - bits))
    return out


def place_by_threshold(
    hops: Hops, values: Sequence[int], bits: int = 31, down: Sequence[str] = ()
) -> list[int]:
    total, so_far, bounds = sum(weight for _, weight in hops), 0, []
    for _, weight in hops:
        so_far += weight
        bounds.append(((so_far << bits) + total // 2) // total - 1)
    good = [i for i, (name, _) in enumerate(hops) if name not in down]
    return [
        next((i for i in good if bounds[i] >= value), good[0] if good else 0) for value in values
    ]


def select(
    hops: Hops,
    flows: Sequence[Flow],
    *,
    seed: int,
    policy: int = 3,
    fields: int = 0x37,
    forwarded: bool = True,
    bits: int = 31,
    down: Sequence[str] = (),
) -> list[int]:
    values = hashes(flows, seed=seed, policy=policy, fields=fields, forwarded=forwarded, bits=bits)
    return place_by_threshold(hops, values, bits, down)


def modulo_table(hops: Hops) -> list[int]:
    return [i for i, (_, weight) in enumerate(hops) for _ in range(weight)]


def name_hash(name: str, seed: int) -> int:
    return siphash_2_4(name.encode(), seed << 32 | seed, seed << 32 | seed)


def maglev_table(hops: Hops, seed: int, size: int) -> list[int]:
    if size < 2 or any(size % d == 0 for d in range(2, math.isqrt(size) + 1)):
        raise ValueError(size)
    permutations = []
    for name, _ in hops:
        h = name_hash(name, seed)
        offset, skip = (h >> 32) % size, (h & M32) % (size - 1) + 1
        permutations.append([(offset + k * skip) % size for k in range(size)])
    table, credit, at = [-1] * size, [0] * len(hops), [0] * len(hops)
    heaviest = max(weight for _, weight in hops)
    while True:
        for i, (_, weight) in enumerate(hops):
            credit[i] += weight
            if credit[i] < heaviest:
                continue
            credit[i] -= heaviest
            while table[permutations[i][at[i]]] >= 0:
                at[i] += 1
            table[permutations[i][at[i]]] = i
            if -1 not in table:
                return table


def mix(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & M64
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & M64
    return h ^ h >> 33


def place_by_rendezvous(hops: Hops, values: Sequence[int], seed: int) -> list[int]:
    keys = [name_hash(name, seed) for name, _ in hops]
    alike = len({weight for _, weight in hops}) == 1

    def score(i: int, value: int) -> float:
        h = mix(keys[i] ^ value)
        return h if alike else math.log(((h >> 11) + 0.5) / 2.0**53) / hops[i][1]

    return [max(range(len(hops)), key=lambda i: score(i, value)) for value in values]


class Resilient:
    """The bucket table of a resilient group, as net/ipv4/nexthop.c keeps it."""

    def __init__(
        self, hops: Hops, buckets: int, idle_ms: int, unbalanced_ms: int = 0, now: int = 0
    ) -> None:
        self.table: list[str | None] = [None] * buckets
        self.used = [now] * buckets
        self.moved = [now] * buckets
        self.idle_ms, self.unbalanced_ms = idle_ms, unbalanced_ms
        self.under: list[str] = []
        self.unbalanced_since = now
        self.due: int | None = None
        self._update(hops, now)

    def _update(self, hops: Hops, now: int) -> int:
        total, so_far, before = sum(weight for _, weight in hops), 0, 0
        self.wants: dict[str, int] = {}
        for name, weight in hops:
            so_far += weight
            upper = (len(self.table) * so_far * 2 + total) // (2 * total)
            self.wants[name], before = upper - before, upper
        self.table = [hop if hop in self.wants else None for hop in self.table]
        was_under, self.under = self.under, []
        for name, wants in self.wants.items():
            if self.table.count(name) < wants:
                self.under.insert(0, name)
        if self.under and not was_under:
            self.unbalanced_since = now
        return self._upkeep(now)

    def _upkeep(self, now: int) -> int:
        forced_at = self.unbalanced_since + self.unbalanced_ms if self.unbalanced_ms else None
        moved, points = 0, [now + (self.unbalanced_ms or self.idle_ms)]
        for b, hop in enumerate(self.table):
            if hop is not None:
                if self.table.count(hop) <= self.wants[hop]:
                    continue
                unused = self.used[b] == self.moved[b]
                idle_at = now if unused else self.used[b] + self.idle_ms
                if now < idle_at and (forced_at is None or now <= forced_at):
                    points += [idle_at] if forced_at is None else [idle_at, forced_at]
                    continue
            new = self.under[0]
            self.table[b] = new
            self.used[b] = self.moved[b] = now
            moved += 1
            if self.table.count(new) == self.wants[new]:
                self.under.pop(0)
        self.due = max(min(points), now + 500) if self.under else None
        return moved

    def touch(self, values: Sequence[int], now: int) -> None:
        self.advance(now)
        for value in values:
            self.used[value % len(self.table)] = now

    def advance(self, now: int) -> int:
        moved = 0
        while self.due is not None and self.due <= now:
            moved += self._upkeep(self.due)
        return moved

    def replace(self, hops: Hops, now: int, idle_ms: int, unbalanced_ms: int) -> int:
        self.advance(now)
        self.idle_ms, self.unbalanced_ms = idle_ms, unbalanced_ms
        return self._update(hops, now)


def chance_of_none_above(limits: Sequence[int], chances: Sequence[float], n: int) -> float:
    """P(count_i <= limits[i] for all i) of n flows, exactly: hop by hop over all sums."""
    ways = [1.0] + [0.0] * n
    for limit, p in zip(limits, chances, strict=True):
        ways = [
            sum(ways[t - k] * p**k / math.factorial(k) for k in range(min(limit, t) + 1))
            for t in range(n + 1)
        ]
    return ways[n] * math.factorial(n)

"""Twin of akocore._fast.ecmp: Linux' multipath choice, as net/core and net/ipv4 compute it."""

import socket
from collections.abc import Sequence

M32, M64 = 2**32 - 1, 2**64 - 1
Flow = tuple[str | bytes, str | bytes, int, int, int]


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


def flow_hash(flow: Flow, fields: int, seed: int) -> int:
    src, dst = packed(flow[0]), packed(flow[1])
    if len(src) != len(dst):
        raise ValueError(flow)
    proto, sport, dport = flow[2:]
    for number, top in ((proto, 255), (sport, 65535), (dport, 65535)):
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
    head = bytes([0, 0, proto if fields & 4 else 0, 0]) + bytes(4 + 16 + 4)
    key = seed << 32 | seed
    return siphash_2_4(head + two + bytes(4) + addresses + bytes(4), key, key) & M32 or 1


def select(
    hops: Sequence[tuple[str, int]],
    flows: Sequence[Flow],
    *,
    seed: int,
    policy: int = 3,
    fields: int = 0x37,
    forwarded: bool = True,
) -> list[int]:
    total, bounds, so_far = sum(weight for _, weight in hops), [], 0
    for _, weight in hops:
        so_far += weight
        bounds.append(((so_far << 31) + total // 2) // total - 1)
    out = []
    for flow in flows:
        used = {0: 7 if len(packed(flow[0])) == 16 else 3, 1: 0x37, 3: fields}[policy]
        value = flow_hash(flow, used, seed)
        if policy == 3 and forwarded:
            value = jhash_2words(value, 0, 0)
        out.append(next(i for i, bound in enumerate(bounds) if bound >= value >> 1))
    return out

"""Twin of akocore._fast.shard."""

from array import array
from collections.abc import Sequence

from mmh3 import mmh3_x64_128_utupledigest as murmur

M64 = 2**64 - 1


def _checked(items: object, seed: int = 0) -> list[str]:
    if isinstance(items, (str, bytes, bytearray)) or not isinstance(items, Sequence):
        raise TypeError(items)
    if not 0 <= seed < 2**32:
        raise ValueError(seed)
    for item in items:
        if not isinstance(item, str):
            raise TypeError(item)
        item.encode()
    return list(items)


def _count(shards: int) -> int:
    if not 1 <= shards <= 65536:
        raise ValueError(shards)
    return shards


def fnv1a32(host: str) -> int:
    h = 0x811C9DC5
    for byte in host.encode():
        h = (h ^ byte) * 0x01000193 % 2**32
    return h


def shard_hosts(hosts: Sequence[str], shards: int) -> "array[int]":
    if _count(shards) & (shards - 1):
        raise ValueError(shards)
    return array("H", [fnv1a32(host) & (shards - 1) for host in _checked(hosts)])


def jump(key: int, buckets: int) -> int:
    b, j = -1, 0
    while j < buckets:
        b = j
        key = (key * 2862933555777941757 + 1) & M64
        j = int((b + 1) * (2**31 / ((key >> 33) + 1)))
    return b


def jump_hosts(hosts: Sequence[str], shards: int, seed: int = 0) -> "array[int]":
    _count(shards)
    return array("H", [jump(murmur(h.encode(), seed)[0], shards) for h in _checked(hosts, seed)])


def mix(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & M64
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & M64
    return h ^ h >> 33


def rendezvous_hosts(
    hosts: Sequence[str], nodes: Sequence[str] | int, seed: int = 0
) -> "array[int]":
    if isinstance(nodes, int):
        weights = [mix(i * 0x9E3779B97F4A7C15 & M64) for i in range(1, _count(nodes) + 1)]
    else:
        names = _checked(nodes, seed)
        if len(set(names)) != _count(len(names)):
            raise ValueError(names)
        weights = [murmur(name.encode(), seed)[1] for name in names]
    out = array("H")
    for host in _checked(hosts, seed):
        scores = [mix(murmur(host.encode(), seed)[0] ^ weight) for weight in weights]
        out.append(scores.index(max(scores)))
    return out

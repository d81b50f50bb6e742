# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
"""Which next hop Linux picks for a flow: hash-threshold over the kernel's 31-bit flow hash.

Sources: net/core/flow_dissector.c (flow_hash_from_keys_seed), net/ipv4/route.c
(fib_multipath_hash), net/ipv4/fib_semantics.c (fib_rebalance), net/ipv6/route.c,
include/linux/jhash.h; SipHash by Aumasson and Bernstein. A later release adds resilient groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

cimport cython
from cpython cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strlen


cdef extern from "<arpa/inet.h>":
    const int AF_INET
    const int AF_INET6
    int inet_pton(int family, const char *text, void *out) noexcept


cdef array.array _UINT16 = array.array("H")
cdef enum:
    SRC = 0x01
    DST = 0x02
    PROTO = 0x04
    SPORT = 0x10
    DPORT = 0x20
    FIVE_TUPLE = 0x37


class Flows(NamedTuple):
    """The same flows as five parallel sequences; addresses as text or as packed bytes."""

    src: Sequence
    dst: Sequence
    proto: Sequence
    sport: Sequence
    dport: Sequence


cdef struct Flow:
    uint8_t src[16]
    uint8_t dst[16]
    int size  # of an address: 4 or 16
    uint8_t proto
    uint16_t sport
    uint16_t dport


cdef inline uint64_t _rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef inline void _round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[1] = _rotl(v[1], 13) ^ v[0]
    v[0] = _rotl(v[0], 32)
    v[2] += v[3]
    v[3] = _rotl(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = _rotl(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = _rotl(v[1], 17) ^ v[2]
    v[2] = _rotl(v[2], 32)


cdef inline uint64_t _word(const uint8_t *p) noexcept nogil:
    cdef uint64_t w = 0
    cdef int i
    for i in range(8):
        w |= <uint64_t>p[i] << (8 * i)
    return w


cdef inline uint64_t _siphash(const uint8_t *p, int size, uint64_t key) noexcept nogil:
    """SipHash-2-4 of size bytes, a multiple of 8, with k0 = k1 = key."""
    cdef uint64_t v[4]
    cdef uint64_t m
    cdef int i
    v[0] = key ^ 0x736F6D6570736575ULL
    v[1] = key ^ 0x646F72616E646F6DULL
    v[2] = key ^ 0x6C7967656E657261ULL
    v[3] = key ^ 0x7465646279746573ULL
    for i in range(0, size, 8):
        m = _word(p + i)
        v[3] ^= m
        _round(v)
        _round(v)
        v[0] ^= m
    m = <uint64_t>size << 56
    v[3] ^= m
    _round(v)
    _round(v)
    v[0] ^= m
    v[2] ^= 0xFF
    for i in range(4):
        _round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline uint32_t _rotl32(uint32_t x, int b) noexcept nogil:
    return (x << b) | (x >> (32 - b))


cdef inline uint32_t _jhash_with_empty_inner(uint32_t a) noexcept nogil:
    """jhash_2words(a, 0, 0)."""
    cdef uint32_t b = 0xDEADBEF7u, c = 0xDEADBEF7u  # JHASH_INITVAL + (2 << 2)
    a += 0xDEADBEF7u
    c = (c ^ b) - _rotl32(b, 14)
    a = (a ^ c) - _rotl32(c, 11)
    b = (b ^ a) - _rotl32(a, 25)
    c = (c ^ b) - _rotl32(b, 16)
    a = (a ^ c) - _rotl32(c, 4)
    b = (b ^ a) - _rotl32(a, 14)
    return (c ^ b) - _rotl32(b, 24)


cdef inline bint _addresses_swap(const Flow *f) noexcept nogil:
    """Destination < source: as little-endian words for IPv4, by memcmp for IPv6."""
    cdef int i
    if f.size == 16:
        return memcmp(f.dst, f.src, 16) < 0
    for i in range(3, -1, -1):
        if f.dst[i] != f.src[i]:
            return f.dst[i] < f.src[i]
    return False


cdef inline uint16_t _swap16(uint16_t x) noexcept nogil:
    return <uint16_t>(x << 8 | x >> 8)


cdef inline uint32_t _flow_hash(const Flow *flow, int fields, uint64_t key) noexcept nogil:
    """flow_hash_from_keys_seed over the fields that count; never 0."""
    cdef uint8_t data[72]
    cdef Flow f = flow[0]
    cdef int n = f.size
    cdef uint16_t first, second
    cdef uint32_t h
    if not fields & SRC:
        memset(f.src, 0, 16)
    if not fields & DST:
        memset(f.dst, 0, 16)
    first = f.sport if fields & SPORT else 0
    second = f.dport if fields & DPORT else 0
    if _swap16(second) < _swap16(first):
        first, second = second, first
    memset(data, 0, sizeof(data))
    data[2] = f.proto if fields & PROTO else 0
    data[28] = first >> 8
    data[29] = first & 255
    data[30] = second >> 8
    data[31] = second & 255
    if _addresses_swap(&f):
        memcpy(data + 36, f.dst, n)
        memcpy(data + 36 + n, f.src, n)
    else:
        memcpy(data + 36, f.src, n)
        memcpy(data + 36 + n, f.dst, n)
    h = <uint32_t>_siphash(data, 40 + 2 * n, key)
    return h if h else 1


cdef int _address(object address, uint8_t *out, str what, Py_ssize_t i) except -1:
    """Packs an address, text or 4 or 16 bytes; returns its size."""
    cdef Py_ssize_t size
    cdef const char *text
    if isinstance(address, str):
        text = PyUnicode_AsUTF8AndSize(address, &size)
        if <Py_ssize_t>strlen(text) == size:  # a NUL would end the text early
            if inet_pton(AF_INET, text, out) == 1:
                return 4
            if inet_pton(AF_INET6, text, out) == 1:
                return 16
    elif isinstance(address, bytes):
        size = PyBytes_GET_SIZE(address)
        if size == 4 or size == 16:
            memcpy(out, PyBytes_AS_STRING(address), size)
            return <int>size
    else:
        raise TypeError(
            f"flow {i}: {what} must be an address as str or packed bytes, "
            f"not {type(address).__name__}"
        )
    raise ValueError(f"flow {i}: {what} isn't an IPv4 or IPv6 address: {address!r}")


cdef long _number(object number, long top, str what, Py_ssize_t i) except -1:
    if not isinstance(number, int):
        raise TypeError(f"flow {i}: {what} must be int, not {type(number).__name__}")
    if not 0 <= number <= top:
        raise ValueError(f"flow {i}: {what} must be from 0 to {top}, not {number}")
    return number


@cython.final
@cython.auto_pickle(False)
cdef class EcmpGroup:
    """Next hops of one multipath route, chosen as the Linux kernel chooses them.

    ``hops``: different names, in the order in which the kernel lists the route, each alone
    (weight 1) or with its weight (1 to 65535). ``seed``: `net.ipv4.fib_multipath_hash_seed`,
    1 to 2^32-1 (0 lets the kernel draw one, so it can't be predicted). ``policy``:
    `net.ipv4.fib_multipath_hash_policy`: 0 addresses (and next header for IPv6), 1 the 5-tuple,
    3 the fields of ``fields`` (`net.ipv4.fib_multipath_hash_fields`; 0x37 is the 5-tuple), the
    stand-in for a hardware router's 5-tuple hash. ``forwarded``: a packet on its way through,
    which under policy 3 takes one more mixing step than one that starts here.

    Hash-threshold: a hop that comes or goes moves flows between the others too. A later release
    adds resilient groups, whose buckets stay. IPv6 flow labels count as 0.
    """

    cdef readonly tuple hops
    cdef readonly unsigned int seed
    cdef readonly int policy
    cdef readonly int fields
    cdef readonly bint forwarded
    cdef uint64_t _key
    cdef array.array _bounds

    def __init__(self, hops, *, seed, policy=3, fields=FIVE_TUPLE, forwarded=True):
        cdef uint64_t total, sum_ = 0
        if isinstance(hops, (str, bytes)) or not isinstance(hops, Sequence):
            raise TypeError(f"hops must be a sequence of hops, not {type(hops).__name__}")
        pairs = []
        for i, hop in enumerate(hops):
            name, weight = (hop, 1) if isinstance(hop, str) else hop
            if not isinstance(name, str):
                raise TypeError(f"hop {i}: the name must be str, not {type(name).__name__}")
            if not isinstance(weight, int):
                raise TypeError(f"hop {i}: the weight must be int, not {type(weight).__name__}")
            if not 1 <= weight <= 65535:
                raise ValueError(f"hop {i}: the weight must be from 1 to 65535, not {weight}")
            pairs.append((name, weight))
        if not 1 <= len(pairs) <= 65535:
            raise ValueError(f"a group has from 1 to 65535 hops, not {len(pairs)}")
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("hops must have different names")
        if not 1 <= seed <= 0xFFFFFFFF:
            raise ValueError(f"the seed must be from 1 to 2^32-1, not {seed}")
        if policy not in (0, 1, 3):
            raise ValueError(f"the policy must be 0, 1 or 3, not {policy}")
        if fields & ~FIVE_TUPLE or not fields:
            raise ValueError(f"the fields must be bits of 0x37, not {fields:#x}")
        self.hops = tuple(pairs)
        self.seed = seed
        self.policy = policy
        self.fields = fields
        self.forwarded = forwarded
        self._key = <uint64_t>self.seed << 32 | self.seed
        self._bounds = array.array("I")
        total = sum(weight for _, weight in pairs)
        for _, weight in pairs:
            sum_ += weight
            # The sum of 65535 weights stays below 2^32, so every bound is at least 0.
            self._bounds.append(((sum_ << 31) + total // 2) // total - 1)

    def __repr__(self):
        return f"EcmpGroup({list(self.hops)!r}, seed={self.seed}, policy={self.policy})"

    cdef uint32_t _value(self, const Flow *flow) noexcept:
        cdef uint32_t h
        if self.policy == 0:
            h = _flow_hash(flow, SRC | DST | (PROTO if flow.size == 16 else 0), self._key)
        elif self.policy == 1:
            h = _flow_hash(flow, FIVE_TUPLE, self._key)
        else:
            h = _flow_hash(flow, self.fields, self._key)
            if self.forwarded:
                h = _jhash_with_empty_inner(h)
        return h >> 1

    cdef int _read(self, object src, object dst, object proto, object sport, object dport,
                   Py_ssize_t i, Flow *flow) except -1:
        flow.size = _address(src, flow.src, "src", i)
        if _address(dst, flow.dst, "dst", i) != flow.size:
            raise ValueError(f"flow {i}: src and dst are of different families: {src!r}, {dst!r}")
        flow.proto = <uint8_t>_number(proto, 255, "proto", i)
        flow.sport = <uint16_t>_number(sport, 65535, "sport", i)
        flow.dport = <uint16_t>_number(dport, 65535, "dport", i)
        return 0

    cdef inline uint16_t _hop(self, uint32_t value) noexcept:
        cdef const unsigned int *bounds = self._bounds.data.as_uints
        cdef Py_ssize_t low = 0, high = len(self._bounds) - 1, middle
        while low < high:  # the first bound >= value; bounds never fall
            middle = (low + high) >> 1
            if bounds[middle] >= value:
                high = middle
            else:
                low = middle + 1
        return <uint16_t>low

    def select(self, flows) -> array.array:
        """The index of each flow's hop, as ``array('H')``, in the order given.

        ``flows``: n tuples (src, dst, proto, sport, dport), or `Flows` of five parallel
        sequences; addresses as text or packed bytes, both of one family; proto as a number.
        Cost: some 0.15 us a flow, most of it reading the Python objects. TypeError or ValueError
        naming the flow's place and field.
        """
        cdef Py_ssize_t i, n
        cdef Flow flow
        cdef array.array out
        if isinstance(flows, Flows):
            src, dst, proto, sport, dport = flows
            n = len(src)
            if not len(dst) == len(proto) == len(sport) == len(dport) == n:
                raise ValueError(
                    "the columns of flows must be of one length, not "
                    + ", ".join(str(len(column)) for column in flows)
                )
            out = array.clone(_UINT16, n, zero=False)
            i = 0
            for s, d, p, sp, dp in zip(src, dst, proto, sport, dport, strict=True):
                if i == n:
                    raise ValueError("a column of flows is longer than its len()")
                self._read(s, d, p, sp, dp, i, &flow)
                out.data.as_ushorts[i] = self._hop(self._value(&flow))
                i += 1
            return out
        if isinstance(flows, (str, bytes)) or not isinstance(flows, Sequence):
            raise TypeError(
                f"flows must be Flows or a sequence of 5-tuples, not {type(flows).__name__}"
            )
        flows = tuple(flows)
        n = len(flows)
        out = array.clone(_UINT16, n, zero=False)
        for i in range(n):
            if not isinstance(flows[i], tuple) or len(flows[i]) != 5:
                raise TypeError(
                    f"flow {i} must be a tuple (src, dst, proto, sport, dport), not {flows[i]!r}"
                )
            s, d, p, sp, dp = <tuple>flows[i]
            self._read(s, d, p, sp, dp, i, &flow)
            out.data.as_ushorts[i] = self._hop(self._value(&flow))
        return out

    def shares(self, flows) -> dict:
        """How many of the flows each hop gets, by name, in the order of the hops."""
        cdef array.array chosen = self.select(flows)
        cdef list counts = [0] * len(self.hops)
        cdef Py_ssize_t i
        cdef uint16_t hop
        for i in range(len(chosen)):
            hop = chosen.data.as_ushorts[i]
            counts[hop] += 1
        return {name: count for (name, _), count in zip(self.hops, counts, strict=True)}

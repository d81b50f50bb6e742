# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
"""Which next hop a router picks for a flow: Linux exactly, other routers by the scheme they use.

A group hashes the flow (`HopGroup.hashes`) and places the hash on a hop (`HopGroup.place`);
`HopGroup.select` does both. The hash is the Linux kernel's multipath value: SipHash-2-4 of the
flow's fields, of which the upper ``bits`` count (31 on Linux).

Sources: net/core/flow_dissector.c (flow_hash_from_keys_seed), net/ipv4/route.c
(fib_multipath_hash), net/ipv6/route.c, net/ipv4/fib_semantics.c (fib_rebalance),
net/ipv4/nexthop.c (resilient groups), include/linux/jhash.h, Documentation/networking/
nexthop-group-resilient.rst; SipHash by Aumasson and Bernstein; RFC 2992 (hash-threshold, modulo-N);
Eisenbud et al., "Maglev" (NSDI 2016); Thaler and Ravishankar (1998) for highest random weight.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

cimport cython
from cpython cimport array
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport log
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen


cdef extern from *:
    # Spelled out, or Cython would copy the header into its build directory and let it go stale.
    """
    #include "flow_hash.h"
    """
    ctypedef struct flow_columns:
        const uint8_t *src
        const uint8_t *dst
        const uint8_t *proto
        const uint16_t *sport
        const uint16_t *dport
        const uint32_t *label
        int size
        int src_number
        int dst_number
    ctypedef struct flow_fields:
        uint64_t key
        uint64_t src
        uint64_t dst
        uint32_t label
        uint16_t sport
        uint16_t dport
        uint8_t proto
        uint8_t mix
        uint8_t shift
        uint8_t host_label
    ctypedef void (*flow_values)(
        const flow_columns *columns, const flow_fields *fields, Py_ssize_t start, Py_ssize_t count,
        uint32_t *out
    ) noexcept nogil
    flow_values flow_values_for(int set) noexcept nogil
    uint64_t siphash_bytes(const uint8_t *p, Py_ssize_t size, uint64_t key) noexcept nogil


cdef extern from "<arpa/inet.h>":
    const int AF_INET
    const int AF_INET6
    int inet_pton(int family, const char *text, void *out) noexcept


cdef enum:
    SRC = 0x01
    DST = 0x02
    PROTO = 0x04
    LABEL = 0x08
    SPORT = 0x10
    DPORT = 0x20
    FIVE_TUPLE = 0x37
    ALL_FIELDS = 0x3F

    BLOCK = 256  # flows hashed at a time: FLOW_BLOCK
    NOBODY = 0xFFFF  # a bucket whose hop has left
    GUIDE_BITS = 12
    LONGEST_TABLE = 1 << 24
    UPKEEP_MS = 500  # the kernel looks after a resilient table no more often

cdef array.array _UINT16 = array.array("H")
cdef array.array _UINT32 = array.array("I")
cdef tuple _SETS = ("any", "avx2", "avx512")


cdef flow_values _best() noexcept:
    cdef int set_ = 2
    while flow_values_for(set_) is NULL:
        set_ -= 1
    return flow_values_for(set_)


cdef flow_values _flow_values = _best()


class Flows(NamedTuple):
    """Flows as parallel columns; all typed buffers (no copy), or all sequences of Python objects.

    As buffers, C-contiguous: ``proto`` uint8; ``sport``, ``dport`` uint16; ``src``, ``dst`` bytes,
    4 (IPv4) or 16 (IPv6) a flow, in network order, or uint32 numbers (IPv4; 10.0.0.1 is
    0x0A000001). As sequences: addresses as text or packed bytes, the rest int. ``label``: IPv6 flow
    labels, uint32; None counts as 0.
    """

    src: Sequence
    dst: Sequence
    proto: Sequence
    sport: Sequence
    dport: Sequence
    label: Sequence | None = None


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class _Column:
    """One buffer, held until the object goes."""

    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, column, str what, str formats, bint writable):
        cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
        cdef str wanted = f"a buffer of {' or '.join(formats.split())}"
        if not PyObject_CheckBuffer(column):
            raise TypeError(f"{what} must be {wanted}, not {type(column).__name__}")
        try:
            PyObject_GetBuffer(column, &self.view, flags)
        except (BufferError, ValueError) as error:
            raise ValueError(
                f"{what} must be C-contiguous{' and writable' if writable else ''}: {error}"
            ) from None
        self.held = True
        if self.letter() not in formats.split():
            raise TypeError(f"{what} must be {wanted}, not of {self.format()!r}")

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef str format(self):
        return "B" if self.view.format is NULL else self.view.format.decode()

    cdef str letter(self):
        """The item as a type's name; "" for what no column may hold."""
        cdef str name = self.format()
        if name[:1] == "@" or name[:1] == "=":
            name = name[1:]
        if name == "B":
            return "uint8"
        if name in ("s", "4s", "16s"):
            return "bytes"
        if name == "H":
            return "uint16"
        return "uint32" if name in ("I", "L") and self.view.itemsize == 4 else ""

    cdef Py_ssize_t items(self):
        return self.view.len // self.view.itemsize


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
@cython.internal
@cython.auto_pickle(False)
cdef class _Input:
    """Flows of any form: either ``rows`` of Python objects, or ``columns`` of buffers."""

    cdef Py_ssize_t n
    cdef object rows
    cdef flow_columns columns
    cdef list held

    def __cinit__(self, flows):
        cdef object column
        if isinstance(flows, Flows):
            if all([PyObject_CheckBuffer(column) for column in flows[:5]]):
                self.hold(flows)
                return
            columns = flows if flows.label is not None else flows[:5]
            self.n = len(flows.src)
            if any([len(column) != self.n for column in columns]):
                raise ValueError(
                    "the columns of flows must be of one length, not "
                    + ", ".join([str(len(column)) for column in columns])
                )
            if flows.label is None:
                self.rows = zip(zip(*columns, strict=True), repeat(0))
            else:
                self.rows = zip(zip(*columns[:5], strict=True), flows.label, strict=True)
            return
        if isinstance(flows, (str, bytes)) or not isinstance(flows, Sequence):
            raise TypeError(
                f"flows must be Flows or a sequence of 5-tuples, not {type(flows).__name__}"
            )
        flows = tuple(flows)
        self.n = len(flows)
        self.rows = zip(flows, repeat(0))

    cdef int hold(self, flows) except -1:
        cdef _Column src, dst, proto, sport, dport, label
        cdef Py_ssize_t i
        proto = _Column(flows.proto, "proto", "uint8", False)
        sport = _Column(flows.sport, "sport", "uint16", False)
        dport = _Column(flows.dport, "dport", "uint16", False)
        src = _Column(flows.src, "src", "uint8 bytes uint32", False)
        dst = _Column(flows.dst, "dst", "uint8 bytes uint32", False)
        self.held = [src, dst, proto, sport, dport]
        self.n = proto.items()
        if sport.items() != self.n or dport.items() != self.n:
            raise ValueError(
                "the columns of flows must be of one length, not "
                f"{self.n} of proto, {sport.items()} of sport, {dport.items()} of dport"
            )
        self.columns.size = 16 if self.n and src.view.len == 16 * self.n else 4
        self.columns.src = self.addresses(src, "src", &self.columns.src_number)
        self.columns.dst = self.addresses(dst, "dst", &self.columns.dst_number)
        self.columns.proto = <const uint8_t *>proto.view.buf
        self.columns.sport = <const uint16_t *>sport.view.buf
        self.columns.dport = <const uint16_t *>dport.view.buf
        self.columns.label = NULL
        if flows.label is not None:
            label = _Column(flows.label, "label", "uint32", False)
            self.held.append(label)
            if label.items() != self.n:
                raise ValueError(f"label has {label.items()} items for {self.n} flows")
            self.columns.label = <const uint32_t *>label.view.buf
            for i in range(self.n):
                _label(self.columns.label[i], self.columns.size, i)
        return 0

    cdef const uint8_t *addresses(self, _Column column, str what, int *number) except? NULL:
        if column.view.len != self.columns.size * self.n:
            each = "neither 4 nor 16 each" if what == "src" else (
                f"not {self.columns.size} each as src"
            )
            raise ValueError(f"{what} has {column.view.len} bytes for {self.n} flows, {each}")
        number[0] = column.letter() == "uint32"
        if number[0] and self.columns.size == 16:
            raise TypeError(f"{what} must be a buffer of uint8 for IPv6, not of uint32")
        return <const uint8_t *>column.view.buf


cdef int _label(unsigned long label, int size, Py_ssize_t i) except -1:
    if label > 0xFFFFF:
        raise ValueError(f"flow {i}: label must be from 0 to 1048575, not {label}")
    if label and size == 4:
        raise ValueError(f"flow {i}: label must be 0 for IPv4, not {label}")
    return 0


cdef list _pairs(hops):
    """(name, weight) of each hop, checked."""
    if isinstance(hops, (str, bytes)) or not isinstance(hops, Sequence):
        raise TypeError(f"hops must be a sequence of hops, not {type(hops).__name__}")
    cdef list pairs = []
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
    return pairs


cdef void *_zeros(Py_ssize_t n, size_t size) except NULL:
    cdef void *p = PyMem_Calloc(n, size)
    if p is NULL:
        raise MemoryError
    return p


cdef uint64_t _name_hash(str name, uint64_t key) except? 0:
    cdef Py_ssize_t size
    cdef const char *p = PyUnicode_AsUTF8AndSize(name, &size)
    return siphash_bytes(<const uint8_t *>p, size, key)


cdef inline uint64_t _mix(uint64_t h) noexcept nogil:
    """The 64-bit finaliser of MurmurHash3 (Appleby)."""
    h ^= h >> 33
    h *= 0xFF51AFD7ED558CCDULL
    h ^= h >> 33
    h *= 0xC4CEB9FE1A85EC53ULL
    return h ^ (h >> 33)


@cython.auto_pickle(False)
cdef class HopGroup:
    """What all groups of next hops have in common. Make one of its subclasses.

    ``hops``: different names, in the order in which the router lists them, each alone (weight 1)
    or with its weight (1 to 65535). ``seed``: `net.ipv4.fib_multipath_hash_seed`, 1 to 2^32-1 (0
    lets the kernel draw one, so it can't be predicted). ``policy``:
    `net.ipv4.fib_multipath_hash_policy`: 0 addresses (for IPv6 also next header and flow label), 1
    the 5-tuple, 3 the fields of ``fields`` (`net.ipv4.fib_multipath_hash_fields`; 0x37 is the
    5-tuple, 0x08 the flow label), the stand-in for a hardware router's 5-tuple hash.
    ``forwarded``: a packet on its way through, which under policy 3 takes one more mixing step
    than one that starts here. ``bits``: of the hash, that count: 31 on Linux.
    """

    cdef readonly tuple hops
    cdef readonly unsigned int seed
    cdef readonly int policy
    cdef readonly int fields
    cdef readonly bint forwarded
    cdef readonly int bits
    cdef flow_fields _four
    cdef flow_fields _six

    def __init__(self, hops, *, seed, policy=3, fields=FIVE_TUPLE, forwarded=True, bits=31):
        if type(self) is HopGroup:
            raise TypeError("HopGroup has no way to place a flow: make one of its subclasses")
        cdef list pairs = _pairs(hops)
        if not 1 <= seed <= 0xFFFFFFFF:
            raise ValueError(f"the seed must be from 1 to 2^32-1, not {seed}")
        if policy not in (0, 1, 3):
            raise ValueError(f"the policy must be 0, 1 or 3, not {policy}")
        if fields & ~ALL_FIELDS or not fields:
            raise ValueError(f"the fields must be bits of 0x3f, not {fields:#x}")
        if not 1 <= bits <= 32:
            raise ValueError(f"the hash must have from 1 to 32 bits, not {bits}")
        self.hops = tuple(pairs)
        self.seed = seed
        self.policy = policy
        self.fields = fields
        self.forwarded = forwarded
        self.bits = bits
        self._mask(&self._four, {0: SRC | DST, 1: FIVE_TUPLE, 3: fields & ~LABEL}[policy])
        self._mask(&self._six, {0: SRC | DST | PROTO | LABEL, 1: FIVE_TUPLE, 3: fields}[policy])

    cdef void _mask(self, flow_fields *to, int fields) noexcept:
        to.key = self._key()
        to.src = ~<uint64_t>0 if fields & SRC else 0
        to.dst = ~<uint64_t>0 if fields & DST else 0
        to.label = 0xFFFFF if fields & LABEL else 0
        to.sport = 0xFFFF if fields & SPORT else 0
        to.dport = 0xFFFF if fields & DPORT else 0
        to.proto = 0xFF if fields & PROTO else 0
        to.mix = self.policy == 3 and self.forwarded
        to.shift = <uint8_t>(32 - self.bits)
        # __skb_flow_dissect turns the label to the machine's order; nobody else does.
        to.host_label = to.mix

    cdef inline uint64_t _key(self) noexcept:
        return <uint64_t>self.seed << 32 | self.seed

    cdef dict _settings(self):
        """The keywords that make a group hash as this one does."""
        return {
            "seed": self.seed, "policy": self.policy, "fields": self.fields,
            "forwarded": self.forwarded, "bits": self.bits,
        }

    def __repr__(self):
        return (
            f"{type(self).__name__}({list(self.hops)!r}, seed={self.seed}, policy={self.policy})"
        )

    cdef void _place(self, const uint32_t *values, uint16_t *hops, Py_ssize_t n) noexcept nogil:
        """hops[i] = the hop of values[i]; each value < 2^bits."""
        memset(hops, 0, n * sizeof(uint16_t))

    cdef void _run(self, const flow_columns *columns, Py_ssize_t n, flow_values hash_,
                   uint32_t *values, uint16_t *hops) noexcept nogil:
        """Either output may be NULL."""
        cdef uint32_t block[BLOCK]
        cdef uint32_t *to
        cdef Py_ssize_t start = 0, count
        cdef const flow_fields *fields = &self._four if columns.size == 4 else &self._six
        while start < n:
            count = n - start if n - start < BLOCK else <Py_ssize_t>BLOCK
            to = block
            if values is not NULL:
                to = values + start
            hash_(columns, fields, start, count, to)
            if hops is not NULL:
                self._place(to, hops + start, count)
            start += count

    cdef int _walk(self, _Input flows, flow_values hash_, uint32_t *values,
                   uint16_t *hops) except -1:
        """As `_run`, for rows of Python objects: gathers blocks of flows of one family."""
        cdef uint8_t src[16 * BLOCK]
        cdef uint8_t dst[16 * BLOCK]
        cdef uint8_t proto[BLOCK]
        cdef uint16_t sport[BLOCK]
        cdef uint16_t dport[BLOCK]
        cdef uint32_t label[BLOCK]
        cdef uint8_t address[16]
        cdef flow_columns block
        cdef Py_ssize_t i = 0, k = 0, size
        memset(&block, 0, sizeof(block))
        block.src, block.dst, block.proto = src, dst, proto
        block.sport, block.dport, block.label = sport, dport, label
        block.size = 4
        for row, s_label in flows.rows:
            if i == flows.n:
                raise ValueError("a column of flows is longer than its len()")
            if not isinstance(row, tuple) or len(<tuple>row) != 5:
                raise TypeError(
                    f"flow {i} must be a tuple (src, dst, proto, sport, dport), not {row!r}"
                )
            s, d, p, sp, dp = <tuple>row
            size = _address(s, address, "src", i)
            if k == BLOCK or size != block.size:
                self._run(&block, k, hash_, values, hops)
                if values is not NULL:
                    values += k
                if hops is not NULL:
                    hops += k
                k = 0
                block.size = <int>size
            memcpy(src + size * k, address, size)
            if _address(d, address, "dst", i) != size:
                raise ValueError(f"flow {i}: src and dst are of different families: {s!r}, {d!r}")
            memcpy(dst + size * k, address, size)
            proto[k] = <uint8_t>_number(p, 255, "proto", i)
            sport[k] = <uint16_t>_number(sp, 65535, "sport", i)
            dport[k] = <uint16_t>_number(dp, 65535, "dport", i)
            label[k] = <uint32_t>_number(s_label, 0xFFFFF, "label", i)
            _label(label[k], block.size, i)
            k += 1
            i += 1
        if i != flows.n:
            raise ValueError("a column of flows is shorter than its len()")
        self._run(&block, k, hash_, values, hops)
        return 0

    cdef int _ready(self) except -1:
        """A group that ``__new__`` alone has made has no table."""
        if self.hops is None:
            raise TypeError(f"the {type(self).__name__} was never made")
        return 0

    cdef int _fill(self, _Input flows, flow_values hash_, uint32_t *values,
                   uint16_t *hops) except -1:
        self._ready()
        if flows.rows is not None:
            return self._walk(flows, hash_, values, hops)
        with nogil:
            self._run(&flows.columns, flows.n, hash_, values, hops)
        return 0

    def select(self, flows, out=None):
        """The index of each flow's hop, in the order given, as ``array('H')`` or in ``out``.

        ``flows``: n tuples (src, dst, proto, sport, dport), or `Flows`, of columns; addresses as
        text or packed bytes, both of one family; proto as a number. ``out``: uint16[n], written
        and returned.

        Cost: columns that are typed buffers some 6 ns a flow with AVX-512, 13 with AVX2, 20
        without (IPv6 10, 21, 36), without the GIL and without a copy; Python objects 0.15 us,
        nearly all of it reading them. TypeError or ValueError naming the flow's place and field.
        """
        cdef _Input source = _Input(flows)
        cdef array.array chosen
        cdef _Column column
        if out is None:
            chosen = array.clone(_UINT16, source.n, zero=False)
            self._fill(source, _flow_values, NULL, chosen.data.as_ushorts)
            return chosen
        column = _out(out, source.n, "uint16")
        self._fill(source, _flow_values, NULL, <uint16_t *>column.view.buf)
        return out

    def hashes(self, flows, out=None):
        """The hash of each flow, as the router compares it with its table: ``bits`` bits.

        As `select`, but ``array('I')`` or uint32[n]. Groups that hash alike can `place` them.
        """
        return self._hashes(_Input(flows), out, _flow_values)

    cdef object _hashes(self, _Input source, object out, flow_values hash_):
        cdef array.array values
        cdef _Column column
        if out is None:
            values = array.clone(_UINT32, source.n, zero=False)
            self._fill(source, hash_, values.data.as_uints, NULL)
            return values
        column = _out(out, source.n, "uint32")
        self._fill(source, hash_, <uint32_t *>column.view.buf, NULL)
        return out

    def place(self, hashes, out=None):
        """The index of the hop of each hash; ``hashes``: a buffer of uint32, below 2^bits.

        For hashes of a router that are known otherwise, or computed once for several groups.
        ``array('H')`` or ``out``, uint16[n]. Cost: 1 to 2 ns a hash, 5 among 1,000 hops;
        `RendezvousGroup` 1.3 ns a hop, with weights 9. Without the GIL.
        """
        cdef _Column source = _hashes_of(hashes, self.bits), column
        cdef const uint32_t *values = <const uint32_t *>source.view.buf
        cdef Py_ssize_t n = source.items()
        cdef array.array chosen
        cdef uint16_t *to
        self._ready()
        if out is None:
            out = chosen = array.clone(_UINT16, n, zero=False)
            to = chosen.data.as_ushorts
        else:
            column = _out(out, n, "uint16")
            to = <uint16_t *>column.view.buf
        with nogil:
            self._place(values, to, n)
        return out

    def shares(self, flows):
        """How many of the flows each hop gets, by name, in the order of the hops."""
        cdef array.array chosen = self.select(flows)
        cdef array.array counts = array.array("Q", bytes(8 * len(self.hops)))
        cdef Py_ssize_t i, n = len(counts)
        for i in range(len(chosen)):
            if chosen.data.as_ushorts[i] >= n:
                raise RuntimeError("the group was changed while it was asked")
            counts.data.as_ulonglongs[chosen.data.as_ushorts[i]] += 1
        return {name: count for (name, _), count in zip(self.hops, counts, strict=True)}


cdef _Column _out(object out, Py_ssize_t n, str formats):
    cdef _Column column = _Column(out, "out", formats, True)
    if column.items() != n:
        raise ValueError(f"out has {column.items()} places for {n} flows")
    return column


cdef _Column _hashes_of(object hashes, int bits):
    cdef _Column column = _Column(hashes, "hashes", "uint32", False)
    cdef const uint32_t *values = <const uint32_t *>column.view.buf
    cdef Py_ssize_t i
    cdef uint64_t every = 0
    for i in range(column.items()):
        every |= values[i]
    if every >> bits:
        for i in range(column.items()):
            if <uint64_t>values[i] >> bits:
                raise ValueError(f"hash {i} must be below 2^{bits}, not {values[i]}")
    return column


@cython.final
@cython.auto_pickle(False)
cdef class EcmpGroup(HopGroup):
    """Next hops of one multipath route or hash-threshold group, chosen as Linux chooses them.

    Arguments as of `HopGroup`. Hash-threshold: each hop has a range of the hash space as wide as
    its weight asks, so a hop that comes or goes moves flows between the others too
    (`ResilientGroup` doesn't). Plain multipath routes and groups of nexthop objects share the
    arithmetic. With ``bits=32`` (or 16, 8) it is the hash-threshold of RFC 2992.

    ``down``: names of hops whose neighbour is unreachable (FAILED or INCOMPLETE): their flows go
    to the next good hop in the order, or else to the first good one. So do groups of nexthop
    objects, and IPv4 multipath routes under `net.ipv4.fib_multipath_use_neigh`; IPv6 multipath
    routes don't.

    Not covered: policy 2 and inner headers; source addresses that plain IPv4 routes prefer for what
    starts here; and, under policy 1, packets that bring a hash of their own, which Linux then takes
    instead (what a socket of the same kernel sends over veth does; from a wire nothing does).
    """

    cdef readonly tuple down
    cdef list _uppers
    cdef uint32_t *_bounds  # inclusive, rising: of the ranges that aren't empty
    cdef uint16_t *_hop  # of each range
    cdef uint16_t *_guide  # first range of each equal part of the hash space
    cdef int _shift

    def __init__(self, hops, *, down=(), **hashing):
        HopGroup.__init__(self, hops, **hashing)
        if isinstance(down, (str, bytes)):
            raise TypeError(f"down must be a collection of names, not {type(down).__name__}")
        self.down = tuple(down)
        names = [name for name, _ in self.hops]
        for name in self.down:
            if name not in names:
                raise ValueError(f"down: there is no hop {name!r}")
        self._build([i for i, name in enumerate(names) if name not in self.down])

    def __dealloc__(self):
        PyMem_Free(self._bounds)
        PyMem_Free(self._hop)
        PyMem_Free(self._guide)

    cdef int _build(self, list good) except -1:
        cdef uint64_t total = 0, sum_ = 0, upper, before = 0
        cdef Py_ssize_t i, c, n = len(self.hops), k = 0, cells, left = 0
        cdef int guide_bits = min(self.bits, GUIDE_BITS)
        if self._bounds is not NULL:
            raise TypeError("a group is made once")
        cells = 1 << guide_bits
        self._shift = self.bits - guide_bits
        self._bounds = <uint32_t *>_zeros(n, sizeof(uint32_t))
        self._hop = <uint16_t *>_zeros(n, sizeof(uint16_t))
        self._guide = <uint16_t *>_zeros(cells + 1, sizeof(uint16_t))
        self._uppers = []
        for _, weight in self.hops:
            total += <uint64_t>weight
        for i, (_, weight) in enumerate(self.hops):
            sum_ += <uint64_t>weight
            # total < 2^32, so this fits for any number of bits.
            upper = ((sum_ << self.bits) + total // 2) // total
            self._uppers.append(upper - 1 if upper else -1)
            if upper == before:
                continue
            before = upper
            while left < len(good) and good[left] < i:
                left += 1
            self._bounds[k] = <uint32_t>(upper - 1)
            self._hop[k] = <uint16_t>(good[left] if left < len(good) else good[0] if good else 0)
            k += 1
        n = k
        k = 0
        for c in range(cells + 1):
            while k < n - 1 and self._bounds[k] < <uint64_t>c << self._shift:
                k += 1
            self._guide[c] = <uint16_t>k
        return 0

    @property
    def bounds(self):
        """The last hash value of each hop's range, in order; -1 before the first range."""
        return tuple(self._uppers)

    cdef void _place(self, const uint32_t *values, uint16_t *hops, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i
        cdef uint32_t value, low, high, middle
        for i in range(n):
            value = values[i]
            low = self._guide[value >> self._shift]
            high = self._guide[(value >> self._shift) + 1]
            while low < high:  # the first bound >= value
                middle = (low + high) >> 1
                if self._bounds[middle] >= value:
                    high = middle
                else:
                    low = middle + 1
            hops[i] = self._hop[low]


@cython.auto_pickle(False)
cdef class TableGroup(HopGroup):
    """Groups that look up the remainder of the hash in a table of hops. Make a subclass."""

    cdef uint16_t *_table
    cdef uint32_t _size

    def __init__(self, hops, **hashing):
        if type(self) is TableGroup:
            raise TypeError("TableGroup has no table: make one of its subclasses")
        HopGroup.__init__(self, hops, **hashing)

    cdef int _make_table(self, uint32_t size) except -1:
        if self._table is not NULL:
            raise TypeError("a group is made once")
        self._table = <uint16_t *>_zeros(size, sizeof(uint16_t))
        self._size = size
        return 0

    def __dealloc__(self):
        PyMem_Free(self._table)

    @property
    def table(self):
        """The index of the hop of each remainder, as ``array('H')``: a copy."""
        cdef array.array out = array.clone(_UINT16, self._size, zero=False)
        memcpy(out.data.as_ushorts, self._table, self._size * sizeof(uint16_t))
        return out

    cdef void _place(self, const uint32_t *values, uint16_t *hops, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(n):
            hops[i] = self._table[values[i] % self._size]


@cython.final
@cython.auto_pickle(False)
cdef class ModuloGroup(TableGroup):
    """Modulo-N: the remainder of the hash by the number of hops, a hop counted by its weight.

    The plainest scheme of routers, and the worst when a hop comes or goes: from N to N+1 hops
    N/(N+1) of the flows move. Arguments as of `HopGroup`; at most 2^24 of weight. Source: RFC 2991.
    """

    def __init__(self, hops, **hashing):
        TableGroup.__init__(self, hops, **hashing)
        cdef Py_ssize_t i, k, at = 0
        total = sum([weight for _, weight in self.hops])
        if total > LONGEST_TABLE:
            raise ValueError(f"the weights must add up to at most 2^24, not {total}")
        self._make_table(total)
        for i in range(len(self.hops)):
            for k in range(self.hops[i][1]):
                self._table[at] = <uint16_t>i
                at += 1


@cython.final
@cython.auto_pickle(False)
cdef class MaglevGroup(TableGroup):
    """Maglev's table: each hop fills the slots of its own permutation in turn.

    Hops share the table almost evenly, and one that comes or goes moves little more than its own
    flows, whatever the order. Arguments as of `HopGroup`; ``size``: of the table, a prime from 2 to
    2^24, a hundred times the hops or more. A heavier hop takes proportionally more turns (the paper
    leaves open how). The permutations come from SipHash-2-4 of the names under the seed. Source:
    Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), 3.4.

    Cost of making one: about size × ln(size) steps; 65537 slots 2 ms for 3 hops, 5 for 100.
    """

    def __init__(self, hops, *, size=65537, **hashing):
        cdef uint64_t h, m, heaviest
        cdef unsigned long long *turn
        cdef Py_ssize_t i, n, filled = 0
        cdef array.array weights, position, skip, credit
        TableGroup.__init__(self, hops, **hashing)
        if not isinstance(size, int):
            raise TypeError(f"the table's size must be int, not {type(size).__name__}")
        if not 2 <= size <= LONGEST_TABLE or not _is_prime(size):
            raise ValueError(f"the table's size must be a prime from 2 to 2^24, not {size}")
        self._make_table(size)
        n = len(self.hops)
        m = size
        weights = array.array("Q", [weight for _, weight in self.hops])
        position, skip, credit = (array.clone(weights, n, zero=True) for _ in range(3))
        heaviest = max(weights)
        for i in range(n):
            h = _name_hash(self.hops[i][0], self._key())
            position.data.as_ulonglongs[i] = (h >> 32) % m
            skip.data.as_ulonglongs[i] = (h & 0xFFFFFFFFU) % (m - 1) + 1
        memset(self._table, 0xFF, m * sizeof(uint16_t))
        turn = position.data.as_ulonglongs
        while True:
            for i in range(n):
                credit.data.as_ulonglongs[i] += weights.data.as_ulonglongs[i]
                if credit.data.as_ulonglongs[i] < heaviest:
                    continue
                credit.data.as_ulonglongs[i] -= heaviest
                while self._table[turn[i]] != NOBODY:
                    turn[i] = (turn[i] + skip.data.as_ulonglongs[i]) % m
                self._table[turn[i]] = <uint16_t>i
                filled += 1
                if <uint64_t>filled == m:
                    return


cdef bint _is_prime(uint32_t n) noexcept:
    cdef uint32_t d = 2
    while d * d <= n:
        if n % d == 0:
            return False
        d += 1
    return n > 1


@cython.final
@cython.auto_pickle(False)
cdef class RendezvousGroup(HopGroup):
    """Highest random weight: each flow goes to the hop that scores best for it.

    A hop that goes moves only its own flows, one that comes takes only what is its due, whatever
    the order. The score is one mixing step of the flow's hash and the hop's (SipHash-2-4 of its
    name under the seed); with different weights w the least -ln(score)/w wins. Arguments as of
    `HopGroup`. Sources: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates"
    (1998); Schindelhauer and Schomaker, "Weighted Distributed Hash Tables" (2005).
    """

    cdef uint64_t *_keys
    cdef double *_weights  # NULL where they are alike
    cdef Py_ssize_t _count

    def __init__(self, hops, **hashing):
        HopGroup.__init__(self, hops, **hashing)
        cdef Py_ssize_t i, n = len(self.hops)
        if self._keys is not NULL:
            raise TypeError("a group is made once")
        self._count = n
        self._keys = <uint64_t *>_zeros(n, sizeof(uint64_t))
        for i in range(n):
            self._keys[i] = _name_hash(self.hops[i][0], self._key())
        if len({weight for _, weight in self.hops}) > 1:
            self._weights = <double *>_zeros(n, sizeof(double))
            for i in range(n):
                self._weights[i] = self.hops[i][1]

    def __dealloc__(self):
        PyMem_Free(self._keys)
        PyMem_Free(self._weights)

    cdef void _place(self, const uint32_t *values, uint16_t *hops, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i, j, best
        cdef uint64_t score, top
        cdef double cost, least
        for i in range(n):
            best = 0
            if self._weights is NULL:
                top = 0
                for j in range(self._count):
                    score = _mix(self._keys[j] ^ values[i])
                    best = j if score > top else best  # a move, not a branch: it can't be foreseen
                    top = score if score > top else top
            else:
                least = 0
                for j in range(self._count):
                    # The logarithm of a number inside (0, 1), of the upper 53 bits.
                    cost = <double>(_mix(self._keys[j] ^ values[i]) >> 11) + 0.5
                    cost = -log(cost / 9007199254740992.0) / self._weights[j]
                    if j == 0 or cost < least:
                        least = cost
                        best = j
            hops[i] = <uint16_t>best


@cython.final
@cython.auto_pickle(False)
cdef class ResilientGroup(TableGroup):
    """A resilient group of nexthop objects: a table of buckets that persists over updates.

    Arguments as of `HopGroup`; ``buckets`` (1 to 65535), ``idle_ms`` and ``unbalanced_ms`` (0:
    never) as of `ip nexthop ... type resilient`. A bucket in use stays with its hop until it has
    been idle for the idle timer, or the table unbalanced for the unbalanced timer; so live flows
    of the hops that remain don't move. Buckets know only what `touch` tells them, and time only
    what the caller says: ``now_ms``, which never goes back. The kernel counts in jiffies (4 ms
    where HZ is 250); a bucket that is used in the very one in which it was moved counts as idle.
    No other thread may ask the group while one changes it.

    With any ``bits`` it is the resilient hashing of other routers too, as far as these tell.
    """

    cdef readonly int64_t idle_ms
    cdef readonly int64_t unbalanced_ms
    cdef readonly object due_ms
    cdef readonly int64_t now_ms
    cdef int64_t _unbalanced_since
    cdef int64_t *_used
    cdef int64_t *_moved
    cdef array.array _wants
    cdef array.array _counts
    cdef list _under

    def __init__(self, hops, *, buckets=128, idle_ms=120_000, unbalanced_ms=0, now_ms=0,
                 **hashing):
        TableGroup.__init__(self, hops, **hashing)
        if not 1 <= buckets <= 65535:
            raise ValueError(f"a group has from 1 to 65535 buckets, not {buckets}")
        self._timers(idle_ms, unbalanced_ms)
        self._make_table(buckets)
        self._used = <int64_t *>_zeros(self._size, sizeof(int64_t))
        self._moved = <int64_t *>_zeros(self._size, sizeof(int64_t))
        memset(self._table, 0xFF, self._size * sizeof(uint16_t))
        self.now_ms = now_ms
        self._under = []
        self._rebalance()
        self._upkeep()

    def __dealloc__(self):
        PyMem_Free(self._used)
        PyMem_Free(self._moved)

    def __repr__(self):
        return (
            f"ResilientGroup({list(self.hops)!r}, seed={self.seed}, policy={self.policy}, "
            f"buckets={self._size})"
        )

    cdef int _timers(self, idle_ms, unbalanced_ms) except -1:
        for what, timer in (("idle_ms", idle_ms), ("unbalanced_ms", unbalanced_ms)):
            if not 0 <= timer <= 0xFFFFFFFF:
                raise ValueError(f"{what} must be from 0 to 2^32-1, not {timer}")
        self.idle_ms = idle_ms
        self.unbalanced_ms = unbalanced_ms
        return 0

    cdef int _rebalance(self) except -1:
        """How many buckets each hop wants and has; who lacks some. nh_res_group_rebalance."""
        cdef Py_ssize_t b
        cdef uint64_t total = 0, sum_ = 0, upper, before = 0
        self._wants = array.clone(_UINT32, len(self.hops), zero=True)
        self._counts = array.clone(_UINT32, len(self.hops), zero=True)
        for b in range(self._size):
            if self._table[b] != NOBODY:
                self._counts.data.as_uints[self._table[b]] += 1
        for _, weight in self.hops:
            total += <uint64_t>weight
        for b, (_, weight) in enumerate(self.hops):
            sum_ += <uint64_t>weight
            upper = (self._size * sum_ + total // 2) // total
            self._wants.data.as_uints[b] = <uint32_t>(upper - before)
            before = upper
        was_under = bool(self._under)
        # The kernel puts each at the head of its list, so the last comes first.
        self._under = [i for i, n in enumerate(self._counts) if n < self._wants[i]]
        if self._under and not was_under:
            self._unbalanced_since = self.now_ms
        return 0

    cdef int64_t _idle_at(self, Py_ssize_t b) noexcept:
        if self._used[b] == self._moved[b]:
            return self.now_ms
        return self._used[b] + self.idle_ms

    cdef Py_ssize_t _upkeep(self) except -1:
        """Moves what may move, from bucket 0 on; returns how many. nh_res_table_upkeep."""
        cdef Py_ssize_t b, moved = 0
        cdef int64_t idle_at, forced_at = self._unbalanced_since + self.unbalanced_ms
        cdef int64_t due = self.now_ms + (self.unbalanced_ms or self.idle_ms)
        cdef unsigned int *counts = self._counts.data.as_uints
        cdef unsigned int *wants = self._wants.data.as_uints
        cdef uint16_t hop
        for b in range(self._size):
            hop = self._table[b]
            if hop != NOBODY:
                if counts[hop] <= wants[hop]:
                    continue
                idle_at = self._idle_at(b)
                if idle_at > self.now_ms and not (self.unbalanced_ms and self.now_ms > forced_at):
                    if self.unbalanced_ms:
                        due = min(due, forced_at)
                    due = min(due, idle_at)
                    continue
                counts[hop] -= 1
            hop = self._under[len(self._under) - 1]
            self._table[b] = hop
            self._used[b] = self._moved[b] = self.now_ms
            counts[hop] += 1
            if counts[hop] == wants[hop]:
                self._under.pop()
            moved += 1
        self.due_ms = max(due, self.now_ms + UPKEEP_MS) if self._under else None
        return moved

    @property
    def wanted(self):
        """How many buckets each hop should have, in order."""
        return tuple(self._wants)

    def copy(self):
        """Another group in the same state."""
        cdef ResilientGroup twin = ResilientGroup(
            self.hops, buckets=self._size, idle_ms=self.idle_ms, unbalanced_ms=self.unbalanced_ms,
            now_ms=self.now_ms, **self._settings()
        )
        memcpy(twin._table, self._table, self._size * sizeof(uint16_t))
        memcpy(twin._used, self._used, self._size * sizeof(int64_t))
        memcpy(twin._moved, self._moved, self._size * sizeof(int64_t))
        twin._counts, twin._under = self._counts[:], list(self._under)
        twin._unbalanced_since = self._unbalanced_since
        twin.due_ms = self.due_ms
        return twin

    def touch(self, hashes, now_ms):
        """Marks the buckets of these hashes (as from `hashes`) as used now: their flows live.

        What is due by the clock comes before: see `advance`. Linux marks none for an IPv4 flow
        while the group has a single hop, as it needs no look-up then.
        """
        cdef _Column source = _hashes_of(hashes, self.bits)
        cdef const uint32_t *values = <const uint32_t *>source.view.buf
        cdef Py_ssize_t i
        self._ready()
        self.advance(now_ms)
        for i in range(source.items()):
            self._used[values[i] % self._size] = self.now_ms

    def replace(self, hops, now_ms, *, idle_ms=None, unbalanced_ms=None):
        """Gives the group other hops, order, weights or timers; returns how many buckets moved.

        Buckets of hops that left, and idle ones of hops that have too many, go to hops that have
        too few; the last of these in order is served first. What is due by the clock comes before:
        see `advance`. As `ip nexthop replace`; `ip nexthop del` of a member is the same without it.
        """
        cdef list pairs = _pairs(hops)
        cdef Py_ssize_t b
        self.advance(now_ms)
        self._timers(
            self.idle_ms if idle_ms is None else idle_ms,
            self.unbalanced_ms if unbalanced_ms is None else unbalanced_ms,
        )
        place = {name: i for i, (name, _) in enumerate(pairs)}
        new = [place.get(name, NOBODY) for name, _ in self.hops]
        for b in range(self._size):
            self._table[b] = new[self._table[b]]
        self.hops = tuple(pairs)
        self._rebalance()
        return self._upkeep()

    def advance(self, now_ms):
        """Lets time pass; returns how many buckets moved because they had been idle, or by force.

        Upkeep runs when it is due (``due_ms``, None for a balanced table): when the next bucket
        may move, and not within half a second of the last time.
        """
        cdef Py_ssize_t moved = 0
        if now_ms < self.now_ms:
            raise ValueError(f"now_ms must not go back from {self.now_ms} to {now_ms}")
        while self.due_ms is not None and self.due_ms <= now_ms:
            self.now_ms = self.due_ms
            moved += self._upkeep()
        self.now_ms = now_ms
        return moved


def _instruction_sets():
    """For tests: the instruction sets of this machine that there is a copy of the hash for."""
    return tuple([name for i, name in enumerate(_SETS) if flow_values_for(i) is not NULL])


def _hashes_by(str instruction_set, HopGroup group not None, flows):
    """For tests: `HopGroup.hashes` by the copy for this instruction set."""
    if instruction_set not in _instruction_sets():
        raise ValueError(f"this machine has no {instruction_set}")
    return group._hashes(_Input(flows), None, flow_values_for(_SETS.index(instruction_set)))

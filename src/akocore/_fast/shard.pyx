# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
"""Which shard a host belongs to: AKO's mask over FNV-1a, jump hash, highest random weight."""

from collections.abc import Sequence

from mmh3 import mmh3_x64_128_utupledigest

from cpython cimport array
from cpython.list cimport PyList_CheckExact
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_AsUTF8String
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from *:
    # Spelled out, or Cython would copy the header into its build directory and let it go stale.
    """
    #include "fnv1a.h"
    """
    ctypedef void (*fnv1a_many)(
        const uint8_t **p, const Py_ssize_t *n, Py_ssize_t count, uint32_t mask, uint16_t *out
    ) noexcept nogil
    uint32_t fnv1a_one(const uint8_t *p, Py_ssize_t n) noexcept nogil
    fnv1a_many fnv1a_choose() noexcept nogil


cdef extern from "Python.h":
    bint PyUnicode_CheckExact(PyObject *o) noexcept
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *o) noexcept
    void *PyUnicode_DATA(PyObject *o) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *o) noexcept
    PyObject **PySequence_Fast_ITEMS(object o) noexcept


cdef fnv1a_many _fnv1a_many = fnv1a_choose()
cdef array.array _UINT16 = array.array("H")
cdef enum:
    BLOCK = 256  # hosts whose pointers are gathered on the stack at a time: FNV_BLOCK


cdef object _fast(object items, str what):
    """A list or tuple as it is, any other sequence as a list."""
    if PyList_CheckExact(items) or PyTuple_CheckExact(items):
        return items
    if isinstance(items, (str, bytes, bytearray)) or not isinstance(items, Sequence):
        raise TypeError(f"{what} must be a sequence of str, not {type(items).__name__}")
    return list(items)


cdef object _not_a_str(str what, Py_ssize_t i, object item):
    return TypeError(f"{what}[{i}] must be str, not {type(item).__name__}")


cdef tuple _murmur(str what, Py_ssize_t i, object name, uint32_t seed):
    """Both halves of MurmurHash3 x64 128 of the name's UTF-8 bytes, unsigned."""
    if not isinstance(name, str):
        raise _not_a_str(what, i, name)
    # As bytes: given a str with a lone surrogate, mmh3 crashes.
    return mmh3_x64_128_utupledigest(PyUnicode_AsUTF8String(name), seed)


cdef int64_t _count(object shards) except -1:
    cdef object n = shards.__index__() if not isinstance(shards, int) else shards
    if not 1 <= n <= 65536:
        raise ValueError(f"the number of shards must be from 1 to 65536, not {n}")
    return n


cdef uint32_t _seed(object seed) except? 0:
    if not 0 <= seed <= 0xFFFFFFFF:
        raise ValueError(f"the seed must fit in 32 bits, unsigned, not {seed}")
    return seed


def fnv1a32(str host not None) -> int:
    """FNV-1a, 32 bits, of the host's UTF-8 bytes: the hash behind AKO's shard names.

    UnicodeEncodeError for a lone surrogate. Source: Fowler, Noll, Vo (RFC 9923).
    """
    cdef Py_ssize_t size
    cdef const char *p = PyUnicode_AsUTF8AndSize(host, &size)
    return fnv1a_one(<const uint8_t *>p, size)


def shard_hosts(hosts, shards) -> array.array:
    """AKO's shard of each host, bit for bit: FNV-1a (32 bits, UTF-8) masked by ``shards - 1``.

    ``hosts``: n strings (a list or tuple isn't copied); ``shards``: a power of two up to 65536.
    Returns ``array('H')`` of n shard numbers in the order given.

    Cost: about 5 ns a host of 25 bytes with AVX2, 0.2 ns a byte. ValueError for another count (use
    `jump_hosts` or `rendezvous_hosts`), TypeError for what isn't a str, UnicodeEncodeError for a
    lone surrogate.
    """
    cdef int64_t n = _count(shards)
    if n & (n - 1):
        raise ValueError(
            f"AKO's mask needs a power of two, not {n} shards: "
            "use jump_hosts or rendezvous_hosts for any other count"
        )
    cdef object items = _fast(hosts, "hosts")
    cdef Py_ssize_t count = len(items), start, stop, i, k
    cdef array.array out = array.clone(_UINT16, count, zero=False)
    cdef PyObject **item = PySequence_Fast_ITEMS(items)
    cdef const uint8_t *p[BLOCK]
    cdef Py_ssize_t size[BLOCK]
    # Nothing below runs Python code, so a list can't change under us while we hold the GIL.
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        for i in range(start, stop):
            k = i - start
            if PyUnicode_CheckExact(item[i]) and PyUnicode_IS_COMPACT_ASCII(item[i]):
                p[k] = <const uint8_t *>PyUnicode_DATA(item[i])
                size[k] = PyUnicode_GET_LENGTH(item[i])
            elif isinstance(<object>item[i], str):
                p[k] = <const uint8_t *>PyUnicode_AsUTF8AndSize(<object>item[i], &size[k])
            else:
                raise _not_a_str("hosts", i, <object>item[i])
        _fnv1a_many(p, size, stop - start, <uint32_t>(n - 1), out.data.as_ushorts + start)
    return out


cdef inline int64_t _jump(uint64_t key, int64_t buckets) noexcept nogil:
    """Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm" (2014)."""
    cdef int64_t b = -1, j = 0
    while j < buckets:
        b = j
        key = key * 2862933555777941757ULL + 1
        j = <int64_t>((b + 1) * (<double>(1LL << 31) / <double>((key >> 33) + 1)))
    return b


cdef inline uint64_t _mix(uint64_t h) noexcept nogil:
    """The 64-bit finaliser of MurmurHash3 (Appleby)."""
    h ^= h >> 33
    h *= 0xFF51AFD7ED558CCDULL
    h ^= h >> 33
    h *= 0xC4CEB9FE1A85EC53ULL
    return h ^ (h >> 33)


def jump_hosts(hosts, shards, seed=0) -> array.array:
    """Jump consistent hash of each host: any count of shards, and growth moves the fewest hosts.

    From N to N+1 shards, 1/(N+1) of the hosts move, all to the new shard; shards can only be
    added or removed at the end. The key is the low half of MurmurHash3 x64 128 under ``seed``.
    Returns ``array('H')`` in the order given. Cost: one mmh3 call and about ln(shards) steps a
    host. Errors as in `shard_hosts`; any count from 1 to 65536 is good.
    """
    cdef int64_t n = _count(shards)
    cdef uint32_t s = _seed(seed)
    cdef object items = _fast(hosts, "hosts")
    cdef Py_ssize_t i, count = len(items)
    cdef array.array out = array.clone(_UINT16, count, zero=False)
    for i in range(count):
        out.data.as_ushorts[i] = <uint16_t>_jump(_murmur("hosts", i, items[i], s)[0], n)
    return out


def rendezvous_hosts(hosts, nodes, seed=0) -> array.array:
    """Highest random weight: each host goes to the node that scores best for it.

    ``nodes``: different names, or a count. Adding the (N+1)th node moves 1/(N+1) of the hosts,
    all to it; removing *any* named node moves only its own hosts. Returns ``array('H')`` of
    indexes into ``nodes`` in the order of ``hosts``. Cost: one mmh3 call a host and one mixing
    step (about 1 ns) per host and node. Source: Thaler and Ravishankar, "Using Name-Based
    Mappings to Increase Hit Rates" (1998), with one hash per host and per node.

    Errors as in `shard_hosts`; ValueError for no node, or for a name given twice.
    """
    cdef uint32_t s = _seed(seed)
    cdef array.array weights
    cdef Py_ssize_t i, j, best, count, n
    cdef object items
    cdef uint64_t h, score, top
    if isinstance(nodes, int):
        n = _count(nodes)
        weights = array.array("Q", range(1, n + 1))
        for j in range(n):
            weights.data.as_ulonglongs[j] = _mix(
                weights.data.as_ulonglongs[j] * 0x9E3779B97F4A7C15ULL
            )
    else:
        items = _fast(nodes, "nodes")
        n = _count(len(items))
        weights = array.array(
            "Q", [_murmur("nodes", j, name, s)[1] for j, name in enumerate(items)]
        )
        if len(set(items)) != n:
            raise ValueError("nodes must have different names")
    items = _fast(hosts, "hosts")
    count = len(items)
    cdef array.array out = array.clone(_UINT16, count, zero=False)
    for i in range(count):
        h = _murmur("hosts", i, items[i], s)[0]
        best = 0
        top = _mix(h ^ weights.data.as_ulonglongs[0])
        for j in range(1, n):
            score = _mix(h ^ weights.data.as_ulonglongs[j])
            if score > top:
                top = score
                best = j
        out.data.as_ushorts[i] = <uint16_t>best
    return out

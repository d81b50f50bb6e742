# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
"""What must be pushed: the difference of two maps from name to fingerprint."""

from collections.abc import Mapping
from typing import NamedTuple

from mmh3 import mmh3_x64_128_digest

from cpython.dict cimport PyDict_Contains, PyDict_Size
from cpython.object cimport PyObject
from libc.string cimport memcmp


cdef extern from *:
    # Spelled out, or Cython would copy the header into its build directory and let it go stale.
    """
    #include "dict_walk.h"
    """
    ctypedef struct dict_walk:
        Py_ssize_t count  # -1: it isn't known that all keys are exact str
    void dict_walk_open(dict_walk *walk, object d) noexcept
    bint dict_walk_same(const dict_walk *a, const dict_walk *b) noexcept
    bint dict_walk_try(object d) noexcept
    bint dict_walk_next(dict_walk *walk, PyObject **key, PyObject **value) noexcept


cdef extern from "Python.h":
    bint PyUnicode_CheckExact(PyObject *o) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *o) noexcept
    int PyUnicode_KIND(PyObject *o) noexcept
    void *PyUnicode_DATA(PyObject *o) noexcept
    bint PyBytes_CheckExact(PyObject *o) noexcept
    Py_ssize_t PyBytes_GET_SIZE(PyObject *o) noexcept
    char *PyBytes_AS_STRING(PyObject *o) noexcept
    PyObject *PyDict_GetItemWithError(object d, object key) except? NULL


cdef enum:
    SIZE = 16


cdef object _try_layout():
    """Before the first walk: are dicts laid out as dict_walk.h has it?"""
    some = {f"key {i}": i for i in range(100)}
    del some["key 42"]
    return dict_walk_try(some)


READS_ENTRIES = bool(_try_layout())
"""Whether dicts are read directly here; else by CPython's own, slower call."""


class Diff(NamedTuple):
    """Names by what must happen to them; false if nothing must."""

    added: list
    changed: list
    removed: list

    def __bool__(self):
        return bool(self.added or self.changed or self.removed)


def fingerprint(const unsigned char[::1] data not None) -> bytes:
    """16 bytes that stand for ``data``: MurmurHash3 x64 128 (Appleby), seed 0.

    ``data``: any contiguous bytes-like object. Equal bytes, equal fingerprint, on every machine.
    It isn't a cryptographic hash: it tells one's own versions of an object apart and proves
    nothing about a stranger's.
    """
    return mmh3_x64_128_digest(data)


cdef int _check(str which, PyObject *key, PyObject *value) except -1:
    """The key is a str and the value is 16 bytes, or the error that names the key."""
    if not PyUnicode_CheckExact(key):
        raise TypeError(
            f"a name in {which} must be str, not {type(<object>key).__name__}: {<object>key!r}"
        )
    if not PyBytes_CheckExact(value):
        raise TypeError(
            f"{which}[{<object>key!r}] must be bytes, not {type(<object>value).__name__}"
        )
    if PyBytes_GET_SIZE(value) != SIZE:
        raise ValueError(
            f"{which}[{<object>key!r}] must be a fingerprint of {SIZE} bytes, "
            f"not {PyBytes_GET_SIZE(value)}"
        )
    return 0


cdef inline bint _bad(bint names, PyObject *key, PyObject *value) noexcept:
    """``names``: the key is known to be an exact str, so it isn't even looked at."""
    return not (
        (names or PyUnicode_CheckExact(key))
        and PyBytes_CheckExact(value) and PyBytes_GET_SIZE(value) == SIZE
    )


cdef inline bint _same_name(PyObject *a, PyObject *b) noexcept:
    """Both are exact str. A str's kind is the narrowest that holds it, so equal means same kind."""
    cdef Py_ssize_t n
    if a == b:
        return True
    n = PyUnicode_GET_LENGTH(a)
    return (
        n == PyUnicode_GET_LENGTH(b)
        and PyUnicode_KIND(a) == PyUnicode_KIND(b)
        and memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), n * PyUnicode_KIND(a)) == 0
    )


cdef inline bint _same_value(PyObject *a, PyObject *b) noexcept:
    return a == b or memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), SIZE) == 0


cdef dict _dict(str which, object names):
    if type(names) is dict:
        return names
    if not isinstance(names, Mapping):
        raise TypeError(
            f"{which} must be a mapping of names to fingerprints, not {type(names).__name__}"
        )
    return dict(names)


def diff_fingerprints(desired, current) -> Diff:
    """Names to add, to change and to remove so that ``current`` becomes ``desired``.

    Both map n names (exact str) to fingerprints (exact bytes, 16 each, see `fingerprint`);
    a dict isn't copied. ``added`` and ``changed`` are in the order of ``desired``, ``removed``
    in that of ``current``.

    Cost: both dicts are walked in step, so equal names at equal places cost no look-up: under
    1 ns an object if both sides hold the same Python objects, some 8 ns if equal ones. An added or
    removed name costs two look-ups; where the orders differ, one or two per name from there on.
    TypeError or ValueError naming the key for anything else than str to 16 bytes (a pair that
    both sides share as the same objects at the same place isn't looked at again).
    """
    cdef dict want = _dict("desired", desired), have = _dict("current", current)
    cdef list added = [], changed = [], removed = []
    cdef Py_ssize_t matched = 0
    cdef dict_walk i, j
    cdef PyObject *a
    cdef PyObject *b
    cdef PyObject *x
    cdef PyObject *y
    cdef PyObject *found
    cdef bint left, right
    dict_walk_open(&i, want)
    dict_walk_open(&j, have)
    if dict_walk_same(&i, &j):
        return Diff(added, changed, removed)
    left = dict_walk_next(&i, &a, &x)
    right = dict_walk_next(&j, &b, &y)
    # Only exact str and bytes are compared, so no Python code runs and neither dict can change.
    while left and right:
        if a == b and x == y:  # the same objects on both sides: nothing to look at
            matched += 1
            left = dict_walk_next(&i, &a, &x)
            right = dict_walk_next(&j, &b, &y)
            continue
        if _bad(i.count >= 0, a, x):
            _check("desired", a, x)
        if _bad(j.count >= 0, b, y):
            _check("current", b, y)
        if _same_name(a, b):
            matched += 1
            if not _same_value(x, y):
                changed.append(<object>a)
        elif not PyDict_Contains(have, <object>a):
            added.append(<object>a)
            left = dict_walk_next(&i, &a, &x)
            continue
        elif not PyDict_Contains(want, <object>b):
            removed.append(<object>b)
            right = dict_walk_next(&j, &b, &y)
            continue
        else:
            break  # both names are known, at other places
        left = dict_walk_next(&i, &a, &x)
        right = dict_walk_next(&j, &b, &y)
    while left:
        _check("desired", a, x)
        found = PyDict_GetItemWithError(have, <object>a)
        if found == NULL:
            added.append(<object>a)
        else:
            _check("current", a, found)
            matched += 1
            if not _same_value(x, found):
                changed.append(<object>a)
        left = dict_walk_next(&i, &a, &x)
    while right and matched + len(removed) < PyDict_Size(have):
        _check("current", b, y)
        if not PyDict_Contains(want, <object>b):
            removed.append(<object>b)
        right = dict_walk_next(&j, &b, &y)
    return Diff(added, changed, removed)

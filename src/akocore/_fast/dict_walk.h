/* Walks a dict in its order, as PyDict_Next does, with what is needed soon fetched ahead.

   CPython 3.11 to 3.14 keep the entries of a dict whose keys are all str as an array of (key,
   value) pairs (Objects/dictobject.c, DICT_KEYS_UNICODE; the layout stands in
   Include/internal/pycore_dict.h).  Reading it directly saves the call an entry, lets two dicts of
   the same pairs be told equal by comparing memory, and lets the processor fetch the strings and
   bytes of later entries while it looks at this one.  Any other dict, and any Python on which
   dict_walk_try doesn't find just that, is walked by PyDict_Next. */
#ifndef AKOCORE_DICT_WALK_H
#define AKOCORE_DICT_WALK_H

#include <Python.h>
#include <stdint.h>
#include <string.h>

#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030F0000 && !defined(Py_GIL_DISABLED) && \
    !defined(PYPY_VERSION)
#define AKOCORE_DICT_ENTRIES 1
#endif

/* struct _dictkeysobject of these versions; the pairs follow its indices. */
typedef struct {
    Py_ssize_t references;
    uint8_t log2_size;
    uint8_t log2_index_bytes;
    uint8_t kind; /* 1: all keys are exact str */
    uint32_t version;
    Py_ssize_t usable;
    Py_ssize_t entries;
    char indices[];
} dict_walk_keys;

static int dict_walk_known = 0; /* set by dict_walk_try */

enum { DICT_AHEAD = 12 };

typedef struct {
    PyObject *dict;
    Py_ssize_t position;    /* of PyDict_Next, or of the next entry */
    Py_ssize_t count;       /* of entries, or -1: walk by PyDict_Next */
    PyObject *const *pairs; /* key, value, key, value ...; a value of NULL: no entry */
} dict_walk;

static inline void dict_walk_open(dict_walk *walk, PyObject *dict) {
    walk->dict = dict;
    walk->position = 0;
    walk->count = -1;
    walk->pairs = NULL;
#ifdef AKOCORE_DICT_ENTRIES
    PyDictObject *one = (PyDictObject *)dict;
    const dict_walk_keys *keys = (const dict_walk_keys *)one->ma_keys;
    if (dict_walk_known && one->ma_values == NULL && keys->kind == 1) {
        walk->count = keys->entries;
        walk->pairs = (PyObject *const *)(keys->indices + ((size_t)1 << keys->log2_index_bytes));
    }
#endif
}

/* Whether both hold the very same objects as keys and values, in the same order. */
static inline int dict_walk_same(const dict_walk *a, const dict_walk *b) {
    return a->count >= 0 && a->count == b->count &&
           memcmp(a->pairs, b->pairs, (size_t)a->count * 2 * sizeof(PyObject *)) == 0;
}

static inline int dict_walk_next(dict_walk *walk, PyObject **key, PyObject **value) {
    if (walk->count < 0)
        return PyDict_Next(walk->dict, &walk->position, key, value);
    while (walk->position < walk->count) {
        PyObject *const *pair = walk->pairs + 2 * walk->position++;
        if (walk->position + DICT_AHEAD < walk->count) {
            __builtin_prefetch(pair[2 * DICT_AHEAD]);
            __builtin_prefetch(pair[2 * DICT_AHEAD + 1]);
        }
        if (pair[1] != NULL) {
            *key = pair[0];
            *value = pair[1];
            return 1;
        }
    }
    return 0;
}

/* Whether this Python's dicts are laid out as said above: a dict with a hole is walked both ways.
   `dict`: some str keys, one of them deleted again. */
static inline int dict_walk_try(PyObject *dict) {
    dict_walk walk;
    PyObject *key, *value, *other_key, *other_value;
    Py_ssize_t position = 0;
    dict_walk_known = 1;
    dict_walk_open(&walk, dict);
    if (walk.count < PyDict_Size(dict) || walk.count > 2 * PyDict_Size(dict) + 8)
        return dict_walk_known = 0;
    while (PyDict_Next(dict, &position, &key, &value))
        if (!dict_walk_next(&walk, &other_key, &other_value) || key != other_key ||
            value != other_value)
            return dict_walk_known = 0;
    return dict_walk_known = !dict_walk_next(&walk, &other_key, &other_value);
}

#endif

/* Walks a dict in its order, as PyDict_Next does, with what is needed soon fetched ahead.

   CPython 3.11 to 3.14 keep the entries of a dict whose keys are all str as an array of (key,
   value) pairs (Objects/dictobject.c, DICT_KEYS_UNICODE).  Reading it directly saves the call an
   entry, lets two dicts of the same pairs be told equal by comparing memory, and lets the
   processor fetch the strings and bytes of later entries while it looks at this one.  Any other
   dict, and any other Python, is walked by PyDict_Next. */
#ifndef AKOCORE_DICT_WALK_H
#define AKOCORE_DICT_WALK_H

#include <Python.h>
#include <string.h>

#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030F0000 && !defined(Py_GIL_DISABLED)
#define AKOCORE_DICT_ENTRIES 1
#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE 1
#endif
#include "internal/pycore_dict.h"
#endif

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
    if (one->ma_values == NULL && one->ma_keys->dk_kind == DICT_KEYS_UNICODE) {
        walk->count = one->ma_keys->dk_nentries;
        walk->pairs = (PyObject *const *)DK_UNICODE_ENTRIES(one->ma_keys);
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

#endif

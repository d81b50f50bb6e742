/* FNV-1a, 32 bits, of sixteen strings at a time.
 *
 * One string is a serial chain of xor and multiply, so sixteen chains run side by side in the
 * lanes of a vector. Strings differ in length: a lane that is out of bytes goes on with zero
 * bytes, each of which only multiplies the hash by the prime, and at the end is multiplied by
 * the prime's inverse (mod 2^32) as often. So the loop has no masks, and nothing outside a
 * string is ever read.
 *
 * GCC and Clang vector extensions: any architecture; on x86-64 with a second copy for AVX2,
 * chosen at run time.
 */
#ifndef AKOCORE_FNV1A_H
#define AKOCORE_FNV1A_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FNV_LANES 16
#define FNV_BLOCK 256  /* strings a call may hash */
#define FNV_LENGTHS 64 /* lengths told apart, in words; a host has at most 253 bytes */
#define FNV_UNDO 16
#define FNV_BASIS 2166136261u
#define FNV_PRIME 16777619u
#define FNV_INVERSE 899433627u /* FNV_PRIME * FNV_INVERSE == 1 (mod 2^32) */

typedef uint32_t fnv_vec __attribute__((vector_size(32))); /* eight lanes; two are in flight */

static inline uint32_t fnv1a_one(const uint8_t *p, ptrdiff_t n)
{
    uint32_t h = FNV_BASIS;
    for (ptrdiff_t i = 0; i < n; i++)
        h = (h ^ p[i]) * FNV_PRIME;
    return h;
}

static inline uint32_t fnv_load(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Four bytes from offset at on, as a little-endian word, zeros past the end; n >= 4.
 * No branches: past the end the last four bytes are read and shifted out. */
static inline uint32_t fnv_word(const uint8_t *p, ptrdiff_t n, ptrdiff_t at)
{
    ptrdiff_t from = at < n - 4 ? at : n - 4;
    ptrdiff_t gone = at - from < 4 ? at - from : 4;
    return (uint32_t)((uint64_t)fnv_load(p + from) >> (8 * gone));
}

static inline uint32_t fnv_undo(size_t zeros)
{
    uint32_t undo = 1, factor = FNV_INVERSE;
    for (; zeros; zeros >>= 1, factor *= factor)
        if (zeros & 1)
            undo *= factor;
    return undo;
}

#define FNV_STEP(k)                                                                           \
    h0 = (h0 ^ ((w0 >> (8 * (k))) & 255u)) * FNV_PRIME;                                        \
    h1 = (h1 ^ ((w1 >> (8 * (k))) & 255u)) * FNV_PRIME;
#define FNV_FOUR(load)                                                                        \
    fnv_vec w0 = {load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)};     \
    fnv_vec w1 = {load(8),  load(9),  load(10), load(11),                                      \
                  load(12), load(13), load(14), load(15)};                                     \
    FNV_STEP(0) FNV_STEP(1) FNV_STEP(2) FNV_STEP(3)

#define FNV_NAME(part) fnv1a_any_##part
#define FNV_TARGET
#include "fnv1a_lanes.h"

#if defined(__x86_64__)
#define FNV_NAME(part) fnv1a_avx2_##part
#define FNV_TARGET __attribute__((target("avx2")))
#include "fnv1a_lanes.h"
#endif

typedef void (*fnv1a_many)(const uint8_t *const *, const ptrdiff_t *, ptrdiff_t, uint32_t,
                           uint16_t *);

static inline fnv1a_many fnv1a_choose(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        return fnv1a_avx2_block;
#endif
    return fnv1a_any_block;
}

#endif

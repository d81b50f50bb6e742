/* The kernel's multipath value of many flows at a time.
 *
 * SipHash-2-4 of one flow is a serial chain of 18 rounds (26 for IPv6), so several flows run side
 * by side in the lanes of vectors, two vectors in flight. Of the message only a few 64-bit words
 * vary: the first (protocol and flow label), the ports, the addresses. Three passes over a block
 * that stays in the first-level cache: words of the message, hash, value.
 *
 * The layout of the message is that of net/core/flow_dissector.c (flow_hash_from_keys_seed) on a
 * little-endian machine, whatever the machine that computes it here.
 *
 * GCC and Clang vector extensions: one copy for any machine, flow by flow; on x86-64 copies for
 * AVX2 and AVX-512, chosen at run time.
 */
#ifndef AKOCORE_FLOW_HASH_H
#define AKOCORE_FLOW_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FLOW_BLOCK 256 /* flows a call may hash; a multiple of every LANES * 2 */
#define FLOW_WORDS 9   /* of an IPv6 message; words 1 and 2 (VLANs) are always 0 */

/* Columns of flows. A NULL column counts as zeros. */
typedef struct {
    const uint8_t *src, *dst; /* size bytes each in network order; or uint32_t numbers */
    const uint8_t *proto;
    const uint16_t *sport, *dport;
    const uint32_t *label;
    int size;                   /* of an address: 4 or 16 */
    int src_number, dst_number; /* addresses are uint32_t numbers of the machine's order */
} flow_columns;

/* How a router hashes: masks of the fields that count (all ones or 0), key, and what follows. */
typedef struct {
    uint64_t key;
    uint64_t src, dst;
    uint32_t label;
    uint16_t sport, dport;
    uint8_t proto;
    uint8_t mix;   /* jhash_2words(h, 0, 0) follows: policy 3 on the packet path */
    uint8_t shift; /* bits of the hash that the router drops: 1 on Linux */
    uint8_t host_label; /* the flow label counts in the machine's order, else in the network's */
} flow_fields;

typedef void (*flow_values)(const flow_columns *, const flow_fields *, ptrdiff_t, ptrdiff_t,
                            uint32_t *);

static inline uint16_t flow_swap16(uint16_t x)
{
    return (uint16_t)(x << 8 | x >> 8);
}

static inline uint32_t flow_load32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t flow_load64(const uint8_t *p)
{
    return (uint64_t)flow_load32(p) | (uint64_t)flow_load32(p + 4) << 32;
}

/* An IPv4 address as the kernel compares it: its bytes loaded as a little-endian word. */
static inline uint32_t flow_number(const uint8_t *column, ptrdiff_t i)
{
    uint32_t number;
    memcpy(&number, column + 4 * i, 4);
    return __builtin_bswap32(number);
}

static inline uint32_t flow_rotate32(uint32_t x, int b)
{
    return x << b | x >> (32 - b);
}

static inline uint32_t flow_mix(uint32_t a) /* jhash_2words(a, 0, 0) */
{
    const uint32_t start = 0xDEADBEEFu + (2u << 2);
    uint32_t b = start, c = start;
    a += start;
    c = (c ^ b) - flow_rotate32(b, 14);
    a = (a ^ c) - flow_rotate32(c, 11);
    b = (b ^ a) - flow_rotate32(a, 25);
    c = (c ^ b) - flow_rotate32(b, 16);
    a = (a ^ c) - flow_rotate32(c, 4);
    b = (b ^ a) - flow_rotate32(a, 14);
    return (c ^ b) - flow_rotate32(b, 24);
}

#define SIP_ROTATE(x, b) ((x) << (b) | (x) >> (64 - (b)))
#define SIP_ROUND(v0, v1, v2, v3)                                                             \
    v0 += v1, v2 += v3;                                                                       \
    v1 = SIP_ROTATE(v1, 13) ^ v0, v3 = SIP_ROTATE(v3, 16) ^ v2;                                \
    v0 = SIP_ROTATE(v0, 32);                                                                  \
    v2 += v1, v0 += v3;                                                                       \
    v1 = SIP_ROTATE(v1, 17) ^ v2, v3 = SIP_ROTATE(v3, 21) ^ v0;                                \
    v2 = SIP_ROTATE(v2, 32);
#define SIP_WORD(v0, v1, v2, v3, word)                                                        \
    v3 ^= (word);                                                                             \
    SIP_ROUND(v0, v1, v2, v3)                                                                 \
    SIP_ROUND(v0, v1, v2, v3)                                                                 \
    v0 ^= (word);
#define SIP_END(v0, v1, v2, v3)                                                               \
    v2 ^= 0xFF;                                                                               \
    SIP_ROUND(v0, v1, v2, v3)                                                                 \
    SIP_ROUND(v0, v1, v2, v3)                                                                 \
    SIP_ROUND(v0, v1, v2, v3)                                                                 \
    SIP_ROUND(v0, v1, v2, v3)
#define SIP_V0 0x736F6D6570736575ull
#define SIP_V1 0x646F72616E646F6Dull
#define SIP_V2 0x6C7967656E657261ull
#define SIP_V3 0x7465646279746573ull

/* SipHash-2-4 of any bytes with both halves of the key alike. */
static inline uint64_t siphash_bytes(const uint8_t *p, ptrdiff_t size, uint64_t key)
{
    uint64_t v0 = key ^ SIP_V0, v1 = key ^ SIP_V1, v2 = key ^ SIP_V2, v3 = key ^ SIP_V3;
    uint64_t last = (uint64_t)size << 56;
    ptrdiff_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t word = flow_load64(p + i);
        SIP_WORD(v0, v1, v2, v3, word)
    }
    for (int k = 0; i < size; i++, k += 8)
        last |= (uint64_t)p[i] << k;
    SIP_WORD(v0, v1, v2, v3, last)
    SIP_END(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3;
}

#define FLOW_NAME(part) flow_any_##part
#if defined(__GNUC__) && !defined(__clang__)
/* Else GCC pairs the two flows in vectors of two, which lack a rotation: a third slower. */
#define FLOW_TARGET __attribute__((optimize("no-tree-slp-vectorize")))
#else
#define FLOW_TARGET
#endif
#define FLOW_LANES 1
#include "flow_hash_lanes.h"

#if defined(__x86_64__)
#define FLOW_NAME(part) flow_avx2_##part
#define FLOW_TARGET __attribute__((target("avx2")))
#define FLOW_LANES 4
#include "flow_hash_lanes.h"

#define FLOW_NAME(part) flow_avx512_##part
#define FLOW_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define FLOW_LANES 8
#include "flow_hash_lanes.h"
#endif

/* The copy for an instruction set: 0 any, 1 AVX2, 2 AVX-512; NULL where the machine lacks it. */
static inline flow_values flow_values_for(int set)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (set == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
                   ? flow_avx512_block
                   : NULL;
    if (set == 1)
        return __builtin_cpu_supports("avx2") ? flow_avx2_block : NULL;
#endif
    return set ? NULL : flow_any_block;
}

#endif

/* The part of flow_hash.h that is compiled once per instruction set. Not inlined from one common
 * function: the compiler splits wide vectors before it inlines, so each copy must be born with
 * its target. FLOW_NAME, FLOW_TARGET and FLOW_LANES come from the includer. */

#if FLOW_LANES == 1
typedef uint64_t FLOW_NAME(vec);
#else
typedef uint64_t FLOW_NAME(vec) __attribute__((vector_size(8 * FLOW_LANES), may_alias));
#endif

/* Words of count messages, a column each: 0 (protocol, label), 3 (ports), 4 ... (addresses).
 * Returns whether word 0 is the same in all of them. */
static FLOW_TARGET int FLOW_NAME(words)(const flow_columns *c, const flow_fields *f,
                                        ptrdiff_t from, ptrdiff_t count,
                                        uint64_t w[FLOW_WORDS][FLOW_BLOCK])
{
    uint64_t differs = 0;
    for (ptrdiff_t i = 0; i < count; i++)
        w[0][i] = (uint64_t)(uint8_t)(c->proto[from + i] & f->proto) << 16;
    if (c->label)
        for (ptrdiff_t i = 0; i < count; i++) {
            uint32_t label = c->label[from + i] & f->label;
            w[0][i] |= (uint64_t)(f->host_label ? label : __builtin_bswap32(label)) << 32;
        }
    for (ptrdiff_t i = 0; i < count; i++)
        differs |= w[0][i] ^ w[0][0];
    for (ptrdiff_t i = 0; i < count; i++) {
        uint16_t s = flow_swap16(c->sport[from + i] & f->sport);
        uint16_t d = flow_swap16(c->dport[from + i] & f->dport);
        uint16_t low = s < d ? s : d, high = s < d ? d : s;
        w[3][i] = (uint64_t)low << 32 | (uint64_t)high << 48;
    }
    if (c->size == 4) {
        uint32_t src[FLOW_BLOCK], dst[FLOW_BLOCK];
        const uint8_t *s = c->src + 4 * from, *d = c->dst + 4 * from;
        if (c->src_number)
            for (ptrdiff_t i = 0; i < count; i++)
                src[i] = flow_number(s, i);
        else
            for (ptrdiff_t i = 0; i < count; i++)
                src[i] = flow_load32(s + 4 * i);
        if (c->dst_number)
            for (ptrdiff_t i = 0; i < count; i++)
                dst[i] = flow_number(d, i);
        else
            for (ptrdiff_t i = 0; i < count; i++)
                dst[i] = flow_load32(d + 4 * i);
        for (ptrdiff_t i = 0; i < count; i++) {
            uint32_t a = src[i] & (uint32_t)f->src, b = dst[i] & (uint32_t)f->dst;
            w[4][i] = (uint64_t)(a < b ? a : b) << 32;
            w[5][i] = a < b ? b : a;
        }
    } else
        for (ptrdiff_t i = 0; i < count; i++) {
            const uint8_t *s = c->src + 16 * (from + i), *d = c->dst + 16 * (from + i);
            uint64_t s0 = flow_load64(s) & f->src, s1 = flow_load64(s + 8) & f->src;
            uint64_t d0 = flow_load64(d) & f->dst, d1 = flow_load64(d + 8) & f->dst;
            uint64_t sh = __builtin_bswap64(s0), dh = __builtin_bswap64(d0);
            uint64_t sl = __builtin_bswap64(s1), dl = __builtin_bswap64(d1);
            uint64_t swap = -(uint64_t)(dh < sh || (dh == sh && dl < sl));
            uint64_t x0 = (s0 ^ d0) & swap, x1 = (s1 ^ d1) & swap;
            s0 ^= x0, d0 ^= x0, s1 ^= x1, d1 ^= x1;
            w[4][i] = s0 << 32;
            w[5][i] = s0 >> 32 | s1 << 32;
            w[6][i] = s1 >> 32 | d0 << 32;
            w[7][i] = d0 >> 32 | d1 << 32;
            w[8][i] = d1 >> 32;
        }
    return !differs;
}

#define FLOW_BOTH(first, second)                                                              \
    SIP_WORD(a0, a1, a2, a3, first)                                                           \
    SIP_WORD(b0, b1, b2, b3, second)
#define FLOW_COLUMN(k)                                                                        \
    {                                                                                         \
        const FLOW_NAME(vec) first = *(const FLOW_NAME(vec) *)&w[k][i];                        \
        const FLOW_NAME(vec) second = *(const FLOW_NAME(vec) *)&w[k][i + FLOW_LANES];          \
        FLOW_BOTH(first, second)                                                              \
    }

/* out[i] = the router's value of flow from + i, for count <= FLOW_BLOCK flows. */
static FLOW_TARGET void FLOW_NAME(block)(const flow_columns *c, const flow_fields *f,
                                         ptrdiff_t from, ptrdiff_t count, uint32_t *out)
{
    uint64_t w[FLOW_WORDS][FLOW_BLOCK] __attribute__((aligned(64)));
    uint64_t h[FLOW_BLOCK] __attribute__((aligned(64)));
    const int same = FLOW_NAME(words)(c, f, from, count, w), words = c->size == 4 ? 6 : 9;
    const uint64_t length = (uint64_t)words * 8 << 56, zero = 0;
    uint64_t v0 = f->key ^ SIP_V0, v1 = f->key ^ SIP_V1, v2 = f->key ^ SIP_V2,
             v3 = f->key ^ SIP_V3;
    if (same) { /* the first three words are hashed once */
        SIP_WORD(v0, v1, v2, v3, w[0][0])
        SIP_WORD(v0, v1, v2, v3, zero)
        SIP_WORD(v0, v1, v2, v3, zero)
    }
    for (ptrdiff_t i = count; i % (2 * FLOW_LANES); i++) /* lanes without a flow */
        for (int k = 0; k < words; k++)
            w[k][i] = 0;
    const FLOW_NAME(vec) none = {0}, start0 = none + v0, start1 = none + v1, start2 = none + v2,
                         start3 = none + v3, end = none + length;
    for (ptrdiff_t i = 0; i < count; i += 2 * FLOW_LANES) {
        FLOW_NAME(vec) a0 = start0, a1 = start1, a2 = start2, a3 = start3;
        FLOW_NAME(vec) b0 = start0, b1 = start1, b2 = start2, b3 = start3;
        if (!same) {
            FLOW_COLUMN(0)
            FLOW_BOTH(none, none)
            FLOW_BOTH(none, none)
        }
        for (int k = 3; k < words; k++)
            FLOW_COLUMN(k)
        FLOW_BOTH(end, end)
        SIP_END(a0, a1, a2, a3)
        SIP_END(b0, b1, b2, b3)
        *(FLOW_NAME(vec) *)&h[i] = a0 ^ a1 ^ a2 ^ a3;
        *(FLOW_NAME(vec) *)&h[i + FLOW_LANES] = b0 ^ b1 ^ b2 ^ b3;
    }
    if (f->mix)
        for (ptrdiff_t i = 0; i < count; i++) {
            uint32_t low = (uint32_t)h[i];
            out[i] = flow_mix(low ? low : 1) >> f->shift;
        }
    else
        for (ptrdiff_t i = 0; i < count; i++) {
            uint32_t low = (uint32_t)h[i];
            out[i] = (low ? low : 1) >> f->shift;
        }
}

#undef FLOW_COLUMN
#undef FLOW_BOTH
#undef FLOW_NAME
#undef FLOW_TARGET
#undef FLOW_LANES

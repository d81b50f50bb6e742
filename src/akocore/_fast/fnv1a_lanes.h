/* The part of fnv1a.h that is compiled once per instruction set. Not inlined from one common
 * function: the compiler splits wide vectors before it inlines, so each copy must be born with
 * its target. FNV_NAME and FNV_TARGET come from the includer. */

/* out[place[i]] = FNV-1a(p[i], n[i]) & mask, for count strings. */
static FNV_TARGET void FNV_NAME(lanes)(const uint8_t *const *p, const ptrdiff_t *n, const uint16_t *place,
            ptrdiff_t count, uint32_t mask, uint16_t *out)
{
    uint32_t undo[FNV_UNDO];
    undo[0] = 1;
    for (int k = 1; k < FNV_UNDO; k++)
        undo[k] = undo[k - 1] * FNV_INVERSE;
    for (; count >= FNV_LANES; count -= FNV_LANES, p += FNV_LANES, n += FNV_LANES,
                               place += FNV_LANES) {
        ptrdiff_t shortest = n[0], longest = n[0], at = 0;
        for (int k = 1; k < FNV_LANES; k++) {
            shortest = n[k] < shortest ? n[k] : shortest;
            longest = n[k] > longest ? n[k] : longest;
        }
        if (shortest < 4 || longest > 4 * shortest) { /* lanes would mostly idle */
            for (int k = 0; k < FNV_LANES; k++)
                out[place[k]] = (uint16_t)(fnv1a_one(p[k], n[k]) & mask);
            continue;
        }
        fnv_vec h0 = (fnv_vec){0} + FNV_BASIS, h1 = h0;
        for (; at + 4 <= shortest; at += 4) {
#define FNV_AT(k) fnv_load(p[k] + at)
            FNV_FOUR(FNV_AT)
        }
        for (; at < longest; at += 4) {
#define FNV_PAST(k) fnv_word(p[k], n[k], at)
            FNV_FOUR(FNV_PAST)
        }
        uint32_t h[FNV_LANES];
        memcpy(h, &h0, sizeof(h0));
        memcpy(h + 8, &h1, sizeof(h1));
        for (int k = 0; k < FNV_LANES; k++) {
            size_t zeros = (size_t)(at - n[k]);
            uint32_t back = zeros < FNV_UNDO ? undo[zeros] : fnv_undo(zeros);
            out[place[k]] = (uint16_t)(h[k] * back & mask);
        }
    }
    for (ptrdiff_t k = 0; k < count; k++)
        out[place[k]] = (uint16_t)(fnv1a_one(p[k], n[k]) & mask);
}

/* Up to FNV_BLOCK strings: where their lengths differ much they are sorted by length first
 * (by counting), so that those side by side end together. */
static FNV_TARGET void FNV_NAME(block)(const uint8_t *const *p, const ptrdiff_t *n, ptrdiff_t count, uint32_t mask,
            uint16_t *out)
{
    const uint8_t *sorted_p[FNV_BLOCK];
    ptrdiff_t sorted_n[FNV_BLOCK], shortest = PTRDIFF_MAX, longest = 0;
    uint16_t place[FNV_BLOCK], start[FNV_LENGTHS + 1] = {0};
    for (ptrdiff_t i = 0; i < count; i++) {
        shortest = n[i] < shortest ? n[i] : shortest;
        longest = n[i] > longest ? n[i] : longest;
    }
    if (longest - shortest <= 8) {
        for (ptrdiff_t i = 0; i < count; i++)
            place[i] = (uint16_t)i;
        FNV_NAME(lanes)(p, n, place, count, mask, out);
        return;
    }
#define FNV_RANK(i) (n[i] >> 2 < FNV_LENGTHS ? n[i] >> 2 : FNV_LENGTHS - 1)
    for (ptrdiff_t i = 0; i < count; i++)
        start[FNV_RANK(i) + 1]++;
    for (int k = 1; k <= FNV_LENGTHS; k++)
        start[k] = (uint16_t)(start[k] + start[k - 1]);
    for (ptrdiff_t i = 0; i < count; i++) {
        int to = start[FNV_RANK(i)]++;
        sorted_p[to] = p[i];
        sorted_n[to] = n[i];
        place[to] = (uint16_t)i;
    }
    FNV_NAME(lanes)(sorted_p, sorted_n, place, count, mask, out);
}

#undef FNV_AT
#undef FNV_PAST
#undef FNV_RANK
#undef FNV_NAME
#undef FNV_TARGET

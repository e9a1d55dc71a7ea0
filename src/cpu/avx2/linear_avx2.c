/* linear_avx2.c: matrix times activations for the eight quantised weight types (AVX2, no VNNI).
 *
 * A tile is a group (16 rows in two halves) and some tokens. Sharing each token's broadcast between
 * the halves matters: loads, not multiplies, were the limit without it.
 *
 * Few tokens read packed weights. For many (panel_tokens_min), a group is unpacked once for all of
 * them, 256 k at a time, into a panel of bytes on the stack (it fits the first-level cache); the
 * sums rest in memory in between, so the order of kernels.h is kept. */
#include "cpu/impl.h"

#include <immintrin.h>
#include <stdbool.h>

#include "cpu/avx2/block_avx2.h"
#include "ops/pack.h"

/* Bytes of one 32-block of a group, all sections together. */
INLINE unsigned block_bytes(kr_dtype_t type) {
    switch (type) {
    case KR_DTYPE_Q4_0: return 288;
    case KR_DTYPE_Q4_1: return 320;
    case KR_DTYPE_Q5_0: return 352;
    case KR_DTYPE_Q5_1: return 384;
    case KR_DTYPE_Q8_0: return 544;
    case KR_DTYPE_Q4_K: return 296;
    case KR_DTYPE_Q5_K: return 360;
    default: return 420;
    }
}

/* ---- one group, n tokens ------------------------------------------------------------------- */

/* The share of block b in the prefetch: one linear walk over all sections, so that every line is
 * asked for once. Into the second level: the first has few fill buffers, and software that holds
 * them all waits for memory at two thirds of the speed (Zen 4: 18 instead of 24 GB/s a thread). */
INLINE void ahead_prefetch(kr_dtype_t type, const uint8_t *ahead, size_t b) {
    UNROLL for (unsigned i = 0; i < (block_bytes(type) + 63u) / 64u; i++) {
        _mm_prefetch((const void *)(ahead + b * block_bytes(type) + 64u * i), _MM_HINT_T1);
    }
}

/* One 256 of q6_k: the part over its blocks, then the scale of the 256. */
INLINE void super_step(meeting_t m, size_t b, const uint8_t *act, __m256 acc[2][TILE_TOKENS]) {
    __m256 part[2][TILE_TOKENS];
    UNROLL for (unsigned t = 0; t < m.n; t++) part[0][t] = part[1][t] = _mm256_setzero_ps();
    for (size_t i = b; i < b + SUPER_BLOCKS; i++) {
        m.b = i;
        m.act = act + i * sizeof(kri_q8_block_t);
        block_step(&m, part);
        if (!m.from_panel && m.source->ahead != NULL) {
            ahead_prefetch(m.type, m.source->ahead, i);
        }
    }
    m.b = b;
    const __m256 d0 = block_scale(&m, 0), d1 = block_scale(&m, 1);
    UNROLL for (unsigned t = 0; t < m.n; t++) {
        acc[0][t] = _mm256_fmadd_ps(d0, part[0][t], acc[0][t]);
        acc[1][t] = _mm256_fmadd_ps(d1, part[1][t], acc[1][t]);
    }
}

/* Adds blocks [0, n_blocks) of the source to the sums of n tokens (a constant). */
INLINE void tile(kr_dtype_t type, bool from_panel, unsigned n, const source_t *s,
                 const uint8_t *act, size_t act_stride, float (*sums)[KRI_GROUP_ROWS]) {
    meeting_t m = {type, from_panel, n, s, 0, act, act_stride};
    __m256 acc[2][TILE_TOKENS];
    UNROLL for (unsigned t = 0; t < n; t++) {
        acc[0][t] = _mm256_loadu_ps(sums[t]);
        acc[1][t] = _mm256_loadu_ps(sums[t] + 8);
    }
    if (type == KR_DTYPE_Q6_K) {
        for (size_t b = 0; b < s->n_blocks; b += SUPER_BLOCKS) super_step(m, b, act, acc);
    } else {
        for (size_t b = 0; b < s->n_blocks; b++) {
            m.b = b;
            m.act = act + b * sizeof(kri_q8_block_t);
            block_step(&m, acc);
            if (!from_panel && s->ahead != NULL) ahead_prefetch(type, s->ahead, b);
        }
    }
    UNROLL for (unsigned t = 0; t < n; t++) {
        _mm256_storeu_ps(sums[t], acc[0][t]);
        _mm256_storeu_ps(sums[t] + 8, acc[1][t]);
    }
}

typedef void tile_fn(const source_t *s, const uint8_t *act, size_t act_stride,
                     float (*sums)[KRI_GROUP_ROWS]);

/* All tokens of one part over one source. The first tile does the prefetch. */
INLINE void tiles_run(tile_fn *const tiles[TILE_SIZES], source_t *s, const uint8_t *act,
                      size_t act_stride, size_t n_tokens, sums_t *sums) {
    size_t t = 0;
    while (t < n_tokens) {
        const unsigned size = tile_size_find(n_tokens - t);
        tiles[size](s, act + t * act_stride, act_stride, sums->rows + t);
        s->ahead = NULL;
        t += tile_sizes[size];
    }
}

/* ---- the kernels --------------------------------------------------------------------------- */

typedef void panel_fn(const source_t *s, size_t from, size_t n, panel_t *panel);

/* What a type brings: tiles over packed weights and over a panel. */
typedef struct kernel_s {
    kr_dtype_t type;
    tile_fn *tiles[TILE_SIZES];
    tile_fn *panel_tiles[TILE_SIZES];
    panel_fn *panel_fill;
} kernel_t;

/* Tokens from which a panel pays: sooner where bits must be put together. */
static size_t panel_tokens_min(kr_dtype_t type) {
    switch (type) {
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K:
    case KR_DTYPE_Q6_K: return 8;
    default: return 24;
    }
}

static void panels_run(const kernel_t *kernel, const source_t *group, const uint8_t *act,
                       size_t act_stride, size_t n_tokens, sums_t *sums) {
    _Alignas(64) panel_t panel;
    for (size_t b = 0; b < group->n_blocks; b += SUPER_BLOCKS) {
        const size_t left = group->n_blocks - b;
        source_t s = {.panel = &panel, .n_blocks = left < SUPER_BLOCKS ? left : SUPER_BLOCKS};
        kernel->panel_fill(group, b, s.n_blocks, &panel);
        tiles_run(kernel->panel_tiles, &s, act + b * sizeof(kri_q8_block_t), act_stride, n_tokens,
                  sums);
    }
}

static void groups_run(const kernel_t *kernel, const uint8_t *w, size_t n_in, size_t n_groups,
                       size_t n_rows, const uint8_t *act, size_t act_stride, size_t n_tokens,
                       const float *bias, uint32_t accumulate, float *out, size_t out_stride) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(kernel->type, n_in, &layout)) return;
    const size_t distance = prefetch_distance(&layout);
    for (size_t g = 0; g < n_groups; g++) {
        const uint8_t *base = w + g * layout.group_bytes;
        source_t s = {.super = base + layout.super,
                      .scales = base + layout.scales,
                      .quants = base + layout.quants,
                      .ahead = g + 1 < n_groups || distance < layout.group_bytes
                                   ? base + distance
                                   : NULL,
                      .quant_bytes = layout.quant_bytes,
                      .n_blocks = n_in / KRI_Q8_ITEMS};
        const size_t row = g * KRI_GROUP_ROWS;
        for (size_t t = 0; t < n_tokens; t += SUM_TOKENS) {
            const size_t n = n_tokens - t < SUM_TOKENS ? n_tokens - t : SUM_TOKENS;
            const uint8_t *a = act + t * act_stride;
            sums_t sums;
            __builtin_memset(sums.rows, 0, n * sizeof sums.rows[0]);
            if (n >= panel_tokens_min(kernel->type)) {
                panels_run(kernel, &s, a, act_stride, n, &sums);
            } else {
                tiles_run(kernel->tiles, &s, a, act_stride, n, &sums);
            }
            const tile_out_t to = {out + t * out_stride + row, out_stride,
                                   bias != NULL ? bias + row : NULL, rows_left(n_rows, g),
                                   accumulate};
            sums_store(&to, &sums, n);
            s.ahead = NULL; /* the first tokens have fetched it */
        }
    }
}

#define TILE(name, type, from_panel, n)                                                          \
    static void name##_##n(const source_t *s, const uint8_t *act, size_t act_stride,             \
                           float (*sums)[KRI_GROUP_ROWS]) {                                      \
        tile(type, from_panel, n, s, act, act_stride, sums);                                     \
    }
#define TILES(name, type, from_panel)                                                            \
    TILE(name, type, from_panel, 1)                                                              \
    TILE(name, type, from_panel, 2)                                                              \
    TILE(name, type, from_panel, 4)

#define ENTRY(slot)                                                                              \
    void kri_##slot##_avx2(const uint8_t *restrict w, size_t n_in, size_t n_groups,              \
                           size_t n_rows, const void *restrict act, size_t act_stride,           \
                           size_t n_tokens, const float *restrict bias, uint32_t accumulate,     \
                           float *restrict out, size_t out_stride) {                             \
        groups_run(&slot##_kernel, w, n_in, n_groups, n_rows, act, act_stride, n_tokens, bias,   \
                   accumulate, out, out_stride);                                                 \
    }

#define LINEAR(slot, type)                                                                       \
    TILES(slot, type, false)                                                                     \
    TILES(slot##_panel, type, true)                                                              \
    static void slot##_panel_fill(const source_t *s, size_t from, size_t n, panel_t *panel) {    \
        panel_fill(type, s, from, n, panel);                                                     \
        if (s->ahead == NULL) return;                                                            \
        for (size_t b = from; b < from + n; b++) ahead_prefetch(type, s->ahead, b);              \
    }                                                                                            \
    static const kernel_t slot##_kernel = {type,                                                 \
                                           {slot##_1, slot##_2, slot##_4},                       \
                                           {slot##_panel_1, slot##_panel_2, slot##_panel_4},     \
                                           slot##_panel_fill};                                   \
    ENTRY(slot)

LINEAR(linear_q4_0, KR_DTYPE_Q4_0)
LINEAR(linear_q4_1, KR_DTYPE_Q4_1)
LINEAR(linear_q5_0, KR_DTYPE_Q5_0)
LINEAR(linear_q5_1, KR_DTYPE_Q5_1)
LINEAR(linear_q8_0, KR_DTYPE_Q8_0)
LINEAR(linear_q4_k, KR_DTYPE_Q4_K)
LINEAR(linear_q5_k, KR_DTYPE_Q5_K)
LINEAR(linear_q6_k, KR_DTYPE_Q6_K)

/* linear_float_neon.c: matrix times activations for f32, f16 and bf16 weights with NEON.
 *
 * A lane is a row and k runs in order, one fused multiply-add per (row, token, k), which is the
 * order of kernels.h. That leaves one dependent chain per accumulator, so a tile brings eight or
 * sixteen of them: four tokens on one group, or two groups when tokens are few. Four activations
 * are loaded at a time and multiplied by lane. */
#include "cpu/impl.h"

#include "cpu/neon/tile_neon.h"

#define TILE_TOKENS 4u
#define CHUNK_GROUPS 2u
#define PREFETCH_BYTES 1024u

INLINE size_t element_bytes(kr_dtype_t type) {
    return type == KR_DTYPE_F32 ? 4u : 2u;
}

INLINE float32x4_t rows_load(kr_dtype_t type, const uint8_t *p) {
    switch (type) {
    case KR_DTYPE_F16: return halfs_load(p);
    case KR_DTYPE_BF16:
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const void *)p), 16));
    default: return vld1q_f32((const void *)p);
    }
}

typedef float32x4_t sums_t[CHUNK_GROUPS][TILE_TOKENS][GROUP_QUADS];

/* k of n_groups groups and n tokens; `x` holds one activation per token in all lanes. */
INLINE void k_add(kr_dtype_t type, unsigned n_groups, unsigned n, const uint8_t *w,
                  size_t group_bytes, const float32x4_t x[TILE_TOKENS], sums_t acc) {
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        UNROLL for (unsigned j = 0; j < GROUP_QUADS; j++) {
            const uint8_t *p = w + g * group_bytes + QUAD_ROWS * j * element_bytes(type);
            const float32x4_t rows = rows_load(type, p);
            UNROLL for (unsigned t = 0; t < n; t++) {
                acc[g][t][j] = vfmaq_f32(acc[g][t][j], rows, x[t]);
            }
        }
    }
}

/* n_groups (a constant, <= 2) groups by n (a constant, <= 4) tokens. The activation is spread by
 * the dup that a multiply by lane contains, so the compiler merges the two. */
INLINE void tile(kr_dtype_t type, unsigned n_groups, unsigned n, const uint8_t *w,
                 size_t group_bytes, size_t n_in, const uint8_t *act, size_t act_stride,
                 const tile_out_t *out) {
    const size_t row_bytes = KRI_GROUP_ROWS * element_bytes(type);
    sums_t acc;
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        UNROLL for (unsigned t = 0; t < n; t++) {
            UNROLL for (unsigned j = 0; j < GROUP_QUADS; j++) acc[g][t][j] = vdupq_n_f32(0.0f);
        }
    }
    size_t k = 0;
    for (; k + 4u <= n_in; k += 4u) {
        float32x4_t a[TILE_TOKENS], x[TILE_TOKENS];
        const uint8_t *p = w + k * row_bytes;
        UNROLL for (unsigned g = 0; g < n_groups; g++) {
            UNROLL for (size_t i = 0; i < 4u * row_bytes; i += 64u) {
                __builtin_prefetch(p + g * group_bytes + PREFETCH_BYTES + i, 0, 3);
            }
        }
        UNROLL for (unsigned t = 0; t < n; t++) {
            a[t] = vld1q_f32((const float *)(const void *)(act + t * act_stride) + k);
        }
        UNROLL for (unsigned t = 0; t < n; t++) x[t] = vdupq_laneq_f32(a[t], 0);
        k_add(type, n_groups, n, p, group_bytes, x, acc);
        UNROLL for (unsigned t = 0; t < n; t++) x[t] = vdupq_laneq_f32(a[t], 1);
        k_add(type, n_groups, n, p + row_bytes, group_bytes, x, acc);
        UNROLL for (unsigned t = 0; t < n; t++) x[t] = vdupq_laneq_f32(a[t], 2);
        k_add(type, n_groups, n, p + 2u * row_bytes, group_bytes, x, acc);
        UNROLL for (unsigned t = 0; t < n; t++) x[t] = vdupq_laneq_f32(a[t], 3);
        k_add(type, n_groups, n, p + 3u * row_bytes, group_bytes, x, acc);
    }
    for (; k < n_in; k++) {
        float32x4_t x[TILE_TOKENS];
        UNROLL for (unsigned t = 0; t < n; t++) {
            x[t] = vld1q_dup_f32((const float *)(const void *)(act + t * act_stride) + k);
        }
        k_add(type, n_groups, n, w + k * row_bytes, group_bytes, x, acc);
    }
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        float sums[TILE_TOKENS * KRI_GROUP_ROWS];
        UNROLL for (unsigned t = 0; t < n; t++) {
            UNROLL for (unsigned j = 0; j < GROUP_QUADS; j++) {
                vst1q_f32(sums + KRI_GROUP_ROWS * t + QUAD_ROWS * j, acc[g][t][j]);
            }
        }
        sums_store(&out[g], sums, KRI_GROUP_ROWS, n);
    }
}

typedef void tile_fn(const uint8_t *w, size_t group_bytes, size_t n_in, const uint8_t *act,
                     size_t act_stride, const tile_out_t *out);

/* A tile of each token count: over one group and over as many as its registers allow. */
typedef struct tile_pair_s {
    unsigned n_tokens;
    tile_fn *one, *many;
    unsigned n_many;
} tile_pair_t;
#define TILE_SIZES 3u

/* All tokens of up to CHUNK_GROUPS groups, so that these groups are read from memory once. */
static inline void chunk_run(const tile_pair_t *tiles, const uint8_t *w, size_t group_bytes,
                             size_t n_in, unsigned n_groups, const uint8_t *act,
                             size_t act_stride, size_t n_tokens, tile_out_t *outs, float *out) {
    size_t t = 0;
    while (t < n_tokens) {
        const tile_pair_t *pair = tiles + TILE_SIZES - 1u;
        while (pair->n_tokens > n_tokens - t) pair--;
        const uint8_t *a = act + t * act_stride;
        unsigned g = 0;
        for (unsigned i = 0; i < n_groups; i++) {
            outs[i].out = out + t * outs[i].stride + i * KRI_GROUP_ROWS;
        }
        for (; g + pair->n_many <= n_groups; g += pair->n_many) {
            pair->many(w + g * group_bytes, group_bytes, n_in, a, act_stride, &outs[g]);
        }
        for (; g < n_groups; g++) {
            pair->one(w + g * group_bytes, group_bytes, n_in, a, act_stride, &outs[g]);
        }
        t += pair->n_tokens;
    }
}

static void groups_run(kr_dtype_t type, const tile_pair_t *tiles, const uint8_t *w, size_t n_in,
                       size_t n_groups, size_t n_rows, const uint8_t *act, size_t act_stride,
                       size_t n_tokens, const float *bias, uint32_t accumulate, float *out,
                       size_t out_stride) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(type, n_in, &layout)) return;
    for (size_t g = 0; g < n_groups; g += CHUNK_GROUPS) {
        const size_t left = n_groups - g;
        const unsigned n = left < CHUNK_GROUPS ? (unsigned)left : CHUNK_GROUPS;
        tile_out_t outs[CHUNK_GROUPS];
        for (unsigned i = 0; i < n; i++) {
            const size_t row = (g + i) * KRI_GROUP_ROWS;
            outs[i] = (tile_out_t){NULL, out_stride, bias != NULL ? bias + row : NULL,
                                   rows_left(n_rows, g + i), accumulate};
        }
        chunk_run(tiles, w + g * layout.group_bytes, layout.group_bytes, n_in, n, act, act_stride,
                  n_tokens, outs, out + g * KRI_GROUP_ROWS);
    }
}

#define TILE(slot, type, n_groups, n)                                                            \
    static void slot##_tile_##n_groups##_##n(const uint8_t *w, size_t group_bytes, size_t n_in,  \
                                             const uint8_t *act, size_t act_stride,              \
                                             const tile_out_t *out) {                            \
        tile(type, n_groups, n, w, group_bytes, n_in, act, act_stride, out);                     \
    }
#define LINEAR(slot, type)                                                                       \
    TILE(slot, type, 1, 1)                                                                       \
    TILE(slot, type, 2, 1)                                                                       \
    TILE(slot, type, 1, 2)                                                                       \
    TILE(slot, type, 2, 2)                                                                       \
    TILE(slot, type, 1, 4)                                                                       \
    void kri_##slot##_neon(const uint8_t *restrict w, size_t n_in, size_t n_groups,              \
                           size_t n_rows, const void *restrict act, size_t act_stride,           \
                           size_t n_tokens, const float *restrict bias, uint32_t accumulate,     \
                           float *restrict out, size_t out_stride) {                             \
        static const tile_pair_t tiles[TILE_SIZES] = {                                           \
            {1, slot##_tile_1_1, slot##_tile_2_1, 2},                                            \
            {2, slot##_tile_1_2, slot##_tile_2_2, 2},                                            \
            {4, slot##_tile_1_4, slot##_tile_1_4, 1}};                                           \
        groups_run(type, tiles, w, n_in, n_groups, n_rows, act, act_stride, n_tokens, bias,      \
                   accumulate, out, out_stride);                                                 \
    }

LINEAR(linear_f32, KR_DTYPE_F32)
LINEAR(linear_f16, KR_DTYPE_F16)
LINEAR(linear_bf16, KR_DTYPE_BF16)

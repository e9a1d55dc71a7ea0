/* tile_linear_amx.c: matrix times many tokens on AMX with bf16 tiles.
 *
 * Weights are taken in panels of 32 rows. A panel's next 512 k are unpacked once into bf16 tiles
 * (32 KiB, near enough to stay in the first-level cache) and multiplied with all tokens of the
 * call, 32 at a time: 2 x 2 accumulator tiles, each operand tile used twice. The sums of a panel
 * wait in a scratch of 32 columns between two steps of k. The outer cut of k keeps the
 * activations that all panels share in the second-level cache.
 *
 * The trade against the int8 kernels: operands of 16 bits need half the peak of the unit, but no
 * rescaling every 32 k, which costs more than that. */
#include "cpu/amx/tile.h"
#include "cpu/amx/unpack.h"
#if defined(KRI_AMX_EMULATED)
#include "cpu/amx/emulated.h"
#else
#include "cpu/impl.h"
#endif

/* Tiles of k between two stores of the sums, and those whose activations stay in the cache. */
#ifndef STEPS_INNER
#define STEPS_INNER 16u
#endif
#ifndef STEPS_OUTER
#define STEPS_OUTER 64u
#endif
/* Tiles ahead that activations are asked for: tile loads wait for a free tile register, so that
 * the core cannot look far ahead by itself. */
#ifndef STEPS_AHEAD
#define STEPS_AHEAD 2u
#endif
#define PANEL_GROUPS 2u
#define WEIGHTS_BYTES (PANEL_GROUPS * STEPS_INNER * TILE_BYTES)

/* A piece of a panel: n tiles of k from `step` on, of one or two groups. */
typedef struct piece_s {
    size_t group, n_groups, step, n;
} piece_t;

typedef void unpack_fn(const group_t *g, size_t b, uint8_t *tile);

typedef struct panel_s {
    const kri_tile_args_t *args;
    const kri_pack_layout_t *layout;
    unpack_fn *unpack;
    size_t n_steps;         /* tiles of k in all */
    float *sums;            /* [token blocks][2 groups][16 tokens][16 rows] */
    uint8_t *weights[2];    /* [2 groups][STEPS_INNER] tiles: the piece in use and the next one */
    piece_t next;           /* being unpacked into weights[1] */
    group_t next_groups[2];
    size_t n_unpacked;      /* of its n_groups * n blocks */
    size_t period, tick;    /* a block is unpacked every `period` tiles of k */
} panel_t;

/* ---- unpacking ----------------------------------------------------------------------------- */

#define UNPACK(name, type)                                                                       \
    static void unpack_##name(const group_t *g, size_t b, uint8_t *tile) {                       \
        block_to_tile(KR_DTYPE_##type, g, b, tile);                                              \
    }
UNPACK(q4_0, Q4_0)
UNPACK(q4_1, Q4_1)
UNPACK(q5_0, Q5_0)
UNPACK(q5_1, Q5_1)
UNPACK(q8_0, Q8_0)
UNPACK(q4_k, Q4_K)
UNPACK(q5_k, Q5_K)
UNPACK(q6_k, Q6_K)
static void unpack_f16(const group_t *g, size_t b, uint8_t *tile) {
    f16_to_tile(g->quants + b * TILE_BYTES, tile);
}
static void unpack_bf16(const group_t *g, size_t b, uint8_t *tile) {
    bf16_to_tile(g->quants + b * TILE_BYTES, tile);
}

static unpack_fn *unpack_find(kr_dtype_t type) {
    switch (type) {
    case KR_DTYPE_Q4_0: return unpack_q4_0;
    case KR_DTYPE_Q4_1: return unpack_q4_1;
    case KR_DTYPE_Q5_0: return unpack_q5_0;
    case KR_DTYPE_Q5_1: return unpack_q5_1;
    case KR_DTYPE_Q8_0: return unpack_q8_0;
    case KR_DTYPE_Q4_K: return unpack_q4_k;
    case KR_DTYPE_Q5_K: return unpack_q5_k;
    case KR_DTYPE_Q6_K: return unpack_q6_k;
    case KR_DTYPE_F16: return unpack_f16;
    case KR_DTYPE_BF16: return unpack_bf16;
    default: return NULL;
    }
}

/* Names the piece to be unpacked while another one is multiplied; n == 0: none is left. */
static void next_begin(panel_t *p, piece_t next) {
    const size_t n_tiles = (p->args->n_tokens + 2 * KRI_TILE_TOKENS - 1) / (2 * KRI_TILE_TOKENS);
    p->next = next;
    p->n_unpacked = 0;
    for (size_t g = 0; g < next.n_groups; g++)
        p->next_groups[g] = group_at(p->args->w, p->layout, next.group + g);
    p->period = n_tiles / 2 > 0 ? n_tiles / 2 : 1;
    p->tick = 0;
}

/* Unpacks one block more; the blocks of both groups in turn. */
static void next_unpack(panel_t *p) {
    const size_t g = p->n_unpacked % p->next.n_groups, i = p->n_unpacked / p->next.n_groups;
    p->unpack(&p->next_groups[g], p->next.step + i,
              p->weights[1] + (g * STEPS_INNER + i) * TILE_BYTES);
    p->n_unpacked++;
}

static void next_finish(panel_t *p) {
    while (p->n_unpacked < p->next.n_groups * p->next.n) next_unpack(p);
    uint8_t *used = p->weights[0];
    p->weights[0] = p->weights[1];
    p->weights[1] = used;
}

/* The vector pipes unpack while the matrix unit works. */
INLINE void next_tick(panel_t *p) {
    if (++p->tick < p->period || p->n_unpacked >= p->next.n_groups * p->next.n) return;
    p->tick = 0;
    next_unpack(p);
}

/* ---- products ------------------------------------------------------------------------------ */

INLINE void tile_prefetch(const uint8_t *tile) {
    UNROLL for (unsigned i = 0; i < 16; i++)
        _mm_prefetch((const char *)tile + 64u * i, _MM_HINT_T0);
}

/* Tiles 0..3: sums (token block, group) = (0,0) (0,1) (1,0) (1,1); 4, 5: activations; 6, 7:
 * weights. a0, a1: the two token blocks; n tiles of k. Tile registers are not renamed: each operand
 * is loaded for the next step as soon as its last product has begun, behind other products. */
INLINE void multiply_2x2(panel_t *p, const uint8_t *a0, const uint8_t *a1, size_t n) {
    const uint8_t *b0 = p->weights[0], *b1 = b0 + STEPS_INNER * TILE_BYTES;
    tile_load(4, a0, 64);
    tile_load(6, b0, 64);
    tile_load(7, b1, 64);
    tile_load(5, a1, 64);
    for (size_t i = 1; i < n; i++) {
        const size_t at = i * TILE_BYTES;
        tile_dot_bf16(0, 4, 6);
        tile_dot_bf16(1, 4, 7);
        tile_load(4, a0 + at, 64);
        if (STEPS_AHEAD) tile_prefetch(a0 + at + STEPS_AHEAD * TILE_BYTES);
        tile_dot_bf16(3, 5, 7);
        tile_load(7, b1 + at, 64);
        tile_dot_bf16(2, 5, 6);
        tile_load(6, b0 + at, 64);
        tile_load(5, a1 + at, 64);
        if (STEPS_AHEAD) tile_prefetch(a1 + at + STEPS_AHEAD * TILE_BYTES);
        next_tick(p);
    }
    tile_dot_bf16(0, 4, 6);
    tile_dot_bf16(1, 4, 7);
    tile_dot_bf16(3, 5, 7);
    tile_dot_bf16(2, 5, 6);
    next_tick(p);
}

INLINE void multiply_1x2(panel_t *p, const uint8_t *a0, size_t n) {
    const uint8_t *b0 = p->weights[0], *b1 = b0 + STEPS_INNER * TILE_BYTES;
    for (size_t i = 0; i < n; i++) {
        tile_load(4, a0 + i * TILE_BYTES, 64);
        tile_load(6, b0 + i * TILE_BYTES, 64);
        tile_dot_bf16(0, 4, 6);
        tile_load(7, b1 + i * TILE_BYTES, 64);
        tile_dot_bf16(1, 4, 7);
        next_tick(p);
    }
}

/* A piece with all tokens; `first`: nothing has been summed yet. A piece of one group multiplies
 * an old second group too, whose sums nobody reads. */
static void piece_multiply(panel_t *p, const piece_t *piece, int first) {
    const size_t n_blocks = (p->args->n_tokens + KRI_TILE_TOKENS - 1) / KRI_TILE_TOKENS;
    for (size_t t = 0; t < n_blocks; t += 2) {
        const uint8_t *a0 =
            (const uint8_t *)p->args->tiles + (t * p->n_steps + piece->step) * TILE_BYTES;
        float *c = p->sums + t * 512u;
        const int two = t + 1 < n_blocks;
        if (first) {
            tile_zero(0);
            tile_zero(1);
            tile_zero(2);
            tile_zero(3);
        } else {
            tile_load(0, c, 64);
            tile_load(1, c + 256, 64);
            if (two) {
                tile_load(2, c + 512, 64);
                tile_load(3, c + 768, 64);
            }
        }
        if (two) multiply_2x2(p, a0, a0 + p->n_steps * TILE_BYTES, piece->n);
        else multiply_1x2(p, a0, piece->n);
        tile_store(0, c, 64);
        tile_store(1, c + 256, 64);
        if (two) {
            tile_store(2, c + 512, 64);
            tile_store(3, c + 768, 64);
        }
    }
}

/* Adds the sums of a panel to the output; `first` outer cut: with bias, over what is there only
 * when accumulating. */
static void panel_store(const panel_t *p, const piece_t *piece, int first) {
    const kri_tile_args_t *args = p->args;
    for (size_t g = 0; g < piece->n_groups; g++) {
        const size_t row = (piece->group + g) * KRI_GROUP_ROWS, left = args->n_rows - row;
        const __mmask16 rows = left >= KRI_GROUP_ROWS ? 0xffff : (__mmask16)((1u << left) - 1u);
        const int add = args->accumulate || !first;
        __m512 bias = _mm512_setzero_ps();
        if (args->bias && first) bias = _mm512_maskz_loadu_ps(rows, args->bias + row);
        for (size_t t = 0; t < args->n_tokens; t++) {
            const float *c = p->sums + (t / 16u * 2u + g) * 256u + t % 16u * 16u;
            float *out = args->out + t * args->out_stride + row;
            __m512 sum = _mm512_add_ps(_mm512_load_ps(c), bias);
            if (add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(rows, out), sum);
            _mm512_mask_storeu_ps(out, rows, sum);
        }
    }
}

/* The piece after `at`: the next k of its panel inside the outer cut, then the next panel, then the
 * next outer cut. n == 0 after the last. */
static piece_t piece_after(const panel_t *p, const piece_t *at) {
    piece_t next = *at;
    const size_t cut = at->step / STEPS_OUTER * STEPS_OUTER;
    const size_t cut_end = p->n_steps - cut < STEPS_OUTER ? p->n_steps : cut + STEPS_OUTER;
    next.step = at->step + at->n;
    if (next.step == cut_end) {
        next.group = at->group + PANEL_GROUPS;
        next.step = cut;
        if (next.group >= p->args->n_groups) {
            next.group = 0;
            next.step = cut_end;
        }
    }
    const size_t next_cut = next.step / STEPS_OUTER * STEPS_OUTER;
    const size_t end = p->n_steps - next_cut < STEPS_OUTER ? p->n_steps : next_cut + STEPS_OUTER;
    next.n = end - next.step < STEPS_INNER ? end - next.step : STEPS_INNER;
    if (next.step >= p->n_steps) next.n = 0;
    next.n_groups = p->args->n_groups - next.group < PANEL_GROUPS ? 1 : PANEL_GROUPS;
    return next;
}

void KRI_AMX_NAME(tile_linear)(const kri_tile_args_t *args) {
    kri_pack_layout_t layout;
    panel_t p = {.args = args, .layout = &layout, .unpack = unpack_find(args->dtype),
                 .n_steps = args->n_in / KRI_TILE_K, .sums = args->scratch};
    if (!p.unpack || !kri_pack_layout(args->dtype, args->n_in, &layout)) return;
    p.weights[0] = (uint8_t *)(args->scratch + 32u * KRI_TILE_TOKENS_MAX);
    p.weights[1] = p.weights[0] + WEIGHTS_BYTES;
    /* What lies there would be multiplied by a piece of one group. */
    if (args->n_groups % PANEL_GROUPS) memset(p.weights[0], 0, 2 * WEIGHTS_BYTES);
    tile_begin();
    piece_t piece = {.n_groups = args->n_groups < PANEL_GROUPS ? 1 : PANEL_GROUPS,
                     .n = p.n_steps < STEPS_INNER ? p.n_steps : STEPS_INNER};
    next_begin(&p, piece);
    next_finish(&p);
    while (piece.n > 0) {
        const piece_t next = piece_after(&p, &piece);
        next_begin(&p, next);
        piece_multiply(&p, &piece, piece.step % STEPS_OUTER == 0);
        if (next.group != piece.group || next.step != piece.step + piece.n || next.n == 0 ||
            next.step % STEPS_OUTER == 0)
            panel_store(&p, &piece, piece.step < STEPS_OUTER);
        next_finish(&p);
        piece = next;
    }
    tile_end();
}

void KRI_AMX_NAME(tile_pack)(const float *restrict x, size_t n, uint16_t *restrict row) {
    for (size_t k = 0; k < n; k += KRI_TILE_K, row += KRI_TILE_ITEMS) {
        __m512i pair = _mm512_setzero_si512();
        if (x)
            pair = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + k + 16),
                                                _mm512_loadu_ps(x + k));
        _mm512_store_si512(row, pair);
    }
}

/* test_tile.c: the matrix-unit kernels: tiles of activations bit for bit, products within
 * tolerance of the reference and of the exact product. On a machine
 * without AMX the same kernels run over tiles in ordinary memory. */
#include "ops_util.h"

#include "base/alloc.h"
#include "ops/exec.h"
#if defined(KRI_AMX_EMULATED)
#include "cpu/amx/emulated.h"
#endif

static bool tile_kernels(kri_kernels_t *kernels) {
    (void)kernels; /* no level of another architecture has tiles */
#if defined(__x86_64__)
    if (kri_isa_detect() >= KRI_ISA_AMX) {
        assert_status(kri_cpu_kernels("amx", kernels, NULL), KR_OK);
        assert_int_equal(kernels->has_tiles, 1);
        return true;
    }
#endif
#if defined(KRI_AMX_EMULATED)
    if (kri_isa_detect() >= KRI_ISA_AVX512 && __builtin_cpu_supports("avx512bf16")) {
        assert_status(kri_cpu_kernels("avx512", kernels, NULL), KR_OK);
        assert_int_equal(kernels->has_tiles, 0);
        kri_amx_emulated_fill(kernels);
        return true;
    }
#endif
    fprintf(stderr, "SKIP tile: no AMX and no AVX512_BF16 to emulate it on this machine\n");
    return false;
}

static const kr_dtype_t tile_types[] = {
    KR_DTYPE_F16,  KR_DTYPE_BF16, KR_DTYPE_Q4_0, KR_DTYPE_Q4_1, KR_DTYPE_Q5_0, KR_DTYPE_Q5_1,
    KR_DTYPE_Q8_0, KR_DTYPE_Q4_K, KR_DTYPE_Q5_K, KR_DTYPE_Q6_K};
#define N_TILE_TYPES (sizeof tile_types / sizeof *tile_types)

/* Whole batches in the order of kri_tile_linear_fn. */
static void pack_all(kri_tile_pack_fn *pack, const float *x, size_t n_in, size_t n_tokens,
                     uint16_t *tiles) {
    for (size_t t = 0; t < (n_tokens + 15) / 16 * 16; t++)
        pack(t < n_tokens ? x + t * n_in : NULL, n_in, tiles + t / 16 * 16 * n_in + t % 16 * 32);
}

TEST(tile_pack_gives_the_bits_of_the_reference) {
    static const float special[] = {0.0f, -0.0f, 1e-40f, -1e-39f, 3.4e38f, NAN, INFINITY,
                                    -INFINITY, 1.00390625f, 1.01171875f};
    kri_kernels_t k;
    rng_t rng = {5};
    if (!tile_kernels(&k)) SKIP("no tiles here");
    for (size_t n = 0; n <= 320; n += 32) {
        size_t bytes = n ? ((n / 32 - 1) * KRI_TILE_ITEMS + 32) * 2 : 0;
        guard_t x = guard_new(n * sizeof(float), true);
        guard_t actual = guard_new(bytes, true), expected = guard_new(bytes, true);
        rng_fill(&rng, x.data, n, 1.0f);
        for (size_t i = 0; n && i < 10; i++) ((float *)x.data)[rng_u32(&rng) % n] = special[i];
        guard_lock(&x);
        kri_tile_pack_ref(x.data, n, expected.data);
        k.tile_pack(x.data, n, actual.data);
        assert_memory_equal(actual.data, expected.data, bytes); /* what lies between, too */
        kri_tile_pack_ref(NULL, n, expected.data);
        k.tile_pack(NULL, n, actual.data);
        assert_memory_equal(actual.data, expected.data, bytes);
        guard_free(&expected);
        guard_free(&actual);
        guard_free(&x);
    }
}

/* One product by `fn` (args without output) between guard pages. */
static void multiply(kri_tile_linear_fn *fn, kri_tile_args_t args, const float *before,
                     size_t out_floats, float *result) {
    guard_t out = guard_copy(before, out_floats * sizeof(float), true);
    guard_t scratch = guard_new(KRI_TILE_SCRATCH_FLOATS * sizeof(float), true);
    args.out = out.data;
    args.scratch = scratch.data;
    fn(&args);
    memcpy(result, out.data, out_floats * sizeof(float));
    guard_free(&scratch);
    guard_free(&out);
}

static void check_tile_case(const kri_kernels_t *k, rng_t *rng, kr_dtype_t dtype, size_t n_rows,
                            size_t n_in, size_t n) {
    matrix_t m = matrix_new(rng, dtype, FILL_NORMAL, n_rows, n_in);
    size_t n_up = (n + 15) / 16 * 16, out_stride = n_rows + rng_u32(rng) % 3;
    size_t out_floats = (n - 1) * out_stride + n_rows;
    float *x = must_alloc(n * n_in * sizeof *x), *bias = must_alloc(n_rows * sizeof *bias);
    float *before = must_alloc(out_floats * sizeof *before);
    float *expected = must_alloc(out_floats * sizeof *before);
    float *actual = must_alloc(out_floats * sizeof *before);
    uint16_t *tiles = must_alloc(n_up * n_in * 2);
    rng_fill(rng, x, n * n_in, 1.0f);
    rng_fill(rng, bias, n_rows, 1.0f);
    rng_fill(rng, before, out_floats, 1.0f);
    pack_all(kri_tile_pack_ref, x, n_in, n, tiles);
    guard_t weights = guard_copy(m.packed, m.packed_bytes, true);
    guard_t packed = guard_copy(tiles, n_up * n_in * 2, true);
    guard_lock(&weights);
    guard_lock(&packed);
    kri_tile_args_t args = {.dtype = dtype, .w = weights.data, .n_in = n_in,
                            .n_groups = m.n_groups, .n_rows = n_rows, .n_tokens = n,
                            .tiles = packed.data, .bias = rng_u32(rng) & 1 ? bias : NULL,
                            .accumulate = rng_u32(rng) & 1, .out_stride = out_stride};
    multiply(kri_tile_linear_ref, args, before, out_floats, expected);
    multiply(k->tile_linear, args, before, out_floats, actual);
    for (size_t t = 0; t < n; t++) {
        double error = row_error(actual + t * out_stride, expected + t * out_stride, n_rows);
        if (!(error <= 1e-5))
            fail_msg("%s rows %zu in %zu tokens %zu: token %zu is %g off",
                     kri_dtype_info(dtype)->name, n_rows, n_in, n, t, error);
        if (t + 1 < n) /* the gap between two rows is not touched */
            assert_memory_equal(actual + t * out_stride + n_rows, before + t * out_stride + n_rows,
                                (out_stride - n_rows) * sizeof(float));
    }
    guard_free(&packed);
    guard_free(&weights);
    free(tiles);
    free(actual);
    free(expected);
    free(before);
    free(bias);
    free(x);
    matrix_free(&m);
}

TEST(tile_linear_agrees_with_the_reference) {
    static const struct { size_t n_rows, n_in, n_tokens; } shapes[] = {
        {1, 256, 1},    {16, 256, 16},  {17, 512, 17},  {32, 768, 33},
        {47, 2304, 31}, {64, 1024, 48}, {96, 256, 130}, {33, 512, 512}};
    kri_kernels_t k;
    rng_t rng = {6};
    if (!tile_kernels(&k)) SKIP("no tiles here");
    for (size_t i = 0; i < N_TILE_TYPES; i++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            check_tile_case(&k, &rng, tile_types[i], shapes[s].n_rows, shapes[s].n_in,
                            shapes[s].n_tokens);
}

/* Against the exact product of what the file means: the rounding to 8 bits of mantissa on both
 * sides must stay the only error. */
TEST(tile_linear_computes_the_matrix_product) {
    kri_kernels_t k;
    rng_t rng = {7};
    enum { ROWS = 40, IN = 1024, TOKENS = 20 };
    if (!tile_kernels(&k)) SKIP("no tiles here");
    for (size_t i = 0; i < N_TILE_TYPES; i++) {
        matrix_t m = matrix_new(&rng, tile_types[i], FILL_NORMAL, ROWS, IN);
        float *x = must_alloc(TOKENS * IN * sizeof *x), row[IN];
        float *out = must_alloc(TOKENS * ROWS * sizeof *out);
        uint16_t *tiles = must_alloc(32 * IN * 2);
        float *scratch = must_alloc(KRI_TILE_SCRATCH_FLOATS * sizeof *scratch);
        double error = 0, power = 0;
        rng_fill(&rng, x, TOKENS * IN, 1.0f);
        pack_all(k.tile_pack, x, IN, TOKENS, tiles);
        k.tile_linear(&(kri_tile_args_t){.dtype = m.dtype, .w = m.packed, .n_in = IN,
                                         .n_groups = m.n_groups, .n_rows = ROWS,
                                         .n_tokens = TOKENS, .tiles = tiles, .out = out,
                                         .out_stride = ROWS, .scratch = scratch});
        for (size_t r = 0; r < ROWS; r++) {
            kri_dequant_row(m.dtype, m.file + r * m.row_bytes, IN, row);
            for (size_t t = 0; t < TOKENS; t++) {
                double sum = 0;
                for (size_t c = 0; c < IN; c++) sum += (double)row[c] * (double)x[t * IN + c];
                error += pow((double)out[t * ROWS + r] - sum, 2);
                power += sum * sum;
            }
        }
        if (!(error / power < 2e-5))
            fail_msg("%s: normalised error %g", kri_dtype_info(m.dtype)->name, error / power);
        free(scratch);
        free(tiles);
        free(out);
        free(x);
        matrix_free(&m);
    }
}

TEST(tile_linear_keeps_a_nan_of_the_activations) {
    kri_kernels_t k;
    rng_t rng = {8};
    enum { ROWS = 32, IN = 256, TOKENS = 16 };
    if (!tile_kernels(&k)) SKIP("no tiles here");
    matrix_t m = matrix_new(&rng, KR_DTYPE_Q4_K, FILL_NORMAL, ROWS, IN);
    float x[TOKENS * IN], out[TOKENS * ROWS];
    uint16_t *tiles = must_alloc(TOKENS * IN * 2);
    float *scratch = must_alloc(KRI_TILE_SCRATCH_FLOATS * sizeof *scratch);
    rng_fill(&rng, x, TOKENS * IN, 1.0f);
    x[3 * IN + 77] = NAN;
    pack_all(k.tile_pack, x, IN, TOKENS, tiles);
    k.tile_linear(&(kri_tile_args_t){.dtype = m.dtype, .w = m.packed, .n_in = IN,
                                     .n_groups = m.n_groups, .n_rows = ROWS, .n_tokens = TOKENS,
                                     .tiles = tiles, .out = out, .out_stride = ROWS,
                                     .scratch = scratch});
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t r = 0; r < ROWS; r++) assert_true(!!isnan(out[t * ROWS + r]) == (t == 3));
    free(scratch);
    free(tiles);
    matrix_free(&m);
}

/* ---- whole batches ------------------------------------------------------------------------- */

enum { EMBD = 512, FF = 768, QKV = 40 + 23 + 16, ROWS_MAX = 300, THREADS_MAX = 3 };

typedef struct batch_s {
    kri_weight_t qkv, gate_up, down;
    matrix_t matrices[6];
    float *x, *norm, *bias, *projected, *out;
    uint32_t rows[ROWS_MAX];
    uint32_t n_rows;
    bool by_rows;
} batch_t;

static void add_part(rng_t *rng, batch_t *b, kri_weight_t *w, kr_dtype_t dtype, uint32_t n_out) {
    matrix_t *m = b->matrices;
    while (m->file) m++;
    *m = matrix_new(rng, dtype, FILL_NORMAL, n_out, w->n_in);
    w->parts[w->n_parts++] = (kri_weight_part_t){
        .dtype = dtype, .n_out = n_out, .out_offset = w->n_out, .packed = m->packed,
        .group_bytes = m->layout.group_bytes};
    w->n_out += n_out;
}

static kr_status_t batch_run(const kri_exec_t *exec, void *ctx) {
    const batch_t *b = ctx;
    const kri_ffn_desc_t ffn = {.gate_up = &b->gate_up, .down = &b->down, .norm = b->norm,
                                .norm_eps = 1e-5f, .act = KRI_ACT_SILU};
    kri_op_norm_linear(exec, &b->qkv, b->x, b->norm, 1e-5f, b->by_rows ? b->rows : NULL,
                       b->n_rows, b->projected, QKV);
    kri_op_linear(exec, &b->qkv, b->x, b->n_rows, true, b->projected, QKV);
    kri_op_ffn(exec, &ffn, b->x, b->n_rows, true, b->out);
    return KR_OK;
}

static double relative_power(const float *actual, const float *expected, size_t n) {
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        error += pow((double)actual[i] - (double)expected[i], 2);
        power += pow((double)expected[i], 2);
    }
    return error / power;
}

/* Through the tiles on 1 to 3 threads, as a team and not: the same bits, and the numbers of the
 * vector kernels up to both roundings. Fewer than 16 rows do not go there: the vector kernels'
 * bits. */
static void check_batch(const kri_kernels_t *tiled, rng_t *rng, uint32_t n_rows, bool by_rows) {
    batch_t b = {.qkv = {.n_in = EMBD, .n_ranks = 1}, .gate_up = {.n_in = EMBD, .n_ranks = 1},
                 .down = {.n_in = FF, .n_ranks = 1}, .n_rows = n_rows, .by_rows = by_rows};
    size_t n_out = (size_t)n_rows * EMBD, n_projected = (size_t)n_rows * QKV;
    kri_kernels_t plain = *tiled;
    kri_pool_t *pool = NULL;
    plain.has_tiles = 0;
    assert_status(kri_pool_shared(THREADS_MAX, &pool), KR_OK);
    b.bias = must_alloc(64 * sizeof(float));
    b.norm = must_alloc(EMBD * sizeof(float));
    b.x = must_alloc(ROWS_MAX * EMBD * sizeof(float));
    rng_fill(rng, b.bias, 64, 1.0f);
    rng_fill(rng, b.norm, EMBD, 1.0f);
    rng_fill(rng, b.x, ROWS_MAX * EMBD, 1.0f);
    for (uint32_t r = 0; r < ROWS_MAX; r++) b.rows[r] = ROWS_MAX - 1 - r;
    add_part(rng, &b, &b.qkv, KR_DTYPE_Q4_K, 40);
    add_part(rng, &b, &b.qkv, KR_DTYPE_F16, 23);
    add_part(rng, &b, &b.qkv, KR_DTYPE_Q8_0, 16);
    b.qkv.parts[1].bias = b.bias;
    add_part(rng, &b, &b.gate_up, KR_DTYPE_Q4_K, FF);
    add_part(rng, &b, &b.gate_up, KR_DTYPE_Q5_K, FF);
    add_part(rng, &b, &b.down, KR_DTYPE_Q6_K, EMBD);
    float *first[2] = {must_alloc(n_projected * sizeof(float)), must_alloc(n_out * sizeof(float))};
    float *expected[2] = {must_alloc(n_projected * sizeof(float)),
                          must_alloc(n_out * sizeof(float))};
    b.projected = must_alloc(n_projected * sizeof(float));
    b.out = must_alloc(n_out * sizeof(float));
    kri_exec_t exec = {.pool = pool};
    exec.attn_scratch = must_alloc(THREADS_MAX * KRI_ATTN_SCRATCH_FLOATS * sizeof(float));
    exec.own = must_alloc(THREADS_MAX * sizeof(kri_exec_own_t));
    exec.q8 = must_alloc(ROWS_MAX * FF / 32 * sizeof(kri_q8_block_t));
    exec.normed = must_alloc(ROWS_MAX * EMBD * sizeof(float));
    exec.ff = must_alloc((ROWS_MAX + 16) * FF * sizeof(float));
    exec.tiles = must_alloc((ROWS_MAX + 16) * EMBD * sizeof(uint16_t));
    /* plain, then tiles on 1, 2, 3 threads and on teams of 2 and 3 */
    for (uint32_t run = 0; run < 6; run++) {
        exec.kernels = run == 0 ? &plain : tiled;
        exec.n_threads = run == 0 ? 1 : run <= 3 ? run : run - 2;
        memset(b.out, 0, n_out * sizeof(float));
        if (run <= 3) assert_status(batch_run(&exec, &b), KR_OK);
        else assert_status(kri_exec_team(&exec, batch_run, &b), KR_OK);
        float **kept = run == 0 ? expected : first;
        if (run >= 2 || (run == 1 && n_rows < 16)) {
            if (n_rows < 16) kept = expected;
            assert_same_floats(b.projected, kept[0], n_projected, "projection");
            assert_same_floats(b.out, kept[1], n_out, "feed-forward");
            continue;
        }
        memcpy(kept[0], b.projected, n_projected * sizeof(float));
        memcpy(kept[1], b.out, n_out * sizeof(float));
    }
    if (n_rows >= 16) {
        assert_true(relative_power(first[0], expected[0], n_projected) < 3e-4);
        assert_true(relative_power(first[1], expected[1], n_out) < 6e-4);
        assert_true(memcmp(first[0], expected[0], n_projected * sizeof(float)) != 0);
    }
    void *all[] = {first[0], first[1], expected[0], expected[1], b.projected, b.out, b.bias,
                   b.norm, b.x, exec.attn_scratch, exec.own, exec.q8, exec.normed, exec.ff,
                   exec.tiles};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    for (size_t i = 0; i < 6; i++) matrix_free(&b.matrices[i]);
}

TEST(op_tiles_give_one_result_for_any_number_of_threads) {
    kri_kernels_t k;
    rng_t rng = {10};
    if (!tile_kernels(&k)) SKIP("no tiles here");
    check_batch(&k, &rng, 15, false);
    check_batch(&k, &rng, 16, true);
    check_batch(&k, &rng, 77, false);
    check_batch(&k, &rng, 300, true);
}

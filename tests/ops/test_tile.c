/* test_tile.c: the matrix-unit kernels: tiles of activations bit for bit, products within
 * tolerance of the reference and of the exact product. On a machine
 * without AMX the same kernels run over tiles in ordinary memory. */
#include "ops_util.h"
#if defined(KRI_AMX_EMULATED)
#include "cpu/amx/emulated.h"
#endif

static bool tile_kernels(kri_kernels_t *kernels) {
    if (kri_isa_detect() >= KRI_ISA_AMX) {
        assert_status(kri_cpu_kernels("amx", kernels, NULL), KR_OK);
        assert_int_equal(kernels->has_tiles, 1);
        return true;
    }
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

TEST(tile_pack_gives_the_bits_of_the_reference) {
    static const size_t token_counts[] = {1, 15, 16, 17, 40};
    static const float special[] = {0.0f, -0.0f, 1e-40f, -1e-39f, 3.4e38f, NAN, INFINITY,
                                    -INFINITY, 1.00390625f, 1.01171875f};
    kri_kernels_t k;
    rng_t rng = {5};
    if (!tile_kernels(&k)) SKIP("no tiles here");
    for (size_t c = 0; c < 5; c++) {
        for (size_t n_in = 32; n_in <= 160; n_in += 64) {
            size_t n = token_counts[c], n_up = (n + 15) / 16 * 16;
            guard_t x = guard_new(n * n_in * sizeof(float), true);
            guard_t actual = guard_new(n_up * n_in * 2, true);
            uint16_t *expected = must_alloc(n_up * n_in * 2);
            rng_fill(&rng, x.data, n * n_in, 1.0f);
            for (size_t i = 0; i < 10; i++)
                ((float *)x.data)[rng_u32(&rng) % (n * n_in)] = special[i];
            guard_lock(&x);
            kri_tile_pack_ref(x.data, n_in, n, expected);
            k.tile_pack(x.data, n_in, n, actual.data);
            assert_memory_equal(actual.data, expected, n_up * n_in * 2);
            guard_free(&actual);
            guard_free(&x);
            free(expected);
        }
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
    kri_tile_pack_ref(x, n_in, n, tiles);
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
        k.tile_pack(x, IN, TOKENS, tiles);
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
    k.tile_pack(x, IN, TOKENS, tiles);
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

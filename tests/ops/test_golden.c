/* test_golden.c: every level, the reference included, against results that numpy computed in
 * double precision from the formulas (tests/golden/make_ops.py), so that a mistake of the
 * reference does not become everyone's. */
#include "ops_util.h"

#include "ops/exec.h"

#define GOLDEN_TOLERANCE 2e-6 /* observed at most 2e-7 on all levels */

static golden_t golden;

static const float *record(const char *name, size_t *n) {
    size_t n_here;
    if (!golden.bytes) golden = golden_open("ops.bin");
    return golden_floats(&golden, name, n ? n : &n_here);
}

static void check(const char *name, const char *isa, const float *actual) {
    size_t n;
    const float *expected = record(name, &n);
    double error = row_error(actual, expected, n);
    if (!(error <= GOLDEN_TOLERANCE))
        fail_msg("%s on %s: error %g over %g", name, isa, error, GOLDEN_TOLERANCE);
}

typedef void level_fn(const kri_kernels_t *kernels);

static void each_level(level_fn *fn) {
    kri_kernels_t kernels;
    for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++)
        if (level_kernels(level, "golden", &kernels)) fn(&kernels);
}

static void rms_norm(const kri_kernels_t *kernels) {
    size_t n;
    const float *x = record("norm.x", &n);
    float out[128];
    kernels->rms_norm(x, record("norm.w", NULL), 1e-5f, n, out);
    check("norm.out", kernels->isa, out);
}

TEST(rms_norm_matches_numpy) { each_level(rms_norm); }

static void rope(const kri_kernels_t *kernels) {
    size_t n;
    const float *x = record("rope.x", &n), *cos_sin = record("rope.cos_sin", NULL);
    float y[24];
    assert_int_equal(n, 24);
    memcpy(y, x, sizeof y);
    kernels->rope_half(y, 2, 12, 8, cos_sin);
    check("rope.half", kernels->isa, y);
    memcpy(y, x, sizeof y);
    kernels->rope_pair(y, 2, 12, 8, cos_sin);
    check("rope.pair", kernels->isa, y);
}

TEST(rope_matches_numpy) { each_level(rope); }

TEST(rope_table_matches_numpy_when_factors_and_scale_are_given) {
    const int32_t positions[] = {0, 7, 7, 1, 7, 7, 1234, 7, 7, 100003, 7, 7};
    const float factors[] = {1.0f, 1.5f, 4.0f, 8.0f};
    float table[4 * 8];
    kri_step_t step = {.n_rows = 4, .positions = positions};
    kri_exec_t exec = {.n_threads = 1, .step = &step};
    kri_op_rope_table(&exec, 10000.0f, 0.25f, factors, 8, table);
    check("rope.table", "ref", table);
}

static void activations(const kri_kernels_t *kernels) {
    size_t n;
    const float *gate = record("act.gate", &n), *up = record("act.up", NULL);
    float out[64];
    assert_true(n <= 64);
    kernels->gated_silu(gate, up, n, out);
    check("act.silu", kernels->isa, out);
    kernels->gated_gelu(gate, up, n, out);
    check("act.gelu", kernels->isa, out);
    for (size_t i = 0; i < n; i++) out[i] = 20.0f * gate[i];
    kernels->softcap(out, n, 30.0f);
    check("act.softcap", kernels->isa, out);
}

TEST(activations_match_numpy) { each_level(activations); }

static void quant(const kri_kernels_t *kernels) {
    size_t n, n_bytes;
    const float *x = record("quant.x", &n), *d = record("quant.d", NULL);
    const int8_t *q = golden_find(&golden, "quant.q.i8", &n_bytes);
    const int32_t *sums = golden_find(&golden, "quant.sums.i32", &n_bytes);
    kri_q8_block_t blocks[4];
    assert_int_equal(n, 4 * 32);
    kernels->quant_q8(x, n, blocks);
    for (size_t b = 0; b < 4; b++) {
        assert_memory_equal(blocks[b].q, q + 32 * b, 32);
        for (unsigned h = 0; h < 2; h++)
            assert_int_equal(kri_q8_sum_half(&blocks[b], h), sums[2 * b + h]);
        assert_true(blocks[b].d == d[b]);
        assert_true(blocks[b].ds == d[b] * (float)(sums[2 * b] + sums[2 * b + 1]));
    }
}

TEST(quant_matches_numpy) { each_level(quant); }

/* Five rows at positions 30..34 over three shuffled pages. */
static void attention_case(const kri_kernels_t *kernels, const char *name, uint32_t window,
                           float softcap) {
    char field[32];
    const uint32_t page_table[] = {2, 0, 1};
    const size_t page_floats = 2 * 16 * 16;
    float *pool = must_alloc(3 * page_floats * sizeof *pool), out[5 * 4 * 16];
    float *scratch = must_alloc(KRI_ATTN_SCRATCH_FLOATS * sizeof *scratch);
    memset(pool, 0, 3 * page_floats * sizeof *pool);
    snprintf(field, sizeof field, "%s.k", name);
    const float *k = record(field, NULL);
    snprintf(field, sizeof field, "%s.v", name);
    const float *v = record(field, NULL);
    for (size_t pos = 0; pos < 35; pos++) {
        float *page = pool + page_table[pos / 16] * page_floats;
        memcpy(page + pos % 16 * 16, k + pos * 16, 64);
        memcpy(page + 256 + pos % 16 * 16, v + pos * 16, 64);
    }
    snprintf(field, sizeof field, "%s.q", name);
    kri_attn_args_t args = {
        .q = record(field, NULL), .q_stride = 64, .out = out, .out_stride = 64,
        .pool = (const uint8_t *)pool, .page_bytes = page_floats * 4, .v_offset = 256 * 4,
        .page_table = page_table, .n_rows = 5, .n_heads = 4, .head_dim = 16, .pos_begin = 30,
        .window = window, .scale = 0.25f, .softcap = softcap, .scratch = scratch,
    };
    kernels->attention_f32(&args);
    snprintf(field, sizeof field, "%s.out", name);
    check(field, kernels->isa, out);
    free(pool);
    free(scratch);
}

static void attention(const kri_kernels_t *kernels) {
    attention_case(kernels, "attn", 0, 0.0f);
    attention_case(kernels, "attn_window", 7, 0.0f);
    attention_case(kernels, "attn_softcap", 0, 2.0f);
}

TEST(attention_matches_numpy) { each_level(attention); }

/* test_linear.c: the `linear` rows of ops.def: every level gives the reference's bits, every level
 * gives the same bits however a batch is cut, and all of them compute the matrix product. The one
 * exception is bf16 on a CPU with AVX512_BF16, held to a tolerance of its own reference. */
#include "ops_util.h"

static const size_t token_counts[] = {1, 2, 3, 5, 7, 8, 9, 16, 17, 33};
#define N_TOKEN_COUNTS (sizeof token_counts / sizeof *token_counts)

/* Activations in both forms; a token's distance is its size plus `gap` bytes. */
typedef struct act_s {
    float *x;
    guard_t guard;
    size_t stride;
} act_t;

static act_t act_new(const float *x, kr_dtype_t dtype, size_t n_tokens, size_t n_in, size_t gap,
                     bool at_end) {
    act_t act = {.x = NULL};
    size_t n_blocks = n_in / 32;
    bool quantised = !kri_dtype_is_float(dtype);
    size_t bytes = quantised ? n_blocks * sizeof(kri_q8_block_t) : n_in * sizeof(float);
    act.stride = bytes + gap;
    act.guard = guard_new(n_tokens * act.stride - gap, at_end);
    for (size_t t = 0; t < n_tokens; t++) {
        uint8_t *row = (uint8_t *)act.guard.data + t * act.stride;
        if (quantised) kri_quant_q8_ref(x + t * n_in, n_in, (kri_q8_block_t *)(void *)row);
        else memcpy(row, x + t * n_in, bytes);
    }
    guard_lock(&act.guard);
    return act;
}

/* Special values in some blocks of some tokens. */
static void spoil(rng_t *rng, float *x, size_t n) {
    static const float special[] = {0.0f,  -0.0f, 1e-40f, 1e-31f,  3.4e38f,
                                    -1e30f, NAN,  INFINITY, -INFINITY, 1e-30f};
    for (size_t i = 0; i < 1 + n / 64; i++) x[rng_u32(rng) % n] = special[rng_u32(rng) % 10];
}

/* Whether the kernel takes activations rounded to bf16. */
static bool rounds_to_bf16(kr_dtype_t dtype, const char *isa) {
    bool is_above = strcmp(isa, "avx512") == 0 || strcmp(isa, "amx") == 0;
    return dtype == KR_DTYPE_BF16 && is_above && kri_isa_has_bf16();
}

/* NaN and infinities in the same places, the rest within 1e-5 of the largest finite value. */
static void assert_near_floats(const float *actual, const float *expected, size_t n,
                               const char *what) {
    float largest = 0;
    for (size_t i = 0; i < n; i++)
        if (isfinite(expected[i])) largest = fmaxf(largest, fabsf(expected[i]));
    for (size_t i = 0; i < n; i++) {
        bool same = isnan(expected[i]) ? isnan(actual[i]) : actual[i] == expected[i];
        if (same || fabsf(actual[i] - expected[i]) <= 1e-5f * largest) continue;
        fail_msg("%s: [%zu] is %.9g, not %.9g", what, i, (double)actual[i], (double)expected[i]);
    }
}

static void check_case(rng_t *rng, kri_linear_fn *ref, kri_linear_fn *fn, const char *what,
                       kr_dtype_t dtype, fill_t fill, size_t n_rows, size_t n_in,
                       size_t n_tokens) {
    matrix_t m = matrix_new(rng, dtype, fill, n_rows, n_in);
    float *x = must_alloc(n_tokens * n_in * sizeof *x), *bias = must_alloc(n_rows * sizeof *bias);
    rng_fill(rng, x, n_tokens * n_in, 1.0f);
    rng_fill(rng, bias, n_rows, 1.0f);
    if (fill == FILL_HOSTILE) spoil(rng, x, n_tokens * n_in);
    bool at_end = rng_u32(rng) & 1;
    size_t out_stride = n_rows + rng_u32(rng) % 4;
    size_t out_floats = (n_tokens - 1) * out_stride + n_rows;
    uint32_t accumulate = rng_u32(rng) & 1;
    act_t act = act_new(x, dtype, n_tokens, n_in, 4 * (rng_u32(rng) % 3), at_end);
    guard_t weights = guard_copy(m.packed, m.packed_bytes, at_end);
    guard_t bias_guard = guard_copy(bias, n_rows * sizeof *bias, at_end);
    guard_t out = guard_new(out_floats * sizeof(float), at_end);
    float *expected = must_alloc(out_floats * sizeof *expected);
    rng_fill(rng, expected, out_floats, 1.0f);
    memcpy(out.data, expected, out_floats * sizeof(float));
    guard_lock(&weights);
    guard_lock(&bias_guard);
    const float *bias_or_null = rng_u32(rng) & 1 ? bias_guard.data : NULL;
    ref(weights.data, n_in, m.n_groups, n_rows, act.guard.data, act.stride, n_tokens,
        bias_or_null, accumulate, expected, out_stride);
    fn(weights.data, n_in, m.n_groups, n_rows, act.guard.data, act.stride, n_tokens,
       bias_or_null, accumulate, out.data, out_stride);
    char text[128];
    snprintf(text, sizeof text, "%s rows %zu in %zu tokens %zu %s", what, n_rows, n_in, n_tokens,
             fill == FILL_HOSTILE ? "hostile" : "normal");
    if (ref == kri_linear_bf16_pair_ref) assert_near_floats(out.data, expected, out_floats, text);
    else assert_same_floats(out.data, expected, out_floats, text); /* gaps between rows included */
    guard_free(&out);
    guard_free(&bias_guard);
    guard_free(&weights);
    guard_free(&act.guard);
    free(expected);
    free(bias);
    free(x);
    matrix_free(&m);
}

static size_t random_n_in(rng_t *rng, kr_dtype_t dtype) {
    size_t unit = kri_dtype_info(dtype)->block_items;
    if (unit == 1) return rng_range(rng, 1, 150);
    return unit * (2 * rng_range(rng, 0, unit == 32 ? 6 : 2) + 1);
}

static void check_linear(const char *slot, kri_linear_fn *ref, kri_linear_fn *fn,
                         const char *isa) {
    rng_t rng = {77};
    kr_dtype_t dtype = slot_dtype(slot);
    char what[64];
    snprintf(what, sizeof what, "%s %s", slot, isa);
    if (rounds_to_bf16(dtype, isa)) ref = kri_linear_bf16_pair_ref;
    for (size_t n_tokens = 1; n_tokens <= 40; n_tokens++) {
        size_t n_rows = rng_range(&rng, 1, 70);
        size_t n_in = random_n_in(&rng, dtype);
        fill_t fill = n_tokens % 3 == 0 ? FILL_HOSTILE : FILL_NORMAL;
        check_case(&rng, ref, fn, what, dtype, fill, n_rows, n_in, n_tokens);
    }
    for (size_t i = 0; i < N_TOKEN_COUNTS; i++)
        check_case(&rng, ref, fn, what, dtype, FILL_NORMAL, 16 + i, 768, token_counts[i]);
    check_case(&rng, ref, fn, what, dtype, FILL_NORMAL, 5, 8960, 3);
    check_case(&rng, ref, fn, what, dtype, FILL_NORMAL, 17, 512, 261); /* sums in two parts */
}

static void linear_call(kri_linear_fn *fn, const matrix_t *m, size_t group_begin,
                        size_t group_end, const act_t *act, size_t token, size_t n_tokens,
                        float *out) {
    size_t row = group_begin * KRI_GROUP_ROWS, end = group_end * KRI_GROUP_ROWS;
    if (end > m->n_rows) end = m->n_rows;
    fn(m->packed + group_begin * m->layout.group_bytes, m->n_in, group_end - group_begin,
       end - row, (const uint8_t *)act->guard.data + token * act->stride, act->stride, n_tokens,
       NULL, 0, out + token * m->n_rows + row, m->n_rows);
}

/* One token alone, any run of tokens and any range of groups: always the batch's bits. */
static void check_invariance(const char *slot, kri_linear_fn *fn, const char *isa) {
    enum { TOKENS = 33, ROWS = 75 };
    rng_t rng = {5};
    kr_dtype_t dtype = slot_dtype(slot);
    matrix_t m = matrix_new(&rng, dtype, FILL_NORMAL, ROWS, 768);
    float *x = must_alloc(TOKENS * 768 * sizeof *x);
    float *batch = must_alloc(TOKENS * ROWS * sizeof *batch);
    float *parts = must_alloc(TOKENS * ROWS * sizeof *parts);
    rng_fill(&rng, x, TOKENS * 768, 1.0f);
    act_t act = act_new(x, dtype, TOKENS, 768, 0, true);
    linear_call(fn, &m, 0, m.n_groups, &act, 0, TOKENS, batch);
    for (size_t run = 1; run <= 17; run++) {
        memset(parts, 0xff, TOKENS * ROWS * sizeof *parts);
        for (size_t t = 0; t < TOKENS; t += run) {
            size_t n = t + run <= TOKENS ? run : TOKENS - t;
            size_t cut = 1 + (run + t) % (m.n_groups - 1);
            linear_call(fn, &m, cut, m.n_groups, &act, t, n, parts);
            linear_call(fn, &m, 0, cut, &act, t, n, parts);
        }
        char what[64];
        snprintf(what, sizeof what, "%s %s in runs of %zu", slot, isa, run);
        assert_same_floats(parts, batch, TOKENS * ROWS, what);
    }
    guard_free(&act.guard);
    free(x);
    free(batch);
    free(parts);
    matrix_free(&m);
}

/* Against decoded weights times float activations in double. The bound for quantised types is
 * that of 8-bit activations (observed at most 3e-5 on this seed); float types only round. */
static void check_oracle(const char *slot, kri_linear_fn *fn, const char *isa) {
    enum { TOKENS = 9, ROWS = 40, N_IN = 1536 };
    rng_t rng = {6};
    kr_dtype_t dtype = slot_dtype(slot);
    double bound = kri_dtype_is_float(dtype) ? 1e-12 : 6e-5, error = 0, power = 0;
    if (rounds_to_bf16(dtype, isa)) bound = 6e-6; /* of 8-bit mantissas; observed 2.9e-6 */
    matrix_t m = matrix_new(&rng, dtype, FILL_NORMAL, ROWS, N_IN);
    float *x = must_alloc(TOKENS * N_IN * sizeof *x), *w = must_alloc(N_IN * sizeof *w);
    float *out = must_alloc(TOKENS * ROWS * sizeof *out);
    rng_fill(&rng, x, TOKENS * N_IN, 1.0f);
    act_t act = act_new(x, dtype, TOKENS, N_IN, 0, false);
    linear_call(fn, &m, 0, m.n_groups, &act, 0, TOKENS, out);
    for (size_t r = 0; r < ROWS; r++) {
        kri_dequant_row(dtype, m.file + r * m.row_bytes, N_IN, w);
        for (size_t t = 0; t < TOKENS; t++) {
            double sum = 0;
            for (size_t k = 0; k < N_IN; k++) sum += (double)w[k] * (double)x[t * N_IN + k];
            double difference = (double)out[t * ROWS + r] - sum;
            error += difference * difference;
            power += sum * sum;
        }
    }
    print_message("%s %s: NMSE %.2g of %.2g\n", slot, isa, error / power, bound);
    assert_true(error / power <= bound);
    guard_free(&act.guard);
    free(x);
    free(w);
    free(out);
    matrix_free(&m);
}

/* A NaN or infinity in one token reaches all its outputs and no other token. */
static void check_bad_values(const char *slot, kri_linear_fn *fn, const char *isa) {
    enum { TOKENS = 6, ROWS = 20, N_IN = 512 };
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    rng_t rng = {8};
    kr_dtype_t dtype = slot_dtype(slot);
    matrix_t m = matrix_new(&rng, dtype, FILL_NORMAL, ROWS, N_IN);
    float *x = must_alloc(TOKENS * N_IN * sizeof *x);
    float *clean = must_alloc(TOKENS * ROWS * sizeof *clean);
    float *out = must_alloc(TOKENS * ROWS * sizeof *out);
    for (size_t i = 0; i < 3; i++) {
        rng_fill(&rng, x, TOKENS * N_IN, 1.0f);
        act_t act = act_new(x, dtype, TOKENS, N_IN, 0, true);
        linear_call(fn, &m, 0, m.n_groups, &act, 0, TOKENS, clean);
        guard_free(&act.guard);
        x[2 * N_IN + 300 + i] = bad[i];
        act = act_new(x, dtype, TOKENS, N_IN, 0, true);
        linear_call(fn, &m, 0, m.n_groups, &act, 0, TOKENS, out);
        for (size_t r = 0; r < ROWS; r++) {
            float v = out[2 * ROWS + r];
            if (kri_dtype_is_float(dtype) ? isfinite(v) : !isnan(v))
                fail_msg("%s %s: %g hidden in row %zu", slot, isa, (double)bad[i], r);
        }
        memcpy(out + 2 * ROWS, clean + 2 * ROWS, ROWS * sizeof *out);
        assert_same_floats(out, clean, TOKENS * ROWS, slot);
        guard_free(&act.guard);
    }
    free(x);
    free(clean);
    free(out);
    matrix_free(&m);
}

#define RUN_quant(slot)
#define RUN_rms_norm(slot)
#define RUN_rms_norm_q8(slot)
#define RUN_rope(slot)
#define RUN_gated_act(slot)
#define RUN_add(slot)
#define RUN_softcap(slot)
#define RUN_kv_store(slot)
#define RUN_kv_store_i8(slot)
#define RUN_attention(slot)
#define RUN_linear(slot)                                                                         \
    TEST(slot##_gives_the_reference_bits) {                                                      \
        kri_kernels_t kernels;                                                                   \
        if (kri_isa_detect() == KRI_ISA_REF) SKIP("no level above ref");                         \
        for (kri_isa_t level = KRI_ISA_REF + 1; level < KRI_N_ISA; level++)                      \
            if (level_kernels(level, #slot, &kernels))                                           \
                check_linear(#slot, kri_##slot##_ref, kernels.slot, kri_isa_name(level));        \
    }                                                                                            \
    TEST(slot##_computes_the_product_however_it_is_cut) {                                        \
        kri_kernels_t kernels;                                                                   \
        for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++) {                        \
            if (!level_kernels(level, #slot, &kernels)) continue;                                \
            check_oracle(#slot, kernels.slot, kri_isa_name(level));                              \
            check_invariance(#slot, kernels.slot, kri_isa_name(level));                          \
            check_bad_values(#slot, kernels.slot, kri_isa_name(level));                          \
        }                                                                                        \
    }
#define RUN_tile_pack(slot)
#define RUN_tile_linear(slot)
#define KR_OP(slot, type, family, tolerance) RUN_##family(slot)
#include "ops/ops.def"

/* test_kernels.c: the row-wise slots of ops.def at every level against the reference: odd sizes,
 * addresses that are only aligned to an element, extreme values, and inputs and outputs that end
 * at inaccessible pages. linear and attention have files of their own. */
#include "ops_util.h"

static const size_t odd_sizes[] = {1,  2,  3,  5,  7,  8,   9,   15,  16,  17,   24,  31,
                                   32, 33, 47, 63, 64, 65,  96,  100, 127, 129,  200, 255,
                                   257, 576, 1000, 1023, 1536, 2047, 4097};
#define N_ODD_SIZES (sizeof odd_sizes / sizeof *odd_sizes)

/* What one slot's runs have shown: printed, so that budgets can be kept close to it. */
typedef struct verdict_s {
    const char *name, *isa;
    double tolerance, worst;
} verdict_t;

static void judge(verdict_t *v, const float *actual, const float *expected, size_t n,
                  const char *what) {
    if (v->tolerance <= 0) {
        assert_same_floats(actual, expected, n, what);
        return;
    }
    double error = row_error(actual, expected, n);
    if (error > v->worst) v->worst = error;
    if (!(error <= v->tolerance))
        fail_msg("%s %s %s n %zu: error %g over %g", v->name, v->isa, what, n, error,
                 v->tolerance);
}

/* ---- quant --------------------------------------------------------------------------------- */

static void check_quant_case(verdict_t *v, kri_quant_fn *ref, kri_quant_fn *fn, const float *x,
                             size_t n, bool at_end) {
    guard_t in = guard_copy(x, n * sizeof *x, at_end);
    guard_t out = guard_new(n / 32 * sizeof(kri_q8_block_t), at_end);
    kri_q8_block_t *expected = must_alloc(n / 32 * sizeof *expected), *actual = out.data;
    guard_lock(&in);
    ref(in.data, n, expected);
    fn(in.data, n, actual);
    for (size_t b = 0; b < n / 32; b++) {
        judge(v, &actual[b].d, &expected[b].d, 1, "d");
        judge(v, &actual[b].ds, &expected[b].ds, 1, "ds");
        assert_memory_equal(actual[b].sums, expected[b].sums, sizeof expected[b].sums);
        assert_memory_equal(actual[b].q, expected[b].q, 32);
    }
    free(expected);
    guard_free(&in);
    guard_free(&out);
}

static void check_quant(verdict_t *v, kri_quant_fn *ref, kri_quant_fn *fn) {
    static const float special[] = {0.0f,     -0.0f,     1e-45f,    1e-38f,    0.99e-30f,
                                    1e-30f,   1.01e-30f, 3.402e38f, -3.402e38f, NAN,
                                    INFINITY, -INFINITY, 127.0f,    0.5f,      -1.5f};
    rng_t rng = {21};
    float x[32 * 40];
    for (size_t blocks = 1; blocks <= 40; blocks++) {
        rng_fill(&rng, x, 32 * blocks, 3.0f);
        check_quant_case(v, ref, fn, x, 32 * blocks, blocks % 2);
    }
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
        for (size_t at = 0; at < 32; at++) { /* one special value in a normal and a zero block */
            rng_fill(&rng, x, 64, 1.0f);
            memset(x + 32, 0, 32 * sizeof *x);
            x[at] = x[32 + at] = special[i];
            check_quant_case(v, ref, fn, x, 64, true);
        }
        for (size_t k = 0; k < 32; k++) x[k] = special[i];
        check_quant_case(v, ref, fn, x, 32, true);
    }
    /* amax 127 makes the factor 1, so that halves are ties: to even, both signs. */
    for (size_t k = 0; k < 32; k++) x[k] = (float)k * 4.0f - 63.5f + 0.5f * (float)(k % 2);
    x[0] = 127.0f;
    check_quant_case(v, ref, fn, x, 32, true);
}

/* ---- rms_norm ------------------------------------------------------------------------------ */

static void check_rms_norm_case(verdict_t *v, kri_rms_norm_fn *ref, kri_rms_norm_fn *fn,
                                const float *x, const float *w, size_t n, const char *what) {
    guard_t in = guard_copy(x, n * sizeof *x, true), out = guard_new(n * sizeof *x, true);
    guard_t weights = guard_copy(w ? w : x, n * sizeof *w, true);
    float *expected = must_alloc(n * sizeof *expected);
    const float *w_or_null = w ? weights.data : NULL;
    guard_lock(&weights);
    ref(in.data, w_or_null, 1e-6f, n, expected);
    fn(in.data, w_or_null, 1e-6f, n, out.data);
    judge(v, out.data, expected, n, what);
    fn(in.data, w_or_null, 1e-6f, n, in.data);
    assert_same_floats(in.data, out.data, n, "in place");
    free(expected);
    guard_free(&in);
    guard_free(&out);
    guard_free(&weights);
}

static void check_rms_norm(verdict_t *v, kri_rms_norm_fn *ref, kri_rms_norm_fn *fn) {
    rng_t rng = {22};
    float x[4097], w[4097];
    for (size_t i = 0; i < N_ODD_SIZES; i++) {
        size_t n = odd_sizes[i];
        static const float sigmas[] = {1.0f, 1e-3f, 1e15f, 1e-25f};
        for (size_t s = 0; s < 4; s++) {
            rng_fill(&rng, x, n, sigmas[s]);
            rng_fill(&rng, w, n, 1.0f);
            check_rms_norm_case(v, ref, fn, x, s == 1 ? NULL : w, n, "random");
        }
        x[rng_u32(&rng) % n] = NAN;
        check_rms_norm_case(v, ref, fn, x, w, n, "with a NaN");
        memset(x, 0, sizeof x);
        check_rms_norm_case(v, ref, fn, x, w, n, "of zeros");
    }
}

/* ---- rope ---------------------------------------------------------------------------------- */

static void check_rope(verdict_t *v, kri_rope_fn *ref, kri_rope_fn *fn) {
    rng_t rng = {23};
    for (size_t i = 0; i < 300; i++) {
        static const size_t dims[] = {16, 32, 64, 80, 96, 128, 256, 10, 22, 38};
        size_t head_dim = dims[i % 10], n_heads = rng_range(&rng, 1, 9);
        size_t n_rot = i % 3 == 0 ? 2 * rng_range(&rng, 1, head_dim / 2) : head_dim;
        size_t n = n_heads * head_dim;
        guard_t x = guard_new(n * sizeof(float), i % 2), angles;
        float *expected = must_alloc(n * sizeof *expected), *cos_sin = must_alloc(n_rot * 4);
        for (size_t k = 0; k < n_rot / 2; k++) {
            float angle = 100.0f * rng_uniform(&rng);
            cos_sin[2 * k] = cosf(angle);
            cos_sin[2 * k + 1] = sinf(angle);
        }
        rng_fill(&rng, expected, n, 2.0f);
        if (i % 7 == 0) expected[rng_u32(&rng) % n] = NAN;
        memcpy(x.data, expected, n * sizeof *expected);
        angles = guard_copy(cos_sin, n_rot * sizeof *cos_sin, true);
        guard_lock(&angles);
        ref(expected, n_heads, head_dim, n_rot, angles.data);
        fn(x.data, n_heads, head_dim, n_rot, angles.data);
        judge(v, x.data, expected, n, "random");
        for (size_t h = 0; h < n_heads; h++) /* what is not rotated stays to the bit */
            assert_same_floats((float *)x.data + h * head_dim + n_rot,
                               expected + h * head_dim + n_rot, head_dim - n_rot, "rest");
        free(expected);
        free(cos_sin);
        guard_free(&x);
        guard_free(&angles);
    }
}

/* ---- elementwise --------------------------------------------------------------------------- */

static void check_gated_act(verdict_t *v, kri_gated_act_fn *ref, kri_gated_act_fn *fn) {
    static const float sigmas[] = {1e-3f, 0.3f, 1.0f, 5.0f, 30.0f, 3e4f};
    static const float special[] = {0.0f,   -0.0f,   1e-42f, -1e-42f, 87.0f,   -87.0f, 88.8f,
                                    -88.8f, -103.0f, 104.0f, -104.0f, -200.0f, 1e30f,  -1e30f,
                                    NAN,    INFINITY};
    rng_t rng = {24};
    float gate[4097], up[4097], expected[4097];
    for (size_t i = 0; i < N_ODD_SIZES * 6; i++) {
        size_t n = odd_sizes[i % N_ODD_SIZES];
        rng_fill(&rng, gate, n, sigmas[i % 6]);
        rng_fill(&rng, up, n, 1.0f);
        if (i % 11 == 0) up[rng_u32(&rng) % n] = NAN;
        guard_t g = guard_copy(gate, n * sizeof *gate, true), u = guard_copy(up, n * 4, true);
        guard_t out = guard_new(n * sizeof *gate, true);
        guard_lock(&u);
        ref(gate, up, n, expected);
        fn(g.data, u.data, n, out.data);
        judge(v, out.data, expected, n, "random");
        fn(g.data, u.data, n, g.data);
        assert_same_floats(g.data, out.data, n, "in place");
        guard_free(&g);
        guard_free(&u);
        guard_free(&out);
    }
    /* Each special value among small ones, so that the budget is narrow; at every place of a
     * vector and its tail. */
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
        for (size_t at = 0; at < 37; at++) {
            float out[37];
            for (size_t k = 0; k < 37; k++) {
                gate[k] = 1e-3f;
                up[k] = 1.0f;
            }
            gate[at] = special[i];
            ref(gate, up, 37, expected);
            fn(gate, up, 37, out);
            judge(v, out, expected, 37, "special");
        }
    }
}

static void check_add(verdict_t *v, kri_add_fn *ref, kri_add_fn *fn) {
    rng_t rng = {25};
    float x[4097], expected[4097];
    for (size_t i = 0; i < N_ODD_SIZES; i++) {
        size_t n = odd_sizes[i];
        rng_fill(&rng, x, n, 1.0f);
        rng_fill(&rng, expected, n, 1.0f);
        x[rng_u32(&rng) % n] = i % 2 ? NAN : 1e-42f;
        guard_t a = guard_copy(x, n * sizeof *x, true), y = guard_copy(expected, n * 4, true);
        guard_lock(&a);
        ref(expected, x, n);
        fn(y.data, a.data, n);
        judge(v, y.data, expected, n, "random");
        guard_free(&a);
        guard_free(&y);
    }
}

static void check_softcap(verdict_t *v, kri_softcap_fn *ref, kri_softcap_fn *fn) {
    static const float special[] = {0.0f,  -0.0f,    1e-40f,    1e-4f, -0.3f, 29.9f,
                                    1e30f, INFINITY, -INFINITY, NAN};
    static const float sigmas[] = {1e-3f, 1.0f, 20.0f, 1000.0f};
    rng_t rng = {26};
    float expected[4097];
    for (size_t i = 0; i < N_ODD_SIZES * 4; i++) {
        size_t n = odd_sizes[i % N_ODD_SIZES];
        float cap = i % 2 ? 30.0f : 50.0f;
        rng_fill(&rng, expected, n, sigmas[i % 4]);
        guard_t x = guard_copy(expected, n * sizeof *expected, true);
        ref(expected, n, cap);
        fn(x.data, n, cap);
        judge(v, x.data, expected, n, "random");
        guard_free(&x);
    }
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
        for (size_t at = 0; at < 37; at++) {
            float x[37];
            for (size_t k = 0; k < 37; k++) x[k] = expected[k] = 1e-3f;
            x[at] = expected[at] = special[i];
            ref(expected, 37, 30.0f);
            fn(x, 37, 30.0f);
            judge(v, x, expected, 37, "special");
        }
    }
}

static void check_kv_store(verdict_t *v, kri_kv_store_fn *ref, kri_kv_store_fn *fn) {
    bool half = strstr(v->name, "f16") != NULL;
    size_t element = half ? 2 : 4;
    rng_t rng = {27};
    float x[4097];
    for (size_t i = 0; i < N_ODD_SIZES * 8; i++) {
        size_t n = odd_sizes[i % N_ODD_SIZES];
        for (size_t k = 0; k < n; k++) {
            uint32_t bits = rng_u32(&rng); /* any pattern, and ties between two halves */
            if (i % 2) bits = (bits & 0xfffff000u) | 0x1000u;
            if ((bits & 0x7f800000u) == 0x7f800000u) bits |= 0x400000u; /* no signalling NaN */
            if (i % 4 > 1) bits = (bits & 0x8fffffffu) | 0x30000000u;   /* in a half's range */
            memcpy(x + k, &bits, sizeof bits);
        }
        guard_t in = guard_copy(x, n * sizeof *x, true), out = guard_new(n * element, true);
        uint8_t *expected = must_alloc(n * element);
        guard_lock(&in);
        ref(x, n, expected);
        fn(in.data, n, out.data);
        assert_memory_equal(out.data, expected, n * element);
        free(expected);
        guard_free(&in);
        guard_free(&out);
    }
}

static void check_store_i8_case(kri_kv_store_i8_fn *ref, kri_kv_store_i8_fn *fn, const float *x,
                                size_t n) {
    guard_t in = guard_copy(x, n * sizeof *x, true), out = guard_new(n, true);
    int8_t *expected = must_alloc(n);
    uint16_t scales[2] = {1, 2};
    guard_lock(&in);
    ref(in.data, n, expected, &scales[0]);
    fn(in.data, n, out.data, &scales[1]);
    assert_memory_equal(out.data, expected, n);
    assert_int_equal(scales[0], scales[1]);
    free(expected);
    guard_free(&in);
    guard_free(&out);
}

/* What the reference stores is what kernels.h says: within half a scale, no integer past 127. */
static void check_store_i8_meaning(const float *x, size_t n) {
    int8_t q[4097];
    uint16_t scale;
    float amax = 0;
    kri_kv_store_i8_ref(x, n, q, &scale);
    for (size_t i = 0; i < n; i++) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    double d = (double)kri_f16_to_f32(scale);
    assert_true(d * 127 >= (double)amax * (1 - 1e-6));
    for (size_t i = 0; i < n; i++) {
        assert_true(q[i] >= -127);
        assert_true(fabs((double)q[i] * d - (double)x[i]) <= d * 0.50001);
    }
}

static void check_kv_store_i8(verdict_t *v, kri_kv_store_i8_fn *ref, kri_kv_store_i8_fn *fn) {
    static const float special[] = {NAN, INFINITY, -INFINITY, 3e38f, 8.4e6f, 8.3e6f, 0.0f, 1e-44f};
    static const float sigmas[] = {1.0f, 1e-5f, 1e-9f, 1e5f, 30.0f};
    rng_t rng = {29};
    float x[4097];
    (void)v;
    for (size_t i = 0; i < N_ODD_SIZES * 5; i++) {
        size_t n = odd_sizes[i % N_ODD_SIZES];
        rng_fill(&rng, x, n, sigmas[i % 5]);
        if (i % 7 == 0) memset(x, 0, sizeof x);
        check_store_i8_meaning(x, n);
        check_store_i8_case(ref, fn, x, n);
        x[rng_u32(&rng) % n] = special[i % 8];
        check_store_i8_case(ref, fn, x, n);
    }
    for (size_t k = 0; k < 64; k++) x[k] = (float)k * 2.0f - 63.5f; /* ties, to even */
    x[0] = 127.0f;
    check_store_i8_case(ref, fn, x, 64);
    for (size_t i = 0; i < 4; i++) { /* no scale: one that is not a number, and zeros */
        int8_t q[2] = {1, 1};
        uint16_t scale;
        const float bad[2] = {1.0f, special[i]};
        fn(bad, 2, q, &scale);
        assert_true(isnan(kri_f16_to_f32(scale)) && q[0] == 0 && q[1] == 0);
    }
}

/* ---- rms_norm_q8 --------------------------------------------------------------------------- */

/* Held to its own level's rms_norm and quant_q8: rms_norm differs between levels in the last
 * bits, and a rounding may tip over. */
static void check_rms_norm_q8_level(const char *isa, kri_rms_norm_q8_fn *fn) {
    static const size_t sizes[] = {32, 64, 96, 576, 1536, 4096};
    kri_kernels_t kernels;
    rng_t rng = {28};
    float x[4096], w[4096], y[4096];
    assert_status(kri_cpu_kernels(isa, &kernels, NULL), KR_OK);
    for (size_t i = 0; i < 4 * sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i / 4];
        bool at_end = i % 2, has_w = i % 4 < 3;
        rng_fill(&rng, x, n, 2.0f);
        rng_fill(&rng, w, n, 1.0f);
        if (i % 4 == 1) memset(x, 0, n * sizeof *x);
        if (i % 4 == 2) x[n / 2] = NAN;
        guard_t in = guard_copy(x, n * sizeof *x, at_end);
        guard_t weights = guard_copy(w, n * sizeof *w, at_end);
        guard_t out = guard_new(n / 32 * sizeof(kri_q8_block_t), at_end);
        kri_q8_block_t *expected = must_alloc(n / 32 * sizeof *expected);
        guard_lock(&in);
        guard_lock(&weights);
        kernels.rms_norm(x, has_w ? w : NULL, 1e-5f, n, y);
        kernels.quant_q8(y, n, expected);
        fn(in.data, has_w ? weights.data : NULL, 1e-5f, n, out.data);
        assert_memory_equal(out.data, expected, n / 32 * sizeof *expected);
        free(expected);
        guard_free(&in);
        guard_free(&weights);
        guard_free(&out);
    }
}

static void check_rms_norm_q8(verdict_t *v, kri_rms_norm_q8_fn *ref, kri_rms_norm_q8_fn *fn) {
    check_rms_norm_q8_level("ref", ref);
    check_rms_norm_q8_level(v->isa, fn);
}

/* ---- one test per row ---------------------------------------------------------------------- */

#define RUN_linear(slot, tol)
#define RUN_attention(slot, tol)
#define RUN_ROW(slot, check, tol)                                                                \
    TEST(slot##_matches_the_reference) {                                                         \
        kri_kernels_t kernels;                                                                   \
        if (kri_isa_detect() == KRI_ISA_REF) SKIP("no level above ref");                         \
        for (kri_isa_t level = KRI_ISA_REF + 1; level < KRI_N_ISA; level++) {                    \
            if (!level_kernels(level, #slot, &kernels)) continue;                                \
            verdict_t v = {#slot, kri_isa_name(level), tol, 0};                                  \
            check(&v, kri_##slot##_ref, kernels.slot);                                           \
            print_message("%s %s: error %.2g of %.2g\n", v.name, v.isa, v.worst, v.tolerance);   \
        }                                                                                        \
    }
#define RUN_quant(slot, tol) RUN_ROW(slot, check_quant, tol)
#define RUN_rms_norm(slot, tol) RUN_ROW(slot, check_rms_norm, tol)
#define RUN_rms_norm_q8(slot, tol) RUN_ROW(slot, check_rms_norm_q8, tol)
#define RUN_rope(slot, tol) RUN_ROW(slot, check_rope, tol)
#define RUN_gated_act(slot, tol) RUN_ROW(slot, check_gated_act, tol)
#define RUN_add(slot, tol) RUN_ROW(slot, check_add, tol)
#define RUN_softcap(slot, tol) RUN_ROW(slot, check_softcap, tol)
#define RUN_kv_store(slot, tol) RUN_ROW(slot, check_kv_store, tol)
#define RUN_kv_store_i8(slot, tol) RUN_ROW(slot, check_kv_store_i8, tol)
#define RUN_tile_pack(slot, tol)
#define RUN_tile_linear(slot, tol)
#define KR_OP(slot, type, family, tolerance) RUN_##family(slot, tolerance)
#include "ops/ops.def"

/* test_ops.c: the ops of the CUDA device against the references of the CPU, which get the same
 * numbers. Few rows: products of integers are exact on both sides, so only the order of float
 * sums differs. Many rows: operands are rounded to bf16, and the oracle rounds them too. */
#include "ops/ops_util.h"

#include "cuda/exec_cuda.h"
#include "cuda_util.h"
#include "ops/exec.h"

#define N_IN_MAX 14336u
#define ROWS_MAX 300u

typedef struct device_s {
    kri_cuda_stream_t stream;
    kri_cuda_exec_t ops;
    kri_exec_t exec;
} device_t;

static kri_kernels_t kernels;

static void *device_new(size_t n_bytes) {
    void *ptr = NULL;
    assert_status(kri_cuda_alloc(cuda_or_null(), "test", n_bytes, &ptr, NULL), KR_OK);
    return ptr;
}

static device_t *device(void) {
    static device_t d;
    if (d.stream.handle) return &d;
    kri_kernels_ref(&kernels);
    assert_status(kri_cuda_stream_open(cuda_or_null(), &d.stream, NULL), KR_OK);
    d.ops = (kri_cuda_exec_t){
        .stream = &d.stream, .q8 = device_new(KRI_CU_TOKENS * N_IN_MAX / 32 * sizeof(kri_cu_q8_t)),
        .f32 = device_new(KRI_CU_TOKENS * N_IN_MAX * sizeof(float)),
        .bf16 = device_new(ROWS_MAX * N_IN_MAX * 2),
        .gate_up = device_new(ROWS_MAX * 2 * 1024 * sizeof(float)),
        .unpacked_items = kri_cuda_unpacked_items(N_IN_MAX)};
    d.ops.unpacked = device_new(d.ops.unpacked_items * 2);
    d.ops.partials = device_new(kri_cuda_partial_floats(160, 512) * sizeof(float));
    d.ops.counters = device_new(KRI_CUDA_COUNTERS(160) * sizeof(uint32_t));
    kri_cuda_fill(&d.stream, d.ops.counters, 0, KRI_CUDA_COUNTERS(160) * sizeof(uint32_t));
    d.exec = (kri_exec_t){.ops = &kri_cuda_ops, .device = &d.ops, .n_threads = 1};
    return &d;
}

static void *to_device(const void *from, size_t n_bytes) {
    void *ptr = device_new(n_bytes);
    kri_cuda_copy_in(&device()->stream, ptr, from, n_bytes);
    assert_status(kri_cuda_wait(&device()->stream, NULL), KR_OK);
    return ptr;
}

/* Back to the host, and the device's copy is freed. */
static void from_device(void *ptr, void *to, size_t n_bytes) {
    kr_error_t error;
    kr_error_init(&error);
    kri_cuda_copy_out(&device()->stream, to, ptr, n_bytes);
    if (kri_cuda_wait(&device()->stream, &error) != KR_OK) fail_msg("%s", error.message);
    kri_cuda_free(cuda_or_null(), ptr, n_bytes);
}

static void drop(const void *ptr) {
    union { const void *in; void *out; } p = {.in = ptr};
    kri_cuda_free(cuda_or_null(), p.out, 0);
}

static float *random_floats(rng_t *rng, size_t n) {
    float *x = must_alloc(n * sizeof *x);
    rng_fill(rng, x, n, 1.0f);
    return x;
}

static void assert_near(const float *actual, const float *expected, size_t n_rows, size_t n,
                        double most, const char *what) {
    double worst = 0;
    for (size_t r = 0; r < n_rows; r++) {
        const double e = row_error(actual + r * n, expected + r * n, n);
        if (!(e <= worst)) worst = e;
    }
    if (!(worst <= most)) fail_msg("%s: error %.3g, allowed %.3g", what, worst, most);
}

/* ---- rows ----------------------------------------------------------------------------------- */

TEST(op_embed_is_the_decode_of_the_rows_on_cuda) {
    NEED_CUDA();
    enum { N = 512, VOCAB = 41, ROWS = 5 };
    static const kr_token_t tokens[ROWS] = {40, 0, 7, 7, 23};
    rng_t rng = {7};
    device_t *d = device();
    int32_t *on_device = to_device(tokens, sizeof tokens);
    d->ops.step.tokens = on_device;
    kri_step_t step = {.n_rows = ROWS, .tokens = on_device};
    d->exec.step = &step;
    for (kr_dtype_t dtype = KR_DTYPE_F32; dtype <= KR_DTYPE_Q6_K; dtype++) {
        matrix_t m = matrix_new(&rng, dtype, FILL_NORMAL, VOCAB, N);
        float expected[ROWS * N], actual[ROWS * N];
        for (int r = 0; r < ROWS; r++) {
            kri_dequant_row(dtype, m.file + (size_t)tokens[r] * m.row_bytes, N, expected + r * N);
            for (int i = 0; i < N; i++) expected[r * N + i] *= 1.5f;
        }
        uint8_t *table = to_device(m.file, m.row_bytes * VOCAB);
        const kri_tensor_t tensor = {.dtype = dtype, .n_dims = 2, .shape = {VOCAB, N},
                                     .n_bytes = m.row_bytes * VOCAB, .data = table};
        float *out = device_new(sizeof actual);
        kri_op_embed(&d->exec, &tensor, 1.5f, out);
        from_device(out, actual, sizeof actual);
        assert_near(actual, expected, ROWS, N, 1e-6, kr_dtype_name(dtype));
        drop(table);
        matrix_free(&m);
    }
    drop(on_device);
}

static void check_norms(rng_t *rng, uint32_t n_rows, uint32_t n) {
    device_t *d = device();
    const size_t n_bytes = (size_t)n_rows * n * sizeof(float);
    float *x = random_floats(rng, (size_t)n_rows * n), *w = random_floats(rng, n);
    float *branch = random_floats(rng, (size_t)n_rows * n);
    float *actual = must_alloc(n_bytes), *expected = must_alloc(n_bytes);
    for (size_t r = 0; r < n_rows; r++)
        kernels.rms_norm(x + r * n, w, 1e-5f, n, expected + r * n);
    float *on_x = to_device(x, n_bytes), *on_w = to_device(w, n * sizeof(float));
    float *out = device_new(n_bytes);
    kri_op_rms_norm(&d->exec, on_x, on_w, 1e-5f, NULL, n_rows, n, out);
    from_device(out, actual, n_bytes);
    assert_near(actual, expected, n_rows, n, 2e-6, "rms_norm");
    const uint32_t last = n_rows - 1, *on_last = to_device(&last, sizeof last);
    out = device_new(n_bytes);
    kri_op_rms_norm(&d->exec, on_x, on_w, 1e-5f, on_last, 1, n, out);
    from_device(out, actual, n * sizeof(float));
    assert_near(actual, expected + (size_t)last * n, 1, n, 2e-6, "rms_norm of a row");
    drop(on_last);
    for (size_t r = 0; r < n_rows; r++) {
        kernels.rms_norm(branch + r * n, w, 1e-5f, n, expected + r * n);
        for (size_t i = 0; i < n; i++) expected[r * n + i] += x[r * n + i];
    }
    float *on_branch = to_device(branch, n_bytes);
    kri_op_norm_add(&d->exec, on_branch, on_w, 1e-5f, n_rows, n, on_x);
    from_device(on_x, actual, n_bytes);
    assert_near(actual, expected, n_rows, n, 2e-6, "norm_add");
    drop(on_branch);
    drop(on_w);
    free(x);
    free(w);
    free(branch);
    free(actual);
    free(expected);
}

TEST(op_norms_equal_the_references_on_cuda) {
    NEED_CUDA();
    rng_t rng = {8};
    static const uint32_t sizes[] = {32, 64, 576, 2048, 4096, 4128, 14336};
    (void)device();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_norms(&rng, 1, sizes[i]);
        check_norms(&rng, 19, sizes[i]);
    }
}

TEST(op_elements_equal_the_references_on_cuda) {
    NEED_CUDA();
    enum { ROWS = 7, N = 1120 };
    static float actual[ROWS * N], expected[ROWS * N];
    device_t *d = device();
    rng_t rng = {9};
    float *x = random_floats(&rng, 2 * ROWS * N), *y = random_floats(&rng, ROWS * N);
    float *on_x = to_device(x, sizeof(float) * 2 * ROWS * N), *on_y = to_device(y, sizeof actual);
    for (int act = 0; act < 2; act++) {
        for (size_t r = 0; r < ROWS; r++) {
            kri_gated_act_fn *fn = act == 0 ? kernels.gated_silu : kernels.gated_gelu;
            fn(x + 2 * r * N, x + (2 * r + 1) * N, N, expected + r * N);
        }
        float *out = device_new(sizeof actual);
        kri_op_gated_act(&d->exec, (kri_act_t)act, on_x, ROWS, N, out);
        from_device(out, actual, sizeof actual);
        assert_near(actual, expected, ROWS, N, 2e-6, "gated_act");
    }
    for (size_t i = 0; i < ROWS * N; i++) expected[i] = y[i] + x[i];
    kri_op_add(&d->exec, on_x, ROWS, N, on_y);
    kernels.softcap(expected, ROWS * N, 3.0f);
    kri_op_softcap(&d->exec, 3.0f, ROWS, N, on_y);
    from_device(on_y, actual, sizeof actual);
    assert_near(actual, expected, ROWS, N, 2e-6, "add and softcap");
    drop(on_x);
    free(x);
    free(y);
}

TEST(op_finite_finds_one_bad_value_on_cuda) {
    NEED_CUDA();
    enum { N = 300000 };
    rng_t rng = {10};
    float *x = random_floats(&rng, N);
    static const float bad[] = {NAN, INFINITY, -INFINITY, 0.0f};
    for (size_t i = 0; i < 4; i++) {
        const size_t at = rng_range(&rng, 0, N - 1);
        const float kept = x[at];
        uint32_t flag = 0, *on_flag = to_device(&flag, sizeof flag);
        x[at] = bad[i];
        float *on_x = to_device(x, N * sizeof *x);
        kri_cuda_finite(&device()->stream, on_x, N, on_flag);
        from_device(on_flag, &flag, sizeof flag);
        assert_int_equal(flag, i < 3);
        drop(on_x);
        x[at] = kept;
    }
    free(x);
}

static void check_argmax(rng_t *rng, uint32_t n_rows, uint32_t n) {
    float *x = random_floats(rng, (size_t)n_rows * n);
    int32_t expected[8], actual[8];
    const uint32_t zeros[8] = {0};
    uint32_t flag = 0, *on_flag = to_device(&flag, sizeof flag);
    for (uint32_t r = 0; r < n_rows; r++) {
        float *row = x + (size_t)r * n;
        expected[r] = (int32_t)rng_range(rng, 0, n - 1);
        if (r == 1) { /* equal ones, of both signs of zero: the first counts */
            for (uint32_t i = 0; i < n; i++) row[i] = (int32_t)i < expected[r] ? -1.0f : 0.0f;
            row[expected[r]] = -0.0f;
        } else if (r == 2) {
            row[expected[r]] = rng_range(rng, 0, 1) ? NAN : -INFINITY;
            expected[r] = -1;
        } else {
            row[expected[r]] = 100.0f + (float)r;
        }
    }
    kri_cu_argmax_t args = {.n = n, .flag = on_flag};
    args.x = to_device(x, (size_t)n_rows * n * sizeof *x);
    args.keys = to_device((const uint64_t[8]){0}, 8 * sizeof(uint64_t));
    args.counters = to_device(zeros, sizeof zeros);
    for (int i = 0; i < 2; i++) { /* keys and counters are as before */
        args.ids = device_new(sizeof actual);
        kri_cuda_argmax(&device()->stream, &args, n_rows);
        from_device(args.ids, actual, sizeof actual);
        for (uint32_t r = 0; r < n_rows; r++) assert_int_equal(actual[r], expected[r]);
    }
    from_device(on_flag, &flag, sizeof flag);
    assert_int_equal(flag, n_rows > 2);
    drop(args.x);
    drop(args.keys);
    drop(args.counters);
    free(x);
}

TEST(op_argmax_is_the_first_of_the_largest_on_cuda) {
    NEED_CUDA();
    rng_t rng = {16};
    (void)device();
    check_argmax(&rng, 1, 1);
    check_argmax(&rng, 2, 300);
    check_argmax(&rng, 8, 2049);
    check_argmax(&rng, 3, 151936);
}

/* ---- linear --------------------------------------------------------------------------------- */

#define GAP 3u /* columns between output rows that stay as they are */

typedef struct linear_case_s {
    uint32_t n_rows, n_in, n_parts, n_outs[3];
    kr_dtype_t dtypes[3];
    bool accumulate, has_bias;
} linear_case_t;

static float round_bf16(float x) {
    union { float f; uint32_t u; } v = {.f = x};
    v.u = (v.u + 0x7fffu + (v.u >> 16 & 1)) & 0xffff0000u;
    return v.f;
}

/* One row of one part: the reference kernel, or the product of rounded operands in doubles. */
static void expect_part(const linear_case_t *c, const matrix_t *m, const float *x,
                        const float *bias, float *out) {
    if (c->n_rows <= KRI_CU_TOKENS) {
        kri_q8_block_t *q8 = must_alloc(c->n_in / 32 * sizeof *q8);
        kernels.quant_q8(x, c->n_in, q8);
        const void *act = kri_dtype_is_float(m->dtype) ? (const void *)x : q8;
        kri_kernels_linear(&kernels, m->dtype)(m->packed, c->n_in, m->n_groups, m->n_rows, act, 0,
                                               1, bias, c->accumulate, out, 0);
        free(q8);
        return;
    }
    float *w = must_alloc(c->n_in * sizeof *w);
    for (size_t r = 0; r < m->n_rows; r++) {
        double sum = bias ? (double)bias[r] : 0;
        kri_dequant_row(m->dtype, m->file + r * m->row_bytes, c->n_in, w);
        for (size_t k = 0; k < c->n_in; k++)
            sum += (double)round_bf16(w[k]) * (double)round_bf16(x[k]);
        out[r] = (float)(c->accumulate ? (double)out[r] + sum : sum);
    }
    free(w);
}

static void check_linear_with(rng_t *rng, const linear_case_t *c, kri_cuda_lt_t *lt) {
    device_t *d = device();
    d->ops.lt = lt;
    kri_weight_t w = {.n_in = c->n_in, .n_parts = c->n_parts, .n_ranks = 1};
    matrix_t m[3];
    float *x = random_floats(rng, (size_t)c->n_rows * c->n_in), *bias = random_floats(rng, 512);
    float *on_bias = to_device(bias, 512 * sizeof *bias);
    for (uint32_t p = 0; p < c->n_parts; p++) {
        m[p] = matrix_new(rng, c->dtypes[p], FILL_NORMAL, c->n_outs[p], c->n_in);
        const bool is_float = kri_dtype_is_float(c->dtypes[p]);
        w.parts[p] = (kri_weight_part_t){
            .dtype = c->dtypes[p], .n_out = c->n_outs[p], .out_offset = w.n_out,
            .packed = is_float ? to_device(m[p].file, m[p].row_bytes * m[p].n_rows)
                               : to_device(m[p].packed, m[p].packed_bytes),
            .group_bytes = m[p].layout.group_bytes, .bias = c->has_bias ? on_bias : NULL};
        w.n_out += c->n_outs[p];
    }
    const size_t stride = w.n_out + GAP, n = c->n_rows * stride;
    float *expected = random_floats(rng, n), *actual = must_alloc(n * sizeof(float));
    float *on_x = to_device(x, (size_t)c->n_rows * c->n_in * sizeof *x);
    float *out = to_device(expected, n * sizeof(float));
    for (uint32_t r = 0; r < c->n_rows; r++)
        for (uint32_t p = 0; p < c->n_parts; p++)
            expect_part(c, &m[p], x + (size_t)r * c->n_in, c->has_bias ? bias : NULL,
                        expected + r * stride + w.parts[p].out_offset);
    kri_op_linear(&d->exec, &w, on_x, c->n_rows, c->accumulate, out, stride);
    from_device(out, actual, n * sizeof(float));
    char what[96];
    snprintf(what, sizeof what, "linear %s, %u rows of %u", kr_dtype_name(c->dtypes[0]), c->n_rows,
             c->n_in);
    assert_near(actual, expected, c->n_rows, stride, c->n_rows <= KRI_CU_TOKENS ? 1e-5 : 1e-3,
                what);
    for (uint32_t p = 0; p < c->n_parts; p++) {
        drop(w.parts[p].packed);
        matrix_free(&m[p]);
    }
    drop(on_x);
    drop(on_bias);
    free(x);
    free(bias);
    free(expected);
    free(actual);
}

/* Without and with cuBLASLt, where it is. */
static void check_linear(rng_t *rng, const linear_case_t *c) {
    static kri_cuda_lt_t *lt;
    static bool asked;
    if (!asked) {
        lt = kri_cuda_lt_open(cuda_or_null());
        print_message("cuBLASLt: %s\n", lt ? "found" : "not here");
        asked = true;
    }
    check_linear_with(rng, c, NULL);
    if (lt && c->n_rows > KRI_CU_TOKENS) check_linear_with(rng, c, lt);
}

TEST(op_linear_of_few_rows_equals_the_references_on_cuda) {
    NEED_CUDA();
    static const uint32_t n_ins[] = {256, 512, 2048, 4352, 14336};
    rng_t rng = {11};
    (void)device();
    for (kr_dtype_t dtype = KR_DTYPE_F32; dtype <= KR_DTYPE_Q6_K; dtype++) {
        for (uint32_t n_rows = 1; n_rows <= KRI_CU_TOKENS; n_rows++) {
            for (size_t i = n_rows > 3 && is_emulated_cuda() ? 3 : 0; i < 5; i++) {
                if (is_emulated_cuda() && n_ins[i] > 5000 && n_rows > 1) break;
                const linear_case_t c = {n_rows, n_ins[i], 1, {n_rows == 1 ? 200 : 37}, {dtype},
                                         i % 2 == 1, n_rows % 2 == 1};
                check_linear(&rng, &c);
            }
        }
        if (kri_dtype_info(dtype)->block_items > 32) continue;
        for (uint32_t n_in = 32; n_in <= 160; n_in += 32) { /* fewer blocks than a warp takes */
            const linear_case_t c = {5, n_in, 1, {50}, {dtype}, true, true};
            check_linear(&rng, &c);
        }
    }
}

TEST(op_linear_of_parts_of_several_types_equals_the_references_on_cuda) {
    NEED_CUDA();
    rng_t rng = {12};
    (void)device();
    for (uint32_t n_rows = 1; n_rows <= 40; n_rows = n_rows * 3 + 1) {
        const linear_case_t mixed = {n_rows, 512, 3, {40, 23, 16},
                                     {KR_DTYPE_Q4_K, KR_DTYPE_F16, KR_DTYPE_Q4_K}, true, true};
        const linear_case_t same = {n_rows, 512, 3, {48, 17, 33},
                                    {KR_DTYPE_BF16, KR_DTYPE_BF16, KR_DTYPE_BF16}, false, true};
        check_linear(&rng, &mixed);
        check_linear(&rng, &same);
    }
}

TEST(op_linear_of_many_rows_equals_products_of_rounded_operands_on_cuda) {
    NEED_CUDA();
    static const uint32_t rows[] = {9, 16, 17, 64, 65, 129, 300};
    rng_t rng = {13};
    (void)device();
    for (kr_dtype_t dtype = KR_DTYPE_F32; dtype <= KR_DTYPE_Q6_K; dtype++) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            const linear_case_t c = {rows[i], i % 2 ? 512 : 768, 1, {i == 6 ? 400 : 150}, {dtype},
                                     i % 2 == 1, i % 3 == 1};
            check_linear(&rng, &c);
        }
    }
    /* Enough blocks for the largest tiles. */
    const linear_case_t wide = {300, 256, 3, {512, 512, 512},
                                {KR_DTYPE_BF16, KR_DTYPE_Q4_K, KR_DTYPE_Q8_0}, false, true};
    check_linear(&rng, &wide);
}

/* ---- attention ------------------------------------------------------------------------------ */

#define N_SEQS_MAX 4u
#define N_PAGES 200u

typedef struct attn_case_s {
    uint32_t n_heads, n_kv_heads, head_dim, window;
    float softcap;
    bool has_norms, is_pair;
    uint32_t n_seqs, pos_begin[N_SEQS_MAX], n_rows[N_SEQS_MAX];
    kr_dtype_t dtype; /* of pages; 0 = f16 */
} attn_case_t;

typedef struct attn_run_s {
    const attn_case_t *c;
    kri_attn_desc_t desc;
    kri_kv_group_t group;
    kri_step_t step;
    kri_step_seq_t seqs[N_SEQS_MAX];
    uint32_t tables[N_SEQS_MAX][N_PAGES];
    int32_t positions[ROWS_MAX * 3];
    size_t pool_bytes, qkv_floats, out_floats;
} attn_run_t;

/* Sequences with shuffled pages; free slots hold NaN. */
static void attn_setup(attn_run_t *run, rng_t *rng, const attn_case_t *c) {
    uint32_t ids[N_PAGES], n = 0;
    *run = (attn_run_t){.c = c};
    run->desc = (kri_attn_desc_t){
        .layer_in_group = 1, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim, .n_rot = c->head_dim, .rope_pair = c->is_pair, .norm_eps = 1e-6f,
        .scale = 1.0f / sqrtf((float)c->head_dim), .softcap = c->softcap};
    run->group = (kri_kv_group_t){.dtype = c->dtype ? c->dtype : KR_DTYPE_F16, .n_layers = 2,
                                  .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                                  .window = c->window};
    assert_true(kri_kv_page_bytes(run->group.dtype, 2, c->n_kv_heads, c->head_dim,
                                  &run->group.page_bytes));
    run->pool_bytes = run->group.page_bytes * N_PAGES;
    run->group.pool = must_alloc(run->pool_bytes);
    memset(run->group.pool, 0xff, run->pool_bytes);
    for (uint32_t i = 0; i < N_PAGES; i++) ids[i] = i;
    for (uint32_t i = N_PAGES - 1; i > 0; i--) {
        const uint32_t j = (uint32_t)rng_range(rng, 0, i), kept = ids[i];
        ids[i] = ids[j];
        ids[j] = kept;
    }
    run->step = (kri_step_t){.seqs = run->seqs, .n_seqs = c->n_seqs, .n_groups = 1,
                             .groups = &run->group, .positions = run->positions};
    for (uint32_t s = 0; s < c->n_seqs; s++) {
        run->seqs[s] = (kri_step_seq_t){.seq = s, .row_begin = run->step.n_rows,
                                        .n_rows = c->n_rows[s], .pos_begin = c->pos_begin[s],
                                        .page_table = {run->tables[s]}};
        for (uint32_t r = 0; r < c->n_rows[s]; r++, run->step.n_rows++)
            for (int i = 0; i < 3; i++)
                run->positions[run->step.n_rows * 3 + (uint32_t)i] =
                    (int32_t)(c->pos_begin[s] + r);
        for (uint32_t p = 0; p * 16 < c->pos_begin[s] + c->n_rows[s]; p++)
            run->tables[s][p] = ids[n++];
    }
    assert_true(n <= N_PAGES && run->step.n_rows <= ROWS_MAX);
    run->qkv_floats = (size_t)run->step.n_rows * (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    run->out_floats = (size_t)run->step.n_rows * c->n_heads * c->head_dim;
}

/* ---- 8 bits */

static float of_e4m3(uint8_t code) {
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const float x = exponent ? ldexpf((float)(8 + fraction), exponent - 10)
                             : ldexpf((float)fraction, -9);
    return code & 128 ? -x : x;
}

static uint8_t to_e4m3(float x) { /* the nearest of all, the even one of two */
    uint8_t best = 0;
    for (uint8_t code = 1; code < 127; code++) {
        const float d = fabsf(fabsf(x) - of_e4m3(code)) - fabsf(fabsf(x) - of_e4m3(best));
        if (d < 0 || (d <= 0 && code % 2 == 0)) best = code;
    }
    return (uint8_t)(best | (x < 0 ? 128 : 0));
}

typedef struct item_s { /* a key or value as it lies in a page */
    uint8_t bytes[256];
    uint16_t scale;
} item_t;

static uint8_t *item_byte(const attn_run_t *run, uint8_t *page, kri_kv_place_t at, uint32_t slot,
                          bool is_v, uint32_t i) {
    return page + (is_v ? at.v + kri_i8_value_at(run->c->head_dim, slot, i)
                        : at.k + kri_i8_key_at(slot, i));
}

static void item_put(const attn_run_t *run, uint8_t *page, kri_kv_place_t at, uint32_t slot,
                     bool is_v, const item_t *item) {
    for (uint32_t i = 0; i < run->c->head_dim; i++)
        *item_byte(run, page, at, slot, is_v, i) = item->bytes[i];
    memcpy(page + at.scales + 2 * ((is_v ? 16u : 0u) + slot), &item->scale, 2);
}

static item_t item_get(const attn_run_t *run, uint8_t *page, kri_kv_place_t at, uint32_t slot,
                       bool is_v) {
    item_t item = {{0}, 0};
    for (uint32_t i = 0; i < run->c->head_dim; i++)
        item.bytes[i] = *item_byte(run, page, at, slot, is_v, i);
    memcpy(&item.scale, page + at.scales + 2 * ((is_v ? 16u : 0u) + slot), 2);
    return item;
}

static void item_floats(const attn_run_t *run, uint8_t *page, kri_kv_place_t at, uint32_t slot,
                        bool is_v, float *x) {
    const item_t item = item_get(run, page, at, slot, is_v);
    const float scale = kri_f16_to_f32(item.scale);
    for (uint32_t i = 0; i < run->c->head_dim; i++) {
        if (run->group.dtype == KR_DTYPE_F8) x[i] = scale * of_e4m3(item.bytes[i]);
        else if (is_v) x[i] = scale * (int8_t)item.bytes[i];
        else x[i] = fabsf(scale) * (float)(item.bytes[i] - KRI_I8_KEY_BIAS);
    }
    if (run->group.dtype == KR_DTYPE_F8 || is_v || !(scale < 0)) return;
    float first[256];
    item_floats(run, page, at, 0, false, first);
    for (uint32_t i = 0; i < run->c->head_dim; i++) x[i] += first[i];
}

/* Of random numbers; of keys of int8 some are differences. */
static item_t item_random(const attn_run_t *run, rng_t *rng, uint32_t slot, bool is_v) {
    float x[256];
    item_t item = {{0}, 0};
    const bool is_apart = run->group.dtype == KR_DTYPE_I8 && slot > 0 && !is_v &&
                          rng_range(rng, 0, 1) == 0;
    rng_fill(rng, x, run->c->head_dim, is_apart ? 0.3f : 1.0f);
    if (run->group.dtype == KR_DTYPE_I8) {
        int8_t q[256];
        kri_kv_store_i8_ref(x, run->c->head_dim, q, &item.scale);
        for (uint32_t i = 0; i < run->c->head_dim; i++)
            item.bytes[i] = (uint8_t)(q[i] + (is_v ? 0 : KRI_I8_KEY_BIAS));
        if (is_apart) item.scale |= KRI_I8_DIFFERENCE;
        return item;
    }
    item.scale = kri_f32_to_f16(1.0f / 64);
    for (uint32_t i = 0; i < run->c->head_dim; i++) item.bytes[i] = to_e4m3(x[i] * 64);
    return item;
}

/* What the device should make of a key or value: its nearest e4m3, or less than a step off where
 * the last bit of x differs. */
static void round_e4m3(float *x, uint32_t n) {
    float most = 0;
    for (uint32_t i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    uint16_t h = kri_f32_to_f16(most / 448.0f);
    if (kri_f16_to_f32(h) < most / 448.0f) h++;
    const float scale = kri_f16_to_f32(h);
    for (uint32_t i = 0; i < n; i++) x[i] = scale > 0 ? scale * of_e4m3(to_e4m3(x[i] / scale)) : 0;
}

typedef void each_fn(const attn_run_t *run, const void *ctx, uint32_t seq, uint32_t pos,
                     uint32_t head, bool is_v);

/* Every key and value of layer 1 of the tokens up to the end of the step. */
static void for_each_item(const attn_run_t *run, each_fn *each, const void *ctx) {
    for (uint32_t s = 0; s < run->c->n_seqs; s++)
        for (uint32_t pos = 0; pos < run->c->pos_begin[s] + run->c->n_rows[s]; pos++)
            for (uint32_t i = 0; i < 2 * run->c->n_kv_heads; i++)
                each(run, ctx, s, pos, i / 2, i % 2);
}

static uint8_t *page_of(const attn_run_t *run, const kri_kv_group_t *group, uint32_t seq,
                        uint32_t pos) {
    return group->pool + run->tables[seq][pos / 16] * group->page_bytes;
}

/* Keys and values of the tokens before the step. */
static void attn_history8(attn_run_t *run, rng_t *rng) {
    for (uint32_t s = 0; s < run->c->n_seqs; s++)
        for (uint32_t pos = 0; pos < run->c->pos_begin[s]; pos++)
            for (uint32_t i = 0; i < 2 * run->c->n_kv_heads; i++) {
                const item_t item = item_random(run, rng, pos % 16, i % 2);
                item_put(run, page_of(run, &run->group, s, pos),
                         kri_kv_place(&run->group, 1, i / 2), pos % 16, i % 2, &item);
            }
}

static void to_floats(const attn_run_t *run, const void *ctx, uint32_t seq, uint32_t pos,
                      uint32_t head, bool is_v) {
    const kri_kv_group_t *floats = ctx;
    const kri_kv_place_t at = kri_kv_place(floats, 1, head);
    float *x = (float *)(void *)(page_of(run, floats, seq, pos) + (is_v ? at.v : at.k)) +
               pos % 16 * run->c->head_dim;
    if (pos < run->c->pos_begin[seq]) {
        item_floats(run, page_of(run, &run->group, seq, pos), kri_kv_place(&run->group, 1, head),
                    pos % 16, is_v, x);
    } else {
        round_e4m3(x, run->c->head_dim); /* it was appended */
    }
}

static void attn_ops(const kri_exec_t *exec, const kri_attn_desc_t *desc, float *cos_sin,
                     float *qkv, float *out);

/* The CPU has no pages of fp8: pages of f32 that hold the same numbers. */
static kri_kv_group_t floats_of(const attn_run_t *run) {
    kri_kv_group_t floats = run->group;
    floats.dtype = KR_DTYPE_F32;
    assert_true(kri_kv_page_bytes(KR_DTYPE_F32, 2, run->c->n_kv_heads, run->c->head_dim,
                                  &floats.page_bytes));
    floats.pool = must_alloc(floats.page_bytes * N_PAGES);
    memset(floats.pool, 0, floats.page_bytes * N_PAGES);
    return floats;
}

static void expect_fp8(attn_run_t *run, kri_exec_t *cpu, const kri_attn_desc_t *desc,
                       float *cos_sin, float *qkv, float *out, kri_kv_group_t *floats) {
    run->step.groups = floats;
    kri_op_rope_table(cpu, 10000.0f, 1.0f, NULL, desc->n_rot, cos_sin);
    kri_op_rope_append(cpu, desc, cos_sin, qkv);
    for_each_item(run, to_floats, floats);
    kri_op_attention(cpu, desc, qkv, out);
    run->step.groups = &run->group;
}

typedef struct pages8_s {
    uint8_t *actual, *before;
    const kri_kv_group_t *floats; /* fp8: what is expected */
} pages8_t;

static void check_item(const attn_run_t *run, const void *ctx, uint32_t seq, uint32_t pos,
                       uint32_t head, bool is_v) {
    const pages8_t *p = ctx;
    const uint32_t n = run->c->head_dim, slot = pos % 16;
    const kri_kv_place_t at = kri_kv_place(&run->group, 1, head);
    const size_t page = run->tables[seq][pos / 16] * run->group.page_bytes;
    if (pos < run->c->pos_begin[seq]) {
        const item_t a = item_get(run, p->actual + page, at, slot, is_v);
        const item_t b = item_get(run, p->before + page, at, slot, is_v);
        assert_memory_equal(&a, &b, sizeof a);
        return;
    }
    float actual[256], expected[256], most = 0;
    item_floats(run, p->actual + page, at, slot, is_v, actual);
    if (p->floats) {
        const kri_kv_place_t place = kri_kv_place(p->floats, 1, head);
        memcpy(expected, page_of(run, p->floats, seq, pos) + (is_v ? place.v : place.k) +
                             slot * n * sizeof(float), n * sizeof(float));
    } else {
        item_floats(run, run->group.pool + page, at, slot, is_v, expected);
    }
    for (uint32_t i = 0; i < n; i++) most = fmaxf(most, fabsf(expected[i]));
    for (uint32_t i = 0; i < n; i++) {
        const float step = p->floats ? fabsf(expected[i]) / 8 + most / 448 / 512 : most / 60;
        if (fabsf(actual[i] - expected[i]) <= step) continue;
        fail_msg("%s %u of head %u: item %u is %g, expected %g", is_v ? "value" : "key", pos, head,
                 i, (double)actual[i], (double)expected[i]);
    }
}

/* Keys and values of the tokens before the step. */
static void attn_history(attn_run_t *run, rng_t *rng) {
    const attn_case_t *c = run->c;
    for (uint32_t s = 0; s < c->n_seqs; s++)
        for (uint32_t pos = 0; pos < c->pos_begin[s]; pos++)
            for (uint32_t h = 0; h < c->n_kv_heads; h++) {
                uint8_t *page =
                    run->group.pool + run->tables[s][pos / 16] * run->group.page_bytes;
                const kri_kv_place_t at = kri_kv_place(&run->group, 1, h);
                for (uint32_t i = 0; i < c->head_dim; i++) {
                    const uint16_t k = kri_f32_to_f16(rng_normal(rng));
                    const uint16_t v = kri_f32_to_f16(rng_normal(rng));
                    const size_t item = 2 * (pos % 16 * (size_t)c->head_dim + i);
                    memcpy(page + at.k + item, &k, 2);
                    memcpy(page + at.v + item, &v, 2);
                }
            }
}

static void *upload_words(const uint32_t *words, size_t n) { return to_device(words, n * 4); }

/* The step's tables on the device; tiles where the head size has them and a sequence is long. */
static void attn_bind(const attn_run_t *run, device_t *d) {
    const attn_case_t *c = run->c;
    uint32_t positions[ROWS_MAX], row_seq[ROWS_MAX], decode_rows[ROWS_MAX];
    static uint32_t pages[N_SEQS_MAX * N_PAGES];
    kri_cu_seq_t seqs[N_SEQS_MAX] = {{0}};
    kri_cu_tile_t tiles[ROWS_MAX];
    d->ops.n_decode_rows = d->ops.n_tiles = 0;
    uint32_t most = 0;
    const uint32_t tile_rows = kri_cuda_tile_rows(run->group.dtype, c->head_dim);
    for (uint32_t s = 0; s < c->n_seqs; s++) {
        const kri_step_seq_t *q = &run->seqs[s];
        seqs[s] = (kri_cu_seq_t){.pos_begin = q->pos_begin, .row_begin = q->row_begin,
                                 .table = {s * N_PAGES}};
        memcpy(pages + s * N_PAGES, run->tables[s], sizeof run->tables[s]);
        if (q->pos_begin + q->n_rows > most) most = q->pos_begin + q->n_rows;
        for (uint32_t r = 0; r < q->n_rows; r++) {
            const uint32_t row = q->row_begin + r;
            positions[row] = q->pos_begin + r;
            row_seq[row] = s;
            if (q->n_rows < 16 || tile_rows == 0) {
                decode_rows[d->ops.n_decode_rows++] = row;
            } else if (r % tile_rows == 0) {
                const uint32_t left = q->n_rows - r;
                tiles[d->ops.n_tiles++] = (kri_cu_tile_t){
                    s, row, left < tile_rows ? left : tile_rows, 0};
            }
        }
    }
    d->ops.n_splits = kri_cuda_splits(kri_cuda_processors(cuda_or_null()), d->ops.n_decode_rows,
                                      c->n_heads, c->n_kv_heads, (most + 15) / 16);
    d->ops.step = (kri_cu_step_t){
        .positions = upload_words(positions, run->step.n_rows),
        .row_seq = upload_words(row_seq, run->step.n_rows),
        .decode_rows = upload_words(decode_rows, run->step.n_rows),
        .tiles = to_device(tiles, sizeof tiles), .seqs = to_device(seqs, sizeof seqs),
        .tables = to_device(pages, sizeof pages)};
}

static void attn_unbind(device_t *d) {
    drop(d->ops.step.positions);
    drop(d->ops.step.row_seq);
    drop(d->ops.step.decode_rows);
    drop(d->ops.step.tiles);
    drop(d->ops.step.seqs);
    drop(d->ops.step.tables);
}

/* Rotates, appends and attends with an exec; pages in run->group. */
static void attn_ops(const kri_exec_t *exec, const kri_attn_desc_t *desc, float *cos_sin,
                     float *qkv, float *out) {
    kri_op_rope_table(exec, 10000.0f, 1.0f, NULL, desc->n_rot, cos_sin);
    kri_op_rope_append(exec, desc, cos_sin, qkv);
    kri_op_attention(exec, desc, qkv, out);
}

/* The reference may multiply a free slot's value by a weight of 0. */
static void clear_free_slots(attn_run_t *run) {
    static const uint16_t none = 0xffff;
    for (size_t i = 0; i < run->pool_bytes; i += 2)
        if (memcmp(run->group.pool + i, &none, 2) == 0) memset(run->group.pool + i, 0, 2);
}

static void check_pages(const attn_run_t *run, const uint8_t *actual) {
    const size_t n = run->pool_bytes / 2;
    for (size_t i = 0; i < n; i++) {
        uint16_t a, e;
        memcpy(&a, actual + 2 * i, 2);
        memcpy(&e, run->group.pool + 2 * i, 2);
        const float fa = kri_f16_to_f32(a), fe = kri_f16_to_f32(e);
        if (a == e || (a == 0xffff && e == 0)) continue;
        if (fabsf(fa - fe) <= 2e-3f * fmaxf(1.0f, fabsf(fe))) continue;
        fail_msg("pages: item %zu is %g, expected %g", i, (double)fa, (double)fe);
    }
}

/* The result as floats; it is bf16 elsewhere if every row attended in tiles. */
static void attn_result(device_t *d, float *out, size_t n, float *to) {
    const bool is_rounded = d->ops.rounded == out;
    uint16_t *rounded = must_alloc(n * sizeof *rounded);
    kri_cuda_copy_out(&d->stream, rounded, d->ops.bf16, n * sizeof *rounded);
    from_device(out, to, n * sizeof(float));
    for (size_t i = 0; i < n && is_rounded; i++) {
        const uint32_t bits = (uint32_t)rounded[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
    free(rounded);
}

static void check_attention(rng_t *rng, const attn_case_t *c) {
    const bool is_8bit = kri_kv_is_8bit(c->dtype);
    kri_kv_group_t floats = {0};
    device_t *d = device();
    static float *scratch;
    static attn_run_t run;
    if (!scratch) scratch = must_alloc(KRI_ATTN_THREAD_FLOATS * sizeof *scratch);
    attn_setup(&run, rng, c);
    if (is_8bit) attn_history8(&run, rng);
    else attn_history(&run, rng);
    float *qkv = random_floats(rng, run.qkv_floats), *norms = random_floats(rng, c->head_dim);
    float *expected = must_alloc(run.out_floats * 4), *actual = must_alloc(run.out_floats * 4);
    float *cos_sin = must_alloc((size_t)run.step.n_rows * c->head_dim * 4);
    uint8_t *pages = must_alloc(run.pool_bytes);
    kri_kv_group_t on_device = run.group;
    kri_step_t step = run.step;
    kri_attn_desc_t desc = run.desc;
    float *on_norms = to_device(norms, c->head_dim * 4), *out = device_new(run.out_floats * 4);
    float *on_qkv = to_device(qkv, run.qkv_floats * 4);
    float *on_cos_sin = device_new((size_t)run.step.n_rows * c->head_dim * 4);
    on_device.pool = to_device(run.group.pool, run.pool_bytes);
    step.groups = &on_device;
    d->exec.step = &step;
    attn_bind(&run, d);
    kri_cuda_fill(&d->stream, out, 0xff, run.out_floats * 4); /* NaN where nothing is written */
    if (c->has_norms) desc.q_norm = desc.k_norm = on_norms;
    attn_ops(&d->exec, &desc, on_cos_sin, on_qkv, out);
    attn_result(d, out, run.out_floats, actual);
    from_device(on_device.pool, pages, run.pool_bytes);
    uint8_t *before = must_alloc(run.pool_bytes);
    memcpy(before, run.group.pool, run.pool_bytes);
    if (!is_8bit) clear_free_slots(&run);
    kri_exec_t cpu = {.kernels = &kernels, .n_threads = 1, .step = &run.step,
                            .attn_scratch = scratch};
    if (c->has_norms) desc.q_norm = desc.k_norm = norms;
    if (c->dtype == KR_DTYPE_F8) {
        floats = floats_of(&run);
        expect_fp8(&run, &cpu, &desc, cos_sin, qkv, expected, &floats);
    } else {
        attn_ops(&cpu, &desc, cos_sin, qkv, expected);
    }
    char what[96];
    snprintf(what, sizeof what, "attention of %u, %u heads on %u, window %u, %s", c->head_dim,
             c->n_heads, c->n_kv_heads, c->window, kr_dtype_name(run.group.dtype));
    if (is_8bit) for_each_item(&run, check_item, &(pages8_t){pages, before,
                                                             floats.pool ? &floats : NULL});
    else check_pages(&run, pages);
    assert_near(actual, expected, run.step.n_rows, (size_t)c->n_heads * c->head_dim,
                d->ops.n_tiles > 0 || is_8bit ? 5e-3 : 2e-3, what);
    free(before);
    free(floats.pool);
    attn_unbind(d);
    drop(on_norms);
    drop(on_qkv);
    drop(on_cos_sin);
    free(run.group.pool);
    free(qkv);
    free(norms);
    free(expected);
    free(actual);
    free(cos_sin);
    free(pages);
}

/* Sequences of all kinds: one row far in, the first row, a short one, a prompt in the middle. */
static void check_shapes_of(rng_t *rng, kr_dtype_t dtype, uint32_t n_heads, uint32_t n_kv_heads,
                            uint32_t head_dim, uint32_t window, float softcap) {
    const attn_case_t decode = {n_heads, n_kv_heads, head_dim, window, softcap, window > 0,
                                softcap == 0, 4, {1000, 0, 17, 431}, {1, 1, 1, 1}, dtype};
    const attn_case_t mixed = {n_heads, n_kv_heads, head_dim, window, softcap, true, false,
                               4, {333, 0, 5, 90}, {1, 130, 7, 70}, dtype};
    const attn_case_t prompts = {n_heads, n_kv_heads, head_dim, window, softcap, true, true,
                                 3, {0, 77, 300}, {200, 16, 65}, dtype};
    const attn_case_t alone = {n_heads, n_kv_heads, head_dim, window, softcap, false, true,
                               1, {2000}, {1}, dtype};
    check_attention(rng, &decode);
    check_attention(rng, &mixed);
    check_attention(rng, &prompts);
    check_attention(rng, &alone);
}

static void check_shapes(rng_t *rng, uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim,
                         uint32_t window, float softcap) {
    check_shapes_of(rng, KR_DTYPE_F16, n_heads, n_kv_heads, head_dim, window, softcap);
}

TEST(op_attention_over_pages_of_8_bits_equals_the_reference_on_cuda) {
    NEED_CUDA();
    static const uint32_t dims[] = {64, 128, 256, 16, 80};
    rng_t rng = {16};
    (void)device();
    for (kr_dtype_t dtype = KR_DTYPE_I8; dtype <= KR_DTYPE_F8; dtype++)
        for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
            if (is_emulated_cuda() && (i + (size_t)dtype) % 2) continue;
            check_shapes_of(&rng, dtype, i % 2 ? 4 : 3, 1, dims[i], 0, 0.0f);
            if (is_emulated_cuda()) continue;
            check_shapes_of(&rng, dtype, 12, 2, dims[i], 100, 5.0f);
        }
    check_shapes_of(&rng, KR_DTYPE_I8, 6, 1, 128, 40, 5.0f);
    check_shapes_of(&rng, KR_DTYPE_F8, 5, 1, 64, 100, 0.0f);
}

TEST(op_attention_equals_the_reference_on_cuda) {
    NEED_CUDA();
    static const uint32_t dims[] = {64, 128, 256, 16, 80};
    static const uint32_t heads[][2] = {{1, 1}, {4, 2}, {3, 1}, {8, 2}, {6, 1}, {7, 1}, {16, 2}};
    rng_t rng = {14};
    (void)device();
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
            if (!is_emulated_cuda() || (i + h) % 5 == 1)
                check_shapes(&rng, heads[h][0], heads[h][1], dims[i], 0, 0.0f);
}

TEST(op_attention_with_windows_and_soft_caps_equals_the_reference_on_cuda) {
    NEED_CUDA();
    rng_t rng = {15};
    (void)device();
    for (uint32_t head_dim = 64; head_dim <= 256; head_dim *= is_emulated_cuda() ? 4 : 2) {
        check_shapes(&rng, 4, 1, head_dim, 100, 0.0f);
        check_shapes(&rng, 4, 2, head_dim, 16, 5.0f);
        check_shapes(&rng, 4, 2, head_dim, 0, 5.0f);
    }
    check_shapes(&rng, 4, 1, 48, 33, 0.0f);
}

/* ---- device --------------------------------------------------------------------------------- */

TEST(device_says_what_memory_is_needed_and_free_on_cuda) {
    NEED_CUDA();
    kr_error_t error;
    void *ptr = NULL;
    kr_error_init(&error);
    assert_status(kri_cuda_alloc(cuda_or_null(), "test", (size_t)1 << 45, &ptr, &error),
                  KR_E_DEVICE_NOMEM);
    assert_non_null(strstr(error.message, "test: 35184372.1 MB of device memory are needed"));
    assert_non_null(strstr(error.message, "MB are free"));
    /* The device still works. */
    const uint64_t used = kri_cuda_bytes_used(cuda_or_null());
    assert_status(kri_cuda_alloc(cuda_or_null(), "test", 1 << 20, &ptr, &error), KR_OK);
    assert_int_equal(kri_cuda_bytes_used(cuda_or_null()), used + (1 << 20));
    kri_cuda_free(cuda_or_null(), ptr, 1 << 20);
    assert_int_equal(kri_cuda_bytes_used(cuda_or_null()), used);
}

TEST(device_is_refused_by_name_where_there_is_none) {
    kri_cuda_t *cuda = NULL;
    kr_error_t error;
    kr_error_init(&error);
    if (cuda_or_null()) SKIP("there is a CUDA device");
    const kr_status_t status = kri_cuda_open(&cuda, &error);
    assert_true(status == KR_E_NOT_FOUND || status == KR_E_UNSUPPORTED);
    assert_string_equal(error.param, "device");
    assert_non_null(strstr(error.message, "CUDA"));
    assert_null(cuda);
}

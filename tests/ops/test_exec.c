/* test_exec.c: whole-batch ops: the same bits on 1, 2 and 3 threads, equal to plain loops over the
 * kernels, and without a single allocation. Attention with its pages is checked against the
 * formula over a history that the test keeps itself. */
#include "ops_util.h"

#include "base/alloc.h"
#include "ops/exec.h"

#define N_THREADS_MAX 3u

/* An exec over the best kernels of this machine with room for the largest case. */
static kri_kernels_t kernels;

static kri_exec_t exec_new(uint32_t n_threads, const kri_step_t *step) {
    enum { Q8_BLOCKS = 150 * 2048 / 32 };
    static kri_pool_t *pool;
    static float *scratch;
    static kri_q8_block_t *q8;
    static kri_exec_own_t *own;
    static float *normed, *ff;
    if (!pool) {
        assert_status(kri_cpu_kernels(NULL, &kernels, NULL), KR_OK);
        kernels.has_tiles = 0; /* the matrix unit has bits of its own: test_tile.c */
        assert_status(kri_pool_shared(N_THREADS_MAX, &pool), KR_OK);
        scratch = must_alloc(N_THREADS_MAX * KRI_ATTN_THREAD_FLOATS * sizeof *scratch);
        q8 = must_alloc(Q8_BLOCKS * sizeof *q8);
        own = must_alloc(N_THREADS_MAX * sizeof *own);
        normed = must_alloc(Q8_BLOCKS * 32 * sizeof *normed);
        ff = must_alloc(Q8_BLOCKS * 32 * sizeof *ff);
    }
    return (kri_exec_t){.kernels = &kernels, .pool = pool, .n_threads = n_threads, .step = step,
                        .attn_scratch = scratch, .own = own, .q8 = q8, .normed = normed,
                        .ff = ff};
}

static float *random_floats(rng_t *rng, size_t n) {
    float *x = must_alloc(n * sizeof *x);
    rng_fill(rng, x, n, 1.0f);
    return x;
}

/* ---- linear -------------------------------------------------------------------------------- */

#define GAP 5u /* columns between output rows that stay as they are */

static void check_linear(rng_t *rng, uint32_t n_rows, uint32_t n_in, bool accumulate) {
    static const kr_dtype_t dtypes[] = {KR_DTYPE_Q4_K, KR_DTYPE_F16, KR_DTYPE_Q8_0};
    static const uint32_t n_outs[] = {40, 23, 16};
    kri_weight_t w = {.n_in = n_in, .n_parts = 3, .n_ranks = 1};
    matrix_t matrices[3];
    float *bias = random_floats(rng, 40), *x = random_floats(rng, (size_t)n_rows * n_in);
    for (size_t p = 0; p < 3; p++) {
        matrices[p] = matrix_new(rng, dtypes[p], FILL_NORMAL, n_outs[p], n_in);
        w.parts[p] = (kri_weight_part_t){
            .dtype = dtypes[p], .n_out = n_outs[p], .out_offset = w.n_out,
            .packed = matrices[p].packed, .group_bytes = matrices[p].layout.group_bytes,
            .bias = p == 1 ? NULL : bias,
        };
        w.n_out += n_outs[p];
    }
    size_t stride = w.n_out + GAP, n = n_rows * stride;
    float *start = random_floats(rng, n), *expected = must_alloc(n * sizeof(float));
    float *out = must_alloc(n * sizeof *out);
    kri_exec_t exec = exec_new(1, NULL);
    memcpy(expected, start, n * sizeof *start);
    for (uint32_t r = 0; r < n_rows; r++) { /* one token at a time, parts whole */
        kri_q8_block_t *q8 = must_alloc(n_in / 32 * sizeof *q8);
        kernels.quant_q8(x + (size_t)r * n_in, n_in, q8);
        for (size_t p = 0; p < 3; p++) {
            const void *act =
                kri_dtype_is_float(dtypes[p]) ? (const void *)(x + (size_t)r * n_in) : q8;
            kri_kernels_linear(&kernels, dtypes[p])(
                matrices[p].packed, n_in, matrices[p].n_groups, n_outs[p], act, 0, 1,
                w.parts[p].bias, accumulate, expected + r * stride + w.parts[p].out_offset, 0);
        }
        free(q8);
    }
    for (uint32_t t = 1; t <= N_THREADS_MAX; t++) {
        exec = exec_new(t, NULL);
        memcpy(out, start, n * sizeof *start);
        kri_alloc_guard_begin("linear");
        kri_op_linear(&exec, &w, x, n_rows, accumulate, out, stride);
        assert_int_equal(kri_alloc_guard_end(), 0);
        assert_same_floats(out, expected, n, "linear");
    }
    for (size_t p = 0; p < 3; p++) matrix_free(&matrices[p]);
    free(bias);
    free(x);
    free(start);
    free(expected);
    free(out);
}

TEST(op_linear_gives_single_token_bits_when_parts_differ_in_type) {
    rng_t rng = {41};
    check_linear(&rng, 1, 256, false);
    check_linear(&rng, 1, 512, true);
    check_linear(&rng, 37, 512, true);
    check_linear(&rng, 150, 2048, false); /* several token tiles */
}

/* ---- a team over fused ops ----------------------------------------------------------------- */

#define FFN_EMBD 512u

typedef struct ffn_case_s {
    kri_weight_t qkv, gate_up, down;
    kri_ffn_desc_t desc;
    uint32_t n_rows;
    const uint32_t *rows;
    float *x, *projected, *branch;
} ffn_case_t;

static void add_part(rng_t *rng, kri_weight_t *w, kr_dtype_t dtype, uint32_t n_out, matrix_t *m) {
    *m = matrix_new(rng, dtype, FILL_NORMAL, n_out, w->n_in);
    w->parts[w->n_parts++] = (kri_weight_part_t){
        .dtype = dtype, .n_out = n_out, .out_offset = w->n_out, .packed = m->packed,
        .group_bytes = m->layout.group_bytes};
    w->n_out += n_out;
}

static kr_status_t run_fused(const kri_exec_t *exec, void *ctx) {
    const ffn_case_t *c = ctx;
    kri_op_norm_linear(exec, &c->qkv, c->x, c->desc.norm, 1e-5f, c->rows, c->n_rows, c->projected,
                       c->qkv.n_out);
    kri_op_ffn(exec, &c->desc, c->x, c->n_rows, true, c->x);
    kri_op_ffn(exec, &c->desc, c->x, c->n_rows, false, c->branch);
    kri_op_norm_add(exec, c->branch, c->desc.norm, 1e-6f, c->n_rows, FFN_EMBD, c->x);
    return exec->n_threads > 0 ? KR_OK : KR_E_NUMERIC;
}

/* The same by the ops that each do one thing. */
static void run_unfused(const kri_exec_t *exec, const ffn_case_t *c) {
    const uint32_t n_ff = c->down.n_in, n = c->n_rows;
    float *y = must_alloc((size_t)n * FFN_EMBD * 4), *ff = must_alloc((size_t)n * n_ff * 4);
    float *gate_up = must_alloc((size_t)n * 2 * n_ff * 4);
    for (uint32_t r = 0; r < n; r++)
        memcpy(y + r * FFN_EMBD, c->x + (c->rows ? c->rows[r] : r) * FFN_EMBD, FFN_EMBD * 4);
    kri_op_rms_norm(exec, y, c->desc.norm, 1e-5f, NULL, n, FFN_EMBD, y);
    kri_op_linear(exec, &c->qkv, y, n, false, c->projected, c->qkv.n_out);
    for (int pass = 0; pass < 2; pass++) {
        kri_op_rms_norm(exec, c->x, c->desc.norm, 1e-5f, NULL, n, FFN_EMBD, y);
        kri_op_linear(exec, &c->gate_up, y, n, false, gate_up, 2 * n_ff);
        kri_op_gated_act(exec, c->desc.act, gate_up, n, n_ff, ff);
        kri_op_linear(exec, &c->down, ff, n, pass == 0, pass == 0 ? c->x : c->branch, FFN_EMBD);
    }
    kri_op_rms_norm(exec, c->branch, c->desc.norm, 1e-6f, NULL, n, FFN_EMBD, c->branch);
    kri_op_add(exec, c->branch, n, FFN_EMBD, c->x);
    free(y);
    free(ff);
    free(gate_up);
}

static void check_ffn(rng_t *rng, const kr_dtype_t *types, uint32_t n_ff, uint32_t n_rows,
                      kri_act_t act) {
    matrix_t m[6];
    ffn_case_t c = {.qkv.n_in = FFN_EMBD, .gate_up.n_in = FFN_EMBD, .down.n_in = n_ff,
                    .n_rows = n_rows};
    add_part(rng, &c.qkv, types[0], 40, &m[0]);
    add_part(rng, &c.qkv, types[1], 23, &m[1]);
    add_part(rng, &c.gate_up, types[1], n_ff, &m[2]);
    add_part(rng, &c.gate_up, types[0], n_ff, &m[3]);
    add_part(rng, &c.down, types[2], FFN_EMBD, &m[4]);
    float *norm = random_floats(rng, FFN_EMBD), *start = random_floats(rng, n_rows * FFN_EMBD);
    uint32_t *rows = must_alloc(n_rows * sizeof *rows);
    for (uint32_t r = 0; r < n_rows; r++) rows[r] = n_rows - 1 - r / 2;
    c.desc = (kri_ffn_desc_t){.gate_up = &c.gate_up, .down = &c.down, .norm = norm,
                              .norm_eps = 1e-5f, .act = act};
    size_t n_x = n_rows * FFN_EMBD, n_projected = n_rows * c.qkv.n_out;
    float *out[2][3];
    for (uint32_t t = 0; t <= 2 * N_THREADS_MAX; t++) { /* 0: unfused; then teams, then without */
        float **o = out[t > 0];
        if (t < 2) {
            o[0] = must_alloc(n_x * 4);
            o[1] = must_alloc(n_projected * 4);
            o[2] = must_alloc(n_x * 4);
        }
        c.x = o[0];
        c.projected = o[1];
        c.branch = o[2];
        c.rows = n_rows % 2 ? rows : NULL;
        memcpy(c.x, start, n_x * 4);
        kri_exec_t exec = exec_new(t == 0 ? 1 : (t - 1) % N_THREADS_MAX + 1, NULL);
        if (t == 0) {
            run_unfused(&exec, &c);
            continue;
        }
        kri_alloc_guard_begin("team");
        if (t <= N_THREADS_MAX) assert_status(kri_exec_team(&exec, run_fused, &c), KR_OK);
        else run_fused(&exec, &c);
        assert_int_equal(kri_alloc_guard_end(), 0);
        assert_same_floats(out[1][0], out[0][0], n_x, "residual");
        assert_same_floats(out[1][1], out[0][1], n_projected, "projection");
        assert_same_floats(out[1][2], out[0][2], n_x, "branch");
    }
    for (size_t i = 0; i < 5; i++) matrix_free(&m[i]);
    for (size_t i = 0; i < 6; i++) free(out[i / 3][i % 3]);
    free(norm);
    free(start);
    free(rows);
}

TEST(fused_ops_give_the_bits_of_single_ops_on_any_team) {
    static const kr_dtype_t types[][3] = {{KR_DTYPE_Q4_0, KR_DTYPE_Q8_0, KR_DTYPE_Q4_1},
                                          {KR_DTYPE_Q5_0, KR_DTYPE_F16, KR_DTYPE_Q8_0},
                                          {KR_DTYPE_F32, KR_DTYPE_Q4_0, KR_DTYPE_F16}};
    static const uint32_t n_rows[] = {1, 2, 5, 33, 131};
    rng_t rng = {46};
    for (size_t i = 0; i < 15; i++) {
        const kr_dtype_t *t = types[i / 5];
        if (is_emulated() && i >= 5 && n_rows[i % 5] == 131) continue;
        check_ffn(&rng, t, 480, n_rows[i % 5], i % 2 ? KRI_ACT_SILU : KRI_ACT_GELU_TANH);
    }
    check_ffn(&rng, types[1], 9216, 3, KRI_ACT_SILU); /* several passes over one token */
    check_ffn(&rng, types[2], 123, 7, KRI_ACT_SILU);  /* no whole blocks: floats only */
}

/* ---- rows and elements --------------------------------------------------------------------- */

TEST(op_embed_gives_scaled_decoded_rows_when_on_any_thread_count) {
    enum { ROWS = 41, EMBD = 768, VOCAB = 50 };
    rng_t rng = {42};
    kr_token_t tokens[ROWS];
    for (size_t r = 0; r < ROWS; r++) tokens[r] = (kr_token_t)(rng_u32(&rng) % VOCAB);
    kri_step_t step = {.n_rows = ROWS, .tokens = tokens};
    float *out = must_alloc(ROWS * EMBD * sizeof *out), row[EMBD];
    for (kr_dtype_t dtype = 1; kri_dtype_info(dtype); dtype++) {
        matrix_t m = matrix_new(&rng, dtype, FILL_NORMAL, VOCAB, EMBD);
        kri_tensor_t table = {.dtype = dtype, .n_dims = 2, .shape = {VOCAB, EMBD},
                              .n_bytes = VOCAB * m.row_bytes, .data = m.file};
        for (uint32_t t = 1; t <= N_THREADS_MAX; t++) {
            kri_exec_t exec = exec_new(t, &step);
            kri_op_embed(&exec, &table, 1.5f, out);
            for (size_t r = 0; r < ROWS; r++) {
                kri_dequant_row(dtype, m.file + (size_t)tokens[r] * m.row_bytes, EMBD, row);
                for (size_t i = 0; i < EMBD; i++) row[i] *= 1.5f;
                assert_same_floats(out + r * EMBD, row, EMBD, "embed");
            }
        }
        matrix_free(&m);
    }
    free(out);
}

TEST(op_rms_norm_gives_kernel_bits_when_on_any_thread_count) {
    enum { ROWS = 41, N = 1003 };
    rng_t rng = {43};
    float *x = random_floats(&rng, ROWS * N), *w = random_floats(&rng, N);
    float *out = must_alloc(ROWS * N * sizeof *out), row[N];
    for (uint32_t n_rows = 1; n_rows <= ROWS; n_rows += ROWS - 1) {
        for (uint32_t t = 1; t <= N_THREADS_MAX; t++) {
            kri_exec_t exec = exec_new(t, NULL);
            memset(out, 0, ROWS * N * sizeof *out);
            kri_op_rms_norm(&exec, x, w, 1e-5f, NULL, n_rows, N, out);
            for (size_t r = 0; r < n_rows; r++) {
                kernels.rms_norm(x + r * N, w, 1e-5f, N, row);
                assert_same_floats(out + r * N, row, N, "rms_norm");
            }
            /* Chosen rows, one behind the other. */
            const uint32_t rows[] = {0, n_rows / 2, n_rows - 1};
            kri_op_rms_norm(&exec, x, w, 1e-5f, rows, 3, N, out);
            for (size_t r = 0; r < 3; r++) {
                kernels.rms_norm(x + rows[r] * N, w, 1e-5f, N, row);
                assert_same_floats(out + r * N, row, N, "rms_norm of a row");
            }
        }
    }
    free(x);
    free(w);
    free(out);
}

/* Rows of 3001 columns: two chunks and a tail. A row alone has the batch's bits. */
TEST(elementwise_ops_give_the_same_bits_when_rows_or_threads_differ) {
    enum { ROWS = 23, N = 3001 };
    rng_t rng = {44};
    float *gate_up = random_floats(&rng, ROWS * 2 * N), *first = must_alloc(4 * ROWS * N * 4);
    float *out = must_alloc(4 * ROWS * N * sizeof *out), *x = random_floats(&rng, ROWS * N);
    for (uint32_t t = 1; t <= N_THREADS_MAX + 1; t++) {
        kri_exec_t exec = exec_new(t <= N_THREADS_MAX ? t : 1, NULL);
        uint32_t step = t <= N_THREADS_MAX ? ROWS : 1; /* at last, row by row */
        memcpy(out + 2 * ROWS * N, x, ROWS * N * sizeof *x);
        memcpy(out + 3 * ROWS * N, x, ROWS * N * sizeof *x);
        for (size_t r = 0; r < ROWS; r += step) {
            const float *g = gate_up + r * 2 * N;
            kri_op_gated_act(&exec, KRI_ACT_SILU, g, step, N, out + r * N);
            kri_op_gated_act(&exec, KRI_ACT_GELU_TANH, g, step, N, out + (ROWS + r) * N);
            kri_op_softcap(&exec, 2.0f, step, N, out + (2 * ROWS + r) * N);
            kri_op_add(&exec, x + r * N, step, N, out + (3 * ROWS + r) * N);
        }
        if (t == 1) memcpy(first, out, 4 * ROWS * N * sizeof *out);
        assert_same_floats(out, first, 4 * ROWS * N, "elementwise");
    }
    for (size_t i = 0; i < ROWS * N; i++) {
        const float *g = gate_up + i / N * 2 * N + i % N;
        float silu;
        kri_gated_silu_ref(g, g + N, 1, &silu);
        assert_true(fabsf(out[i] - silu) < 1e-5f);
        assert_true(fabsf(out[2 * ROWS * N + i] - 2.0f * tanhf(x[i] / 2.0f)) < 1e-5f);
        assert_true(out[3 * ROWS * N + i] == x[i] + x[i]);
    }
    free(gate_up);
    free(first);
    free(out);
    free(x);
}

TEST(op_rope_table_gives_the_same_bits_when_threads_differ) {
    enum { ROWS = 50, N_ROT = 64 };
    int32_t positions[ROWS * 3];
    float table[N_THREADS_MAX][ROWS * N_ROT];
    for (int32_t i = 0; i < ROWS * 3; i++) positions[i] = i % 3 == 0 ? 97 * i : -1;
    kri_step_t step = {.n_rows = ROWS, .positions = positions};
    for (uint32_t t = 1; t <= N_THREADS_MAX; t++) {
        kri_exec_t exec = exec_new(t, &step);
        kri_op_rope_table(&exec, 10000.0f, 1.0f, NULL, N_ROT, table[t - 1]);
        assert_same_floats(table[t - 1], table[0], ROWS * N_ROT, "rope table");
    }
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t i = 0; i < N_ROT / 2; i++) {
            double angle = positions[3 * r] * pow(10000.0, -2.0 * (double)i / N_ROT);
            assert_true(fabs((double)table[0][r * N_ROT + 2 * i] - cos(angle)) < 1e-7);
            assert_true(fabs((double)table[0][r * N_ROT + 2 * i + 1] - sin(angle)) < 1e-7);
        }
    }
}

/* ---- rotate, append, attend ---------------------------------------------------------------- */

enum { N_SEQS = 3, POS_MAX = 640, PAGES_PER_SEQ = POS_MAX / 16, ROWS_MAX = 640 };

typedef struct attn_case_s {
    uint32_t n_heads, n_kv_heads, head_dim, n_rot;
    bool rope_pair, has_norm;
    uint32_t window;
    float softcap;
    kr_dtype_t dtype;
    int32_t attn_qk;
} attn_case_t;

/* Everything of one run: a cache of two layers in the second of two groups, the history of
 * rotated keys and values [seq][pos][kv_head][head_dim], and the step under way. */
typedef struct run_s {
    const attn_case_t *c;
    kri_attn_desc_t desc;
    kri_kv_group_t groups[2];
    uint32_t page_tables[N_SEQS][PAGES_PER_SEQ];
    float *k, *v, *norm;
    kri_step_seq_t seqs[N_SEQS];
    int32_t positions[ROWS_MAX * 3];
    kri_step_t step;
} run_t;

static void run_begin(run_t *run, const attn_case_t *c, rng_t *rng) {
    size_t history = (size_t)N_SEQS * POS_MAX * c->n_kv_heads * c->head_dim;
    memset(run, 0, sizeof *run);
    run->c = c;
    run->norm = random_floats(rng, c->head_dim);
    run->desc = (kri_attn_desc_t){
        .group = 1, .layer_in_group = 1, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim, .n_rot = c->n_rot, .rope_pair = c->rope_pair,
        .q_norm = c->has_norm ? run->norm : NULL, .k_norm = c->has_norm ? run->norm : NULL,
        .norm_eps = 1e-6f, .scale = 1.0f / sqrtf((float)c->head_dim), .softcap = c->softcap,
    };
    kri_kv_group_t *group = &run->groups[1];
    *group = (kri_kv_group_t){.dtype = c->dtype, .n_layers = 2, .n_kv_heads = c->n_kv_heads,
                              .head_dim = c->head_dim, .window = c->window};
    assert_true(kri_kv_page_bytes(c->dtype, 2, c->n_kv_heads, c->head_dim, &group->page_bytes));
    group->pool = must_alloc(N_SEQS * PAGES_PER_SEQ * group->page_bytes);
    memset(group->pool, 0xff, N_SEQS * PAGES_PER_SEQ * group->page_bytes); /* NaN */
    for (uint32_t s = 0; s < N_SEQS; s++)
        for (uint32_t p = 0; p < PAGES_PER_SEQ; p++)
            run->page_tables[s][p] = (p * N_SEQS + s) * 7 % (N_SEQS * PAGES_PER_SEQ);
    run->k = must_alloc(history * sizeof *run->k);
    run->v = must_alloc(history * sizeof *run->v);
}

static void run_end(run_t *run) {
    free(run->groups[1].pool);
    free(run->k);
    free(run->v);
    free(run->norm);
}

static void step_begin(run_t *run, const uint32_t *pos_begin, const uint32_t *n_rows) {
    uint32_t row = 0;
    run->step = (kri_step_t){.seqs = run->seqs, .groups = run->groups, .n_groups = 2,
                             .positions = run->positions};
    for (uint32_t s = 0; s < N_SEQS; s++) {
        if (n_rows[s] == 0) continue;
        kri_step_seq_t *seq = &run->seqs[run->step.n_seqs++];
        *seq = (kri_step_seq_t){.seq = s, .row_begin = row, .n_rows = n_rows[s],
                                .pos_begin = pos_begin[s]};
        seq->page_table[1] = run->page_tables[s];
        for (uint32_t i = 0; i < n_rows[s]; i++, row++)
            for (size_t k = 0; k < 3; k++)
                run->positions[3 * row + k] = (int32_t)(pos_begin[s] + i);
    }
    run->step.n_rows = row;
    assert_true(row <= ROWS_MAX);
}

/* What the cache keeps of one head's key or value. */
static void stored(const run_t *run, const float *x, float *kept) {
    const size_t n = run->c->head_dim;
    int8_t q[512];
    uint16_t scale;
    kri_kv_store_i8_ref(x, n, q, &scale);
    for (size_t i = 0; i < n; i++) {
        kept[i] = run->c->dtype == KR_DTYPE_F32   ? x[i]
                  : run->c->dtype == KR_DTYPE_F16 ? kri_f16_to_f32(kri_f32_to_f16(x[i]))
                                                  : kri_f16_to_f32(scale) * (float)q[i];
    }
}

static bool is_mixed(const attn_case_t *c) {
    return c->attn_qk == KR_ATTN_QK_INT8 || c->dtype == KR_DTYPE_I8;
}

/* The formula for one row, from the history: what exec's out row must be. */
static void expect_row(const run_t *run, uint32_t seq, uint32_t pos, const float *q, float *out) {
    const attn_case_t *c = run->c;
    for (uint32_t h = 0; h < c->n_heads; h++) {
        double p[POS_MAX], max = -INFINITY, sum = 0;
        uint32_t kv = h / (c->n_heads / c->n_kv_heads);
        uint32_t first = c->window && pos >= c->window ? pos - c->window + 1 : 0;
        for (uint32_t key = first; key <= pos; key++) {
            size_t at = (((size_t)seq * POS_MAX + key) * c->n_kv_heads + kv) * c->head_dim;
            p[key] = 0;
            for (size_t i = 0; i < c->head_dim; i++)
                p[key] += (double)q[h * c->head_dim + i] * (double)run->k[at + i];
            p[key] *= (double)run->desc.scale;
            if (c->softcap > 0) p[key] = (double)c->softcap * tanh(p[key] / (double)c->softcap);
            if (p[key] > max) max = p[key];
        }
        for (uint32_t key = first; key <= pos; key++) sum += p[key] = exp(p[key] - max);
        for (size_t i = 0; i < c->head_dim; i++) {
            double acc = 0;
            for (uint32_t key = first; key <= pos; key++) {
                size_t at = (((size_t)seq * POS_MAX + key) * c->n_kv_heads + kv) * c->head_dim;
                acc += p[key] * (double)run->v[at + i];
            }
            out[h * c->head_dim + i] = (float)(acc / sum);
        }
    }
}

/* The Walsh-Hadamard transform as a matrix, in blocks of the largest power of two. */
static void transform(float *x, size_t head_dim) {
    size_t block = 1;
    float y[512];
    while (head_dim % (2 * block) == 0) block *= 2;
    for (size_t i = 0; i < head_dim; i++) {
        double sum = 0;
        for (size_t j = 0; j < block; j++) {
            double value = (double)x[i / block * block + j];
            sum += __builtin_parityll(i % block & j) ? -value : value;
        }
        y[i] = (float)(sum / sqrt((double)block));
    }
    memcpy(x, y, head_dim * sizeof *x);
}

/* Normalises and rotates a row with the reference slots and enters k and v into the history. */
static void keep_row(run_t *run, uint32_t seq, uint32_t pos, const float *cos_sin, float *qkv) {
    const attn_case_t *c = run->c;
    kri_rope_fn *rope = c->rope_pair ? kri_rope_pair_ref : kri_rope_half_ref;
    for (uint32_t h = 0; c->has_norm && h < c->n_heads + c->n_kv_heads; h++) {
        float *head = qkv + h * c->head_dim;
        kri_rms_norm_ref(head, run->norm, 1e-6f, c->head_dim, head);
    }
    rope(qkv, c->n_heads + c->n_kv_heads, c->head_dim, c->n_rot, cos_sin);
    for (uint32_t h = 0; is_mixed(c) && h < c->n_heads + c->n_kv_heads; h++)
        transform(qkv + h * c->head_dim, c->head_dim);
    const float *k = qkv + c->n_heads * c->head_dim, *v = k + c->n_kv_heads * c->head_dim;
    size_t at = ((size_t)seq * POS_MAX + pos) * c->n_kv_heads * c->head_dim;
    for (size_t i = 0; i < c->n_kv_heads * c->head_dim; i += c->head_dim) {
        stored(run, k + i, run->k + at + i);
        stored(run, v + i, run->v + at + i);
    }
}

/* The key or value of head h at a slot of layer 1 of a page of int8: layers of heads of a K block
 * [head_dim / 4][16][4], a V block [4][head_dim][4] and 32 scales. Keys with a negative scale are
 * differences to slot 0. Values are what `stored` says; keys lie within half a scale, which is no
 * larger than what the key alone would have. */
static void check_slot_i8(const attn_case_t *c, const uint8_t *page, uint32_t h, bool is_value,
                          size_t slot, const float *x) {
    const size_t block = 16 * c->head_dim;
    const uint8_t *head = page + (c->n_kv_heads + h) * (2 * block + 64);
    int8_t plain[512];
    uint16_t scale, first, plain_scale;
    memcpy(&scale, head + 2 * block + (is_value ? 32 : 0) + 2 * slot, 2);
    memcpy(&first, head + 2 * block, 2);
    kri_kv_store_i8_ref(x, c->head_dim, plain, &plain_scale);
    float d = kri_f16_to_f32(scale), d_first = kri_f16_to_f32(first);
    for (size_t i = 0; i < c->head_dim && is_value; i++) {
        int q = (int8_t)head[block + (slot / 4 * c->head_dim + i) * 4 + slot % 4];
        assert_int_equal(scale, plain_scale);
        assert_int_equal(q, plain[i]);
    }
    assert_true(is_value || fabsf(d) <= kri_f16_to_f32(plain_scale));
    assert_true(is_value || slot > 0 || d >= 0);
    for (size_t i = 0; i < c->head_dim && !is_value; i++) {
        float kept = fabsf(d) * (float)(head[i / 4 * 64 + slot * 4 + i % 4] - 128);
        if (d < 0) kept += d_first * (float)(head[i / 4 * 64 + i % 4] - 128);
        assert_true(fabsf(kept - x[i]) <= 0.5001f * fabsf(d) + 1e-6f * fabsf(x[i]));
    }
}

/* The pages themselves: [layer][K | V][kv_head][16][head_dim], and layer 0 is as it was. */
static void check_page(const run_t *run, uint32_t seq, uint32_t pos, const float *qkv) {
    const attn_case_t *c = run->c;
    const kri_kv_group_t *group = &run->groups[1];
    const uint8_t *page = group->pool + run->page_tables[seq][pos / 16] * group->page_bytes;
    const float *kv = qkv + c->n_heads * c->head_dim; /* k, then v */
    size_t layer_items = 2 * c->n_kv_heads * 16 * c->head_dim;
    size_t element = c->dtype == KR_DTYPE_F32 ? 4 : 2;
    for (uint32_t h = 0; h < 2 * c->n_kv_heads; h++) {
        float expected[512];
        stored(run, kv + h * c->head_dim, expected);
        if (c->dtype == KR_DTYPE_I8) {
            check_slot_i8(c, page, h % c->n_kv_heads, h >= c->n_kv_heads, pos % 16,
                          kv + h * c->head_dim);
            continue;
        }
        size_t slot = layer_items + (h * 16 + pos % 16) * c->head_dim;
        for (size_t i = 0; i < c->head_dim; i++) {
            float kept;
            kri_dequant_row(c->dtype, page + (slot + i) * element, 1, &kept);
            assert_true(same_float(kept, expected[i]));
        }
    }
    for (size_t i = 0; i < group->page_bytes / 2; i++) assert_int_equal(page[i], 0xff);
}

/* One step of random rows on 1, 2, 3 threads; later counts write the same pages again. */
static void check_step(run_t *run, rng_t *rng, const uint32_t *pos_begin, const uint32_t *n_rows) {
    const attn_case_t *c = run->c;
    step_begin(run, pos_begin, n_rows);
    size_t qkv_floats = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    size_t out_floats = c->n_heads * c->head_dim, n = run->step.n_rows;
    float *source = random_floats(rng, n * qkv_floats), *qkv = must_alloc(n * qkv_floats * 4);
    float *out = must_alloc(n * out_floats * 4), *first = must_alloc(n * out_floats * 4);
    float *cos_sin = must_alloc(n * c->n_rot * 4), *row = must_alloc(out_floats * 4);
    for (uint32_t t = 1; t <= N_THREADS_MAX; t++) {
        kri_exec_t exec = exec_new(t, &run->step);
        exec.attn_qk = c->attn_qk;
        memcpy(qkv, source, n * qkv_floats * sizeof *qkv);
        kri_alloc_guard_begin("attention");
        kri_op_rope_table(&exec, 10000.0f, 1.0f, NULL, c->n_rot, cos_sin);
        kri_op_rope_append(&exec, &run->desc, cos_sin, qkv);
        kri_op_attention(&exec, &run->desc, qkv, out);
        assert_int_equal(kri_alloc_guard_end(), 0);
        if (t == 1) memcpy(first, out, n * out_floats * sizeof *out);
        assert_same_floats(out, first, n * out_floats, "attention on more threads");
    }
    for (uint32_t s = 0; s < run->step.n_seqs; s++) {
        const kri_step_seq_t *seq = &run->seqs[s];
        for (uint32_t i = 0; i < seq->n_rows; i++) {
            size_t r = seq->row_begin + i;
            float *rotated = source + r * qkv_floats;
            keep_row(run, seq->seq, seq->pos_begin + i, cos_sin + r * c->n_rot, rotated);
            /* two roundings of their own: the norm's and the rotation's */
            assert_true(row_error(qkv + r * qkv_floats, rotated, qkv_floats) < 4e-6);
            check_page(run, seq->seq, seq->pos_begin + i, qkv + r * qkv_floats);
            expect_row(run, seq->seq, seq->pos_begin + i, rotated, row);
            double bound = c->dtype == KR_DTYPE_F32 ? 1e-5 : 1e-3; /* a half may round apart */
            if (c->attn_qk == KR_ATTN_QK_INT16) bound = 2e-3;
            if (c->attn_qk == KR_ATTN_QK_DEFAULT && c->dtype == KR_DTYPE_F16) bound = 2e-3;
            if (is_mixed(c)) bound = 3e-2;
            assert_true(row_error(out + r * out_floats, row, out_floats) < bound);
        }
    }
    free(source);
    free(qkv);
    free(out);
    free(first);
    free(cos_sin);
    free(row);
}

static void check_steps(const attn_case_t *c, const uint32_t steps[][2][N_SEQS], size_t n_steps) {
    rng_t rng = {45};
    run_t run;
    run_begin(&run, c, &rng);
    for (size_t i = 0; i < n_steps; i++) check_step(&run, &rng, steps[i][0], steps[i][1]);
    run_end(&run);
}

static void check_attention(const attn_case_t *c) {
    static const uint32_t steps[][2][N_SEQS] = { /* first positions, rows */
        {{0, 0, 0}, {0, 5, 33}},
        {{0, 5, 33}, {20, 1, 7}},
        {{20, 6, 40}, {1, 1, 1}},
        {{21, 7, 41}, {0, 0, 1}},
        {{21, 7, 42}, {30, 12, 20}},
    };
    check_steps(c, steps, sizeof steps / sizeof *steps);
}

/* A history of more than one span of keys: few rows are cut into spans, many are not. */
static void check_long_attention(const attn_case_t *c) {
    static const uint32_t steps[][2][N_SEQS] = {
        {{0, 0, 0}, {505, 0, 100}},
        {{505, 0, 100}, {7, 0, 413}},
        {{512, 0, 513}, {1, 1, 1}},
        {{513, 0, 514}, {1, 0, 0}},
        {{514, 1, 514}, {40, 0, 3}},
    };
    check_steps(c, steps, sizeof steps / sizeof *steps);
}

TEST(op_attention_matches_the_formula_when_heads_are_grouped) {
    attn_case_t f32 = {6, 2, 64, 64, false, true, 0, 0.0f, KR_DTYPE_F32, KR_ATTN_QK_DEFAULT};
    attn_case_t f16 = {6, 2, 64, 64, false, false, 0, 0.0f, KR_DTYPE_F16, KR_ATTN_QK_DEFAULT};
    check_attention(&f32);
    check_attention(&f16);
    f16.attn_qk = KR_ATTN_QK_F32;
    check_attention(&f16);
}

TEST(op_attention_matches_the_formula_when_windowed_and_capped) {
    attn_case_t f32 = {4, 1, 256, 256, false, true, 16, 3.0f, KR_DTYPE_F32, KR_ATTN_QK_DEFAULT};
    attn_case_t f16 = {4, 1, 256, 256, false, true, 16, 0.0f, KR_DTYPE_F16, KR_ATTN_QK_DEFAULT};
    check_attention(&f32);
    check_attention(&f16);
}

TEST(op_attention_takes_the_reference_when_head_dim_is_no_vector_multiple) {
    attn_case_t f32 = {4, 4, 40, 20, true, false, 0, 0.0f, KR_DTYPE_F32, KR_ATTN_QK_DEFAULT};
    attn_case_t f16 = {4, 2, 24, 24, true, true, 9, 0.0f, KR_DTYPE_F16, KR_ATTN_QK_DEFAULT};
    check_attention(&f32);
    check_attention(&f16);
}

TEST(op_attention_splits_heads_when_more_than_a_tile_share_keys) {
    /* A tile holds 64 queries of 512 floats, 128 of 256, 256 of 16. */
    const uint32_t dim = is_emulated() ? 256 : 512;
    attn_case_t f32 = {150, 1, dim, 16, true, false, 0, 0.0f, KR_DTYPE_F32, KR_ATTN_QK_DEFAULT};
    attn_case_t f16 = {300, 1, 16, 8, false, false, 0, 0.0f, KR_DTYPE_F16, KR_ATTN_QK_DEFAULT};
    check_attention(&f32);
    check_attention(&f16);
}

TEST(op_attention_gives_the_same_bits_when_threads_cut_the_keys_into_spans) {
    attn_case_t f32 = {2, 1, 64, 64, false, false, 0, 0.0f, KR_DTYPE_F32, KR_ATTN_QK_DEFAULT};
    attn_case_t f16 = {3, 1, 80, 64, false, true, 100, 0.0f, KR_DTYPE_F16, KR_ATTN_QK_DEFAULT};
    /* A head size for the reference. */
    attn_case_t odd = {2, 2, 24, 24, true, false, 0, 3.0f, KR_DTYPE_F32, KR_ATTN_QK_DEFAULT};
    check_long_attention(&f32);
    check_long_attention(&f16);
    check_long_attention(&odd);
    f16.attn_qk = KR_ATTN_QK_F32;
    check_long_attention(&f16);
}

TEST(op_attention_is_close_to_the_formula_when_scores_are_taken_in_integers) {
    attn_case_t f32 = {4, 2, 64, 64, false, true, 0, 0.0f, KR_DTYPE_F32, KR_ATTN_QK_INT8};
    attn_case_t f16 = {2, 1, 96, 96, false, true, 130, 0.0f, KR_DTYPE_F16, KR_ATTN_QK_INT8};
    attn_case_t odd = {2, 2, 24, 24, true, false, 0, 0.0f, KR_DTYPE_F16, KR_ATTN_QK_INT8};
    check_long_attention(&f32);
    check_long_attention(&f16);
    check_attention(&odd);
    f32.attn_qk = f16.attn_qk = odd.attn_qk = KR_ATTN_QK_INT16;
    check_long_attention(&f32);
    check_long_attention(&f16);
    check_attention(&odd);
}

TEST(op_attention_is_close_to_the_formula_when_the_cache_holds_integers) {
    attn_case_t plain = {4, 2, 64, 64, false, true, 0, 0.0f, KR_DTYPE_I8, KR_ATTN_QK_DEFAULT};
    attn_case_t window = {2, 1, 96, 96, false, true, 130, 3.0f, KR_DTYPE_I8, KR_ATTN_QK_INT16};
    attn_case_t wide = {4, 1, 256, 256, false, true, 16, 0.0f, KR_DTYPE_I8, KR_ATTN_QK_DEFAULT};
    /* A head size for the reference. */
    attn_case_t odd = {2, 2, 24, 24, true, false, 0, 0.0f, KR_DTYPE_I8, KR_ATTN_QK_DEFAULT};
    check_long_attention(&plain);
    check_long_attention(&window);
    check_attention(&wide);
    check_attention(&odd);
}

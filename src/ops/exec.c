/* exec.c: whole-batch ops over the thread pool. Every split is by rows, by groups of weight rows
 * or by fixed column chunks, so a result never depends on the number of threads: the same numbers
 * go through the same kernel calls, only on another core. Attention is in exec_attention.c. */
#include "ops/exec.h"

#include <math.h>

#include "base/checked.h"
#include "base/error.h"
#include "ops/exec_impl.h"
#include "ops/pack.h"

/* Columns of one work item of an elementwise op. Fixed, so that vector bodies and tails of a
 * kernel meet the same elements whatever the number of threads. */
#define CHUNK_COLUMNS 1024u
/* Activations of one token tile of a linear stay in the second-level cache of a core. */
#define TILE_BYTES (512u * 1024u)
#define TILE_TOKENS_MIN 16u

void kri_exec_run(const kri_exec_t *exec, uint64_t work, kri_pool_fn fn, void *ctx) {
    if (work < KRI_EXEC_WORK_MIN || exec->n_threads <= 1) fn(ctx, 0, 1);
    else kri_pool_run(exec->pool, exec->n_threads, fn, ctx);
}

/* ---- rows ---------------------------------------------------------------------------------- */

typedef struct embed_job_s {
    const kri_tensor_t *table;
    const kr_token_t *tokens;
    uint32_t n_rows;
    size_t n_embd, row_bytes;
    float scale;
    float *out;
} embed_job_t;

static void embed_rows(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const embed_job_t *job = ctx;
    uint64_t begin, end;
    kri_split(job->n_rows, 1, thread_index, n_threads, &begin, &end);
    for (uint64_t r = begin; r < end; r++) {
        float *out = job->out + r * job->n_embd;
        const uint8_t *row =
            (const uint8_t *)job->table->data + (size_t)job->tokens[r] * job->row_bytes;
        kri_dequant_row(job->table->dtype, row, job->n_embd, out);
        if (job->scale != 1.0f)
            for (size_t i = 0; i < job->n_embd; i++) out[i] *= job->scale;
    }
}

void kri_op_embed(const kri_exec_t *exec, const kri_tensor_t *table, float scale, float *out) {
    embed_job_t job = {
        .table = table,
        .tokens = exec->step->tokens,
        .n_rows = exec->step->n_rows,
        .n_embd = table->shape[1],
        .row_bytes = table->n_bytes / table->shape[0],
        .scale = scale,
        .out = out,
    };
    for (uint32_t r = 0; r < job.n_rows; r++) KR_ASSERT((uint64_t)job.tokens[r] < table->shape[0]);
    kri_exec_run(exec, (uint64_t)job.n_rows * job.n_embd, embed_rows, &job);
}

typedef struct norm_job_s {
    kri_rms_norm_fn *kernel;
    const float *x, *w;
    float eps;
    uint32_t n_rows, n;
    float *out;
} norm_job_t;

static void norm_rows(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const norm_job_t *job = ctx;
    uint64_t begin, end;
    kri_split(job->n_rows, 1, thread_index, n_threads, &begin, &end);
    for (uint64_t r = begin; r < end; r++) {
        size_t offset = (size_t)r * job->n;
        job->kernel(job->x + offset, job->w, job->eps, job->n, job->out + offset);
    }
}

void kri_op_rms_norm(const kri_exec_t *exec, const float *x, const float *w, float eps,
                     uint32_t n_rows, uint32_t n, float *out) {
    norm_job_t job = {exec->kernels->rms_norm, x, w, eps, n_rows, n, out};
    uint64_t work = n_rows > 1 ? (uint64_t)n_rows * n : 0; /* one row cannot be split */
    kri_exec_run(exec, work, norm_rows, &job);
}

/* ---- elementwise --------------------------------------------------------------------------- */

typedef struct chunk_job_s chunk_job_t;
/* One row's columns [begin, begin + n). */
typedef void chunk_fn(const chunk_job_t *job, size_t row, size_t begin, size_t n);
struct chunk_job_s {
    const kri_kernels_t *kernels;
    chunk_fn *fn;
    const float *x;
    float *y;
    uint32_t n_rows, n_columns;
    float cap;
    kri_act_t act;
};

static void run_chunks(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const chunk_job_t *job = ctx;
    uint64_t n_chunks = kri_ceil_div(job->n_columns, CHUNK_COLUMNS), begin, end;
    kri_split(job->n_rows * n_chunks, 1, thread_index, n_threads, &begin, &end);
    for (uint64_t i = begin; i < end; i++) {
        size_t column = (size_t)(i % n_chunks) * CHUNK_COLUMNS, n = job->n_columns - column;
        job->fn(job, (size_t)(i / n_chunks), column, n < CHUNK_COLUMNS ? n : CHUNK_COLUMNS);
    }
}

static void op_chunks(const kri_exec_t *exec, chunk_job_t *job) {
    job->kernels = exec->kernels;
    kri_exec_run(exec, (uint64_t)job->n_rows * job->n_columns, run_chunks, job);
}

static void chunk_gated_act(const chunk_job_t *job, size_t row, size_t begin, size_t n) {
    const float *gate = job->x + row * 2 * job->n_columns + begin;
    kri_gated_act_fn *kernel =
        job->act == KRI_ACT_SILU ? job->kernels->gated_silu : job->kernels->gated_gelu;
    kernel(gate, gate + job->n_columns, n, job->y + row * job->n_columns + begin);
}

void kri_op_gated_act(const kri_exec_t *exec, kri_act_t act, const float *gate_up,
                      uint32_t n_rows, uint32_t n_ff, float *out) {
    chunk_job_t job = {.fn = chunk_gated_act, .x = gate_up, .y = out, .n_rows = n_rows,
                       .n_columns = n_ff, .act = act};
    op_chunks(exec, &job);
}

static void chunk_add(const chunk_job_t *job, size_t row, size_t begin, size_t n) {
    size_t offset = row * job->n_columns + begin;
    job->kernels->add(job->y + offset, job->x + offset, n);
}

void kri_op_add(const kri_exec_t *exec, const float *x, uint32_t n_rows, uint32_t n, float *y) {
    chunk_job_t job = {.fn = chunk_add, .x = x, .y = y, .n_rows = n_rows, .n_columns = n};
    op_chunks(exec, &job);
}

static void chunk_softcap(const chunk_job_t *job, size_t row, size_t begin, size_t n) {
    job->kernels->softcap(job->y + row * job->n_columns + begin, n, job->cap);
}

void kri_op_softcap(const kri_exec_t *exec, float cap, uint32_t n_rows, uint32_t n, float *x) {
    chunk_job_t job = {.fn = chunk_softcap, .y = x, .n_rows = n_rows, .n_columns = n, .cap = cap};
    op_chunks(exec, &job);
}

/* ---- linear -------------------------------------------------------------------------------- */

typedef struct quant_job_s {
    kri_quant_fn *kernel;
    const float *x;
    uint64_t n_items;
    kri_q8_block_t *q8;
} quant_job_t;

static void quant_range(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const quant_job_t *job = ctx;
    uint64_t begin, end;
    kri_split(job->n_items, KRI_Q8_ITEMS, thread_index, n_threads, &begin, &end);
    if (begin < end)
        job->kernel(job->x + begin, (size_t)(end - begin), job->q8 + begin / KRI_Q8_ITEMS);
}

typedef struct linear_job_s {
    const kri_exec_t *exec;
    const kri_weight_t *w;
    const float *x;
    uint32_t n_rows, accumulate;
    float *out;
    size_t out_stride;
} linear_job_t;

static bool is_quantised(kr_dtype_t dtype) {
    return dtype != KR_DTYPE_F32 && dtype != KR_DTYPE_F16 && dtype != KR_DTYPE_BF16;
}

static size_t part_n_groups(const kri_weight_part_t *part) {
    return kri_ceil_div(part->n_out, KRI_GROUP_ROWS);
}

/* Groups [begin, end) of one part for tokens [token, token + n_tokens). */
static void linear_part(const linear_job_t *job, const kri_weight_part_t *part, size_t begin,
                        size_t end, size_t token, size_t n_tokens) {
    size_t row = begin * KRI_GROUP_ROWS, n_groups = end - begin, n_in = job->w->n_in;
    size_t n_rows = part->n_out - row;
    size_t act_stride = n_in * sizeof(float);
    const void *act = job->x + token * n_in;
    if (n_rows > n_groups * KRI_GROUP_ROWS) n_rows = n_groups * KRI_GROUP_ROWS;
    if (is_quantised(part->dtype)) {
        size_t n_blocks = n_in / KRI_Q8_ITEMS;
        act = job->exec->q8 + token * n_blocks;
        act_stride = n_blocks * sizeof(kri_q8_block_t);
    }
    kri_linear_fn *kernel = kri_kernels_linear(job->exec->kernels, part->dtype);
    kernel(part->packed + begin * part->group_bytes, n_in, n_groups, n_rows, act, act_stride,
           n_tokens, part->bias ? part->bias + row : NULL, job->accumulate,
           job->out + token * job->out_stride + part->out_offset + row, job->out_stride);
}

/* Tokens of a tile: whole register tiles of the kernels, in the larger form that is read. */
static size_t tile_n_tokens(const kri_weight_t *w) {
    size_t token_bytes = w->n_in / KRI_Q8_ITEMS * sizeof(kri_q8_block_t);
    for (uint32_t p = 0; p < w->n_parts; p++)
        if (!is_quantised(w->parts[p].dtype)) token_bytes = w->n_in * sizeof(float);
    size_t n_tokens = TILE_BYTES / token_bytes / TILE_TOKENS_MIN * TILE_TOKENS_MIN;
    return n_tokens ? n_tokens : TILE_TOKENS_MIN;
}

static void linear_range(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const linear_job_t *job = ctx;
    const kri_weight_t *w = job->w;
    size_t n_groups = 0, tile = tile_n_tokens(w);
    uint64_t begin, end;
    for (uint32_t p = 0; p < w->n_parts; p++) n_groups += part_n_groups(&w->parts[p]);
    kri_split(n_groups, 1, thread_index, n_threads, &begin, &end);
    for (size_t token = 0; token < job->n_rows; token += tile) {
        size_t n_tokens = job->n_rows - token < tile ? job->n_rows - token : tile;
        size_t first = 0; /* the part's first group among all */
        for (uint32_t p = 0; p < w->n_parts; p++) {
            size_t n = part_n_groups(&w->parts[p]);
            size_t part_begin = begin > first ? (size_t)begin - first : 0;
            size_t part_end = end < first + n ? (end > first ? (size_t)end - first : 0) : n;
            if (part_begin < part_end)
                linear_part(job, &w->parts[p], part_begin, part_end, token, n_tokens);
            first += n;
        }
    }
}

void kri_op_linear(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                   uint32_t n_rows, bool accumulate, float *out, size_t out_stride) {
    uint64_t n_items = (uint64_t)n_rows * w->n_in;
    linear_job_t job = {exec, w, x, n_rows, accumulate ? 1u : 0u, out, out_stride};
    if (kri_exec_uses_tiles(exec, w, n_rows)) {
        kri_exec_linear_tiles(exec, w, x, n_rows, accumulate, out, out_stride);
        return;
    }
    for (uint32_t p = 0; p < w->n_parts; p++) {
        if (!is_quantised(w->parts[p].dtype)) continue;
        quant_job_t quant = {exec->kernels->quant_q8, x, n_items, exec->q8};
        kri_exec_run(exec, n_items, quant_range, &quant);
        break;
    }
    kri_exec_run(exec, n_items * w->n_out, linear_range, &job);
}

/* ---- rotary table -------------------------------------------------------------------------- */

typedef struct rope_table_job_s {
    const int32_t *positions;
    uint32_t n_rows, n_pairs;
    double base, freq_scale;
    const float *factors;
    float *cos_sin;
} rope_table_job_t;

static void rope_table_rows(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const rope_table_job_t *job = ctx;
    uint64_t begin, end;
    kri_split(job->n_rows, 1, thread_index, n_threads, &begin, &end);
    if (begin == end) return;
    /* Pairs outside, so that the power is computed once for all rows. */
    for (uint32_t i = 0; i < job->n_pairs; i++) {
        double frequency = job->freq_scale * pow(job->base, -(double)i / (double)job->n_pairs);
        if (job->factors) frequency /= (double)job->factors[i];
        for (uint64_t r = begin; r < end; r++) {
            double angle = (double)job->positions[r * KRI_POS_COMPONENTS] * frequency;
            float *pair = job->cos_sin + (r * job->n_pairs + i) * 2;
            pair[0] = (float)cos(angle);
            pair[1] = (float)sin(angle);
        }
    }
}

void kri_op_rope_table(const kri_exec_t *exec, float base, float freq_scale,
                       const float *factors, uint32_t n_rot, float *cos_sin) {
    rope_table_job_t job = {
        .positions = exec->step->positions,
        .n_rows = exec->step->n_rows,
        .n_pairs = n_rot / 2,
        .base = (double)base,
        .freq_scale = (double)freq_scale,
        .factors = factors,
        .cos_sin = cos_sin,
    };
    /* A sine costs as much as tens of multiplications. */
    uint64_t work = job.n_rows > 1 ? (uint64_t)job.n_rows * n_rot * 16 : 0;
    kri_exec_run(exec, work, rope_table_rows, &job);
}

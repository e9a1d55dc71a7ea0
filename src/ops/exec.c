/* exec.c: whole-batch ops over threads. Every split is by rows, by groups of weight rows or by
 * fixed column chunks, so a result never depends on the number of threads: the same numbers go
 * through the same kernel calls, only on another core. Attention is in exec_attention.c, linear
 * and the feed-forward block in exec_linear.c. */
#include "ops/exec.h"

#include <math.h>

#include "base/checked.h"
#include "base/error.h"
#include "ops/exec_impl.h"
#include "ops/pack.h"

/* Columns of one work item of an elementwise op. Fixed, so that vector bodies and tails of a
 * kernel meet the same elements whatever the number of threads. */
#define CHUNK_COLUMNS 1024u

/* ---- teams --------------------------------------------------------------------------------- */

typedef struct team_ctx_s {
    const kri_exec_t *exec;
    kri_exec_fn *fn;
    void *ctx;
    kr_status_t status; /* thread 0's */
} team_ctx_t;

static void team_thread(void *ctx, kri_team_t *team, uint32_t thread_index) {
    team_ctx_t *job = ctx;
    kri_exec_t exec = *job->exec;
    exec.team = team;
    exec.thread_index = thread_index;
    exec.n_threads = team->n_threads;
    const kr_status_t status = job->fn(&exec, job->ctx);
    if (thread_index == 0) job->status = status;
}

kr_status_t kri_exec_team(const kri_exec_t *exec, kri_exec_fn *fn, void *ctx) {
    team_ctx_t job = {.exec = exec, .fn = fn, .ctx = ctx};
    kri_team_run(exec->pool, exec->n_threads, exec->step ? exec->step->cancel : NULL, team_thread,
                 &job);
    return job.status;
}

kr_status_t kri_exec_continue(const kri_exec_t *exec) {
    if (exec->ops) return exec->ops->go_on(exec);
    return kri_team_stopped(exec->team, exec->thread_index) ? KR_E_CANCELLED : KR_OK;
}

void kri_exec_run(const kri_exec_t *exec, uint64_t work, kri_pool_fn fn, void *ctx) {
    if (exec->team == NULL) {
        kri_exec_split(exec, work, fn, ctx);
        return;
    }
    if (work >= KRI_EXEC_TEAM_WORK_MIN) {
        fn(kri_team_share(exec->team, exec->thread_index, ctx), exec->thread_index,
           exec->n_threads);
    } else if (exec->thread_index == 0) {
        fn(ctx, 0, 1);
    }
    kri_team_barrier(exec->team, exec->thread_index);
}

void kri_exec_split(const kri_exec_t *exec, uint64_t work, kri_pool_fn fn, void *ctx) {
    if (exec->team != NULL) {
        fn(ctx, exec->thread_index, exec->n_threads);
        kri_team_barrier(exec->team, exec->thread_index);
    } else if (work < KRI_EXEC_WORK_MIN || exec->n_threads <= 1) {
        fn(ctx, 0, 1);
    } else {
        kri_pool_run(exec->pool, exec->n_threads, fn, ctx);
    }
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
    if (exec->ops) {
        exec->ops->embed(exec, table, scale, out);
        return;
    }
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
    kri_exec_split(exec, (uint64_t)job.n_rows * job.n_embd, embed_rows, &job);
}

typedef struct norm_job_s {
    kri_rms_norm_fn *kernel;
    const float *x, *w;
    float eps;
    const uint32_t *rows; /* NULL: all */
    uint32_t n_rows, n;
    float *out;
} norm_job_t;

static void norm_rows(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const norm_job_t *job = ctx;
    uint64_t begin, end;
    kri_split(job->n_rows, 1, thread_index, n_threads, &begin, &end);
    for (uint64_t r = begin; r < end; r++) {
        const float *x = job->x + (job->rows ? job->rows[r] : r) * job->n;
        job->kernel(x, job->w, job->eps, job->n, job->out + r * job->n);
    }
}

void kri_op_rms_norm(const kri_exec_t *exec, const float *x, const float *w, float eps,
                     const uint32_t *rows, uint32_t n_rows, uint32_t n, float *out) {
    if (exec->ops) {
        exec->ops->rms_norm(exec, x, w, eps, rows, n_rows, n, out);
        return;
    }
    norm_job_t job = {exec->kernels->rms_norm, x, w, eps, rows, n_rows, n, out};
    uint64_t work = n_rows > 1 ? (uint64_t)n_rows * n : 0; /* one row cannot be split */
    kri_exec_split(exec, work, norm_rows, &job);
}

typedef struct norm_add_job_s {
    const kri_kernels_t *kernels;
    const float *w;
    float eps;
    uint32_t n_rows, n;
    float *branch, *x;
} norm_add_job_t;

static void norm_add_rows(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const norm_add_job_t *job = ctx;
    uint64_t begin, end;
    kri_split(job->n_rows, 1, thread_index, n_threads, &begin, &end);
    for (uint64_t r = begin; r < end; r++) {
        float *branch = job->branch + r * job->n;
        job->kernels->rms_norm(branch, job->w, job->eps, job->n, branch);
        job->kernels->add(job->x + r * job->n, branch, job->n);
    }
}

void kri_op_norm_add(const kri_exec_t *exec, float *branch, const float *w, float eps,
                     uint32_t n_rows, uint32_t n, float *x) {
    if (exec->ops) {
        exec->ops->norm_add(exec, branch, w, eps, n_rows, n, x);
        return;
    }
    norm_add_job_t job = {exec->kernels, w, eps, n_rows, n, branch, x};
    uint64_t work = n_rows > 1 ? (uint64_t)n_rows * n : 0;
    kri_exec_split(exec, work, norm_add_rows, &job);
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
    kri_exec_split(exec, (uint64_t)job->n_rows * job->n_columns, run_chunks, job);
}

static void chunk_gated_act(const chunk_job_t *job, size_t row, size_t begin, size_t n) {
    const float *gate = job->x + row * 2 * job->n_columns + begin;
    kri_gated_act_fn *kernel =
        job->act == KRI_ACT_SILU ? job->kernels->gated_silu : job->kernels->gated_gelu;
    kernel(gate, gate + job->n_columns, n, job->y + row * job->n_columns + begin);
}

void kri_op_gated_act(const kri_exec_t *exec, kri_act_t act, const float *gate_up,
                      uint32_t n_rows, uint32_t n_ff, float *out) {
    if (exec->ops) {
        exec->ops->gated_act(exec, act, gate_up, n_rows, n_ff, out);
        return;
    }
    chunk_job_t job = {.fn = chunk_gated_act, .x = gate_up, .y = out, .n_rows = n_rows,
                       .n_columns = n_ff, .act = act};
    op_chunks(exec, &job);
}

static void chunk_add(const chunk_job_t *job, size_t row, size_t begin, size_t n) {
    size_t offset = row * job->n_columns + begin;
    job->kernels->add(job->y + offset, job->x + offset, n);
}

void kri_op_add(const kri_exec_t *exec, const float *x, uint32_t n_rows, uint32_t n, float *y) {
    if (exec->ops) {
        exec->ops->add(exec, x, n_rows, n, y);
        return;
    }
    chunk_job_t job = {.fn = chunk_add, .x = x, .y = y, .n_rows = n_rows, .n_columns = n};
    op_chunks(exec, &job);
}

static void chunk_softcap(const chunk_job_t *job, size_t row, size_t begin, size_t n) {
    job->kernels->softcap(job->y + row * job->n_columns + begin, n, job->cap);
}

void kri_op_softcap(const kri_exec_t *exec, float cap, uint32_t n_rows, uint32_t n, float *x) {
    if (exec->ops) {
        exec->ops->softcap(exec, cap, n_rows, n, x);
        return;
    }
    chunk_job_t job = {.fn = chunk_softcap, .y = x, .n_rows = n_rows, .n_columns = n, .cap = cap};
    op_chunks(exec, &job);
}

/* ---- rotary table -------------------------------------------------------------------------- */

typedef struct rope_table_job_s {
    const int32_t *positions;
    uint32_t n_rows, n_pairs;
    double base, freq_scale;
    const float *factors;
    float *cos_sin;
} rope_table_job_t;

/* Split by pairs, so that a power is computed once for all rows. */
static void rope_table_pairs(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const rope_table_job_t *job = ctx;
    uint64_t begin, end;
    kri_split(job->n_pairs, 1, thread_index, n_threads, &begin, &end);
    for (uint64_t i = begin; i < end; i++) {
        double frequency = job->freq_scale * pow(job->base, -(double)i / (double)job->n_pairs);
        if (job->factors) frequency /= (double)job->factors[i];
        for (size_t r = 0; r < job->n_rows; r++) {
            double angle = (double)job->positions[r * KRI_POS_COMPONENTS] * frequency;
            float *pair = job->cos_sin + (r * job->n_pairs + (size_t)i) * 2;
            pair[0] = (float)cos(angle);
            pair[1] = (float)sin(angle);
        }
    }
}

void kri_op_rope_table(const kri_exec_t *exec, float base, float freq_scale,
                       const float *factors, uint32_t n_rot, float *cos_sin) {
    if (exec->ops) {
        exec->ops->rope_table(exec, base, freq_scale, factors, n_rot, cos_sin);
        return;
    }
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
    kri_exec_split(exec, (uint64_t)job.n_rows * n_rot * 16, rope_table_pairs, &job);
}

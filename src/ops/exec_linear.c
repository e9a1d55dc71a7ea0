/* exec_linear.c: matrix products over whole batches, and the feed-forward block made of two.
 * Inputs are quantised (and normalised) once per op: many rows by all threads together, few rows
 * by each thread for itself, because a barrier costs more than a few hundred values. The gated
 * activations of a feed-forward block go from the registers of the first product straight into
 * the input blocks of the second. */
#include "base/checked.h"
#include "ops/exec.h"
#include "ops/exec_impl.h"
#include "ops/pack.h"

/* Activations of one token tile of a linear stay in the second-level cache of a core. */
#define TILE_BYTES (512u * 1024u)
#define TILE_TOKENS_MIN 16u
/* More values than this are worth a barrier to share the work of preparing them. */
#define OWN_ITEMS_MANY 2048u
/* Rows of gate and up that are computed before their activation: whole q8 blocks. */
#define GATED_ROWS KRI_Q8_ITEMS
#define GATED_TOKENS 128u
_Static_assert(GATED_ROWS % KRI_GROUP_ROWS == 0, "blocks are whole groups of weight rows");
_Static_assert(GATED_ROWS * GATED_TOKENS <= KRI_OWN_GATED, "a pass fits a thread's buffer");

bool kri_is_quantised(kr_dtype_t dtype) {
    return dtype != KR_DTYPE_F32 && dtype != KR_DTYPE_F16 && dtype != KR_DTYPE_BF16;
}

/* ---- activations --------------------------------------------------------------------------- */

typedef struct acts_job_s {
    const kri_kernels_t *kernels;
    kri_acts_source_t source;
    size_t n_rows, n;
    float *f32;         /* NULL: not wanted, or x itself */
    kri_q8_block_t *q8; /* NULL: not wanted */
} acts_job_t;

static void normalise_rows(const acts_job_t *job, size_t begin, size_t end) {
    const kri_acts_source_t *s = &job->source;
    for (size_t r = begin; r < end; r++) {
        const float *x = s->x + (s->rows ? s->rows[r] : r) * job->n;
        if (job->q8) {
            job->kernels->rms_norm_q8(x, s->norm, s->eps, job->n,
                                      job->q8 + r * (job->n / KRI_Q8_ITEMS));
        }
        if (job->f32) job->kernels->rms_norm(x, s->norm, s->eps, job->n, job->f32 + r * job->n);
    }
}

static void prepare_range(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const acts_job_t *job = ctx;
    uint64_t begin, end;
    if (job->source.norm) {
        kri_split(job->n_rows, 1, thread_index, n_threads, &begin, &end);
        normalise_rows(job, (size_t)begin, (size_t)end);
        return;
    }
    kri_split(job->n_rows * job->n, KRI_Q8_ITEMS, thread_index, n_threads, &begin, &end);
    if (begin < end) {
        job->kernels->quant_q8(job->source.x + begin, (size_t)(end - begin),
                               job->q8 + begin / KRI_Q8_ITEMS);
    }
}

kri_acts_t kri_acts_prepare(const kri_exec_t *exec, const kri_weight_t *w,
                            const kri_acts_source_t *source, uint32_t n_rows) {
    acts_job_t job = {.kernels = exec->kernels, .source = *source, .n_rows = n_rows, .n = w->n_in};
    const size_t n_items = job.n_rows * job.n;
    const bool alone = n_items <= (n_rows == 1 ? KRI_OWN_ITEMS : OWN_ITEMS_MANY);
    kri_exec_own_t *own = exec->own + exec->thread_index;
    kri_acts_t acts = {.f32 = source->norm ? NULL : source->x};
    for (uint32_t p = 0; p < w->n_parts; p++) {
        if (kri_is_quantised(w->parts[p].dtype)) job.q8 = alone ? own->q8 : exec->q8;
        else if (source->norm) job.f32 = alone ? own->f32 : exec->normed;
    }
    if (job.f32) acts.f32 = job.f32;
    acts.q8 = job.q8;
    if (!job.f32 && !job.q8) return acts;
    if (alone) prepare_range(&job, 0, 1);
    else kri_exec_split(exec, n_items, prepare_range, &job);
    return acts;
}

/* ---- linear -------------------------------------------------------------------------------- */

static size_t part_n_groups(const kri_weight_part_t *part) {
    return kri_ceil_div(part->n_out, KRI_GROUP_ROWS);
}

void kri_linear_part(const kri_linear_job_t *job, const kri_weight_part_t *part, size_t begin,
                     size_t end, size_t token, size_t n_tokens, float *out, size_t out_stride) {
    size_t row = begin * KRI_GROUP_ROWS, n_groups = end - begin, n_in = job->w->n_in;
    size_t n_rows = part->n_out - row;
    size_t act_stride = n_in * sizeof(float);
    const void *act;
    if (n_rows > n_groups * KRI_GROUP_ROWS) n_rows = n_groups * KRI_GROUP_ROWS;
    if (kri_is_quantised(part->dtype)) {
        size_t n_blocks = n_in / KRI_Q8_ITEMS;
        act = job->acts.q8 + token * n_blocks;
        act_stride = n_blocks * sizeof(kri_q8_block_t);
    } else {
        act = job->acts.f32 + token * n_in;
    }
    kri_linear_fn *kernel = kri_kernels_linear(job->exec->kernels, part->dtype);
    kernel(part->packed + begin * part->group_bytes, n_in, n_groups, n_rows, act, act_stride,
           n_tokens, part->bias ? part->bias + row : NULL, job->accumulate, out, out_stride);
}

/* Whole register tiles of the kernels, in the larger form that is read. */
size_t kri_linear_tile(const kri_weight_t *w) {
    size_t token_bytes = w->n_in / KRI_Q8_ITEMS * sizeof(kri_q8_block_t);
    for (uint32_t p = 0; p < w->n_parts; p++)
        if (!kri_is_quantised(w->parts[p].dtype)) token_bytes = w->n_in * sizeof(float);
    size_t n_tokens = TILE_BYTES / token_bytes / TILE_TOKENS_MIN * TILE_TOKENS_MIN;
    return n_tokens ? n_tokens : TILE_TOKENS_MIN;
}

static void linear_range(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const kri_linear_job_t *job = ctx;
    const kri_weight_t *w = job->w;
    size_t n_groups = 0, tile = kri_linear_tile(w);
    uint64_t begin, end;
    for (uint32_t p = 0; p < w->n_parts; p++) n_groups += part_n_groups(&w->parts[p]);
    kri_split(n_groups, 1, thread_index, n_threads, &begin, &end);
    for (size_t token = 0; token < job->n_rows; token += tile) {
        size_t n_tokens = job->n_rows - token < tile ? job->n_rows - token : tile;
        size_t first = 0; /* the part's first group among all */
        for (uint32_t p = 0; p < w->n_parts; p++) {
            const kri_weight_part_t *part = &w->parts[p];
            size_t n = part_n_groups(part);
            size_t part_begin = begin > first ? (size_t)begin - first : 0;
            size_t part_end = end < first + n ? (end > first ? (size_t)end - first : 0) : n;
            float *out = job->out + token * job->out_stride + part->out_offset +
                         part_begin * KRI_GROUP_ROWS;
            if (part_begin < part_end)
                kri_linear_part(job, part, part_begin, part_end, token, n_tokens, out,
                                job->out_stride);
            first += n;
        }
    }
}

void kri_linear_run(kri_linear_job_t *job) {
    kri_exec_split(job->exec, (uint64_t)job->n_rows * job->w->n_in * job->w->n_out, linear_range,
                   job);
}

void kri_op_linear(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                   uint32_t n_rows, bool accumulate, float *out, size_t out_stride) {
    if (exec->ops) {
        exec->ops->linear(exec, w, x, n_rows, accumulate, out, out_stride);
        return;
    }
    const kri_acts_source_t source = {.x = x};
    if (kri_exec_uses_tiles(exec, w, n_rows)) {
        kri_linear_tiles(exec, w, &source, n_rows, accumulate, out, out_stride);
        return;
    }
    kri_linear_job_t job = {
        .exec = exec, .w = w, .acts = kri_acts_prepare(exec, w, &source, n_rows),
        .n_rows = n_rows, .accumulate = accumulate ? 1u : 0u, .out = out,
        .out_stride = out_stride,
    };
    kri_linear_run(&job);
}

void kri_op_norm_linear(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                        const float *norm, float eps, const uint32_t *rows, uint32_t n_rows,
                        float *out, size_t out_stride) {
    if (exec->ops) {
        exec->ops->norm_linear(exec, w, x, norm, eps, rows, n_rows, out, out_stride);
        return;
    }
    const kri_acts_source_t source = {.x = x, .norm = norm, .eps = eps, .rows = rows};
    if (kri_exec_uses_tiles(exec, w, n_rows)) {
        kri_linear_tiles(exec, w, &source, n_rows, false, out, out_stride);
        return;
    }
    kri_linear_job_t job = {
        .exec = exec, .w = w, .acts = kri_acts_prepare(exec, w, &source, n_rows),
        .n_rows = n_rows, .out = out, .out_stride = out_stride,
    };
    kri_linear_run(&job);
}

/* ---- feed-forward -------------------------------------------------------------------------- */

typedef struct gated_job_s {
    kri_linear_job_t linear; /* gate_up; nothing is written to its out */
    kri_act_t act;
    bool quantised;          /* what the second product reads */
    uint32_t n_ff;
    void *ff;
} gated_job_t;

/* Rows [row, row + n) of gate and up for a few tokens, and what they activate. */
static void gated_pass(const gated_job_t *job, kri_exec_own_t *own, size_t row, size_t n,
                       size_t token, size_t n_tokens) {
    const kri_kernels_t *kernels = job->linear.exec->kernels;
    const kri_weight_part_t *parts = job->linear.w->parts;
    const size_t begin = row / KRI_GROUP_ROWS, end = kri_ceil_div(row + n, KRI_GROUP_ROWS);
    kri_gated_act_fn *act =
        job->act == KRI_ACT_SILU ? kernels->gated_silu : kernels->gated_gelu;
    kri_linear_part(&job->linear, &parts[0], begin, end, token, n_tokens, own->gate, n);
    kri_linear_part(&job->linear, &parts[1], begin, end, token, n_tokens, own->up, n);
    for (size_t t = 0; t < n_tokens; t++) {
        float *gate = own->gate + t * n;
        const size_t at = (token + t) * job->n_ff + row;
        float *out = job->quantised ? gate : (float *)job->ff + at;
        act(gate, own->up + t * n, n, out);
        if (job->quantised)
            kernels->quant_q8(gate, n, (kri_q8_block_t *)job->ff + at / KRI_Q8_ITEMS);
    }
}

static void gated_range(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const gated_job_t *job = ctx;
    kri_exec_own_t *own = job->linear.exec->own + thread_index;
    const size_t n_rows = job->linear.n_rows;
    size_t tile = kri_linear_tile(job->linear.w);
    uint64_t begin, end;
    kri_split(job->n_ff, GATED_ROWS, thread_index, n_threads, &begin, &end);
    for (size_t token = 0; token < n_rows; token += tile) {
        const size_t tile_end = n_rows - token < tile ? n_rows : token + tile;
        const size_t n_most = tile_end - token < GATED_TOKENS ? tile_end - token : GATED_TOKENS;
        const size_t pass = KRI_OWN_GATED / n_most / GATED_ROWS * GATED_ROWS;
        for (size_t row = (size_t)begin; row < end; row += pass) {
            const size_t n = end - row < pass ? (size_t)end - row : pass;
            for (size_t t = token; t < tile_end; t += n_most) {
                gated_pass(job, own, row, n, t, tile_end - t < n_most ? tile_end - t : n_most);
            }
        }
    }
}

void kri_op_ffn(const kri_exec_t *exec, const kri_ffn_desc_t *desc, const float *x,
                uint32_t n_rows, bool accumulate, float *out) {
    if (exec->ops) {
        exec->ops->ffn(exec, desc, x, n_rows, accumulate, out);
        return;
    }
    const kri_weight_t *w = desc->gate_up, *down = desc->down;
    if (kri_exec_uses_tiles(exec, w, n_rows) && kri_exec_uses_tiles(exec, down, n_rows)) {
        kri_ffn_tiles(exec, desc, x, n_rows, accumulate, out);
        return;
    }
    const kri_acts_source_t source = {.x = x, .norm = desc->norm, .eps = desc->norm_eps};
    gated_job_t gated = {
        .linear = {.exec = exec, .w = w, .acts = kri_acts_prepare(exec, w, &source, n_rows),
                   .n_rows = n_rows},
        .act = desc->act,
        .quantised = kri_is_quantised(down->parts[0].dtype),
        .n_ff = down->n_in,
        .ff = exec->ff,
    };
    kri_exec_split(exec, (uint64_t)n_rows * w->n_in * w->n_out, gated_range, &gated);
    kri_linear_job_t job = {
        .exec = exec, .w = down, .acts = {.f32 = exec->ff, .q8 = exec->ff}, .n_rows = n_rows,
        .accumulate = accumulate ? 1u : 0u, .out = out, .out_stride = down->n_out,
    };
    kri_linear_run(&job);
}

/* exec_tile.c: linear over the matrix unit: for prompts, on machines that have one and when the
 * caller does not ask for results that are the same in every batch. Activations become bf16 tiles
 * once for all threads; threads take panels of weight rows from a shared counter, because which
 * thread multiplies what changes no bit. Gated activations go from the first product of a
 * feed-forward block straight into the tiles of the second. */
#include "base/checked.h"
#include "base/error.h"
#include "ops/exec_impl.h"

/* With fewer tokens most rows of a tile are empty, and the vector kernels are as fast. */
#define TOKENS_MIN 16u
/* Activations of a call that stay in the second-level cache, and the longest cut of k that the
 * kernels make of them. */
#define CALL_BYTES (1024u * 1024u)
#define CALL_K 2048u
#define PANEL_GROUPS 2u
#define PANEL_ROWS (PANEL_GROUPS * KRI_GROUP_ROWS)
/* Items a thread takes on average, so that all end together. */
#define ITEMS_EACH 6u
#define GATED_TOKENS (KRI_OWN_GATED / PANEL_ROWS)

_Static_assert(KRI_TILE_SCRATCH_FLOATS <= KRI_ATTN_SCRATCH_FLOATS, "one scratch serves both");
_Static_assert(PANEL_ROWS == KRI_TILE_K, "a gated panel is one tile deep");

bool kri_exec_uses_tiles(const kri_exec_t *exec, const kri_weight_t *w, uint32_t n_rows) {
    if (!exec->kernels->has_tiles || n_rows < TOKENS_MIN || w->n_in % KRI_TILE_K != 0 ||
        w->n_in > KRI_ATTN_SCRATCH_FLOATS) {
        return false;
    }
    for (uint32_t p = 0; p < w->n_parts; p++)
        if (w->parts[p].dtype == KR_DTYPE_F32) return false;
    return true;
}

static size_t rows_up(size_t n_rows) {
    return kri_ceil_div(n_rows, KRI_TILE_TOKENS) * KRI_TILE_TOKENS;
}

/* Where token t's row begins in tiles of n_in columns. */
static uint16_t *tile_row(uint16_t *tiles, size_t n_in, size_t t) {
    return tiles + t / KRI_TILE_TOKENS * KRI_TILE_TOKENS * n_in + t % KRI_TILE_TOKENS * KRI_TILE_K;
}

/* ---- activations --------------------------------------------------------------------------- */

typedef struct pack_job_s {
    const kri_exec_t *exec;
    kri_acts_source_t source;
    size_t n_rows, n_in;
    uint16_t *tiles;
} pack_job_t;

static void pack_range(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const pack_job_t *job = ctx;
    const kri_acts_source_t *s = &job->source;
    const kri_kernels_t *kernels = job->exec->kernels;
    float *normed = job->exec->attn_scratch + (size_t)thread_index * KRI_ATTN_SCRATCH_FLOATS;
    uint64_t begin, end;
    kri_split(rows_up(job->n_rows), 1, thread_index, n_threads, &begin, &end);
    for (size_t r = (size_t)begin; r < end; r++) {
        const float *x = NULL;
        if (r < job->n_rows) {
            x = s->x + (s->norm && s->rows ? s->rows[r] : r) * job->n_in;
            if (s->norm) {
                kernels->rms_norm(x, s->norm, s->eps, job->n_in, normed);
                x = normed;
            }
        }
        kernels->tile_pack(x, job->n_in, tile_row(job->tiles, job->n_in, r));
    }
}

/* ---- product ------------------------------------------------------------------------------- */

typedef struct multiply_job_s {
    const kri_exec_t *exec;
    const kri_weight_t *w;
    const uint16_t *tiles;
    size_t n_rows, call;  /* tokens, and those of one call */
    size_t chunk;         /* panels of an item */
    uint32_t accumulate;
    float *out;
    size_t out_stride;
    uint64_t next_item;   /* taken with atomic adds */
} multiply_job_t;

static size_t part_panels(const kri_weight_part_t *part) {
    return kri_ceil_div(part->n_out, PANEL_ROWS);
}

static size_t weight_panels(const kri_weight_t *w) {
    size_t n = 0;
    for (uint32_t p = 0; p < w->n_parts; p++) n += part_panels(&w->parts[p]);
    return n;
}

static size_t call_tokens(size_t n_in, size_t n_most) {
    const size_t k = n_in < CALL_K ? n_in : CALL_K;
    const size_t n = CALL_BYTES / (k * sizeof(uint16_t)) / KRI_TILE_K * KRI_TILE_K;
    return n < n_most ? n : n_most;
}

static size_t item_panels(size_t n_panels, uint32_t n_threads) {
    const size_t n = n_panels / ((size_t)n_threads * ITEMS_EACH);
    return n ? n : 1;
}

/* Panels [begin, end) of one part for tokens [token, token + n_tokens). */
static void part_multiply(const multiply_job_t *job, const kri_weight_part_t *part, size_t begin,
                          size_t end, size_t token, size_t n_tokens, float *out,
                          size_t out_stride, float *scratch) {
    const size_t row = begin * PANEL_ROWS, group = begin * PANEL_GROUPS;
    kri_tile_args_t args = {
        .dtype = part->dtype, .w = part->packed + group * part->group_bytes,
        .n_in = job->w->n_in, .n_rows = (end - begin) * PANEL_ROWS, .n_tokens = n_tokens,
        .tiles = job->tiles + token * job->w->n_in,
        .bias = part->bias ? part->bias + row : NULL, .accumulate = job->accumulate,
        .out = out, .out_stride = out_stride, .scratch = scratch};
    if (args.n_rows > part->n_out - row) args.n_rows = part->n_out - row;
    args.n_groups = kri_ceil_div(args.n_rows, KRI_GROUP_ROWS);
    job->exec->kernels->tile_linear(&args);
}

static void multiply_item(const multiply_job_t *job, size_t token, size_t begin, size_t end,
                          float *scratch) {
    const size_t n_tokens = job->n_rows - token < job->call ? job->n_rows - token : job->call;
    size_t first = 0; /* the part's first panel among all */
    for (uint32_t p = 0; p < job->w->n_parts; p++) {
        const kri_weight_part_t *part = &job->w->parts[p];
        const size_t n = part_panels(part);
        const size_t from = begin > first ? begin - first : 0;
        const size_t to = end < first + n ? (end > first ? end - first : 0) : n;
        float *out = job->out + token * job->out_stride + part->out_offset + from * PANEL_ROWS;
        if (from < to)
            part_multiply(job, part, from, to, token, n_tokens, out, job->out_stride, scratch);
        first += n;
    }
}

static void multiply_items(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    multiply_job_t *job = ctx;
    float *scratch = job->exec->attn_scratch + (size_t)thread_index * KRI_ATTN_SCRATCH_FLOATS;
    const size_t n_panels = weight_panels(job->w), n_chunks = kri_ceil_div(n_panels, job->chunk);
    const size_t n_items = n_chunks * kri_ceil_div(job->n_rows, job->call);
    (void)n_threads;
    for (;;) {
        const uint64_t item = __atomic_fetch_add(&job->next_item, 1, __ATOMIC_RELAXED);
        if (item >= n_items) return;
        const size_t begin = (size_t)item % n_chunks * job->chunk;
        const size_t end = n_panels - begin < job->chunk ? n_panels : begin + job->chunk;
        multiply_item(job, (size_t)item / n_chunks * job->call, begin, end, scratch);
    }
}

static void multiply_run(multiply_job_t *job, size_t call_most) {
    const kri_weight_t *w = job->w;
    job->call = call_tokens(w->n_in, call_most);
    job->chunk = item_panels(weight_panels(w) * kri_ceil_div(job->n_rows, job->call),
                             job->exec->n_threads);
    kri_exec_run(job->exec, (uint64_t)job->n_rows * w->n_in * w->n_out, multiply_items, job);
}

static void pack_run(const kri_exec_t *exec, const kri_acts_source_t *source, size_t n_rows,
                     size_t n_in) {
    pack_job_t pack = {exec, *source, n_rows, n_in, exec->tiles};
    KR_ASSERT(exec->tiles != NULL);
    kri_exec_split(exec, (uint64_t)n_rows * n_in, pack_range, &pack);
}

void kri_linear_tiles(const kri_exec_t *exec, const kri_weight_t *w,
                      const kri_acts_source_t *source, uint32_t n_rows, bool accumulate,
                      float *out, size_t out_stride) {
    pack_run(exec, source, n_rows, w->n_in);
    multiply_job_t job = {.exec = exec, .w = w, .tiles = exec->tiles, .n_rows = n_rows,
                          .accumulate = accumulate ? 1u : 0u, .out = out,
                          .out_stride = out_stride};
    multiply_run(&job, KRI_TILE_TOKENS_MAX);
}

/* ---- feed-forward -------------------------------------------------------------------------- */

typedef struct gated_job_s {
    multiply_job_t linear; /* gate_up; nothing is written to its out */
    kri_gated_act_fn *act;
    size_t n_ff;
    uint16_t *ff;          /* tiles of n_ff columns */
} gated_job_t;

/* One panel of gate and of up for one call's tokens, and what they activate. */
static void gated_panel(const gated_job_t *job, size_t panel, size_t token, size_t n_tokens,
                        kri_exec_own_t *own, float *scratch) {
    const multiply_job_t *linear = &job->linear;
    const kri_weight_part_t *parts = linear->w->parts;
    const kri_kernels_t *kernels = linear->exec->kernels;
    uint16_t *ff = job->ff + panel * KRI_TILE_ITEMS;
    part_multiply(linear, &parts[0], panel, panel + 1, token, n_tokens, own->gate, PANEL_ROWS,
                  scratch);
    part_multiply(linear, &parts[1], panel, panel + 1, token, n_tokens, own->up, PANEL_ROWS,
                  scratch);
    job->act(own->gate, own->up, n_tokens * PANEL_ROWS, own->gate);
    for (size_t t = 0; t < rows_up(n_tokens); t++) {
        const float *gated = t < n_tokens ? own->gate + t * PANEL_ROWS : NULL;
        kernels->tile_pack(gated, PANEL_ROWS, tile_row(ff, job->n_ff, token + t));
    }
}

static void gated_items(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    gated_job_t *job = ctx;
    multiply_job_t *linear = &job->linear;
    float *scratch = linear->exec->attn_scratch + (size_t)thread_index * KRI_ATTN_SCRATCH_FLOATS;
    kri_exec_own_t *own = linear->exec->own + thread_index;
    const size_t n_panels = job->n_ff / PANEL_ROWS;
    const size_t n_items = n_panels * kri_ceil_div(linear->n_rows, linear->call);
    (void)n_threads;
    for (;;) {
        const uint64_t item = __atomic_fetch_add(&linear->next_item, 1, __ATOMIC_RELAXED);
        if (item >= n_items) return;
        const size_t token = (size_t)item / n_panels * linear->call;
        const size_t left = linear->n_rows - token;
        gated_panel(job, (size_t)item % n_panels, token,
                    left < linear->call ? left : linear->call, own, scratch);
    }
}

void kri_ffn_tiles(const kri_exec_t *exec, const kri_ffn_desc_t *desc, const float *x,
                   uint32_t n_rows, bool accumulate, float *out) {
    const kri_weight_t *w = desc->gate_up, *down = desc->down;
    const kri_acts_source_t source = {.x = x, .norm = desc->norm, .eps = desc->norm_eps};
    pack_run(exec, &source, n_rows, w->n_in);
    gated_job_t gated = {
        .linear = {.exec = exec, .w = w, .tiles = exec->tiles, .n_rows = n_rows,
                   .call = call_tokens(w->n_in, GATED_TOKENS)},
        .act = desc->act == KRI_ACT_SILU ? exec->kernels->gated_silu : exec->kernels->gated_gelu,
        .n_ff = down->n_in, .ff = exec->ff,
    };
    kri_exec_run(exec, (uint64_t)n_rows * w->n_in * w->n_out, gated_items, &gated);
    multiply_job_t job = {.exec = exec, .w = down, .tiles = exec->ff, .n_rows = n_rows,
                          .accumulate = accumulate ? 1u : 0u, .out = out,
                          .out_stride = down->n_out};
    multiply_run(&job, KRI_TILE_TOKENS_MAX);
}

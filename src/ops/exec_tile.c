/* exec_tile.c: linear over the matrix unit: for prompts, on machines that have one and when the
 * caller does not ask for results that are the same in every batch. Activations are turned into
 * bf16 tiles once for all threads; threads share the weights' rows in panels of two groups. */
#include "base/checked.h"
#include "base/error.h"
#include "ops/exec_impl.h"

/* With fewer tokens most rows of a tile are empty, and the vector kernels are as fast. */
#define TOKENS_MIN 16u
/* Activations of a call that stay in the second-level cache, and the longest cut of k the kernels
 * make of them. */
#define CALL_BYTES (1024u * 1024u)
#define CALL_K 2048u
#define PANEL_GROUPS 2u

_Static_assert(KRI_TILE_SCRATCH_FLOATS <= KRI_ATTN_SCRATCH_FLOATS, "one scratch serves both");

bool kri_exec_uses_tiles(const kri_exec_t *exec, const kri_weight_t *w, uint32_t n_rows) {
    if (!exec->kernels->has_tiles || n_rows < TOKENS_MIN || w->n_in % KRI_TILE_K != 0)
        return false;
    for (uint32_t p = 0; p < w->n_parts; p++)
        if (w->parts[p].dtype == KR_DTYPE_F32) return false;
    return true;
}

typedef struct tile_job_s {
    const kri_exec_t *exec;
    const kri_weight_t *w;
    const float *x;
    uint32_t n_rows, accumulate;
    float *out;
    size_t out_stride;
} tile_job_t;

static void pack_range(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const tile_job_t *job = ctx;
    const size_t n_in = job->w->n_in;
    uint64_t begin, end;
    kri_split(job->n_rows, KRI_TILE_TOKENS, thread_index, n_threads, &begin, &end);
    if (begin < end)
        job->exec->kernels->tile_pack(job->x + begin * n_in, n_in, (size_t)(end - begin),
                                      job->exec->tiles + begin * n_in);
}

/* Groups [begin, end) of one part, all tokens. */
static void part_multiply(const tile_job_t *job, const kri_weight_part_t *part, size_t begin,
                          size_t end, float *scratch) {
    const size_t n_in = job->w->n_in, row = begin * KRI_GROUP_ROWS;
    const size_t k = n_in < CALL_K ? n_in : CALL_K;
    size_t call = CALL_BYTES / (k * sizeof(uint16_t)) / KRI_TILE_K * KRI_TILE_K;
    if (call > KRI_TILE_TOKENS_MAX) call = KRI_TILE_TOKENS_MAX;
    kri_tile_args_t args = {.dtype = part->dtype, .n_in = n_in, .n_groups = end - begin,
                            .w = part->packed + begin * part->group_bytes,
                            .bias = part->bias ? part->bias + row : NULL,
                            .accumulate = job->accumulate, .out_stride = job->out_stride,
                            .scratch = scratch};
    args.n_rows = part->n_out - row;
    if (args.n_rows > args.n_groups * KRI_GROUP_ROWS)
        args.n_rows = args.n_groups * KRI_GROUP_ROWS;
    for (size_t token = 0; token < job->n_rows; token += call) {
        args.n_tokens = job->n_rows - token < call ? job->n_rows - token : call;
        args.tiles = job->exec->tiles + token * n_in;
        args.out = job->out + token * job->out_stride + part->out_offset + row;
        job->exec->kernels->tile_linear(&args);
    }
}

static void multiply_range(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const tile_job_t *job = ctx;
    const kri_weight_t *w = job->w;
    float *scratch = job->exec->attn_scratch + (size_t)thread_index * KRI_ATTN_SCRATCH_FLOATS;
    /* Panels of all parts in a row; a panel does not cross parts. */
    uint64_t n_panels = 0, first = 0, begin, end;
    for (uint32_t p = 0; p < w->n_parts; p++)
        n_panels += kri_ceil_div(w->parts[p].n_out, KRI_GROUP_ROWS * PANEL_GROUPS);
    kri_split(n_panels, 1, thread_index, n_threads, &begin, &end);
    for (uint32_t p = 0; p < w->n_parts; p++) {
        const kri_weight_part_t *part = &w->parts[p];
        const uint64_t n = kri_ceil_div(part->n_out, KRI_GROUP_ROWS * PANEL_GROUPS);
        const size_t n_groups = kri_ceil_div(part->n_out, KRI_GROUP_ROWS);
        const uint64_t from = begin > first ? begin - first : 0;
        const uint64_t to = end < first + n ? (end > first ? end - first : 0) : n;
        if (from < to) {
            size_t group_end = (size_t)to * PANEL_GROUPS;
            if (group_end > n_groups) group_end = n_groups;
            part_multiply(job, part, (size_t)from * PANEL_GROUPS, group_end, scratch);
        }
        first += n;
    }
}

void kri_exec_linear_tiles(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                           uint32_t n_rows, bool accumulate, float *out, size_t out_stride) {
    const uint64_t n_items = (uint64_t)n_rows * w->n_in;
    tile_job_t job = {exec, w, x, n_rows, accumulate ? 1u : 0u, out, out_stride};
    KR_ASSERT(exec->tiles != NULL);
    kri_exec_run(exec, n_items, pack_range, &job);
    kri_exec_run(exec, n_items * w->n_out, multiply_range, &job);
}

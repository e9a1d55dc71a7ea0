/* exec_attention.c: the two attention ops: rotate and append, then attend. Work is cut into
 * (sequence, tile of query rows, KV head) items that threads take from a shared counter, because
 * a causal tile's cost grows with its position. Where items are few (decode, a slice of a prompt
 * behind many keys) they are cut further into spans of keys, and the last thread to finish a span
 * of an item merges all of them in their fixed order. Neither the cut nor the thread changes a bit
 * (kernels.h). */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "ops/exec.h"
#include "ops/exec_impl.h"
#include "ops/pack.h"

/* ---- rotate and append --------------------------------------------------------------------- */

typedef struct append_job_s {
    const kri_exec_t *exec;
    const kri_attn_desc_t *desc;
    const kri_kv_group_t *group;
    const float *cos_sin;
    float *qkv;
    size_t row_floats;
} append_job_t;

static void norm_heads(const append_job_t *job, const float *w, uint32_t n_heads, float *x) {
    size_t head_dim = job->desc->head_dim;
    if (!w) return;
    for (uint32_t h = 0; h < n_heads; h++) {
        float *head = x + h * head_dim;
        job->exec->kernels->rms_norm(head, w, job->desc->norm_eps, head_dim, head);
    }
}

/* Walsh-Hadamard transform of each head, in blocks of the largest power of two that divides it.
 * Orthogonal, so q.k stays what it was, but no dimension stands out any more: keys have a few
 * large ones, which would leave the others few of an 8-bit key's levels (Ashkboos et al. 2024). */
static void mix_heads(size_t head_dim, uint32_t n_heads, float *x) {
    size_t block = head_dim & (~head_dim + 1), n = n_heads * head_dim;
    float scale = 1.0f / sqrtf((float)block);
    for (size_t half = 1; half < block; half *= 2) {
        for (size_t i = 0; i < n; i += 2 * half) {
            float *restrict low = x + i, *restrict high = low + half;
            for (size_t k = 0; k < half; k++) {
                float a = low[k], b = high[k];
                low[k] = a + b;
                high[k] = a - b;
            }
        }
    }
    for (size_t i = 0; i < n; i++) x[i] *= scale;
}

/* The key to store in a slot of a page: itself, or its difference to the key of slot 0 where that
 * is smaller (true). Biases of the projection give neighbouring keys much in common, which would
 * use up the levels. */
static bool differ_i8(const uint8_t *page, kri_kv_place_t place, size_t slot, size_t n,
                      const float *k, float *difference) {
    float most = 0, most_of_difference = 0;
    uint16_t half;
    if (slot == 0) return false;
    memcpy(&half, page + place.scales, sizeof half);
    float scale = kri_f16_to_f32(half);
    for (size_t i = 0; i < n; i++) {
        int first = page[place.k + kri_i8_key_at(0, i)] - KRI_I8_KEY_BIAS;
        difference[i] = k[i] - scale * (float)first;
        most = fmaxf(most, fabsf(k[i]));
        most_of_difference = fmaxf(most_of_difference, fabsf(difference[i]));
    }
    return isfinite(scale) && most_of_difference < most;
}

/* One key and value of one head to their places in a page as integers with a scale each. Bytes are
 * stored one by one or four by four: another thread may be storing the neighbours of the page. */
static void store_i8(const append_job_t *job, const float *k, const float *v, size_t slot,
                     uint8_t *page, kri_kv_place_t place) {
    const uint32_t head_dim = job->desc->head_dim;
    int8_t q[KRI_HEAD_DIM_MAX];
    float difference[KRI_HEAD_DIM_MAX];
    uint16_t scale;
    bool is_difference = differ_i8(page, place, slot, head_dim, k, difference);
    job->exec->kernels->kv_store_i8(is_difference ? difference : k, head_dim, q, &scale);
    if (is_difference) scale |= KRI_I8_DIFFERENCE;
    memcpy(page + place.scales + 2 * slot, &scale, sizeof scale);
    for (size_t i = 0; i < head_dim; i++)
        page[place.k + kri_i8_key_at(slot, i)] = (uint8_t)(q[i] + KRI_I8_KEY_BIAS);
    job->exec->kernels->kv_store_i8(v, head_dim, q, &scale);
    memcpy(page + place.scales + 2 * (KRI_PAGE_TOKENS + slot), &scale, sizeof scale);
    uint8_t *to = page + place.v + kri_i8_value_at(head_dim, slot, 0);
    for (size_t i = 0; i < head_dim; i++) to[4 * i] = (uint8_t)q[i];
}

static void store_floats(const append_job_t *job, const float *k, const float *v, size_t slot,
                         uint8_t *page, kri_kv_place_t place) {
    const kri_kernels_t *kernels = job->exec->kernels;
    const uint32_t head_dim = job->desc->head_dim;
    kri_kv_store_fn *store =
        job->group->dtype == KR_DTYPE_F32 ? kernels->kv_store_f32 : kernels->kv_store_f16;
    size_t at = slot * kri_kv_block_bytes(job->group->dtype, head_dim) / KRI_PAGE_TOKENS;
    store(k, head_dim, page + place.k + at);
    store(v, head_dim, page + place.v + at);
}

/* Whether queries and keys are transformed before they become 8-bit integers. */
static bool is_mixed(const kri_exec_t *exec, const kri_kv_group_t *group) {
    return exec->attn_qk == KR_ATTN_QK_INT8 || group->dtype == KR_DTYPE_I8;
}

static void append_row(const append_job_t *job, const kri_step_seq_t *seq, uint32_t row) {
    const kri_attn_desc_t *desc = job->desc;
    const kri_kernels_t *kernels = job->exec->kernels;
    const kri_kv_group_t *group = job->group;
    kri_rope_fn *rope = desc->rope_pair ? kernels->rope_pair : kernels->rope_half;
    size_t head_dim = desc->head_dim;
    float *q = job->qkv + row * job->row_floats;
    float *k = q + desc->n_heads * head_dim, *v = k + desc->n_kv_heads * head_dim;
    norm_heads(job, desc->q_norm, desc->n_heads, q);
    norm_heads(job, desc->k_norm, desc->n_kv_heads, k);
    if (desc->n_rot > 0) {
        const float *cos_sin = job->cos_sin + (size_t)row * desc->n_rot;
        rope(q, desc->n_heads, head_dim, desc->n_rot, cos_sin);
        rope(k, desc->n_kv_heads, head_dim, desc->n_rot, cos_sin);
    }
    if (is_mixed(job->exec, group)) {
        mix_heads(head_dim, desc->n_heads, q);
        mix_heads(head_dim, desc->n_kv_heads, k);
    }
    uint32_t pos = seq->pos_begin + (row - seq->row_begin);
    uint32_t page_index = seq->page_table[desc->group][pos / KRI_PAGE_TOKENS];
    uint8_t *page = group->pool + (size_t)page_index * group->page_bytes;
    for (uint32_t h = 0; h < desc->n_kv_heads; h++) {
        kri_kv_place_t place = kri_kv_place(group, desc->layer_in_group, h);
        const float *k_head = k + h * head_dim, *v_head = v + h * head_dim;
        if (group->dtype == KR_DTYPE_I8)
            store_i8(job, k_head, v_head, pos % KRI_PAGE_TOKENS, page, place);
        else
            store_floats(job, k_head, v_head, pos % KRI_PAGE_TOKENS, page, place);
    }
}

/* The first row from `row` on that a thread may start with: integer keys refer to the first one of
 * their page, so all rows of a page are one thread's. */
static uint32_t page_start(const kri_step_seq_t *seq, kr_dtype_t dtype, uint64_t row) {
    uint32_t end = seq->row_begin + seq->n_rows;
    if (row <= seq->row_begin) return seq->row_begin;
    if (dtype == KR_DTYPE_I8) {
        uint64_t pos = seq->pos_begin + (row - seq->row_begin);
        row += (KRI_PAGE_TOKENS - pos % KRI_PAGE_TOKENS) % KRI_PAGE_TOKENS;
    }
    return row < end ? (uint32_t)row : end;
}

static void append_rows(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const append_job_t *job = ctx;
    const kri_step_t *step = job->exec->step;
    uint64_t begin, end;
    kri_split(step->n_rows, 1, thread_index, n_threads, &begin, &end);
    for (uint32_t s = 0; s < step->n_seqs; s++) {
        const kri_step_seq_t *seq = &step->seqs[s];
        uint32_t row = page_start(seq, job->group->dtype, begin);
        uint32_t row_end = page_start(seq, job->group->dtype, end);
        for (; row < row_end; row++) append_row(job, seq, row);
    }
}

void kri_op_rope_append(const kri_exec_t *exec, const kri_attn_desc_t *desc,
                        const float *cos_sin, float *qkv) {
    if (exec->ops) {
        exec->ops->rope_append(exec, desc, cos_sin, qkv);
        return;
    }
    append_job_t job = {
        .exec = exec,
        .desc = desc,
        .group = &exec->step->groups[desc->group],
        .cos_sin = cos_sin,
        .qkv = qkv,
        .row_floats = ((size_t)desc->n_heads + 2 * (size_t)desc->n_kv_heads) * desc->head_dim,
    };
    uint64_t work = exec->step->n_rows > 1 ? exec->step->n_rows * job.row_floats : 0;
    kri_exec_run(exec, work, append_rows, &job);
}

/* ---- attention ----------------------------------------------------------------------------- */

/* Items, or spans of them, per thread that keep all threads busy to the end. */
#define UNITS_PER_THREAD 4u
/* Items of a step that is cut into spans. */
#define ITEMS_MAX (UNITS_PER_THREAD * KRI_THREADS_MAX)
/* Query rows of a tile are not made fewer than this to get more items. */
#define TILE_ROWS_MIN 16u

typedef struct attn_job_s {
    const kri_exec_t *exec;
    const kri_attn_desc_t *desc;
    const kri_kv_group_t *group;
    kri_attention_fn *kernel;
    const float *qkv;
    float *out;
    uint32_t heads_per_kv;   /* query heads that share a KV head */
    uint32_t heads_per_item; /* as many of them as a tile holds */
    uint32_t rows_per_item;
    uint32_t n_head_items;   /* items side by side: KV heads x slices of their query heads */
    float *partials;         /* of cut items, one item after the other */
    uint64_t next_unit;      /* taken with atomic adds: an item, or a span of one when cut */
    uint32_t n_spans_done[ITEMS_MAX]; /* by item, when cut */
} attn_job_t;

/* Where a walk over the units of a job stands; units only go up. */
typedef struct attn_cursor_s {
    uint32_t seq;
    uint64_t first;    /* unit: the first one of the sequence, or of the item when cut */
    uint32_t item;     /* of the sequence, when cut */
    uint32_t n_before; /* items before, of all sequences, when cut */
    size_t partials;   /* floats before, when cut */
} attn_cursor_t;

static uint64_t seq_n_items(const attn_job_t *job, const kri_step_seq_t *seq) {
    return (uint64_t)kri_ceil_div(seq->n_rows, job->rows_per_item) * job->n_head_items;
}

/* The kernel's arguments for item `item` of a sequence, stage KRI_ATTN_WHOLE. */
static kri_attn_args_t item_args(const attn_job_t *job, const kri_step_seq_t *seq, uint64_t item,
                                 float *scratch) {
    const kri_attn_desc_t *desc = job->desc;
    const kri_kv_group_t *group = job->group;
    uint32_t n_slices = job->n_head_items / desc->n_kv_heads;
    uint32_t head_item = (uint32_t)(item % job->n_head_items);
    uint32_t kv_head = head_item / n_slices;
    uint32_t head_begin = head_item % n_slices * job->heads_per_item; /* within the KV head */
    uint32_t n_heads = job->heads_per_kv - head_begin;
    /* The last rows see the most keys: they go first, so that no thread is left with them. */
    uint64_t n_tiles = kri_ceil_div(seq->n_rows, job->rows_per_item);
    uint64_t tile = n_tiles - 1 - item / job->n_head_items;
    uint32_t row = (uint32_t)tile * job->rows_per_item, n_rows = seq->n_rows - row;
    if (n_heads > job->heads_per_item) n_heads = job->heads_per_item;
    if (n_rows > job->rows_per_item) n_rows = job->rows_per_item;

    size_t q_stride = ((size_t)desc->n_heads + 2 * (size_t)desc->n_kv_heads) * desc->head_dim;
    size_t out_stride = (size_t)desc->n_heads * desc->head_dim;
    size_t column = ((size_t)kv_head * job->heads_per_kv + head_begin) * desc->head_dim;
    size_t batch_row = (size_t)seq->row_begin + row;
    kri_kv_place_t place = kri_kv_place(group, desc->layer_in_group, kv_head);
    return (kri_attn_args_t){
        .q = job->qkv + batch_row * q_stride + column,
        .q_stride = q_stride,
        .out = job->out + batch_row * out_stride + column,
        .out_stride = out_stride,
        .pool = group->pool,
        .page_bytes = group->page_bytes,
        .k_offset = place.k,
        .v_offset = place.v,
        .scale_offset = place.scales,
        .page_table = seq->page_table[desc->group],
        .n_rows = n_rows,
        .n_heads = n_heads,
        .head_dim = desc->head_dim,
        .pos_begin = seq->pos_begin + row,
        .window = group->window,
        .scale = desc->scale,
        .softcap = desc->softcap,
        .scratch = scratch,
    };
}

static uint32_t args_n_spans(const kri_attn_args_t *args) {
    uint32_t begin, end;
    kri_attn_spans(args->pos_begin, args->n_rows, args->window, &begin, &end);
    return end - begin;
}

static size_t args_partial_floats(const kri_attn_args_t *args) {
    return (size_t)args_n_spans(args) * args->n_rows * args->n_heads *
           KRI_ATTN_PARTIAL_FLOATS(args->head_dim);
}

static float *thread_scratch(const attn_job_t *job, uint32_t thread_index) {
    return job->exec->attn_scratch + (size_t)thread_index * KRI_ATTN_SCRATCH_FLOATS;
}

static void attend_items(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    attn_job_t *job = ctx;
    const kri_step_t *step = job->exec->step;
    attn_cursor_t at = {.seq = 0};
    (void)n_threads;
    for (;;) {
        uint64_t unit = __atomic_fetch_add(&job->next_unit, 1, __ATOMIC_RELAXED);
        while (at.seq < step->n_seqs && unit - at.first >= seq_n_items(job, &step->seqs[at.seq]))
            at.first += seq_n_items(job, &step->seqs[at.seq++]);
        if (at.seq == step->n_seqs) return;
        kri_attn_args_t args = item_args(job, &step->seqs[at.seq], unit - at.first,
                                         thread_scratch(job, thread_index));
        job->kernel(&args);
    }
}

/* ---- items cut into spans ------------------------------------------------------------------ */

/* Moves to the item that holds the unit and gives its arguments; false past the last item. */
static bool find_unit(const attn_job_t *job, uint64_t unit, float *scratch, attn_cursor_t *at,
                      kri_attn_args_t *args) {
    const kri_step_t *step = job->exec->step;
    while (at->seq < step->n_seqs) {
        const kri_step_seq_t *seq = &step->seqs[at->seq];
        for (; at->item < seq_n_items(job, seq); at->item++, at->n_before++) {
            *args = item_args(job, seq, at->item, scratch);
            if (unit - at->first < args_n_spans(args)) return true;
            at->first += args_n_spans(args);
            at->partials += args_partial_floats(args);
        }
        at->seq++;
        at->item = 0;
    }
    return false;
}

static void attend_spans(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    attn_job_t *job = ctx;
    attn_cursor_t at = {.seq = 0};
    (void)n_threads;
    for (;;) {
        uint64_t unit = __atomic_fetch_add(&job->next_unit, 1, __ATOMIC_RELAXED);
        kri_attn_args_t args;
        if (!find_unit(job, unit, thread_scratch(job, thread_index), &at, &args)) return;
        uint32_t n_spans = args_n_spans(&args), begin, end;
        if (n_spans > 1) {
            kri_attn_spans(args.pos_begin, args.n_rows, args.window, &begin, &end);
            args.span = begin + (uint32_t)(unit - at.first);
            args.stage = KRI_ATTN_PARTIAL;
            args.partials = job->partials + at.partials;
        }
        job->kernel(&args);
        if (n_spans > 1 && __atomic_add_fetch(&job->n_spans_done[at.n_before], 1,
                                              __ATOMIC_ACQ_REL) == n_spans) {
            args.stage = KRI_ATTN_MERGE;
            job->kernel(&args);
        }
    }
}

/* Sequences with a prompt chunk in the step; next to them a single row is nothing. */
static bool is_work(const kri_step_t *step, const kri_step_seq_t *seq) {
    return seq->n_rows > 1 || step->n_rows == step->n_seqs;
}

static uint64_t work_n_items(const attn_job_t *job) {
    const kri_step_t *step = job->exec->step;
    uint64_t n_items = 0;
    for (uint32_t s = 0; s < step->n_seqs; s++) {
        if (is_work(step, &step->seqs[s])) n_items += seq_n_items(job, &step->seqs[s]);
    }
    return n_items;
}

/* Units of that work when all items of the step are cut into spans; 0 when there is no room. */
static uint64_t work_n_spans(const attn_job_t *job) {
    const kri_exec_t *exec = job->exec;
    const kri_step_t *step = exec->step;
    uint64_t n_items = 0, n_units = 0;
    size_t n_floats = 0;
    for (uint32_t s = 0; s < step->n_seqs; s++) {
        const kri_step_seq_t *seq = &step->seqs[s];
        uint64_t n_seq_items = seq_n_items(job, seq);
        n_items += n_seq_items;
        if (n_items > ITEMS_MAX) return 0;
        for (uint64_t i = 0; i < n_seq_items; i++) {
            kri_attn_args_t args = item_args(job, seq, i, NULL);
            n_floats += args_partial_floats(&args);
            if (is_work(step, seq)) n_units += args_n_spans(&args);
        }
    }
    return n_floats <= (size_t)exec->n_threads * KRI_ATTN_PARTIALS_FLOATS ? n_units : 0;
}

/* ---- the op -------------------------------------------------------------------------------- */

/* The vector kernels handle heads of whole 16-float vectors; others take the reference. */
static kri_attention_fn *choose_kernel(const kri_exec_t *exec, kr_dtype_t dtype,
                                       uint32_t head_dim) {
    const kri_kernels_t *kernels = exec->kernels;
    bool is_vector = head_dim % 16 == 0, is_f32 = dtype == KR_DTYPE_F32;
    int32_t attn_qk = exec->attn_qk;
    if (attn_qk == KR_ATTN_QK_DEFAULT && kernels->has_dot16 && !is_f32)
        attn_qk = KR_ATTN_QK_INT16;
    if (dtype == KR_DTYPE_I8) return is_vector ? kernels->attention_i8 : kri_attention_i8_ref;
    if (attn_qk == KR_ATTN_QK_INT8) {
        if (!is_vector) return is_f32 ? kri_attention_f32_qk8_ref : kri_attention_f16_qk8_ref;
        return is_f32 ? kernels->attention_f32_qk8 : kernels->attention_f16_qk8;
    }
    if (attn_qk == KR_ATTN_QK_INT16) {
        if (!is_vector) return is_f32 ? kri_attention_f32_qk16_ref : kri_attention_f16_qk16_ref;
        return is_f32 ? kernels->attention_f32_qk16 : kernels->attention_f16_qk16;
    }
    if (!is_vector) return is_f32 ? kri_attention_f32_ref : kri_attention_f16_ref;
    return is_f32 ? kernels->attention_f32 : kernels->attention_f16;
}

/* Multiplications of the scores, for the choice between inline and pool. */
static uint64_t attention_work(const attn_job_t *job) {
    const kri_step_t *step = job->exec->step;
    uint64_t n_keys = 0, window = job->group->window;
    for (uint32_t s = 0; s < step->n_seqs; s++) {
        uint64_t seen = (uint64_t)step->seqs[s].pos_begin + step->seqs[s].n_rows;
        if (window && seen > window) seen = window;
        n_keys += seen * step->seqs[s].n_rows;
    }
    return n_keys * job->desc->n_heads * job->desc->head_dim;
}

/* Large tiles convert a block of keys and values for many rows. Where they are too few to keep all
 * threads busy to the end they are cut into spans of keys, and where that brings too few as well
 * they are made smaller. Returns whether to cut. */
static bool choose_tile(attn_job_t *job) {
    const kri_attn_desc_t *desc = job->desc;
    const uint64_t n_enough = (uint64_t)UNITS_PER_THREAD * job->exec->n_threads;
    uint32_t n_queries = kri_attn_tile_queries(desc->head_dim);
    job->heads_per_item = job->heads_per_kv < n_queries ? job->heads_per_kv : n_queries;
    job->rows_per_item = n_queries / job->heads_per_item;
    job->n_head_items =
        desc->n_kv_heads * (uint32_t)kri_ceil_div(job->heads_per_kv, job->heads_per_item);
    if (job->exec->n_threads == 1) return false;
    for (;;) {
        if (work_n_items(job) >= n_enough) return false;
        uint64_t n_spans = work_n_spans(job);
        if (n_spans >= n_enough) return true;
        if (job->rows_per_item / 2 < TILE_ROWS_MIN) return n_spans > work_n_items(job);
        job->rows_per_item /= 2;
    }
}

void kri_op_attention(const kri_exec_t *exec, const kri_attn_desc_t *desc, const float *qkv,
                      float *out) {
    if (exec->ops) {
        exec->ops->attention(exec, desc, qkv, out);
        return;
    }
    attn_job_t job = {
        .exec = exec,
        .desc = desc,
        .group = &exec->step->groups[desc->group],
        .qkv = qkv,
        .out = out,
        .heads_per_kv = desc->n_heads / desc->n_kv_heads,
        .partials = exec->attn_scratch + (size_t)exec->n_threads * KRI_ATTN_SCRATCH_FLOATS,
    };
    KR_ASSERT(desc->head_dim <= KRI_HEAD_DIM_MAX);
    job.kernel = choose_kernel(exec, job.group->dtype, desc->head_dim);
    bool is_cut = choose_tile(&job);
    kri_exec_run(exec, attention_work(&job), is_cut ? attend_spans : attend_items, &job);
}

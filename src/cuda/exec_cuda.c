/* exec_cuda.c: see exec_cuda.h. */
#include "cuda/exec_cuda.h"

#include "base/checked.h"
#include "base/error.h"
#include "ops/pack.h"

#define UNPACKED_BYTES ((size_t)32 << 20) /* of bf16 weights: they stay in the second-level cache */
#define UNPACKED_ROWS 128u                /* whole tiles of a product */
#define BLOCKS_EACH KRI_CUDA_COUNTERS(1u) /* blocks of decode attention that a processor takes */
#define SPLIT_PAGES 4u                    /* of a split, at least: one for each warp */
#define FLOAT_WARPS 8u                    /* of a block of matvec_float.cu */
#define WARPS_EACH 24u                    /* of it per multiprocessor, if k can be shared */
#define ROW_BLOCKS_EACH 3u                /* blocks of row_*.cu that a multiprocessor takes */
#define ROW_BYTES_MAX 225280u             /* of shared memory: kernels.def */
#define ROW_BYTES_FIXED 6144u             /* of it in a block beside what it is given */
#define DECODE_THREADS 128u
#define TOGETHER_BYTES (16u << 20)       /* of keys and values in the second-level cache */

_Static_assert(sizeof(kri_cu_q8_t) == sizeof(kri_q8_block_t), "blocks are read by both sides");
_Static_assert(KRI_CU_GROUPS == KRI_KV_GROUPS_MAX && KRI_CU_PARTS == KRI_WEIGHT_PARTS_MAX &&
               KRI_CU_HEAD_DIM == KRI_HEAD_DIM_MAX && KRI_GROUP_ROWS == 16 &&
               KRI_PAGE_TOKENS == 16, "kernels are built for these");
_Static_assert((int)KRI_CU_F32 == (int)KR_DTYPE_F32 && (int)KRI_CU_BF16 == (int)KR_DTYPE_BF16 &&
               (int)KRI_CU_Q4_0 == (int)KR_DTYPE_Q4_0 && (int)KRI_CU_Q6_K == (int)KR_DTYPE_Q6_K &&
               (int)KRI_CU_I8 == (int)KR_DTYPE_I8 && (int)KRI_CU_F8 == (int)KR_DTYPE_F8,
               "types of kr.h");

static kri_cuda_exec_t *own(const kri_exec_t *exec) { return exec->device; }

static uint32_t ceil32(uint64_t a, uint64_t b) { return (uint32_t)kri_ceil_div(a, b); }

static kr_status_t go_on(const kri_exec_t *exec) {
    const kri_cuda_exec_t *d = own(exec);
    if (d->stream->error) return KR_E_DEVICE_LOST;
    return d->cancel && __atomic_load_n(d->cancel, __ATOMIC_RELAXED) ? KR_E_CANCELLED : KR_OK;
}

/* ---- rows ----------------------------------------------------------------------------------- */

static void embed(const kri_exec_t *exec, const kri_tensor_t *table, float scale, float *out) {
    const kri_cu_embed_t args = {
        .tokens = own(exec)->step.tokens, .table = table->data,
        .row_bytes = table->n_bytes / table->shape[0], .dtype = (uint32_t)table->dtype,
        .n = (uint32_t)table->shape[1], .scale = scale, .out = out};
    kri_cuda_launch(own(exec)->stream, KRI_CUDA_embed,
                    (kri_cuda_grid_t){.x = exec->step->n_rows, .n_threads = 256}, &args);
}

/* Of a row in a thread's registers where it fits: KRI_CU_NORM_ITEMS. */
static uint32_t row_threads(uint32_t n) {
    const uint32_t wanted = ceil32(n, 32 * KRI_CU_NORM_ITEMS) * 32, least = n < 512 ? 32 : 128;
    return wanted > 1024 ? 1024 : wanted > least ? wanted : least;
}

static void acts_norm(const kri_exec_t *exec, const kri_cu_acts_t *args, uint32_t n_rows) {
    kri_cuda_launch(own(exec)->stream, KRI_CUDA_acts_norm,
                    (kri_cuda_grid_t){.x = n_rows, .n_threads = row_threads(args->n)}, args);
}

static void acts_elements(const kri_exec_t *exec, kri_cuda_kernel_t kernel,
                          const kri_cu_acts_t *args, uint32_t n_rows) {
    kri_cuda_launch(own(exec)->stream, kernel,
                    (kri_cuda_grid_t){.x = ceil32(args->n, 1024), .y = n_rows, .n_threads = 256},
                    args);
}

static void rms_norm(const kri_exec_t *exec, const float *x, const float *w, float eps,
                     const uint32_t *rows, uint32_t n_rows, uint32_t n, float *out) {
    acts_norm(exec,
              &(kri_cu_acts_t){.x = x, .w = w, .eps = eps, .rows = rows, .n = n, .f32 = out},
              n_rows);
}

static void gated_act(const kri_exec_t *exec, kri_act_t act, const float *gate_up,
                      uint32_t n_rows, uint32_t n_ff, float *out) {
    acts_elements(exec, KRI_CUDA_acts_gated,
                  &(kri_cu_acts_t){.x = gate_up, .n = n_ff, .act = (uint32_t)act, .f32 = out},
                  n_rows);
}

static void norm_add(const kri_exec_t *exec, float *branch, const float *w, float eps,
                     uint32_t n_rows, uint32_t n, float *x) {
    const kri_cu_norm_add_t args = {.branch = branch, .w = w, .eps = eps, .n = n, .x = x};
    kri_cuda_launch(own(exec)->stream, KRI_CUDA_norm_add,
                    (kri_cuda_grid_t){.x = n_rows, .n_threads = row_threads(n)}, &args);
}

static void elements(const kri_exec_t *exec, kri_cuda_kernel_t kernel, kri_cu_elements_t args) {
    const uint32_t n_blocks = args.n < 1u << 20 ? ceil32(args.n, 256) : 4096;
    kri_cuda_launch(own(exec)->stream, kernel,
                    (kri_cuda_grid_t){.x = n_blocks, .n_threads = 256}, &args);
}

static void add(const kri_exec_t *exec, const float *x, uint32_t n_rows, uint32_t n, float *y) {
    elements(exec, KRI_CUDA_add, (kri_cu_elements_t){.x = x, .y = y, .n = (uint64_t)n_rows * n});
}

static void softcap(const kri_exec_t *exec, float cap, uint32_t n_rows, uint32_t n, float *x) {
    elements(exec, KRI_CUDA_softcap,
             (kri_cu_elements_t){.y = x, .cap = cap, .n = (uint64_t)n_rows * n});
}

static void rope_table(const kri_exec_t *exec, float base, float freq_scale,
                       const float *factors, uint32_t n_rot, float *cos_sin) {
    const kri_cu_rope_table_t args = {
        .positions = own(exec)->step.positions, .factors = factors, .base = (double)base,
        .freq_scale = (double)freq_scale, .n_pairs = n_rot / 2, .cos_sin = cos_sin};
    kri_cuda_launch(own(exec)->stream, KRI_CUDA_rope_table,
                    (kri_cuda_grid_t){.x = exec->step->n_rows, .n_threads = 64}, &args);
}

void kri_cuda_finite(kri_cuda_stream_t *stream, const float *x, uint64_t n, uint32_t *flag) {
    const kri_cu_finite_t args = {.x = x, .n = n, .flag = flag};
    const uint32_t n_blocks = n < 1u << 18 ? ceil32(n, 1024) : 256;
    kri_cuda_launch(stream, KRI_CUDA_finite,
                    (kri_cuda_grid_t){.x = n_blocks, .n_threads = 256}, &args);
}

void kri_cuda_argmax(kri_cuda_stream_t *stream, const kri_cu_argmax_t *args, uint32_t n_rows) {
    const uint32_t n_blocks = args->n < 32u * 2048 ? ceil32(args->n, 2048) : 32;
    kri_cuda_launch(stream, KRI_CUDA_argmax,
                    (kri_cuda_grid_t){.x = n_blocks, .y = n_rows, .n_threads = 256}, args);
}

/* ---- linear: one row ------------------------------------------------------------------------- */

typedef struct product_s {
    const kri_weight_t *w;
    const float *f32;
    uint32_t n_rows;
    bool accumulate;
    float *out;
    size_t out_stride;
    uint16_t *rounded; /* in place of out, as bf16, for many rows; may be NULL */
} product_t;

/* Bytes of a warp's ring; rows of a unit, of gate (and as many of up) in a gated one. */
typedef struct ring_s { uint32_t n_bytes, n_rows, n_gated; } ring_t;

static ring_t ring_of(kr_dtype_t dtype, uint32_t n_in) {
    kri_pack_layout_t l = {0};
    if (kri_dtype_is_float(dtype)) return (ring_t){4 * 4 * 512, 4, 4};
    (void)kri_pack_layout(dtype, n_in, &l); /* the binder did, so it fits */
    const uint32_t block = (uint32_t)l.quant_bytes, stride = block / 64 % 2 ? block : block + 64;
    const uint32_t n_slots = dtype == KR_DTYPE_Q8_0 ? 2 : 3;
    return (ring_t){n_slots * (8 * (stride + (uint32_t)l.scale_bytes) + (uint32_t)l.super_bytes),
                    KRI_GROUP_ROWS, 2 * KRI_GROUP_ROWS};
}

/* Shared memory of a block: the rings, the row's 8-bit form or its normed floats. */
static uint32_t row_bytes(kr_dtype_t dtype, uint32_t n_in, bool is_normed) {
    const uint32_t act = kri_dtype_is_float(dtype) ? (is_normed ? n_in * 4 : 0)
                                         : n_in / 32 * (uint32_t)sizeof(kri_cu_q8_t);
    return KRI_CU_ROW_WARPS * ring_of(dtype, n_in).n_bytes + act;
}

/* Whether the row kernels can do a product by w. */
static bool is_for_rows(const kri_weight_t *w, uint32_t n_rows, bool is_normed) {
    if (n_rows != 1 || w->n_in > 1u << 17) return false;
    for (uint32_t i = 0; i < w->n_parts; i++) {
        if (row_bytes(w->parts[i].dtype, w->n_in, is_normed) > ROW_BYTES_MAX) return false;
    }
    return true;
}

/* Blocks that share n_units evenly, all on the device at once. */
static uint32_t row_blocks(const kri_cuda_exec_t *d, uint32_t n_units, uint32_t shared_bytes) {
    const uint32_t fit = ROW_BYTES_MAX / (shared_bytes + ROW_BYTES_FIXED);
    const uint32_t each = fit < 1 ? 1 : fit < ROW_BLOCKS_EACH ? fit : ROW_BLOCKS_EACH;
    return ceil32(n_units, ceil32(n_units, (uint64_t)kri_cuda_processors(d->stream->cuda) * each));
}

/* Parts of the type of part `first`, which is the first of them; args has the row and what to do
 * with the product. */
static void row_type(const kri_exec_t *exec, const kri_weight_t *w, uint32_t first,
                     kri_cu_row_t *args) {
    const kr_dtype_t dtype = w->parts[first].dtype;
    const ring_t ring = ring_of(dtype, w->n_in);
    uint32_t n = 0;
    kri_cuda_grid_t grid = {.n_threads = 32 * KRI_CU_ROW_WARPS,
                            .shared_bytes = row_bytes(dtype, w->n_in, args->norm != NULL)};
    args->n_in = w->n_in;
    args->n_units = 0;
    if (!kri_dtype_is_float(dtype)) {
        kri_pack_layout_t layout = {0};
        (void)kri_pack_layout(dtype, w->n_in, &layout);
        args->scales = (uint32_t)layout.scales;
        args->quants = (uint32_t)layout.quants;
        args->group_bytes = layout.group_bytes;
    }
    for (uint32_t i = 0; i < KRI_CU_PARTS; i++) args->first[i] = UINT32_MAX;
    for (uint32_t i = first; i < w->n_parts; i++) {
        const kri_weight_part_t *part = &w->parts[i];
        if (part->dtype != dtype) continue;
        args->w[n] = part->packed;
        args->bias[n] = part->bias;
        args->n_out[n] = part->n_out;
        args->out_offset[n] = part->out_offset;
        args->first[n++] = args->n_units;
        args->n_units += ceil32(part->n_out, ring.n_rows);
    }
    if (args->is_gated) args->n_units = ceil32(args->n_out[0], ring.n_gated);
    grid.x = row_blocks(own(exec), args->n_units, grid.shared_bytes);
    kri_cuda_launch(own(exec)->stream,
                    (kri_cuda_kernel_t)(KRI_CUDA_row_f32 + (uint32_t)(dtype - KR_DTYPE_F32)), grid,
                    args);
}

static void row(const kri_exec_t *exec, const kri_weight_t *w, kri_cu_row_t args) {
    uint32_t seen = 0;
    for (uint32_t i = 0; i < w->n_parts; i++) {
        const uint32_t bit = 1u << w->parts[i].dtype;
        if (!(seen & bit)) row_type(exec, w, i, &args);
        seen |= bit;
    }
}

/* ---- linear: few rows ------------------------------------------------------------------------ */

/* Warps of a block that share k: enough to keep the memory busy, each with work of its own. */
static uint32_t float_slices(const kri_cuda_exec_t *d, uint64_t n_row_sets, uint32_t n_in,
                             uint32_t item_bytes) {
    const uint32_t wanted = kri_cuda_processors(d->stream->cuda) * WARPS_EACH;
    uint32_t n = 1;
    while (n < FLOAT_WARPS && n_row_sets * n < wanted && n_in * item_bytes >= n * 2 * 512) n *= 2;
    return n;
}

/* Parts of the type of part `first`, which is the first of them. */
static void matvec_type(const kri_exec_t *exec, const product_t *p, uint32_t first) {
    const kri_weight_t *w = p->w;
    const kr_dtype_t dtype = w->parts[first].dtype;
    const uint32_t bucket = p->n_rows <= 2 ? 0 : p->n_rows <= 4 ? 1 : 2;
    uint32_t block_rows = KRI_GROUP_ROWS;
    kri_cuda_grid_t grid = {.n_threads = 32 * FLOAT_WARPS};
    kri_pack_layout_t layout = {0};
    uint32_t n = 0;
    kri_cu_matvec_t args = {
        .n_in = w->n_in, .n_tokens = p->n_rows, .accumulate = p->accumulate, .out = p->out,
        .out_stride = p->out_stride, .act = p->f32};
    if (!kri_dtype_is_float(dtype)) {
        (void)kri_pack_layout(dtype, w->n_in, &layout); /* the binder did, so it fits */
        grid.n_threads = 32;
        while (grid.n_threads < 512 && grid.n_threads * 2 <= w->n_in / 32 * 16) grid.n_threads *= 2;
        args.scales = (uint32_t)layout.scales;
        args.quants = (uint32_t)layout.quants;
        args.group_bytes = layout.group_bytes;
        args.act = own(exec)->q8;
    } else {
        const uint32_t warp_rows = bucket == 0 ? 2 : 4;
        args.k_slices = float_slices(own(exec), w->n_out / warp_rows, w->n_in,
                                     dtype == KR_DTYPE_F32 ? 4 : 2);
        block_rows = FLOAT_WARPS / args.k_slices * warp_rows;
    }
    for (uint32_t i = 0; i < KRI_CU_PARTS; i++) args.first[i] = UINT32_MAX;
    for (uint32_t i = first; i < w->n_parts; i++) {
        const kri_weight_part_t *part = &w->parts[i];
        if (part->dtype != dtype) continue;
        args.w[n] = part->packed;
        args.bias[n] = part->bias;
        args.n_out[n] = part->n_out;
        args.out_offset[n] = part->out_offset;
        args.first[n++] = grid.x;
        grid.x += ceil32(part->n_out, block_rows);
    }
    const uint32_t kernel =
        KRI_CUDA_matvec_f32_2 + (uint32_t)(dtype - KR_DTYPE_F32) * 3 + bucket;
    kri_cuda_launch(own(exec)->stream, (kri_cuda_kernel_t)kernel, grid, &args);
}

static void matvec(const kri_exec_t *exec, const product_t *p) {
    uint32_t seen = 0;
    for (uint32_t i = 0; i < p->w->n_parts; i++) {
        const uint32_t bit = 1u << p->w->parts[i].dtype;
        if (!(seen & bit)) matvec_type(exec, p, i);
        seen |= bit;
    }
}

/* ---- linear: many rows ----------------------------------------------------------------------- */

size_t kri_cuda_unpacked_items(size_t n_in_max) {
    const size_t least = n_in_max * UNPACKED_ROWS, most = UNPACKED_BYTES / sizeof(uint16_t);
    return least > most ? least : most;
}

static void unpack(const kri_exec_t *exec, const kri_weight_part_t *part, uint32_t n_in,
                   uint32_t row, uint32_t n_rows) {
    const kri_cuda_exec_t *d = own(exec);
    const uint64_t n = (uint64_t)n_rows * n_in;
    kri_cu_unpack_t args = {.w = part->packed, .n_in = n_in, .n_rows = n_rows, .out = d->unpacked};
    if (kri_dtype_is_float(part->dtype)) {
        const bool is_f32 = part->dtype == KR_DTYPE_F32;
        args.w += (size_t)row * n_in * (is_f32 ? 4 : 2);
        kri_cuda_launch(d->stream, is_f32 ? KRI_CUDA_unpack_f32 : KRI_CUDA_unpack_f16,
                        (kri_cuda_grid_t){.x = n < 1u << 22 ? ceil32(n, 1024) : 4096,
                                          .n_threads = 256}, &args);
        return;
    }
    kri_pack_layout_t layout = {0};
    (void)kri_pack_layout(part->dtype, n_in, &layout);
    args.w += row / KRI_GROUP_ROWS * layout.group_bytes;
    args.group_bytes = layout.group_bytes;
    args.scales = (uint32_t)layout.scales;
    args.quants = (uint32_t)layout.quants;
    const uint32_t kernel = KRI_CUDA_unpack_q4_0 + (uint32_t)(part->dtype - KR_DTYPE_Q4_0);
    kri_cuda_launch(d->stream, (kri_cuda_kernel_t)kernel,
                    (kri_cuda_grid_t){.x = ceil32(n_rows, KRI_GROUP_ROWS),
                                      .y = ceil32(n_in, 512), .n_threads = 256}, &args);
}

static void gemm(const kri_exec_t *exec, const kri_cu_gemm_t *args) {
    kri_cuda_stream_t *stream = own(exec)->stream;
    if (own(exec)->lt && kri_cuda_lt_gemm(own(exec)->lt, stream, args)) {
        const kri_cu_bias_t bias = {.bias = args->bias, .out = args->c, .out_stride = args->ldc,
                                    .n_rows = args->m, .n = args->n};
        if (!args->bias) return;
        kri_cuda_launch(stream, KRI_CUDA_bias,
                        (kri_cuda_grid_t){.x = ceil32(args->n, 256), .y = args->m,
                                          .n_threads = 256}, &bias);
        return;
    }
    const uint32_t n_blocks = ceil32(args->m, 128) * ceil32(args->n, 128);
    if (args->m <= 16) {
        kri_cuda_launch(stream, KRI_CUDA_gemm_16,
                        (kri_cuda_grid_t){.x = 1, .y = ceil32(args->n, 64), .n_threads = 128,
                                          .shared_bytes = 20480}, args);
    } else if (args->m <= 64 || n_blocks < kri_cuda_processors(stream->cuda)) {
        kri_cuda_launch(stream, KRI_CUDA_gemm_64,
                        (kri_cuda_grid_t){.x = ceil32(args->m, 64), .y = ceil32(args->n, 64),
                                          .n_threads = 128, .shared_bytes = 32768}, args);
    } else {
        kri_cuda_launch(stream, KRI_CUDA_gemm_128,
                        (kri_cuda_grid_t){.x = ceil32(args->m, 128), .y = ceil32(args->n, 128),
                                          .n_threads = 256, .shared_bytes = 65536}, args);
    }
}

/* own->bf16 times w. */
static void multiply(const kri_exec_t *exec, const product_t *p) {
    const kri_cuda_exec_t *d = own(exec);
    const uint32_t n_in = p->w->n_in;
    const uint32_t chunk =
        (uint32_t)(d->unpacked_items / n_in / UNPACKED_ROWS) * UNPACKED_ROWS;
    for (uint32_t i = 0; i < p->w->n_parts; i++) {
        const kri_weight_part_t *part = &p->w->parts[i];
        const bool is_ready = part->dtype == KR_DTYPE_BF16;
        const uint32_t step = is_ready ? part->n_out : chunk;
        for (uint32_t row = 0; row < part->n_out; row += step) {
            const uint32_t n = part->n_out - row < step ? part->n_out - row : step;
            const void *ready = part->packed + (size_t)row * n_in * sizeof(uint16_t);
            if (!is_ready) unpack(exec, part, n_in, row, n);
            const kri_cu_gemm_t args = {
                .a = d->bf16, .b = is_ready ? ready : d->unpacked,
                .c = p->out + part->out_offset + row,
                .rounded = p->rounded ? p->rounded + part->out_offset + row : NULL,
                .bias = part->bias ? part->bias + row : NULL, .ldc = p->out_stride,
                .m = p->n_rows, .n = n, .k = n_in, .accumulate = p->accumulate};
            gemm(exec, &args);
        }
    }
}

/* ---- linear ---------------------------------------------------------------------------------- */

/* The forms of activations that a product of n_rows rows by w reads. */
static kri_cu_acts_t forms_of(const kri_cuda_exec_t *d, const kri_weight_t *w, uint32_t n_rows) {
    kri_cu_acts_t acts = {.n = w->n_in};
    if (n_rows > KRI_CU_TOKENS) {
        acts.bf16 = d->bf16;
        return acts;
    }
    for (uint32_t i = 0; i < w->n_parts; i++) {
        if (kri_dtype_is_float(w->parts[i].dtype)) acts.f32 = d->f32;
        else acts.q8 = d->q8;
    }
    return acts;
}

static void run(const kri_exec_t *exec, const product_t *p) {
    if (p->n_rows > KRI_CU_TOKENS) multiply(exec, p);
    else matvec(exec, p);
}

static void linear(const kri_exec_t *exec, const kri_weight_t *w, const float *x, uint32_t n_rows,
                   bool accumulate, float *out, size_t out_stride) {
    if (is_for_rows(w, n_rows, false)) {
        row(exec, w, (kri_cu_row_t){.x = x, .accumulate = accumulate, .out = out});
        return;
    }
    const product_t p = {w, x, n_rows, accumulate, out, out_stride, NULL};
    kri_cu_acts_t acts = forms_of(own(exec), w, n_rows);
    acts.x = x;
    acts.f32 = NULL; /* x itself */
    const bool is_rounded = acts.bf16 && x == own(exec)->rounded;
    if ((acts.q8 || acts.bf16) && !is_rounded) {
        acts_elements(exec, KRI_CUDA_acts_plain, &acts, n_rows);
    }
    run(exec, &p);
}

/* p of rows of x that are normed. */
static void norm_run(const kri_exec_t *exec, const product_t *p, const float *x, const float *norm,
                     float eps, const uint32_t *rows) {
    kri_cu_acts_t acts = forms_of(own(exec), p->w, p->n_rows);
    acts.x = x;
    acts.rows = rows;
    acts.w = norm;
    acts.eps = eps;
    acts_norm(exec, &acts, p->n_rows);
    run(exec, p);
}

static void norm_linear(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                        const float *norm, float eps, const uint32_t *rows, uint32_t n_rows,
                        float *out, size_t out_stride) {
    if (is_for_rows(w, n_rows, true)) {
        row(exec, w, (kri_cu_row_t){.x = x, .rows = rows, .norm = norm, .eps = eps, .out = out});
        return;
    }
    const product_t p = {w, own(exec)->f32, n_rows, false, out, out_stride, NULL};
    norm_run(exec, &p, x, norm, eps, rows);
}

/* One row: the gated product in the form that down reads, and down. */
static void ffn_row(const kri_exec_t *exec, const kri_ffn_desc_t *desc, const float *x,
                    bool accumulate, float *out) {
    kri_cuda_exec_t *d = own(exec);
    const bool in_q8 = !kri_dtype_is_float(desc->gate_up->parts[0].dtype) &&
                       !kri_dtype_is_float(desc->down->parts[0].dtype);
    kri_cu_row_t args = {.x = x, .norm = desc->norm, .eps = desc->norm_eps, .is_gated = 1,
                         .act = (uint32_t)desc->act, .out = d->f32,
                         .out_q8 = in_q8 ? d->q8 : NULL};
    row(exec, desc->gate_up, args);
    row(exec, desc->down, (kri_cu_row_t){.x = d->f32, .q8 = args.out_q8,
                                         .accumulate = accumulate, .out = out});
}

static void ffn(const kri_exec_t *exec, const kri_ffn_desc_t *desc, const float *x,
                uint32_t n_rows, bool accumulate, float *out) {
    const kri_weight_t *down = desc->down;
    const kri_weight_part_t *parts = desc->gate_up->parts;
    float *gate_up = own(exec)->gate_up;
    if (is_for_rows(desc->gate_up, n_rows, true) && is_for_rows(down, n_rows, false) &&
        parts[0].dtype == parts[1].dtype && down->n_parts == 1) {
        ffn_row(exec, desc, x, accumulate, out);
        return;
    }
    /* Gate and up of many rows are bf16, as all operands then are: half the bytes to move. */
    const bool is_rounded = n_rows > KRI_CU_TOKENS && !parts[0].bias && !parts[1].bias;
    const product_t up = {desc->gate_up, own(exec)->f32, n_rows, false, gate_up,
                          desc->gate_up->n_out, is_rounded ? (uint16_t *)(void *)gate_up : NULL};
    const product_t p = {down, own(exec)->f32, n_rows, accumulate, out, down->n_out, NULL};
    kri_cu_acts_t acts = forms_of(own(exec), down, n_rows);
    norm_run(exec, &up, x, desc->norm, desc->norm_eps, NULL);
    acts.x = gate_up;
    acts.rounded = up.rounded;
    acts.act = (uint32_t)desc->act;
    acts_elements(exec, KRI_CUDA_acts_gated, &acts, n_rows);
    run(exec, &p);
}

/* ---- attention ------------------------------------------------------------------------------- */

static kri_cu_kv_t kv_of(const kri_exec_t *exec, const kri_attn_desc_t *desc) {
    const kri_kv_group_t *group = &exec->step->groups[desc->group];
    const kri_kv_place_t place = kri_kv_place(group, desc->layer_in_group, 0);
    const kri_kv_place_t next = kri_kv_place(group, desc->layer_in_group, 1);
    return (kri_cu_kv_t){
        .pool = group->pool, .page_bytes = group->page_bytes, .k = place.k, .v = place.v,
        .scales = place.scales, .block_bytes = (uint32_t)(next.k - place.k),
        .group = desc->group, .window = group->window, .dtype = (uint32_t)group->dtype};
}

/* Whether rows of this head size attend one by one in splits of their contexts. */
static bool has_splits(uint32_t head_dim) {
    return head_dim == 64 || head_dim == 128 || head_dim == 256;
}

/* Whether attention can rotate and append on its way: each row is the last one of its sequence. */
static bool is_decode(const kri_exec_t *exec, const kri_attn_desc_t *desc) {
    const kri_cuda_exec_t *d = own(exec);
    return d->n_tiles == 0 && exec->step->n_rows == exec->step->n_seqs &&
           has_splits(desc->head_dim);
}

static void rope_append(const kri_exec_t *exec, const kri_attn_desc_t *desc, const float *cos_sin,
                        float *qkv) {
    const kri_cu_rotate_t rotate = {
        .cos_sin = cos_sin, .q_norm = desc->q_norm, .k_norm = desc->k_norm, .eps = desc->norm_eps,
        .n_rot = desc->n_rot, .is_pair = desc->rope_pair};
    own(exec)->rotate = rotate;
    if (is_decode(exec, desc)) return; /* attention does it */
    const kri_cu_kv_t kv = kv_of(exec, desc);
    const kri_cu_append_t args = {
        .step = own(exec)->step, .kv = kv, .rotate = rotate, .qkv = qkv,
        .queries = kv.dtype == KRI_CU_F16 && own(exec)->n_tiles > 0 ? own(exec)->bf16 : NULL,
        .keeps_rows = own(exec)->n_decode_rows > 0, .n_heads = desc->n_heads,
        .n_kv_heads = desc->n_kv_heads, .head_dim = desc->head_dim};
    kri_cuda_launch(own(exec)->stream, KRI_CUDA_rope_append,
                    (kri_cuda_grid_t){.x = ceil32(desc->n_heads + 2 * desc->n_kv_heads, 4),
                                      .y = exec->step->n_rows, .n_threads = 128}, &args);
}

uint32_t kri_cuda_tile_rows(kr_dtype_t kv_dtype, uint32_t head_dim) {
    if (kri_kv_is_8bit(kv_dtype)) return has_splits(head_dim) ? KRI_CU_TILE8 : 0;
    if (head_dim % 8 != 0 || head_dim > KRI_CU_PREFILL_DIM) return 0; /* copies take 16 bytes */
    return head_dim <= 64 ? 192 : 128;
}

typedef struct sized_kernel_s {
    kri_cuda_kernel_t id;
    uint32_t shared_bytes;
} sized_kernel_t;

/* Of a head size that has tiles. */
static uint32_t size_index(uint32_t head_dim) {
    return head_dim == 64 ? 0 : head_dim == 128 ? 1 : 2;
}

/* Chunks of the query heads of one KV head. */
static uint32_t head_chunks(uint32_t n_heads, uint32_t n_kv_heads) {
    return ceil32(n_heads / n_kv_heads, KRI_CU_HEADS);
}

uint32_t kri_cuda_splits(uint32_t n_processors, uint32_t n_rows, uint32_t n_heads,
                         uint32_t n_kv_heads, uint32_t n_pages) {
    const uint64_t n_items = (uint64_t)n_rows * n_kv_heads * head_chunks(n_heads, n_kv_heads);
    const uint64_t wanted = n_items ? (uint64_t)n_processors * BLOCKS_EACH / n_items : 1;
    uint64_t n_most = 1, n = 1;
    while (n_most * SPLIT_PAGES < n_pages) n_most *= 2;
    if (n_most > wanted) n_most = wanted;
    if (n_most > KRI_CU_SPLITS) n_most = KRI_CU_SPLITS;
    while (n * 2 <= n_most) n *= 2;
    if (n >= 2 && n + n / 2 <= n_most) n += n / 2; /* few numbers: each is a graph of its own */
    return (uint32_t)n;
}

size_t kri_cuda_partial_floats(uint32_t n_processors, uint32_t head_dim) {
    return (size_t)n_processors * BLOCKS_EACH * KRI_CU_HEADS * (head_dim + KRI_CU_PARTIAL);
}

static void attend_rows(const kri_exec_t *exec, const kri_attn_desc_t *desc, kri_cu_attn_t *args) {
    const kri_cuda_exec_t *d = own(exec);
    if (!has_splits(desc->head_dim)) {
        kri_cuda_launch(d->stream, KRI_CUDA_attn_any,
                        (kri_cuda_grid_t){.x = desc->n_heads, .y = d->n_decode_rows,
                                          .n_threads = DECODE_THREADS}, args);
        return;
    }
    const uint32_t n_chunks = head_chunks(desc->n_heads, desc->n_kv_heads);
    static const sized_kernel_t kernels[3][3] = {
        {{KRI_CUDA_attn_decode_f16_64, KRI_CU_DECODE_F16_64},
         {KRI_CUDA_attn_decode_f16_128, KRI_CU_DECODE_F16_128},
         {KRI_CUDA_attn_decode_f16_256, KRI_CU_DECODE_F16_256}},
        {{KRI_CUDA_attn_decode_i8_64, KRI_CU_DECODE_8_64},
         {KRI_CUDA_attn_decode_i8_128, KRI_CU_DECODE_8_128},
         {KRI_CUDA_attn_decode_i8_256, KRI_CU_DECODE_8_256}},
        {{KRI_CUDA_attn_decode_f8_64, KRI_CU_DECODE_8_64},
         {KRI_CUDA_attn_decode_f8_128, KRI_CU_DECODE_8_128},
         {KRI_CUDA_attn_decode_f8_256, KRI_CU_DECODE_8_256}}};
    const uint32_t type = args->kv.dtype == KRI_CU_F16 ? 0 : args->kv.dtype == KRI_CU_I8 ? 1 : 2;
    const sized_kernel_t *kernel = &kernels[type][size_index(desc->head_dim)];
    args->n_splits = d->n_splits;
    if (is_decode(exec, desc)) args->rotate = d->rotate;
    kri_cuda_launch(d->stream, kernel->id,
                    (kri_cuda_grid_t){.x = d->n_splits, .y = desc->n_kv_heads * n_chunks,
                                      .z = d->n_decode_rows, .n_threads = DECODE_THREADS,
                                      .shared_bytes = kernel->shared_bytes}, args);
}

/* Query heads whose keys and values are read at a time: about what the second-level cache holds. */
static uint32_t heads_together(const kri_exec_t *exec, const kri_attn_desc_t *desc) {
    const uint32_t each = desc->n_heads / desc->n_kv_heads;
    uint32_t n_keys = 1;
    for (uint32_t i = 0; i < exec->step->n_seqs; i++) {
        const kri_step_seq_t *seq = &exec->step->seqs[i];
        if (seq->pos_begin + seq->n_rows > n_keys) n_keys = seq->pos_begin + seq->n_rows;
    }
    const uint64_t n = TOGETHER_BYTES / ((uint64_t)n_keys * desc->head_dim * 2 * sizeof(uint16_t));
    return n >= desc->n_kv_heads ? desc->n_heads : n > 1 ? (uint32_t)n * each : each;
}

/* Keys and values as boxes of a page's rows, queries as boxes of a head's. */
static void map_tiles(const kri_exec_t *exec, const kri_attn_desc_t *desc, kri_cu_prefill_t *args) {
    const kri_cu_kv_t *kv = &args->attn.kv;
    const uint64_t item = sizeof(uint16_t), dim = desc->head_dim, row = desc->n_heads * dim * item;
    const uint64_t pages[4] = {dim, KRI_PAGE_TOKENS, kv->page_bytes / kv->block_bytes, INT32_MAX};
    const uint64_t page_strides[3] = {dim * item, kv->block_bytes, kv->page_bytes};
    const uint64_t queries[4] = {dim, exec->step->n_rows, desc->n_heads, 1};
    const uint64_t query_strides[3] = {row, dim * item, row};
    kri_cuda_map_halves(own(exec)->stream, kv->pool, pages, page_strides, args->map);
    kri_cuda_map_halves(own(exec)->stream, own(exec)->bf16, queries, query_strides, args->queries);
}

/* Queries are f16 in own->bf16. If no row attends alone, the result takes their place: each block
 * writes where it alone has read, and the product to come wants bf16. */
static void attend_tiles(const kri_exec_t *exec, const kri_attn_desc_t *desc,
                         const kri_cu_attn_t *attn) {
    static const struct { kri_cuda_kernel_t id; uint32_t n_threads, shared_bytes; } kernels[] = {
        {KRI_CUDA_attn_prefill_64, 512, 90240}, {KRI_CUDA_attn_prefill_128, 384, 164096},
        {KRI_CUDA_attn_prefill_256, 384, 229632}};
    kri_cuda_exec_t *d = own(exec);
    const uint32_t size = desc->head_dim <= 64 ? 0 : desc->head_dim <= 128 ? 1 : 2;
    const uint32_t n_processors = kri_cuda_processors(d->stream->cuda);
    const uint64_t n_items = (uint64_t)d->n_tiles * desc->n_heads;
    kri_cu_prefill_t args = {.attn = *attn, .n_tiles = d->n_tiles,
                             .heads_together = heads_together(exec, desc)};
    if (d->n_decode_rows == 0) {
        args.rounded = d->bf16;
        d->rounded = attn->out;
    }
    map_tiles(exec, desc, &args);
    kri_cuda_launch(d->stream, kernels[size].id,
                    (kri_cuda_grid_t){.x = n_items < n_processors ? (uint32_t)n_items
                                                                  : n_processors,
                                      .n_threads = kernels[size].n_threads,
                                      .shared_bytes = kernels[size].shared_bytes}, &args);
}

/* Over pages of 8 bits, from queries of f32. */
static void attend_tiles8(const kri_exec_t *exec, const kri_attn_desc_t *desc,
                          const kri_cu_attn_t *args) {
    static const sized_kernel_t kernels[] = {{KRI_CUDA_attn_prefill8_64, KRI_CU_PREFILL8_64},
                                             {KRI_CUDA_attn_prefill8_128, KRI_CU_PREFILL8_128},
                                             {KRI_CUDA_attn_prefill8_256, KRI_CU_PREFILL8_256}};
    const sized_kernel_t *kernel = &kernels[size_index(desc->head_dim)];
    kri_cuda_launch(own(exec)->stream, kernel->id,
                    (kri_cuda_grid_t){.x = own(exec)->n_tiles, .y = desc->n_heads,
                                      .n_threads = DECODE_THREADS,
                                      .shared_bytes = kernel->shared_bytes}, args);
}

static void attention(const kri_exec_t *exec, const kri_attn_desc_t *desc, const float *qkv,
                      float *out) {
    kri_cuda_exec_t *d = own(exec);
    kri_cu_attn_t args = {
        .step = d->step, .kv = kv_of(exec, desc), .qkv = qkv, .out = out,
        .partials = d->partials, .counters = d->counters, .scale = desc->scale,
        .softcap = desc->softcap, .n_heads = desc->n_heads, .n_kv_heads = desc->n_kv_heads,
        .head_dim = desc->head_dim, .n_splits = 1};
    d->rounded = NULL;
    if (d->n_decode_rows > 0) attend_rows(exec, desc, &args);
    if (d->n_tiles == 0) return;
    if (args.kv.dtype == KRI_CU_F16) attend_tiles(exec, desc, &args);
    else attend_tiles8(exec, desc, &args);
}

const kri_exec_ops_t kri_cuda_ops = {
    .go_on = go_on, .embed = embed, .rms_norm = rms_norm, .norm_add = norm_add, .linear = linear,
    .norm_linear = norm_linear, .rope_table = rope_table, .rope_append = rope_append,
    .attention = attention, .ffn = ffn, .gated_act = gated_act, .add = add, .softcap = softcap};

/* bench_ops.c: see bench_ops.h. A family of ops.def has one row here: its shapes, the bytes and
 * operations of a call, how inputs are made and how a kernel is called. Weights of one-token
 * linears are larger than most last-level caches, so that their GB/s are those of memory; all
 * other inputs are as small as a model's and stay in cache after the first call, as they do in a
 * forward pass. */
#include "bench_ops.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "bench_util.h"
#include "ops/pack.h"
#include "tensor/dtype.h"

#define GEMV_BYTES ((size_t)96 << 20)    /* weights of one call with one token */
#define GEMV_BYTES_REF ((size_t)4 << 20) /* the scalar references would take seconds */
#define GEMM_ROWS 512u
#define BURST_NS_MIN 20000u
#define N_BUFFERS 4u

typedef void any_fn(void);

struct kri_bench_case_s {
    kri_bench_op_t op;
    kri_kernels_t kernels;
    any_fn *fn;
    void *buffers[N_BUFFERS]; /* x, y, out, scratch: as the family likes */
    kri_attn_args_t attn;
    size_t n_groups, act_stride;
    uint64_t n_burst; /* calls of a burst; 0 = not yet known */
};

typedef struct family_s family_t;
struct family_s {
    const size_t (*shapes)[4];
    size_t n_shapes;
    bool (*describe)(kri_bench_op_t *op, char *shape, size_t cap); /* false: not for this type */
    kr_status_t (*prepare)(kri_bench_case_t *bench);
    void (*call)(kri_bench_case_t *bench);
};

static bool is_ref(const kri_bench_op_t *op) { return strcmp(op->isa, "ref") == 0; }

static kr_status_t take(kri_bench_case_t *bench, size_t buffer, size_t n_bytes) {
    bench->buffers[buffer] = kri_alloc(n_bytes, "bench");
    return bench->buffers[buffer] != NULL ? KR_OK : KR_E_NOMEM;
}

/* Floats of fixed random values. */
static kr_status_t take_floats(kri_bench_case_t *bench, size_t buffer, size_t n) {
    uint64_t state = KRI_BENCH_SEED;
    if (take(bench, buffer, n * sizeof(float)) != KR_OK) return KR_E_NOMEM;
    kri_bench_fill(&state, bench->buffers[buffer], n);
    return KR_OK;
}

/* ---- linear: [n_in, n_tokens] --------------------------------------------------------------- */

static const size_t linear_shapes[][4] = {{576, 1},  {576, 64},   {576, 256},  {1536, 1},
                                          {1536, 64}, {1536, 256}, {2048, 1},   {2048, 64},
                                          {2048, 256}, {8960, 1},  {8960, 64},  {8960, 256}};

static kr_dtype_t slot_dtype(const char *slot) {
    for (kr_dtype_t dtype = 1; kri_dtype_info(dtype) != NULL; dtype++) {
        if (strcmp(slot + strlen("linear_"), kri_dtype_info(dtype)->name) == 0) return dtype;
    }
    return KR_DTYPE_NONE;
}

/* Counted in bytes of the file format, so that a shape keeps its name when a layout changes. */
static size_t linear_n_groups(const kri_bench_op_t *op) {
    const kri_dtype_info_t *info = kri_dtype_info(slot_dtype(op->slot));
    size_t n_bytes = is_ref(op) ? GEMV_BYTES_REF : GEMV_BYTES;
    size_t row_bytes = op->dims[0] / info->block_items * info->block_bytes;
    if (op->dims[1] != 1) return GEMM_ROWS / KRI_GROUP_ROWS;
    return n_bytes / (row_bytes * KRI_GROUP_ROWS) + 1;
}

static bool describe_linear(kri_bench_op_t *op, char *shape, size_t cap) {
    kri_pack_layout_t layout;
    kr_dtype_t dtype = slot_dtype(op->slot);
    size_t n_in = op->dims[0], n_tokens = op->dims[1];
    if (is_ref(op) && (n_in != 2048 || n_tokens > 64)) return false;
    if (!kri_pack_layout(dtype, n_in, &layout)) return false; /* 576 is no multiple of 256 */
    size_t n_groups = linear_n_groups(op);
    double n_rows = (double)(n_groups * KRI_GROUP_ROWS);
    snprintf(shape, cap, "%zux%zu/n%zu", n_groups * KRI_GROUP_ROWS, n_in, n_tokens);
    op->bytes = (double)(n_groups * layout.group_bytes);
    op->flops = 2 * n_rows * (double)n_in * (double)n_tokens;
    op->is_int8 = !kri_dtype_is_float(dtype);
    return true;
}

/* Any bytes will do as weights; the scales only have to be finite. One group is made and copied. */
static kr_status_t pack_weights(kri_bench_case_t *bench, kr_dtype_t dtype, size_t n_in,
                                const kri_pack_layout_t *layout) {
    const kri_dtype_info_t *info = kri_dtype_info(dtype);
    size_t row_bytes = n_in / info->block_items * info->block_bytes;
    size_t n_bytes = row_bytes * KRI_GROUP_ROWS;
    uint64_t state = KRI_BENCH_SEED;
    uint8_t *rows = kri_alloc(n_bytes, "bench");
    if (rows == NULL) return KR_E_NOMEM;
    for (size_t i = 0; i < n_bytes; i++) { /* halves and floats below 1 */
        uint32_t random = kri_bench_random(&state);
        rows[i] = (uint8_t)(i % 2 != 0 ? 0x20u | (random & 0x8fu) : random);
    }
    uint8_t *packed = bench->buffers[0];
    kri_pack_rows(dtype, rows, row_bytes, KRI_GROUP_ROWS, n_in, 0, 1, packed);
    for (size_t g = 1; g < bench->n_groups; g++) {
        memcpy(packed + g * layout->group_bytes, packed, layout->group_bytes);
    }
    kri_free(rows);
    return KR_OK;
}

static kr_status_t prepare_linear(kri_bench_case_t *bench) {
    kri_pack_layout_t layout;
    kr_dtype_t dtype = slot_dtype(bench->op.slot);
    size_t n_in = bench->op.dims[0], n_tokens = bench->op.dims[1];
    if (!kri_pack_layout(dtype, n_in, &layout)) return KR_E_INTERNAL;
    bench->n_groups = linear_n_groups(&bench->op);
    size_t n_out = bench->n_groups * KRI_GROUP_ROWS;
    if (take(bench, 0, bench->n_groups * layout.group_bytes) != KR_OK ||
        pack_weights(bench, dtype, n_in, &layout) != KR_OK ||
        take_floats(bench, 1, n_tokens * n_in) != KR_OK ||
        take(bench, 2, n_tokens * n_out * sizeof(float)) != KR_OK) {
        return KR_E_NOMEM;
    }
    bench->act_stride = n_in * sizeof(float);
    if (kri_dtype_is_float(dtype)) return KR_OK;
    size_t n_blocks = n_in / KRI_Q8_ITEMS;
    bench->act_stride = n_blocks * sizeof(kri_q8_block_t);
    if (take(bench, 3, n_tokens * bench->act_stride) != KR_OK) return KR_E_NOMEM;
    kri_quant_q8_ref(bench->buffers[1], n_tokens * n_in, bench->buffers[3]);
    return KR_OK;
}

static void call_linear(kri_bench_case_t *bench) {
    const void *act = bench->buffers[3] != NULL ? bench->buffers[3] : bench->buffers[1];
    size_t n_out = bench->n_groups * KRI_GROUP_ROWS;
    ((kri_linear_fn *)bench->fn)(bench->buffers[0], bench->op.dims[0], bench->n_groups, n_out, act,
                                 bench->act_stride, bench->op.dims[1], NULL, 0,
                                 bench->buffers[2], n_out);
}

/* ---- tile_linear: [n_in, n_tokens, type] ---------------------------------------------------- */

static const size_t tile_shapes[][4] = {{2048, 64, KR_DTYPE_Q4_K},  {2048, 512, KR_DTYPE_Q4_K},
                                        {8192, 512, KR_DTYPE_Q4_K}, {2048, 512, KR_DTYPE_Q8_0},
                                        {2048, 512, KR_DTYPE_BF16}};

static bool describe_tile_linear(kri_bench_op_t *op, char *shape, size_t cap) {
    kri_pack_layout_t layout;
    kr_dtype_t dtype = (kr_dtype_t)op->dims[2];
    if (is_ref(op) && op->dims[1] > 64) return false;
    if (!kri_pack_layout(dtype, op->dims[0], &layout)) return false;
    snprintf(shape, cap, "%s/%ux%zu/n%zu", kri_dtype_info(dtype)->name, GEMM_ROWS, op->dims[0],
             op->dims[1]);
    op->bytes = (double)(GEMM_ROWS / KRI_GROUP_ROWS * layout.group_bytes);
    op->flops = 2.0 * GEMM_ROWS * (double)op->dims[0] * (double)op->dims[1];
    op->is_tiles = strcmp(op->isa, "amx") == 0;
    return is_ref(op) || op->is_tiles; /* the levels between have no form of their own */
}

static kr_status_t prepare_tile_linear(kri_bench_case_t *bench) {
    kri_pack_layout_t layout;
    kr_dtype_t dtype = (kr_dtype_t)bench->op.dims[2];
    size_t n_in = bench->op.dims[0], n_tokens = bench->op.dims[1];
    if (!kri_pack_layout(dtype, n_in, &layout)) return KR_E_INTERNAL;
    bench->n_groups = GEMM_ROWS / KRI_GROUP_ROWS;
    size_t n_out = n_tokens * GEMM_ROWS;
    if (take(bench, 0, bench->n_groups * layout.group_bytes) != KR_OK ||
        pack_weights(bench, dtype, n_in, &layout) != KR_OK ||
        take_floats(bench, 1, n_in) != KR_OK ||
        take(bench, 2, n_tokens * n_in * sizeof(uint16_t)) != KR_OK ||
        take(bench, 3, (n_out + KRI_TILE_SCRATCH_FLOATS) * sizeof(float)) != KR_OK) {
        return KR_E_NOMEM;
    }
    for (size_t t = 0; t < n_tokens; t++) {
        size_t block = t / KRI_TILE_TOKENS * KRI_TILE_TOKENS * n_in;
        uint16_t *tiles = bench->buffers[2];
        kri_tile_pack_ref(bench->buffers[1], n_in,
                          tiles + block + t % KRI_TILE_TOKENS * KRI_TILE_K);
    }
    return KR_OK;
}

static void call_tile_linear(kri_bench_case_t *bench) {
    const kri_tile_args_t args = {
        .dtype = (kr_dtype_t)bench->op.dims[2], .w = bench->buffers[0], .n_in = bench->op.dims[0],
        .n_groups = bench->n_groups, .n_rows = GEMM_ROWS, .n_tokens = bench->op.dims[1],
        .tiles = bench->buffers[2], .scratch = bench->buffers[3],
        .out = (float *)bench->buffers[3] + KRI_TILE_SCRATCH_FLOATS, .out_stride = GEMM_ROWS};
    ((kri_tile_linear_fn *)bench->fn)(&args);
}

/* ---- row-wise: [n] -------------------------------------------------------------------------- */

static const size_t row_shapes[][4] = {{576}, {2048}, {8960}};

static bool describe_row(kri_bench_op_t *op, char *shape, size_t cap, double bytes_per_item,
                         double flops_per_item) {
    snprintf(shape, cap, "%zu", op->dims[0]);
    op->bytes = bytes_per_item * (double)op->dims[0];
    op->flops = flops_per_item * (double)op->dims[0];
    return true;
}

static bool describe_quant(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, 4 + sizeof(kri_q8_block_t) / (double)KRI_Q8_ITEMS, 4);
}
static bool describe_rms_norm(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, 12, 4);
}
static bool describe_rms_norm_q8(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, 8 + sizeof(kri_q8_block_t) / (double)KRI_Q8_ITEMS, 8);
}
static bool describe_tile_pack(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, 6, 1);
}
static bool describe_gated_act(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, 12, 14);
}
static bool describe_add(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, 12, 1);
}
static bool describe_softcap(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, 8, 12);
}
static bool describe_kv_store(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, strcmp(op->slot, "kv_store_f32") == 0 ? 8 : 6, 0);
}

/* The last buffer holds the widest output: a row of one token's tiles. */
static kr_status_t prepare_row(kri_bench_case_t *bench) {
    size_t n = bench->op.dims[0];
    return take_floats(bench, 0, n) == KR_OK && take_floats(bench, 1, n) == KR_OK &&
                   take(bench, 2, n * KRI_TILE_TOKENS * sizeof(uint16_t)) == KR_OK
               ? KR_OK
               : KR_E_NOMEM;
}

static void call_quant(kri_bench_case_t *bench) {
    ((kri_quant_fn *)bench->fn)(bench->buffers[0], bench->op.dims[0], bench->buffers[2]);
}
static void call_rms_norm(kri_bench_case_t *bench) {
    ((kri_rms_norm_fn *)bench->fn)(bench->buffers[0], bench->buffers[1], 1e-5f,
                                   bench->op.dims[0], bench->buffers[2]);
}
static void call_rms_norm_q8(kri_bench_case_t *bench) {
    ((kri_rms_norm_q8_fn *)bench->fn)(bench->buffers[0], bench->buffers[1], 1e-5f,
                                      bench->op.dims[0], bench->buffers[2]);
}
static void call_tile_pack(kri_bench_case_t *bench) {
    ((kri_tile_pack_fn *)bench->fn)(bench->buffers[0], bench->op.dims[0], bench->buffers[2]);
}
static void call_gated_act(kri_bench_case_t *bench) {
    ((kri_gated_act_fn *)bench->fn)(bench->buffers[0], bench->buffers[1], bench->op.dims[0],
                                    bench->buffers[2]);
}
static void call_add(kri_bench_case_t *bench) {
    ((kri_add_fn *)bench->fn)(bench->buffers[0], bench->buffers[1], bench->op.dims[0]);
}
static void call_softcap(kri_bench_case_t *bench) {
    ((kri_softcap_fn *)bench->fn)(bench->buffers[0], bench->op.dims[0], 30.0f);
}
static void call_kv_store(kri_bench_case_t *bench) {
    ((kri_kv_store_fn *)bench->fn)(bench->buffers[0], bench->op.dims[0], bench->buffers[2]);
}

/* One key or value. */
static bool describe_kv_store_i8(kri_bench_op_t *op, char *shape, size_t cap) {
    return describe_row(op, shape, cap, 5, 2);
}
static void call_kv_store_i8(kri_bench_case_t *bench) {
    uint16_t *to = bench->buffers[2];
    ((kri_kv_store_i8_fn *)bench->fn)(bench->buffers[0], bench->op.dims[0], (int8_t *)(to + 1), to);
}

/* ---- rope: [n_heads, head_dim] -------------------------------------------------------------- */

static const size_t rope_shapes[][4] = {{9, 64}, {12, 128}, {32, 128}};

static bool describe_rope(kri_bench_op_t *op, char *shape, size_t cap) {
    double n_items = (double)(op->dims[0] * op->dims[1]);
    snprintf(shape, cap, "%zux%zu", op->dims[0], op->dims[1]);
    op->bytes = 8 * n_items;
    op->flops = 3 * n_items;
    return true;
}

static kr_status_t prepare_rope(kri_bench_case_t *bench) {
    size_t n_rot = bench->op.dims[1];
    if (take_floats(bench, 0, bench->op.dims[0] * n_rot) != KR_OK ||
        take(bench, 1, n_rot * sizeof(float)) != KR_OK) {
        return KR_E_NOMEM;
    }
    float *cos_sin = bench->buffers[1]; /* a true rotation: the numbers keep their size */
    for (size_t i = 0; i < n_rot; i += 2) {
        cos_sin[i] = 0.8f;
        cos_sin[i + 1] = 0.6f;
    }
    return KR_OK;
}

static void call_rope(kri_bench_case_t *bench) {
    ((kri_rope_fn *)bench->fn)(bench->buffers[0], bench->op.dims[0], bench->op.dims[1],
                               bench->op.dims[1], bench->buffers[1]);
}

/* ---- attention: [n_rows, n_heads of the KV head, head_dim, n_keys] -------------------------- */

static const size_t attention_shapes[][4] = {{1, 4, 64, 2048},   {16, 4, 64, 2048},
                                             {1, 4, 128, 2048},  {16, 4, 128, 2048},
                                             {1, 4, 256, 2048},  {16, 4, 256, 2048}};

static size_t attention_item_bytes(const kri_bench_op_t *op) {
    if (strcmp(op->slot, "attention_i8") == 0) return 1;
    return strncmp(op->slot, "attention_f32", 13) == 0 ? 4 : 2;
}

static bool describe_attention(kri_bench_op_t *op, char *shape, size_t cap) {
    const size_t *d = op->dims;
    snprintf(shape, cap, "r%zuxh%zux%zu/k%zu", d[0], d[1], d[2], d[3]);
    op->bytes = 2.0 * (double)(d[3] * d[2] * attention_item_bytes(op));
    op->flops = 4.0 * (double)(d[0] * d[1] * d[2]) * (double)d[3];
    return true;
}

static void fill_attention_pages(const kri_bench_case_t *bench, size_t page_bytes) {
    const uint32_t head_dim = (uint32_t)bench->op.dims[2];
    const size_t item = attention_item_bytes(&bench->op), n_plane = KRI_PAGE_TOKENS * head_dim;
    const size_t n_pages = bench->op.dims[3] / KRI_PAGE_TOKENS;
    uint64_t state = KRI_BENCH_SEED;
    uint8_t *pool = bench->buffers[1];
    kri_kv_store_fn *store = item == 4 ? kri_kv_store_f32_ref : kri_kv_store_f16_ref;
    const kri_kv_place_t place = {0, n_plane, 2 * n_plane};
    for (size_t i = 0; i < n_pages && item == 1; i++) {
        kri_bench_fill_i8(&state, place, head_dim, pool + i * page_bytes);
    }
    for (size_t i = 0; i < n_pages * 2 * n_plane && item != 1; i++) {
        float value;
        kri_bench_fill(&state, &value, 1);
        store(&value, 1, pool + i * item);
    }
}

static kr_status_t prepare_attention(kri_bench_case_t *bench) {
    const size_t *d = bench->op.dims;
    size_t n_pages = d[3] / KRI_PAGE_TOKENS, n_plane = KRI_PAGE_TOKENS * d[2];
    size_t item = attention_item_bytes(&bench->op), scales = item == 1 ? 2 * n_plane : 0;
    size_t page_bytes = 2 * n_plane * item + (item == 1 ? 4 * KRI_PAGE_TOKENS : 0);
    size_t n_query = d[0] * d[1] * d[2];
    if (take_floats(bench, 0, 2 * n_query) != KR_OK ||
        take(bench, 1, n_pages * page_bytes) != KR_OK ||
        take(bench, 2, n_pages * sizeof(uint32_t)) != KR_OK ||
        take(bench, 3, KRI_ATTN_SCRATCH_FLOATS * sizeof(float)) != KR_OK) {
        return KR_E_NOMEM;
    }
    uint8_t *pool = bench->buffers[1];
    uint32_t *table = bench->buffers[2];
    fill_attention_pages(bench, page_bytes);
    for (size_t i = 0; i < n_pages; i++) table[i] = (uint32_t)i;
    float *q = bench->buffers[0];
    bench->attn = (kri_attn_args_t){
        .q = q, .q_stride = d[1] * d[2], .out = q + n_query, .out_stride = d[1] * d[2],
        .pool = pool, .page_bytes = page_bytes, .v_offset = n_plane * item,
        .scale_offset = scales, .page_table = table,
        .n_rows = (uint32_t)d[0], .n_heads = (uint32_t)d[1], .head_dim = (uint32_t)d[2],
        .pos_begin = (uint32_t)(d[3] - d[0]), .scale = 0.125f, .scratch = bench->buffers[3]};
    return KR_OK;
}

static void call_attention(kri_bench_case_t *bench) {
    ((kri_attention_fn *)bench->fn)(&bench->attn);
}

/* ---- the tables ----------------------------------------------------------------------------- */

#define FAMILY(id, shapes, prepare)                                                              \
    static const family_t family_##id = {shapes, sizeof shapes / sizeof shapes[0],               \
                                         describe_##id, prepare, call_##id};
FAMILY(linear, linear_shapes, prepare_linear)
FAMILY(tile_linear, tile_shapes, prepare_tile_linear)
FAMILY(tile_pack, row_shapes, prepare_row)
FAMILY(rms_norm_q8, row_shapes, prepare_row)
FAMILY(quant, row_shapes, prepare_row)
FAMILY(rms_norm, row_shapes, prepare_row)
FAMILY(gated_act, row_shapes, prepare_row)
FAMILY(add, row_shapes, prepare_row)
FAMILY(softcap, row_shapes, prepare_row)
FAMILY(kv_store, row_shapes, prepare_row)
FAMILY(kv_store_i8, row_shapes, prepare_row)
FAMILY(rope, rope_shapes, prepare_rope)
FAMILY(attention, attention_shapes, prepare_attention)

/* A slot of a family without a row above does not compile. */
static const struct slot_s {
    const char *name;
    const family_t *family;
    size_t offset; /* of its pointer in the kernel table */
} slots[] = {
#define KR_OP(slot, type, family, tolerance)                                                     \
    {#slot, &family_##family, offsetof(kri_kernels_t, slot)},
#include "ops/ops.def"
};

#define N_SLOTS (sizeof slots / sizeof slots[0])

static any_fn *slot_fn(const kri_kernels_t *kernels, size_t row) {
    any_fn *fn = NULL;
    memcpy(&fn, (const char *)kernels + slots[row].offset, sizeof fn);
    return fn;
}

/* The table of this level; false when the machine has not got it. */
static bool level_kernels(kri_isa_t level, kri_kernels_t *kernels) {
    return kri_cpu_kernels(kri_isa_name(level), kernels, NULL) == KR_OK;
}

const char *kri_bench_level(const char *isa) {
    kri_kernels_t kernels;
    return kri_cpu_kernels(isa, &kernels, NULL) == KR_OK ? kernels.isa : NULL;
}

static bool make_op(size_t row, const char *isa, const size_t *dims, kri_bench_op_t *op) {
    char shape[48];
    memset(op, 0, sizeof *op);
    op->slot = slots[row].name;
    op->isa = isa;
    op->row = (uint32_t)row;
    memcpy(op->dims, dims, sizeof op->dims);
    if (!slots[row].family->describe(op, shape, sizeof shape)) return false;
    int n = snprintf(op->name, sizeof op->name, "%s/%s/", op->slot, op->isa);
    snprintf(op->name + n, sizeof op->name - (size_t)n, "%s", shape);
    return true;
}

size_t kri_bench_ops_list(const char *isa_max, const char *filter, kri_bench_op_t *ops,
                          size_t cap) {
    size_t n_ops = 0;
    for (size_t row = 0; row < N_SLOTS; row++) {
        const family_t *family = slots[row].family;
        for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++) {
            kri_kernels_t kernels;
            if (!level_kernels(level, &kernels)) continue;
            for (size_t i = 0; i < family->n_shapes; i++) {
                kri_bench_op_t op;
                if (!make_op(row, kernels.isa, family->shapes[i], &op)) continue;
                if (filter != NULL && strstr(op.name, filter) == NULL) continue;
                if (n_ops < cap) {
                    ops[n_ops] = op;
                    ops[n_ops].shape = ops[n_ops].name + strlen(op.slot) + strlen(op.isa) + 2;
                }
                n_ops++;
            }
            if (isa_max != NULL && strcmp(kernels.isa, isa_max) == 0) break;
        }
    }
    return n_ops;
}

kr_status_t kri_bench_case_create(const kri_bench_op_t *op, kri_bench_case_t **out) {
    kri_bench_case_t *bench = kri_calloc(1, sizeof *bench, "bench");
    if (bench == NULL) return KR_E_NOMEM;
    bench->op = *op;
    kr_status_t status = kri_cpu_kernels(op->isa, &bench->kernels, NULL);
    if (status == KR_OK) {
        bench->fn = slot_fn(&bench->kernels, op->row);
        status = slots[op->row].family->prepare(bench);
    }
    if (status == KR_OK) *out = bench;
    else kri_bench_case_destroy(bench);
    return status;
}

void kri_bench_case_destroy(kri_bench_case_t *bench) {
    if (bench == NULL) return;
    for (size_t i = 0; i < N_BUFFERS; i++) kri_free(bench->buffers[i]);
    kri_free(bench);
}

static uint64_t burst_ns(kri_bench_case_t *bench, uint64_t n_calls) {
    void (*call)(kri_bench_case_t *) = slots[bench->op.row].family->call;
    uint64_t start = kri_bench_thread_ns();
    for (uint64_t i = 0; i < n_calls; i++) call(bench);
    return kri_bench_thread_ns() - start;
}

double kri_bench_case_sample(kri_bench_case_t *bench, double seconds) {
    while (bench->n_burst == 0 || burst_ns(bench, bench->n_burst) < BURST_NS_MIN) {
        bench->n_burst = bench->n_burst == 0 ? 1 : bench->n_burst * 2;
    }
    uint64_t best = UINT64_MAX, start = kri_clock_ns();
    for (int i = 0; i < 3 || (double)(kri_clock_ns() - start) < seconds * 1e9; i++) {
        uint64_t ns = burst_ns(bench, bench->n_burst);
        if (ns < best) best = ns;
    }
    return (double)best / (double)bench->n_burst;
}

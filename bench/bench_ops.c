/* bench_ops.c: speed of every linear slot of ops.def at every ISA level of this machine, on one
 * thread: GEMV (one token) and GEMM (64, 256 tokens) at shapes of small models.
 *
 * Usage: bench_ops [FILTER [SECONDS]]    FILTER is part of "linear_q4_k avx512", SECONDS per line
 *
 * Weights are larger than the last-level cache in the GEMV rows, so that GB/s is that of memory.
 * The time is the best of the repetitions; a plain copy's speed is printed first as a yardstick.
 * Shares no binary with the tests, which run with assertions. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cpu/cpu.h"
#include "ops/kernels.h"
#include "ops/pack.h"
#include "tensor/dtype.h"

#define N_TOKENS_MAX 256u
#define GEMV_BYTES (96u << 20) /* weights of one GEMV pass */
#define GEMM_ROWS 512u

static const size_t columns[] = {576, 1536, 2048, 8960};

static void *must_alloc(size_t bytes) {
    void *ptr = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!ptr) {
        fprintf(stderr, "bench_ops: out of memory\n");
        exit(1);
    }
    return ptr;
}

static uint32_t random_u32(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

typedef struct bench_s {
    const char *slot, *isa;
    kri_linear_fn *fn;
    kr_dtype_t dtype;
    size_t n_in, n_rows, n_tokens, group_bytes;
    const uint8_t *packed;
    const void *act;
    size_t act_stride;
    float *out;
} bench_t;

/* Best time of one call in ns: at least three calls and `seconds` in all. */
static uint64_t measure(const bench_t *b, double seconds) {
    size_t n_groups = (b->n_rows + KRI_GROUP_ROWS - 1) / KRI_GROUP_ROWS;
    uint64_t best = UINT64_MAX, start = kri_clock_ns();
    for (int calls = 0; calls < 3 || (double)(kri_clock_ns() - start) < seconds * 1e9; calls++) {
        uint64_t t = kri_clock_ns();
        b->fn(b->packed, b->n_in, n_groups, b->n_rows, b->act, b->act_stride, b->n_tokens, NULL,
              0, b->out, b->n_rows);
        t = kri_clock_ns() - t;
        if (t < best) best = t;
    }
    return best;
}

static void report(const bench_t *b, uint64_t ns) {
    double bytes = (double)(b->n_rows / KRI_GROUP_ROWS * b->group_bytes);
    double macs = (double)b->n_rows * (double)b->n_in * (double)b->n_tokens;
    printf("%-12s %-7s %6zu x %-5zu n %-4zu %12llu ns %8.2f GB/s %8.2f GMAC/s\n", b->slot, b->isa,
           b->n_rows, b->n_in, b->n_tokens, (unsigned long long)ns, bytes / (double)ns,
           macs / (double)ns);
    fflush(stdout);
}

static kr_dtype_t slot_dtype(const char *slot) {
    for (kr_dtype_t dtype = 1; kri_dtype_info(dtype); dtype++)
        if (strcmp(slot + strlen("linear_"), kri_dtype_info(dtype)->name) == 0) return dtype;
    return KR_DTYPE_NONE;
}

/* Any bytes will do as weights; the scales only have to be finite. */
static uint8_t *random_packed(kr_dtype_t dtype, size_t n_in, size_t n_groups,
                              const kri_pack_layout_t *layout) {
    const kri_dtype_info_t *info = kri_dtype_info(dtype);
    size_t row_bytes = n_in / info->block_items * info->block_bytes;
    uint8_t *rows = must_alloc(row_bytes * KRI_GROUP_ROWS);
    uint8_t *packed = must_alloc(layout->group_bytes * n_groups);
    for (size_t i = 0; i < row_bytes * KRI_GROUP_ROWS; i++) /* halves and floats below 1 */
        rows[i] = (uint8_t)(i % 2 ? 0x20 | (random_u32() & 0x8f) : random_u32());
    kri_pack_rows(dtype, rows, row_bytes, KRI_GROUP_ROWS, n_in, 0, 1, packed);
    for (size_t g = 1; g < n_groups; g++)
        memcpy(packed + g * layout->group_bytes, packed, layout->group_bytes);
    free(rows);
    return packed;
}

static bool is_float(kr_dtype_t dtype) {
    return dtype == KR_DTYPE_F32 || dtype == KR_DTYPE_F16 || dtype == KR_DTYPE_BF16;
}

static void bench_shape(bench_t *b, double seconds) {
    static const size_t token_counts[] = {1, 64, 256};
    kri_pack_layout_t layout;
    if (!kri_pack_layout(b->dtype, b->n_in, &layout)) return; /* 576 is no multiple of 256 */
    size_t n_groups = GEMV_BYTES / layout.group_bytes + 1;
    uint8_t *packed = random_packed(b->dtype, b->n_in, n_groups, &layout);
    float *x = must_alloc(N_TOKENS_MAX * b->n_in * sizeof *x);
    kri_q8_block_t *q8 = must_alloc(N_TOKENS_MAX * b->n_in / 32 * sizeof *q8);
    float *out = must_alloc((n_groups * KRI_GROUP_ROWS + N_TOKENS_MAX * GEMM_ROWS) * sizeof *out);
    for (size_t i = 0; i < N_TOKENS_MAX * b->n_in; i++)
        x[i] = (float)(int32_t)random_u32() * 0x1p-31f;
    kri_quant_q8_ref(x, N_TOKENS_MAX * b->n_in, q8);
    b->group_bytes = layout.group_bytes;
    b->packed = packed;
    b->out = out;
    b->act = is_float(b->dtype) ? (const void *)x : q8;
    b->act_stride = is_float(b->dtype) ? b->n_in * 4 : b->n_in / 32 * sizeof *q8;
    for (size_t i = 0; i < sizeof token_counts / sizeof *token_counts; i++) {
        b->n_tokens = token_counts[i];
        b->n_rows = b->n_tokens == 1 ? n_groups * KRI_GROUP_ROWS : GEMM_ROWS;
        if (b->n_rows > n_groups * KRI_GROUP_ROWS) b->n_rows = n_groups * KRI_GROUP_ROWS;
        report(b, measure(b, seconds));
    }
    free(packed);
    free(x);
    free(q8);
    free(out);
}

static void bench_linear(const char *slot, kri_linear_fn *fn, kri_isa_t level, const char *filter,
                         double seconds) {
    char line[64];
    bench_t b = {.slot = slot, .isa = kri_isa_name(level), .fn = fn, .dtype = slot_dtype(slot)};
    snprintf(line, sizeof line, "%s %s", slot, b.isa);
    if (!strstr(line, filter)) return;
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        b.n_in = columns[i];
        bench_shape(&b, seconds);
    }
}

/* Reads and writes of a large copy: the ceiling that GEMV is held against. */
static void bench_copy(void) {
    size_t bytes = 256u << 20;
    uint8_t *from = must_alloc(bytes), *to = must_alloc(bytes);
    uint64_t best = UINT64_MAX;
    memset(from, 1, bytes);
    memset(to, 2, bytes);
    for (int i = 0; i < 5; i++) {
        uint64_t t = kri_clock_ns();
        memcpy(to, from, bytes);
        t = kri_clock_ns() - t;
        if (t < best) best = t;
    }
    printf("copy of 256 MiB: %.2f GB/s read and as much written (checked byte %d)\n",
           (double)bytes / (double)best, to[bytes / 2]);
    free(from);
    free(to);
}

#define RUN_linear(slot) bench_linear(#slot, kernels.slot, level, filter, seconds);
#define RUN_quant(slot)
#define RUN_rms_norm(slot)
#define RUN_rms_norm_q8(slot)
#define RUN_rope(slot)
#define RUN_gated_act(slot)
#define RUN_add(slot)
#define RUN_softcap(slot)
#define RUN_tile_pack(slot)
#define RUN_tile_linear(slot)
#define RUN_kv_store(slot)
#define RUN_attention(slot)

int main(int argc, char **argv) {
    const char *filter = argc > 1 ? argv[1] : "";
    double seconds = argc > 2 ? atof(argv[2]) : 0.2;
    printf("highest level: %s\n", kri_isa_name(kri_isa_detect()));
    bench_copy();
    for (kri_isa_t level = KRI_ISA_REF; level <= kri_isa_detect(); level++) {
        kri_kernels_t kernels;
        if (kri_cpu_kernels(kri_isa_name(level), &kernels, NULL) != KR_OK) return 1;
#define KR_OP(slot, type, family, tolerance) RUN_##family(slot)
#include "ops/ops.def"
    }
    return 0;
}

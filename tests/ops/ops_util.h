/* ops_util.h: what the op tests share: seeded numbers, buffers between guard pages, comparison
 * against a reference, random weights, ISA levels and golden files. Everything is static inline
 * because each test is one source file. */
#ifndef KR_TESTS_OPS_UTIL_H
#define KR_TESTS_OPS_UTIL_H

#include <math.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "test.h"

#include "cpu/cpu.h"
#include "ops/kernels.h"
#include "ops/pack.h"
#include "tensor/dtype.h"

/* Under the arm stage of tools/run_tests.py: a slow CPU, so the largest cases are left out. */
static inline bool is_emulated(void) { return getenv("KR_TEST_ISA") != NULL; }

/* ---- numbers (xorshift64*) ----------------------------------------------------------------- */

typedef struct rng_s {
    uint64_t state;
} rng_t;

static inline uint32_t rng_u32(rng_t *rng) {
    rng->state ^= rng->state >> 12;
    rng->state ^= rng->state << 25;
    rng->state ^= rng->state >> 27;
    return (uint32_t)((rng->state * 0x2545f4914f6cdd1du) >> 32);
}
static inline size_t rng_range(rng_t *rng, size_t low, size_t high) { /* inclusive */
    return low + rng_u32(rng) % (high - low + 1);
}
static inline float rng_uniform(rng_t *rng) { /* -1..1 */
    return (float)(int32_t)rng_u32(rng) * 0x1p-31f;
}
static inline float rng_normal(rng_t *rng) { /* sum of uniforms: close enough, never extreme */
    return rng_uniform(rng) + rng_uniform(rng) + rng_uniform(rng);
}
static inline void rng_fill(rng_t *rng, float *x, size_t n, float sigma) {
    for (size_t i = 0; i < n; i++) x[i] = sigma * rng_normal(rng);
}

/* ---- buffers between guard pages ----------------------------------------------------------- */

typedef struct guard_s {
    uint8_t *map;
    size_t map_bytes, page_bytes, data_bytes;
    void *data;
} guard_t;

/* `bytes` bytes that end at an inaccessible page, or begin after one. A buffer at the end is only
 * as aligned as its size, so kernels see odd addresses without further ado. Contents: 0xa5. */
static inline guard_t guard_new(size_t bytes, bool at_end) {
    guard_t g = {.page_bytes = (size_t)sysconf(_SC_PAGESIZE), .data_bytes = bytes};
    size_t inner = (bytes + g.page_bytes - 1) / g.page_bytes * g.page_bytes;
    if (inner == 0) inner = g.page_bytes;
    g.map_bytes = inner + 2 * g.page_bytes;
    void *map = mmap(NULL, g.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(map != MAP_FAILED);
    g.map = map;
    assert_int_equal(mprotect(g.map + g.page_bytes, inner, PROT_READ | PROT_WRITE), 0);
    g.data = g.map + g.page_bytes + (at_end ? inner - bytes : 0);
    memset(g.data, 0xa5, bytes);
    return g;
}
/* From now on a write faults. */
static inline void guard_lock(const guard_t *g) {
    size_t inner = g->map_bytes - 2 * g->page_bytes;
    assert_int_equal(mprotect(g->map + g->page_bytes, inner, PROT_READ), 0);
}
static inline void guard_free(guard_t *g) {
    assert_int_equal(munmap(g->map, g->map_bytes), 0);
}
static inline guard_t guard_copy(const void *src, size_t bytes, bool at_end) {
    guard_t g = guard_new(bytes, at_end);
    memcpy(g.data, src, bytes);
    return g;
}

static inline void *must_alloc(size_t bytes) {
    void *ptr = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    assert_non_null(ptr);
    return ptr;
}

/* ---- comparison ---------------------------------------------------------------------------- */

static inline bool same_float(float a, float b) {
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

/* Same bits (any NaN for any NaN). */
static inline void assert_same_floats(const float *a, const float *b, size_t n,
                                      const char *what) {
    for (size_t i = 0; i < n; i++)
        if (!same_float(a[i], b[i]))
            fail_msg("%s: item %zu of %zu: %.9g is not %.9g", what, i, n, (double)a[i],
                     (double)b[i]);
}

/* Largest |actual - expected| relative to the largest finite |expected|; infinity when a
 * non-finite value has no equal. */
static inline double row_error(const float *actual, const float *expected, size_t n) {
    double largest = 0, difference = 0;
    for (size_t i = 0; i < n; i++) {
        double a = (double)actual[i], e = (double)expected[i];
        if (!isfinite(e) || !isfinite(a)) {
            if (!((isnan(a) && isnan(e)) || a == e)) return INFINITY;
            continue;
        }
        if (fabs(e) > largest) largest = fabs(e);
        if (fabs(a - e) > difference) difference = fabs(a - e);
    }
    return difference == 0 ? 0 : difference / (largest > 0 ? largest : 1);
}

/* ---- weights ------------------------------------------------------------------------------- */

typedef enum fill_e { FILL_NORMAL, FILL_HOSTILE } fill_t;

static inline uint16_t random_half(rng_t *rng, fill_t fill) {
    static const uint16_t hostile[] = {0, 0x8000, 1, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x3c00};
    if (fill == FILL_HOSTILE) return hostile[rng_u32(rng) % 8];
    return kri_f32_to_f16(0.05f * rng_uniform(rng));
}

/* Random file blocks [n_items]. Hostile: scales that are zero, subnormal or the largest, quants
 * that are all the same extreme byte. */
static inline void random_blocks(rng_t *rng, kr_dtype_t dtype, fill_t fill, size_t n_items,
                                 uint8_t *dst) {
    static const uint8_t extremes[] = {0x00, 0xff, 0x80, 0x7f, 0x0f, 0xf0};
    const kri_dtype_info_t *info = kri_dtype_info(dtype);
    size_t n_blocks = n_items / info->block_items;
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t *block = dst + b * info->block_bytes;
        uint8_t extreme = extremes[rng_u32(rng) % 6];
        uint16_t d = random_half(rng, fill), m = random_half(rng, fill);
        if (kri_dtype_is_float(dtype)) {
            float f = fill == FILL_HOSTILE ? kri_f16_to_f32(d) : 0.05f * rng_normal(rng);
            uint32_t bits;
            memcpy(&bits, &f, sizeof bits);
            uint16_t h = dtype == KR_DTYPE_F16 ? kri_f32_to_f16(f) : (uint16_t)(bits >> 16);
            if (dtype == KR_DTYPE_F32) memcpy(block, &f, 4);
            else memcpy(block, &h, 2);
            continue;
        }
        for (size_t i = 0; i < info->block_bytes; i++)
            block[i] = fill == FILL_HOSTILE ? extreme : (uint8_t)rng_u32(rng);
        memcpy(block + (dtype == KR_DTYPE_Q6_K ? 208 : 0), &d, 2);
        if (dtype == KR_DTYPE_Q4_1 || dtype == KR_DTYPE_Q5_1 || dtype == KR_DTYPE_Q4_K ||
            dtype == KR_DTYPE_Q5_K)
            memcpy(block + 2, &m, 2);
    }
}

/* A random matrix in file blocks and packed. */
typedef struct matrix_s {
    kr_dtype_t dtype;
    size_t n_rows, n_in, row_bytes, n_groups, packed_bytes;
    kri_pack_layout_t layout;
    uint8_t *file, *packed;
} matrix_t;

static inline matrix_t matrix_new(rng_t *rng, kr_dtype_t dtype, fill_t fill, size_t n_rows,
                                  size_t n_in) {
    const kri_dtype_info_t *info = kri_dtype_info(dtype);
    matrix_t m = {.dtype = dtype, .n_rows = n_rows, .n_in = n_in};
    m.row_bytes = n_in / info->block_items * info->block_bytes;
    m.n_groups = (n_rows + KRI_GROUP_ROWS - 1) / KRI_GROUP_ROWS;
    assert_true(kri_pack_layout(dtype, n_in, &m.layout));
    m.packed_bytes = m.n_groups * m.layout.group_bytes;
    m.file = must_alloc(m.row_bytes * n_rows);
    m.packed = must_alloc(m.packed_bytes);
    random_blocks(rng, dtype, fill, n_rows * n_in, m.file);
    kri_pack_rows(dtype, m.file, m.row_bytes, n_rows, n_in, 0, m.n_groups, m.packed);
    return m;
}
static inline void matrix_free(matrix_t *m) {
    free(m->file);
    free(m->packed);
}

/* "linear_q4_k" -> KR_DTYPE_Q4_K */
static inline kr_dtype_t slot_dtype(const char *slot) {
    for (kr_dtype_t dtype = 1; kri_dtype_info(dtype); dtype++)
        if (strcmp(slot + strlen("linear_"), kri_dtype_info(dtype)->name) == 0) return dtype;
    fail_msg("no type for slot %s", slot);
    return KR_DTYPE_NONE;
}

/* ---- ISA levels ---------------------------------------------------------------------------- */

/* The table of exactly this level; false (said aloud) when the machine has not got it. */
static inline bool level_kernels(kri_isa_t level, const char *slot, kri_kernels_t *kernels) {
    if (level > kri_isa_detect()) {
        fprintf(stderr, "SKIP %s: no %s on this machine\n", slot, kri_isa_name(level));
        return false;
    }
    assert_status(kri_cpu_kernels(kri_isa_name(level), kernels, NULL), KR_OK);
    return true;
}

/* ---- golden files (tests/golden/make_dequant.py states the container) ---------------------- */

typedef struct golden_s {
    uint8_t *bytes;
    size_t n_bytes;
} golden_t;

static inline golden_t golden_open(const char *name) {
    char path[512];
    golden_t g;
    snprintf(path, sizeof path, "%s/tests/golden/%s", KR_SOURCE_DIR, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    g.bytes = must_alloc(1u << 20);
    g.n_bytes = fread(g.bytes, 1, 1u << 20, file);
    fclose(file);
    assert_true(g.n_bytes > 0 && g.n_bytes < 1u << 20);
    return g;
}

static inline const void *golden_find(const golden_t *g, const char *name, size_t *n_bytes) {
    for (size_t at = 0; at + 28 <= g->n_bytes;) {
        uint32_t n;
        memcpy(&n, g->bytes + at + 24, 4);
        assert_true(at + 28 + n <= g->n_bytes);
        if (strncmp((const char *)g->bytes + at, name, 24) == 0) {
            *n_bytes = n;
            return g->bytes + at + 28;
        }
        at += 28 + (n + 3u) / 4u * 4u;
    }
    *n_bytes = 0;
    fail_msg("no record %s", name);
    return NULL;
}
static inline const float *golden_floats(const golden_t *g, const char *name, size_t *n) {
    const void *data = golden_find(g, name, n);
    *n /= sizeof(float);
    return data;
}

#endif

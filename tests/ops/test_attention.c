/* test_attention.c: the attention rows of ops.def: every level against the reference over
 * shuffled pages, and at every level the same bits for a row whatever tile it is in and whether
 * its spans are computed in one call or one by one. */
#include "ops_util.h"

#include "ops/step.h"

#define N_KEYS_MAX 1600u

/* Pages of one layer and KV head, [K | V][16][head_dim] and the scales of int8, at shuffled places;
 * slots outside [first, end) hold NaN and stand for what other sequences left there. */
typedef struct cache_s {
    guard_t pool;
    size_t page_bytes;
    kri_kv_place_t place;
    uint32_t page_table[N_KEYS_MAX / KRI_PAGE_TOKENS + 1];
} cache_t;

static kr_dtype_t cache_dtype(const char *slot) {
    return strstr(slot, "f16") ? KR_DTYPE_F16 : strstr(slot, "i8") ? KR_DTYPE_I8 : KR_DTYPE_F32;
}

static void put_row(uint8_t *to, kr_dtype_t dtype, size_t slot, const float *x, size_t n) {
    size_t item = dtype == KR_DTYPE_F32 ? 4 : 2;
    kri_kv_store_fn *store = item == 4 ? kri_kv_store_f32_ref : kri_kv_store_f16_ref;
    store(x, n, to + slot * n * item);
}

/* A key and a value to a slot of a page. */
static void put_slot(uint8_t *page, kri_kv_place_t place, kr_dtype_t dtype, size_t slot,
                     const float *k, const float *v, uint32_t head_dim) {
    if (dtype != KR_DTYPE_I8) {
        put_row(page + place.k, dtype, slot, k, head_dim);
        put_row(page + place.v, dtype, slot, v, head_dim);
        return;
    }
    int8_t q[KRI_HEAD_DIM_MAX];
    float difference[KRI_HEAD_DIM_MAX];
    uint16_t scale, first;
    bool differs = slot % 3 == 1; /* such keys are kept as differences to the one of slot 0 */
    memcpy(&first, page + place.scales, 2);
    for (size_t i = 0; i < head_dim; i++)
        difference[i] = k[i] - kri_f16_to_f32(first) *
                                   (float)(page[place.k + kri_i8_key_at(0, i)] - 128);
    kri_kv_store_i8_ref(differs ? difference : k, head_dim, q, &scale);
    if (differs) scale |= KRI_I8_DIFFERENCE;
    memcpy(page + place.scales + 2 * slot, &scale, 2);
    for (size_t i = 0; i < head_dim; i++)
        page[place.k + kri_i8_key_at(slot, i)] = (uint8_t)(q[i] + 128);
    kri_kv_store_i8_ref(v, head_dim, q, &scale);
    memcpy(page + place.scales + 2 * (16 + slot), &scale, 2);
    for (size_t i = 0; i < head_dim; i++)
        page[place.v + kri_i8_value_at(head_dim, slot, i)] = (uint8_t)q[i];
}

/* What a page of one layer and one KV head looks like. */
static kri_kv_place_t page_place(kr_dtype_t dtype, uint32_t head_dim, size_t *page_bytes) {
    kri_kv_group_t group = {.dtype = dtype, .n_layers = 1, .n_kv_heads = 1, .head_dim = head_dim};
    assert_true(kri_kv_page_bytes(dtype, 1, 1, head_dim, page_bytes));
    return kri_kv_place(&group, 0, 0);
}

static cache_t cache_new(rng_t *rng, kr_dtype_t dtype, uint32_t head_dim, uint32_t first,
                         uint32_t end) {
    cache_t cache = {.page_bytes = 0};
    uint32_t n_pages = (end + KRI_PAGE_TOKENS - 1) / KRI_PAGE_TOKENS;
    cache.place = page_place(dtype, head_dim, &cache.page_bytes);
    cache.pool = guard_new(n_pages * cache.page_bytes, true);
    /* Past the last page: an id far outside the pool, so that a look faults. */
    for (size_t p = 0; p <= N_KEYS_MAX / KRI_PAGE_TOKENS; p++) cache.page_table[p] = 1u << 20;
    for (uint32_t p = 0; p < n_pages; p++) cache.page_table[p] = p;
    for (uint32_t p = n_pages; p-- > 1;) {
        uint32_t other = rng_u32(rng) % (p + 1), id = cache.page_table[p];
        cache.page_table[p] = cache.page_table[other];
        cache.page_table[other] = id;
    }
    for (uint32_t key = 0; key < n_pages * KRI_PAGE_TOKENS; key++) {
        uint8_t *page = (uint8_t *)cache.pool.data +
                        cache.page_table[key / KRI_PAGE_TOKENS] * cache.page_bytes;
        /* Differences need the key of slot 0: it is there, if out of the window. */
        bool is_first = dtype == KR_DTYPE_I8 && key % 16 == 0 && key + 16 > first;
        bool seen = (key >= first || is_first) && key < end;
        float k[KRI_HEAD_DIM_MAX], v[KRI_HEAD_DIM_MAX];
        for (size_t i = 0; i < head_dim; i++) {
            k[i] = seen ? rng_normal(rng) : NAN;
            v[i] = seen ? rng_normal(rng) : NAN;
        }
        put_slot(page, cache.place, dtype, key % KRI_PAGE_TOKENS, k, v, head_dim);
    }
    guard_lock(&cache.pool);
    return cache;
}

/* Scratch between guard pages, full of NaN. */
static guard_t scratch_new(void) {
    guard_t g = guard_new(KRI_ATTN_SCRATCH_FLOATS * sizeof(float), true);
    memset(g.data, 0xff, g.data_bytes);
    return g;
}

/* Where rows, windows, blocks (64) and spans (512) begin and end against each other. */
typedef struct place_s {
    uint32_t pos_begin, n_rows, window;
} place_t;
static const place_t places[] = {
    {0, 1, 0},    {0, 1, 64},      {0, 256, 0},    {0, 90, 5},      {63, 1, 0},    {64, 1, 64},
    {100, 30, 0}, {127, 2, 1},     {511, 1, 0},    {512, 1, 0},     {500, 30, 0},  {500, 30, 700},
    {520, 3, 64}, {575, 20, 64},   {1000, 60, 100}, {1023, 1, 512}, {1023, 2, 513}, {1100, 1, 600},
    {1535, 9, 0}, {1200, 70, 130}, {300, 256, 20},
};
#define N_PLACES (sizeof places / sizeof places[0])

static void case_args(rng_t *rng, uint32_t head_dim, const place_t *place,
                      kri_attn_args_t *args) {
    static const uint32_t head_counts[] = {1, 2, 3, 4, 5, 7, 8, 16, 64};
    uint32_t n_queries = kri_attn_tile_queries(head_dim);
    args->head_dim = head_dim;
    args->n_heads = head_counts[rng_u32(rng) % (place->n_rows == 1 ? 9 : 7)];
    args->n_rows = place->n_rows;
    if (args->n_rows * args->n_heads > n_queries) args->n_rows = n_queries / args->n_heads;
    args->pos_begin = place->pos_begin;
    args->window = place->window;
    args->softcap = rng_u32(rng) % 3 == 0 ? 2.0f : 0.0f;
    args->scale = 1.0f / sqrtf((float)head_dim);
    /* A row is other heads' columns too: q as in qkv, out as in [n_heads, head_dim]. */
    args->q_stride = (size_t)args->n_heads * head_dim + head_dim * (rng_u32(rng) % 3);
    args->out_stride = (size_t)args->n_heads * head_dim + (rng_u32(rng) % 2) * 32;
}

/* One span after the other and in any order, then merged: the bits of the whole. */
static void check_stages(kri_attention_fn *fn, const kri_attn_args_t *tile, const char *what) {
    uint32_t begin, end;
    size_t row_floats = (size_t)tile->n_heads * tile->head_dim;
    size_t record = KRI_ATTN_PARTIAL_FLOATS(tile->head_dim);
    kri_attn_spans(tile->pos_begin, tile->n_rows, tile->window, &begin, &end);
    size_t bytes = (end - begin) * tile->n_rows * tile->n_heads * record * sizeof(float);
    guard_t partials = guard_new(bytes, true);
    memset(partials.data, 0xff, bytes);
    kri_attn_args_t args = *tile;
    args.partials = partials.data;
    args.out = NULL;
    args.stage = KRI_ATTN_PARTIAL;
    for (args.span = end; args.span-- > begin;) fn(&args);
    float *out = must_alloc(tile->n_rows * tile->out_stride * sizeof *out);
    args.out = out;
    args.stage = KRI_ATTN_MERGE;
    fn(&args);
    for (uint32_t r = 0; r < tile->n_rows; r++)
        assert_same_floats(out + r * tile->out_stride, tile->out + r * tile->out_stride,
                           row_floats, what);
    free(out);
    guard_free(&partials);
}

/* Each row on its own, with the tile's bits. */
static void check_rows_alone(kri_attention_fn *fn, const kri_attn_args_t *tile, const char *what) {
    float *out = must_alloc((size_t)tile->n_heads * tile->head_dim * sizeof *out);
    for (uint32_t r = 0; r < tile->n_rows; r += tile->n_rows > 32 ? 9 : 1) {
        kri_attn_args_t row = *tile;
        row.q = tile->q + r * tile->q_stride;
        row.out = out;
        row.n_rows = 1;
        row.pos_begin = tile->pos_begin + r;
        fn(&row);
        assert_same_floats(out, tile->out + r * tile->out_stride,
                           (size_t)tile->n_heads * tile->head_dim, what);
    }
    /* And each head on its own. */
    for (uint32_t h = 0; h < tile->n_heads; h++) {
        kri_attn_args_t head = *tile;
        uint32_t r = tile->n_rows - 1;
        head.q = tile->q + r * tile->q_stride + (size_t)h * tile->head_dim;
        head.out = out;
        head.n_rows = head.n_heads = 1;
        head.pos_begin = tile->pos_begin + r;
        fn(&head);
        assert_same_floats(out,
                           tile->out + r * tile->out_stride + (size_t)h * tile->head_dim,
                           tile->head_dim, what);
    }
    free(out);
}

static double check_case(rng_t *rng, kri_attention_fn *ref, kri_attention_fn *fn, kr_dtype_t dtype,
                         uint32_t head_dim, const place_t *place, double tolerance,
                         const char *what) {
    kri_attn_args_t args = {.q = NULL};
    case_args(rng, head_dim, place, &args);
    uint32_t first = args.window && args.pos_begin >= args.window
                         ? args.pos_begin - args.window + 1 : 0;
    cache_t cache = cache_new(rng, dtype, head_dim, first, args.pos_begin + args.n_rows);
    size_t row_floats = (size_t)args.n_heads * head_dim;
    size_t q_floats = (args.n_rows - 1) * args.q_stride + row_floats;
    size_t out_floats = (args.n_rows - 1) * args.out_stride + row_floats;
    guard_t q = guard_new(q_floats * sizeof(float), true);
    guard_t out = guard_new(out_floats * sizeof(float), true);
    guard_t scratch = scratch_new();
    float *expected = must_alloc(out_floats * sizeof *expected);
    memset(expected, 0xa5, out_floats * sizeof *expected);
    rng_fill(rng, q.data, q_floats, 2.0f);
    guard_lock(&q);
    args.q = q.data;
    args.pool = cache.pool.data;
    args.page_bytes = cache.page_bytes;
    args.v_offset = cache.place.v;
    args.scale_offset = cache.place.scales;
    args.page_table = cache.page_table;
    args.scratch = scratch.data;
    args.out = expected;
    ref(&args);
    args.out = out.data;
    fn(&args);
    double worst = 0;
    for (uint32_t r = 0; r < args.n_rows; r++) {
        double error = row_error(args.out + r * args.out_stride, expected + r * args.out_stride,
                                 row_floats);
        if (!(error <= tolerance))
            fail_msg("%s dim %u heads %u row %u of %u pos %u window %u: error %g", what, head_dim,
                     args.n_heads, r, args.n_rows, args.pos_begin, args.window, error);
        if (error > worst) worst = error;
        if (r + 1 < args.n_rows) /* the gap between rows is not ours */
            assert_memory_equal(args.out + r * args.out_stride + row_floats,
                                expected + r * args.out_stride + row_floats,
                                (args.out_stride - row_floats) * sizeof(float));
    }
    check_rows_alone(fn, &args, what);
    check_stages(fn, &args, what);
    guard_free(&q);
    guard_free(&out);
    guard_free(&scratch);
    guard_free(&cache.pool);
    free(expected);
    return worst;
}

static void check_attention(const char *slot, kri_attention_fn *ref, kri_attention_fn *fn,
                            double tolerance, const char *isa) {
    static const uint32_t dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 512};
    kr_dtype_t dtype = cache_dtype(slot);
    rng_t rng = {31};
    double worst = 0;
    char what[64];
    snprintf(what, sizeof what, "%s %s", slot, isa);
    for (size_t i = 0; i < 11; i++) { /* every place for common head sizes, some for others */
        bool is_common = dims[i] == 64 || dims[i] == 80 || dims[i] == 96 || dims[i] == 128 ||
                         dims[i] == 256;
        size_t step = fn != ref && is_common ? 1 : 4; /* the reference is slow */
        if (is_emulated()) step *= 5; /* and so is an emulated CPU */
        for (size_t k = i % step; k < N_PLACES; k += step) {
            double error = check_case(&rng, ref, fn, dtype, dims[i], &places[k], tolerance, what);
            if (error > worst) worst = error;
        }
    }
    print_message("%s: error %.2g of %.2g\n", what, worst, tolerance);
}

/* A query that is not a number gives NaN in its own row only. */
static void check_bad_query(kri_attention_fn *fn, kr_dtype_t dtype) {
    enum { DIM = 64, ROWS = 4 };
    rng_t rng = {32};
    cache_t cache = cache_new(&rng, dtype, DIM, 0, 100 + ROWS);
    float q[ROWS * DIM], clean[ROWS * DIM], out[ROWS * DIM];
    guard_t scratch = scratch_new();
    kri_attn_args_t args = {
        .q = q, .q_stride = DIM, .out = clean, .out_stride = DIM, .pool = cache.pool.data,
        .page_bytes = cache.page_bytes, .v_offset = cache.place.v,
        .scale_offset = cache.place.scales,
        .page_table = cache.page_table, .n_rows = ROWS, .n_heads = 1, .head_dim = DIM,
        .pos_begin = 100, .scale = 0.125f, .scratch = scratch.data,
    };
    rng_fill(&rng, q, ROWS * DIM, 1.0f);
    fn(&args);
    q[2 * DIM + 5] = NAN;
    args.out = out;
    fn(&args);
    for (size_t i = 0; i < DIM; i++) assert_true(isnan(out[2 * DIM + i]));
    memcpy(out + 2 * DIM, clean + 2 * DIM, DIM * sizeof *out);
    assert_same_floats(out, clean, ROWS * DIM, "other rows");
    guard_free(&scratch);
    guard_free(&cache.pool);
}

/* One query of ones over n_keys keys of ones, some of them replaced; element 3 of the output. */
static float weigh_keys(kri_attention_fn *fn, kr_dtype_t dtype, uint32_t n_keys, uint32_t begin,
                        uint32_t end, float key_value) {
    enum { DIM = 16 };
    float q[DIM], out[DIM], k[DIM], v[DIM];
    size_t page_bytes = 0;
    kri_kv_place_t place = page_place(dtype, DIM, &page_bytes);
    uint32_t page_table[N_KEYS_MAX / KRI_PAGE_TOKENS], n_pages = n_keys / KRI_PAGE_TOKENS + 1;
    uint8_t *pool = must_alloc(n_pages * page_bytes);
    guard_t scratch = scratch_new();
    for (uint32_t p = 0; p < n_pages; p++) page_table[p] = p;
    for (size_t i = 0; i < DIM; i++) q[i] = 1.0f;
    for (uint32_t key = 0; key < n_pages * KRI_PAGE_TOKENS; key++) {
        uint8_t *page = pool + key / KRI_PAGE_TOKENS * page_bytes;
        for (size_t i = 0; i < DIM; i++) {
            k[i] = key >= begin && key < end ? key_value : 1.0f;
            v[i] = key >= begin && key < end ? 100.0f : 2.0f;
        }
        put_slot(page, place, dtype, key % KRI_PAGE_TOKENS, k, v, DIM);
    }
    kri_attn_args_t args = {
        .q = q, .q_stride = DIM, .out = out, .out_stride = DIM, .pool = pool,
        .page_bytes = page_bytes, .v_offset = place.v, .scale_offset = place.scales,
        .page_table = page_table, .n_rows = 1,
        .n_heads = 1, .head_dim = DIM, .pos_begin = n_keys - 1, .scale = 0.25f,
        .scratch = scratch.data,
    };
    fn(&args);
    guard_free(&scratch);
    free(pool);
    return out[3];
}

/* Keys whose score is infinite: the first one, whole blocks, a whole span, all. */
static void check_infinite_scores(kri_attention_fn *fn, kr_dtype_t dtype, bool integers) {
    static const uint32_t ranges[][2] = {{0, 1},   {0, 64},  {0, 512},   {0, 513},
                                         {63, 70}, {1, 700}, {512, 700}, {600, 700}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        const uint32_t *range = ranges[i];
        float negative = weigh_keys(fn, dtype, 700, range[0], range[1], -INFINITY);
        if (integers) assert_true(isnan(negative)); /* such a key has no scale */
        else assert_true(fabsf(negative - 2.0f) < 1e-5f);
        assert_true(isnan(weigh_keys(fn, dtype, 700, range[0], range[1], INFINITY)));
        assert_true(isnan(weigh_keys(fn, dtype, 700, range[0], range[1], NAN)));
    }
    assert_true(isnan(weigh_keys(fn, dtype, 700, 0, 700, -INFINITY)));
    /* Nothing but zeros is a score of 0 and not a scale of infinity. */
    float value_error = dtype == KR_DTYPE_I8 ? 100.0f * 0x1p-11f : 1e-3f; /* of an f16 scale */
    assert_true(fabsf(weigh_keys(fn, dtype, 10, 0, 10, 0.0f) - 100.0f) < value_error);
}

/* A value that is not a number shows in the rows that see it and in no other, and its key's scale,
 * which the weights take up, does so too where values are summed in integers. */
TEST(attention_i8_shows_a_bad_value_to_the_rows_that_see_it) {
    enum { DIM = 64, ROWS = 40, BAD = 110 };
    for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++) {
        kri_kernels_t kernels;
        if (!level_kernels(level, "attention_i8", &kernels)) continue;
        rng_t rng = {33};
        cache_t cache = cache_new(&rng, KR_DTYPE_I8, DIM, 0, 100 + ROWS);
        float q[ROWS * DIM], clean[ROWS * DIM], out[ROWS * DIM];
        guard_t scratch = scratch_new();
        kri_attn_args_t args = {
            .q = q, .q_stride = DIM, .out = clean, .out_stride = DIM, .pool = cache.pool.data,
            .page_bytes = cache.page_bytes, .v_offset = cache.place.v,
            .scale_offset = cache.place.scales, .page_table = cache.page_table, .n_rows = ROWS,
            .n_heads = 1, .head_dim = DIM, .pos_begin = 100, .window = 16, .scale = 0.125f,
            .scratch = scratch.data,
        };
        uint8_t *pool = must_alloc(cache.pool.data_bytes);
        memcpy(pool, cache.pool.data, cache.pool.data_bytes);
        rng_fill(&rng, q, ROWS * DIM, 1.0f);
        kernels.attention_i8(&args);
        uint16_t nan = 0x7e00;
        memcpy(pool + cache.page_table[BAD / 16] * cache.page_bytes + cache.place.scales +
                   2 * (16 + BAD % 16), &nan, 2);
        args.pool = pool;
        args.out = out;
        kernels.attention_i8(&args);
        for (size_t r = 0; r < ROWS; r++) {
            bool sees = 100 + r >= BAD && 100 + r < BAD + 16;
            if (sees) assert_true(isnan(out[r * DIM]) && isnan(out[r * DIM + DIM - 1]));
            else assert_same_floats(out + r * DIM, clean + r * DIM, DIM, "other rows");
        }
        free(pool);
        guard_free(&scratch);
        guard_free(&cache.pool);
    }
}

#define RUN_quant(slot, tol)
#define RUN_linear(slot, tol)
#define RUN_rms_norm(slot, tol)
#define RUN_rms_norm_q8(slot, tol)
#define RUN_rope(slot, tol)
#define RUN_gated_act(slot, tol)
#define RUN_add(slot, tol)
#define RUN_softcap(slot, tol)
#define RUN_kv_store(slot, tol)
#define RUN_kv_store_i8(slot, tol)
#define RUN_attention(slot, tol)                                                                 \
    TEST(slot##_matches_the_reference_in_any_tile) {                                             \
        kri_kernels_t kernels = {.slot = NULL};                                                  \
        for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++) {                        \
            kri_attention_fn *below = kernels.slot; /* a level may have no kernel of its own */  \
            if (level_kernels(level, #slot, &kernels) && kernels.slot != below)                  \
                check_attention(#slot, kri_##slot##_ref, kernels.slot, tol,                      \
                                kri_isa_name(level));                                            \
        }                                                                                        \
    }                                                                                            \
    TEST(slot##_gives_minus_infinity_no_weight) {                                                \
        kri_kernels_t kernels;                                                                   \
        for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++)                          \
            if (level_kernels(level, #slot, &kernels))                                           \
                check_infinite_scores(kernels.slot, cache_dtype(#slot),                           \
                                      strstr(#slot, "_qk") || strstr(#slot, "_i8"));             \
    }                                                                                            \
    TEST(slot##_shows_a_bad_query) {                                                             \
        kri_kernels_t kernels;                                                                   \
        for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++)                          \
            if (level_kernels(level, #slot, &kernels))                                           \
                check_bad_query(kernels.slot, cache_dtype(#slot));                                \
    }
#define RUN_tile_pack(slot, tol)
#define RUN_tile_linear(slot, tol)
#define KR_OP(slot, type, family, tolerance) RUN_##family(slot, tolerance)
#include "ops/ops.def"

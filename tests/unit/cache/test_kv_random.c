/* test_kv_random.c: 240,000 random operations on tiny pools, where pages are evicted, copied,
 * stripped and given back all the time. The test writes into each slot of each page what must be
 * there: a hash of salt and all tokens up to that position. So any page that is shared, kept or
 * reused wrongly is found by reading a sequence back through its tables. */
#include "test.h"

#include "cache/kv_pool.h"

#define N_SEQS 5u
#define N_CTX 112u
#define N_OPS 40000u

typedef struct model_seq_s {
    kr_token_t tokens[N_CTX];
    uint64_t salt;
    uint32_t length, longest; /* longest: since it was empty */
} model_seq_t;

typedef struct world_s {
    kri_kv_params_t params;
    kri_kv_pool_t *pool;
    model_seq_t seqs[N_SEQS];
    uint64_t random;
    uint64_t n_limit, n_cached, n_unsupported, n_copied; /* that things happened at all */
} world_t;

static uint32_t draw(world_t *w, uint32_t n) {
    w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((w->random >> 33) % n);
}

/* Few different tokens and long runs, so that prompts share beginnings of all lengths. */
static kr_token_t draw_token(world_t *w, uint32_t position) {
    return (kr_token_t)(position / 16 * 8 + (draw(w, 24) == 0 ? draw(w, 3) : 0));
}

static uint64_t step_hash(uint64_t h, kr_token_t token) {
    h = (h ^ (uint64_t)(uint32_t)token) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ (h >> 29);
}

static uint64_t *slot_of(const world_t *w, uint32_t seq, uint32_t group, uint32_t position) {
    const kri_kv_group_t *view = &kri_kv_pool_groups(w->pool)[group];
    const uint32_t page = kri_kv_pool_table(w->pool, seq, group)[position / 16];
    uint8_t *at = view->pool + page * view->page_bytes + position % 16 * sizeof(uint64_t);
    return (uint64_t *)(void *)at;
}

/* Writes (or compares) the slots of positions [begin, end). */
static void visit(const world_t *w, uint32_t seq, uint32_t begin, uint32_t end, bool is_write) {
    const model_seq_t *s = &w->seqs[seq];
    uint64_t h = s->salt + 1;
    for (uint32_t i = 0; i < end; i++) {
        h = step_hash(h, s->tokens[i]);
        for (uint32_t g = 0; g < w->params.n_groups; g++) {
            const uint32_t first = kri_attn_first_key(s->length, w->params.groups[g].window);
            if (i < begin || (!is_write && i < first)) continue;
            if (is_write) *slot_of(w, seq, g, i) = h;
            else assert_int_equal(*slot_of(w, seq, g, i), h);
        }
    }
}

static void check_seq(const world_t *w, uint32_t seq) {
    assert_int_equal(kri_kv_pool_length(w->pool, seq), w->seqs[seq].length);
    visit(w, seq, 0, w->seqs[seq].length, false);
}

static uint64_t page_bytes(const world_t *w) {
    uint64_t sum = 0;
    for (uint32_t g = 0; g < w->params.n_groups; g++) {
        sum += kri_kv_pool_groups(w->pool)[g].page_bytes;
    }
    return sum;
}

/* Reserves up to k tokens, computes all of them and keeps some: verification of several tokens. */
static void grow(world_t *w, uint32_t seq) {
    model_seq_t *s = &w->seqs[seq];
    const uint32_t n = s->length + 1 + (draw(w, 3) ? draw(w, 4) : draw(w, 40));
    const uint32_t n_new = (n + 15) / 16 - s->length / 16; /* more than enough: with a copy */
    const uint64_t available = kri_kv_pool_available(w->pool);
    kri_kv_stats_t before, after;
    kri_kv_pool_stats(w->pool, &before);
    const kr_status_t status = kri_kv_pool_reserve(w->pool, seq, n);
    kri_kv_pool_stats(w->pool, &after);
    w->n_copied += after.bytes_moved - before.bytes_moved;
    if (n > N_CTX) {
        assert_status(status, KR_E_CONTEXT_LENGTH);
    } else if (status != KR_OK) {
        assert_status(status, KR_E_LIMIT);
        assert_true(available < n_new * page_bytes(w));
        w->n_limit++;
    }
    if (status != KR_OK) {
        assert_memory_equal(&before, &after, sizeof(before));
        check_seq(w, seq);
        return;
    }
    check_seq(w, seq);
    for (uint32_t i = s->length; i < n; i++) s->tokens[i] = draw_token(w, i);
    visit(w, seq, s->length, n, true);
    s->length += draw(w, 4) ? n - s->length : draw(w, n - s->length + 1);
    if (s->length > s->longest) s->longest = s->length;
    kri_kv_pool_commit(w->pool, seq, s->length);
    kri_kv_pool_publish(w->pool, seq, s->salt, s->tokens);
    if (draw(w, 2)) assert_status(kri_kv_pool_truncate(w->pool, seq, s->length), KR_OK);
    check_seq(w, seq);
}

static void cut(world_t *w, uint32_t seq) {
    model_seq_t *s = &w->seqs[seq];
    const uint32_t n = draw(w, 2) ? draw(w, s->length + 1)
                                  : s->length - draw(w, s->length < 9 ? s->length + 1 : 9);
    const kr_status_t status = kri_kv_pool_truncate(w->pool, seq, n);
    if (status == KR_OK) {
        s->length = n;
        if (n == 0) s->longest = 0;
    } else {
        assert_status(status, KR_E_UNSUPPORTED);
        assert_true(n + KRI_KV_UNDO_TOKENS < s->longest);
        w->n_unsupported++;
    }
    check_seq(w, seq);
}

static void release(world_t *w, uint32_t seq) {
    kri_kv_pool_release(w->pool, seq);
    w->seqs[seq].length = w->seqs[seq].longest = 0;
    check_seq(w, seq);
}

static void fork_into(world_t *w, uint32_t dst) {
    const uint32_t src = draw(w, N_SEQS), n = draw(w, w->seqs[src].length + 1);
    if (src == dst) return;
    release(w, dst);
    const kr_status_t status = kri_kv_pool_fork(w->pool, src, dst, n);
    if (status == KR_OK) {
        w->seqs[dst] = w->seqs[src];
        w->seqs[dst].length = w->seqs[dst].longest = n;
        /* What src gave back the fork has not got: undoing goes less far. */
        if (w->seqs[src].longest > n) w->seqs[dst].longest = w->seqs[src].longest;
    } else {
        assert_status(status, KR_E_UNSUPPORTED);
        assert_true(n + KRI_KV_UNDO_TOKENS < w->seqs[src].longest);
    }
    check_seq(w, src);
    check_seq(w, dst);
}

static void attach(world_t *w, uint32_t seq) {
    model_seq_t *s = &w->seqs[seq];
    const uint32_t n = 1 + draw(w, N_CTX);
    kri_kv_match_t match, again;
    release(w, seq);
    for (uint32_t i = 0; i < n; i++) s->tokens[i] = draw_token(w, i);
    s->salt = draw(w, 5) == 0;
    kri_kv_pool_match(w->pool, s->salt, s->tokens, n, &match);
    kri_kv_pool_attach(w->pool, seq, s->salt, s->tokens, n, &again);
    assert_memory_equal(&match, &again, sizeof(match));
    assert_true(match.n_cached < n && match.n_cached % 16 == 0);
    assert_true(match.n_cached <= match.miss_position && match.miss_position <= n);
    if (match.miss_position < n) {
        assert_true(match.miss_cached != s->tokens[match.miss_position]);
    }
    s->length = s->longest = match.n_cached;
    if (match.n_cached > 0) s->longest += KRI_KV_UNDO_TOKENS; /* nothing before its windows */
    w->n_cached += match.n_cached;
    check_seq(w, seq);
}

static void save_and_restore(world_t *w, uint32_t seq) {
    static uint8_t bytes[1 << 16];
    const model_seq_t before = w->seqs[seq];
    kri_kv_extent_t extent;
    uint64_t n_bytes = 0;
    kri_kv_pool_extent(w->pool, seq, &extent);
    assert_status(kri_kv_pool_extent_bytes(w->pool, &extent, &n_bytes), KR_OK);
    assert_true(n_bytes <= sizeof(bytes));
    kri_kv_pool_save(w->pool, seq, bytes);
    if (extent.n_tokens > 0) {
        assert_status(kri_kv_pool_restore(w->pool, seq, &extent, bytes), KR_E_INVALID_ARG);
    }
    release(w, seq);
    const uint64_t available = kri_kv_pool_available(w->pool);
    const kr_status_t status = kri_kv_pool_restore(w->pool, seq, &extent, bytes);
    if (status == KR_OK) {
        w->seqs[seq] = before;
    } else {
        assert_status(status, KR_E_LIMIT);
        assert_true(available < n_bytes);
    }
    check_seq(w, seq);
}

static void resize(world_t *w) {
    const uint64_t n_bytes = (2 + draw(w, 30)) * page_bytes(w) + draw(w, 500);
    kri_kv_stats_t before, after;
    kri_kv_pool_stats(w->pool, &before);
    const kr_status_t status = kri_kv_pool_resize(w->pool, n_bytes);
    kri_kv_pool_stats(w->pool, &after);
    if (n_bytes < before.bytes_used) assert_status(status, KR_E_BUSY);
    else if (status != KR_OK) assert_status(status, KR_E_LIMIT);
    assert_int_equal(after.bytes_max, status == KR_OK ? n_bytes : before.bytes_max);
}

static void run(world_t *w) {
    assert_status(kri_kv_pool_create(&w->params, &w->pool), KR_OK);
    for (uint32_t i = 0; i < N_OPS; i++) {
        const uint32_t seq = draw(w, N_SEQS), what = draw(w, 100);
        if (what < 60) grow(w, seq);
        else if (what < 70) cut(w, seq);
        else if (what < 80) attach(w, seq);
        else if (what < 87) fork_into(w, seq);
        else if (what < 93) release(w, seq);
        else if (what < 96) save_and_restore(w, seq);
        else if (what < 99) resize(w);
        else if (draw(w, 5) == 0) kri_kv_pool_forget(w->pool);
        assert_true(kri_kv_pool_check(w->pool));
        if (i % 16 == 0) {
            for (uint32_t s = 0; s < N_SEQS; s++) check_seq(w, s);
        }
    }
    for (uint32_t s = 0; s < N_SEQS; s++) release(w, s);
    kri_kv_pool_forget(w->pool);
    kri_kv_stats_t stats;
    kri_kv_pool_stats(w->pool, &stats);
    assert_int_equal(stats.bytes_used, 0);
    assert_int_equal(stats.bytes_cached, 0);
    assert_true(kri_kv_pool_check(w->pool));
    kri_kv_pool_destroy(w->pool);
    assert_true(w->n_limit > 0 && w->n_copied > 0);
    if (w->params.prefix_cache) assert_true(w->n_cached > 0 && stats.n_evicted > 0);
}

/* 256 bytes a page and layer: exactly the 16 slots, and as much again. */
static world_t world_of(uint64_t seed, uint64_t n_pages, bool prefix_cache) {
    return (world_t){.random = seed,
                     .params = {.n_groups = 1, .groups = {{1, 1, 4, 0}}, .dtype = KR_DTYPE_F16,
                                .n_seqs = N_SEQS, .n_ctx = N_CTX, .bytes_max = n_pages * 256,
                                .prefix_cache = prefix_cache}};
}

TEST(kv_random_one_group) {
    for (uint64_t seed = 1; seed <= 2; seed++) {
        world_t w = world_of(seed, 14, true);
        run(&w);
    }
}

TEST(kv_random_two_groups_one_windowed) {
    world_t w = world_of(3, 40, true);
    w.params.n_groups = 2;
    w.params.groups[1] = (kri_kv_shape_t){2, 1, 4, 24};
    run(&w);
    assert_true(w.n_unsupported > 0);
}

TEST(kv_random_windowed_group_first_and_room_for_a_cache) {
    world_t w = world_of(4, 150, true);
    w.params.n_groups = 3;
    w.params.groups[0].window = 7;
    w.params.groups[1] = (kri_kv_shape_t){1, 2, 4, 0};
    w.params.groups[2] = (kri_kv_shape_t){1, 1, 12, 40};
    run(&w);
    assert_true(w.n_unsupported > 0);
}

TEST(kv_random_windows_only) {
    world_t w = world_of(5, 10, true);
    w.params.groups[0].window = 33;
    run(&w);
    assert_true(w.n_unsupported > 0);
}

TEST(kv_random_without_prefix_cache) {
    world_t w = world_of(6, 40, false);
    w.params.n_groups = 2;
    w.params.groups[1] = (kri_kv_shape_t){2, 1, 4, 24};
    run(&w);
}

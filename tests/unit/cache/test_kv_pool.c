/* test_kv_pool.c: pages of sequences: reserved, counted, shared, copied before a write, given back
 * by windows; the ledger. Random sequences of all of it: test_kv_random.c. */
#include "test.h"

#include "base/alloc.h"
#include "cache/kv_pool.h"

#define PAGE_A ((size_t)2 * 2 * 16 * 16 * 2) /* 2 layers, K and V, 16 tokens, 16 dims, f16 */
#define PAGE_B ((size_t)3 * 2 * 16 * 16 * 2)

static kri_kv_params_t params_of(uint32_t n_seqs, uint32_t n_ctx) {
    return (kri_kv_params_t){.n_groups = 2, .groups = {{2, 1, 16, 0}, {3, 1, 16, 32}},
                             .dtype = KR_DTYPE_F16, .n_seqs = n_seqs, .n_ctx = n_ctx};
}

static kri_kv_pool_t *make_pool(const kri_kv_params_t *params) {
    kri_kv_pool_t *pool = NULL;
    assert_status(kri_kv_pool_create(params, &pool), KR_OK);
    return pool;
}

static kri_kv_stats_t stats_of(const kri_kv_pool_t *pool) {
    kri_kv_stats_t stats;
    kri_kv_pool_stats(pool, &stats);
    assert_true(kri_kv_pool_check(pool));
    assert_int_equal(kri_kv_pool_available(pool), stats.bytes_max - stats.bytes_used);
    return stats;
}

/* Reserves and commits. */
static void grow(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens) {
    assert_status(kri_kv_pool_reserve(pool, seq, n_tokens), KR_OK);
    kri_kv_pool_commit(pool, seq, n_tokens);
    assert_int_equal(kri_kv_pool_length(pool, seq), n_tokens);
}

static uint8_t *page_of(const kri_kv_pool_t *pool, uint32_t seq, uint32_t group, uint32_t index) {
    const kri_kv_group_t *view = &kri_kv_pool_groups(pool)[group];
    return view->pool + kri_kv_pool_table(pool, seq, group)[index] * view->page_bytes;
}

/* ---- create --------------------------------------------------------------------------------- */

TEST(kv_pool_bytes_are_those_of_all_pages_or_of_the_limit) {
    kri_kv_params_t params = params_of(3, 50);
    uint64_t n_bytes = 0;
    assert_status(kri_kv_pool_bytes(&params, &n_bytes), KR_OK);
    assert_int_equal(n_bytes, 3 * 4 * (PAGE_A + PAGE_B));
    params.dtype = KR_DTYPE_F32;
    assert_status(kri_kv_pool_bytes(&params, &n_bytes), KR_OK);
    assert_int_equal(n_bytes, 3 * 4 * (PAGE_A + PAGE_B) * 2);
    params.bytes_max = 12345;
    assert_status(kri_kv_pool_bytes(&params, &n_bytes), KR_OK);
    assert_int_equal(n_bytes, 12345);
}

TEST(kv_pool_refuses_params_that_make_no_pool) {
    const kri_kv_params_t good = params_of(2, 64);
    kri_kv_pool_t *pool = NULL;
    uint64_t n_bytes = 0;
    kri_kv_params_t bad = good;
    bad.n_groups = 0;
    assert_status(kri_kv_pool_create(&bad, &pool), KR_E_INVALID_ARG);
    bad.n_groups = KRI_KV_GROUPS_MAX + 1;
    assert_status(kri_kv_pool_create(&bad, &pool), KR_E_INVALID_ARG);
    bad = good;
    bad.n_seqs = 0;
    assert_status(kri_kv_pool_bytes(&bad, &n_bytes), KR_E_INVALID_ARG);
    bad = good;
    bad.n_ctx = 0;
    assert_status(kri_kv_pool_create(&bad, &pool), KR_E_INVALID_ARG);
    bad = good;
    bad.groups[1].n_layers = 0;
    assert_status(kri_kv_pool_create(&bad, &pool), KR_E_INVALID_ARG);
    bad = good;
    bad.dtype = KR_DTYPE_Q8_0;
    assert_status(kri_kv_pool_create(&bad, &pool), KR_E_UNSUPPORTED);
    bad = (kri_kv_params_t){.n_groups = 1, .groups = {{UINT32_MAX, UINT32_MAX, 512, 0}},
                            .dtype = KR_DTYPE_F32, .n_seqs = 256, .n_ctx = INT32_MAX};
    assert_status(kri_kv_pool_bytes(&bad, &n_bytes), KR_E_LIMIT);
    assert_status(kri_kv_pool_create(&bad, &pool), KR_E_LIMIT);
    bad = good;
    bad.n_ctx = UINT32_MAX;
    assert_status(kri_kv_pool_create(&bad, &pool), KR_E_LIMIT);
    assert_null(pool);
    kri_kv_pool_destroy(NULL);
}

TEST(kv_pool_create_survives_every_failing_allocation) {
    kri_kv_params_t params = params_of(2, 64);
    kr_memory_usage_t before, after;
    params.prefix_cache = true;
    kr_memory_usage_init(&before);
    kr_memory_usage_init(&after);
    assert_status(kr_memory_usage(&before), KR_OK);
    for (uint64_t k = 1;; k++) {
        kri_kv_pool_t *pool = NULL;
        kri_alloc_fail(k, false);
        const kr_status_t status = kri_kv_pool_create(&params, &pool);
        kri_alloc_fail(0, false);
        kri_kv_pool_destroy(pool);
        assert_status(kr_memory_usage(&after), KR_OK);
        assert_int_equal(after.bytes_now, before.bytes_now);
        if (status == KR_OK) {
            assert_true(k > 10);
            break;
        }
        assert_status(status, KR_E_NOMEM);
        assert_null(pool);
    }
}

/* ---- sequences ------------------------------------------------------------------------------ */

TEST(kv_pool_gives_each_sequence_pages_of_its_own) {
    const kri_kv_params_t params = params_of(3, 50);
    kri_kv_pool_t *pool = make_pool(&params);
    uint8_t seen[2][12] = {{0}};
    assert_int_equal(kri_kv_pool_n_groups(pool), 2);
    for (uint32_t seq = 0; seq < 3; seq++) {
        assert_status(kri_kv_pool_reserve(pool, seq, 50), KR_OK);
        for (uint32_t g = 0; g < 2; g++) {
            for (uint32_t p = 0; p < 4; p++) {
                const uint32_t page = kri_kv_pool_table(pool, seq, g)[p];
                assert_true(page < 12 && !seen[g][page]);
                seen[g][page] = 1;
            }
        }
    }
    assert_int_equal(stats_of(pool).bytes_used, 12 * (PAGE_A + PAGE_B));
    assert_int_equal(kri_kv_pool_available(pool), 0);
    kri_kv_pool_destroy(pool);
}

static void check_scales(kr_dtype_t dtype) {
    const kri_kv_params_t params = {.n_groups = 1, .groups = {{3, 2, 64, 0}}, .dtype = dtype,
                                    .n_seqs = 2, .n_ctx = 33};
    kri_kv_pool_t *pool = NULL;
    uint64_t n_bytes = 0;
    assert_status(kri_kv_pool_bytes(&params, &n_bytes), KR_OK);
    /* sequences * pages * layers * heads * (K, V of [16][64] bytes, 2 * 16 scales of two bytes) */
    assert_int_equal(n_bytes, 2u * 3 * 3 * 2 * (2 * 16 * 64 + 2 * 16 * 2));
    assert_status(kri_kv_pool_create(&params, &pool), KR_OK);
    const kri_kv_group_t *group = kri_kv_pool_groups(pool);
    assert_int_equal(group->page_bytes, n_bytes / 6);
    size_t end = 0;
    for (uint32_t i = 0; i < 3 * 2; i++) { /* one head after the other, blocks on cache lines */
        const kri_kv_place_t place = kri_kv_place(group, i / 2, i % 2);
        assert_int_equal(place.k, end);
        assert_int_equal(place.v, place.k + 16 * 64);
        assert_int_equal(place.scales, place.v + 16 * 64);
        assert_true(place.k % 64 == 0 && place.v % 64 == 0 && place.scales % 64 == 0);
        end = place.scales + 64;
    }
    assert_int_equal(end, group->page_bytes);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_pages_of_8_bits_hold_a_scale_per_token_and_head) {
    check_scales(KR_DTYPE_I8);
    check_scales(KR_DTYPE_F8);
}

TEST(kv_pool_refuses_more_than_the_context_or_the_ledger_and_takes_nothing) {
    kri_kv_params_t params = params_of(2, 50);
    params.bytes_max = 3 * (PAGE_A + PAGE_B);
    kri_kv_pool_t *pool = make_pool(&params);
    assert_status(kri_kv_pool_reserve(pool, 0, 51), KR_E_CONTEXT_LENGTH);
    assert_status(kri_kv_pool_reserve(pool, 0, 49), KR_E_LIMIT); /* four pages */
    assert_int_equal(stats_of(pool).bytes_used, 0);
    grow(pool, 0, 33);
    assert_status(kri_kv_pool_reserve(pool, 1, 1), KR_E_LIMIT);
    assert_int_equal(kri_kv_pool_length(pool, 1), 0);
    assert_int_equal(stats_of(pool).bytes_used, 3 * (PAGE_A + PAGE_B));
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_truncate_returns_whole_pages_and_reservations) {
    const kri_kv_params_t params = params_of(2, 64);
    kri_kv_pool_t *pool = make_pool(&params);
    assert_status(kri_kv_pool_reserve(pool, 0, 40), KR_OK); /* three pages */
    assert_int_equal(kri_kv_pool_length(pool, 0), 0);       /* reserved is not held */
    kri_kv_pool_commit(pool, 0, 40);
    const uint32_t first = kri_kv_pool_table(pool, 0, 1)[0];
    assert_status(kri_kv_pool_truncate(pool, 0, 17), KR_OK); /* tokens 0..16 need two */
    assert_int_equal(stats_of(pool).bytes_used, 2 * (PAGE_A + PAGE_B));
    assert_int_equal(kri_kv_pool_length(pool, 0), 17);
    assert_int_equal(kri_kv_pool_table(pool, 0, 1)[0], first);
    assert_status(kri_kv_pool_reserve(pool, 0, 64), KR_OK);
    assert_status(kri_kv_pool_truncate(pool, 0, 17), KR_OK); /* only the reservation goes */
    assert_int_equal(stats_of(pool).bytes_used, 2 * (PAGE_A + PAGE_B));
    assert_status(kri_kv_pool_truncate(pool, 0, 40), KR_OK); /* beyond the length: nothing */
    assert_int_equal(kri_kv_pool_length(pool, 0), 17);
    assert_status(kri_kv_pool_truncate(pool, 0, 0), KR_OK);
    assert_int_equal(stats_of(pool).bytes_used, 0);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_windowed_groups_keep_their_window_only) {
    const kri_kv_params_t params = params_of(1, 1024);
    kri_kv_pool_t *pool = make_pool(&params);
    for (uint32_t n = 1; n <= 1000; n++) {
        grow(pool, 0, n);
        const uint64_t used = stats_of(pool).bytes_used, n_pages = (n + 15) / 16;
        /* The row at n - 16 sees keys from n - 16 - 31 on. */
        const uint64_t n_gone = n < 16 + 32 ? 0 : (n - 16 - 31) / 16;
        assert_int_equal(used, n_pages * PAGE_A + (n_pages - n_gone) * PAGE_B);
        assert_true(used <= kri_kv_pool_need(pool, 0, n, 1));
    }
    assert_int_equal(stats_of(pool).bytes_moved, 0);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_truncate_refuses_where_the_window_is_gone) {
    const kri_kv_params_t params = params_of(2, 256);
    kri_kv_pool_t *pool = make_pool(&params);
    grow(pool, 0, 200);
    const uint64_t used = stats_of(pool).bytes_used;
    assert_status(kri_kv_pool_truncate(pool, 0, 100), KR_E_UNSUPPORTED);
    assert_status(kri_kv_pool_fork(pool, 0, 1, 100), KR_E_UNSUPPORTED);
    assert_int_equal(kri_kv_pool_length(pool, 0), 200);
    assert_int_equal(stats_of(pool).bytes_used, used);
    assert_status(kri_kv_pool_fork(pool, 0, 1, 200 - KRI_KV_UNDO_TOKENS), KR_OK);
    assert_status(kri_kv_pool_truncate(pool, 0, 200 - KRI_KV_UNDO_TOKENS), KR_OK);
    grow(pool, 0, 256);
    assert_status(kri_kv_pool_truncate(pool, 0, 0), KR_OK);
    kri_kv_pool_release(pool, 1);
    assert_int_equal(stats_of(pool).bytes_used, 0);
    kri_kv_pool_destroy(pool);
}

/* What a decoding stream does, and multi-token verification: reserve k, commit fewer. */
TEST(kv_pool_moves_no_byte_while_a_context_grows_to_8k) {
    const kri_kv_params_t params = params_of(1, 8192);
    kri_kv_pool_t *pool = make_pool(&params);
    uint32_t n = 0;
    for (uint32_t i = 0; n < 8192; i++) {
        const uint32_t n_drafted = n + 1 + i % 5 < 8192 ? n + 1 + i % 5 : 8192;
        assert_status(kri_kv_pool_reserve(pool, 0, n_drafted), KR_OK);
        n += 1 + (n_drafted - n - 1) / 2;
        kri_kv_pool_commit(pool, 0, n);
        assert_status(kri_kv_pool_truncate(pool, 0, n), KR_OK);
    }
    assert_int_equal(kri_kv_pool_length(pool, 0), 8192);
    assert_int_equal(stats_of(pool).bytes_moved, 0);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_fork_shares_pages_until_one_writes) {
    const kri_kv_params_t params = params_of(3, 64);
    kri_kv_pool_t *pool = make_pool(&params);
    grow(pool, 0, 20);
    memset(page_of(pool, 0, 0, 1), 7, PAGE_A);
    memset(page_of(pool, 0, 1, 1), 8, PAGE_B);
    assert_status(kri_kv_pool_fork(pool, 0, 1, 20), KR_OK);
    assert_int_equal(stats_of(pool).bytes_used, 2 * (PAGE_A + PAGE_B));
    assert_status(kri_kv_pool_fork(pool, 0, 1, 20), KR_E_INVALID_ARG); /* not empty */
    assert_status(kri_kv_pool_fork(pool, 0, 2, 21), KR_E_INVALID_ARG);
    assert_status(kri_kv_pool_fork(pool, 0, 2, 0), KR_OK);
    assert_int_equal(kri_kv_pool_length(pool, 2), 0);
    assert_int_equal(stats_of(pool).bytes_moved, 0);
    grow(pool, 1, 21); /* copies the half full page of both groups, not the full one */
    assert_int_equal(stats_of(pool).bytes_moved, PAGE_A + PAGE_B);
    assert_int_equal(stats_of(pool).bytes_used, 3 * (PAGE_A + PAGE_B));
    assert_ptr_equal(page_of(pool, 0, 0, 0), page_of(pool, 1, 0, 0));
    assert_ptr_not_equal(page_of(pool, 0, 0, 1), page_of(pool, 1, 0, 1));
    assert_memory_equal(page_of(pool, 0, 0, 1), page_of(pool, 1, 0, 1), PAGE_A);
    assert_memory_equal(page_of(pool, 0, 1, 1), page_of(pool, 1, 1, 1), PAGE_B);
    grow(pool, 0, 21); /* the only holder now: no copy */
    assert_int_equal(stats_of(pool).bytes_moved, PAGE_A + PAGE_B);
    kri_kv_pool_release(pool, 0);
    kri_kv_pool_release(pool, 1);
    assert_int_equal(stats_of(pool).bytes_used, 0);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_fork_needs_room_only_for_the_page_that_is_written) {
    kri_kv_params_t params = params_of(2, 64);
    params.bytes_max = 4 * (PAGE_A + PAGE_B);
    kri_kv_pool_t *pool = make_pool(&params);
    grow(pool, 0, 50);
    assert_status(kri_kv_pool_fork(pool, 0, 1, 50), KR_OK);
    assert_status(kri_kv_pool_reserve(pool, 1, 51), KR_E_LIMIT);
    assert_status(kri_kv_pool_reserve(pool, 0, 51), KR_E_LIMIT);
    assert_int_equal(stats_of(pool).bytes_moved, 0);
    kri_kv_pool_release(pool, 1);
    grow(pool, 0, 51);
    assert_int_equal(stats_of(pool).bytes_moved, 0);
    kri_kv_pool_destroy(pool);
}

/* ---- ledger --------------------------------------------------------------------------------- */

TEST(kv_pool_need_bounds_what_a_sequence_takes) {
    const kri_kv_params_t params = params_of(1, 1024);
    kri_kv_pool_t *pool = make_pool(&params);
    assert_int_equal(kri_kv_pool_need(pool, 0, 17, 512), 2 * (PAGE_A + PAGE_B));
    assert_int_equal(kri_kv_pool_need(pool, 16, 17, 512), PAGE_A + PAGE_B);
    for (uint32_t n_rows = 1; n_rows <= 130; n_rows += 43) {
        for (uint32_t n = 0; n < 1024;) {
            n = n + n_rows < 1024 ? n + n_rows : 1024;
            grow(pool, 0, n);
            assert_true(stats_of(pool).bytes_used <= kri_kv_pool_need(pool, 0, n, n_rows));
        }
        kri_kv_pool_release(pool, 0);
    }
    kri_kv_pool_destroy(pool);
}

/* Knowing the longest step, a full pool counts windows only, and that is enough for all. */
TEST(kv_pool_full_size_with_a_bound_on_rows_holds_every_sequence) {
    for (uint32_t n_rows = 1; n_rows <= 61; n_rows += 20) {
        kri_kv_params_t params = params_of(3, 1000);
        uint64_t n_bytes = 0;
        params.n_rows = n_rows;
        assert_status(kri_kv_pool_bytes(&params, &n_bytes), KR_OK);
        assert_int_equal(n_bytes, 3 * (63 * PAGE_A + ((32 + 16 + n_rows) / 16 + 2) * PAGE_B));
        kri_kv_pool_t *pool = make_pool(&params);
        for (uint32_t n = 0; n < 1000;) {
            const uint32_t n_new = n == 500 ? 1 : n_rows;
            n = n + n_new < 1000 ? n + n_new : 1000;
            for (uint32_t seq = 0; seq < 3; seq++) {
                grow(pool, seq, n);
                if (n > 16 && n % 3 == 0) {
                    assert_status(kri_kv_pool_truncate(pool, seq, n - 16), KR_OK);
                    grow(pool, seq, n - 16 + n_rows < n ? n - 16 + n_rows : n);
                    if (kri_kv_pool_length(pool, seq) < n) grow(pool, seq, n);
                }
            }
        }
        assert_true(kri_kv_pool_check(pool));
        kri_kv_pool_destroy(pool);
    }
}

TEST(kv_pool_resize_keeps_within_what_was_reserved_and_is_held) {
    kri_kv_params_t params = params_of(2, 64);
    kri_kv_pool_t *pool = make_pool(&params);
    const uint64_t all = 8 * (PAGE_A + PAGE_B);
    assert_status(kri_kv_pool_resize(pool, all + 1), KR_E_LIMIT);
    assert_status(kri_kv_pool_reserve(pool, 0, 64), KR_OK);
    memset(page_of(pool, 0, 0, 2), 1, PAGE_A);
    assert_status(kri_kv_pool_resize(pool, all / 2 - 1), KR_E_BUSY);
    assert_int_equal(stats_of(pool).bytes_max, all);
    assert_status(kri_kv_pool_resize(pool, all / 2), KR_OK);
    assert_status(kri_kv_pool_reserve(pool, 1, 1), KR_E_LIMIT);
    assert_int_equal(page_of(pool, 0, 0, 2)[5], 1); /* untouched */
    assert_status(kri_kv_pool_resize(pool, 0), KR_OK);
    assert_int_equal(stats_of(pool).bytes_max, all);
    grow(pool, 1, 64);
    kri_kv_pool_release(pool, 0);
    kri_kv_pool_release(pool, 1);
    assert_status(kri_kv_pool_resize(pool, 1), KR_OK); /* less than a page: all memory goes */
    assert_int_equal(stats_of(pool).bytes_max, 1);
    assert_status(kri_kv_pool_reserve(pool, 0, 1), KR_E_LIMIT);
    kri_kv_pool_destroy(pool);
}

/* Pages of 64 KiB: what is freed by shrinking reads as zeros, so it went back to the system. */
TEST(kv_pool_resize_returns_the_memory_of_free_pages) {
    const kri_kv_params_t params = {.n_groups = 1, .groups = {{16, 2, 32, 0}},
                                    .dtype = KR_DTYPE_F16, .n_seqs = 2, .n_ctx = 64};
    kri_kv_pool_t *pool = make_pool(&params);
    const size_t page = kri_kv_pool_groups(pool)[0].page_bytes;
    assert_int_equal(page, 65536);
    grow(pool, 0, 64);
    for (uint32_t i = 0; i < 4; i++) memset(page_of(pool, 0, 0, i), 9, page);
    kri_kv_pool_release(pool, 0);
    const uint8_t *all = kri_kv_pool_groups(pool)[0].pool;
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(all[i * page + page / 2], 9);
    assert_status(kri_kv_pool_resize(pool, 2 * page), KR_OK);
    assert_true(kri_kv_pool_check(pool));
    uint32_t n_dirty = 0;
    for (uint32_t i = 0; i < 8; i++) n_dirty += all[i * page + page / 2] == 9;
    assert_int_equal(n_dirty, 2); /* no more memory than the new limit */
    assert_status(kri_kv_pool_resize(pool, 8 * page), KR_OK);
    grow(pool, 0, 64);
    grow(pool, 1, 64);
    assert_true(kri_kv_pool_check(pool));
    kri_kv_pool_destroy(pool);
}

/* Two groups share one budget: what one gives up the other may take, in memory too (check). */
TEST(kv_pool_groups_share_one_budget) {
    kri_kv_params_t params = params_of(8, 512);
    params.bytes_max = 40 * PAGE_A + 12 * PAGE_B;
    kri_kv_pool_t *pool = make_pool(&params);
    for (uint32_t seq = 0; seq < 2; seq++) { /* few pages of B, many of A */
        for (uint32_t n = 16; n <= 320; n += 16) grow(pool, seq, n);
    }
    assert_true(stats_of(pool).bytes_used >= 40 * PAGE_A);
    kri_kv_pool_release(pool, 0);
    kri_kv_pool_release(pool, 1);
    const uint64_t n_both = params.bytes_max / (PAGE_A + PAGE_B);
    for (uint32_t i = 0; i < n_both; i++) { /* as many of B as of A */
        assert_true(kri_kv_pool_check(pool));
        assert_status(kri_kv_pool_reserve(pool, i % 8, 16 + i / 8 * 16), KR_OK);
    }
    assert_int_equal(stats_of(pool).bytes_used, n_both * (PAGE_A + PAGE_B));
    assert_status(kri_kv_pool_reserve(pool, 0, 512), KR_E_LIMIT);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_allocates_nothing_after_create) {
    kri_kv_params_t params = params_of(2, 256);
    params.prefix_cache = true;
    params.bytes_max = 8 * (PAGE_A + PAGE_B);
    kri_kv_pool_t *pool = make_pool(&params);
    kr_token_t tokens[256] = {0};
    kri_alloc_guard_begin("pool");
    for (uint32_t round = 0; round < 20; round++) {
        tokens[0] = (kr_token_t)round;
        assert_status(kri_kv_pool_reserve(pool, 0, 100), KR_OK);
        kri_kv_pool_commit(pool, 0, 100);
        kri_kv_pool_publish(pool, 0, 0, tokens);
        kri_kv_pool_release(pool, 0);
        assert_status(kri_kv_pool_resize(pool, (8 + round % 5) * (PAGE_A + PAGE_B)), KR_OK);
    }
    assert_int_equal(kri_alloc_guard_end(), 0);
    kri_kv_pool_destroy(pool);
}

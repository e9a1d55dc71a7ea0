/* test_kv_pool.c: pages move between free list and tables, are never shared, and come back. */
#include "test.h"

#include "cache/kv_pool.h"

static kri_kv_pool_t *make_pool(uint32_t n_seqs, uint32_t n_ctx) {
    const kri_kv_params_t params = {
        .n_groups = 2, .groups = {{2, 1, 16, 0}, {3, 1, 16, 32}}, .dtype = KR_DTYPE_F16,
        .n_seqs = n_seqs, .n_ctx = n_ctx};
    kri_kv_pool_t *pool = NULL;
    uint64_t n_bytes = 0;
    assert_status(kri_kv_pool_bytes(&params, &n_bytes), KR_OK);
    /* pages * [layers][K, V][16 tokens][16 dims] of two bytes, both groups */
    assert_int_equal(n_bytes, (uint64_t)n_seqs * ((n_ctx + 15) / 16) * (2 + 3) * 2 * 16 * 16 * 2);
    assert_status(kri_kv_pool_create(&params, &pool), KR_OK);
    return pool;
}

TEST(kv_pool_gives_each_sequence_pages_of_its_own) {
    kri_kv_pool_t *pool = make_pool(3, 50);
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
    for (uint32_t g = 0; g < 2; g++) assert_int_equal(kri_kv_pool_free_pages(pool, g), 0);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_refuses_more_than_the_context_and_takes_nothing) {
    kri_kv_pool_t *pool = make_pool(1, 50);
    assert_status(kri_kv_pool_reserve(pool, 0, 51), KR_E_CONTEXT_LENGTH);
    assert_int_equal(kri_kv_pool_free_pages(pool, 0), 4);
    assert_int_equal(kri_kv_pool_length(pool, 0), 0);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_truncate_returns_whole_pages_only) {
    kri_kv_pool_t *pool = make_pool(2, 64);
    assert_status(kri_kv_pool_reserve(pool, 0, 40), KR_OK); /* three pages */
    assert_int_equal(kri_kv_pool_length(pool, 0), 0);       /* reserved is not held */
    kri_kv_pool_commit(pool, 0, 40);
    assert_int_equal(kri_kv_pool_length(pool, 0), 40);
    assert_int_equal(kri_kv_pool_free_pages(pool, 1), 5);
    const uint32_t first = kri_kv_pool_table(pool, 0, 1)[0];
    kri_kv_pool_truncate(pool, 0, 17); /* tokens 0..16 need two */
    assert_int_equal(kri_kv_pool_free_pages(pool, 1), 6);
    assert_int_equal(kri_kv_pool_length(pool, 0), 17);
    assert_int_equal(kri_kv_pool_table(pool, 0, 1)[0], first);
    kri_kv_pool_truncate(pool, 0, 0);
    for (uint32_t g = 0; g < 2; g++) assert_int_equal(kri_kv_pool_free_pages(pool, g), 8);
    kri_kv_pool_destroy(pool);
}

TEST(kv_pool_shape_beyond_memory_is_a_limit) {
    const kri_kv_params_t params = {.n_groups = 1, .groups = {{UINT32_MAX, UINT32_MAX, 512, 0}},
                                    .dtype = KR_DTYPE_F32, .n_seqs = 256, .n_ctx = UINT32_MAX};
    uint64_t n_bytes = 0;
    kri_kv_pool_t *pool = NULL;
    assert_status(kri_kv_pool_bytes(&params, &n_bytes), KR_E_LIMIT);
    assert_status(kri_kv_pool_create(&params, &pool), KR_E_LIMIT);
    assert_null(pool);
}

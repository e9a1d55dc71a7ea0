/* test_prefix_cache.c: the tree of prefixes by itself, and what the pool makes of it: which pages a
 * prompt finds, which go first, what a miss says, and that tenants do not meet. */
#include "test.h"

#include "base/alloc.h"
#include "cache/kv_pool.h"
#include "cache/prefix_cache.h"

#define N 16u

static void count_up(kr_token_t *tokens, uint32_t n, kr_token_t from) {
    for (uint32_t i = 0; i < n; i++) tokens[i] = from + (kr_token_t)i;
}

/* ---- the tree ------------------------------------------------------------------------------- */

static kri_prefix_cache_t *make_tree(uint32_t n_nodes) {
    kri_prefix_cache_t *tree = NULL;
    assert_status(kri_prefix_cache_create(n_nodes, &tree), KR_OK);
    return tree;
}

TEST(prefix_cache_finds_by_parent_tokens_and_salt) {
    kri_prefix_cache_t *tree = make_tree(3); /* few buckets: chains are walked */
    kr_token_t a[N], b[N];
    count_up(a, N, 5);
    count_up(b, N, 5);
    b[15] = 99;
    const uint32_t root = kri_prefix_cache_insert(tree, KRI_NODE_NONE, 1, a);
    const uint32_t child = kri_prefix_cache_insert(tree, root, 1, a);
    assert_int_equal(kri_prefix_cache_find(tree, KRI_NODE_NONE, 1, a), root);
    assert_int_equal(kri_prefix_cache_find(tree, root, 1, a), child);
    assert_int_equal(kri_prefix_cache_find(tree, child, 1, a), KRI_NODE_NONE);
    assert_int_equal(kri_prefix_cache_find(tree, KRI_NODE_NONE, 2, a), KRI_NODE_NONE);
    assert_int_equal(kri_prefix_cache_find(tree, KRI_NODE_NONE, 1, b), KRI_NODE_NONE);
    const uint32_t other = kri_prefix_cache_insert(tree, KRI_NODE_NONE, 1, b);
    assert_int_equal(kri_prefix_cache_find(tree, KRI_NODE_NONE, 1, b), other);
    assert_int_equal(kri_prefix_cache_size(tree), 3);
    assert_int_equal(kri_prefix_cache_insert(tree, other, 1, a), KRI_NODE_NONE); /* full */
    assert_true(kri_prefix_cache_check(tree));
    kri_prefix_cache_destroy(tree);
    kri_prefix_cache_destroy(NULL);
}

/* The child of a node that went is not the child of the node that took its place. */
TEST(prefix_cache_never_mistakes_a_recycled_node_for_the_parent) {
    kri_prefix_cache_t *tree = make_tree(2);
    kr_token_t a[N], b[N], token = 0;
    count_up(a, N, 0);
    count_up(b, N, 100);
    const uint32_t parent = kri_prefix_cache_insert(tree, KRI_NODE_NONE, 0, a);
    const uint32_t orphan = kri_prefix_cache_insert(tree, parent, 0, b);
    kri_prefix_cache_remove(tree, parent);
    assert_true(kri_prefix_cache_check(tree));
    const uint32_t again = kri_prefix_cache_insert(tree, KRI_NODE_NONE, 0, a);
    assert_int_equal(again, parent); /* the same place */
    assert_int_equal(kri_prefix_cache_find(tree, again, 0, b), KRI_NODE_NONE);
    assert_int_equal(kri_prefix_cache_closest(tree, again, 0, b, N, &token), 0);
    assert_int_equal(token, -1);
    kri_prefix_cache_remove(tree, orphan); /* must not touch the children of its place-holder */
    const uint32_t child = kri_prefix_cache_insert(tree, again, 0, b);
    assert_int_equal(kri_prefix_cache_find(tree, again, 0, b), child);
    assert_int_equal(kri_prefix_cache_size(tree), 2);
    assert_true(kri_prefix_cache_check(tree));
    kri_prefix_cache_destroy(tree);
}

TEST(prefix_cache_closest_looks_at_the_newest_children_of_one_salt) {
    kri_prefix_cache_t *tree = make_tree(200);
    kr_token_t wanted[N], other[N], token = 0;
    count_up(wanted, N, 0);
    assert_int_equal(kri_prefix_cache_closest(tree, KRI_NODE_NONE, 0, wanted, N, &token), 0);
    assert_int_equal(token, -1);
    count_up(other, N, 0);
    other[5] = 77;
    (void)kri_prefix_cache_insert(tree, KRI_NODE_NONE, 0, other);
    other[5] = 5;
    other[9] = 88;
    const uint32_t best = kri_prefix_cache_insert(tree, KRI_NODE_NONE, 0, other);
    other[9] = 9;
    (void)kri_prefix_cache_insert(tree, KRI_NODE_NONE, 1, other); /* another tenant's: all equal */
    count_up(other, N, 1000);
    (void)kri_prefix_cache_insert(tree, KRI_NODE_NONE, 0, other);
    assert_int_equal(kri_prefix_cache_closest(tree, KRI_NODE_NONE, 0, wanted, N, &token), 9);
    assert_int_equal(token, 88);
    assert_int_equal(kri_prefix_cache_closest(tree, KRI_NODE_NONE, 0, wanted, 3, &token), 3);
    kri_prefix_cache_remove(tree, best);
    assert_int_equal(kri_prefix_cache_closest(tree, KRI_NODE_NONE, 0, wanted, N, &token), 5);
    assert_int_equal(token, 77);
    for (kr_token_t i = 0; i < 64; i++) { /* bounded: the old ones are out of sight */
        count_up(other, N, 2000 + i);
        (void)kri_prefix_cache_insert(tree, KRI_NODE_NONE, 0, other);
    }
    assert_int_equal(kri_prefix_cache_closest(tree, KRI_NODE_NONE, 0, wanted, N, &token), 0);
    assert_int_equal(token, 2063);
    assert_true(kri_prefix_cache_check(tree));
    kri_prefix_cache_destroy(tree);
}

TEST(prefix_cache_create_fails_without_memory) {
    for (uint64_t k = 1; k <= 3; k++) {
        kri_prefix_cache_t *tree = NULL;
        kri_alloc_fail(k, false);
        assert_status(kri_prefix_cache_create(8, &tree), KR_E_NOMEM);
        kri_alloc_fail(0, false);
        assert_null(tree);
    }
}

/* ---- in the pool ---------------------------------------------------------------------------- */

#define PAGE ((uint64_t)2 * 16 * 16 * 2) /* of one layer */

static kri_kv_pool_t *make_pool(uint32_t n_pages, uint32_t window) {
    kri_kv_params_t params = {.n_groups = 1, .groups = {{1, 1, 16, 0}}, .dtype = KR_DTYPE_F16,
                              .n_seqs = 4, .n_ctx = 256, .bytes_max = n_pages * PAGE,
                              .prefix_cache = true};
    kri_kv_pool_t *pool = NULL;
    if (window) {
        params.groups[params.n_groups++] = (kri_kv_shape_t){1, 1, 16, window};
        params.bytes_max *= 2;
    }
    assert_status(kri_kv_pool_create(&params, &pool), KR_OK);
    return pool;
}

static void prefill(kri_kv_pool_t *pool, uint32_t seq, uint64_t salt, const kr_token_t *tokens,
                    uint32_t n) {
    assert_status(kri_kv_pool_reserve(pool, seq, n), KR_OK);
    kri_kv_pool_commit(pool, seq, n);
    kri_kv_pool_publish(pool, seq, salt, tokens);
    assert_true(kri_kv_pool_check(pool));
}

static kri_kv_match_t match_of(const kri_kv_pool_t *pool, uint64_t salt, const kr_token_t *tokens,
                               uint32_t n) {
    kri_kv_match_t match;
    kri_kv_pool_match(pool, salt, tokens, n, &match);
    return match;
}

static kri_kv_stats_t stats_of(const kri_kv_pool_t *pool) {
    kri_kv_stats_t stats;
    kri_kv_pool_stats(pool, &stats);
    return stats;
}

TEST(prefix_cache_gives_whole_pages_and_leaves_a_token_to_compute) {
    kri_kv_pool_t *pool = make_pool(32, 0);
    kr_token_t tokens[256];
    kri_kv_match_t match;
    count_up(tokens, 256, 0);
    prefill(pool, 0, 0, tokens, 50);
    assert_int_equal(match_of(pool, 0, tokens, 256).n_cached, 48);
    assert_int_equal(match_of(pool, 0, tokens, 49).n_cached, 48);
    assert_int_equal(match_of(pool, 0, tokens, 48).n_cached, 32); /* one must be computed */
    assert_int_equal(match_of(pool, 0, tokens, 17).n_cached, 16);
    assert_int_equal(match_of(pool, 0, tokens, 16).n_cached, 0);
    assert_int_equal(match_of(pool, 0, tokens, 1).n_cached, 0);
    kri_kv_pool_attach(pool, 1, 0, tokens, 100, &match); /* while it is in use */
    assert_int_equal(match.n_cached, 48);
    assert_int_equal(kri_kv_pool_length(pool, 1), 48);
    assert_memory_equal(kri_kv_pool_table(pool, 0, 0), kri_kv_pool_table(pool, 1, 0), 12);
    assert_int_equal(stats_of(pool).bytes_used, 4 * PAGE);
    kri_kv_pool_release(pool, 0);
    assert_int_equal(stats_of(pool).bytes_used, 3 * PAGE);
    kri_kv_pool_release(pool, 1);
    assert_int_equal(stats_of(pool).bytes_used, 0);
    assert_int_equal(stats_of(pool).bytes_cached, 3 * PAGE);
    kri_kv_pool_attach(pool, 2, 0, tokens, 100, &match); /* and afterwards */
    assert_int_equal(match.n_cached, 48);
    assert_int_equal(stats_of(pool).bytes_cached, 0);
    assert_true(kri_kv_pool_check(pool));
    kri_kv_pool_destroy(pool);
}

TEST(prefix_cache_misses_name_the_first_token_that_differs) {
    kri_kv_pool_t *pool = make_pool(32, 0);
    kr_token_t tokens[64];
    count_up(tokens, 64, 0);
    kri_kv_match_t match = match_of(pool, 0, tokens, 64);
    assert_int_equal(match.miss_position, 0);
    assert_int_equal(match.miss_cached, -1);
    prefill(pool, 0, 0, tokens, 48);
    match = match_of(pool, 0, tokens, 64); /* all that is cached agrees */
    assert_int_equal(match.n_cached, 48);
    assert_int_equal(match.miss_position, 48);
    assert_int_equal(match.miss_cached, -1);
    match = match_of(pool, 0, tokens, 40); /* ends inside a cached page */
    assert_int_equal(match.n_cached, 32);
    assert_int_equal(match.miss_position, 40);
    assert_int_equal(match.miss_cached, -1);
    match = match_of(pool, 0, tokens, 48);
    assert_int_equal(match.n_cached, 32);
    assert_int_equal(match.miss_position, 48);
    tokens[21] = 500;
    match = match_of(pool, 0, tokens, 64);
    assert_int_equal(match.n_cached, 16);
    assert_int_equal(match.miss_position, 21);
    assert_int_equal(match.miss_cached, 21);
    tokens[0] = 500;
    match = match_of(pool, 0, tokens, 64);
    assert_int_equal(match.n_cached, 0);
    assert_int_equal(match.miss_position, 0);
    assert_int_equal(match.miss_cached, 0);
    kri_kv_pool_destroy(pool);
}

TEST(prefix_cache_salts_do_not_meet) {
    kri_kv_pool_t *pool = make_pool(32, 0);
    kr_token_t tokens[64];
    count_up(tokens, 64, 0);
    prefill(pool, 0, 1, tokens, 64);
    const kri_kv_match_t match = match_of(pool, 2, tokens, 64);
    assert_int_equal(match.n_cached, 0);
    assert_int_equal(match.miss_position, 0);
    assert_int_equal(match.miss_cached, -1); /* nothing is told either */
    prefill(pool, 1, 2, tokens, 64);
    assert_int_equal(stats_of(pool).bytes_used, 8 * PAGE);
    assert_int_equal(match_of(pool, 1, tokens, 64).n_cached, 48);
    assert_int_equal(match_of(pool, 2, tokens, 64).n_cached, 48);
    kri_kv_pool_destroy(pool);
}

/* Two sequences that computed the same prompt at the same time end up with one set of pages. */
TEST(prefix_cache_holds_equal_prefixes_once) {
    kri_kv_pool_t *pool = make_pool(32, 32);
    kr_token_t tokens[80];
    count_up(tokens, 80, 0);
    assert_status(kri_kv_pool_reserve(pool, 0, 40), KR_OK);
    assert_status(kri_kv_pool_reserve(pool, 1, 40), KR_OK);
    assert_int_equal(stats_of(pool).bytes_used, 12 * PAGE);
    prefill(pool, 0, 0, tokens, 40);
    prefill(pool, 1, 0, tokens, 40);
    assert_int_equal(stats_of(pool).bytes_used, 8 * PAGE); /* two shared, one each of their own */
    assert_memory_equal(kri_kv_pool_table(pool, 0, 0), kri_kv_pool_table(pool, 1, 0), 8);
    assert_memory_equal(kri_kv_pool_table(pool, 0, 1), kri_kv_pool_table(pool, 1, 1), 8);
    assert_int_equal(stats_of(pool).bytes_moved, 0);
    kri_kv_pool_destroy(pool);
}

TEST(prefix_cache_evicts_the_least_recently_used_from_its_end) {
    kri_kv_pool_t *pool = make_pool(8, 0);
    kr_token_t old[64], new[64], third[64];
    kri_kv_match_t match;
    count_up(old, 64, 0);
    count_up(new, 64, 1000);
    count_up(third, 64, 2000);
    prefill(pool, 0, 0, old, 64);
    kri_kv_pool_release(pool, 0);
    prefill(pool, 0, 0, new, 64);
    kri_kv_pool_release(pool, 0);
    assert_int_equal(stats_of(pool).bytes_cached, 8 * PAGE);
    assert_int_equal(kri_kv_pool_available(pool), 8 * PAGE);
    assert_status(kri_kv_pool_reserve(pool, 0, 32), KR_OK); /* two pages: the end of the old one */
    assert_int_equal(stats_of(pool).n_evicted, 2);
    match = match_of(pool, 0, old, 64);
    assert_int_equal(match.n_cached, 32);
    assert_int_equal(match.miss_position, 32);
    assert_int_equal(match_of(pool, 0, new, 64).n_cached, 48);
    kri_kv_pool_attach(pool, 1, 0, old, 64, &match); /* used again: now the new one is older */
    kri_kv_pool_release(pool, 1);
    assert_status(kri_kv_pool_reserve(pool, 0, 80), KR_OK);
    assert_int_equal(match_of(pool, 0, old, 64).n_cached, 32);
    assert_int_equal(match_of(pool, 0, new, 64).n_cached, 16);
    assert_true(kri_kv_pool_check(pool));
    kri_kv_pool_release(pool, 0);
    kri_kv_pool_forget(pool);
    assert_int_equal(stats_of(pool).bytes_cached, 0);
    assert_int_equal(match_of(pool, 0, old, 64).n_cached, 0);
    assert_true(kri_kv_pool_check(pool));
    kri_kv_pool_destroy(pool);
}

TEST(prefix_cache_discard_drops_a_chain_and_no_other) {
    kri_kv_pool_t *pool = make_pool(40, 0);
    kr_token_t good[64], bad[64], branch[64];
    kri_kv_match_t match;
    count_up(good, 64, 0);
    count_up(bad, 64, 1000);
    count_up(branch, 64, 1000);
    for (int i = 16; i < 64; i++) branch[i] = 3000 + i;
    prefill(pool, 0, 0, good, 64);
    prefill(pool, 1, 0, bad, 64);
    kri_kv_pool_release(pool, 1);
    kri_kv_pool_attach(pool, 1, 0, branch, 64, &match); /* shares the first page of the bad one */
    assert_int_equal(match.n_cached, 16);
    prefill(pool, 1, 0, branch, 64);
    kri_kv_pool_release(pool, 1);
    kri_kv_pool_attach(pool, 2, 0, bad, 64, &match);
    assert_int_equal(match.n_cached, 48);
    kri_kv_pool_discard(pool, 2);
    assert_int_equal(kri_kv_pool_length(pool, 2), 0);
    assert_true(kri_kv_pool_check(pool));
    assert_int_equal(match_of(pool, 0, bad, 64).n_cached, 0);
    assert_int_equal(match_of(pool, 0, branch, 64).n_cached, 0); /* its first page was suspect */
    assert_int_equal(match_of(pool, 0, good, 64).n_cached, 48);
    prefill(pool, 1, 0, bad, 64); /* computed anew it may enter again */
    assert_int_equal(match_of(pool, 0, bad, 64).n_cached, 48);
    kri_kv_pool_release(pool, 0);
    kri_kv_pool_release(pool, 1);
    kri_kv_pool_forget(pool);
    assert_int_equal(stats_of(pool).bytes_cached, 0);
    assert_true(kri_kv_pool_check(pool));
    kri_kv_pool_destroy(pool);
}

TEST(prefix_cache_resize_evicts_and_forget_keeps_what_is_held) {
    kri_kv_pool_t *pool = make_pool(32, 0);
    kr_token_t tokens[64];
    count_up(tokens, 64, 0);
    prefill(pool, 0, 0, tokens, 64);
    kri_kv_pool_forget(pool);
    assert_int_equal(match_of(pool, 0, tokens, 64).n_cached, 48); /* still held by sequence 0 */
    kri_kv_pool_release(pool, 0);
    assert_status(kri_kv_pool_resize(pool, 2 * PAGE), KR_OK);
    assert_int_equal(stats_of(pool).bytes_cached, 2 * PAGE);
    assert_int_equal(match_of(pool, 0, tokens, 64).n_cached, 32);
    assert_true(kri_kv_pool_check(pool));
    kri_kv_pool_destroy(pool);
}

/* With a window of 32 a prefix of 16 n tokens needs the windowed pages n - 2 and n - 1 only. */
TEST(prefix_cache_windows_limit_where_a_prefix_ends) {
    kri_kv_pool_t *pool = make_pool(40, 32);
    kr_token_t tokens[256];
    kri_kv_match_t match;
    count_up(tokens, 256, 0);
    for (uint32_t n = 16; n <= 240; n += 16) prefill(pool, 0, 0, tokens, n);
    kri_kv_pool_release(pool, 0);
    assert_int_equal(match_of(pool, 0, tokens, 256).n_cached, 240);
    assert_int_equal(match_of(pool, 0, tokens, 100).n_cached, 96); /* nothing was stripped yet */
    const uint64_t n_free = stats_of(pool).bytes_max - stats_of(pool).bytes_cached;
    kr_token_t other[256];
    count_up(other, 256, 5000);
    /* Room for 8 pages more: the windowed pages that were given back first go first. */
    assert_status(kri_kv_pool_resize(pool, stats_of(pool).bytes_max - n_free), KR_OK);
    assert_status(kri_kv_pool_reserve(pool, 1, 64), KR_OK);
    assert_true(kri_kv_pool_check(pool));
    assert_int_equal(match_of(pool, 0, tokens, 256).n_cached, 240);
    match = match_of(pool, 0, tokens, 100);
    assert_int_equal(match.n_cached, 0); /* its window is gone */
    assert_int_equal(match.miss_position, 100); /* though all its tokens are known */
    kri_kv_pool_attach(pool, 0, 0, tokens, 256, &match);
    assert_int_equal(match.n_cached, 240);
    assert_status(kri_kv_pool_truncate(pool, 0, 230), KR_E_UNSUPPORTED); /* pages of other rows */
    assert_true(kri_kv_pool_check(pool));
    /* Stripped pages come back when the prefix is computed again. */
    kri_kv_pool_release(pool, 0);
    kri_kv_pool_release(pool, 1);
    for (uint32_t n = 16; n <= 96; n += 16) prefill(pool, 0, 0, tokens, n);
    assert_int_equal(match_of(pool, 0, tokens, 100).n_cached, 96);
    kri_kv_pool_destroy(pool);
}

/* Windowed pages that are passed within one step enter the cache before they are given back. */
TEST(prefix_cache_gets_the_pages_of_a_step_longer_than_the_window) {
    kri_kv_pool_t *pool = make_pool(40, 32);
    kr_token_t tokens[256];
    count_up(tokens, 256, 0);
    prefill(pool, 0, 0, tokens, 160);
    assert_int_equal(match_of(pool, 0, tokens, 70).n_cached, 64);
    assert_int_equal(match_of(pool, 0, tokens, 256).n_cached, 160);
    /* In use: all pages of the one group, of the other those that rows from 144 on see. */
    assert_int_equal(stats_of(pool).bytes_used, (10 + 10 - (144 - 31) / 16) * PAGE);
    kri_kv_pool_destroy(pool);
}

/* A page that a sequence goes back into is copied while the cache can keep its own. */
TEST(prefix_cache_keeps_its_page_when_a_sequence_goes_back_into_it) {
    kri_kv_pool_t *pool = make_pool(3, 0);
    kr_token_t tokens[64];
    count_up(tokens, 64, 0);
    prefill(pool, 0, 0, tokens, 32);
    assert_status(kri_kv_pool_truncate(pool, 0, 20), KR_OK);
    prefill(pool, 0, 0, tokens, 21);
    assert_int_equal(stats_of(pool).bytes_moved, PAGE);
    assert_int_equal(match_of(pool, 0, tokens, 64).n_cached, 32);
    /* With no page left it takes the page away from the cache instead. */
    tokens[25] = 99;
    prefill(pool, 0, 0, tokens, 48);
    assert_int_equal(match_of(pool, 0, tokens, 64).n_cached, 48);
    assert_status(kri_kv_pool_truncate(pool, 0, 40), KR_OK);
    prefill(pool, 0, 0, tokens, 41);
    assert_int_equal(stats_of(pool).bytes_moved, PAGE);
    assert_int_equal(match_of(pool, 0, tokens, 64).n_cached, 32);
    kri_kv_pool_destroy(pool);
}

/* A fork that goes on under another salt shares pages, but not the cache. */
TEST(prefix_cache_keeps_a_fork_of_another_salt_private) {
    kri_kv_pool_t *pool = make_pool(32, 0);
    kr_token_t tokens[64];
    count_up(tokens, 64, 0);
    assert_status(kri_kv_pool_reserve(pool, 0, 32), KR_OK);
    kri_kv_pool_commit(pool, 0, 32);
    assert_status(kri_kv_pool_fork(pool, 0, 1, 32), KR_OK);
    kri_kv_pool_publish(pool, 0, 1, tokens);
    kri_kv_pool_publish(pool, 1, 2, tokens);
    prefill(pool, 1, 2, tokens, 64);
    assert_int_equal(match_of(pool, 1, tokens, 64).n_cached, 32);
    assert_int_equal(match_of(pool, 2, tokens, 64).n_cached, 0);
    assert_true(kri_kv_pool_check(pool));
    kri_kv_pool_destroy(pool);
}

TEST(prefix_cache_off_finds_nothing) {
    const kri_kv_params_t params = {.n_groups = 1, .groups = {{1, 1, 16, 0}},
                                    .dtype = KR_DTYPE_I8, .n_seqs = 2, .n_ctx = 64};
    kri_kv_pool_t *pool = NULL;
    kr_token_t tokens[64];
    kri_kv_match_t match;
    count_up(tokens, 64, 0);
    assert_status(kri_kv_pool_create(&params, &pool), KR_OK);
    prefill(pool, 0, 0, tokens, 64);
    kri_kv_pool_attach(pool, 1, 0, tokens, 64, &match);
    assert_int_equal(match.n_cached, 0);
    assert_int_equal(match.miss_cached, -1);
    assert_int_equal(match_of(pool, 0, tokens, 64).n_cached, 0);
    kri_kv_pool_release(pool, 0);
    kri_kv_pool_forget(pool);
    assert_int_equal(stats_of(pool).bytes_cached, 0);
    kri_kv_pool_destroy(pool);
}

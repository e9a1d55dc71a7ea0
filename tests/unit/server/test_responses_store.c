/* test_responses_store.c: bounds by count and bytes, who goes first, whose entries are whose,
 * entries that are held, memory that runs out, many threads at once. */
#include "server/responses_store.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "test.h"

static response_t make(uint32_t id, uint64_t key_id, const char *body) {
    response_t r = {.key_id = key_id, .body = body, .body_bytes = strlen(body)};
    snprintf(r.id, sizeof r.id, "resp_%u", id);
    return r;
}

static kr_status_t put(responses_t *store, uint32_t id, uint64_t key_id, const char *body) {
    const response_t r = make(id, key_id, body);
    return responses_store_put(store, &r);
}

static bool has(responses_t *store, uint32_t id, uint64_t key_id) {
    const response_t name = make(id, key_id, "");
    const response_t *found = responses_store_get(store, name.id, key_id);
    responses_store_release(found);
    return found != NULL;
}

static responses_t *create(uint32_t n_max, size_t bytes_max) {
    responses_t *store = NULL;
    assert_status(responses_store_create(n_max, bytes_max, &store), KR_OK);
    return store;
}

TEST(store_gives_back_what_was_put) {
    responses_t *store = create(8, 1 << 20);
    char text[] = "hello\0there";
    const kr_message_t messages[] = {{"system", "", 0}, {"user", text, sizeof text - 1},
                                     {"assistant", "hi", 2}};
    response_t r = make(1, 7, "{\"id\":1}");
    r.messages = messages;
    r.n_messages = 3;
    assert_status(responses_store_put(store, &r), KR_OK);
    memset(text, 'x', sizeof text - 1); /* it has its own copy */
    const response_t *got = responses_store_get(store, "resp_1", 7);
    assert_non_null(got);
    assert_string_equal(got->id, "resp_1");
    assert_int_equal(got->n_messages, 3);
    assert_string_equal(got->messages[0].role, "system");
    assert_int_equal(got->messages[0].content_bytes, 0);
    assert_string_equal(got->messages[1].role, "user");
    assert_int_equal(got->messages[1].content_bytes, 11);
    assert_memory_equal(got->messages[1].content, "hello\0there", 11);
    assert_string_equal(got->messages[2].role, "assistant");
    assert_int_equal(got->body_bytes, 8);
    assert_memory_equal(got->body, "{\"id\":1}", 8);
    responses_store_release(got);
    responses_store_destroy(store);
}

TEST(store_refuses_wrong_bounds_and_ids) {
    responses_t *store = NULL;
    assert_status(responses_store_create(0, 1, &store), KR_E_INVALID_ARG);
    assert_status(responses_store_create(1, 0, &store), KR_E_INVALID_ARG);
    assert_null(store);
    store = create(2, 4096);
    response_t r = make(1, 0, "x");
    memset(r.id, 'a', sizeof r.id); /* no end */
    assert_status(responses_store_put(store, &r), KR_E_INVALID_ARG);
    assert_status(put(store, 1, 0, "x"), KR_OK);
    assert_status(put(store, 1, 0, "y"), KR_E_EXISTS);
    assert_status(put(store, 1, 9, "y"), KR_E_EXISTS);
    assert_int_equal(responses_stats(store).n, 1);
    responses_store_destroy(store);
    responses_store_destroy(NULL);
    responses_store_release(NULL);
    assert_status(put(NULL, 1, 1, "x"), KR_E_LIMIT);
    assert_false(has(NULL, 1, 1));
    assert_false(responses_store_delete(NULL, "resp_1", 1));
}

TEST(store_keys_do_not_see_each_other) {
    responses_t *store = create(8, 1 << 20);
    assert_status(put(store, 1, 1, "x"), KR_OK);
    assert_false(has(store, 1, 2));
    assert_false(has(store, 1, 0));
    assert_false(responses_store_delete(store, "resp_1", 2));
    assert_true(has(store, 1, 1));
    assert_true(responses_store_delete(store, "resp_1", 1));
    assert_false(has(store, 1, 1));
    assert_false(responses_store_delete(store, "resp_1", 1));
    assert_int_equal(responses_stats(store).n, 0);
    assert_int_equal(responses_stats(store).n_bytes, 0);
    responses_store_destroy(store);
}

/* Also a look by another key is no use of an entry. */
TEST(store_drops_what_was_not_used_for_longest) {
    responses_t *store = create(3, 1 << 20);
    for (uint32_t i = 0; i < 3; i++) assert_status(put(store, i, 1, "x"), KR_OK);
    assert_true(has(store, 0, 1));
    assert_false(has(store, 1, 2));
    assert_status(put(store, 3, 1, "x"), KR_OK);
    assert_false(has(store, 1, 1));
    assert_true(has(store, 0, 1) && has(store, 2, 1) && has(store, 3, 1));
    assert_int_equal(responses_stats(store).n, 3);
    responses_store_destroy(store);
}

TEST(store_keeps_to_its_bytes) {
    char body[1001];
    memset(body, 'b', 1000);
    body[1000] = '\0';
    responses_t *store = create(1000, 5000);
    for (uint32_t i = 0; i < 50; i++) {
        assert_status(put(store, i, 1, body), KR_OK);
        assert_true(has(store, i, 1));
        const responses_stats_t stats = responses_stats(store);
        assert_true(stats.n_bytes <= 5000 && stats.n_bytes >= stats.n * 1000u && stats.n <= 4);
    }
    char huge[6001];
    memset(huge, 'h', 6000);
    huge[6000] = '\0';
    const responses_stats_t before = responses_stats(store);
    assert_status(put(store, 99, 1, huge), KR_E_LIMIT);
    assert_int_equal(responses_stats(store).n, before.n); /* it drove nothing out */
    assert_true(has(store, 49, 1));
    responses_store_destroy(store);
}

TEST(store_leaves_others_their_part) {
    responses_t *store = create(8, 1 << 20);
    for (uint32_t i = 0; i < 3; i++) assert_status(put(store, i, 1, "x"), KR_OK);
    /* Another key: it gets the rest, and then drives out its own. */
    for (uint32_t i = 100; i < 150; i++) {
        assert_status(put(store, i, 2, "x"), KR_OK);
        assert_true(has(store, i, 2));
    }
    assert_int_equal(responses_stats(store).n, 8);
    for (uint32_t i = 0; i < 3; i++) assert_true(has(store, i, 1));
    for (uint32_t i = 145; i < 150; i++) assert_true(has(store, i, 2));
    /* Who has less than its part gets it from who has more. */
    assert_status(put(store, 3, 1, "x"), KR_OK);
    assert_false(has(store, 145, 2));
    /* Now both have half: each drives out its own, whoever was used last. */
    assert_status(put(store, 4, 1, "x"), KR_OK);
    assert_true(has(store, 146, 2) && has(store, 149, 2));
    assert_false(has(store, 0, 1));
    assert_true(has(store, 1, 1) && has(store, 4, 1));
    responses_store_destroy(store);
}

TEST(store_leaves_others_their_part_of_the_bytes) {
    char body[2401];
    memset(body, 'b', 2400);
    body[2400] = '\0';
    responses_t *store = create(1000, 10000);
    for (uint32_t i = 0; i < 8; i++) assert_status(put(store, i, 1, "small"), KR_OK);
    for (uint32_t i = 100; i < 150; i++) assert_status(put(store, i, 2, body), KR_OK);
    for (uint32_t i = 0; i < 8; i++) assert_true(has(store, i, 1));
    assert_true(has(store, 149, 2));
    const responses_stats_t stats = responses_stats(store);
    assert_true(stats.n_bytes <= 10000);
    responses_store_destroy(store);

    store = create(1000, 10000);
    assert_status(put(store, 1, 1, body), KR_OK);
    char large[8001];
    memset(large, 'l', 8000);
    large[8000] = '\0';
    /* Alone more than its part, and the other keeps to its own: not kept, nothing is lost. */
    assert_status(put(store, 2, 2, large), KR_E_LIMIT);
    assert_false(has(store, 2, 2));
    assert_true(has(store, 1, 1));
    assert_true(responses_store_delete(store, "resp_1", 1));
    assert_status(put(store, 2, 2, large), KR_OK);
    responses_store_destroy(store);
}

TEST(store_entries_outlive_it_while_held) {
    responses_t *store = create(1, 1 << 20);
    assert_status(put(store, 1, 1, "first"), KR_OK);
    const response_t *first = responses_store_get(store, "resp_1", 1);
    assert_status(put(store, 2, 1, "second"), KR_OK);
    assert_false(has(store, 1, 1));
    const response_t *second = responses_store_get(store, "resp_2", 1);
    assert_true(responses_store_delete(store, "resp_2", 1));
    responses_store_destroy(store);
    assert_memory_equal(first->body, "first", 5);
    assert_memory_equal(second->body, "second", 6);
    responses_store_release(first);
    responses_store_release(second);
}

TEST(store_survives_a_heap_that_is_empty) {
    responses_t *store = NULL;
    kri_alloc_fail(1, true);
    assert_status(responses_store_create(4, 4096, &store), KR_E_NOMEM);
    kri_alloc_fail(0, false);
    store = create(4, 4096);
    assert_status(put(store, 1, 1, "x"), KR_OK);
    kri_alloc_fail(1, true);
    assert_status(put(store, 2, 1, "x"), KR_E_NOMEM);
    kri_alloc_fail(0, false);
    assert_true(has(store, 1, 1));
    assert_false(has(store, 2, 1));
    responses_store_destroy(store);
}

/* ---- threads ------------------------------------------------------------------------------- */

#define N_THREADS 4u
#define N_ROUNDS 4000u
typedef struct worker_s {
    responses_t *store;
    uint32_t index;
    _Atomic uint32_t *n_wrong;
} worker_t;

static void *work(void *user) {
    const worker_t *w = user;
    char body[32];
    for (uint32_t i = 0; i < N_ROUNDS; i++) {
        const uint64_t key = 1 + i % 3;
        const uint32_t id = w->index * N_ROUNDS + i;
        const uint32_t other = (id * 2654435761u) % (N_THREADS * i + 1);
        snprintf(body, sizeof body, "%u", id);
        if (put(w->store, id, key, body) != KR_OK) (*w->n_wrong)++;
        const response_t name = make(other, key, "");
        const response_t *got = responses_store_get(w->store, name.id, key);
        if (got) {
            snprintf(body, sizeof body, "%u", other);
            const bool is_right = got->key_id == key && got->body_bytes == strlen(body) &&
                                  memcmp(got->body, body, got->body_bytes) == 0;
            if (!is_right) (*w->n_wrong)++;
        }
        if (i % 7 == 0) (void)responses_store_delete(w->store, name.id, key);
        responses_store_release(got);
        if (responses_stats(w->store).n > 64) (*w->n_wrong)++;
    }
    return NULL;
}

TEST(store_serves_many_threads) {
    _Atomic uint32_t n_wrong = 0;
    pthread_t threads[N_THREADS];
    worker_t workers[N_THREADS];
    responses_t *store = create(64, 1 << 20);
    for (uint32_t i = 0; i < N_THREADS; i++) {
        workers[i] = (worker_t){store, i, &n_wrong};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < N_THREADS; i++) pthread_join(threads[i], NULL);
    assert_int_equal(n_wrong, 0);
    responses_store_destroy(store);
}

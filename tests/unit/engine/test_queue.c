/* test_queue.c: the table of keys takes fresh places by a counter and then the key that has been
 * absent longest; what a key had is remembered while its place is its own. */
#include "test.h"

#include "engine/queue.h"

enum { N_LIVE = 4, N_KEYS = N_LIVE + 64 };

static void come(kri_queue_t *q, kri_task_t *task, uint64_t key) {
    *task = (kri_task_t){.key = key, .expire_ns = UINT64_MAX};
    kri_queue_enter(q, task);
}

static void check(const kri_queue_t *q) {
    uint32_t n_queued = 0;
    assert_true(kri_queue_check(q, &n_queued));
}

TEST(queue_of_any_length_writes_only_the_keys_that_came) {
    kri_queue_t q;
    kri_task_t task;
    assert_status(kri_queue_init(&q, 1 << 16), KR_OK);
    assert_int_equal(q.n_used, 0);
    for (uint32_t i = 0; i < 3; i++) {
        come(&q, &task, 7 + i % 2);
        assert_int_equal(q.n_used, i == 0 ? 1 : 2);
        kri_queue_leave(&q, &task);
    }
    check(&q);
    kri_queue_deinit(&q);
}

TEST(queue_forgets_the_key_that_is_absent_longest_when_all_are_used) {
    kri_queue_t q;
    kri_task_t task, stays;
    assert_status(kri_queue_init(&q, N_LIVE), KR_OK);
    come(&q, &stays, 1000);
    kri_queue_charge(&q, &stays, 500);
    for (uint64_t key = 1; key < N_KEYS; key++) {
        come(&q, &task, key);
        kri_queue_charge(&q, &task, (uint32_t)key);
        kri_queue_leave(&q, &task);
        check(&q);
    }
    assert_int_equal(q.n_used, N_KEYS);
    come(&q, &task, 2000); /* in the place of key 1 */
    assert_int_equal(kri_queue_share(&q, &task), 0);
    kri_queue_leave(&q, &task);
    come(&q, &task, 2);
    assert_int_equal(kri_queue_share(&q, &task), 2);
    kri_queue_leave(&q, &task);
    come(&q, &task, 1); /* in the place of key 3 */
    assert_int_equal(kri_queue_share(&q, &task), 0);
    kri_queue_leave(&q, &task);
    come(&q, &task, 1000);
    assert_int_equal(kri_queue_share(&q, &task), 500);
    assert_int_equal(q.n_used, N_KEYS);
    kri_queue_leave(&q, &task);
    kri_queue_leave(&q, &stays);
    check(&q);
    kri_queue_deinit(&q);
}

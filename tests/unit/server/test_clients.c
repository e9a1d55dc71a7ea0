/* What one client holds, and that it is forgotten. */
#include "server/clients.h"

#include "base/alloc.h"
#include "test.h"

TEST(clients_hold_no_more_than_their_part) {
    clients_t *clients = NULL;
    assert_status(clients_create(&clients), KR_OK);
    assert_false(clients_take(clients, 1, 101, 100));
    assert_false(clients_take(clients, 1, UINT64_MAX, 100));
    assert_true(clients_take(clients, 1, 60, 100));
    assert_true(clients_take(clients, 1, 40, 100));
    assert_false(clients_take(clients, 1, 1, 100));
    assert_true(clients_take(clients, 1, 0, 100));
    assert_true(clients_take(clients, 2, 99, 100)); /* each has its own */
    clients_give(clients, 1, 60);
    assert_true(clients_take(clients, 1, 50, 100));
    assert_false(clients_take(clients, 1, 11, 100));
    clients_give(clients, 1, 90);
    clients_give(clients, 1, 1); /* nothing is left to give back */
    assert_true(clients_take(clients, 1, 100, 100));
    clients_give(clients, 1, 100);
    clients_give(clients, 2, 99);
    clients_destroy(clients); /* the sanitizer would miss what is not freed */
    clients_destroy(NULL);
}

TEST(clients_many_at_once) {
    clients_t *clients = NULL;
    assert_status(clients_create(&clients), KR_OK);
    for (uint64_t i = 0; i < 5000; i++) assert_true(clients_take(clients, i << 40 | i, 7, 10));
    for (uint64_t i = 0; i < 5000; i++) assert_false(clients_take(clients, i << 40 | i, 4, 10));
    for (uint64_t i = 0; i < 5000; i += 2) clients_give(clients, i << 40 | i, 7);
    for (uint64_t i = 0; i < 5000; i++) {
        assert_int_equal(clients_take(clients, i << 40 | i, 4, 10), i % 2 == 0);
    }
    clients_destroy(clients);
}

TEST(clients_survive_a_heap_that_is_empty) {
    clients_t *clients = NULL;
    kri_alloc_fail(1, true);
    assert_status(clients_create(&clients), KR_E_NOMEM);
    kri_alloc_fail(0, false);
    assert_status(clients_create(&clients), KR_OK);
    kri_alloc_fail(1, true);
    assert_false(clients_take(clients, 1, 10, 100));
    kri_alloc_fail(0, false);
    assert_true(clients_take(clients, 1, 100, 100));
    clients_destroy(clients);
}

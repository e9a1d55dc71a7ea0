/* test.h: TEST(name) { ... } defines and registers a test; every file is its own process.
 * Assertions are cmocka's. SKIP("reason") ends a test as skipped; CI allows skips by name only. */
#ifndef KR_TEST_H
#define KR_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void kr_test_register(const char *name, void (*fn)(void **state));

#define TEST(name)                                                                               \
    static void name(void **state);                                                              \
    __attribute__((constructor)) static void name##_register(void) {                             \
        kr_test_register(#name, name);                                                           \
    }                                                                                            \
    static void name(void **state __attribute__((unused)))

#define SKIP(reason)                                                                             \
    do {                                                                                         \
        fprintf(stderr, "SKIP %s: %s\n", __func__, reason);                                      \
        skip();                                                                                  \
    } while (0)

/* Compares statuses by name so that a failure reads well. */
#define assert_status(actual, expected)                                                          \
    assert_string_equal(kr_status_name(actual), kr_status_name(expected))

#endif

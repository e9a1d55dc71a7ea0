/* cmocka.h: the part of cmocka's interface that test.h and the tests of base, tensor, ops and cpu
 * use, for cross builds, where no package brings cmocka for the target. Same names and the same
 * lines of output; a crash ends the program instead of one test. Used with KR_KERNELS_ONLY only. */
#ifndef KR_TESTS_MINI_CMOCKA_H
#define KR_TESTS_MINI_CMOCKA_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*test_func)(void **state);
    int (*setup_func)(void **state);
    int (*teardown_func)(void **state);
    void *initial_state;
};

void cmocka_set_test_filter(const char *pattern);
int _cmocka_run_group_tests(const char *group_name, const struct CMUnitTest *tests,
                            size_t n_tests, int (*setup)(void **state),
                            int (*teardown)(void **state));
void print_message(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Ends the running test: as failed, with the place and a text; or as skipped. */
_Noreturn void mini_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void mini_skip(void);

void mini_assert_true(int holds, const char *text, const char *file, int line);
void mini_assert_int_equal(uint64_t a, uint64_t b, const char *file, int line);
void mini_assert_in_range(uint64_t value, uint64_t least, uint64_t most, const char *file,
                          int line);
void mini_assert_memory_equal(const void *a, const void *b, size_t n_bytes, const char *file,
                              int line);
void mini_assert_string_equal(const char *a, const char *b, int is_equal, const char *file,
                              int line);

#define skip() mini_skip()
#define fail_msg(...) mini_fail(__FILE__, __LINE__, __VA_ARGS__)
#define assert_true(c) mini_assert_true((c) ? 1 : 0, #c, __FILE__, __LINE__)
#define assert_false(c) mini_assert_true((c) ? 0 : 1, "not " #c, __FILE__, __LINE__)
#define assert_null(p) mini_assert_true((p) == NULL, #p " is NULL", __FILE__, __LINE__)
#define assert_non_null(p) mini_assert_true((p) != NULL, #p " is not NULL", __FILE__, __LINE__)
#define assert_ptr_equal(a, b)                                                                   \
    mini_assert_true((const void *)(a) == (const void *)(b), #a " is " #b, __FILE__, __LINE__)
#define assert_int_equal(a, b)                                                                   \
    mini_assert_int_equal((uint64_t)(a), (uint64_t)(b), __FILE__, __LINE__)
#define assert_in_range(v, least, most)                                                          \
    mini_assert_in_range((uint64_t)(v), (uint64_t)(least), (uint64_t)(most), __FILE__, __LINE__)
#define assert_memory_equal(a, b, n) mini_assert_memory_equal(a, b, n, __FILE__, __LINE__)
#define assert_string_equal(a, b) mini_assert_string_equal(a, b, 1, __FILE__, __LINE__)
#define assert_string_not_equal(a, b) mini_assert_string_equal(a, b, 0, __FILE__, __LINE__)

#endif

/* cmocka.c: runs tests one after the other in this process; a failed or skipped test leaves by
 * longjmp. Every line is flushed, so that a crash loses none. */
#include <cmocka.h>

#include <fnmatch.h>
#include <setjmp.h>
#include <stdarg.h>

enum { RESULT_FAILED = 1, RESULT_SKIPPED };

static jmp_buf leave;
static const char *filter;

void cmocka_set_test_filter(const char *pattern) { filter = pattern; }

void print_message(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    fflush(stdout);
}

void mini_fail(const char *file, int line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    print_message("%s:%d: ", file, line);
    vprintf(format, args);
    print_message("\n");
    va_end(args);
    longjmp(leave, RESULT_FAILED);
}

void mini_skip(void) { longjmp(leave, RESULT_SKIPPED); }

void mini_assert_true(int holds, const char *text, const char *file, int line) {
    if (!holds) mini_fail(file, line, "not so: %s", text);
}

void mini_assert_int_equal(uint64_t a, uint64_t b, const char *file, int line) {
    if (a != b) {
        mini_fail(file, line, "%lld (%#llx) is not %lld (%#llx)", (long long)a,
                  (unsigned long long)a, (long long)b, (unsigned long long)b);
    }
}

void mini_assert_in_range(uint64_t value, uint64_t least, uint64_t most, const char *file,
                          int line) {
    if (value < least || value > most) {
        mini_fail(file, line, "%llu is not in %llu..%llu", (unsigned long long)value,
                  (unsigned long long)least, (unsigned long long)most);
    }
}

void mini_assert_memory_equal(const void *a, const void *b, size_t n_bytes, const char *file,
                              int line) {
    const uint8_t *x = a, *y = b;
    for (size_t i = 0; i < n_bytes; i++) {
        if (x[i] != y[i]) {
            mini_fail(file, line, "byte %zu of %zu: %#x is not %#x", i, n_bytes, (unsigned)x[i],
                      (unsigned)y[i]);
        }
    }
}

void mini_assert_string_equal(const char *a, const char *b, int is_equal, const char *file,
                              int line) {
    if (a == NULL || b == NULL) mini_fail(file, line, "a string is NULL");
    if ((strcmp(a, b) == 0) != is_equal) {
        mini_fail(file, line, "\"%s\" is %s\"%s\"", a, is_equal ? "not " : "", b);
    }
}

/* A function of its own, so that no local of the loop below lives across setjmp. */
static int run_one(const struct CMUnitTest *test) {
    void *state = NULL;
    const int result = setjmp(leave);
    if (result == 0) test->test_func(&state);
    return result;
}

int _cmocka_run_group_tests(const char *group_name, const struct CMUnitTest *tests,
                            size_t n_tests, int (*setup)(void **state),
                            int (*teardown)(void **state)) {
    static const char *const words[] = {"       OK ", "  FAILED  ", "  SKIPPED "};
    int n_failed = 0;
    (void)setup;
    (void)teardown;
    print_message("[==========] %s: Running %zu test(s).\n", group_name, n_tests);
    for (size_t i = 0; i < n_tests; i++) {
        if (filter != NULL && fnmatch(filter, tests[i].name, 0) != 0) continue;
        print_message("[ RUN      ] %s\n", tests[i].name);
        const int result = run_one(&tests[i]);
        n_failed += result == RESULT_FAILED;
        print_message("[%s] %s\n", words[result], tests[i].name);
    }
    return n_failed;
}

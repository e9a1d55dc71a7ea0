/* test.c: runs the registered tests of one file; `program NAME` runs one of them. */
#include "test.h"

#define TESTS_MAX 512
static struct CMUnitTest tests[TESTS_MAX];
static size_t n_tests;

void kr_test_register(const char *name, void (*fn)(void **state)) {
    if (n_tests == TESTS_MAX) abort();
    tests[n_tests++] = (struct CMUnitTest){name, fn, NULL, NULL, NULL};
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("tests", tests, n_tests, NULL, NULL);
}

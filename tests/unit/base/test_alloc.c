/* test_alloc.c: alignment, accounting, hook, injection and guard of the heap. */
#include "base/alloc.h"

#include <pthread.h>

#include "base/poison.h"
#include "test.h"

static kr_memory_usage_t usage_now(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage;
}

TEST(alloc_is_aligned_and_writable_for_all_sizes) {
    for (size_t size = 1; size < 5000; size += size < 200 ? 1 : 97) {
        unsigned char *ptr = kri_alloc(size, "test");
        assert_non_null(ptr);
        assert_int_equal((uintptr_t)ptr % 64, 0);
        memset(ptr, 0xA5, size);
        kri_free(ptr);
    }
}

TEST(alloc_fails_when_size_is_zero_or_absurd) {
    assert_null(kri_alloc(0, "test"));
    assert_null(kri_alloc(SIZE_MAX, "test"));
    assert_null(kri_alloc(SIZE_MAX - 64, "test"));
    assert_null(kri_alloc(SIZE_MAX - 128, "test"));
    assert_null(kri_alloc(((size_t)1 << 39) + 1, "test"));
    assert_null(kri_calloc(0, 8, "test"));
    assert_null(kri_calloc(8, 0, "test"));
    assert_null(kri_calloc(SIZE_MAX / 2, 3, "test"));
    assert_null(kri_strndup("x", SIZE_MAX, "test"));
    kri_free(NULL);
}

TEST(calloc_zeroes_memory_that_was_used_before) {
    for (int round = 0; round < 4; round++) {
        unsigned char *ptr = kri_calloc(33, 31, "test");
        for (size_t i = 0; i < 33 * 31; i++) assert_int_equal(ptr[i], 0);
        memset(ptr, 0xFF, 33 * 31);
        kri_free(ptr);
    }
}

TEST(realloc_keeps_the_common_bytes) {
    unsigned char *ptr = kri_realloc(NULL, 100, "test");
    for (size_t i = 0; i < 100; i++) ptr[i] = (unsigned char)i;
    ptr = kri_realloc(ptr, 5000, "test");
    assert_int_equal((uintptr_t)ptr % 64, 0);
    for (size_t i = 0; i < 100; i++) assert_int_equal(ptr[i], i);
    ptr = kri_realloc(ptr, 10, "test");
    for (size_t i = 0; i < 10; i++) assert_int_equal(ptr[i], i);
    kri_free(ptr);
}

TEST(realloc_leaves_the_block_when_it_fails) {
    char *ptr = kri_strndup("still here", 10, "test");
    assert_null(kri_realloc(ptr, 0, "test"));
    assert_null(kri_realloc(ptr, SIZE_MAX, "test"));
    kri_alloc_fail(1, false);
    assert_null(kri_realloc(ptr, 1000, "test"));
    assert_string_equal(ptr, "still here");
    kri_free(ptr);
}

TEST(strndup_copies_exactly_n_bytes) {
    char *copy = kri_strndup("ab\0cd", 5, "test");
    assert_memory_equal(copy, "ab\0cd", 6);
    kri_free(copy);
    copy = kri_strndup("abc", 0, "test");
    assert_string_equal(copy, "");
    kri_free(copy);
}

TEST(usage_follows_blocks_and_remembers_the_peak) {
    const kr_memory_usage_t before = usage_now();
    void *a = kri_alloc(1000, "test");
    void *b = kri_alloc(5000, "test");
    const kr_memory_usage_t during = usage_now();
    assert_int_equal(during.n_allocs, before.n_allocs + 2);
    assert_in_range(during.bytes_now - before.bytes_now, 6000, 6000 + 2 * 64);
    kri_free(b);
    kri_free(a);
    const kr_memory_usage_t after = usage_now();
    assert_int_equal(after.bytes_now, before.bytes_now);
    assert_true(after.bytes_peak >= during.bytes_now);
    assert_int_equal(after.n_allocs, during.n_allocs);
}

TEST(usage_refuses_null_and_uninitialised_structs) {
    kr_memory_usage_t usage;
    memset(&usage, 0, sizeof usage);
    assert_status(kr_memory_usage(NULL), KR_E_INVALID_ARG);
    assert_status(kr_memory_usage(&usage), KR_E_INVALID_ARG);
    kr_memory_usage_init(NULL);
}

TEST(injection_fails_the_kth_allocation_once) {
    for (uint64_t k = 1; k <= 5; k++) {
        kri_alloc_fail(k, false);
        for (uint64_t i = 1; i <= 7; i++) {
            void *ptr = kri_alloc(8, "test");
            if (i == k) {
                assert_null(ptr);
            } else {
                assert_non_null(ptr);
            }
            kri_free(ptr);
        }
    }
    kri_alloc_fail(0, false);
}

TEST(injection_fails_for_ever_until_switched_off) {
    kri_alloc_fail(3, true);
    for (int i = 1; i <= 10; i++) {
        void *ptr = kri_calloc(1, 8, "test");
        assert_int_equal(ptr != NULL, i < 3);
        kri_free(ptr);
    }
    kri_alloc_fail(0, true);
    void *ptr = kri_alloc(8, "test");
    assert_non_null(ptr);
    kri_free(ptr);
}

static char logged[1024];
static void log_line(kr_log_level_t level, const char *text, void *user) {
    (void)user;
    assert_int_equal(level, KR_LOG_ERROR);
    (void)snprintf(logged, sizeof logged, "%s", text);
}

TEST(guard_fails_counts_and_names_allocations) {
    void *kept = kri_alloc(8, "test");
    kr_log_set(log_line, KR_LOG_ERROR, NULL);
    kri_alloc_guard_begin("decode step");
    assert_null(kri_alloc(8, "first"));
    assert_null(kri_calloc(2, 8, "second"));
    assert_null(kri_realloc(kept, 800, "third"));
    kri_free(kept); /* freeing is not allocating */
    assert_int_equal(kri_alloc_guard_end(), 3);
    kr_log_set(NULL, 0, NULL);
    assert_non_null(strstr(logged, "third"));
    assert_non_null(strstr(logged, "decode step"));
    kri_alloc_guard_begin("quiet");
    assert_int_equal(kri_alloc_guard_end(), 0);
    kept = kri_alloc(8, "test");
    assert_non_null(kept);
    kri_free(kept);
}

typedef struct hook_counts_s {
    size_t n_allocs, n_frees, bytes, last_size;
    char purpose[32];
    size_t skew; /* added to the returned pointer: a host that breaks the alignment rule */
    int refuse;
} hook_counts_t;

static void *hook_alloc(size_t size, const char *purpose, void *user) {
    hook_counts_t *counts = user;
    if (counts->refuse) return NULL;
    counts->n_allocs++;
    counts->bytes += size;
    counts->last_size = size;
    (void)snprintf(counts->purpose, sizeof counts->purpose, "%s", purpose);
    char *ptr = aligned_alloc(64, (size + 64 + 63) / 64 * 64);
    return ptr + counts->skew;
}

static void hook_free(void *ptr, size_t size, const char *purpose, void *user) {
    hook_counts_t *counts = user;
    counts->n_frees++;
    counts->bytes -= size;
    assert_string_equal(purpose, counts->purpose);
    free((char *)ptr - counts->skew);
}

TEST(allocator_hook_sees_sizes_and_purposes) {
    hook_counts_t counts = {0};
    const kr_allocator_t allocator = {sizeof allocator, 0, hook_alloc, hook_free, &counts};
    assert_status(kr_allocator_set(&allocator), KR_OK);
    void *ptr = kri_alloc(1000, "tagged");
    assert_non_null(ptr);
    assert_int_equal(counts.n_allocs, 1);
    assert_true(counts.last_size >= 1000);
    assert_string_equal(counts.purpose, "tagged");
    assert_status(kr_allocator_set(NULL), KR_E_BUSY);
    kri_free(ptr);
    assert_int_equal(counts.n_frees, 1);
    assert_int_equal(counts.bytes, 0);
    counts.refuse = 1;
    assert_null(kri_alloc(10, "tagged"));
    counts.refuse = 0;
    counts.skew = 16;
    assert_null(kri_alloc(10, "tagged"));
    assert_int_equal(counts.n_frees, 2);
    assert_status(kr_allocator_set(NULL), KR_OK);
    ptr = kri_alloc(10, "test");
    kri_free(ptr);
    assert_int_equal(counts.n_allocs, 2);
}

TEST(allocator_set_refuses_incomplete_structs) {
    kr_allocator_t allocator = {sizeof allocator, 0, hook_alloc, NULL, NULL};
    assert_status(kr_allocator_set(&allocator), KR_E_INVALID_ARG);
    allocator = (kr_allocator_t){sizeof allocator, 0, NULL, hook_free, NULL};
    assert_status(kr_allocator_set(&allocator), KR_E_INVALID_ARG);
    allocator = (kr_allocator_t){0, 0, hook_alloc, hook_free, NULL};
    assert_status(kr_allocator_set(&allocator), KR_E_INVALID_ARG);
    allocator = (kr_allocator_t){8, 0, hook_alloc, hook_free, NULL};
    assert_status(kr_allocator_set(&allocator), KR_E_INVALID_ARG);
}

static void *churn(void *arg) {
    unsigned seed = *(unsigned *)arg;
    unsigned char *blocks[16] = {NULL};
    for (int i = 0; i < 20000; i++) {
        seed = seed * 1664525u + 1013904223u;
        const unsigned at = seed >> 28;
        kri_free(blocks[at]);
        const size_t size = 1 + (seed >> 8) % 700;
        blocks[at] = kri_alloc(size, "churn");
        if (blocks[at] != NULL) blocks[at][size - 1] = 1;
    }
    for (int i = 0; i < 16; i++) kri_free(blocks[i]);
    return NULL;
}

TEST(alloc_accounts_exactly_when_threads_compete) {
    const kr_memory_usage_t before = usage_now();
    pthread_t threads[4];
    unsigned seeds[4] = {1, 2, 3, 4};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, churn, &seeds[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    const kr_memory_usage_t after = usage_now();
    assert_int_equal(after.bytes_now, before.bytes_now);
    assert_int_equal(after.n_allocs, before.n_allocs + 4 * 20000);
}

#if KRI_ASAN
TEST(alloc_poisons_the_header_before_the_block) {
    char *ptr = kri_alloc(100, "test");
    for (int i = 1; i <= 64; i++) assert_true(__asan_address_is_poisoned(ptr - i));
    assert_false(__asan_address_is_poisoned(ptr));
    assert_true(__asan_address_is_poisoned(ptr + 200));
    kri_free(ptr);
}
#endif

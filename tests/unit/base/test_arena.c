/* test_arena.c: growth, phases, limits and poisoning of kr_arena_*. */
#include "base/alloc.h"
#include "base/poison.h"
#include "test.h"

static uint64_t heap_bytes(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

static unsigned char *take(kr_arena_t arena, size_t size) {
    void *ptr = NULL;
    assert_status(kr_arena_alloc(arena, size, &ptr), KR_OK);
    assert_int_equal((uintptr_t)ptr % 64, 0);
    return ptr;
}

TEST(arena_objects_are_aligned_and_do_not_overlap_when_chunks_grow) {
    kr_arena_t arena = NULL;
    assert_status(kr_arena_create(100, &arena), KR_OK);
    enum { N = 600 };
    unsigned char *objects[N];
    size_t sizes[N];
    for (size_t i = 0; i < N; i++) {
        sizes[i] = 1 + i * 37 % 1500 + (i % 50 == 0 ? 20000 : 0);
        objects[i] = take(arena, sizes[i]);
        memset(objects[i], (int)(i % 251), sizes[i]);
    }
    for (size_t i = 0; i < N; i++) {
        for (size_t j = 0; j < sizes[i]; j++) assert_int_equal(objects[i][j], i % 251);
    }
    kr_arena_destroy(arena);
}

TEST(arena_reset_reuses_its_memory_when_a_phase_repeats) {
    kr_arena_t arena = NULL;
    const uint64_t before = heap_bytes();
    assert_status(kr_arena_create(1000, &arena), KR_OK);
    unsigned char *first = take(arena, 64);
    for (size_t i = 0; i < 40; i++) memset(take(arena, 100 + i * 300), 1, 100 + i * 300);
    const uint64_t grown = heap_bytes();
    for (int phase = 0; phase < 20; phase++) {
        assert_status(kr_arena_reset(arena), KR_OK);
        assert_ptr_equal(take(arena, 64), first);
        for (size_t i = 0; i < 40; i++) memset(take(arena, 100 + i * 300), phase, 100 + i * 300);
        assert_int_equal(heap_bytes(), grown);
    }
    kr_arena_destroy(arena);
    assert_int_equal(heap_bytes(), before);
}

TEST(arena_reset_finds_a_large_chunk_behind_small_ones) {
    kr_arena_t arena = NULL;
    assert_status(kr_arena_create(4096, &arena), KR_OK);
    for (int i = 0; i < 5; i++) (void)take(arena, 3900);
    (void)take(arena, 100000);
    const uint64_t grown = heap_bytes();
    assert_status(kr_arena_reset(arena), KR_OK);
    memset(take(arena, 100000), 1, 100000);
    for (int i = 0; i < 4; i++) memset(take(arena, 3900), 1, 3900);
    assert_int_equal(heap_bytes(), grown);
    kr_arena_destroy(arena);
}

TEST(arena_keeps_its_state_when_memory_runs_out) {
    kr_arena_t arena = NULL;
    void *ptr = &arena;
    kri_alloc_fail(1, false);
    assert_status(kr_arena_create(1000, &arena), KR_E_NOMEM);
    assert_null(arena);
    kri_alloc_fail(2, false);
    assert_status(kr_arena_create(1000, &arena), KR_E_NOMEM);
    assert_null(arena);
    assert_status(kr_arena_create(1000, &arena), KR_OK);
    unsigned char *kept = take(arena, 500);
    memset(kept, 7, 500);
    kri_alloc_fail(1, false);
    assert_status(kr_arena_alloc(arena, 100000, &ptr), KR_E_NOMEM);
    assert_ptr_equal(ptr, &arena);
    memset(take(arena, 500), 8, 500);
    for (int i = 0; i < 500; i++) assert_int_equal(kept[i], 7);
    kr_arena_destroy(arena);
}

TEST(arena_refuses_bad_arguments_and_absurd_sizes) {
    kr_arena_t arena = NULL;
    void *ptr = NULL;
    assert_status(kr_arena_create(0, &arena), KR_E_INVALID_ARG);
    assert_status(kr_arena_create(64, NULL), KR_E_INVALID_ARG);
    assert_status(kr_arena_create(SIZE_MAX, &arena), KR_E_NOMEM);
    assert_status(kr_arena_create(SIZE_MAX - 100, &arena), KR_E_NOMEM);
    assert_status(kr_arena_create(64, &arena), KR_OK);
    assert_status(kr_arena_alloc(NULL, 1, &ptr), KR_E_INVALID_ARG);
    assert_status(kr_arena_alloc(arena, 1, NULL), KR_E_INVALID_ARG);
    assert_status(kr_arena_alloc(arena, 0, &ptr), KR_E_INVALID_ARG);
    for (size_t less = 0; less < 400; less++) {
        assert_status(kr_arena_alloc(arena, SIZE_MAX - less, &ptr),
                      less < 63 + 2 * 64 + (KRI_ASAN ? 64 : 0) ? KR_E_LIMIT : KR_E_NOMEM);
    }
    assert_null(ptr);
    assert_status(kr_arena_reset(NULL), KR_E_INVALID_ARG);
    kr_arena_destroy(arena);
    kr_arena_destroy(NULL);
}

#if KRI_ASAN
TEST(arena_poisons_all_but_live_objects) {
    kr_arena_t arena = NULL;
    assert_status(kr_arena_create(8192, &arena), KR_OK);
    unsigned char *a = take(arena, 100);
    unsigned char *b = take(arena, 64);
    for (int i = 0; i < 100; i++) assert_false(__asan_address_is_poisoned(a + i));
    for (int i = 104; i < 128 + 64; i++) assert_true(__asan_address_is_poisoned(a + i));
    assert_true(__asan_address_is_poisoned(a + 100));
    assert_true(b >= a + 128 + 64);
    for (int i = 0; i < 64; i++) assert_true(__asan_address_is_poisoned(b + 64 + i));
    assert_status(kr_arena_reset(arena), KR_OK);
    assert_true(__asan_address_is_poisoned(a));
    assert_true(__asan_address_is_poisoned(b));
    assert_ptr_equal(take(arena, 1), a);
    assert_false(__asan_address_is_poisoned(a));
    assert_true(__asan_address_is_poisoned(a + 1));
    kr_arena_destroy(arena);
}
#endif

/* test_threads.c: the pool and the splitting of work. Contexts use plain memory on purpose: the
 * thread sanitizer then proves that jobs are ordered before and after their callers. */
#define _GNU_SOURCE
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/os.h"
#include "test.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

typedef struct tally_s {
    uint32_t n_threads;
    uint64_t calls[KRI_THREADS_MAX][8];
    uint64_t wrong[KRI_THREADS_MAX][8];
} tally_t;

static void count_call(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    tally_t *tally = ctx;
    tally->calls[thread_index][0]++;
    tally->wrong[thread_index][0] += n_threads != tally->n_threads;
}

static kri_pool_t *pool_for(uint32_t n_threads) {
    kri_pool_t *pool = NULL;
    assert_status(kri_pool_shared(n_threads, &pool), KR_OK);
    assert_non_null(pool);
    return pool;
}

TEST(pool_runs_every_index_once_per_job) {
    static tally_t tally;
    for (uint32_t n = 1; n <= 8; n++) {
        kri_pool_t *pool = pool_for(n);
        memset(&tally, 0, sizeof tally);
        tally.n_threads = n;
        for (uint64_t job = 1; job <= 10000; job++) {
            kri_pool_run(pool, n, count_call, &tally);
            for (uint32_t i = 0; i < n; i++) {
                if (tally.calls[i][0] != job) fail_msg("job %d thread %u", (int)job, i);
            }
        }
        for (uint32_t i = 0; i < KRI_THREADS_MAX; i++) {
            assert_int_equal(tally.calls[i][0], i < n ? 10000 : 0);
            assert_int_equal(tally.wrong[i][0], 0);
        }
    }
}

TEST(pool_runs_jobs_of_changing_width) {
    static tally_t tally;
    kri_pool_t *pool = pool_for(6);
    uint64_t expected[6] = {0};
    unsigned seed = 3;
    memset(&tally, 0, sizeof tally);
    for (int job = 0; job < 5000; job++) {
        seed = seed * 1664525u + 1013904223u;
        tally.n_threads = 1 + (seed >> 16) % 6;
        for (uint32_t i = 0; i < tally.n_threads; i++) expected[i]++;
        kri_pool_run(pool, tally.n_threads, count_call, &tally);
    }
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(tally.calls[i][0], expected[i]);
        assert_int_equal(tally.wrong[i][0], 0);
    }
}

TEST(pool_wakes_workers_that_sleep) {
    static tally_t tally;
    kri_pool_t *pool = pool_for(4);
    memset(&tally, 0, sizeof tally);
    tally.n_threads = 4;
    for (int job = 0; job < 60; job++) {
        usleep(3000); /* longer than any spinning */
        kri_pool_run(pool, 4, count_call, &tally);
    }
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(tally.calls[i][0], 60);
}

static void work_unevenly(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    if (thread_index == n_threads - 1) usleep(3000); /* the caller has to sleep */
    count_call(ctx, thread_index, n_threads);
}

TEST(pool_returns_only_when_the_slowest_worker_is_done) {
    static tally_t tally;
    kri_pool_t *pool = pool_for(4);
    memset(&tally, 0, sizeof tally);
    tally.n_threads = 4;
    for (uint64_t job = 1; job <= 60; job++) {
        kri_pool_run(pool, 4, work_unevenly, &tally);
        for (uint32_t i = 0; i < 4; i++) assert_int_equal(tally.calls[i][0], job);
    }
}

typedef struct caller_s {
    uint32_t n_threads;
    int ok;
} caller_t;

static void *call_often(void *arg) {
    caller_t *caller = arg;
    kri_pool_t *pool = NULL;
    tally_t *tally = calloc(1, sizeof *tally);
    if (tally == NULL || kri_pool_shared(caller->n_threads, &pool) != KR_OK) {
        free(tally);
        return NULL;
    }
    tally->n_threads = caller->n_threads;
    for (int job = 0; job < 1000; job++) kri_pool_run(pool, caller->n_threads, count_call, tally);
    caller->ok = 1;
    for (uint32_t i = 0; i < KRI_THREADS_MAX; i++) {
        const uint64_t expected = i < caller->n_threads ? 1000 : 0;
        if (tally->calls[i][0] != expected || tally->wrong[i][0] != 0) caller->ok = 0;
    }
    free(tally);
    return NULL;
}

TEST(pool_serialises_callers_that_compete) {
    pthread_t threads[5];
    caller_t callers[5] = {{2, 0}, {3, 0}, {5, 0}, {1, 0}, {9, 0}};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, call_often, &callers[i]), 0);
    }
    for (int i = 0; i < 5; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 5; i++) assert_int_equal(callers[i].ok, 1);
}

static void look_at_signals(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    int *blocked = ctx;
    sigset_t set;
    (void)n_threads;
    if (pthread_sigmask(SIG_BLOCK, NULL, &set) != 0) return;
    blocked[thread_index] = sigismember(&set, SIGTERM) + sigismember(&set, SIGUSR1) +
                            sigismember(&set, SIGINT);
}

TEST(pool_workers_take_no_signals_and_the_caller_keeps_its_mask) {
    int blocked[4] = {9, 9, 9, 9};
    kri_pool_run(pool_for(4), 4, look_at_signals, blocked);
    assert_int_equal(blocked[0], 0);
    for (int i = 1; i < 4; i++) assert_int_equal(blocked[i], 3);
}

static void use_stack(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    uint64_t *sums = ctx;
    volatile unsigned char deep[2u << 20];
    (void)n_threads;
    for (size_t i = 0; i < sizeof deep; i += 4096) deep[i] = 1;
    for (size_t i = 0; i < sizeof deep; i += 4096) sums[thread_index] += deep[i];
}

TEST(pool_workers_have_two_mebibytes_of_stack) {
    uint64_t sums[3] = {0};
    kri_pool_run(pool_for(3), 3, use_stack, sums);
    for (int i = 0; i < 3; i++) assert_int_equal(sums[i], 512);
}

TEST(pool_allocates_nothing) {
    static tally_t tally;
    memset(&tally, 0, sizeof tally);
    tally.n_threads = 4;
    kri_alloc_guard_begin("pool");
    kri_pool_run(pool_for(4), 4, count_call, &tally);
    assert_int_equal(kri_alloc_guard_end(), 0);
    assert_int_equal(tally.calls[3][0], 1);
}

TEST(pool_refuses_more_threads_than_the_limit) {
    kri_pool_t *pool = NULL;
    assert_status(kri_pool_shared(KRI_THREADS_MAX + 1, &pool), KR_E_LIMIT);
    assert_status(kri_pool_shared(UINT32_MAX, &pool), KR_E_LIMIT);
    assert_null(pool);
}

#if !SANITIZED
/* Exit code of fn run in a child process. */
static int in_child(int (*fn)(void)) {
    const pid_t child = fork();
    if (child == 0) _exit(fn());
    int result = -1;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFEXITED(result));
    return WEXITSTATUS(result);
}

static kri_pool_t *pool_before_fork;

static int run_after_fork(void) {
    static tally_t tally;
    kri_pool_t *pool = NULL;
    memset(&tally, 0, sizeof tally);
    tally.n_threads = 1;
    kri_pool_run(pool_before_fork, 4, count_call, &tally);
    if (tally.calls[0][0] != 1 || tally.wrong[0][0] != 0) return 1;
    if (kri_pool_shared(4, &pool) != KR_OK) return 2;
    tally.n_threads = 4;
    for (int job = 0; job < 100; job++) kri_pool_run(pool, 4, count_call, &tally);
    return tally.calls[0][0] == 101 && tally.calls[3][0] == 100 ? 0 : 3;
}

/* An emulator of another CPU has threads and memory of its own, which do not survive this. */
static bool is_emulated(void) { return getenv("KR_TEST_ISA") != NULL; }

TEST(pool_works_in_the_child_of_a_fork) {
    if (is_emulated()) SKIP("under emulation");
    pool_before_fork = pool_for(4);
    assert_int_equal(in_child(run_after_fork), 0);
    static tally_t tally;
    memset(&tally, 0, sizeof tally);
    tally.n_threads = 4;
    kri_pool_run(pool_before_fork, 4, count_call, &tally);
    assert_int_equal(tally.calls[3][0], 1);
}

static int run_without_memory(void) {
    static tally_t tally;
    kri_pool_t *pool = NULL;
    const struct rlimit limit = {(rlim_t)200 << 20, (rlim_t)200 << 20};
    if (setrlimit(RLIMIT_AS, &limit) != 0) return 1;
    if (kri_pool_shared(KRI_THREADS_MAX, &pool) != KR_E_NOMEM) return 2;
    if (pool != NULL) return 3;
    if (kri_pool_shared(3, &pool) != KR_OK) return 4;
    memset(&tally, 0, sizeof tally);
    tally.n_threads = 3;
    kri_pool_run(pool, 3, count_call, &tally);
    return tally.calls[2][0] == 1 ? 0 : 5;
}

TEST(pool_reports_memory_and_stays_usable_when_threads_cannot_be_made) {
    if (is_emulated()) SKIP("under emulation");
    assert_int_equal(in_child(run_without_memory), 0);
}
#endif

/* ---- pinning ------------------------------------------------------------------------------- */

static void look_at_cpus(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    cpu_set_t *masks = ctx;
    (void)n_threads;
    (void)sched_getaffinity(0, sizeof *masks, &masks[thread_index]);
}

TEST(pool_pins_workers_to_cores_of_their_own_and_frees_them_again) {
    uint32_t cpus[2];
    cpu_set_t masks[2], own;
    kri_pool_t *pool = NULL;
    if (kri_cpu_places(cpus, 2) < 2) SKIP("one core");
    assert_int_equal(sched_getaffinity(0, sizeof own, &own), 0);
    kri_pool_pin(KRI_PIN_ON);
    assert_status(kri_pool_shared(2, &pool), KR_OK);
    assert_int_equal(kri_pool_n_pinned(), 1);
    kri_pool_run(pool, 2, look_at_cpus, masks);
    assert_true(CPU_EQUAL(&masks[0], &own)); /* the caller is left alone */
    assert_int_equal(CPU_COUNT(&masks[1]), 1);
    assert_true(CPU_ISSET(cpus[1], &masks[1]));
    kri_pool_pin(KRI_PIN_OFF);
    assert_status(kri_pool_shared(2, &pool), KR_OK);
    assert_int_equal(kri_pool_n_pinned(), 0);
    kri_pool_run(pool, 2, look_at_cpus, masks);
    assert_true(CPU_EQUAL(&masks[1], &own));
    kri_pool_pin(KRI_PIN_AUTO);
}

TEST(pool_refuses_to_pin_more_threads_than_cores) {
    uint32_t cpus[KRI_THREADS_MAX];
    kri_pool_t *pool = NULL;
    const uint32_t n_cores = kri_cpu_places(cpus, KRI_THREADS_MAX);
    if (n_cores >= 64) SKIP("too many cores to go past them");
    kri_pool_pin(KRI_PIN_ON);
    assert_status(kri_pool_shared(n_cores + 1, &pool), KR_E_UNSUPPORTED);
    assert_null(pool);
    kri_pool_pin(KRI_PIN_AUTO);
    assert_status(kri_pool_shared(n_cores + 1, &pool), KR_OK);
    assert_int_equal(kri_pool_n_pinned(), 0);
}

TEST(pool_pins_by_itself_only_when_threads_fill_an_unrestricted_machine) {
    assert_true(kri_pool_pins(16, 16, true));
    assert_true(kri_pool_pins(9, 16, true));
    assert_false(kri_pool_pins(8, 16, true));
    assert_false(kri_pool_pins(17, 16, true));
    assert_false(kri_pool_pins(16, 16, false));
    assert_false(kri_pool_pins(2, 2, true));
    assert_false(kri_pool_pins(1, 0, true));
}

TEST(split_covers_all_items_once_in_whole_units) {
    for (uint64_t n_items = 0; n_items < 70; n_items++) {
        for (uint64_t unit = 1; unit < 20; unit += 3) {
            for (uint32_t n = 1; n < 12; n++) {
                uint64_t next = 0;
                uint64_t least = UINT64_MAX;
                uint64_t most = 0;
                for (uint32_t i = 0; i < n; i++) {
                    uint64_t begin = 99, end = 98;
                    kri_split(n_items, unit, i, n, &begin, &end);
                    assert_int_equal(begin, next);
                    assert_true(end >= begin && end <= n_items);
                    if (end < n_items) assert_int_equal(end % unit, 0);
                    const uint64_t n_units = (end - begin + unit - 1) / unit;
                    if (n_units < least) least = n_units;
                    if (n_units > most) most = n_units;
                    next = end;
                }
                assert_int_equal(next, n_items);
                assert_true(most - least <= 1);
            }
        }
    }
}

TEST(split_does_not_overflow_when_counts_are_huge) {
    const uint64_t units[] = {1, 3, 64, UINT64_MAX / 2, UINT64_MAX};
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
        uint64_t next = 0;
        for (uint32_t i = 0; i < 256; i++) {
            uint64_t begin, end;
            kri_split(UINT64_MAX, units[u], i, 256, &begin, &end);
            assert_true(begin == next && end >= begin);
            next = end;
        }
        assert_true(next == UINT64_MAX);
    }
    uint64_t begin, end;
    kri_split(10, 0, 0, 0, &begin, &end);
    assert_int_equal(begin, 0);
    assert_int_equal(end, 10);
}

typedef struct errand_s { _Atomic uint32_t may_end; uint32_t result; } errand_t;

static void do_errand(void *ctx) {
    errand_t *errand = ctx;
    while (atomic_load(&errand->may_end) == 0) kri_futex_wait_ms(&errand->may_end, 0, 5);
    errand->result = 7;
}

TEST(background_thread_runs_beside_its_starter_until_joined) {
    errand_t errand = {0, 0};
    kri_background_t *background = NULL;
    assert_status(kri_background_start(do_errand, &errand, &background), KR_OK);
    assert_int_equal(errand.result, 0); /* it cannot end before the next line */
    atomic_store(&errand.may_end, 1);
    kri_futex_wake(&errand.may_end, 1);
    kri_background_join(background);
    assert_int_equal(errand.result, 7);
    kri_background_join(NULL);
}

TEST(background_join_in_the_child_of_a_fork_does_not_wait) {
    errand_t errand = {0, 0};
    kri_background_t *background = NULL;
    assert_status(kri_background_start(do_errand, &errand, &background), KR_OK);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        kri_background_join(background);
        _exit(0);
    }
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFEXITED(result) && WEXITSTATUS(result) == 0);
    atomic_store(&errand.may_end, 1);
    kri_background_join(background);
    kri_alloc_fail(1, false);
    assert_status(kri_background_start(do_errand, &errand, &background), KR_E_NOMEM);
    kri_alloc_fail(0, false);
}

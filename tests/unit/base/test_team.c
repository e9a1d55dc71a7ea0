/* test_team.c: teams, their barriers and what they hand around. Plain memory on purpose, as in
 * test_threads.c: the thread sanitizer then proves the order. */
#define _GNU_SOURCE
#include "base/team.h"

#include <unistd.h>

#include "base/threads.h"
#include "test.h"

#define N_THREADS_MAX 9u

static kri_pool_t *pool_for(uint32_t n_threads) {
    kri_pool_t *pool = NULL;
    assert_status(kri_pool_shared(n_threads, &pool), KR_OK);
    return pool;
}

typedef struct phases_s {
    uint32_t n_phases;
    uint32_t pause_every; /* phases; thread 1 then keeps the others waiting */
    uint64_t value[N_THREADS_MAX][8];
    uint64_t wrong[N_THREADS_MAX][8];
} phases_t;

/* Each phase reads the neighbour's value of the phase before. */
static void run_phases(void *ctx, kri_team_t *team, uint32_t thread_index) {
    phases_t *phases = ctx;
    const uint32_t next = (thread_index + 1) % team->n_threads;
    for (uint64_t p = 1; p <= phases->n_phases; p++) {
        if (phases->pause_every && thread_index == 1 && p % phases->pause_every == 0) usleep(500);
        phases->value[thread_index][0] = p;
        kri_team_barrier(team, thread_index);
        phases->wrong[thread_index][0] += phases->value[next][0] != p;
        kri_team_barrier(team, thread_index);
    }
}

TEST(team_barrier_orders_phases_for_any_number_of_threads) {
    static phases_t phases;
    for (uint32_t n = 1; n <= N_THREADS_MAX; n++) {
        memset(&phases, 0, sizeof phases);
        phases.n_phases = n > 3 ? 300 : 5000;
        for (int job = 0; job < 3; job++) {
            kri_team_run(pool_for(n), n, NULL, run_phases, &phases);
            for (uint32_t i = 0; i < n; i++) {
                assert_int_equal(phases.value[i][0], phases.n_phases);
                assert_int_equal(phases.wrong[i][0], 0);
            }
        }
    }
}

TEST(team_barrier_wakes_threads_that_went_to_sleep) {
    static phases_t phases;
    memset(&phases, 0, sizeof phases);
    phases.n_phases = 40;
    phases.pause_every = 2; /* longer than any spinning */
    kri_team_run(pool_for(4), 4, NULL, run_phases, &phases);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(phases.value[i][0], 40);
        assert_int_equal(phases.wrong[i][0], 0);
    }
}

typedef struct counter_s {
    uint32_t next;
    uint8_t taken[64];
} counter_t;

typedef struct share_s {
    uint64_t wrong[N_THREADS_MAX][8];
} share_t;

/* Thread 0's counter hands out 64 items, each to one thread. */
static void take_items(void *ctx, kri_team_t *team, uint32_t thread_index) {
    share_t *share = ctx;
    for (int round = 0; round < 300; round++) {
        counter_t own = {.next = 0};
        counter_t *counter = kri_team_share(team, thread_index, &own);
        for (;;) {
            const uint32_t i = __atomic_fetch_add(&counter->next, 1, __ATOMIC_RELAXED);
            if (i >= 64) break;
            counter->taken[i]++;
        }
        kri_team_barrier(team, thread_index);
        for (int i = 0; thread_index == 0 && i < 64; i++) share->wrong[0][0] += own.taken[i] != 1;
        if (round % 3 == 0) kri_team_barrier(team, thread_index); /* a phase that shares nothing */
    }
}

TEST(team_share_gives_thread_0s_value_to_all) {
    static share_t share;
    for (uint32_t n = 1; n <= 5; n++) {
        memset(&share, 0, sizeof share);
        kri_team_run(pool_for(n), n, NULL, take_items, &share);
        assert_int_equal(share.wrong[0][0], 0);
    }
}

typedef struct stopping_s {
    uint32_t stop;
    uint32_t n_done[N_THREADS_MAX];
} stopping_t;

/* Some thread asks to stop at some time; all leave after the same phase. */
static void run_until_stopped(void *ctx, kri_team_t *team, uint32_t thread_index) {
    stopping_t *s = ctx;
    while (!kri_team_stopped(team, thread_index)) {
        if (thread_index == team->n_threads - 1 && s->n_done[thread_index] == 57)
            __atomic_store_n(&s->stop, 1, __ATOMIC_RELAXED);
        s->n_done[thread_index]++;
        kri_team_barrier(team, thread_index);
    }
}

TEST(team_threads_stop_after_the_same_phase) {
    for (uint32_t n = 1; n <= 5; n++) {
        stopping_t s = {.stop = 0};
        kri_team_run(pool_for(n), n, &s.stop, run_until_stopped, &s);
        /* Thread 0 may have looked just before. */
        assert_in_range(s.n_done[0], 58, 59);
        for (uint32_t i = 0; i < n; i++) assert_int_equal(s.n_done[i], s.n_done[0]);
        s = (stopping_t){.stop = 1};
        kri_team_run(pool_for(n), n, &s.stop, run_until_stopped, &s);
        for (uint32_t i = 0; i < n; i++) assert_int_equal(s.n_done[i], 0);
    }
}

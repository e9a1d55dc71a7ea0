/* team.c: see team.h. The barrier is a counter on one cache line and a phase number on another:
 * arriving is one atomic addition, and waiting threads read a line that nobody writes until the
 * last one has come. Waiting threads spin first, because phases are shorter than a system call,
 * and sleep when another thread has evidently lost its CPU.
 *
 * The last thread to arrive also decides whether the team stops: its answer travels in the phase
 * number, so that all threads leave together without another phase. */
#include "base/team.h"

#include <stdatomic.h>
#include <stddef.h>

#include "base/clock.h"
#include "base/os.h"

/* Pauses between two looks at the clock. */
#define PAUSES 32u

void kri_team_init(kri_team_t *team, uint32_t n_threads, uint32_t spin_ns, const uint32_t *stop) {
    team->n_threads = n_threads;
    team->spin_ns = spin_ns;
    team->stop = stop;
    team->shared = NULL;
    atomic_store_explicit(&team->n_arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&team->n_asleep, 0, memory_order_relaxed);
    atomic_store_explicit(&team->is_shared, 0, memory_order_relaxed);
    atomic_store_explicit(&team->phase, stop && __atomic_load_n(stop, __ATOMIC_RELAXED) ? 1 : 0,
                          memory_order_relaxed);
}

/* Waits until *word is no longer `value`. */
static void wait_change(kri_team_t *team, _Atomic uint32_t *word, uint32_t value) {
    uint64_t start_ns = 0;
    for (;;) {
        for (uint32_t i = 0; i < PAUSES; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value) return;
            kri_cpu_pause();
        }
        const uint64_t now_ns = kri_clock_ns();
        if (start_ns == 0) start_ns = now_ns;
        if (now_ns - start_ns >= team->spin_ns) break;
    }
    /* Either `set` sees n_asleep, or the futex sees the new value: all four accesses are
     * sequentially consistent. */
    atomic_fetch_add(&team->n_asleep, 1);
    while (atomic_load(word) == value) kri_futex_wait(word, value);
    atomic_fetch_sub(&team->n_asleep, 1);
}

static void set(kri_team_t *team, _Atomic uint32_t *word, uint32_t value) {
    atomic_store(word, value);
    if (atomic_load(&team->n_asleep) != 0) kri_futex_wake(word, team->n_threads);
}

void kri_team_barrier(kri_team_t *team) {
    /* Cannot change before this thread arrives. */
    const uint32_t phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    const uint32_t n_before =
        atomic_fetch_add_explicit(&team->n_arrived, 1, memory_order_acq_rel);
    if (n_before + 1 < team->n_threads) {
        wait_change(team, &team->phase, phase);
        return;
    }
    const bool stop = team->stop && __atomic_load_n(team->stop, __ATOMIC_RELAXED) != 0;
    atomic_store_explicit(&team->n_arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&team->is_shared, 0, memory_order_relaxed);
    set(team, &team->phase, ((phase | 1) + 1) | (stop ? 1 : 0));
}

void *kri_team_share(kri_team_t *team, uint32_t thread_index, void *value) {
    if (team->n_threads <= 1) return value;
    if (thread_index != 0) {
        wait_change(team, &team->is_shared, 0);
        return team->shared;
    }
    team->shared = value;
    set(team, &team->is_shared, 1);
    return value;
}

bool kri_team_stopped(const kri_team_t *team) {
    return (atomic_load_explicit(&team->phase, memory_order_relaxed) & 1) != 0;
}

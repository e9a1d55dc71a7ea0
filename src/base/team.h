/* team.h: the threads of one pool job as a team that runs the same code in phases: a barrier
 * between two phases costs a few cache lines and no lock, and nothing is published per phase.
 * Which threads belong to a team is fixed when the job starts (kri_team_run, threads.h). */
#ifndef KRI_BASE_TEAM_H
#define KRI_BASE_TEAM_H

#include <stdbool.h>
#include <stdint.h>

#define KRI_THREADS_MAX 256u

/* A number that only grows, and who sleeps until it does; a cache line of its own. */
typedef struct kri_team_word_s {
    _Alignas(64) _Atomic uint32_t value; /* futex */
    _Atomic uint32_t n_asleep;
} kri_team_word_t;

/* Fields are team.c's; the struct is open so that it can lie inside the pool. */
typedef struct kri_team_s {
    uint32_t n_threads;
    uint32_t spin_ns;         /* how long to spin before sleeping */
    bool all_to_all;          /* threads watch each other, not only thread 0 */
    const uint32_t *stop;     /* read with __atomic_load_n; NULL = never */
    bool stopped[2];          /* by parity of the phase; thread 0 writes the next phase's */
    void *shared;             /* of the phase in shared_in */
    kri_team_word_t shared_in;
    kri_team_word_t phase[KRI_THREADS_MAX]; /* barriers that each thread has reached */
} kri_team_t;

/* Before the team's threads run. crowded: there are fewer CPUs than threads. */
void kri_team_init(kri_team_t *team, uint32_t n_threads, uint32_t spin_ns, bool crowded,
                   const uint32_t *stop);
/* Returns when all threads have called it; what each wrote before is visible to all after. */
void kri_team_barrier(kri_team_t *team, uint32_t thread_index);
/* Thread 0's value, on all threads. At most once between two barriers. */
void *kri_team_share(kri_team_t *team, uint32_t thread_index, void *value);
/* Whether *stop was set when thread 0 came to the last barrier: the same answer on all threads. */
bool kri_team_stopped(const kri_team_t *team, uint32_t thread_index);

/* One pause of a spinning thread. */
static inline void kri_cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif

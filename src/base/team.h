/* team.h: the threads of one pool job as a team that runs the same code in phases: a barrier
 * between two phases costs one shared counter and no lock, and nothing is published per phase.
 * Which threads belong to a team is fixed when the job starts (kri_team_run, threads.h). */
#ifndef KRI_BASE_TEAM_H
#define KRI_BASE_TEAM_H

#include <stdbool.h>
#include <stdint.h>

/* Fields are team.c's; the struct is open so that it can lie inside the pool. */
typedef struct kri_team_s {
    uint32_t n_threads;
    uint32_t spin_ns;     /* how long to spin before sleeping */
    const uint32_t *stop; /* read with __atomic_load_n; NULL = never */
    _Alignas(64) _Atomic uint32_t n_arrived;
    _Atomic uint32_t n_asleep;
    _Alignas(64) _Atomic uint32_t phase; /* futex: number of the phase * 2 + stop */
    _Alignas(64) _Atomic uint32_t is_shared; /* futex: 1 while `shared` holds */
    void *shared;
} kri_team_t;

/* Before the team's threads run. */
void kri_team_init(kri_team_t *team, uint32_t n_threads, uint32_t spin_ns, const uint32_t *stop);
/* Returns when all threads have called it; what each wrote before is visible to all after. */
void kri_team_barrier(kri_team_t *team);
/* Thread 0's value, on all threads. At most once between two barriers. */
void *kri_team_share(kri_team_t *team, uint32_t thread_index, void *value);
/* Whether *stop was set when the last barrier opened: the same answer on all threads. */
bool kri_team_stopped(const kri_team_t *team);

/* One pause of a spinning thread. */
static inline void kri_cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif

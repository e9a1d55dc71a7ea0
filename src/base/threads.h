/* threads.h: the process's persistent worker pool (fork-join), and teams over it.
 * Workers spin a little after each job, then sleep on a futex, so that back-to-back jobs do not
 * pay for wake-ups and an idle process uses no CPU. */
#ifndef KRI_BASE_THREADS_H
#define KRI_BASE_THREADS_H

#include <stdint.h>

#include "base/team.h"
#include "kr.h"

typedef struct kri_pool_s kri_pool_t;
/* Runs on every participating thread: index 0 is the caller, 1.. are workers. */
typedef void (*kri_pool_fn)(void *ctx, uint32_t thread_index, uint32_t n_threads);

/* The shared pool, able to run n_threads (grown when needed; never shrunk). KR_E_NOMEM,
 * KR_E_LIMIT over KRI_THREADS_MAX, KR_E_UNSUPPORTED by KRI_PIN_ON. Any thread. */
kr_status_t kri_pool_shared(uint32_t n_threads, kri_pool_t **pool);
/* Pinning: each worker stays on one CPU, of a physical core of its own, of the mask of the thread
 * that calls kri_pool_shared; that thread itself is never bound. AUTO pins when the threads are
 * more than half of the cores (of 4 or more) but not more than them, and neither an affinity mask
 * nor a quota limits the process: then there is one right place for each, and a scheduler's tries
 * cost. With fewer threads another process may have pinned itself to the same cores. */
typedef enum kri_pin_e { KRI_PIN_AUTO, KRI_PIN_ON, KRI_PIN_OFF } kri_pin_t;
/* For the calls of kri_pool_shared that follow, which place all workers anew. With ON they return
 * KR_E_UNSUPPORTED when there are fewer cores than threads. Any thread. */
void kri_pool_pin(kri_pin_t pin);
/* Workers bound to a CPU now. Any thread. */
uint32_t kri_pool_n_pinned(void);
/* What AUTO decides. */
bool kri_pool_pins(uint32_t n_threads, uint32_t n_cores, bool unrestricted);
/* Calls fn on n_threads threads at once and returns when all are done. Allocates nothing. Two
 * callers at the same time are serialised. n_threads 1 runs inline without any synchronisation.
 * Not re-entrant from fn. */
void kri_pool_run(kri_pool_t *pool, uint32_t n_threads, kri_pool_fn fn, void *ctx);
typedef void (*kri_team_fn)(void *ctx, kri_team_t *team, uint32_t thread_index);
/* As kri_pool_run, with a team whose threads may meet at barriers: fn must take all its threads
 * through the same barriers. stop: word that kri_team_stopped reports, or NULL. */
void kri_team_run(kri_pool_t *pool, uint32_t n_threads, const uint32_t *stop, kri_team_fn fn,
                  void *ctx);
/* One thread for background work; it has no part in the pool. Join waits for fn
 * to return (NULL is a no-op; in the child of a fork, which has no such thread, it only frees).
 * KR_E_NOMEM. */
typedef struct kri_background_s kri_background_t;
typedef void (*kri_background_fn)(void *ctx);
kr_status_t kri_background_start(kri_background_fn fn, void *ctx, kri_background_t **background);
void kri_background_join(kri_background_t *background);
/* Instead of a join, by the thread itself, which then ends alone. */
void kri_background_detach(kri_background_t *background);
/* Static split of n items in units of `unit`: thread i of n gets [*begin, *end). */
void kri_split(uint64_t n_items, uint64_t unit, uint32_t thread_index, uint32_t n_threads,
               uint64_t *begin, uint64_t *end);

#endif

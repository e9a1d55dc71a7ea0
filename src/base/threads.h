/* threads.h: the process's persistent worker pool (fork-join).
 * Workers spin a little after each job, then sleep on a futex, so that back-to-back ops do not
 * pay for wake-ups and an idle process uses no CPU. */
#ifndef KRI_BASE_THREADS_H
#define KRI_BASE_THREADS_H

#include <stdint.h>

#include "kr.h"

typedef struct kri_pool_s kri_pool_t;
/* Runs on every participating thread: index 0 is the caller, 1.. are workers. */
typedef void (*kri_pool_fn)(void *ctx, uint32_t thread_index, uint32_t n_threads);

#define KRI_THREADS_MAX 256u

/* The shared pool, able to run n_threads (grown when needed; never shrunk). KR_E_NOMEM,
 * KR_E_LIMIT over KRI_THREADS_MAX. Any thread. */
kr_status_t kri_pool_shared(uint32_t n_threads, kri_pool_t **pool);
/* Calls fn on n_threads threads at once and returns when all are done. Allocates nothing. Two
 * callers at the same time are serialised. n_threads 1 runs inline without any synchronisation.
 * Not re-entrant from fn. */
void kri_pool_run(kri_pool_t *pool, uint32_t n_threads, kri_pool_fn fn, void *ctx);
/* One thread for background work; it has no part in the pool. Join waits for fn
 * to return (NULL is a no-op; in the child of a fork, which has no such thread, it only frees).
 * KR_E_NOMEM. */
typedef struct kri_background_s kri_background_t;
typedef void (*kri_background_fn)(void *ctx);
kr_status_t kri_background_start(kri_background_fn fn, void *ctx, kri_background_t **background);
void kri_background_join(kri_background_t *background);
/* Static split of n items in units of `unit`: thread i of n gets [*begin, *end). */
void kri_split(uint64_t n_items, uint64_t unit, uint32_t thread_index, uint32_t n_threads,
               uint64_t *begin, uint64_t *end);

#endif

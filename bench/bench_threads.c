/* bench_threads.c: what meeting costs: an empty fork-join job of the pool, an empty phase of a
 * team, and a phase that also hands a pointer around. Best of several rounds, because anything
 * else on the machine only adds. Usage: bench_threads [threads]... (default: 2 and the default
 * number of threads). */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/os.h"
#include "base/threads.h"

#define N_ROUNDS 25
#define N_PHASES 20000u

static void nothing(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    (void)ctx;
    (void)thread_index;
    (void)n_threads;
}

static void phases(void *ctx, kri_team_t *team, uint32_t thread_index) {
    (void)ctx;
    for (uint32_t i = 0; i < N_PHASES; i++) kri_team_barrier(team, thread_index);
}

static void sharing_phases(void *ctx, kri_team_t *team, uint32_t thread_index) {
    for (uint32_t i = 0; i < N_PHASES; i++) {
        (void)kri_team_share(team, thread_index, ctx);
        kri_team_barrier(team, thread_index);
    }
}

static double best_ns(kri_pool_t *pool, uint32_t n_threads, kri_team_fn fn) {
    double best = 0;
    for (int r = 0; r < N_ROUNDS; r++) {
        const uint64_t begin_ns = kri_clock_ns();
        if (fn) {
            kri_team_run(pool, n_threads, NULL, fn, pool);
        } else {
            for (uint32_t i = 0; i < N_PHASES; i++) kri_pool_run(pool, n_threads, nothing, NULL);
        }
        const double ns = (double)(kri_clock_ns() - begin_ns) / N_PHASES;
        if (r == 0 || ns < best) best = ns;
    }
    return best;
}

static int measure(uint32_t n_threads) {
    kri_pool_t *pool = NULL;
    if (kri_pool_shared(n_threads, &pool) != KR_OK) {
        (void)fprintf(stderr, "cannot start %u threads\n", n_threads);
        return 1;
    }
    printf("%3u threads: fork-join %.0f ns, barrier %.0f ns, share + barrier %.0f ns\n", n_threads,
           best_ns(pool, n_threads, NULL), best_ns(pool, n_threads, phases),
           best_ns(pool, n_threads, sharing_phases));
    (void)fflush(stdout);
    return 0;
}

int main(int argc, char **argv) {
    int failed = 0;
    for (int i = 1; i < argc; i++) failed |= measure((uint32_t)strtoul(argv[i], NULL, 10));
    if (argc < 2) {
        failed |= measure(2);
        if (kri_cpu_count() > 2) failed |= measure(kri_cpu_count());
    }
    return failed;
}

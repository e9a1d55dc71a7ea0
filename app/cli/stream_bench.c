/* stream_bench.c: sum-reduces a large buffer with all threads at once and takes the median time.
 * Each thread writes its own part first, so that pages lie on the thread's memory node, and in
 * huge pages where the kernel gives them: the figure is a limit, so it must not be lowered by page
 * walks that an engine can avoid. Every thread reads several streams side by side, because one
 * stream alone pauses where the hardware prefetcher stops at the end of a page. */
#include "stream_bench.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PASSES_MAX 101u
#define HUGE_PAGE ((size_t)2u << 20)
#define N_STREAMS 4u

/* 64 bytes; the compiler splits it into what the target of a function has. */
typedef uint64_t line_t __attribute__((vector_size(64)));
#define LINE_WORDS (sizeof(line_t) / sizeof(uint64_t))

#define DEFINE_SUM(name, target)                                                                 \
    target static uint64_t name(const line_t *lines, size_t n_lines) {                           \
        const size_t part = n_lines / N_STREAMS;                                                 \
        const line_t *a = lines;                                                                 \
        const line_t *b = a + part;                                                              \
        const line_t *c = b + part;                                                              \
        const line_t *d = c + part;                                                              \
        line_t ab = {0};                                                                         \
        line_t cd = {0};                                                                         \
        for (size_t i = 0; i < part; i++) {                                                      \
            ab += a[i] + b[i];                                                                   \
            cd += c[i] + d[i];                                                                   \
        }                                                                                        \
        uint64_t total = 0;                                                                      \
        for (size_t i = 0; i < LINE_WORDS; i++) {                                                \
            total += ab[i] + cd[i];                                                              \
        }                                                                                        \
        return total;                                                                            \
    }

typedef uint64_t sum_fn(const line_t *lines, size_t n_lines);

DEFINE_SUM(sum_baseline, )
#if defined(__x86_64__)
DEFINE_SUM(sum_avx2, __attribute__((target("avx2"))))
DEFINE_SUM(sum_avx512, __attribute__((target("avx512f"))))
#endif

static sum_fn *choose_sum(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        return sum_avx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        return sum_avx2;
    }
#endif
    return sum_baseline;
}

typedef enum gate_e { GATE_CLOSED, GATE_OPEN, GATE_ABORTED } gate_t;

typedef struct job_s {
    line_t *lines;
    size_t n_lines;
    unsigned n_threads, n_passes;
    sum_fn *sum;
    pthread_mutex_t mutex;
    pthread_cond_t gate_moved;
    gate_t gate; /* opened when all threads exist: only then may they use the barrier */
    pthread_barrier_t barrier;
    double seconds[PASSES_MAX];
} job_t;

typedef struct worker_s {
    job_t *job;
    unsigned index;
    volatile uint64_t total; /* keeps the sums alive */
    pthread_t thread;
} worker_t;

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void move_gate(job_t *job, gate_t gate) {
    pthread_mutex_lock(&job->mutex);
    job->gate = gate;
    pthread_cond_broadcast(&job->gate_moved);
    pthread_mutex_unlock(&job->mutex);
}

static int gate_opened(job_t *job) {
    pthread_mutex_lock(&job->mutex);
    while (job->gate == GATE_CLOSED) {
        pthread_cond_wait(&job->gate_moved, &job->mutex);
    }
    const int opened = job->gate == GATE_OPEN;
    pthread_mutex_unlock(&job->mutex);
    return opened;
}

static void *work(void *ctx) {
    worker_t *worker = ctx;
    job_t *job = worker->job;
    if (!gate_opened(job)) {
        return NULL;
    }
    const size_t part = job->n_lines / job->n_threads;
    line_t *lines = job->lines + worker->index * part;
    for (size_t i = 0; i < part; i++) {
        for (size_t w = 0; w < LINE_WORDS; w++) {
            /* Anything but zeros, which some memories need not fetch. */
            lines[i][w] = (i * LINE_WORDS + w + 1u) * 0x9E3779B97F4A7C15u;
        }
    }
    for (unsigned pass = 0; pass < job->n_passes; pass++) {
        pthread_barrier_wait(&job->barrier);
        const double begin = now_seconds();
        worker->total += job->sum(lines, part);
        pthread_barrier_wait(&job->barrier);
        if (worker->index == 0) {
            job->seconds[pass] = now_seconds() - begin;
        }
    }
    return NULL;
}

/* All passes; the caller is worker 0. 0 when a thread could not be started. */
static int run_workers(job_t *job, worker_t *workers) {
    unsigned n_started = 1;
    for (unsigned i = 0; i < job->n_threads; i++) {
        workers[i].job = job;
        workers[i].index = i;
    }
    while (n_started < job->n_threads &&
           pthread_create(&workers[n_started].thread, NULL, work, &workers[n_started]) == 0) {
        n_started++;
    }
    const int complete = n_started == job->n_threads;
    move_gate(job, complete ? GATE_OPEN : GATE_ABORTED);
    (void)work(&workers[0]);
    for (unsigned i = 1; i < n_started; i++) {
        (void)pthread_join(workers[i].thread, NULL);
    }
    return complete;
}

static int compare_seconds(const void *a, const void *b) {
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double measure(job_t *job, worker_t *workers) {
    if (pthread_barrier_init(&job->barrier, NULL, job->n_threads) != 0) {
        return 0.0;
    }
    const int complete = run_workers(job, workers);
    (void)pthread_barrier_destroy(&job->barrier);
    if (!complete) {
        return 0.0;
    }
    qsort(job->seconds, job->n_passes, sizeof job->seconds[0], compare_seconds);
    const double seconds = job->seconds[job->n_passes / 2u];
    const size_t n_read = job->n_lines / job->n_threads / N_STREAMS * N_STREAMS * job->n_threads;
    return seconds > 0.0 ? (double)(n_read * sizeof(line_t)) / seconds * 1e-9 : 0.0;
}

double stream_bench_read_gbps(unsigned n_threads, size_t n_bytes, unsigned n_passes) {
    if (n_threads == 0 || n_threads > STREAM_BENCH_THREADS_MAX || n_bytes > SIZE_MAX / 2u) {
        return 0.0;
    }
    n_bytes = n_bytes != 0 ? n_bytes : STREAM_BENCH_BYTES;
    n_passes = n_passes != 0 ? n_passes : STREAM_BENCH_PASSES;
    n_passes = n_passes < PASSES_MAX ? n_passes : PASSES_MAX;
    n_bytes = (n_bytes + HUGE_PAGE - 1u) / HUGE_PAGE * HUGE_PAGE;
    job_t job = {.n_lines = n_bytes / sizeof(line_t),
                 .n_threads = n_threads,
                 .n_passes = n_passes,
                 .sum = choose_sum(),
                 .mutex = PTHREAD_MUTEX_INITIALIZER,
                 .gate_moved = PTHREAD_COND_INITIALIZER,
                 .gate = GATE_CLOSED};
    worker_t *workers = calloc(n_threads, sizeof *workers);
    double gbps = 0.0;
    job.lines = aligned_alloc(HUGE_PAGE, n_bytes);
    if (workers != NULL && job.lines != NULL) {
#if defined(MADV_HUGEPAGE)
        (void)madvise(job.lines, n_bytes, MADV_HUGEPAGE); /* only a wish */
#endif
        gbps = measure(&job, workers);
    }
    free(job.lines);
    free(workers);
    return gbps;
}

/* threads.c: the fork-join pool. One word publishes a job: its high bits count jobs, its low bits
 * are the number of participating threads, so that workers outside a job never read the job's
 * fields. A worker spins for a while after a job because the next one usually comes at once, then
 * sleeps on a word of its own; only sleeping participants cost the caller a system call.
 *
 * The pool lives in static memory and its workers are never joined: no heap, no order of
 * destruction. Work is split statically by the callers, there is no stealing, because results must
 * not depend on timing. */
#define _GNU_SOURCE
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "base/os_cpu.h"

#define LINE_BYTES 64
#define STACK_BYTES ((size_t)4 << 20) /* the text library alone asks for 2 MiB */
#define SPIN_NS 40000u
/* Between two jobs, where a caller picks a token: waking sleeping workers would cost it more. */
#define SPIN_JOB_NS 100000u
/* With more threads than CPUs a spinning thread may hold the CPU that the work needs. */
#define SPIN_CROWDED_NS 1000u
/* Pauses between two looks at the clock. */
#define PAUSES 16u

/* The other 48 bits count jobs; at one per microsecond they wrap after nine years. */
#define JOB_THREADS_BITS 16
#define JOB_THREADS_MASK ((1u << JOB_THREADS_BITS) - 1)
_Static_assert(KRI_THREADS_MAX <= JOB_THREADS_MASK, "thread count must fit the job word");

typedef struct worker_s {
    _Alignas(LINE_BYTES) _Atomic uint32_t asleep; /* 1: waits on this word */
    uint32_t index;                               /* thread index, from 1 */
    pthread_t thread;
    bool is_pinned;
    uint64_t job_at_start;
} worker_t;

struct kri_pool_s {
    pthread_mutex_t mutex; /* held for a whole job, and while growing */
    _Atomic uint32_t n_workers;
    uint32_t n_cpus;
    bool fork_hooked;
    _Atomic uint32_t pin; /* kri_pin_t */
    _Atomic uint32_t n_pinned;
    /* The job; written by the caller while no worker reads it. */
    _Alignas(LINE_BYTES) _Atomic uint64_t job;
    kri_pool_fn fn;
    void *ctx;
    _Atomic uint32_t spin_ns;
    /* Written by finishing workers: a line of its own. */
    _Alignas(LINE_BYTES) _Atomic uint32_t n_pending;
    _Atomic uint32_t caller_asleep;
    kri_team_t team; /* of the job, when it is a team's */
    worker_t workers[KRI_THREADS_MAX];
};

static struct kri_pool_s shared_pool = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* A sequentially consistent store that a sequentially consistent load may follow. An exchange,
 * because emulators of ARM let a load pass a plain store here (one in 20 times on an x86 host),
 * and then a thread sleeps for ever. x86 compiles both to the same instruction. */
#define store_in_order(word, value) ((void)atomic_exchange((word), (value)))

static bool takes_part(const worker_t *worker, uint64_t job, uint64_t seen) {
    return job != seen && worker->index < (job & JOB_THREADS_MASK);
}

/* Waits until the job word differs from `seen` and this worker takes part; returns the word. */
static uint64_t wait_for_job(struct kri_pool_s *pool, worker_t *worker, uint64_t seen) {
    const uint32_t spin_ns = atomic_load_explicit(&pool->spin_ns, memory_order_relaxed);
    const uint64_t start_ns = kri_clock_ns();
    for (;;) {
        for (uint32_t i = 0; i < PAUSES; i++) {
            const uint64_t job = atomic_load_explicit(&pool->job, memory_order_acquire);
            if (takes_part(worker, job, seen)) return job;
            kri_cpu_pause();
        }
        if (kri_clock_ns() - start_ns >= spin_ns) break;
    }
    for (;;) {
        /* Either the caller sees `asleep` after it published the job, or we see the job here: the
         * four accesses are sequentially consistent. */
        store_in_order(&worker->asleep, 1);
        const uint64_t job = atomic_load(&pool->job);
        if (takes_part(worker, job, seen)) {
            atomic_store_explicit(&worker->asleep, 0, memory_order_relaxed);
            return job;
        }
        kri_futex_wait(&worker->asleep, 1);
    }
}

static void *worker_main(void *arg) {
    worker_t *worker = arg;
    struct kri_pool_s *pool = &shared_pool;
    uint64_t seen = worker->job_at_start;
    for (;;) {
        seen = wait_for_job(pool, worker, seen);
        pool->fn(pool->ctx, worker->index, (uint32_t)(seen & JOB_THREADS_MASK));
        if (atomic_fetch_sub(&pool->n_pending, 1) == 1 &&
            atomic_load(&pool->caller_asleep) != 0) {
            atomic_store(&pool->caller_asleep, 0);
            kri_futex_wake(&pool->caller_asleep, 1);
        }
    }
    return NULL;
}

/* A fork copies no workers. The child starts with an empty pool: kri_pool_run then runs with the
 * caller alone until kri_pool_shared is called again. */
static void forget_workers_in_child(void) {
    struct kri_pool_s *pool = &shared_pool;
    (void)pthread_mutex_init(&pool->mutex, NULL);
    atomic_store(&pool->n_workers, 0);
    atomic_store(&pool->n_pending, 0);
    atomic_store(&pool->caller_asleep, 0);
    atomic_store(&pool->n_pinned, 0);
}

/* A thread with a small stack and no signals: the host's signals belong to the host's threads. */
static kr_status_t spawn(bool is_detached, void *(*fn)(void *), void *ctx, pthread_t *thread) {
    pthread_attr_t attr;
    sigset_t all, before;
    if (pthread_attr_init(&attr) != 0) return KR_E_NOMEM;
    (void)pthread_attr_setstacksize(&attr, STACK_BYTES);
    if (is_detached) (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &before);
    const int failed = pthread_create(thread, &attr, fn, ctx);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attr);
    return failed == 0 ? KR_OK : KR_E_NOMEM;
}

static kr_status_t spawn_worker(struct kri_pool_s *pool, uint32_t slot) {
    worker_t *worker = &pool->workers[slot];
    atomic_store(&worker->asleep, 0);
    worker->index = slot + 1;
    worker->is_pinned = false;
    worker->job_at_start = atomic_load(&pool->job);
    KR_TRY(spawn(true, worker_main, worker, &worker->thread));
    atomic_store(&pool->n_workers, slot + 1);
    return KR_OK;
}

struct kri_background_s {
    pthread_t thread;
    uint64_t process_id;
    kri_background_fn fn;
    void *ctx;
};

static void *background_main(void *arg) {
    const kri_background_t *background = arg;
    background->fn(background->ctx);
    return NULL;
}

kr_status_t kri_background_start(kri_background_fn fn, void *ctx, kri_background_t **background) {
    kri_background_t *self = kri_calloc(1, sizeof *self, "thread");
    if (self == NULL) return KR_E_NOMEM;
    self->process_id = kri_process_id();
    self->fn = fn;
    self->ctx = ctx;
    kr_status_t status = spawn(false, background_main, self, &self->thread);
    if (status == KR_OK) *background = self;
    else kri_free(self);
    return status;
}

void kri_background_join(kri_background_t *background) {
    if (background == NULL) return;
    if (background->process_id == kri_process_id()) (void)pthread_join(background->thread, NULL);
    kri_free(background);
}

void kri_background_detach(kri_background_t *background) {
    (void)pthread_detach(background->thread);
    kri_free(background);
}

/* ---- pinning ------------------------------------------------------------------------------ */

bool kri_pool_pins(uint32_t n_threads, uint32_t n_cores, bool unrestricted) {
    return unrestricted && n_cores >= 4 && n_threads <= n_cores && n_threads > n_cores / 2;
}

void kri_pool_pin(kri_pin_t pin) { atomic_store(&shared_pool.pin, (uint32_t)pin); }

uint32_t kri_pool_n_pinned(void) { return atomic_load(&shared_pool.n_pinned); }

/* Binds workers 1 .. n_pinned - 1 to the CPU of their index and sets the others free. A worker
 * that cannot be bound runs as before: where it runs is advice. */
static void place_workers(struct kri_pool_s *pool, const uint32_t *cpus, uint32_t n_pinned) {
    uint64_t all[KRI_CPUS_MAX / 64];
    const uint32_t n_workers = atomic_load(&pool->n_workers);
    uint32_t n_bound = 0;
    if (pthread_getaffinity_np(pthread_self(), sizeof all, (cpu_set_t *)(void *)all) != 0) return;
    for (uint32_t i = 0; i < n_workers; i++) {
        worker_t *worker = &pool->workers[i];
        uint64_t one[KRI_CPUS_MAX / 64] = {0};
        const bool bind = worker->index < n_pinned;
        if (!bind && !worker->is_pinned) continue;
        if (bind) one[cpus[worker->index] / 64] = UINT64_C(1) << (cpus[worker->index] % 64);
        const int failed = pthread_setaffinity_np(worker->thread, sizeof all,
                                                  (cpu_set_t *)(void *)(bind ? one : all));
        worker->is_pinned = bind && !failed;
        n_bound += worker->is_pinned;
    }
    atomic_store(&pool->n_pinned, n_bound);
}

/* With the mutex held and the workers there. */
static kr_status_t pin_workers(struct kri_pool_s *pool, uint32_t n_threads) {
    uint32_t cpus[KRI_THREADS_MAX];
    const kri_pin_t pin = (kri_pin_t)atomic_load(&pool->pin);
    bool wanted = false;
    if (pin != KRI_PIN_OFF && n_threads > 1) {
        const uint32_t n_cores = kri_cpu_places(cpus, KRI_THREADS_MAX);
        if (pin == KRI_PIN_ON && n_threads > n_cores) return KR_E_UNSUPPORTED;
        wanted = pin == KRI_PIN_ON ||
                 kri_pool_pins(n_threads, n_cores, kri_cpu_is_unrestricted());
    }
    place_workers(pool, cpus, wanted ? n_threads : 0);
    return KR_OK;
}

kr_status_t kri_pool_shared(uint32_t n_threads, kri_pool_t **pool) {
    struct kri_pool_s *shared = &shared_pool;
    if (n_threads > KRI_THREADS_MAX) return KR_E_LIMIT;
    kr_status_t status = KR_OK;
    pthread_mutex_lock(&shared->mutex);
    if (shared->n_cpus == 0) shared->n_cpus = kri_cpu_count_smt();
    if (!shared->fork_hooked && n_threads > 1) {
        shared->fork_hooked = pthread_atfork(NULL, NULL, forget_workers_in_child) == 0;
        if (!shared->fork_hooked) status = KR_E_NOMEM;
    }
    while (status == KR_OK && atomic_load(&shared->n_workers) + 1 < n_threads) {
        status = spawn_worker(shared, atomic_load(&shared->n_workers));
    }
    if (status == KR_OK) status = pin_workers(shared, n_threads);
    pthread_mutex_unlock(&shared->mutex);
    if (status == KR_OK) *pool = shared;
    return status;
}

static bool is_crowded(const struct kri_pool_s *pool, uint32_t n_threads) {
    return n_threads > pool->n_cpus;
}

static void publish(struct kri_pool_s *pool, uint32_t n_threads, kri_pool_fn fn, void *ctx) {
    pool->fn = fn;
    pool->ctx = ctx;
    atomic_store_explicit(&pool->spin_ns,
                          is_crowded(pool, n_threads) ? SPIN_CROWDED_NS : SPIN_JOB_NS,
                          memory_order_relaxed);
    atomic_store_explicit(&pool->n_pending, n_threads - 1, memory_order_relaxed);
    const uint64_t before = atomic_load_explicit(&pool->job, memory_order_relaxed);
    const uint64_t count = (before >> JOB_THREADS_BITS) + 1;
    store_in_order(&pool->job, count << JOB_THREADS_BITS | n_threads);
    for (uint32_t i = 0; i + 1 < n_threads; i++) {
        _Atomic uint32_t *asleep = &pool->workers[i].asleep;
        if (atomic_load(asleep) == 0) continue;
        if (atomic_exchange(asleep, 0) != 0) kri_futex_wake(asleep, 1);
    }
}

static void wait_for_workers(struct kri_pool_s *pool) {
    const uint32_t spin_ns = atomic_load_explicit(&pool->spin_ns, memory_order_relaxed);
    const uint64_t start_ns = kri_clock_ns();
    for (;;) {
        for (uint32_t i = 0; i < PAUSES; i++) {
            if (atomic_load_explicit(&pool->n_pending, memory_order_acquire) == 0) return;
            kri_cpu_pause();
        }
        if (kri_clock_ns() - start_ns >= spin_ns) break;
    }
    for (;;) {
        store_in_order(&pool->caller_asleep, 1);
        if (atomic_load(&pool->n_pending) == 0) break;
        kri_futex_wait(&pool->caller_asleep, 1);
    }
    atomic_store(&pool->caller_asleep, 0);
}

/* With the mutex held. Fewer than asked for only in the child of a fork. */
static uint32_t n_available(struct kri_pool_s *pool, uint32_t n_threads) {
    const uint32_t n = atomic_load_explicit(&pool->n_workers, memory_order_relaxed) + 1;
    return n_threads < n ? n_threads : n;
}

static void run_locked(struct kri_pool_s *pool, uint32_t n, kri_pool_fn fn, void *ctx) {
    if (n > 1) publish(pool, n, fn, ctx);
    fn(ctx, 0, n);
    if (n > 1) wait_for_workers(pool);
}

void kri_pool_run(kri_pool_t *pool, uint32_t n_threads, kri_pool_fn fn, void *ctx) {
    if (n_threads <= 1) {
        fn(ctx, 0, 1);
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    run_locked(pool, n_available(pool, n_threads), fn, ctx);
    pthread_mutex_unlock(&pool->mutex);
}

typedef struct team_job_s {
    kri_team_t *team;
    kri_team_fn fn;
    void *ctx;
} team_job_t;

static void team_thread(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const team_job_t *job = ctx;
    (void)n_threads;
    job->fn(job->ctx, job->team, thread_index);
}

void kri_team_run(kri_pool_t *pool, uint32_t n_threads, const uint32_t *stop, kri_team_fn fn,
                  void *ctx) {
    if (n_threads <= 1) {
        kri_team_t alone; /* 16 KiB of stack; another caller may be using the pool's */
        kri_team_init(&alone, 1, 0, false, stop);
        fn(ctx, &alone, 0);
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    const uint32_t n = n_available(pool, n_threads);
    team_job_t job = {&pool->team, fn, ctx};
    const bool crowded = is_crowded(pool, n);
    kri_team_init(&pool->team, n, crowded ? SPIN_CROWDED_NS : SPIN_NS, crowded, stop);
    run_locked(pool, n, team_thread, &job);
    pthread_mutex_unlock(&pool->mutex);
}

void kri_split(uint64_t n_items, uint64_t unit, uint32_t thread_index, uint32_t n_threads,
               uint64_t *begin, uint64_t *end) {
    if (unit == 0) unit = 1;
    if (n_threads == 0) n_threads = 1;
    const uint64_t n_units = n_items / unit + (n_items % unit != 0);
    const uint64_t each = n_units / n_threads;
    const uint64_t rest = n_units % n_threads; /* the first `rest` threads take one unit more */
    const uint64_t first = each * thread_index + (thread_index < rest ? thread_index : rest);
    const uint64_t last = first + each + (thread_index < rest);
    *begin = first < n_units ? first * unit : n_items;
    *end = last < n_units ? last * unit : n_items;
}

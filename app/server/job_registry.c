/* job_registry.c: the jobs that run, found by ticket. What the transport tells from its own thread
 * (the client has gone, bytes are taken) ends here under one short lock, so that no callback meets
 * a job that is being freed. */
#include <pthread.h>

#include "job_impl.h"

#define N_BUCKETS 1024u
#define N_OPENED_MAX 64u

static struct {
    pthread_mutex_t mutex;
    uint64_t last_ticket;
    uint32_t n_jobs, n_waiting;
    job_t *buckets[N_BUCKETS];
} registry = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void lock(void) { (void)pthread_mutex_lock(&registry.mutex); }
static void unlock(void) { (void)pthread_mutex_unlock(&registry.mutex); }

static job_t *find(uint64_t ticket) {
    job_t *job = registry.buckets[ticket % N_BUCKETS];
    while (job != NULL && job->run->ticket != ticket) job = job->run->registry_next;
    return job;
}

void job_register(job_t *job) {
    lock();
    job_run_t *run = job->run;
    run->ticket = ++registry.last_ticket;
    job_t **head = &registry.buckets[run->ticket % N_BUCKETS];
    run->registry_next = *head;
    if (*head != NULL) (*head)->run->registry_prev = job;
    *head = job;
    registry.n_jobs++;
    unlock();
}

void job_unregister(job_t *job) {
    job_run_t *run = job->run;
    lock();
    if (run->registry_prev != NULL) run->registry_prev->run->registry_next = run->registry_next;
    else registry.buckets[run->ticket % N_BUCKETS] = run->registry_next;
    if (run->registry_next != NULL) run->registry_next->run->registry_prev = run->registry_prev;
    registry.n_jobs--;
    if (run->due_ns != 0) registry.n_waiting--;
    unlock();
}

uint32_t job_count(void) {
    lock();
    const uint32_t n = registry.n_jobs;
    unlock();
    return n;
}

/* ---- the transport's thread ------------------------------------------------------------------ */

void job_on_gone(void *ticket) {
    lock();
    job_t *job = find((uint64_t)(uintptr_t)ticket);
    if (job != NULL) {
        atomic_store(&job->run->is_gone, true);
        job_cancel_requests(job);
    }
    unlock();
}

/* Consumed TOKEN events, of neighbouring marks of one prompt together. */
static void give_credits(job_run_t *run) {
    while (run->n_marks > 0) {
        const uint32_t prompt = run->marks[run->first_mark].prompt;
        uint32_t n = 0;
        while (run->n_marks > 0) {
            const job_mark_t *mark = &run->marks[run->first_mark];
            if (mark->prompt != prompt || mark->end > run->n_taken) break;
            n += mark->n;
            run->first_mark = (run->first_mark + 1) % run->n_marks_max;
            run->n_marks--;
        }
        if (n == 0) return;
        (void)kr_request_add_credits(run->requests[prompt].handle, n);
    }
}

void job_on_taken(void *ticket, size_t n_bytes) {
    lock();
    job_t *job = find((uint64_t)(uintptr_t)ticket);
    if (job != NULL) {
        job->run->n_taken += n_bytes;
        give_credits(job->run);
    }
    unlock();
}

void job_add_mark(job_t *job, uint64_t end, uint32_t prompt, uint32_t n) {
    job_run_t *run = job->run;
    lock();
    /* There is a place: marks stand for different tokens, and no more than that are on the way. */
    if (run->n_marks < run->n_marks_max) {
        const uint32_t at = (run->first_mark + run->n_marks) % run->n_marks_max;
        run->marks[at] = (job_mark_t){.end = end, .prompt = prompt, .n = n};
        run->n_marks++;
    }
    if (end <= run->n_taken) give_credits(run); /* nothing of it is on the way */
    unlock();
}

/* ---- all of them ----------------------------------------------------------------------------- */

void job_abort_all(kr_status_t status) {
    lock();
    for (uint32_t i = 0; i < N_BUCKETS; i++) {
        for (job_t *job = registry.buckets[i]; job != NULL; job = job->run->registry_next) {
            atomic_store(&job->run->abort_status, status);
            job_cancel_requests(job);
        }
    }
    unlock();
}

/* One holder more, unless it is being finished. */
static bool hold(job_t *job) {
    unsigned n = atomic_load(&job->run->n_left);
    while (n > 0) {
        if (atomic_compare_exchange_weak(&job->run->n_left, &n, n + 1)) return true;
    }
    return false;
}

void job_set_waiting(job_t *job, uint64_t due_ns) {
    job_run_t *run = job->run;
    lock();
    if ((run->due_ns != 0) != (due_ns != 0)) registry.n_waiting += due_ns ? 1u : UINT32_MAX;
    run->due_ns = due_ns;
    unlock();
}

int job_open_waiting(uint64_t now_ns) {
    job_t *due[N_OPENED_MAX];
    uint32_t n_due = 0;
    uint64_t next_ns = UINT64_MAX;
    lock();
    for (uint32_t i = 0; i < N_BUCKETS && registry.n_waiting > 0; i++) {
        for (job_t *job = registry.buckets[i]; job != NULL; job = job->run->registry_next) {
            const uint64_t due_ns = job->run->due_ns;
            if (due_ns == 0) continue;
            if (due_ns <= now_ns && n_due < N_OPENED_MAX && hold(job)) due[n_due++] = job;
            else if (due_ns < next_ns) next_ns = due_ns;
        }
    }
    unlock();
    for (uint32_t i = 0; i < n_due; i++) {
        job_wait_over(due[i]);
        job_leave(due[i], 1);
    }
    if (next_ns == UINT64_MAX) return -1;
    return next_ns <= now_ns ? 1 : (int)((next_ns - now_ns) / 1000000) + 1;
}

/* work.c: threads for what takes time: workers, and one that loads. */
#include <stdlib.h>

#include "base/error.h"
#include "inner.h"

#define STACK_BYTES ((size_t)4 << 20) /* tokenizers and templates need 2 MiB */

typedef struct task_s {
    struct task_s *next;
    rpc_conn_t *conn;
    void (*fn)(rpc_conn_t *conn, void *user);
    void *user;
} task_t;

typedef struct queue_s {
    task_t *first, *last;
    pthread_cond_t changed;
} queue_t;

typedef struct worker_s {
    rpc_work_t *work;
    queue_t *queue;
    pthread_t thread;
} worker_t;

struct rpc_work_s {
    pthread_mutex_t mutex;
    bool is_stopping;
    queue_t tasks, loads;
    uint32_t n_workers;
    worker_t workers[65];      /* the last one loads */
};

bool rpc_thread_start(pthread_t *thread, void *(*main)(void *), void *user) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    (void)pthread_attr_setstacksize(&attributes, STACK_BYTES);
    const bool is_started = pthread_create(thread, &attributes, main, user) == 0;
    (void)pthread_attr_destroy(&attributes);
    return is_started;
}

static task_t *take(worker_t *worker) {
    rpc_work_t *work = worker->work;
    queue_t *queue = worker->queue;
    (void)pthread_mutex_lock(&work->mutex);
    while (queue->first == NULL && !work->is_stopping) {
        (void)pthread_cond_wait(&queue->changed, &work->mutex);
    }
    task_t *task = work->is_stopping ? NULL : queue->first;
    if (task != NULL) {
        queue->first = task->next;
        if (queue->first == NULL) queue->last = NULL;
    }
    (void)pthread_mutex_unlock(&work->mutex);
    return task;
}

static void end_task(task_t *task) {
    if (task->conn != NULL) {
        rpc_conn_flush(task->conn);
        rpc_conn_release(task->conn);
    }
    free(task);
}

static void *worker_main(void *user) {
    worker_t *worker = user;
    for (task_t *task = take(worker); task != NULL; task = take(worker)) {
        task->fn(task->conn, task->user);
        end_task(task);
    }
    return NULL;
}

kr_status_t rpc_work_start(rpc_t *rpc, kr_error_t *error) {
    rpc_work_t *work = calloc(1, sizeof *work);
    if (work == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the workers");
    (void)pthread_mutex_init(&work->mutex, NULL);
    (void)pthread_cond_init(&work->tasks.changed, NULL);
    (void)pthread_cond_init(&work->loads.changed, NULL);
    rpc->work = work;
    const uint32_t n_workers = rpc->params.n_workers;
    for (uint32_t i = 0; i <= n_workers; i++) {
        worker_t *worker = &work->workers[i];
        worker->work = work;
        worker->queue = i < n_workers ? &work->tasks : &work->loads;
        if (!rpc_thread_start(&worker->thread, worker_main, worker)) {
            return KRI_FAIL(error, KR_E_IO, NULL, "cannot start a thread");
        }
        work->n_workers++;
    }
    return KR_OK;
}

/* Whoever waits for these has gone. */
static void drop(queue_t *queue) {
    for (task_t *task = queue->first, *next = NULL; task != NULL; task = next) {
        next = task->next;
        task->fn(NULL, task->user);
        rpc_conn_release(task->conn);
        free(task);
    }
    queue->first = queue->last = NULL;
}

void rpc_work_stop(rpc_t *rpc) {
    rpc_work_t *work = rpc->work;
    if (work == NULL) return;
    (void)pthread_mutex_lock(&work->mutex);
    work->is_stopping = true;
    (void)pthread_cond_broadcast(&work->tasks.changed);
    (void)pthread_cond_broadcast(&work->loads.changed);
    (void)pthread_mutex_unlock(&work->mutex);
    for (uint32_t i = 0; i < work->n_workers; i++) {
        (void)pthread_join(work->workers[i].thread, NULL);
    }
    drop(&work->tasks);
    drop(&work->loads);
}

void rpc_work_destroy(rpc_t *rpc) {
    rpc_work_t *work = rpc->work;
    if (work == NULL) return;
    (void)pthread_cond_destroy(&work->tasks.changed);
    (void)pthread_cond_destroy(&work->loads.changed);
    (void)pthread_mutex_destroy(&work->mutex);
    free(work);
    rpc->work = NULL;
}

static bool push(rpc_t *rpc, queue_t *queue, rpc_conn_t *conn,
                 void (*fn)(rpc_conn_t *conn, void *user), void *user) {
    task_t *task = malloc(sizeof *task);
    if (task == NULL) return false;
    *task = (task_t){.conn = conn, .fn = fn, .user = user};
    if (conn != NULL) rpc_conn_retain(conn);
    (void)pthread_mutex_lock(&rpc->work->mutex);
    if (rpc->work->is_stopping) {
        (void)pthread_mutex_unlock(&rpc->work->mutex);
        rpc_conn_release(conn);
        free(task);
        return false;
    }
    if (queue->last != NULL) queue->last->next = task;
    else queue->first = task;
    queue->last = task;
    (void)pthread_cond_signal(&queue->changed);
    (void)pthread_mutex_unlock(&rpc->work->mutex);
    return true;
}

bool rpc_work_push(rpc_t *rpc, rpc_conn_t *conn, void (*fn)(rpc_conn_t *conn, void *user),
                   void *user) {
    return push(rpc, &rpc->work->tasks, conn, fn, user);
}

bool rpc_work_push_load(rpc_t *rpc, rpc_conn_t *conn, void (*fn)(rpc_conn_t *conn, void *user),
                        void *user) {
    return push(rpc, &rpc->work->loads, conn, fn, user);
}

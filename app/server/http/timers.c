/* timers.c: one deadline per connection in a binary heap. A deadline that moves later stays where
 * it is until it comes up: reading and writing move deadlines all the time, few of them expire. */
#include "base/alloc.h"
#include "server/http/internal.h"

bool http_timers_reserve(http_timers_t *timers, uint32_t n_conns) {
    if (n_conns <= timers->capacity) return true;
    uint32_t capacity = timers->capacity > 0 ? timers->capacity * 2 : 64;
    if (capacity < n_conns) capacity = n_conns;
    http_conn_t **heap = kri_realloc(timers->heap, capacity * sizeof *heap, "http timers");
    if (heap == NULL) return false;
    timers->heap = heap;
    timers->capacity = capacity;
    return true;
}

void http_timers_deinit(http_timers_t *timers) {
    kri_free(timers->heap);
    *timers = (http_timers_t){0};
}

static void place(http_timers_t *timers, uint32_t at, http_conn_t *conn) {
    timers->heap[at] = conn;
    conn->timer_at = at + 1;
}

static void sift_up(http_timers_t *timers, uint32_t at) {
    http_conn_t *conn = timers->heap[at];
    while (at > 0) {
        const uint32_t parent = (at - 1) / 2;
        if (timers->heap[parent]->timer_ns <= conn->timer_ns) break;
        place(timers, at, timers->heap[parent]);
        at = parent;
    }
    place(timers, at, conn);
}

static void sift_down(http_timers_t *timers, uint32_t at) {
    http_conn_t *conn = timers->heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= timers->n) break;
        if (child + 1 < timers->n &&
            timers->heap[child + 1]->timer_ns < timers->heap[child]->timer_ns) {
            child++;
        }
        if (timers->heap[child]->timer_ns >= conn->timer_ns) break;
        place(timers, at, timers->heap[child]);
        at = child;
    }
    place(timers, at, conn);
}

static void take_out(http_timers_t *timers, http_conn_t *conn) {
    const uint32_t at = conn->timer_at - 1;
    http_conn_t *last = timers->heap[--timers->n];
    conn->timer_at = 0;
    if (last == conn) return;
    place(timers, at, last);
    sift_up(timers, at);
    sift_down(timers, last->timer_at - 1);
}

void http_timers_set(http_timers_t *timers, http_conn_t *conn, uint64_t deadline_ns) {
    conn->deadline_ns = deadline_ns;
    if (deadline_ns == HTTP_NEVER) {
        if (conn->timer_at != 0) take_out(timers, conn);
        return;
    }
    if (conn->timer_at != 0 && deadline_ns >= conn->timer_ns) return;
    conn->timer_ns = deadline_ns;
    if (conn->timer_at == 0) place(timers, timers->n++, conn);
    sift_up(timers, conn->timer_at - 1);
}

http_conn_t *http_timers_due(http_timers_t *timers, uint64_t now_ns) {
    while (timers->n > 0 && timers->heap[0]->timer_ns <= now_ns) {
        http_conn_t *conn = timers->heap[0];
        if (conn->deadline_ns <= now_ns) {
            take_out(timers, conn);
            return conn;
        }
        conn->timer_ns = conn->deadline_ns;
        sift_down(timers, 0);
    }
    return NULL;
}

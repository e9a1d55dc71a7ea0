/* events.c: finished events and who takes them. Requests with new events stand in a list; a
 * consumer takes one from its head, reads the request's ring up to where it was published, and if
 * it cannot take all, the request goes to the list's end, so that none is forgotten behind a busy
 * one. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "base/structs.h"
#include "engine/engine_impl.h"

void kri_events_ready(kr_engine_t e, kr_request_t r) {
    if (r->is_ready) return;
    r->is_ready = true;
    r->ready_next = NULL;
    if (e->ready_tail) e->ready_tail->ready_next = r;
    else e->ready_head = r;
    e->ready_tail = r;
}

kr_request_t kri_events_pop(kr_engine_t e, uint32_t *n_published) {
    kr_request_t r = e->ready_head;
    if (!r) return NULL;
    e->ready_head = r->ready_next;
    if (!e->ready_head) e->ready_tail = NULL;
    r->is_ready = false;
    *n_published = r->ring.n_published;
    return r;
}

void kri_events_fill(kr_request_t r, uint32_t position, kr_event_t *event) {
    const uint32_t at = position % r->ring.capacity;
    const kri_event_slot_t *slot = &r->ring.slots[at];
    const char *text = slot->text_heap ? slot->text_heap : slot->text;
    const bool has_logprobs = slot->type == KR_EVENT_TOKEN && r->ring.n_logprobs > 0;
    const bool is_error = slot->type == KR_EVENT_ERROR, is_choice = slot->type == KR_EVENT_CHOICE;
    const bool is_embedding = slot->type == KR_EVENT_EMBEDDING;
    *event = (kr_event_t){
        .struct_bytes = sizeof *event, .type = slot->type, .request = r, .user = r->user,
        .choice = slot->choice, .token = is_choice ? -1 : slot->token, .finish = slot->finish,
        .stop = is_choice ? slot->token : -1,
        .status = is_error ? r->error.code : KR_OK, .text = slot->text_bytes ? text : "",
        .text_bytes = slot->text_bytes, .logprob = slot->logprob,
        .n_logprobs = has_logprobs ? r->ring.n_logprobs : 0,
        .logprobs = has_logprobs ? r->ring.logprobs + (size_t)at * r->ring.n_logprobs : NULL,
        .error = is_error ? &r->error : NULL, .n_embd = is_embedding ? r->pooling.n_embd : 0,
        .embedding = is_embedding ? r->pooling.embedding : NULL};
}

bool kri_events_is_terminal(kr_request_t r, uint32_t position) {
    const int32_t type = r->ring.slots[position % r->ring.capacity].type;
    return type == KR_EVENT_DONE || type == KR_EVENT_ERROR;
}

void kri_events_consume(kr_request_t r, uint32_t position) {
    for (uint32_t i = atomic_load(&r->ring.n_consumed); i != position; i++) {
        kri_event_slot_t *slot = &r->ring.slots[i % r->ring.capacity];
        kri_free(slot->text_heap);
        slot->text_heap = NULL;
    }
    atomic_store(&r->ring.n_consumed, position);
    if (atomic_load(&r->is_starved) && atomic_exchange(&r->is_starved, 0)) kri_request_ask(r);
}

void kri_events_delivered(kr_request_t r) {
    kr_engine_t e = r->engine;
    kri_request_free_events(r); /* a handle may be held for long */
    kri_mutex_lock(&e->mutex);
    e->request_bytes -= r->event_bytes;
    const bool is_idle = --e->n_undelivered == 0;
    kri_mutex_unlock(&e->mutex);
    if (is_idle) kri_engine_idle_changed(e);
    kri_request_unref(r);
}

/* ---- waking and waiting --------------------------------------------------------------------- */

void kri_events_wake(kr_engine_t e) {
    atomic_fetch_add(&e->event_word, 1);
    if (atomic_load(&e->n_eaters_asleep)) kri_futex_wake(&e->event_word, UINT32_MAX);
    if (e->event_fd < 0) return;
    kri_mutex_lock(&e->mutex);
    const bool sets = e->ready_head && !e->fd_is_set;
    if (sets) e->fd_is_set = true;
    kri_mutex_unlock(&e->mutex);
    /* Not with the mutex: whoever wakes wants it at once. One who looks before being woken takes
     * the events, and then the descriptor is readable for nothing, once. */
    if (sets) kri_event_fd_set(e->event_fd);
}

void kri_events_wait(kr_engine_t e, uint32_t seen, uint32_t timeout_ms) {
    atomic_fetch_add(&e->n_eaters_asleep, 1);
    if (timeout_ms == UINT32_MAX) kri_futex_wait(&e->event_word, seen);
    else kri_futex_wait_ms(&e->event_word, seen, timeout_ms);
    atomic_fetch_sub(&e->n_eaters_asleep, 1);
}

/* ---- polling -------------------------------------------------------------------------------- */

void kri_events_release_held(kr_engine_t e) {
    for (kr_request_t r = e->held, next; r; r = next) {
        next = r->held_next;
        r->is_held = false;
        kri_events_consume(r, r->ring.n_taken);
        if (r->is_terminal_taken) kri_events_delivered(r);
    }
    e->held = NULL;
}

/* Events of one request; how many. */
static uint32_t take_from(kr_engine_t e, kr_request_t r, uint32_t n_published, kr_event_t *events,
                          uint32_t capacity) {
    uint32_t n = 0;
    for (; n < capacity && r->ring.n_taken != n_published; n++, r->ring.n_taken++) {
        kr_event_t event;
        kri_events_fill(r, r->ring.n_taken, &event);
        (void)kri_struct_write(&events[n], &event, sizeof event);
        if (kri_events_is_terminal(r, r->ring.n_taken)) r->is_terminal_taken = true;
    }
    if (!r->is_held) {
        r->is_held = true;
        r->held_next = e->held;
        e->held = r;
    }
    return n;
}

static uint32_t take_events(kr_engine_t e, kr_event_t *events, uint32_t capacity) {
    uint32_t n = 0;
    kri_mutex_lock(&e->mutex);
    while (n < capacity) {
        uint32_t n_published = 0;
        kr_request_t r = kri_events_pop(e, &n_published);
        if (!r) break;
        kri_mutex_unlock(&e->mutex);
        n += take_from(e, r, n_published, events + n, capacity - n);
        kri_mutex_lock(&e->mutex);
        if (r->ring.n_taken != r->ring.n_published) kri_events_ready(e, r);
    }
    if (!e->ready_head && (e->fd_is_set || (n == 0 && e->event_fd >= 0))) {
        e->fd_is_set = false;
        kri_event_fd_clear(e->event_fd);
    }
    kri_mutex_unlock(&e->mutex);
    return n;
}

kr_status_t kri_engine_poll(kr_engine_t e, kr_event_t *events, uint32_t capacity,
                            uint32_t timeout_ms, uint32_t *n_events) {
    if (atomic_exchange(&e->is_polling, 1)) return KR_E_BUSY;
    const uint64_t begin_ns = kri_clock_ns();
    uint32_t n = 0;
    kri_events_release_held(e);
    for (;;) {
        const uint32_t seen = atomic_load(&e->event_word);
        n = take_events(e, events, capacity);
        if (n > 0 || timeout_ms == 0) break;
        if (timeout_ms == UINT32_MAX) {
            kri_events_wait(e, seen, UINT32_MAX);
            continue;
        }
        const uint64_t spent_ms = (kri_clock_ns() - begin_ns) / 1000000;
        if (spent_ms >= timeout_ms) break;
        kri_events_wait(e, seen, timeout_ms - (uint32_t)spent_ms);
    }
    *n_events = n;
    atomic_store(&e->is_polling, 0);
    return KR_OK;
}

kr_status_t kri_engine_event_fd(kr_engine_t e, int32_t *fd) {
    if (e->event_fd < 0) return KR_E_INVALID_ARG;
    *fd = e->event_fd;
    return KR_OK;
}

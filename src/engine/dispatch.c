/* dispatch.c: the thread that calls back. It owns nothing of the engine but the events'
 * consumption, so a callback that takes long delays other callbacks and no step. A callback may end
 * the engine: then this thread, still inside it, becomes the one that tears the engine down. */
#include "base/clock.h"
#include "engine/engine_impl.h"

static _Thread_local kr_engine_t inside; /* whose callback this thread is in */

bool kri_dispatch_is_inside(kr_engine_t e) { return inside == e; }

static void call_back(kr_engine_t e, kr_request_t r, uint32_t position) {
    kr_event_t event;
    const bool was_asked = e->destroy_asked;
    kri_events_fill(r, position, &event);
    inside = e;
    e->params.on_event(&event, e->params.user);
    inside = NULL;
    if (e->destroy_asked && !was_asked) kri_engine_stop(e);
}

static void deliver(kr_engine_t e, kr_request_t r, uint32_t n_published) {
    kr_telemetry_t t = e->params.telemetry;
    const uint64_t begin_ns = t ? kri_clock_ns() : 0;
    bool is_terminal = false;
    while (r->ring.n_taken != n_published) {
        const uint32_t position = r->ring.n_taken++;
        is_terminal = kri_events_is_terminal(r, position);
        call_back(e, r, position);
        kri_events_consume(r, position + 1);
    }
    if (t) kri_telemetry_record_ns(t, KRI_METRIC_write, kri_clock_ns() - begin_ns);
    if (is_terminal) kri_events_delivered(r);
}

void kri_dispatch_main(void *engine) {
    kr_engine_t e = engine;
    for (;;) {
        uint32_t n_published = 0;
        const uint32_t seen = atomic_load(&e->event_word);
        kri_mutex_lock(&e->mutex);
        const bool is_over = e->step_is_over;
        kr_request_t r = kri_events_pop(e, &n_published);
        kri_mutex_unlock(&e->mutex);
        if (r) deliver(e, r, n_published);
        else if (is_over) break;
        else kri_events_wait(e, seen, UINT32_MAX);
    }
    if (e->destroy_asked) kri_engine_teardown(e, true);
}

/* request_run.c: a request on the step thread, from its first look to its last event. A choice has
 * a place in the ring of events for every token that it may still append (a credit of the
 * scheduler), and the places of the events that end choices and request are set apart from the
 * beginning: so writing an event never waits and never fails for lack of room, and a consumer that
 * does not keep up pauses this request alone. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "engine/engine_impl.h"

static double to_ms(uint64_t from_ns, uint64_t to_ns) {
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0.0;
}

static kr_telemetry_t telemetry_of(kr_request_t r) { return r->engine->params.telemetry; }

void kri_request_touch(kr_request_t r) {
    if (r->is_touched) return;
    r->is_touched = true;
    r->touched_next = r->engine->touched;
    r->engine->touched = r;
}

/* ---- credits -------------------------------------------------------------------------------- */

/* TOKEN events that could be granted on top of those that are. */
static uint32_t grantable(kr_request_t r) {
    const uint32_t n_waiting = r->ring.n_written - atomic_load(&r->ring.n_consumed);
    const uint32_t n_taken = n_waiting + (r->n_choices - r->n_finished) + 1 + r->n_granted;
    uint32_t n = r->ring.n_max > n_taken ? r->ring.n_max - n_taken : 0;
    if (r->has_explicit_credits) {
        const uint32_t credits = atomic_load(&r->credits);
        const uint32_t left = credits > r->n_granted ? credits - r->n_granted : 0;
        if (left < n) n = left;
    }
    return n;
}

static void grant(kri_choice_t *choice, uint32_t n) {
    choice->n_granted += n;
    choice->request->n_granted += n;
    /* While it was paused the consumer waited for nothing. */
    if (choice->is_paused && choice->last_ns != 0) choice->last_ns = kri_clock_ns();
    choice->is_paused = false;
    if (choice->task.state == KRI_TASK_IDLE) choice->task.credits += n;
    else kri_sched_add_credits(choice->request->em->sched, &choice->task, n);
}

/* Every choice without credits gets one, a lone one all; true when some choice went without. Those
 * that run come first: a credit for one that waits would let a sequence stand still until it is
 * taken from those without. */
static bool distribute(kr_request_t r) {
    const uint32_t first = r->next_grant;
    uint32_t n = grantable(r);
    bool any_without = false;
    for (uint32_t i = 0; i < 2 * r->n_choices; i++) {
        kri_choice_t *choice = &r->choices[(first + i) % r->n_choices];
        const bool is_running = choice->task.state == KRI_TASK_RUNNING;
        if (choice->is_finished || choice->n_granted > 0) continue;
        if (is_running != (i < r->n_choices)) continue;
        if (n == 0) {
            if (!any_without) r->next_grant = choice->index; /* first in turn when there are more */
            any_without = choice->is_paused = true;
            continue;
        }
        const uint32_t part = r->n_choices == 1 ? n : 1;
        grant(choice, part);
        n -= part;
    }
    return any_without;
}

/* The consumer frees slots and then looks at is_starved; we set it and then look at the slots. */
void kri_request_grant(kr_request_t r) {
    if (!distribute(r)) return;
    atomic_store(&r->is_starved, 1);
    if (!distribute(r)) atomic_store(&r->is_starved, 0);
}

/* ---- events --------------------------------------------------------------------------------- */

static kri_event_slot_t *write_slot(kr_request_t r, int32_t type, uint32_t choice) {
    kri_ring_t *ring = &r->ring;
    kri_event_slot_t *slot = &ring->slots[ring->n_written % ring->capacity];
    KR_ASSERT(ring->n_written - atomic_load(&ring->n_consumed) < ring->n_max);
    *slot = (kri_event_slot_t){.type = type, .choice = choice, .token = -1};
    ring->n_written++;
    kri_request_touch(r);
    return slot;
}

/* False: no memory for a long text; the event then has none. */
static bool write_text(kri_event_slot_t *slot, const char *text, size_t n_bytes) {
    char *to = slot->text;
    if (n_bytes > sizeof slot->text) {
        to = slot->text_heap = kri_alloc(n_bytes, "event");
        if (!to) return false;
    }
    if (n_bytes > 0) memcpy(to, text, n_bytes);
    slot->text_bytes = (uint32_t)n_bytes;
    return true;
}

static void use_credit(kri_choice_t *choice) {
    kr_request_t r = choice->request;
    choice->n_granted--;
    r->n_granted--;
    if (r->has_explicit_credits) atomic_fetch_sub(&r->credits, 1);
}

static bool write_token(kri_choice_t *choice, const kri_row_result_t *row) {
    kr_request_t r = choice->request;
    const uint32_t n_logprobs = r->ring.n_logprobs;
    const uint32_t at = r->ring.n_written % r->ring.capacity;
    kri_event_slot_t *slot = write_slot(r, KR_EVENT_TOKEN, choice->index);
    slot->token = row->token;
    if (n_logprobs > 0) {
        kr_logprob_t chosen = {-1, 0.0f};
        (void)kri_sampler_logprobs(choice->sampler, &chosen,
                                   r->ring.logprobs + (size_t)at * n_logprobs);
        slot->logprob = chosen.logprob;
    }
    use_credit(choice);
    return write_text(slot, row->text, row->text_bytes);
}

/* ---- figures -------------------------------------------------------------------------------- */

void kri_request_refresh(kr_request_t r) {
    kr_request_stats_t *s = &r->live;
    const kri_kv_match_t *match = &r->choices[0].task.match;
    if (r->is_started) {
        s->n_cached = match->n_cached;
        s->miss_position = match->miss_position;
        s->miss_cached = match->miss_cached;
        s->queue_ms = to_ms(r->submit_ns, r->start_ns);
    }
    s->n_preempted = 0;
    for (uint32_t i = 0; i < r->n_choices; i++) s->n_preempted += r->choices[i].task.n_preempted;
    if (r->first_ns != 0) {
        s->prefill_ms = to_ms(r->start_ns, r->first_ns);
        s->ttft_ms = to_ms(r->submit_ns, r->first_ns);
        s->decode_ms = to_ms(r->first_ns, r->last_ns);
    }
}

void kri_request_started(kr_request_t r, uint64_t now_ns) {
    if (r->is_started) return;
    r->is_started = true;
    r->start_ns = now_ns;
    r->em->n_waiting--;
    r->em->n_running++;
    kri_telemetry_record_ns(telemetry_of(r), KRI_METRIC_queue, now_ns - r->submit_ns);
    if (kri_task_uses_cache(&r->choices[0].task)) {
        kri_telemetry_add(telemetry_of(r), KRI_METRIC_tokens_looked_up, r->live.n_prompt);
    }
    kri_telemetry_add(telemetry_of(r), KRI_METRIC_tokens_cached,
                      r->choices[0].task.match.n_cached);
    kri_request_touch(r);
}

static void count_token(kri_choice_t *choice, uint64_t now_ns) {
    kr_request_t r = choice->request;
    r->live.n_generated++;
    kri_telemetry_add(r->em->telemetry, KRI_METRIC_tokens_generated, 1);
    r->last_ns = now_ns;
    if (r->first_ns == 0) {
        r->first_ns = now_ns;
        kri_telemetry_record_ns(telemetry_of(r), KRI_METRIC_ttft, now_ns - r->submit_ns);
        kri_telemetry_record_ns(telemetry_of(r), KRI_METRIC_request_prefill,
                                now_ns - r->start_ns);
    }
    if (choice->last_ns != 0) {
        const uint64_t gap_ns = now_ns > choice->last_ns ? now_ns - choice->last_ns : 0;
        const double gap_ms = (double)gap_ns / 1e6;
        if (gap_ms > r->live.gap_max_ms) r->live.gap_max_ms = gap_ms;
        if (gap_ms > (double)r->engine->params.max_stall_ms) r->live.n_stalls++;
        kri_telemetry_record_ns(telemetry_of(r), KRI_METRIC_inter_token, gap_ns);
    }
    choice->last_ns = now_ns;
}

static void count_end(kr_request_t r, kr_status_t status) {
    kr_telemetry_t t = telemetry_of(r);
    kri_telemetry_add(t, status == KR_OK              ? KRI_METRIC_requests_finished
                         : status == KR_E_CANCELLED ? KRI_METRIC_requests_cancelled
                                                    : KRI_METRIC_requests_failed, 1);
    if (status == KR_OK && r->pooling.kind != KR_POOLING_NONE) {
        kri_telemetry_record_ns(t, KRI_METRIC_embed, r->last_ns - r->submit_ns);
    }
    if (status != KR_OK || r->live.n_generated == 0) return;
    kri_telemetry_record_ns(t, KRI_METRIC_generate, r->last_ns - r->submit_ns);
    kri_telemetry_record_ns(t, KRI_METRIC_request_decode, r->last_ns - r->first_ns);
}

/* ---- end ------------------------------------------------------------------------------------ */

static void unlink_request(kr_request_t r) {
    kri_engine_model_t *em = r->em;
    if (r->prev) r->prev->next = r->next;
    else em->requests = r->next;
    if (r->next) r->next->prev = r->prev;
    if (r->is_started) em->n_running--;
    else em->n_waiting--;
}

void kri_request_end(kr_request_t r, kr_status_t status, const char *what, bool keep) {
    if (r->is_ended) return;
    for (uint32_t i = 0; i < r->n_choices; i++) {
        kri_task_t *task = &r->choices[i].task;
        if (task->state != KRI_TASK_IDLE) kri_sched_end(r->em->sched, task, keep);
        r->choices[i].is_finished = true;
    }
    (void)write_slot(r, status == KR_OK ? KR_EVENT_DONE : KR_EVENT_ERROR, 0);
    if (status != KR_OK) (void)KRI_FAIL(&r->error, status, NULL, "%s", what);
    count_end(r, status);
    kri_request_refresh(r);
    if (!r->is_started) r->live.queue_ms = to_ms(r->submit_ns, kri_clock_ns());
    r->live.is_ended = 1;
    r->live.status = status;
    unlink_request(r);
    r->is_ended = true;
    kri_request_free_work(r);
    kri_engine_model_unref(r->em);
}

static void finish_choice(kri_choice_t *choice, int32_t finish) {
    kr_request_t r = choice->request;
    const char *text = "";
    size_t n_bytes = 0;
    choice->is_finished = true;
    r->n_granted -= choice->n_granted;
    choice->n_granted = 0;
    kri_sched_end(r->em->sched, &choice->task, true);
    const kr_status_t status = kri_detok_finish(choice->detok, &text, &n_bytes);
    kri_event_slot_t *slot = write_slot(r, KR_EVENT_CHOICE, choice->index);
    r->n_finished++;
    slot->finish = finish;
    if (finish == KR_FINISH_STOP) slot->token = kri_detok_stop(choice->detok);
    if (status != KR_OK || !write_text(slot, text, n_bytes)) {
        kri_request_end(r, KR_E_NOMEM, "no memory for the last text of a choice", true);
    } else if (r->n_finished == r->n_choices) {
        kri_request_end(r, KR_OK, "", true);
    }
}

/* The whole request is at its end with it. */
static void take_embedding(kri_choice_t *choice, uint64_t now_ns) {
    kr_request_t r = choice->request;
    r->first_ns = r->last_ns = now_ns;
    (void)write_slot(r, KR_EVENT_EMBEDDING, choice->index);
    use_credit(choice);
    kri_request_end(r, KR_OK, "", true);
}

void kri_request_take_row(const kri_row_result_t *row, uint64_t now_ns) {
    kri_choice_t *choice = row->choice;
    kr_request_t r = choice->request;
    if (r->is_ended) return; /* by another of its rows; the task is out of the scheduler */
    if (row->status == KR_OK && row->n_hidden > 0) {
        if (row->is_embedded) take_embedding(choice, now_ns);
        return; /* else the next step has more of its rows */
    }
    kri_request_touch(r);
    if (row->status != KR_OK) {
        kri_request_end(r, row->status, row->what, row->status != KR_E_NUMERIC);
        return;
    }
    if (row->is_end) {
        finish_choice(choice, KR_FINISH_END);
    } else {
        count_token(choice, now_ns);
        if (!write_token(choice, row)) {
            kri_request_end(r, KR_E_NOMEM, "no memory for the text of a token", true);
            return;
        }
        if (row->is_stopped) finish_choice(choice, KR_FINISH_STOP);
        else if (choice->task.n_tokens + 1 >= choice->task.n_tokens_max)
            finish_choice(choice, KR_FINISH_LENGTH);
        else kri_sched_append(r->em->sched, &choice->task, row->token);
    }
    if (!r->is_ended) kri_request_grant(r);
}

/* ---- first and later looks ------------------------------------------------------------------ */

static void look_up(kr_request_t r, uint64_t now_ns) {
    const kri_task_t *first = &r->choices[0].task;
    kri_kv_match_t match;
    kri_kv_pool_match(r->em->kv, first->salt, first->tokens, first->n_prompt, &match);
    r->live.n_cached = match.n_cached;
    r->live.miss_position = match.miss_position;
    r->live.miss_cached = match.miss_cached;
    if (!telemetry_of(r)) return;
    kri_telemetry_record_ns(telemetry_of(r), KRI_METRIC_cache_lookup, kri_clock_ns() - now_ns);
}

static void accept(kr_request_t r) {
    kri_engine_model_t *em = r->em;
    const uint64_t now_ns = kri_clock_ns();
    kri_task_t *first = &r->choices[0].task;
    r->is_accepted = true;
    r->next = em->requests;
    if (em->requests) em->requests->prev = r;
    em->requests = r;
    em->n_waiting++;
    kri_telemetry_add(telemetry_of(r), KRI_METRIC_requests_started, 1);
    if (kri_task_uses_cache(first)) look_up(r, now_ns);
    kri_request_touch(r);
    kri_request_grant(r);
    for (uint32_t i = 0; i < r->n_choices; i++) {
        kri_task_t *task = &r->choices[i].task;
        task->leader = i > 0 ? first : NULL;
        const kr_status_t status = kri_sched_submit(em->sched, task, now_ns);
        if (status == KR_OK) continue;
        /* The pool was made smaller after submit had looked. */
        kri_request_end(r, status, "it needs more pages than the pool has", true);
        return;
    }
}

void kri_request_look(kr_request_t r) {
    if (!r->is_accepted) accept(r);
    if (r->is_ended) return;
    if (atomic_load(&r->cancel_asked)) {
        kri_request_end(r, KR_E_CANCELLED, "it was cancelled", true);
    } else {
        kri_request_grant(r);
    }
}

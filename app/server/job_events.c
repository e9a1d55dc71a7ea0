/* job_events.c: from events to bytes. Events are rendered when they come; what they gave is sent
 * once per batch. The first failure decides: requests that are left are cancelled, and the client
 * gets one error, as a status if nothing has been sent yet. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "job_impl.h"

/* ---- figures --------------------------------------------------------------------------------- */

static void keep_max(double *to, double value) {
    if (value > *to) *to = value;
}

static void refresh_usage(job_t *job, job_request_t *request) {
    job_usage_t *usage = &job->usage;
    kr_request_stats_t stats;
    kr_request_stats_init(&stats);
    if (kr_request_stats(request->handle, &stats) != KR_OK) return;
    usage->n_prompt += stats.n_prompt - request->n_prompt;
    usage->n_cached += stats.n_cached - (uint64_t)request->n_cached;
    usage->n_generated += stats.n_generated - request->n_generated;
    request->n_prompt = stats.n_prompt;
    request->n_cached = stats.n_cached;
    request->n_generated = stats.n_generated;
    keep_max(&usage->queue_ms, stats.queue_ms);
    keep_max(&usage->prefill_ms, stats.prefill_ms);
    keep_max(&usage->ttft_ms, stats.ttft_ms);
    keep_max(&usage->decode_ms, stats.decode_ms);
    usage->total_ms = (double)(kri_clock_ns() - job->created_ns) / 1e6;
    call_note_tokens(job->call, usage->n_prompt, usage->n_cached, usage->n_generated);
}

/* ---- failures -------------------------------------------------------------------------------- */

void job_cancel_requests(job_t *job) {
    const uint32_t n = atomic_load(&job->run->n_submitted);
    for (uint32_t i = 0; i < n; i++) kr_request_cancel(job->run->requests[i].handle);
}

void job_note_failure(job_t *job, kr_status_t status, const kr_error_t *error) {
    job_run_t *run = job->run;
    if (run->status != KR_OK) return;
    const kr_status_t abort_status = atomic_load(&run->abort_status);
    if (status == KR_E_CANCELLED && abort_status != KR_OK) {
        status = abort_status;
        error = NULL;
    }
    run->status = status;
    if (error != NULL) run->error = *error;
    atomic_store(&run->is_failed, true);
    job_cancel_requests(job);
}

void job_fail_early(job_t *job, kr_status_t status, const kr_error_t *error, bool is_refused) {
    if (status == KR_E_NOT_FOUND && strcmp(error->param, "chat_template") == 0) {
        call_fail(job->call, "template_error", job->prompt_name, "%s", error->message);
    } else if (status == KR_E_NOT_FOUND && strcmp(error->param, "model") == 0) {
        call_fail(job->call, "model_not_found", "model", "%s", error->message);
    } else if (status == KR_E_CONTEXT_LENGTH && error->offset != UINT64_MAX) {
        const server_model_t *model = server_find_model(call_server(job->call), job->model_name);
        call_fail_over_long(job->call, error, model->session.n_ctx);
    } else if (status == KR_E_BUSY && !is_refused) {
        call_fail(job->call, "overloaded", NULL, "it has waited too long for its turn");
    } else {
        call_fail_status(job->call, status, error);
    }
}

static bool write_out(job_t *job);

static void answer_failure(job_t *job) {
    job_run_t *run = job->run;
    run->is_answered = true;
    if (!run->is_open) {
        job_fail_early(job, run->status, &run->error, run->is_refused);
    } else if (atomic_load(&run->is_gone)) {
        call_end(job->call, false);
    } else {
        if (job->style->failed != NULL) {
            job->style->failed(job, run->status, &run->error, &run->out);
        }
        const bool is_whole = run->out.status == KR_OK && write_out(job);
        call_end(job->call, is_whole);
    }
}

/* ---- sending --------------------------------------------------------------------------------- */

static void begin(job_t *job, job_request_t *request) {
    job_run_t *run = job->run;
    if (run->has_begun) return;
    run->has_begun = true;
    const uint32_t n = atomic_load(&run->n_submitted);
    for (uint32_t i = 0; i < n; i++) refresh_usage(job, &run->requests[i]);
    if (request != NULL && request->prompt >= n) refresh_usage(job, request);
    if (job->style->begin != NULL) job->style->begin(job, &run->out);
}

static bool write_out(job_t *job) {
    job_run_t *run = job->run;
    if (!run->is_open) {
        run->is_open = true;
        job_set_waiting(job, 0);
        const char *type = job->style->content_type;
        call_begin(job->call, type, strcmp(type, "text/event-stream") == 0);
    }
    run->n_written += run->out.n_bytes;
    /* Also without bytes: tokens that show nothing (parts of characters, control tokens) must not
     * use the credits up. */
    for (uint32_t i = 0; i < job->n_prompts; i++) {
        job_request_t *request = &run->requests[i];
        if (request->n_unmarked == 0) continue;
        job_add_mark(job, run->n_written, i, request->n_unmarked);
        run->n_shown += request->n_unmarked;
        request->n_unmarked = 0;
    }
    /* For the log of a client that goes. */
    const job_usage_t *usage = &job->usage;
    call_note_tokens(job->call, usage->n_prompt, usage->n_cached,
                     run->n_shown > usage->n_generated ? run->n_shown : usage->n_generated);
    if (run->out.n_bytes == 0) return true;
    const bool is_there = call_write(job->call, run->out.data, run->out.n_bytes);
    kri_buffer_clear(&run->out);
    return is_there;
}

void job_advance(job_t *job) {
    job_run_t *run = job->run;
    if (run->out.status != KR_OK) job_note_failure(job, run->out.status, NULL);
    if (run->is_answered || !run->is_submitted) return;
    if (run->status != KR_OK) {
        answer_failure(job);
    } else if (job->is_stream && run->has_begun && !write_out(job)) {
        job_note_failure(job, KR_E_CANCELLED, NULL); /* `gone` has come or is on its way */
        run->is_answered = true;
        call_end(job->call, false);
    }
}

static void answer_success(job_t *job) {
    job_run_t *run = job->run;
    if (job->is_stream) {
        begin(job, NULL);
        if (job->style->done != NULL) job->style->done(job, &run->out);
    } else {
        job->style->whole(job, &run->out);
    }
    if (run->out.status != KR_OK) {
        job_note_failure(job, run->out.status, NULL);
        answer_failure(job);
        return;
    }
    run->is_answered = true;
    if (job->is_stream) {
        const bool is_whole = write_out(job);
        call_end(job->call, is_whole);
    } else {
        call_reply_json(job->call, 200, &run->out);
    }
}

static void finish(job_t *job) {
    job_run_t *run = job->run;
    if (run->out.status != KR_OK) job_note_failure(job, run->out.status, NULL);
    if (atomic_load(&run->is_gone)) job_note_failure(job, KR_E_CANCELLED, NULL);
    if (run->is_answered) return;
    if (run->status != KR_OK) answer_failure(job);
    else answer_success(job);
}

void job_leave(job_t *job, uint32_t n) {
    job_run_t *run = job->run;
    if (atomic_fetch_sub(&run->n_left, n) != n) return;
    kri_mutex_lock(&run->lock);
    finish(job);
    kri_mutex_unlock(&run->lock);
    job_unregister(job);
    job_free(job);
}

static bool is_heavy(const job_t *job) {
    uint64_t n_entries = 0;
    if (job->is_stream || job->n_tops < 0 || job->run->is_answered) return false;
    for (uint32_t i = 0; i < job->n_choices_all; i++) {
        n_entries += job->choices[i].n_tokens * (uint64_t)(job->n_tops + 1);
    }
    return n_entries > JOB_HEAVY_ENTRIES;
}

bool job_send(job_t *job) {
    job_run_t *run = job->run;
    bool is_for_others = false;
    kri_mutex_lock(&run->lock);
    const uint32_t n = run->n_ending;
    run->n_ending = 0;
    /* Nobody else is left: the last tokens and the end go in one write. */
    if (atomic_fetch_sub(&run->n_left, n) - n > 1) job_advance(job);
    else if (is_heavy(job)) is_for_others = true;
    else finish(job);
    kri_mutex_unlock(&run->lock);
    return is_for_others;
}

void job_try_later(job_t *job) {
    atomic_fetch_add(&job->run->n_left, 1);
    job_set_waiting(job, kri_clock_ns() + JOB_RETRY_NS);
    pump_wake(call_server(job->call)->pump);
}

void job_wait_over(job_t *job) {
    kri_mutex_lock(&job->run->lock);
    job_set_waiting(job, 0);
    if (job->pooling != KR_POOLING_NONE) {
        job_submit_more(job);
        kri_mutex_unlock(&job->run->lock);
        job_leave(job, 1); /* that of job_try_later */
        return;
    }
    if (job->run->status == KR_OK && !job->run->is_answered) begin(job, NULL);
    job_advance(job);
    kri_mutex_unlock(&job->run->lock);
}

/* ---- events ---------------------------------------------------------------------------------- */

static bool keeps_text(const job_t *job) { return !job->is_stream || job->style->keeps_text; }

/* Room for one more element: the arrays double from 16 on. */
static bool grow(void **array, uint32_t n, size_t item_bytes) {
    if (n > 0 && (n < 16 || (n & (n - 1)) != 0)) return true;
    const size_t n_items = n == 0 ? 16 : (size_t)n * 2;
    void *grown = realloc(*array, n_items * item_bytes);
    if (grown == NULL) return false;
    *array = grown;
    return true;
}

static kr_status_t record(job_t *job, job_choice_t *choice, const kr_event_t *event) {
    const uint32_t n = choice->n_tokens, n_tops = (uint32_t)job->n_tops;
    void *arrays[4] = {choice->tokens, choice->logprobs, choice->text_starts, choice->tops};
    bool is_there = grow(&arrays[0], n, sizeof *choice->tokens);
    is_there = grow(&arrays[1], n, sizeof *choice->logprobs) && is_there;
    is_there = grow(&arrays[2], n, sizeof *choice->text_starts) && is_there;
    is_there = (n_tops == 0 || grow(&arrays[3], n, n_tops * sizeof *choice->tops)) && is_there;
    choice->tokens = arrays[0];
    choice->logprobs = arrays[1];
    choice->text_starts = arrays[2];
    choice->tops = arrays[3];
    if (!is_there) return KR_E_NOMEM;
    choice->tokens[n] = event->token;
    choice->logprobs[n] = event->logprob;
    choice->text_starts[n] = choice->n_chars;
    for (uint32_t i = 0; i < n_tops; i++) {
        job_top_t *top = &choice->tops[(size_t)n * n_tops + i];
        *top = (job_top_t){-1, 0.0f};
        if (i < event->n_logprobs && event->logprobs[i].token >= 0) {
            *top = event->logprobs[i];
        }
    }
    return KR_OK;
}

static uint64_t count_chars(const char *text, size_t n_bytes) {
    uint64_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) n += ((unsigned char)text[i] & 0xC0) != 0x80;
    return n;
}

static void take_text(job_t *job, job_request_t *request, const kr_event_t *event) {
    job_run_t *run = job->run;
    job_choice_t *choice = &job->choices[request->prompt * job->n_choices + event->choice];
    const bool is_token = event->type == KR_EVENT_TOKEN;
    kr_status_t status = KR_OK;
    if (is_token && job->n_tops >= 0 && keeps_text(job)) status = record(job, choice, event);
    if (status == KR_OK && keeps_text(job)) {
        status = kri_buffer_append(&choice->text, event->text, event->text_bytes);
    }
    if (status != KR_OK) {
        job_note_failure(job, status, NULL);
        return;
    }
    choice->n_chars += count_chars(event->text, event->text_bytes);
    if (is_token) {
        choice->n_tokens++;
    } else {
        choice->finish = event->finish;
        choice->stop = event->stop;
        refresh_usage(job, request);
    }
    if (!job->is_stream) return;
    begin(job, request);
    if (is_token) request->n_unmarked++;
    if (is_token && job->style->token != NULL) job->style->token(job, choice, event, &run->out);
    if (!is_token && job->style->choice != NULL) job->style->choice(job, choice, event, &run->out);
}

static void end_request(job_t *job, job_request_t *request) {
    refresh_usage(job, request);
    job_run_t *run = job->run;
    run->n_ending++;
    run->n_ended++;
    if (job->pooling != KR_POOLING_NONE) {
        run->n_tokens_ahead -= job->prompts[request->prompt].n_tokens;
    }
}

void job_take_event(pump_user_t *user, pump_t *pump, const kr_event_t *event) {
    job_request_t *request = (job_request_t *)(void *)user;
    job_t *job = request->job;
    job_run_t *run = job->run;
    pump_touch(pump, job);
    kri_mutex_lock(&run->lock);
    const bool is_wanted = run->status == KR_OK && !run->is_answered;
    switch (event->type) {
    case KR_EVENT_TOKEN:
    case KR_EVENT_CHOICE:
        if (is_wanted) take_text(job, request, event);
        break;
    case KR_EVENT_EMBEDDING:
        if (is_wanted) job->style->embedding(job, request->prompt, event);
        break;
    case KR_EVENT_DONE:
        end_request(job, request);
        if (job->pooling != KR_POOLING_NONE && run->is_submitted) job_submit_more(job);
        break;
    default:
        job_note_failure(job, event->status, event->error);
        end_request(job, request);
        break;
    }
    kri_mutex_unlock(&run->lock);
}

/* bench_requests.c: an engine driven by polling from one thread. A batch of streams is kept in step
 * by credits: each request may give one token until all have theirs, then the rest at once; so the
 * prefill and the decode phase are apart and every stream decodes in the whole window measured. */
#include "bench_requests.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench.h"
#include "report.h"
#include "terminal.h"

#define EVENTS_MAX 512u
#define POLL_MS 100u
#define SILENCE_NS_MAX ((uint64_t)600 * 1000000000)
/* Long prompts of many streams may queue for minutes; a day is no bound here. */
#define DAY_MS (24u * 3600u * 1000u)

/* ---- samples -------------------------------------------------------------------------------- */

kr_status_t cli_samples_add(cli_samples_t *samples, double value) {
    if (samples->n == samples->cap) {
        size_t cap = samples->cap > 0 ? samples->cap * 2 : 256;
        double *values = realloc(samples->values, cap * sizeof *values);
        if (values == NULL) return KR_E_NOMEM;
        samples->values = values;
        samples->cap = cap;
    }
    samples->values[samples->n++] = value;
    return KR_OK;
}

void cli_samples_deinit(cli_samples_t *samples) {
    free(samples->values);
    memset(samples, 0, sizeof *samples);
}

double cli_samples_percentile(cli_samples_t *samples, double p) {
    if (samples->n == 0) return 0;
    (void)cli_bench_median(samples->values, samples->n); /* sorts */
    return cli_bench_percentile(samples->values, samples->n, p);
}

void cli_samples_json(cli_samples_t *samples, const char *name, json_t *object) {
    static const struct { const char *suffix; double p; } rows[] = {
        {"p50", 50}, {"p95", 95}, {"p99", 99}, {"max", 100},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char key[64];
        snprintf(key, sizeof key, "%s_%s_ms", name, rows[i].suffix);
        double value = cli_samples_percentile(samples, rows[i].p);
        json_object_set_new(object, key, samples->n > 0 ? cli_json_real(value) : json_null());
    }
}

/* ---- the engine ----------------------------------------------------------------------------- */

void cli_bench_session_params(const cli_options_t *options, const cli_bench_settings_t *settings,
                              kr_session_params_t *params) {
    cli_session_params(options, settings->n_ctx, settings->n_rows_max, params);
    params->n_seqs = settings->n_seqs;
    params->prefix_cache = settings->prefix_cache ? KR_PREFIX_CACHE_ON : KR_PREFIX_CACHE_OFF;
}

int cli_bench_engine_create(const cli_options_t *options, const cli_engine_t *loaded,
                            const cli_bench_settings_t *settings, cli_bench_engine_t *engine) {
    memset(engine, 0, sizeof *engine);
    kr_error_init(&engine->error);
    engine->n_vocab = loaded->info.n_vocab;
    kr_sampler_params_init(&engine->sampler);
    if (strcmp(cli_text(options, CLI_OPT_sampling), "greedy") == 0) {
        engine->sampler.temperature = 0;
        engine->sampler.n_penalty_last = 0;
    }
    engine->n_tokens_max = settings->n_ctx * settings->n_seqs;
    engine->tokens = calloc(engine->n_tokens_max, sizeof *engine->tokens);
    engine->events = calloc(EVENTS_MAX, sizeof *engine->events);
    if (engine->tokens == NULL || engine->events == NULL) {
        return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    }
    kr_status_t status = KR_OK;
    if (strcmp(cli_text(options, CLI_OPT_telemetry), "on") == 0) {
        status = kr_telemetry_create(&engine->telemetry);
        /* A build without it has none to be asked for by default. */
        bool is_asked = cli_given(options, CLI_OPT_telemetry);
        if (status == KR_E_UNSUPPORTED && !is_asked) status = KR_OK;
    }
    kr_engine_params_t params;
    kr_engine_params_init(&params);
    params.n_threads = cli_u32(options, CLI_OPT_threads);
    params.max_stall_ms = settings->max_stall_ms;
    params.queue_wait_ms_max = DAY_MS;
    params.telemetry = engine->telemetry;
    if (status == KR_OK) status = kr_engine_create(&params, &engine->engine, &engine->error);
    engine->heard_ns = kri_clock_ns();
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_SETUP, status, &engine->error);
}

int cli_bench_engine_add(const cli_options_t *options, const cli_engine_t *loaded, const char *name,
                         const cli_bench_settings_t *settings, cli_bench_engine_t *engine) {
    kr_session_params_t params;
    cli_bench_session_params(options, settings, &params);
    kr_status_t status = kr_engine_add_model(engine->engine, name, loaded->model, &params,
                                             &engine->error);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_SETUP, status, &engine->error);
}

void cli_bench_engine_destroy(cli_bench_engine_t *engine) {
    kr_engine_destroy(engine->engine);
    kr_telemetry_destroy(engine->telemetry);
    free(engine->tokens);
    free(engine->events);
    memset(engine, 0, sizeof *engine);
}

/* ---- requests ------------------------------------------------------------------------------- */

/* splitmix64 of (prompt, position): fixed, so that every run computes the same things. */
void cli_bench_random(cli_bench_engine_t *engine, kr_token_t *tokens, uint32_t n) {
    uint64_t stream = ++engine->n_prompts << 32;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t x = (stream + i) * 0x9e3779b97f4a7c15u;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        tokens[i] = (kr_token_t)((x ^ x >> 31) % engine->n_vocab);
    }
}

kr_status_t cli_bench_submit(cli_bench_engine_t *engine, const char *model,
                             const kr_token_t *tokens, uint32_t n_prompt, uint32_t n_tokens_max,
                             uint32_t credits, cli_request_t *request) {
    kr_segment_t segment;
    memset(&segment, 0, sizeof segment);
    segment.type = KR_SEGMENT_TOKENS;
    segment.count = n_prompt;
    segment.tokens = tokens;
    kr_request_params_t params;
    kr_request_params_init(&params);
    params.n_segments = 1;
    params.segments = &segment;
    params.model = model;
    params.sampler = &engine->sampler;
    params.n_tokens_max = n_tokens_max;
    params.ignore_end = 1;
    params.deadline_ms = DAY_MS;
    params.credits = credits;
    params.user = request;
    memset(request, 0, sizeof *request);
    request->submit_ns = engine->heard_ns = kri_clock_ns();
    return kr_engine_submit(engine->engine, &params, &request->handle, &engine->error);
}

static kr_status_t take_event(cli_bench_engine_t *engine, const kr_event_t *event, uint64_t now) {
    cli_request_t *request = event->user;
    if (event->type == KR_EVENT_TOKEN) {
        double gap_ms = (double)(now - request->last_ns) / 1e6;
        bool is_first = request->n_tokens++ == 0;
        if (is_first) request->first_ns = now;
        request->last_ns = now;
        if (!is_first && engine->gaps_ms != NULL) return cli_samples_add(engine->gaps_ms, gap_ms);
    } else if (event->type == KR_EVENT_DONE || event->type == KR_EVENT_ERROR) {
        request->is_ended = true;
        request->status = event->status;
        bool is_wanted = event->status == KR_OK || event->status == KR_E_CANCELLED;
        if (!is_wanted && event->error != NULL) engine->error = *event->error;
    }
    return KR_OK;
}

kr_status_t cli_bench_pump(cli_bench_engine_t *engine) {
    if (cli_interrupted()) return KR_E_CANCELLED;
    uint32_t n_events = 0;
    for (uint32_t i = 0; i < EVENTS_MAX; i++) {
        engine->events[i].struct_bytes = (uint32_t)sizeof engine->events[i];
    }
    kr_status_t status = kr_engine_poll(engine->engine, engine->events, EVENTS_MAX, POLL_MS,
                                        &n_events);
    uint64_t now = kri_clock_ns();
    for (uint32_t i = 0; i < n_events && status == KR_OK; i++) {
        status = take_event(engine, &engine->events[i], now);
    }
    if (n_events > 0) engine->heard_ns = now;
    if (status == KR_OK && now - engine->heard_ns > SILENCE_NS_MAX) {
        snprintf(engine->error.message, sizeof engine->error.message,
                 "the engine has given no event for ten minutes");
        status = KR_E_TIMEOUT;
    }
    return status;
}

kr_status_t cli_bench_wait(cli_bench_engine_t *engine, const cli_request_t *requests, uint32_t n,
                           uint32_t n_tokens) {
    for (;;) {
        uint32_t n_there = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (requests[i].is_ended && requests[i].status != KR_OK) return requests[i].status;
            n_there += requests[i].is_ended || requests[i].n_tokens >= n_tokens;
        }
        if (n_there == n) return KR_OK;
        kr_status_t status = cli_bench_pump(engine);
        if (status != KR_OK) return status;
    }
}

kr_status_t cli_bench_stop(cli_bench_engine_t *engine, cli_request_t *requests, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (requests[i].handle != NULL) kr_request_cancel(requests[i].handle);
    }
    kr_status_t status = KR_OK;
    for (uint32_t i = 0; i < n && status == KR_OK;) {
        if (requests[i].handle == NULL || requests[i].is_ended) i++;
        else status = cli_bench_pump(engine);
    }
    cli_bench_release(requests, n);
    return status;
}

void cli_bench_release(cli_request_t *requests, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (requests[i].handle != NULL) kr_request_release(requests[i].handle);
        requests[i].handle = NULL;
    }
}

/* ---- streams in step ------------------------------------------------------------------------ */

/* All decode from here on: the time since the first token was a wait for the others. */
static kr_status_t decode_all(cli_bench_engine_t *engine, cli_request_t *requests, uint32_t n,
                              uint32_t n_more, cli_batch_t *batch) {
    kr_status_t status = KR_OK;
    uint64_t begin_ns = kri_clock_ns(), end_ns = begin_ns;
    for (uint32_t i = 0; i < n; i++) requests[i].last_ns = begin_ns;
    for (uint32_t i = 0; i < n && status == KR_OK; i++) {
        status = kr_request_add_credits(requests[i].handle, n_more);
    }
    if (status == KR_OK) {
        status = cli_bench_wait(engine, requests, n, CLI_BENCH_UNTIL_ENDED);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (requests[i].last_ns > end_ns) end_ns = requests[i].last_ns;
    }
    batch->decode_ns = end_ns - begin_ns;
    return status;
}

static kr_status_t run_batch(cli_bench_engine_t *engine, const char *model, cli_request_t *requests,
                             uint32_t n, uint32_t n_prompt, uint32_t n_generate,
                             cli_samples_t *ttft_ms, cli_batch_t *batch) {
    kr_status_t status = KR_OK;
    for (uint32_t i = 0; i < n; i++) {
        cli_bench_random(engine, engine->tokens + (size_t)i * n_prompt, n_prompt);
    }
    uint64_t begin_ns = kri_clock_ns(), end_ns = begin_ns;
    for (uint32_t i = 0; i < n && status == KR_OK; i++) {
        status = cli_bench_submit(engine, model, engine->tokens + (size_t)i * n_prompt, n_prompt,
                                  n_generate, 1, &requests[i]);
    }
    if (status == KR_OK) status = cli_bench_wait(engine, requests, n, 1);
    for (uint32_t i = 0; i < n && status == KR_OK; i++) {
        if (requests[i].first_ns > end_ns) end_ns = requests[i].first_ns;
        if (ttft_ms == NULL) continue;
        status = cli_samples_add(ttft_ms,
                                 (double)(requests[i].first_ns - requests[i].submit_ns) / 1e6);
    }
    batch->prefill_ns = end_ns - begin_ns;
    kr_engine_stats_t stats;
    kr_engine_stats_init(&stats);
    if (status == KR_OK) status = kr_engine_stats(engine->engine, model, &stats);
    batch->kv_bytes_used = stats.kv_bytes_used;
    if (status == KR_OK) status = decode_all(engine, requests, n, n_generate - 1, batch);
    return status;
}

kr_status_t cli_bench_batch(cli_bench_engine_t *engine, const char *model, uint32_t n_streams,
                            uint32_t n_prompt, uint32_t n_generate, cli_samples_t *ttft_ms,
                            cli_batch_t *batch) {
    cli_request_t requests[CLI_STREAMS_MAX];
    memset(requests, 0, sizeof requests);
    memset(batch, 0, sizeof *batch);
    kr_status_t status = run_batch(engine, model, requests, n_streams, n_prompt, n_generate,
                                   ttft_ms, batch);
    if (status == KR_OK) cli_bench_release(requests, n_streams);
    else (void)cli_bench_stop(engine, requests, n_streams); /* none may point here any more */
    return status;
}

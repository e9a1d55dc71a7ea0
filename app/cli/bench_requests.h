/* bench_requests.h: what the modes of `kr bench engine` share: an engine with one model, requests
 * of random tokens whose events are timed, and samples with percentiles. One thread does it all: it
 * submits, polls and takes the time when poll returns, so that a figure holds what a caller sees,
 * delivery included. */
#ifndef CLI_BENCH_REQUESTS_H
#define CLI_BENCH_REQUESTS_H

#include <jansson.h>

#include "bench.h"
#include "kr.h"
#include "load.h"
#include "options.h"

/* Values of one kind, as many as come. */
typedef struct cli_samples_s {
    double *values;
    size_t n, cap;
} cli_samples_t;
kr_status_t cli_samples_add(cli_samples_t *samples, double value); /* KR_E_NOMEM */
void cli_samples_deinit(cli_samples_t *samples);
/* Nearest rank; sorts the samples. 0 without any. */
double cli_samples_percentile(cli_samples_t *samples, double p);
/* NAME_p50_ms, NAME_p95_ms, NAME_p99_ms and NAME_max_ms; null without samples. */
void cli_samples_json(cli_samples_t *samples, const char *name, json_t *object);

/* One request: the caller's, zeroed; it stays where it is until it has ended. */
typedef struct cli_request_s {
    kr_request_t handle; /* NULL: none */
    uint32_t n_tokens;   /* received */
    bool is_ended;
    kr_status_t status;  /* once ended */
    uint64_t submit_ns, first_ns, last_ns;
} cli_request_t;

typedef struct cli_bench_engine_s {
    kr_engine_t engine;
    kr_telemetry_t telemetry;
    kr_sampler_params_t sampler;
    uint32_t n_vocab;
    uint64_t n_prompts;     /* made so far: each is random, and other than those before */
    kr_token_t *tokens;     /* [n_tokens_max] the prompts being submitted */
    uint32_t n_tokens_max;
    kr_event_t *events;
    uint64_t heard_ns;      /* of the last event */
    cli_samples_t *gaps_ms; /* where times between two tokens of a request go; NULL = nowhere */
    kr_error_t error;       /* of the call or request that failed */
} cli_bench_engine_t;

typedef struct cli_bench_settings_s {
    uint32_t n_ctx, n_seqs, n_rows_max, max_stall_ms;
    bool prefix_cache;
} cli_bench_settings_t;

/* An engine by the options -t, --kv, --sampling, --telemetry, ... and the settings, without a
 * model. The functions that return int have reported what went wrong. */
int cli_bench_engine_create(const cli_options_t *options, const cli_engine_t *loaded,
                            const cli_bench_settings_t *settings, cli_bench_engine_t *engine);
/* The loaded model under a name. */
int cli_bench_engine_add(const cli_options_t *options, const cli_engine_t *loaded, const char *name,
                         const cli_bench_settings_t *settings, cli_bench_engine_t *engine);
/* Requests that still run end; their handles may be released afterwards. */
void cli_bench_engine_destroy(cli_bench_engine_t *engine);

/* The session parameters behind the settings. */
void cli_bench_session_params(const cli_options_t *options, const cli_bench_settings_t *settings,
                              kr_session_params_t *params);
/* n random tokens into tokens, n up to n_tokens_max; no two calls give the same. */
void cli_bench_random(cli_bench_engine_t *engine, kr_token_t *tokens, uint32_t n);
/* Submits a prompt; end tokens do not end it. model NULL: the first. credits 0: automatic. */
kr_status_t cli_bench_submit(cli_bench_engine_t *engine, const char *model,
                             const kr_token_t *tokens, uint32_t n_prompt, uint32_t n_tokens_max,
                             uint32_t credits, cli_request_t *request);
/* Takes events once, waiting up to a tenth of a second. KR_E_CANCELLED after an interrupt,
 * KR_E_TIMEOUT when the engine has been silent for ten minutes. */
kr_status_t cli_bench_pump(cli_bench_engine_t *engine);
/* Pumps until each of the requests has n_tokens, or has ended; the status of one that failed. */
kr_status_t cli_bench_wait(cli_bench_engine_t *engine, const cli_request_t *requests, uint32_t n,
                           uint32_t n_tokens);
#define CLI_BENCH_UNTIL_ENDED UINT32_MAX
/* Cancels what runs, waits for the ends and releases the handles. */
kr_status_t cli_bench_stop(cli_bench_engine_t *engine, cli_request_t *requests, uint32_t n);
void cli_bench_release(cli_request_t *requests, uint32_t n);

/* n streams at once: prompts first, then, when each has its first token, all decode in step. */
typedef struct cli_batch_s {
    uint64_t prefill_ns;   /* first submit to the last first token */
    uint64_t decode_ns;    /* from there to the last token */
    uint64_t kv_bytes_used; /* with all prompts in place */
} cli_batch_t;
/* n_generate tokens for each stream, at least 2. Times to the first token go into ttft_ms where it
 * is not NULL, gaps of the decode phase into engine->gaps_ms. */
kr_status_t cli_bench_batch(cli_bench_engine_t *engine, const char *model, uint32_t n_streams,
                            uint32_t n_prompt, uint32_t n_generate, cli_samples_t *ttft_ms,
                            cli_batch_t *batch);

#endif

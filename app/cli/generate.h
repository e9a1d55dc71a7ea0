/* generate.h: one generation, shared by run and chat: prefill in chunks, then token by token with
 * text handed out as soon as it is certain. */
#ifndef CLI_GENERATE_H
#define CLI_GENERATE_H

#include <stdbool.h>

#include "base/buffer.h"
#include "load.h"

/* Receives valid UTF-8. KR_E_CANCELLED stops the generation, other failures are returned. */
typedef kr_status_t (*cli_text_fn)(const char *text, size_t n_bytes, void *user);

typedef struct cli_generation_s {
    /* in */
    cli_engine_t *engine;
    kr_sampler_t sampler;
    kr_detokenizer_t detokenizer;
    const kr_token_t *prompt; /* the whole prompt, what is reused included */
    uint32_t n_prompt;
    uint32_t n_reused;        /* of those, tokens that the session already holds; < n_prompt */
    uint32_t n_tokens_max;    /* generated at most; the context may end earlier */
    uint32_t n_logprobs;
    bool ignore_eos;
    cli_text_fn emit;
    void *emit_user;

    /* out, also on failure as far as it came */
    kr_token_t *tokens;       /* [n_tokens] sampled, the end token included */
    uint32_t n_tokens;
    kr_logprob_t *logprobs;   /* [n_tokens, 1 + n_logprobs]: chosen, then the likeliest */
    kri_buffer_t text;
    const char *finish_reason; /* "stop", "length", "cancelled" */
    bool stop_string_found;
    uint64_t start_ns, prefill_ns, first_ns, last_ns; /* points in time; 0 = not reached */
} cli_generation_t;

/* KR_E_CONTEXT_LENGTH when the prompt is longer than the context. Cancelling is not a failure. */
kr_status_t cli_generate(cli_generation_t *generation, kr_error_t *error);
void cli_generation_deinit(cli_generation_t *generation);

/* Tokens per second, 0 when not measurable. */
double cli_generation_prefill_tps(const cli_generation_t *generation);
double cli_generation_decode_tps(const cli_generation_t *generation);
double cli_generation_ttft_ms(const cli_generation_t *generation);

/* Sampler parameters from the options; *bias (may stay NULL) is malloc'ed and must outlive
 * kr_sampler_create. */
int cli_sampler_params(const cli_options_t *options, uint32_t n_vocab,
                       kr_sampler_params_t *params, kr_logit_bias_t **bias);
/* The stop strings of the options, checked; stops [16]. */
int cli_stop_strings(const cli_options_t *options, const char *stops[16], size_t *n_stops);

#endif

/* load.h: from the options to an opened model and a session, with the progress line. */
#ifndef CLI_LOAD_H
#define CLI_LOAD_H

#include <jansson.h>

#include "kr.h"
#include "options.h"

typedef struct cli_engine_s {
    kr_model_t model;
    kr_session_t session; /* NULL until opened */
    kr_model_info_t info;
    kr_session_info_t session_info;
    double load_ms; /* model and session */
    float *row;     /* [n_vocab] logits of one row */
} cli_engine_t;

/* The file behind `name` (NULL = -m) into path [cap]: what can be said before loading. */
int cli_engine_find_model(const cli_options_t *options, const char *name, char *path, size_t cap);
/* name: alias or path, NULL = -m. With vocab_only nothing can be computed. */
int cli_engine_open_model(const cli_options_t *options, const char *name, bool vocab_only,
                          cli_engine_t *engine);
/* n_ctx 0 = the library's default. */
int cli_engine_open_session(const cli_options_t *options, uint32_t n_ctx, uint32_t n_rows_max,
                            cli_engine_t *engine);
/* The same with n_seqs sequences of n_ctx tokens each. */
int cli_engine_open_seqs(const cli_options_t *options, uint32_t n_ctx, uint32_t n_seqs,
                         uint32_t n_rows_max, cli_engine_t *engine);
void cli_engine_close(cli_engine_t *engine);
/* The session parameters that the options ask for. */
void cli_session_params(const cli_options_t *options, uint32_t n_ctx, uint32_t n_rows_max,
                        kr_session_params_t *params);

/* Room for the logits of n_rows rows, [n_rows, n_vocab], in a tensor that the caller releases; NULL
 * without memory. */
float *cli_engine_rows(const cli_engine_t *engine, size_t n_rows, kr_tensor_t *tensor);
/* Appends n tokens to sequence 0 and computes the logits of the rows listed. */
kr_status_t cli_engine_decode(cli_engine_t *engine, const kr_token_t *tokens, uint32_t n_tokens,
                              const uint32_t *out_rows, uint32_t n_out_rows, float *logits,
                              kr_error_t *error);

/* The fields that every report shares: isa, threads, commit, model_bytes, ... */
json_t *cli_engine_json(const cli_engine_t *engine);
/* json_real, or null for a number that JSON cannot hold. */
json_t *cli_json_real(double value);
/* json_string of bytes that may be invalid UTF-8 (then U+FFFD stands for the bad ones). */
json_t *cli_json_text(const char *text, size_t n_bytes);

#endif

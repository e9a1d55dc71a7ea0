/* load.c: opening models and sessions for every command. */
#include "load.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/utf8.h"
#include "models.h"
#include "report.h"
#include "terminal.h"

static int32_t on_progress(const char *stage, uint64_t done, uint64_t total, void *user) {
    (void)user;
    cli_progress(stage, done, total);
    return cli_interrupted();
}

int cli_engine_find_model(const cli_options_t *options, const char *name, char *path,
                          size_t cap) {
    if (name == NULL) name = cli_text(options, CLI_OPT_model);
    if (name == NULL) {
        return cli_usage("model", "which model? give -m FILE or an alias: smollm2 is the starter, "
                                  "`kr models` lists all");
    }
    return cli_model_resolve(options, name, path, cap);
}

int cli_engine_open_model(const cli_options_t *options, const char *name, bool vocab_only,
                          cli_engine_t *engine) {
    memset(engine, 0, sizeof *engine);
    char path[CLI_PATH_BYTES_MAX];
    int failed = cli_engine_find_model(options, name, path, sizeof path);
    if (failed != 0) return failed;
    const char *pin = cli_text(options, CLI_OPT_pin);
    if (pin != NULL && strcmp(pin, "auto") != 0) {
        (void)kr_threads_pin(strcmp(pin, "on") == 0 ? KR_PIN_ON : KR_PIN_OFF);
    }
    kr_model_params_t params;
    kr_model_params_init(&params);
    params.n_threads = cli_u32(options, CLI_OPT_threads);
    params.vocab_only = vocab_only;
    params.progress = on_progress;
    params.cache_dir = cli_given(options, CLI_OPT_no_cache) ? ""
                                                            : cli_text(options, CLI_OPT_cache_dir);
    params.cache_bytes_max = (uint64_t)cli_integer(options, CLI_OPT_cache_size) << 20;
    kr_error_t error;
    kr_error_init(&error);
    uint64_t start_ns = kri_clock_ns();
    kr_status_t status = kr_model_open(path, &params, &engine->model, &error);
    cli_progress_clear();
    if (status != KR_OK) return cli_report(CLI_PHASE_MODEL, status, &error);
    kr_model_info_init(&engine->info);
    status = kr_model_info(engine->model, &engine->info);
    if (status != KR_OK) return cli_report(CLI_PHASE_MODEL, status, NULL);
    engine->load_ms = (double)(kri_clock_ns() - start_ns) / 1e6;
    return 0;
}

void cli_session_params(const cli_options_t *options, uint32_t n_ctx, uint32_t n_rows_max,
                        kr_session_params_t *params) {
    kr_session_params_init(params);
    params->n_ctx = n_ctx;
    params->n_rows_max = n_rows_max;
    params->n_threads = cli_u32(options, CLI_OPT_threads);
    const char *kv = cli_text(options, CLI_OPT_kv);
    if (kv != NULL) {
        params->kv_dtype = strcmp(kv, "f32") == 0    ? KR_DTYPE_F32
                           : strcmp(kv, "int8") == 0 ? KR_DTYPE_I8
                           : strcmp(kv, "fp8") == 0  ? KR_DTYPE_F8
                                                     : KR_DTYPE_F16;
    }
    const char *attn_qk = cli_text(options, CLI_OPT_attn_qk);
    if (attn_qk != NULL) { /* the default depends on the KV cache's type and the level */
        params->attn_qk = strcmp(attn_qk, "int8") == 0    ? KR_ATTN_QK_INT8
                          : strcmp(attn_qk, "int16") == 0 ? KR_ATTN_QK_INT16
                                                          : KR_ATTN_QK_F32;
    }
    const char *invariant = cli_text(options, CLI_OPT_invariant);
    if (invariant != NULL) {
        params->invariant = strcmp(invariant, "on") == 0 ? KR_INVARIANT_ON : KR_INVARIANT_OFF;
    }
    params->isa = cli_text(options, CLI_OPT_isa);
    const char *device = cli_text(options, CLI_OPT_device);
    if (device != NULL && strcmp(device, "cuda") == 0) params->device = KR_DEVICE_CUDA;
}

int cli_engine_open_session(const cli_options_t *options, uint32_t n_ctx, uint32_t n_rows_max,
                            cli_engine_t *engine) {
    return cli_engine_open_seqs(options, n_ctx, 1, n_rows_max, engine);
}

int cli_engine_open_seqs(const cli_options_t *options, uint32_t n_ctx, uint32_t n_seqs,
                         uint32_t n_rows_max, cli_engine_t *engine) {
    kr_session_params_t params;
    cli_session_params(options, n_ctx, n_rows_max, &params);
    params.n_seqs = n_seqs;
    kr_error_t error;
    kr_error_init(&error);
    uint64_t start_ns = kri_clock_ns();
    kr_status_t status = kr_session_create(engine->model, &params, &engine->session, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    kr_session_info_init(&engine->session_info);
    status = kr_session_info(engine->session, &engine->session_info);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, NULL);
    engine->row = malloc(engine->info.n_vocab * sizeof *engine->row);
    if (engine->row == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    engine->load_ms += (double)(kri_clock_ns() - start_ns) / 1e6;
    cli_interrupt_watch(engine->session);
    return 0;
}

void cli_engine_close(cli_engine_t *engine) {
    cli_interrupt_watch(NULL);
    free(engine->row);
    kr_session_destroy(engine->session);
    kr_model_close(engine->model);
    memset(engine, 0, sizeof *engine);
}

float *cli_engine_rows(const cli_engine_t *engine, size_t n_rows, kr_tensor_t *tensor) {
    const uint64_t shape[2] = {n_rows, engine->info.n_vocab};
    kr_tensor_view_t view;
    kr_tensor_view_init(&view);
    if (kr_tensor_acquire(KR_DTYPE_F32, 2, shape, tensor, NULL) != KR_OK) return NULL;
    return kr_tensor_view(*tensor, &view) == KR_OK ? view.data : NULL;
}

kr_status_t cli_engine_decode(cli_engine_t *engine, const kr_token_t *tokens, uint32_t n_tokens,
                              const uint32_t *out_rows, uint32_t n_out_rows, float *logits,
                              kr_error_t *error) {
    if (cli_interrupted()) return KR_E_CANCELLED;
    kr_batch_seq_t seq = {0, n_tokens};
    kr_batch_t batch;
    kr_batch_init(&batch);
    batch.n_rows = n_tokens;
    batch.tokens = tokens;
    batch.seqs = &seq;
    batch.n_seqs = 1;
    batch.n_out_rows = n_out_rows;
    batch.out_rows = out_rows;
    return kr_session_decode(engine->session, &batch, logits, error);
}

/* ---- JSON --------------------------------------------------------------------------------- */

json_t *cli_json_real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *cli_json_text(const char *text, size_t n_bytes) {
    json_t *whole = json_stringn(text != NULL ? text : "", n_bytes);
    if (whole != NULL) return whole;
    kri_buffer_t clean;
    kri_buffer_init(&clean, n_bytes * 3 + 8);
    kr_status_t status = KR_OK;
    while (n_bytes > 0 && status == KR_OK) {
        size_t n = kri_utf8_valid_prefix(text, n_bytes);
        if (n > 0) status = kri_buffer_append(&clean, text, n);
        if (n < n_bytes && status == KR_OK) {
            status = kri_buffer_append(&clean, "\xef\xbf\xbd", 3);
            n++;
        }
        text += n;
        n_bytes -= n;
    }
    whole = json_stringn(clean.data != NULL ? clean.data : "", clean.n_bytes);
    kri_buffer_deinit(&clean);
    return whole != NULL ? whole : json_null();
}

json_t *cli_engine_json(const cli_engine_t *engine) {
    const kr_session_info_t *session = &engine->session_info;
    json_t *object = json_object();
    const char *name = engine->info.name != NULL ? engine->info.name : "";
    json_object_set_new(object, "model", cli_json_text(name, strlen(name)));
    json_object_set_new(object, "device",
                        json_string(session->device == KR_DEVICE_CUDA ? "cuda" : "cpu"));
    json_object_set_new(object, "isa", json_string(session->isa));
    json_object_set_new(object, "invariant", json_boolean(session->is_invariant));
    json_object_set_new(object, "threads", json_integer(session->n_threads));
    json_object_set_new(object, "threads_pinned", json_integer(kr_threads_pinned()));
    json_object_set_new(object, "commit", json_string(kr_commit()));
    json_object_set_new(object, "model_bytes", json_integer((json_int_t)engine->info.model_bytes));
    json_object_set_new(object, "bytes_per_token",
                        json_integer((json_int_t)engine->info.bytes_per_token));
    json_object_set_new(object, "kv", json_string(kr_dtype_name(session->kv_dtype)));
    json_object_set_new(object, "kv_bytes", json_integer((json_int_t)session->kv_bytes));
    json_object_set_new(object, "n_ctx", json_integer(session->n_ctx));
    json_object_set_new(object, "load_ms", cli_json_real(engine->load_ms));
    return object;
}

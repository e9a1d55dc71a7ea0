/* model_methods.c: load_model, unload_model, list_models, check_draft. */
#include <stdio.h>
#include <string.h>

#include "inner.h"

#define PATH_BYTES_MAX 4095u

/* ---- load, unload, list ---------------------------------------------------------------------- */

static const char *read_path(json_reader_t *reader) {
    const char *path = NULL;
    if (!json_read_string(reader, "local_path", 1, PATH_BYTES_MAX, &path, NULL)) return NULL;
    if (strstr(path, "..") != NULL || strchr(path, '~') != NULL) {
        json_fail(reader, "invalid_value", "local_path", "'local_path' may not hold '..' or '~'");
    }
    return path;
}

void rpc_method_load_model(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    rpc_load_t load = {0};
    int64_t n_ctx = 0;
    rpc_open(call, &reader, &mistake);
    load.name = rpc_read_model_id(&reader, "model_id");
    load.path = read_path(&reader);
    if (json_read_integer(&reader, "context_length", 1, 1000000, &n_ctx)) {
        load.n_ctx = (uint32_t)n_ctx;
    }
    (void)json_read_bool(&reader, "draft", &load.is_draft);
    /* What a file of weights settles by itself. */
    json_read_neutral(&reader, "revision", "\"main\"");
    json_read_neutral(&reader, "quantization", "\"none\"");
    json_read_neutral(&reader, "trust_remote_code", "false");
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    rpc_model_t *model = NULL;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = rpc_models_load(call->rpc, &load, &model, &error);
    if (status != KR_OK) {
        rpc_error_t failure;
        rpc_error_of_status(&failure, RPC_E_LOAD, status, &error);
        (void)snprintf(failure.model_id, sizeof failure.model_id, "%s", load.name);
        rpc_fail_error(call, &failure);
        return;
    }
    kri_buffer_t out;
    kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
    rpc_model_put(model, &out);
    rpc_model_release(model);
    rpc_reply(call, &out);
    kri_buffer_deinit(&out);
}

void rpc_method_unload_model(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    bool force = false, was_there = false;
    rpc_open(call, &reader, &mistake);
    const char *name = rpc_read_model_id(&reader, "model_id");
    (void)json_read_bool(&reader, "force", &force);
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = rpc_models_unload(call->rpc, name, force, &was_there, &error);
    if (status != KR_OK) rpc_fail_status(call, RPC_E_LOAD, status, &error);
    else rpc_reply_text(call, was_there ? "{\"success\":true,\"unloaded\":true}"
                                        : "{\"success\":true,\"unloaded\":false}");
}

void rpc_method_list_models(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    rpc_open(call, &reader, &mistake);
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    kri_buffer_t out;
    kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
    (void)kri_buffer_printf(&out, "{\"models\":[");
    rpc_models_put(call->rpc, true, &out);
    (void)kri_buffer_append(&out, "]}", 2);
    rpc_reply(call, &out);
    kri_buffer_deinit(&out);
}

/* ---- check_draft ----------------------------------------------------------------------------- */

static void put_side(const char *name, const rpc_model_t *model, kri_buffer_t *out) {
    const char *arch = model->info.arch != NULL ? model->info.arch : "unknown";
    (void)kri_buffer_printf(out, "\"%s\":{\"id\":", name);
    (void)json_put_string(out, model->name, strlen(model->name));
    (void)kri_buffer_printf(out, ",\"vocab_size\":%u,\"parameter_count\":%llu,\"architecture\":",
                            model->info.n_vocab, (unsigned long long)model->info.n_params);
    (void)json_put_string(out, arch, strlen(arch));
    (void)kri_buffer_append(out, "}", 1);
}

static void put_warning(kri_buffer_t *out, bool is_there, bool *is_first, const char *text) {
    if (!is_there) return;
    (void)kri_buffer_printf(out, "%s\"%s\"", *is_first ? "" : ",", text);
    *is_first = false;
}

static void put_report(const rpc_model_t *primary, const rpc_model_t *draft, kri_buffer_t *out) {
    const kr_model_info_t *a = &primary->info, *b = &draft->info;
    const bool fits = a->n_vocab == b->n_vocab;
    const bool is_same_arch = a->arch != NULL && b->arch != NULL && strcmp(a->arch, b->arch) == 0;
    const double ratio = a->n_params > 0 ? (double)b->n_params / (double)a->n_params : 1;
    const double speedup = 1 + 0.3 * (ratio < 1 ? 1 - ratio : 0);
    bool is_first = true;
    (void)kri_buffer_printf(out, "{\"compatible\":%s,\"errors\":[", fits ? "true" : "false");
    if (!fits) {
        (void)kri_buffer_printf(out, "\"the vocabularies differ: %u and %u tokens\"", a->n_vocab,
                                b->n_vocab);
    }
    (void)kri_buffer_printf(out, "],\"warnings\":[");
    put_warning(out, !is_same_arch, &is_first, "the architectures differ");
    put_warning(out, ratio >= 1, &is_first, "the draft is not smaller than the primary model");
    put_warning(out, a->token_bos != b->token_bos, &is_first, "the BOS tokens differ");
    put_warning(out, a->token_eos != b->token_eos, &is_first, "the EOS tokens differ");
    (void)kri_buffer_printf(out, "],\"details\":{");
    put_side("primary_model", primary, out);
    (void)kri_buffer_append(out, ",", 1);
    put_side("draft_model", draft, out);
    (void)kri_buffer_printf(out, ",\"performance_estimate\":{\"expected_speedup\":\"%.2fx\","
                            "\"size_ratio\":\"%.1f%%\",\"recommendation\":\"%s\"}}}", speedup,
                            100 * ratio, ratio < 0.5 ? "good: below half the primary's size"
                                                     : "a smaller draft would gain more");
}

void rpc_method_check_draft(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    rpc_open(call, &reader, &mistake);
    const char *primary_id = rpc_read_model_id(&reader, "primary_id");
    const char *draft_id = rpc_read_model_id(&reader, "draft_id");
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    rpc_model_t *primary = rpc_need_model(call, primary_id);
    if (primary == NULL) return;
    rpc_model_t *draft = rpc_need_model(call, draft_id);
    if (draft != NULL) {
        kri_buffer_t out;
        kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
        put_report(primary, draft, &out);
        rpc_reply(call, &out);
        kri_buffer_deinit(&out);
    }
    rpc_model_release(draft);
    rpc_model_release(primary);
}

void rpc_method_batch_check_draft(rpc_call_t *call) { rpc_run_requests(call, "check_draft"); }

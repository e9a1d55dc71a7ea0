/* inspect.c: `kr inspect`: what a file holds, and the memory it would take. Everything printed
 * from the file is cleaned of control characters. */
#include <stdio.h>
#include <string.h>

#include "load.h"
#include "options.h"
#include "report.h"
#include "terminal.h"

#define VALUE_BYTES_MAX 4096
#define LINE_VALUE_BYTES 160

typedef struct ledger_s {
    kr_session_info_t plan;
    uint64_t total_bytes;
} ledger_t;

static double megabytes(uint64_t n_bytes) { return (double)n_bytes / 1e6; }

static int plan(const cli_options_t *options, const cli_engine_t *engine, ledger_t *ledger) {
    kr_session_params_t params;
    kr_error_t error;
    kr_error_init(&error);
    cli_session_params(options, cli_u32(options, CLI_OPT_ctx), cli_u32(options, CLI_OPT_chunk),
                       &params);
    if (cli_given(options, CLI_OPT_inspect_parallel)) {
        params.n_seqs = cli_u32(options, CLI_OPT_inspect_parallel);
        params.prefix_cache = KR_PREFIX_CACHE_ON;
    }
    kr_session_info_init(&ledger->plan);
    kr_status_t status = kr_session_plan(engine->model, &params, &ledger->plan, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    const kr_session_info_t *p = &ledger->plan;
    ledger->total_bytes =
        p->device == KR_DEVICE_CPU
            ? engine->info.model_bytes + p->kv_bytes + p->scratch_bytes
            : p->device_weight_bytes + p->device_kv_bytes + p->scratch_bytes + p->device_work_bytes;
    return 0;
}

static void shape_text(const kr_tensor_info_t *tensor, char *out, size_t cap) {
    size_t n = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < tensor->n_dims && i < 4 && n < cap; i++) {
        n += (size_t)snprintf(out + n, cap - n, "%s%llu", i > 0 ? " x " : "",
                              (unsigned long long)tensor->shape[i]);
    }
}

/* ---- for people --------------------------------------------------------------------------- */

static void print_line(const char *key, const char *value) {
    char clean_key[LINE_VALUE_BYTES], clean_value[LINE_VALUE_BYTES];
    cli_clean_text(key, strlen(key), clean_key, sizeof clean_key);
    cli_clean_text(value, strlen(value), clean_value, sizeof clean_value);
    bool is_cut = strlen(value) >= sizeof clean_value;
    (void)cli_out_printf("  %-42s %s%s\n", clean_key, clean_value, is_cut ? "..." : "");
}

static void print_summary(const cli_engine_t *engine) {
    const kr_model_info_t *info = &engine->info;
    char window[48] = "";
    if (info->window > 0) snprintf(window, sizeof window, ", sliding window %u", info->window);
    print_line("name", info->name != NULL && info->name[0] != '\0' ? info->name : "(none)");
    print_line("format", info->format);
    print_line("architecture", info->arch);
    (void)cli_out_printf("  %-42s %.1f M\n", "parameters", (double)info->n_params / 1e6);
    (void)cli_out_printf("  %-42s %u layers, width %u, feed-forward %u\n", "shape",
                         info->n_layers, info->n_embd, info->n_ff);
    (void)cli_out_printf("  %-42s %u heads, %u KV heads of %u%s\n", "attention", info->n_heads,
                         info->n_kv_heads, info->head_dim, window);
    (void)cli_out_printf("  %-42s %u tokens, begin %d%s, end %d\n", "vocabulary", info->n_vocab,
                         (int)info->token_bos, info->add_bos != 0 ? " (added)" : "",
                         (int)info->token_eos);
    (void)cli_out_printf("  %-42s %u tokens\n", "trained context", info->n_ctx_train);
    (void)cli_out_printf("  %-42s %s\n", "chat template",
                         info->has_chat_template != 0 ? "yes" : "none (base model: kr run --raw)");
}

static void print_bytes(const char *key, uint64_t n_bytes) {
    (void)cli_out_printf("  %-42s %10.1f MB\n", key, megabytes(n_bytes));
}

static void print_kv(const kr_session_info_t *session, uint64_t n_bytes) {
    (void)cli_out_printf("  %-42s %10.1f MB  (%u x %u tokens, %s)\n", "KV cache",
                         megabytes(n_bytes), session->n_seqs, session->n_ctx,
                         kr_dtype_name(session->kv_dtype));
}

static void print_ledger(const cli_engine_t *engine, const ledger_t *ledger) {
    const kr_session_info_t *session = &ledger->plan;
    const bool is_device = session->device != KR_DEVICE_CPU;
    (void)cli_out_printf(is_device ? "\nMemory of the CUDA device\n" : "\nMemory\n");
    if (is_device) print_bytes("weights", session->device_weight_bytes);
    else print_bytes("model file", engine->info.model_bytes);
    print_kv(session, is_device ? session->device_kv_bytes : session->kv_bytes);
    print_bytes(is_device ? "activations, logits, tables" : "scratch", session->scratch_bytes);
    if (is_device) print_bytes("workspace of cuBLASLt", session->device_work_bytes);
    print_bytes("total", ledger->total_bytes);
    print_bytes("weights read per token", engine->info.bytes_per_token);
}

static void print_details(const cli_engine_t *engine) {
    static char value[VALUE_BYTES_MAX];
    const char *key = NULL;
    (void)cli_out_printf("\nMetadata\n");
    for (uint32_t i = 0; kr_model_meta(engine->model, i, &key, value, sizeof value) == KR_OK;
         i++) {
        if (strcmp(key, "tokenizer.chat_template") != 0) print_line(key, value);
    }
    (void)cli_out_printf("\nTensors\n");
    kr_tensor_info_t tensor;
    kr_tensor_info_init(&tensor);
    for (uint32_t i = 0; kr_model_tensor(engine->model, i, &tensor) == KR_OK; i++) {
        char shape[96], name[LINE_VALUE_BYTES];
        shape_text(&tensor, shape, sizeof shape);
        cli_clean_text(tensor.name, strlen(tensor.name), name, sizeof name);
        (void)cli_out_printf("  %-42s %-5s %-20s %10.3f MB\n", name, kr_dtype_name(tensor.dtype),
                             shape, megabytes(tensor.bytes));
    }
    const char *chat_template = engine->info.chat_template;
    if (engine->info.has_chat_template == 0 || chat_template == NULL) return;
    (void)cli_out_printf("\nChat template\n");
    (void)cli_out_text(chat_template, strlen(chat_template));
    (void)cli_out_write("\n", 1);
}

/* ---- for programs ------------------------------------------------------------------------- */

static json_t *text_json(const char *text) {
    return text != NULL ? cli_json_text(text, strlen(text)) : json_null();
}

static json_t *hyper_json(const kr_model_info_t *info) {
    json_t *object = json_object();
    json_object_set_new(object, "n_layers", json_integer(info->n_layers));
    json_object_set_new(object, "n_embd", json_integer(info->n_embd));
    json_object_set_new(object, "n_heads", json_integer(info->n_heads));
    json_object_set_new(object, "n_kv_heads", json_integer(info->n_kv_heads));
    json_object_set_new(object, "head_dim", json_integer(info->head_dim));
    json_object_set_new(object, "n_ff", json_integer(info->n_ff));
    json_object_set_new(object, "n_vocab", json_integer(info->n_vocab));
    json_object_set_new(object, "n_ctx_train", json_integer(info->n_ctx_train));
    json_object_set_new(object, "window", json_integer(info->window));
    json_object_set_new(object, "token_bos", json_integer(info->token_bos));
    json_object_set_new(object, "token_eos", json_integer(info->token_eos));
    json_object_set_new(object, "add_bos", json_boolean(info->add_bos != 0));
    return object;
}

static json_t *memory_json(const cli_engine_t *engine, const ledger_t *ledger) {
    const kr_session_info_t *session = &ledger->plan;
    json_t *object = json_object();
    json_object_set_new(object, "model_bytes",
                        json_integer((json_int_t)engine->info.model_bytes));
    json_object_set_new(object, "kv_bytes", json_integer((json_int_t)session->kv_bytes));
    json_object_set_new(object, "kv", json_string(kr_dtype_name(session->kv_dtype)));
    json_object_set_new(object, "n_ctx", json_integer(session->n_ctx));
    json_object_set_new(object, "n_seqs", json_integer(session->n_seqs));
    json_object_set_new(object, "scratch_bytes",
                        json_integer((json_int_t)session->scratch_bytes));
    if (session->device != KR_DEVICE_CPU) {
        json_object_set_new(object, "device", json_string("cuda"));
        json_object_set_new(object, "device_weight_bytes",
                            json_integer((json_int_t)session->device_weight_bytes));
        json_object_set_new(object, "device_kv_bytes",
                            json_integer((json_int_t)session->device_kv_bytes));
        json_object_set_new(object, "device_work_bytes",
                            json_integer((json_int_t)session->device_work_bytes));
    }
    json_object_set_new(object, "total_bytes", json_integer((json_int_t)ledger->total_bytes));
    json_object_set_new(object, "bytes_per_token",
                        json_integer((json_int_t)engine->info.bytes_per_token));
    return object;
}

static json_t *tensors_json(kr_model_t model) {
    json_t *list = json_array();
    kr_tensor_info_t tensor;
    kr_tensor_info_init(&tensor);
    for (uint32_t i = 0; kr_model_tensor(model, i, &tensor) == KR_OK; i++) {
        json_t *object = json_object(), *shape = json_array();
        for (uint32_t d = 0; d < tensor.n_dims && d < 4; d++) {
            json_array_append_new(shape, json_integer((json_int_t)tensor.shape[d]));
        }
        json_object_set_new(object, "name", text_json(tensor.name));
        json_object_set_new(object, "type", json_string(kr_dtype_name(tensor.dtype)));
        json_object_set_new(object, "shape", shape);
        json_object_set_new(object, "bytes", json_integer((json_int_t)tensor.bytes));
        json_array_append_new(list, object);
    }
    return list;
}

static void print_json(const cli_engine_t *engine, const ledger_t *ledger) {
    static char value[VALUE_BYTES_MAX];
    const char *key = NULL;
    const kr_model_info_t *info = &engine->info;
    json_t *object = json_object(), *meta = json_object();
    for (uint32_t i = 0; kr_model_meta(engine->model, i, &key, value, sizeof value) == KR_OK;
         i++) {
        json_object_set_new(meta, key, text_json(value));
    }
    json_object_set_new(object, "name", text_json(info->name));
    json_object_set_new(object, "format", text_json(info->format));
    json_object_set_new(object, "arch", text_json(info->arch));
    json_object_set_new(object, "n_params", json_integer((json_int_t)info->n_params));
    json_object_set_new(object, "hyper_parameters", hyper_json(info));
    json_object_set_new(object, "memory", memory_json(engine, ledger));
    json_object_set_new(object, "chat_template",
                        info->has_chat_template != 0 ? text_json(info->chat_template)
                                                     : json_null());
    json_object_set_new(object, "metadata", meta);
    json_object_set_new(object, "tensors", tensors_json(engine->model));
    (void)cli_out_json(object);
    json_decref(object);
}

int cli_inspect(const cli_options_t *options) {
    const char *name = options->n_positional > 0 ? options->positional[0] : NULL;
    const cli_value_t *flag = &options->values[CLI_OPT_model];
    if (name != NULL && cli_is_typed(flag)) {
        return cli_usage("model", "inspect takes one model, not '%.64s' and '%.64s'", flag->text,
                         name);
    }
    cli_engine_t engine;
    ledger_t ledger;
    memset(&engine, 0, sizeof engine);
    memset(&ledger, 0, sizeof ledger);
    /* A model named here wins over KR_MODEL, like every word of the line. */
    int failed = cli_engine_open_model(options, name, false, &engine);
    if (failed == 0) failed = plan(options, &engine, &ledger);
    if (failed == 0 && cli_given(options, CLI_OPT_json)) {
        print_json(&engine, &ledger);
    } else if (failed == 0) {
        print_summary(&engine);
        print_ledger(&engine, &ledger);
        print_details(&engine);
    }
    cli_engine_close(&engine);
    return failed;
}

/* server_setup.c: see server_setup.h. */
#include "server_setup.h"

#include <stdio.h>
#include <string.h>

#include "load.h"
#include "models.h"
#include "report.h"
#include "terminal.h"

/* "ALIAS", "FILE" or "NAME=FILE": what the model is called, and what is opened. What begins with
 * "/" or "." is a path, "=" or not. */
static int split_model(const char *item, char *name, size_t cap, const char **file) {
    const char *equals = strchr(item, '='), *begin = item;
    size_t n = strlen(item);
    if (equals != NULL && item[0] != '/' && item[0] != '.') {
        n = (size_t)(equals - item);
        *file = equals + 1;
    } else {
        *file = item;
        const char *last = strrchr(item, '/');
        if (last != NULL) begin = last + 1;
        n = strlen(begin);
        if (n > 5 && strcmp(begin + n - 5, ".gguf") == 0) n -= 5;
    }
    if (n == 0 || n >= cap || (*file)[0] == '\0') {
        return cli_usage("model", "-m wants a file, an alias or NAME=FILE, not '%.64s'", item);
    }
    memcpy(name, begin, n);
    name[n] = '\0';
    return 0;
}

int cli_server_find_model(const cli_options_t *options, const char *item, char *name,
                          size_t name_cap, char *path, size_t path_cap) {
    const char *file = NULL;
    const int failed = split_model(item, name, name_cap, &file);
    return failed != 0 ? failed : cli_engine_find_model(options, file, path, path_cap);
}

int cli_server_check_models(const cli_options_t *options) {
    char names[SERVER_MODELS_MAX][256], path[CLI_PATH_BYTES_MAX];
    uint32_t n_models = 0;
    for (size_t i = 0; i < options->n_items; i++) {
        const char *file = NULL;
        if (options->items[i].id != CLI_OPT_models) continue;
        if (n_models == SERVER_MODELS_MAX) {
            return cli_usage("model", "at most %d models: -m is given too often",
                             SERVER_MODELS_MAX);
        }
        char *name = names[n_models];
        int failed = split_model(options->items[i].text, name, sizeof names[0], &file);
        for (uint32_t k = 0; k < n_models && failed == 0; k++) {
            if (strcmp(names[k], name) != 0) continue;
            failed = cli_usage("model", "two models are called '%.64s': -m NAME=FILE names them",
                               name);
        }
        if (failed == 0) failed = cli_engine_find_model(options, file, path, sizeof path);
        if (failed != 0) return failed;
        n_models++;
    }
    if (n_models == 0) {
        return cli_usage("model", "which model? give -m FILE or an alias: smollm2 is the starter, "
                                  "`kr models` lists all");
    }
    return 0;
}

int cli_server_create(const cli_options_t *options, server_t **server) {
    kr_engine_params_t params;
    kr_engine_params_init(&params);
    params.n_threads = cli_u32(options, CLI_OPT_threads);
    params.max_stall_ms = cli_u32(options, CLI_OPT_max_stall_ms);
    params.queue_max = cli_u32(options, CLI_OPT_queue);
    params.queue_wait_ms_max = cli_u32(options, CLI_OPT_queue_wait_s) * 1000;
    /* Prompts; requests are counted by the server. One key does not fill the queue for all. */
    params.key_in_flight_max = cli_u32(options, CLI_OPT_parallel) + params.queue_max -
                               params.queue_max / 4;
    params.kv_bytes_max = (uint64_t)cli_integer(options, CLI_OPT_kv_size) << 20;
    kr_error_t error;
    kr_error_init(&error);
    const char *metrics = cli_text(options, CLI_OPT_metrics);
    if (metrics != NULL && strcmp(metrics, "on") == 0) {
        const kr_status_t status = kr_telemetry_create(&params.telemetry);
        if (status != KR_OK && status != KR_E_UNSUPPORTED) {
            return cli_report(CLI_PHASE_SETUP, status, NULL);
        }
    }
    const kr_status_t status = server_create(&params, server, &error);
    if (status != KR_OK) {
        kr_telemetry_destroy(params.telemetry);
        return cli_report(CLI_PHASE_SETUP, status, &error);
    }
    (*server)->deadline_ms = cli_u32(options, CLI_OPT_deadline_s) * 1000;
    return 0;
}

static int load_one(const cli_options_t *options, const char *item, server_t *server) {
    char name[256], path[CLI_PATH_BYTES_MAX];
    const char *file = NULL;
    int failed = split_model(item, name, sizeof name, &file);
    if (failed == 0) failed = cli_engine_find_model(options, file, path, sizeof path);
    if (failed != 0) return failed;
    cli_engine_t engine;
    failed = cli_engine_open_model(options, file, false, &engine);
    if (failed != 0) return failed;
    kr_session_params_t params;
    cli_session_params(options, cli_u32(options, CLI_OPT_server_ctx),
                       cli_u32(options, CLI_OPT_bench_chunk), &params);
    params.n_seqs = cli_u32(options, CLI_OPT_parallel);
    const bool has_cache = strcmp(cli_text(options, CLI_OPT_prefix_cache), "on") == 0;
    params.prefix_cache = has_cache ? KR_PREFIX_CACHE_ON : KR_PREFIX_CACHE_OFF;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = server_add_model(server, name, path, engine.model, &params, &error);
    cli_engine_close(&engine);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_SETUP, status, &error);
}

int cli_server_load(const cli_options_t *options, server_t *server) {
    for (size_t i = 0; i < options->n_items; i++) {
        if (options->items[i].id != CLI_OPT_models) continue;
        const int failed = load_one(options, options->items[i].text, server);
        if (failed != 0) return failed;
    }
    return 0;
}

/* runtime.c: `kr runtime`: the options become a JSON-RPC runtime. Over stdin and stdout the
 * protocol has a descriptor of its own before anything else happens; stdout becomes stderr, so that
 * nothing that is printed can stand between two messages. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "config.h"
#include "load.h"
#include "models.h"
#include "options.h"
#include "report.h"
#include "rpc/rpc.h"
#include "server/json.h"
#include "server_setup.h"
#include "terminal.h"

/* ---- descriptors ----------------------------------------------------------------------------- */

/* A descriptor below 3 that is closed would be given to the next file. */
static void fill_descriptors(void) {
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
        (void)open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY); /* takes the lowest number */
    }
}

static int take_stdio(rpc_params_t *params) {
    params->in_fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    params->out_fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    const int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    const bool is_done = params->in_fd >= 0 && params->out_fd >= 0 && null_fd >= 0 &&
                         dup2(null_fd, STDIN_FILENO) >= 0 &&
                         dup2(STDERR_FILENO, STDOUT_FILENO) >= 0;
    if (null_fd >= 0) (void)close(null_fd);
    if (is_done) return 0;
    return cli_fail(CLI_PHASE_SETUP, KR_E_IO, NULL, "stdin and stdout: %s", strerror(errno));
}

/* ---- what the runtime asks for --------------------------------------------------------------- */

static kr_status_t on_resolve(void *user, const char *name, char *path, size_t cap,
                              kr_error_t *error) {
    const cli_options_t *options = user;
    if (cli_model_find(name) == NULL) {
        (void)snprintf(path, cap, "%s", name); /* 255 bytes at most */
        return KR_OK;
    }
    if (cli_model_path(options, name, path, cap) == 0) return KR_OK;
    return KRI_FAIL(error, KR_E_NOT_FOUND, "model_id", "there is no folder of models");
}

static void put_name(kri_buffer_t *names, const char *name) {
    (void)kri_buffer_append(names, ",", names->n_bytes > 1 ? 1 : 0);
    (void)json_put_string(names, name, strlen(name));
}

/* The file's options against those of the start; of what may change: against what is in effect. */
static kr_status_t on_reload(void *user, rpc_t *rpc, kri_buffer_t *changed, kri_buffer_t *refused,
                             kr_error_t *error) {
    static _Atomic int64_t deadline_s = -1; /* in effect; -1: as at the start */
    const cli_options_t *options = user;
    cli_options_t fresh;
    if (cli_text(options, CLI_OPT_config) == NULL) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, NULL,
                        "there is no configuration file: start with --config");
    }
    const kr_status_t status = cli_config_read_again(options, &fresh, error);
    (void)kri_buffer_append(changed, "[", 1);
    (void)kri_buffer_append(refused, "[", 1);
    for (cli_option_id_t id = 0; status == KR_OK && id < CLI_N_OPTIONS; id++) {
        if (!cli_option_belongs(id, options->command)) continue;
        if (id == CLI_OPT_deadline_s) {
            const int64_t now_s = cli_integer(&fresh, id);
            const int64_t before_s = deadline_s >= 0 ? deadline_s : cli_integer(options, id);
            if (now_s == before_s) continue;
            deadline_s = now_s;
            rpc_set_deadline(rpc, (uint32_t)now_s * 1000);
            put_name(changed, cli_option_rows[id].long_name + 2);
        } else if (!cli_option_is_same(options, &fresh, id)) {
            put_name(refused, cli_option_rows[id].long_name + 2);
        }
    }
    (void)kri_buffer_append(changed, "]", 1);
    (void)kri_buffer_append(refused, "]", 1);
    cli_options_deinit(&fresh);
    return status;
}

/* ---- the command ----------------------------------------------------------------------------- */

static int fill_params(const cli_options_t *options, rpc_params_t *params) {
    kr_engine_params_init(&params->engine);
    params->engine.n_threads = cli_u32(options, CLI_OPT_threads);
    params->engine.max_stall_ms = cli_u32(options, CLI_OPT_max_stall_ms);
    params->engine.queue_max = cli_u32(options, CLI_OPT_queue);
    params->engine.queue_wait_ms_max = cli_u32(options, CLI_OPT_queue_wait_s) * 1000;
    params->engine.kv_bytes_max = (uint64_t)cli_integer(options, CLI_OPT_kv_size) << 20;
    const kr_status_t status = kr_telemetry_create(&params->engine.telemetry);
    if (status != KR_OK && status != KR_E_UNSUPPORTED) {
        return cli_report(CLI_PHASE_SETUP, status, NULL);
    }
    kr_model_params_init(&params->model);
    params->model.n_threads = cli_u32(options, CLI_OPT_threads);
    params->model.cache_dir = cli_given(options, CLI_OPT_no_cache)
                                  ? ""
                                  : cli_text(options, CLI_OPT_cache_dir);
    params->model.cache_bytes_max = (uint64_t)cli_integer(options, CLI_OPT_cache_size) << 20;
    cli_session_params(options, cli_u32(options, CLI_OPT_server_ctx),
                       cli_u32(options, CLI_OPT_bench_chunk), &params->session);
    params->session.n_seqs = cli_u32(options, CLI_OPT_parallel);
    const bool has_cache = strcmp(cli_text(options, CLI_OPT_prefix_cache), "on") == 0;
    params->session.prefix_cache = has_cache ? KR_PREFIX_CACHE_ON : KR_PREFIX_CACHE_OFF;
    params->socket_path = cli_text(options, CLI_OPT_socket);
    params->n_workers = cli_u32(options, CLI_OPT_workers);
    params->line_bytes_max = (size_t)cli_integer(options, CLI_OPT_message_size) << 20;
    params->deadline_ms = cli_u32(options, CLI_OPT_deadline_s) * 1000;
    params->resolve = on_resolve;
    params->reload = on_reload;
    params->is_interrupted = cli_interrupted;
    params->user = (void *)(uintptr_t)options;
    params->may_cut = true;
    return 0;
}

static int load_all(const cli_options_t *options, rpc_t *rpc) {
    for (size_t i = 0; i < options->n_items; i++) {
        char name[256], path[CLI_PATH_BYTES_MAX];
        if (options->items[i].id != CLI_OPT_models) continue;
        const int failed = cli_server_find_model(options, options->items[i].text, name,
                                                 sizeof name, path, sizeof path);
        if (failed != 0) return failed;
        kr_error_t error;
        kr_error_init(&error);
        const kr_status_t status = rpc_load(rpc, name, path, &error);
        if (status != KR_OK) return cli_report(CLI_PHASE_MODEL, status, &error);
    }
    return 0;
}

static int run(const cli_options_t *options, const rpc_params_t *params) {
    rpc_t *rpc = NULL;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = rpc_create(params, &rpc, &error);
    if (status != KR_OK) {
        const int exit_code = cli_report(CLI_PHASE_SETUP, status, &error);
        const bool is_bind = strcmp(error.param, "socket") == 0 && status != KR_E_INVALID_ARG;
        return is_bind ? CLI_EXIT_BIND : exit_code;
    }
    const int failed = load_all(options, rpc);
    if (failed == 0) {
        cli_note("kr runtime ready%s%s", params->socket_path != NULL ? ": listening on unix:" : "",
                 params->socket_path != NULL ? params->socket_path : "");
        rpc_run(rpc);
    }
    rpc_destroy(rpc);
    return failed;
}

static bool has_models(const cli_options_t *options) {
    for (size_t i = 0; i < options->n_items; i++) {
        if (options->items[i].id == CLI_OPT_models) return true;
    }
    return false;
}

int cli_runtime(const cli_options_t *options) {
    rpc_params_t params = {.in_fd = -1, .out_fd = -1};
    fill_descriptors();
    int failed = has_models(options) ? cli_server_check_models(options) : 0;
    if (failed == 0 && !cli_given(options, CLI_OPT_socket)) failed = take_stdio(&params);
    if (failed == 0) failed = fill_params(options, &params);
    if (failed != 0) return failed;
    const char *pin = cli_text(options, CLI_OPT_pin);
    if (pin != NULL && strcmp(pin, "auto") != 0) {
        (void)kr_threads_pin(strcmp(pin, "on") == 0 ? KR_PIN_ON : KR_PIN_OFF);
    }
    return run(options, &params);
}

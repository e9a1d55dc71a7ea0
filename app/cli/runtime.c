/* runtime.c: `kr runtime`: the options become a JSON-RPC runtime, in this program or another. Over
 * stdin and stdout the protocol has a descriptor of its own before anything else happens; stdout
 * becomes stderr, so that nothing that is printed can stand between two messages. */
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
#include "server/json.h"
#include "runtime.h"
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
    const cli_options_t *options = ((cli_runtime_t *)user)->options;
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
    cli_runtime_t *runtime = user;
    const cli_options_t *options = runtime->options;
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
            if (atomic_exchange(&runtime->deadline_s, now_s) == now_s) continue;
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

static int fill_params(cli_runtime_t *runtime, rpc_params_t *params) {
    const cli_options_t *options = runtime->options;
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
    params->is_interrupted = runtime->is_embedded ? NULL : cli_interrupted;
    params->user = runtime;
    params->may_cut = !runtime->is_embedded;
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

static bool has_models(const cli_options_t *options) {
    for (size_t i = 0; i < options->n_items; i++) {
        if (options->items[i].id == CLI_OPT_models) return true;
    }
    return false;
}

static int create(cli_runtime_t *runtime, const rpc_params_t *params) {
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = rpc_create(params, &runtime->rpc, &error);
    if (status == KR_OK) return 0;
    const int exit_code = cli_report(CLI_PHASE_SETUP, status, &error);
    const bool is_bind = strcmp(error.param, "socket") == 0 && status != KR_E_INVALID_ARG;
    return is_bind ? CLI_EXIT_BIND : exit_code;
}

static void close_client(const rpc_params_t *params) {
    if (params->in_fd >= 0) (void)close(params->in_fd);
    if (params->out_fd >= 0 && params->out_fd != params->in_fd) (void)close(params->out_fd);
}

int cli_runtime_create(cli_runtime_t *runtime, int in_fd, int out_fd) {
    const cli_options_t *options = runtime->options;
    rpc_params_t params = {.in_fd = in_fd, .out_fd = out_fd};
    atomic_init(&runtime->deadline_s, cli_integer(options, CLI_OPT_deadline_s));
    int failed = has_models(options) ? cli_server_check_models(options) : 0;
    if (failed == 0) failed = fill_params(runtime, &params);
    if (failed != 0) {
        close_client(&params);
        return failed;
    }
    /* auto is off here: a client computes on the same cores, and while a pinned thread waits behind
     * it all others wait for that one. */
    const char *pin = cli_text(options, CLI_OPT_pin);
    (void)kr_threads_pin(pin != NULL && strcmp(pin, "on") == 0 ? KR_PIN_ON : KR_PIN_OFF);
    return create(runtime, &params);
}

int cli_runtime_load(const cli_runtime_t *runtime) {
    return load_all(runtime->options, runtime->rpc);
}

int cli_runtime(const cli_options_t *options) {
    cli_runtime_t runtime = {.options = options};
    rpc_params_t params = {.in_fd = -1, .out_fd = -1};
    fill_descriptors();
    if (!cli_given(options, CLI_OPT_socket)) {
        const int failed = take_stdio(&params);
        if (failed != 0) return failed;
    }
    int failed = cli_runtime_create(&runtime, params.in_fd, params.out_fd);
    if (failed != 0) return failed;
    failed = cli_runtime_load(&runtime);
    if (failed == 0) {
        const char *path = cli_text(options, CLI_OPT_socket);
        cli_note("kr runtime ready%s%s", path != NULL ? ": listening on unix:" : "",
                 path != NULL ? path : "");
        rpc_run(runtime.rpc);
    }
    rpc_destroy(runtime.rpc);
    return failed;
}

/* serve.c: `kr serve`: the options become a server, which is bound before it loads: a port that is
 * taken is known at once, and probes are answered truly meanwhile. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "life.h"
#include "options.h"
#include "report.h"
#include "server/access.h"
#include "server/keys.h"
#include "server/prometheus.h"
#include "server/responses_store.h"
#include "server_setup.h"

#define ACCESS_NAMES_MAX 64

typedef struct access_lists_s {
    const char *hosts[ACCESS_NAMES_MAX], *origins[ACCESS_NAMES_MAX];
} access_lists_t;

/* ---- what is refused before anything is opened ----------------------------------------------- */

static bool wants_tcp(const cli_options_t *options) {
    return !cli_given(options, CLI_OPT_unix_socket) || cli_given(options, CLI_OPT_host) ||
           cli_given(options, CLI_OPT_port);
}

static int check_options(const cli_options_t *options) {
    const bool has_cert = cli_given(options, CLI_OPT_tls_cert);
    if (has_cert != cli_given(options, CLI_OPT_tls_key)) {
        return cli_usage("tls-cert", "--tls-cert and --tls-key go together");
    }
    const char *host = cli_text(options, CLI_OPT_host);
    if (wants_tcp(options) && !access_is_loopback(host) &&
        !cli_given(options, CLI_OPT_api_key_file)) {
        return cli_usage("host", "--host %.64s can be reached from other machines: that needs "
                                 "--api-key-file (docs/server.md)", host);
    }
    return cli_server_check_models(options);
}

static int read_access(const cli_options_t *options, access_lists_t *lists, server_t *server) {
    for (size_t i = 0; i < options->n_items; i++) {
        const cli_list_item_t *item = &options->items[i];
        const bool is_host = item->id == CLI_OPT_allowed_host;
        if (!is_host && item->id != CLI_OPT_allowed_origin) continue;
        const char *flag = is_host ? "--allowed-host" : "--allowed-origin";
        uint32_t *n = is_host ? &server->n_allowed_hosts : &server->n_allowed_origins;
        if (*n == ACCESS_NAMES_MAX) return cli_usage(flag, "%s is given more than 64 times", flag);
        if (is_host && !access_is_host_name(item->text)) {
            return cli_usage(flag, "%s wants a name without port, not '%.64s'", flag, item->text);
        }
        if (!is_host && !access_is_origin(item->text)) {
            return cli_usage(flag, "%s wants scheme://host[:port], not '%.64s'", flag, item->text);
        }
        (is_host ? lists->hosts : lists->origins)[(*n)++] = item->text;
    }
    server->allowed_hosts = lists->hosts;
    server->allowed_origins = lists->origins;
    return 0;
}

/* Keys, kept responses and counters: what a request needs from the first on. */
static int prepare(const cli_options_t *options, server_t *server) {
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = keys_create(cli_text(options, CLI_OPT_api_key_file),
                                           cli_u32(options, CLI_OPT_key_in_flight), &server->keys,
                                           &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    atomic_store(&server->log_prompts, cli_given(options, CLI_OPT_log_prompts));
    if (cli_integer(options, CLI_OPT_responses_max) > 0) {
        const kr_status_t made = responses_store_create(
            cli_u32(options, CLI_OPT_responses_max),
            (size_t)cli_integer(options, CLI_OPT_responses_size) << 20, &server->responses);
        if (made != KR_OK) return cli_report(CLI_PHASE_SETUP, made, NULL);
    }
    if (strcmp(cli_text(options, CLI_OPT_metrics), "on") != 0) return 0;
    server->counters = counters_create();
    return server->counters != NULL ? 0 : cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
}

/* ---- listening ------------------------------------------------------------------------------- */

static void read_limits(const cli_options_t *options, http_limits_t *limits) {
    http_limits_init(limits);
    limits->body_bytes = (uint64_t)cli_integer(options, CLI_OPT_max_body_mb) << 20;
    limits->head_ms = cli_u32(options, CLI_OPT_head_timeout_s) * 1000;
    limits->body_idle_ms = cli_u32(options, CLI_OPT_body_timeout_s) * 1000;
    limits->keep_alive_ms = cli_u32(options, CLI_OPT_keep_alive_s) * 1000;
    limits->write_stall_ms = cli_u32(options, CLI_OPT_write_timeout_s) * 1000;
    limits->heartbeat_ms = cli_u32(options, CLI_OPT_heartbeat_s) * 1000;
    limits->connections = cli_u32(options, CLI_OPT_max_connections);
    limits->connections_per_address = cli_u32(options, CLI_OPT_max_connections_per_address);
}

/* Through the log, like all that a server says once it runs: stderr may be blocked. */
#define say(server, ...) logger_line((server)->logger, LOG_KIND_LIFE, KR_LOG_INFO, __VA_ARGS__)

static void say_where(const cli_options_t *options, const server_t *server) {
    if (wants_tcp(options)) {
        const bool is_v6 = strchr(server->host, ':') != NULL;
        say(server, "listening on %s://%s%s%s:%u", server->is_tls ? "https" : "http",
                 is_v6 ? "[" : "", server->host, is_v6 ? "]" : "",
                 http_server_port(server->http));
    }
    if (cli_given(options, CLI_OPT_unix_socket)) {
        say(server, "listening on unix:%s", cli_text(options, CLI_OPT_unix_socket));
    }
}

static int listen_on(const cli_options_t *options, server_t *server) {
    const char *host = cli_text(options, CLI_OPT_host);
    http_params_t params = {.port = (uint16_t)cli_integer(options, CLI_OPT_port),
                            .host = wants_tcp(options) ? host : NULL,
                            .unix_path = cli_text(options, CLI_OPT_unix_socket),
                            .tls_cert = cli_text(options, CLI_OPT_tls_cert),
                            .tls_key = cli_text(options, CLI_OPT_tls_key),
                            .n_workers = cli_u32(options, CLI_OPT_workers)};
    read_limits(options, &params.limits);
    server->body_bytes_max = params.limits.body_bytes;
    server->is_tls = params.tls_cert != NULL;
    server->is_loopback = !wants_tcp(options) || access_is_loopback(host);
    (void)snprintf(server->host, sizeof server->host, "%s", wants_tcp(options) ? host : "");
    kr_error_t error;
    kr_error_init(&error);
    server->control = &life_control;
    const kr_status_t status = server_listen(server, &params, &error);
    if (status == KR_OK) {
        say_where(options, server);
        return 0;
    }
    const int exit_code = cli_report(CLI_PHASE_SETUP, status, &error);
    return status == KR_E_IO || status == KR_E_EXISTS ? CLI_EXIT_BIND : exit_code;
}

static int serve(const cli_options_t *options, server_t *server) {
    int failed = listen_on(options, server);
    if (failed == 0) failed = cli_server_load(options, server);
    if (failed != 0) return failed;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = server_begin(server, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    for (uint32_t i = 0; i < server->n_models; i++) {
        const server_model_t *model = &server->models[i];
        say(server, "model %s: %u sequences of %u tokens, kv %s, %s", model->name,
                 model->session.n_seqs, model->session.n_ctx,
                 kr_dtype_name(model->session.kv_dtype), model->session.isa);
    }
    return life_serve(server);
}

static int serve_all(const cli_options_t *options, logger_t *logger) {
    server_t *server = NULL;
    access_lists_t lists = {0};
    int failed = cli_server_create(options, &server);
    if (failed != 0) return failed;
    server->logger = logger;
    failed = read_access(options, &lists, server);
    if (failed == 0) failed = prepare(options, server);
    if (failed == 0) failed = serve(options, server);
    server_destroy(server);
    return failed;
}

int cli_serve(const cli_options_t *options) {
    int failed = check_options(options);
    if (failed != 0) return failed;
    logger_t *logger = NULL;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = life_begin(options, &logger, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    failed = serve_all(options, logger);
    life_end();
    return failed;
}

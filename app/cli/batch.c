/* batch.c: `kr batch`: a file of requests in, a file of answers out, as fast as the engine goes.
 * The files are checked before a model is loaded. */
#include <jansson.h>
#include <string.h>

#include "base/clock.h"
#include "options.h"
#include "report.h"
#include "server/batch.h"
#include "server_setup.h"
#include "terminal.h"

/* In flight: what runs, and as much again so that no sequence waits for the file. */
#define FLIGHTS_PER_SEQ 2u
#define WAIT_S_MAX 4000000 /* nobody waits for a request of a batch: 46 days */

static void on_progress(const batch_result_t *result) {
    cli_progress("batch", result->n_skipped + result->n_done, result->n_lines);
}

/* Which of the two files it was about decides the exit code. */
static int report(kr_status_t status, const kr_error_t *error) {
    const bool is_out = strcmp(error->param, "OUT") == 0;
    const bool is_form = status == KR_E_BAD_FORMAT || status == KR_E_EXISTS ||
                         status == KR_E_LIMIT || status == KR_E_INVALID_ARG ||
                         status == KR_E_CHANGED;
    const int exit_code = cli_report(is_out && !is_form ? CLI_PHASE_OUTPUT : CLI_PHASE_INPUT,
                                     status, error);
    return is_form ? CLI_EXIT_INPUT : exit_code;
}

/* A batch has no clients that wait: nothing is refused for lack of time or place in the queue, and
 * steps are as long as is best for all. */
static void adapt(const cli_options_t *given, cli_options_t *options) {
    *options = *given;
    options->values[CLI_OPT_queue].integer = 65536;
    options->values[CLI_OPT_queue_wait_s].integer = WAIT_S_MAX;
    options->values[CLI_OPT_deadline_s].integer = WAIT_S_MAX;
    options->values[CLI_OPT_max_stall_ms].integer = 60000;
    options->values[CLI_OPT_metrics].text = "off";
}

static int run(const cli_options_t *options, batch_t *batch, server_t *server) {
    kr_error_t error;
    kr_error_init(&error);
    int failed = cli_server_load(options, server);
    if (failed != 0) return failed;
    kr_status_t status = server_begin(server, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    const batch_params_t params = {
        .server = server, .n_in_flight = cli_u32(options, CLI_OPT_parallel) * FLIGHTS_PER_SEQ,
        .is_interrupted = cli_interrupted, .on_progress = on_progress};
    status = batch_run(batch, &params, &error);
    cli_progress_clear();
    return status == KR_OK ? 0 : report(status, &error);
}

static void print_result(const cli_options_t *options, const batch_result_t *result,
                         double seconds) {
    const unsigned long long n_lines = result->n_lines, n_skipped = result->n_skipped;
    const unsigned long long n_done = result->n_done, n_failed = result->n_failed;
    if (result->n_cut > 0) {
        cli_note("the last line of OUT was cut short, its %llu bytes are removed",
                 (unsigned long long)result->n_cut);
    }
    if (!cli_given(options, CLI_OPT_json)) {
        cli_note("%llu requests: %llu answered now, %llu of them with an error; %llu were done "
                 "before, %llu are left | %.1f s", n_lines, n_done, n_failed, n_skipped,
                 n_lines - n_done - n_skipped, seconds);
        return;
    }
    (void)cli_out_printf("{\"total\":%llu,\"completed\":%llu,\"failed\":%llu,\"skipped\":%llu,"
                         "\"left\":%llu,\"seconds\":%.3f}\n", n_lines, n_done - n_failed, n_failed,
                         n_skipped, n_lines - n_done - n_skipped, seconds);
}

int cli_batch(const cli_options_t *given) {
    if (given->n_positional != 2) {
        return cli_usage(NULL, "kr batch wants two files: IN.jsonl and OUT.jsonl");
    }
    const uint64_t begin_ns = kri_clock_ns();
    cli_options_t options;
    server_t *server = NULL;
    batch_t *batch = NULL;
    kr_error_t error;
    kr_error_init(&error);
    adapt(given, &options);
    int failed = cli_server_check_models(&options);
    if (failed != 0) return failed;
    const kr_status_t status = batch_open(given->positional[0], given->positional[1], &batch,
                                          &error);
    if (status != KR_OK) return report(status, &error);
    const batch_result_t *result = batch_result(batch);
    if (result->n_skipped < result->n_lines) failed = cli_server_create(&options, &server);
    if (failed == 0 && server != NULL) failed = run(&options, batch, server);
    server_destroy(server);
    if (failed == 0 || result->n_done > 0) {
        print_result(given, result, (double)(kri_clock_ns() - begin_ns) / 1e9);
    }
    batch_close(batch);
    return failed;
}

/* logits.c: `kr logits`: the raw logits of given tokens, written row by row into a temporary file
 * beside the target that takes its name only when whole. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "input.h"
#include "load.h"
#include "models.h"
#include "report.h"
#include "terminal.h"

#define ROWS_BYTES_MAX ((size_t)64 << 20)

typedef struct output_s {
    int fd;
    const char *path;
    char temporary[CLI_PATH_BYTES_MAX + 32];
} output_t;

static int refuse(const output_t *output, int error_number) {
    kr_status_t status = error_number == ENOSPC ? KR_E_NOSPC : KR_E_IO;
    return cli_fail(CLI_PHASE_OUTPUT, status, "--output", "cannot write %.800s: %s", output->path,
                    strerror(error_number));
}

static int open_output(const char *path, output_t *output) {
    struct stat about;
    output->fd = -1;
    output->path = path;
    /* A rename would replace a device or a folder's name. */
    if (stat(path, &about) == 0 && !S_ISREG(about.st_mode)) {
        return cli_fail(CLI_PHASE_OUTPUT, KR_E_INVALID_ARG, "--output",
                        "%.800s is not a regular file", path);
    }
    int n = snprintf(output->temporary, sizeof output->temporary, "%s.%ld.part", path,
                     (long)getpid());
    if (n < 0 || (size_t)n >= sizeof output->temporary) return refuse(output, ENAMETOOLONG);
    output->fd = open(output->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                      0666);
    return output->fd < 0 ? refuse(output, errno) : 0;
}

static int write_all(const output_t *output, const void *data, size_t n_bytes) {
    const char *next = data;
    while (n_bytes > 0) {
        ssize_t n = write(output->fd, next, n_bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return refuse(output, errno);
        next += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

/* Gives the file its name, or removes it when something failed before. */
static int close_output(output_t *output, int failed) {
    if (output->fd < 0) return failed;
    if (failed == 0 && fsync(output->fd) != 0) failed = refuse(output, errno);
    if (close(output->fd) != 0 && failed == 0) failed = refuse(output, errno);
    if (failed == 0 && rename(output->temporary, output->path) != 0) {
        failed = refuse(output, errno);
    }
    if (failed != 0) unlink(output->temporary);
    return failed;
}

/* Rows of one step: as asked for, but no more than fit the bound with this vocabulary. */
static uint32_t step_rows(const cli_options_t *options, const cli_engine_t *engine) {
    size_t n_fit = ROWS_BYTES_MAX / (engine->info.n_vocab * sizeof(float));
    uint32_t n_wanted = cli_u32(options, CLI_OPT_chunk);
    if (n_fit == 0) return 1;
    return n_wanted < n_fit ? n_wanted : (uint32_t)n_fit;
}

static int write_rows(cli_engine_t *engine, const cli_tokens_t *tokens, const output_t *output) {
    size_t row_bytes = engine->info.n_vocab * sizeof(float);
    size_t n_step = engine->session_info.n_rows_max;
    kr_tensor_t tensor = NULL;
    float *rows = cli_engine_rows(engine, n_step, &tensor);
    uint32_t *out_rows = malloc(n_step * sizeof *out_rows);
    int failed = rows == NULL || out_rows == NULL ? cli_report(CLI_PHASE_INPUT, KR_E_NOMEM, NULL)
                                                  : 0;
    for (size_t i = 0; i < n_step && failed == 0; i++) out_rows[i] = (uint32_t)i;
    for (size_t done = 0; done < tokens->n && failed == 0;) {
        uint32_t n = (uint32_t)(tokens->n - done < n_step ? tokens->n - done : n_step);
        kr_error_t error;
        kr_error_init(&error);
        cli_progress("logits", done, tokens->n);
        kr_status_t status = cli_engine_decode(engine, tokens->data + done, n, out_rows, n, rows,
                                               &error);
        if (status != KR_OK) failed = cli_report(CLI_PHASE_INPUT, status, &error);
        else failed = write_all(output, rows, n * row_bytes);
        done += n;
    }
    cli_progress_clear();
    free(out_rows);
    kr_tensor_release(tensor);
    return failed;
}

static void print_report(const cli_options_t *options, const cli_engine_t *engine, size_t n) {
    const char *path = cli_text(options, CLI_OPT_output);
    if (!cli_given(options, CLI_OPT_json)) {
        cli_note("%zu x %u float32 logits in %.800s | %s, %u threads", n, engine->info.n_vocab,
                 path, engine->session_info.isa, engine->session_info.n_threads);
        return;
    }
    json_t *object = cli_engine_json(engine);
    json_object_set_new(object, "n_tokens", json_integer((json_int_t)n));
    json_object_set_new(object, "n_vocab", json_integer(engine->info.n_vocab));
    json_object_set_new(object, "output", cli_json_text(path, strlen(path)));
    (void)cli_out_json(object);
    json_decref(object);
}

int cli_logits(const cli_options_t *options) {
    if (!cli_given(options, CLI_OPT_ids)) return cli_usage("--ids", "--ids is missing");
    if (!cli_given(options, CLI_OPT_output)) return cli_usage("--output", "-o FILE is missing");
    cli_engine_t engine;
    cli_tokens_t tokens = {NULL, 0};
    output_t output = {.fd = -1};
    memset(&engine, 0, sizeof engine);
    int failed = cli_input_parse_ids("--ids", cli_text(options, CLI_OPT_ids), &tokens);
    if (failed == 0 && tokens.n == 0) {
        failed = cli_fail(CLI_PHASE_INPUT, KR_E_INVALID_ARG, "--ids", "the prompt is empty");
    }
    if (failed == 0) failed = cli_engine_open_model(options, NULL, false, &engine);
    if (failed == 0) failed = cli_input_check_ids("--ids", &tokens, engine.info.n_vocab);
    if (failed == 0 && tokens.n > engine.info.n_ctx_train) {
        failed = cli_fail(CLI_PHASE_INPUT, KR_E_CONTEXT_LENGTH, "--ids",
                          "the prompt has %zu tokens, the model's context holds %u", tokens.n,
                          engine.info.n_ctx_train);
    }
    if (failed == 0) failed = open_output(cli_text(options, CLI_OPT_output), &output);
    if (failed == 0) {
        failed = cli_engine_open_session(options, (uint32_t)tokens.n,
                                         step_rows(options, &engine), &engine);
    }
    if (failed == 0) failed = write_rows(&engine, &tokens, &output);
    failed = close_output(&output, failed);
    if (failed == 0) print_report(options, &engine, tokens.n);
    cli_engine_close(&engine);
    free(tokens.data);
    return failed;
}

/* life.c: the main thread waits here for what signals and /admin ask for. A thread of its own takes
 * the signals with sigwait, so that the second one works whatever the main thread is doing. */
#include "life.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "config.h"
#include "report.h"
#include "server/job.h"
#include "server/keys.h"
#include "terminal.h"

#define POLL_MS 10        /* how often a drain looks whether all is answered */
#define LAST_WORDS_MS 5000 /* for error events to leave, once jobs were told to end */
#define FLUSH_MS 300      /* of the log, before a second signal ends the process */

typedef struct life_reload_s {
    uint32_t n_keys;
    const char *changed[CLI_N_OPTIONS]; /* keys of the configuration file, taken over now */
    const char *refused[CLI_N_OPTIONS]; /* that need a restart to change */
    uint32_t n_changed, n_refused;
} life_reload_t;

static struct {
    bool has_begun;
    pthread_t thread;
    sigset_t signals, mask_before;
    logger_t *logger;
    const cli_options_t *options; /* of the command line, with the file as it was at the start */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t wake;
    server_t *server;      /* while it serves */
    bool wants_stop, wants_reload, is_ending, is_lost;
    uint32_t n_signals;    /* SIGTERM and SIGINT */
    uint32_t drain_s;

    pthread_mutex_t reload_mutex; /* one reload at a time; guards: */
    cli_options_t last;           /* as reloaded last; values of reload_rows are in effect */
    bool has_last;
} life = {.mutex = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .reload_mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- signals ------------------------------------------------------------------------------ */

static void take_stop(int number) {
    pthread_mutex_lock(&life.mutex);
    const bool is_first = life.n_signals++ == 0;
    life.wants_stop = true;
    if (life.server != NULL) atomic_store(&life.server->is_draining, true);
    const bool is_loading = life.server == NULL;
    pthread_cond_broadcast(&life.wake);
    pthread_mutex_unlock(&life.mutex);
    if (is_first) {
        if (is_loading) cli_interrupt(number);
        return;
    }
    logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_WARN, "second signal: ending at once");
    logger_flush(life.logger, FLUSH_MS);
    _exit(128 + number);
}

static void take_reload(void) {
    pthread_mutex_lock(&life.mutex);
    life.wants_reload = true;
    pthread_cond_broadcast(&life.wake);
    pthread_mutex_unlock(&life.mutex);
}

static void *run(void *user) {
    (void)user;
    for (;;) {
        int number = 0;
        if (sigwait(&life.signals, &number) != 0) continue;
        pthread_mutex_lock(&life.mutex);
        const bool is_ending = life.is_ending;
        pthread_mutex_unlock(&life.mutex);
        if (is_ending) return NULL;
        if (number == SIGHUP) take_reload();
        else take_stop(number);
    }
}

/* A descriptor below 3 that is closed would be given to the next socket, and what is written to
 * stderr would go to a client. */
static void fill_descriptors(void) {
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
        (void)open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY); /* takes the lowest number */
    }
}

kr_status_t life_begin(const cli_options_t *options, logger_t **logger, kr_error_t *error) {
    fill_descriptors();
    life.options = options;
    life.drain_s = cli_u32(options, CLI_OPT_drain_s);
    life.logger = logger_create(STDERR_FILENO,
                                strcmp(cli_text(options, CLI_OPT_log_format), "json") == 0);
    if (life.logger == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the log");
    sigemptyset(&life.signals);
    sigaddset(&life.signals, SIGTERM);
    sigaddset(&life.signals, SIGINT);
    sigaddset(&life.signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &life.signals, &life.mask_before);
    if (pthread_create(&life.thread, NULL, run, NULL) != 0) {
        pthread_sigmask(SIG_SETMASK, &life.mask_before, NULL);
        logger_destroy(life.logger);
        life.logger = NULL;
        return KRI_FAIL(error, KR_E_IO, NULL, "cannot start a thread");
    }
    life.has_begun = true;
    kr_log_set(logger_on_library, KR_LOG_WARN, life.logger);
    *logger = life.logger;
    return KR_OK;
}

void life_end(void) {
    if (!life.has_begun) return;
    pthread_mutex_lock(&life.mutex);
    life.is_ending = true;
    pthread_mutex_unlock(&life.mutex);
    pthread_kill(life.thread, SIGHUP);
    pthread_join(life.thread, NULL);
    pthread_sigmask(SIG_SETMASK, &life.mask_before, NULL);
    kr_log_set(NULL, KR_LOG_WARN, NULL);
    logger_destroy(life.logger);
    if (life.has_last) cli_options_deinit(&life.last);
    life.logger = NULL;
    life.has_last = life.has_begun = false;
}

/* ---- reload ------------------------------------------------------------------------------- */

typedef struct reload_row_s {
    cli_option_id_t id;
    void (*apply)(server_t *server, const cli_options_t *options);
} reload_row_t;

static void apply_drain_s(server_t *server, const cli_options_t *options) {
    (void)server;
    pthread_mutex_lock(&life.mutex);
    life.drain_s = cli_u32(options, CLI_OPT_drain_s);
    pthread_mutex_unlock(&life.mutex);
}

static void apply_log_format(server_t *server, const cli_options_t *options) {
    logger_set_json(server->logger, strcmp(cli_text(options, CLI_OPT_log_format), "json") == 0);
}

static void apply_log_prompts(server_t *server, const cli_options_t *options) {
    atomic_store(&server->log_prompts, cli_given(options, CLI_OPT_log_prompts));
}

/* Options that may change while the server runs. */
static const reload_row_t reload_rows[] = {
    {CLI_OPT_drain_s, apply_drain_s},
    {CLI_OPT_log_format, apply_log_format},
    {CLI_OPT_log_prompts, apply_log_prompts},
};

static const reload_row_t *find_row(cli_option_id_t id) {
    for (size_t i = 0; i < sizeof reload_rows / sizeof reload_rows[0]; i++) {
        if (reload_rows[i].id == id) return &reload_rows[i];
    }
    return NULL;
}

/* Takes over what may change; what may not is compared with the start, so that it is named at each
 * reload as long as the file differs. */
static void apply(server_t *server, const cli_options_t *fresh, life_reload_t *reload) {
    const cli_options_t *last = life.has_last ? &life.last : life.options;
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        if (!cli_option_belongs(id, life.options->command)) continue;
        const reload_row_t *row = find_row(id);
        const char *name = cli_option_rows[id].long_name + 2;
        if (cli_option_is_same(row != NULL ? last : life.options, fresh, id)) continue;
        if (row != NULL) {
            row->apply(server, fresh);
            reload->changed[reload->n_changed++] = name;
        } else {
            reload->refused[reload->n_refused++] = name;
        }
    }
}

static kr_status_t read_all(server_t *server, life_reload_t *reload, kr_error_t *error) {
    cli_options_t fresh;
    kr_status_t status = cli_config_read_again(life.options, &fresh, error);
    if (status == KR_OK) status = keys_reload(server->keys, error);
    if (status != KR_OK) {
        cli_options_deinit(&fresh);
        return status;
    }
    apply(server, &fresh, reload);
    reload->n_keys = keys_count(server->keys);
    if (life.has_last) cli_options_deinit(&life.last);
    life.last = fresh;
    life.has_last = true;
    return KR_OK;
}

/* "a, b" of names, cut where it is full. */
static void join(const char *const *names, uint32_t n, char *out, size_t cap) {
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < n && used < cap; i++) {
        used += (size_t)snprintf(out + used, cap - used, "%s%s", i > 0 ? ", " : "", names[i]);
    }
}

static void warn_about_keys(server_t *server) {
    if (!keys_in_use(server->keys)) return;
    if (keys_count(server->keys) == 0) {
        logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_WARN,
                    "the key file holds no keys: every request is refused");
    }
    if (keys_is_world_readable(server->keys)) {
        logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_WARN,
                    "the key file can be read by everybody on this machine (chmod 600)");
    }
}

static void log_reload(kr_status_t status, const life_reload_t *reload, const kr_error_t *error) {
    char names[1024];
    if (status != KR_OK) {
        logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_ERROR,
                    "reload refused, nothing has changed: %s",
                    error->message[0] != '\0' ? error->message : kr_status_text(status));
        return;
    }
    join(reload->changed, reload->n_changed, names, sizeof names);
    logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_INFO, "reloaded: keys=%u changed=%s",
                reload->n_keys, reload->n_changed > 0 ? names : "none");
    if (reload->n_refused == 0) return;
    join(reload->refused, reload->n_refused, names, sizeof names);
    logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_WARN,
                "not changed, these need a restart: %s", names);
}

/* Reads the configuration file and the key file again. On an error nothing has changed. What
 * happened is logged too. */
static kr_status_t life_reload(life_reload_t *reload, kr_error_t *error) {
    memset(reload, 0, sizeof *reload);
    pthread_mutex_lock(&life.mutex);
    server_t *server = life.server;
    pthread_mutex_unlock(&life.mutex);
    if (server == NULL) return KRI_FAIL(error, KR_E_BUSY, NULL, "the server is not running yet");
    pthread_mutex_lock(&life.reload_mutex);
    const kr_status_t status = read_all(server, reload, error);
    pthread_mutex_unlock(&life.reload_mutex);
    log_reload(status, reload, error);
    if (status == KR_OK) warn_about_keys(server);
    return status;
}

static void put_names(kri_buffer_t *out, const char *field, const char *const *names, uint32_t n) {
    (void)kri_buffer_printf(out, ",\"%s\":[", field);
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) (void)kri_buffer_append(out, ",", 1);
        (void)json_put_string(out, names[i], strlen(names[i]));
    }
    (void)kri_buffer_append(out, "]", 1);
}

static kr_status_t control_reload(kri_buffer_t *out, kr_error_t *error) {
    life_reload_t reload;
    KR_TRY(life_reload(&reload, error));
    (void)kri_buffer_printf(out, "{\"status\":\"reloaded\",\"keys\":%u", reload.n_keys);
    put_names(out, "changed", reload.changed, reload.n_changed);
    put_names(out, "needs_restart", reload.refused, reload.n_refused);
    (void)kri_buffer_append(out, "}", 1);
    return out->status;
}

/* ---- the end ------------------------------------------------------------------------------ */

static uint32_t n_exchanges(const server_t *server) {
    http_stats_t stats;
    memset(&stats, 0, sizeof stats);
    http_server_stats(server->http, &stats);
    return stats.n_exchanges;
}

/* Waits until all requests are answered; false: some are left. */
static bool wait_for_answers(const server_t *server, uint64_t timeout_ms) {
    const uint64_t end_ns = kri_clock_ns() + timeout_ms * 1000000;
    const struct timespec pause = {0, POLL_MS * 1000000};
    while (n_exchanges(server) > 0) {
        if (kri_clock_ns() >= end_ns) return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

static void drain(server_t *server) {
    pthread_mutex_lock(&life.mutex);
    const uint32_t drain_s = life.drain_s;
    pthread_mutex_unlock(&life.mutex);
    atomic_store(&server->is_draining, true);
    http_server_drain(server->http);
    logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_INFO, "draining: requests=%u drain_s=%u",
                n_exchanges(server), drain_s);
    if (!wait_for_answers(server, (uint64_t)drain_s * 1000)) {
        logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_WARN,
                    "the drain time is over: ending requests=%u", n_exchanges(server));
        (void)kr_engine_drain(server->engine, 0); /* whoever comes now is told so */
        job_abort_all(KR_E_SHUTTING_DOWN);
        (void)wait_for_answers(server, LAST_WORDS_MS);
    }
    logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_INFO, "ended: requests_left=%u",
                n_exchanges(server));
}

static void end_soon(bool is_lost) {
    pthread_mutex_lock(&life.mutex);
    life.wants_stop = true;
    life.is_lost |= is_lost;
    if (life.server != NULL) atomic_store(&life.server->is_draining, true);
    pthread_cond_broadcast(&life.wake);
    pthread_mutex_unlock(&life.mutex);
}

static void life_drain(void) { end_soon(false); }

static void life_lose(void) {
    logger_line(life.logger, LOG_KIND_LIFE, KR_LOG_ERROR,
                "the device was lost: ending with exit code %d, for a new start", CLI_EXIT_RESTART);
    end_soon(true);
}

const server_control_t life_control = {.drain = life_drain, .lose = life_lose,
                                       .reload = control_reload};

int life_serve(server_t *server) {
    warn_about_keys(server);
    pthread_mutex_lock(&life.mutex);
    life.server = server;
    while (!life.wants_stop) {
        const bool wants_reload = life.wants_reload;
        life.wants_reload = false;
        if (!wants_reload) {
            pthread_cond_wait(&life.wake, &life.mutex);
            continue;
        }
        pthread_mutex_unlock(&life.mutex);
        life_reload_t reload;
        kr_error_t error;
        kr_error_init(&error);
        (void)life_reload(&reload, &error); /* logged there */
        pthread_mutex_lock(&life.mutex);
    }
    pthread_mutex_unlock(&life.mutex);
    drain(server);
    pthread_mutex_lock(&life.mutex);
    life.server = NULL;
    const int exit_code = life.is_lost ? CLI_EXIT_RESTART : CLI_EXIT_OK;
    pthread_mutex_unlock(&life.mutex);
    return exit_code;
}

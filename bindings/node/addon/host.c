/* host.c: see host.h. */
#define _GNU_SOURCE /* pthread_setname_np, MSG_CMSG_CLOEXEC */
#include "host.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/os.h"
#include "cli/report.h"
#include "cli/runtime.h"

#define CHUNK_BYTES 65536u
#define BATCH_BYTES ((size_t)1 << 20)  /* handed on at once; a longer line alone */
#define AHEAD_BYTES ((size_t)4 << 20)  /* handed on and not yet dealt with: then nothing is read */
#define LINE_BYTES_MAX ((size_t)1 << 30)
#define STACK_BYTES ((size_t)4 << 20)

/* The names of the commands are needed by the parser of options; none can be run from here. */
const cli_command_t cli_commands[CLI_N_COMMANDS] = {
#define KR_COMMAND(id, function, usage, n_positional, summary, examples) \
    [CLI_COMMAND_##id] = {#id, NULL, usage, n_positional, summary, examples},
#include "commands.def"
};

typedef struct got_s {
    int fd;
    uint64_t generation;
} got_t;

struct host_s {
    bool (*post)(void *user, host_event_t *event);
    void *user;
    char **args;               /* [n_args + 2], "kr", "runtime", ... */
    size_t n_args;
    int fd, runtime_fd, wake_fd;
    pthread_t runtime_thread, carrier;
    bool has_carrier;

    /* The runtime's thread; the carrier reads it once that has ended. */
    cli_options_t options;
    cli_runtime_t runtime;
    char why[1024];

    pthread_mutex_t mutex;     /* all below */
    bool is_ending, is_over;   /* is_over: nothing is written any more */
    bool is_running;           /* runtime.rpc is there */
    bool is_ready, is_ready_told;
    bool is_queued;            /* something waited since the last DRAINED */
    kri_buffer_t out;          /* [out_at, n_bytes) is to be written */
    size_t out_at;
    size_t ahead_bytes;
    int to_send[RPC_SHM_FDS_MAX];
    uint32_t n_to_send;
    got_t got[RPC_SHM_FDS_MAX];
    uint32_t n_got;
};

void host_event_free(host_event_t *event) {
    if (event == NULL) return;
    kri_buffer_deinit(&event->text);
    free(event);
}

/* ---- the runtime's thread -------------------------------------------------------------------- */

static bool enter(host_t *host) {
    (void)pthread_mutex_lock(&host->mutex);
    const bool goes_on = !host->is_ending;
    host->is_running = goes_on;
    (void)pthread_mutex_unlock(&host->mutex);
    return goes_on;
}

static void say_ready(host_t *host) {
    (void)pthread_mutex_lock(&host->mutex);
    host->is_ready = true;
    (void)pthread_mutex_unlock(&host->mutex);
    kri_event_fd_set(host->wake_fd);
}

static void leave(host_t *host) {
    (void)pthread_mutex_lock(&host->mutex);
    host->is_running = false;
    (void)pthread_mutex_unlock(&host->mutex);
}

/* Options, models, then all that clients ask for. Takes runtime_fd. */
static void serve(host_t *host) {
    int failed = cli_options_parse((int)host->n_args + 2, host->args, &host->options);
    if (failed == 0 && (cli_given(&host->options, CLI_OPT_help) ||
                        cli_given(&host->options, CLI_OPT_socket))) {
        failed = cli_usage(NULL, "--help and --socket have no meaning inside a process");
    }
    if (failed != 0) {
        (void)close(host->runtime_fd);
        return;
    }
    host->runtime.options = &host->options;
    host->runtime.is_embedded = true;
    if (cli_runtime_create(&host->runtime, host->runtime_fd, host->runtime_fd) != 0) return;
    if (enter(host)) {
        failed = cli_runtime_load(&host->runtime);
        if (failed == 0) {
            say_ready(host);
            rpc_run(host->runtime.rpc);
        }
    }
    leave(host);
    rpc_destroy(host->runtime.rpc);
}

static void *runtime_main(void *user) {
    host_t *host = user;
    sigset_t signals; /* the program's own threads take them */
    (void)sigfillset(&signals);
    (void)pthread_sigmask(SIG_SETMASK, &signals, NULL);
    cli_report_capture(host->why, sizeof host->why);
    serve(host);
    cli_options_deinit(&host->options);
    return NULL;
}

/* ---- the carrier ----------------------------------------------------------------------------- */

static bool post(host_t *host, host_event_kind_t kind, kri_buffer_t *text) {
    host_event_t *event = calloc(1, sizeof *event);
    if (event == NULL) return false;
    event->kind = kind;
    kri_buffer_init(&event->text, LINE_BYTES_MAX);
    if (text != NULL) {
        event->text = *text;
        kri_buffer_init(text, LINE_BYTES_MAX);
    }
    if (host->post(host->user, event)) return true;
    host_event_free(event);
    return false;
}

static void keep_fd(host_t *host, int fd) {
    rpc_shm_head_t head;
    bool is_kept = rpc_shm_load_head(fd, &head) == NULL;
    (void)pthread_mutex_lock(&host->mutex);
    is_kept = is_kept && host->n_got < RPC_SHM_FDS_MAX;
    if (is_kept) host->got[host->n_got++] = (got_t){.fd = fd, .generation = head.generation};
    (void)pthread_mutex_unlock(&host->mutex);
    if (!is_kept) (void)close(fd);
}

static ssize_t receive(host_t *host, char *data, size_t cap) {
    int fds[RPC_SHM_FDS_MAX];
    size_t n_fds = 0;
    const ssize_t n = rpc_shm_receive(host->fd, data, cap, fds, &n_fds);
    for (size_t i = 0; i < n_fds; i++) keep_fd(host, fds[i]);
    return n;
}

/* Hands on the whole lines of what has come; the rest stays. */
static bool hand_on(host_t *host, kri_buffer_t *in) {
    const char *last = in->n_bytes > 0 ? memrchr(in->data, '\n', in->n_bytes) : NULL;
    if (last == NULL) return true;
    const size_t n = (size_t)(last - in->data) + 1;
    kri_buffer_t rest;
    kri_buffer_init(&rest, LINE_BYTES_MAX);
    if (kri_buffer_append(&rest, in->data + n, in->n_bytes - n) != KR_OK) return false;
    in->n_bytes = n;
    (void)pthread_mutex_lock(&host->mutex);
    host->ahead_bytes += n;
    (void)pthread_mutex_unlock(&host->mutex);
    const bool is_posted = post(host, HOST_LINES, in);
    kri_buffer_deinit(in);
    *in = rest;
    return is_posted;
}

/* All that is there. False: it has ended, or nobody listens. */
static bool read_some(host_t *host, kri_buffer_t *in, char *chunk) {
    for (;;) {
        const ssize_t n = receive(host, chunk, CHUNK_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return hand_on(host, in);
        if (n <= 0) {
            (void)hand_on(host, in);
            return false;
        }
        if (kri_buffer_append(in, chunk, (size_t)n) != KR_OK) return false;
        if (in->n_bytes >= BATCH_BYTES) return hand_on(host, in);
    }
}

static ssize_t write_part_locked(host_t *host, const char *data, size_t n_bytes) {
    if (host->n_to_send == 0) return send(host->fd, data, n_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    const ssize_t n = rpc_shm_send(host->fd, data, n_bytes, host->to_send, host->n_to_send);
    if (n <= 0) return n;
    while (host->n_to_send > 0) (void)close(host->to_send[--host->n_to_send]);
    return n;
}

static size_t left_locked(const host_t *host) { return host->out.n_bytes - host->out_at; }

static void write_locked(host_t *host) {
    while (!host->is_over && left_locked(host) > 0) {
        const ssize_t n = write_part_locked(host, host->out.data + host->out_at,
                                            left_locked(host));
        if (n >= 0) host->out_at += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK) return;
        else if (errno != EINTR) host->is_over = true;
    }
    kri_buffer_clear(&host->out);
    host->out_at = 0;
}

typedef struct todo_s {
    bool reads, writes, says_ready, says_drained;
} todo_t;

static todo_t look(host_t *host) {
    (void)pthread_mutex_lock(&host->mutex);
    write_locked(host);
    const bool is_empty = left_locked(host) == 0;
    const todo_t todo = {.reads = host->ahead_bytes < AHEAD_BYTES || host->is_ending,
                         .writes = !is_empty,
                         .says_ready = host->is_ready && !host->is_ready_told,
                         .says_drained = host->is_queued && is_empty};
    if (todo.says_ready) host->is_ready_told = true;
    if (todo.says_drained) host->is_queued = false;
    (void)pthread_mutex_unlock(&host->mutex);
    return todo;
}

static void carry(host_t *host, kri_buffer_t *in, char *chunk) {
    for (bool goes_on = true; goes_on;) {
        const todo_t todo = look(host);
        if (todo.says_ready) (void)post(host, HOST_READY, NULL);
        if (todo.says_drained) (void)post(host, HOST_DRAINED, NULL);
        struct pollfd fds[] = {
            {.fd = host->wake_fd, .events = POLLIN},
            {.fd = todo.reads || todo.writes ? host->fd : -1,
             .events = (short)((todo.reads ? POLLIN : 0) | (todo.writes ? POLLOUT : 0))}};
        if (poll(fds, 2, -1) <= 0) continue;
        if (fds[0].revents != 0) kri_event_fd_clear(host->wake_fd);
        if (fds[1].revents & (POLLIN | POLLHUP | POLLERR)) goes_on = read_some(host, in, chunk);
    }
}

static void stop_writing(host_t *host) {
    (void)pthread_mutex_lock(&host->mutex);
    host->is_over = true;
    while (host->n_to_send > 0) (void)close(host->to_send[--host->n_to_send]);
    (void)pthread_mutex_unlock(&host->mutex);
}

static void *carrier_main(void *user) {
    host_t *host = user;
    sigset_t signals;
    (void)sigfillset(&signals);
    (void)pthread_sigmask(SIG_SETMASK, &signals, NULL);
    char *chunk = malloc(CHUNK_BYTES);
    kri_buffer_t in, why;
    kri_buffer_init(&in, LINE_BYTES_MAX);
    if (chunk != NULL) carry(host, &in, chunk);
    kri_buffer_deinit(&in); /* half a line at the end is nothing */
    free(chunk);
    stop_writing(host);
    host_end(host); /* where it was the carrier that could not go on */
    (void)pthread_join(host->runtime_thread, NULL);
    kri_buffer_init(&why, LINE_BYTES_MAX);
    (void)kri_buffer_append(&why, host->why, strlen(host->why));
    (void)post(host, HOST_CLOSED, &why);
    kri_buffer_deinit(&why);
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------ */

static bool start_thread(pthread_t *thread, void *(*main)(void *), void *user) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    (void)pthread_attr_setstacksize(&attributes, STACK_BYTES);
    const bool is_started = pthread_create(thread, &attributes, main, user) == 0;
    (void)pthread_attr_destroy(&attributes);
    return is_started;
}

static bool copy_args(host_t *host, const host_params_t *params) {
    host->args = calloc(params->n_args + 3, sizeof *host->args);
    if (host->args == NULL) return false;
    host->n_args = params->n_args;
    bool is_done = (host->args[0] = strdup("kr")) != NULL &&
                   (host->args[1] = strdup("runtime")) != NULL;
    for (size_t i = 0; i < params->n_args && is_done; i++) {
        is_done = (host->args[i + 2] = strdup(params->args[i])) != NULL;
    }
    return is_done;
}

/* Nothing of it runs any more. */
static void free_host(host_t *host) {
    for (size_t i = 0; host->args != NULL && i < host->n_args + 2; i++) free(host->args[i]);
    free(host->args);
    for (uint32_t i = 0; i < host->n_got; i++) (void)close(host->got[i].fd);
    for (uint32_t i = 0; i < host->n_to_send; i++) (void)close(host->to_send[i]);
    if (host->fd >= 0) (void)close(host->fd);
    kri_event_fd_destroy(host->wake_fd);
    kri_buffer_deinit(&host->out);
    (void)pthread_mutex_destroy(&host->mutex);
    free(host);
}

/* False: nothing runs. */
static bool start(host_t *host) {
    int pair[2];
    if (kri_event_fd_create(&host->wake_fd) != KR_OK) return false;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return false;
    host->fd = pair[0];
    host->runtime_fd = pair[1];
    if (!start_thread(&host->runtime_thread, runtime_main, host)) {
        (void)close(host->runtime_fd);
        return false;
    }
    host->has_carrier = start_thread(&host->carrier, carrier_main, host);
    if (host->has_carrier) return true;
    host_end(host);
    (void)pthread_join(host->runtime_thread, NULL);
    return false;
}

host_t *host_create(const host_params_t *params) {
    host_t *host = calloc(1, sizeof *host);
    if (host == NULL || pthread_mutex_init(&host->mutex, NULL) != 0) {
        free(host);
        return NULL;
    }
    host->fd = host->wake_fd = -1;
    host->post = params->post;
    host->user = params->user;
    kri_buffer_init(&host->out, LINE_BYTES_MAX);
    if (copy_args(host, params) && start(host)) return host;
    free_host(host);
    return NULL;
}

void host_end(host_t *host) {
    (void)pthread_mutex_lock(&host->mutex);
    host->is_ending = true;
    if (host->is_running) rpc_end(host->runtime.rpc);
    (void)pthread_mutex_unlock(&host->mutex);
    kri_event_fd_set(host->wake_fd);
}

void host_free(host_t *host) {
    if (host == NULL) return;
    host_end(host);
    (void)pthread_join(host->carrier, NULL);
    free_host(host);
}

/* ---- use ------------------------------------------------------------------------------------- */

bool host_send(host_t *host, const char *line, size_t n_bytes, size_t *n_left) {
    (void)pthread_mutex_lock(&host->mutex);
    bool is_taken = !host->is_over && !host->is_ending;
    if (is_taken && host->out_at > host->out.n_bytes / 2) {
        kri_buffer_consume(&host->out, host->out_at);
        host->out_at = 0;
    }
    const size_t n_before = host->out.n_bytes;
    is_taken = is_taken && kri_buffer_append(&host->out, line, n_bytes) == KR_OK &&
               kri_buffer_append(&host->out, "\n", 1) == KR_OK;
    if (!is_taken) { /* half a message would be worse than none */
        host->out.n_bytes = n_before;
        host->out.status = KR_OK;
    }
    write_locked(host);
    *n_left = left_locked(host);
    if (*n_left > 0) host->is_queued = true;
    (void)pthread_mutex_unlock(&host->mutex);
    if (*n_left > 0) kri_event_fd_set(host->wake_fd);
    return is_taken;
}

void host_taken(host_t *host, size_t n_bytes) {
    (void)pthread_mutex_lock(&host->mutex);
    const bool was_full = host->ahead_bytes >= AHEAD_BYTES;
    host->ahead_bytes -= n_bytes;
    const bool goes_on = was_full && host->ahead_bytes < AHEAD_BYTES;
    (void)pthread_mutex_unlock(&host->mutex);
    if (goes_on) kri_event_fd_set(host->wake_fd);
}

bool host_give(host_t *host, int fd) {
    (void)pthread_mutex_lock(&host->mutex);
    const bool is_taken = !host->is_over && !host->is_ending && host->n_to_send < RPC_SHM_FDS_MAX;
    if (is_taken) host->to_send[host->n_to_send++] = fd;
    (void)pthread_mutex_unlock(&host->mutex);
    if (!is_taken) (void)close(fd);
    return is_taken;
}

int host_take(host_t *host, uint64_t generation) {
    int fd = -1;
    (void)pthread_mutex_lock(&host->mutex);
    for (uint32_t i = 0; i < host->n_got && fd < 0; i++) {
        if (host->got[i].generation != generation) continue;
        fd = host->got[i].fd;
        host->got[i] = host->got[--host->n_got];
    }
    (void)pthread_mutex_unlock(&host->mutex);
    return fd;
}

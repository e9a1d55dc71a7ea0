/* terminal.c: stdout, progress line and interrupts of the program. Signal handling lives here and
 * not in the library, which installs none. The handler does three async-signal-safe things: count,
 * cancel the watched session (documented as safe), and _exit on the second signal. */
#include "terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "report.h"

#define PROGRESS_INTERVAL_NS 50000000u
#define PROGRESS_CELLS 24

static struct {
    bool in_terminal, out_terminal, err_terminal;
    kr_status_t out_status;
    int out_errno;
    bool progress_shown;
    uint64_t progress_ns;
} state;

/* Of a handler, or of the thread that takes the signals of a server. */
static atomic_int n_interrupts;
static atomic_int last_signal;
static _Atomic(kr_session_t) watched;

void cli_interrupt(int number) {
    last_signal = number;
    if (n_interrupts++ > 0) _exit(128 + number);
    kr_session_t session = atomic_load(&watched);
    if (session != NULL) kr_session_cancel(session);
}

static void on_interrupt(int number) {
    int saved_errno = errno;
    cli_interrupt(number);
    errno = saved_errno;
}

void cli_terminal_init(void) {
    state.in_terminal = isatty(STDIN_FILENO) == 1;
    state.out_terminal = isatty(STDOUT_FILENO) == 1;
    state.err_terminal = isatty(STDERR_FILENO) == 1;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* ulimit -f: an error of the write, as a full disk is */
    /* No SA_RESTART: a read at the chat prompt must come back. */
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool cli_stdin_is_terminal(void) { return state.in_terminal; }

/* ---- stdout ------------------------------------------------------------------------------- */

kr_status_t cli_out_write(const void *data, size_t n_bytes) {
    const char *next = data;
    while (n_bytes > 0 && state.out_status == KR_OK) {
        ssize_t n = write(STDOUT_FILENO, next, n_bytes);
        if (n >= 0) {
            next += n;
            n_bytes -= (size_t)n;
        } else if (errno == EPIPE) {
            state.out_status = KR_E_CANCELLED;
        } else if (errno != EINTR) {
            state.out_errno = errno;
            state.out_status = errno == ENOSPC ? KR_E_NOSPC : KR_E_IO;
        }
    }
    return state.out_status;
}

kr_status_t cli_out_printf(const char *format, ...) {
    char line[2048];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n < 0) return KR_E_INTERNAL;
    size_t n_bytes = (size_t)n < sizeof line ? (size_t)n : sizeof line - 1;
    return cli_out_write(line, n_bytes);
}

kr_status_t cli_out_json(const json_t *value) {
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    if (text == NULL) return KR_E_NOMEM;
    (void)cli_out_write(text, strlen(text));
    kr_status_t status = cli_out_write("\n", 1);
    free(text);
    return status;
}

kr_status_t cli_out_text(const char *text, size_t n_bytes) {
    if (!state.out_terminal) return cli_out_write(text, n_bytes);
    size_t begin = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        bool is_c0 = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
        bool is_c1 = byte == 0xc2 && i + 1 < n_bytes && (unsigned char)text[i + 1] < 0xa0;
        if (!is_c0 && !is_c1) continue;
        (void)cli_out_write(text + begin, i - begin);
        (void)cli_out_write("?", 1);
        if (is_c1) i++;
        begin = i + 1;
    }
    return cli_out_write(text + begin, n_bytes - begin);
}

bool cli_out_is_closed(void) { return state.out_status == KR_E_CANCELLED; }

int cli_out_finish(int exit_code) {
    cli_progress_clear();
    if (state.out_status == KR_OK && close(STDOUT_FILENO) != 0 && errno != EBADF) {
        state.out_errno = errno;
        state.out_status = errno == ENOSPC ? KR_E_NOSPC : KR_E_IO;
    }
    if (state.out_status == KR_OK || state.out_status == KR_E_CANCELLED) return exit_code;
    cli_report_set_json(false); /* stdout is what failed */
    return cli_fail(CLI_PHASE_OUTPUT, state.out_status, "stdout", "cannot write to stdout: %s",
                    strerror(state.out_errno));
}

void cli_clean_text(const char *text, size_t n_bytes, char *out, size_t cap) {
    size_t n_out = 0;
    for (size_t i = 0; i < n_bytes;) {
        unsigned char byte = (unsigned char)text[i];
        size_t n = 1;
        char single = byte == '\n' || byte == '\t' || byte == '\r' ? ' ' : '?';
        if (byte >= 0x80) {
            n = 2 + (size_t)(byte >= 0xe0) + (size_t)(byte >= 0xf0);
            bool is_c1 = byte == 0xc2 && i + 1 < n_bytes && (unsigned char)text[i + 1] < 0xa0;
            bool is_valid = n <= n_bytes - i && kri_utf8_valid_prefix(text + i, n) == n;
            if (!is_valid) n = 1;
            if (is_valid && !is_c1) single = '\0';
        } else if (byte >= 0x20 && byte != 0x7f) {
            single = '\0';
        }
        size_t n_needed = single != '\0' ? 1 : n;
        if (n_out + n_needed >= cap) break;
        if (single != '\0') out[n_out] = single;
        else memcpy(out + n_out, text + i, n);
        n_out += n_needed;
        i += n;
    }
    out[n_out] = '\0';
}

/* ---- progress ----------------------------------------------------------------------------- */

void cli_progress(const char *what, uint64_t done, uint64_t total) {
    if (!state.err_terminal || total == 0) return;
    uint64_t now = kri_clock_ns();
    if (state.progress_shown && now - state.progress_ns < PROGRESS_INTERVAL_NS) return;
    double part = done < total ? (double)done / (double)total : 1.0;
    char cells[PROGRESS_CELLS + 1];
    for (int i = 0; i < PROGRESS_CELLS; i++) cells[i] = i < part * PROGRESS_CELLS ? '#' : '.';
    cells[PROGRESS_CELLS] = '\0';
    fprintf(stderr, "\r%-10s [%s] %3.0f%%\033[K", what, cells, 100.0 * part);
    fflush(stderr);
    state.progress_shown = true;
    state.progress_ns = now;
}

void cli_progress_clear(void) {
    if (!state.progress_shown) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    state.progress_shown = false;
}

/* ---- interrupts --------------------------------------------------------------------------- */

void cli_interrupt_watch(kr_session_t session) { atomic_store(&watched, session); }
bool cli_interrupted(void) { return n_interrupts > 0; }
void cli_interrupt_reset(void) { n_interrupts = 0; }

int cli_interrupt_exit(void) {
    return last_signal == SIGTERM ? CLI_EXIT_TERMINATE : CLI_EXIT_INTERRUPT;
}

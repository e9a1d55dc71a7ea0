/* child.c: see child.h. The child leads a process group of its own, so that what it started dies
 * with it; between fork and exec only async-signal-safe calls are made. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* pipe2 */
#endif
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "terminal.h"

#define POLL_MS 100
#define TAIL_BYTES 512u

/* ---- words ---------------------------------------------------------------------------------- */

static kr_status_t put_byte(cli_words_t *words, char byte) {
    if (words->n_bytes == sizeof words->text) return KR_E_LIMIT;
    words->text[words->n_bytes++] = byte;
    return KR_OK;
}

static kr_status_t begin_word(cli_words_t *words) {
    if (words->n_words == CLI_WORDS_MAX || words->n_bytes == sizeof words->text) return KR_E_LIMIT;
    words->words[words->n_words++] = words->text + words->n_bytes;
    words->words[words->n_words] = NULL;
    return KR_OK;
}

kr_status_t cli_words_add(cli_words_t *words, const char *word) {
    KR_TRY(begin_word(words));
    for (size_t i = 0; i <= strlen(word); i++) KR_TRY(put_byte(words, word[i]));
    return KR_OK;
}

static bool is_blank(char byte) {
    return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
}

/* The word that begins at *line; moves *line to its end. */
static kr_status_t split_word(cli_words_t *words, const char **line) {
    char quote = '\0';
    const char *next = *line;
    KR_TRY(begin_word(words));
    for (; *next != '\0' && (quote != '\0' || !is_blank(*next)); next++) {
        if (*next == quote) {
            quote = '\0';
        } else if (quote == '\0' && (*next == '\'' || *next == '"')) {
            quote = *next;
        } else {
            if (*next == '\\' && quote != '\'') next++;
            if (*next == '\0') return KR_E_INVALID_ARG;
            KR_TRY(put_byte(words, *next));
        }
    }
    *line = next;
    return quote == '\0' ? put_byte(words, '\0') : KR_E_INVALID_ARG;
}

kr_status_t cli_words_split(cli_words_t *words, const char *line) {
    for (;;) {
        while (is_blank(*line)) line++;
        if (*line == '\0') return KR_OK;
        KR_TRY(split_word(words, &line));
    }
}

/* ---- the child ------------------------------------------------------------------------------ */

typedef struct child_s {
    pid_t pid;
    int out, err, exec; /* read ends: stdout, stderr, and the errno of a failed exec */
    char tail[TAIL_BYTES];
    size_t n_tail; /* last bytes of stderr */
} child_t;

static void close_pair(int pair[2]) {
    for (int i = 0; i < 2; i++) {
        if (pair[i] >= 0) (void)close(pair[i]);
    }
}

/* Never returns. The command dies with this program even when that is killed or loses its terminal
 * (`parent` tells when it was faster than prctl), or is ended by a second Ctrl-C. */
static void become(char *const *words, pid_t parent, int out, int err, int exec) {
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    (void)setpgid(0, 0);
    (void)signal(SIGPIPE, SIG_DFL);
    (void)signal(SIGXFSZ, SIG_DFL);
    if (null >= 0 && dup2(null, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0 &&
        dup2(err, STDERR_FILENO) >= 0) {
        (void)execvp(words[0], words);
    }
    int code = errno;
    ssize_t n = write(exec, &code, sizeof code);
    _exit(n < 0 ? 126 : 127);
}

static kr_status_t start(const cli_words_t *words, child_t *child, kr_error_t *error) {
    int out[2] = {-1, -1}, err[2] = {-1, -1}, exec[2] = {-1, -1};
    if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0 || pipe2(exec, O_CLOEXEC) != 0) {
        kr_status_t status = KRI_FAIL(error, KR_E_IO, NULL, "no pipe: %s", strerror(errno));
        close_pair(out);
        close_pair(err);
        close_pair(exec);
        return status;
    }
    const pid_t parent = getpid();
    child->pid = fork();
    if (child->pid == 0) become(words->words, parent, out[1], err[1], exec[1]);
    int code = errno;
    (void)close(out[1]);
    (void)close(err[1]);
    (void)close(exec[1]);
    child->out = out[0];
    child->err = err[0];
    child->exec = exec[0];
    if (child->pid > 0) {
        (void)setpgid(child->pid, child->pid); /* whoever comes first */
        return KR_OK;
    }
    (void)close(out[0]);
    (void)close(err[0]);
    (void)close(exec[0]);
    return KRI_FAIL(error, KR_E_NOMEM, NULL, "cannot start a process: %s", strerror(code));
}

static void keep_tail(child_t *child, const char *bytes, size_t n) {
    if (n > TAIL_BYTES) {
        bytes += n - TAIL_BYTES;
        n = TAIL_BYTES;
    }
    size_t n_keep = child->n_tail + n <= TAIL_BYTES ? child->n_tail : TAIL_BYTES - n;
    memmove(child->tail, child->tail + child->n_tail - n_keep, n_keep);
    memcpy(child->tail + n_keep, bytes, n);
    child->n_tail = n_keep + n;
}

/* Reads what there is; closes *fd at its end. */
static kr_status_t drain(child_t *child, int *fd, kri_buffer_t *out) {
    char bytes[16384];
    ssize_t n = read(*fd, bytes, sizeof bytes);
    if (n < 0) return errno == EINTR || errno == EAGAIN ? KR_OK : KR_E_IO;
    if (n == 0) {
        (void)close(*fd);
        *fd = -1;
        return KR_OK;
    }
    if (out != NULL) return kri_buffer_append(out, bytes, (size_t)n);
    keep_tail(child, bytes, (size_t)n);
    return KR_OK;
}

/* Until both ends are closed. */
static kr_status_t collect(child_t *child, uint64_t deadline_ns, kri_buffer_t *out) {
    while (child->out >= 0 || child->err >= 0) {
        if (cli_interrupted()) return KR_E_CANCELLED;
        if (kri_clock_ns() > deadline_ns) return KR_E_TIMEOUT;
        struct pollfd fds[2] = {{child->out, POLLIN, 0}, {child->err, POLLIN, 0}};
        if (poll(fds, 2, POLL_MS) < 0 && errno != EINTR) return KR_E_IO;
        if (child->out >= 0 && fds[0].revents != 0) KR_TRY(drain(child, &child->out, out));
        if (child->err >= 0 && fds[1].revents != 0) KR_TRY(drain(child, &child->err, NULL));
    }
    return KR_OK;
}

/* The end of the process itself: one that has closed its outputs may live on. */
static kr_status_t await(const child_t *child, uint64_t deadline_ns, int *wait_status) {
    for (;;) {
        pid_t pid = waitpid(child->pid, wait_status, WNOHANG);
        if (pid == child->pid) return KR_OK;
        if (pid < 0 && errno != EINTR) return KR_E_IO;
        if (cli_interrupted()) return KR_E_CANCELLED;
        if (kri_clock_ns() > deadline_ns) return KR_E_TIMEOUT;
        (void)poll(NULL, 0, 5);
    }
}

static void kill_group(const child_t *child) {
    int ignored;
    (void)kill(-child->pid, SIGKILL);
    (void)kill(child->pid, SIGKILL); /* it may not have become a leader yet */
    while (waitpid(child->pid, &ignored, 0) < 0 && errno == EINTR) {
    }
}

/* ": " and the last line of stderr, NUL-terminated in place; "" when there is none. */
static const char *last_line(child_t *child, const char **colon) {
    while (child->n_tail > 0 && is_blank(child->tail[child->n_tail - 1])) child->n_tail--;
    if (child->n_tail == TAIL_BYTES) child->n_tail--;
    child->tail[child->n_tail] = '\0';
    const char *newline = strrchr(child->tail, '\n');
    *colon = child->n_tail > 0 ? ": " : "";
    return newline != NULL ? newline + 1 : child->tail;
}

static kr_status_t explain(const cli_words_t *words, kr_status_t status,
                           uint32_t timeout_s, const kri_buffer_t *out, kr_error_t *error) {
    const char *name = words->words[0];
    switch (status) {
    case KR_E_TIMEOUT:
        return KRI_FAIL(error, status, NULL, "%s took more than %u seconds", name, timeout_s);
    case KR_E_LIMIT:
        return KRI_FAIL(error, status, NULL, "%s printed more than %zu bytes", name,
                        out->max_bytes);
    case KR_E_CANCELLED: return status;
    default: break;
    }
    return KRI_FAIL(error, status, NULL, "%s: %s", name, kr_status_text(status));
}

static kr_status_t judge(const cli_words_t *words, child_t *child, int wait_status,
                         kr_error_t *error) {
    const char *name = words->words[0], *colon = "", *line = last_line(child, &colon);
    int code = 0;
    if (read(child->exec, &code, sizeof code) == (ssize_t)sizeof code) {
        kr_status_t status = code == ENOENT || code == ENOTDIR ? KR_E_NOT_FOUND
                             : code == EACCES                  ? KR_E_PERMISSION
                                                               : KR_E_IO;
        return KRI_FAIL(error, status, NULL, "cannot run %s: %s", name, strerror(code));
    }
    if (WIFSIGNALED(wait_status)) {
        return KRI_FAIL(error, KR_E_CHILD_DIED, NULL, "%s was ended by signal %d%s%s", name,
                        WTERMSIG(wait_status), colon, line);
    }
    if (WEXITSTATUS(wait_status) != 0) {
        return KRI_FAIL(error, KR_E_CHILD_DIED, NULL, "%s ended with status %d%s%s", name,
                        WEXITSTATUS(wait_status), colon, line);
    }
    return KR_OK;
}

kr_status_t cli_child_run(const cli_words_t *words, uint32_t timeout_s, kri_buffer_t *out,
                          kr_error_t *error) {
    child_t child;
    int wait_status = 0;
    memset(&child, 0, sizeof child);
    uint64_t deadline_ns = kri_clock_ns() + timeout_s * (uint64_t)1000000000;
    KR_TRY(start(words, &child, error));
    kr_status_t status = collect(&child, deadline_ns, out);
    if (status == KR_OK) status = await(&child, deadline_ns, &wait_status);
    if (status != KR_OK) {
        kill_group(&child);
        status = explain(words, status, timeout_s, out, error);
    } else {
        status = judge(words, &child, wait_status, error);
    }
    if (child.out >= 0) (void)close(child.out);
    if (child.err >= 0) (void)close(child.err);
    (void)close(child.exec);
    return status;
}

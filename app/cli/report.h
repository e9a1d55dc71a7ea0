/* report.h: how the program says what went wrong: one line on stderr, with --json also the error
 * object on stdout, and an exit code from one table. Functions of the program that return int
 * return 0 or an exit code whose line has already been printed. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include <stdbool.h>
#include <stddef.h>

#include "kr.h"

enum {
    CLI_EXIT_OK = 0,
    CLI_EXIT_OTHER = 1,
    CLI_EXIT_USAGE = 2,
    CLI_EXIT_NOT_FOUND = 3, /* or unreadable */
    CLI_EXIT_MODEL = 4,     /* malformed, truncated, over a limit or unsupported */
    CLI_EXIT_DIGEST = 5,
    CLI_EXIT_MEMORY = 6,
    CLI_EXIT_DEVICE = 7,
    CLI_EXIT_IO = 9, /* disk full or I/O */
    CLI_EXIT_BIND = 10,     /* `kr serve`: cannot listen */
    CLI_EXIT_INPUT = 11,
    CLI_EXIT_TIMEOUT = 12,
    CLI_EXIT_LOSS = 13, /* `kr bench gate`: a stage is significantly slower */
    CLI_EXIT_BUG = 70,
    CLI_EXIT_RESTART = 75,
    CLI_EXIT_INTERRUPT = 130,
    CLI_EXIT_TERMINATE = 143
};

/* What was being done when a status came back: the same status means different things for a
 * model file, an option, a prompt and an output file. */
typedef enum cli_phase_e {
    CLI_PHASE_MODEL,
    CLI_PHASE_SETUP,
    CLI_PHASE_INPUT,
    CLI_PHASE_OUTPUT
} cli_phase_t;

/* With true, errors are also printed as a JSON object on stdout. */
void cli_report_set_json(bool json);

/* Errors of this thread go to text [cap] in place of stderr: for a program that embeds this one.
 * NULL: to stderr again. */
void cli_report_capture(char *text, size_t cap);

/* Reports a failed library call; returns the exit code. An empty error is described by status. */
int cli_report(cli_phase_t phase, kr_status_t status, const kr_error_t *error);
/* The same with a message of our own. param may be NULL. */
int cli_fail(cli_phase_t phase, kr_status_t status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* A mistake on the command line: exit 2 and a pointer to the help. */
int cli_usage(const char *param, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A remark on stderr, no error. */
void cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif

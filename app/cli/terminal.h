/* terminal.h: the program's ends: stdout, the progress line on stderr, interrupts. Terminal codes
 * are sent only to a terminal; everything sent to one is free of control characters. */
#ifndef CLI_TERMINAL_H
#define CLI_TERMINAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kr.h"

/* Looks what the three descriptors are, ignores SIGPIPE, catches SIGINT and SIGTERM. */
void cli_terminal_init(void);
bool cli_stdin_is_terminal(void);

/* Writes to stdout at once. KR_E_IO and KR_E_NOSPC have been reported by cli_out_finish only;
 * KR_E_CANCELLED: the reader has closed the pipe, nobody wants more. */
kr_status_t cli_out_write(const void *data, size_t n_bytes);
kr_status_t cli_out_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
kr_status_t cli_out_json(const json_t *value);
/* Result text of a model: control characters are made harmless when stdout is a terminal. */
kr_status_t cli_out_text(const char *text, size_t n_bytes);
bool cli_out_is_closed(void);
/* The exit code of the whole command: `exit_code`, or 9 when a write had failed. */
int cli_out_finish(int exit_code);

/* Copies text, bytes that are invalid UTF-8 or control characters replaced by '?' (newline and
 * tab by a space); cut to cap at a character border, always NUL-terminated. */
void cli_clean_text(const char *text, size_t n_bytes, char *out, size_t cap);

/* One line on stderr that is overwritten, if stderr is a terminal; at most 20 times a second. */
void cli_progress(const char *what, uint64_t done, uint64_t total);
void cli_progress_clear(void);

/* First SIGINT or SIGTERM: sets the flag and cancels the session being watched. Second: the
 * process ends at once with 130 or 143. */
void cli_interrupt_watch(kr_session_t session); /* NULL: none */
bool cli_interrupted(void);
/* As if this signal had come: for who takes signals himself. */
void cli_interrupt(int number);
void cli_interrupt_reset(void);
int cli_interrupt_exit(void); /* 130 or 143 by the signal seen */

#endif

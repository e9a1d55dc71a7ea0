/* child.h: runs another program to its end and keeps what it prints. No shell is involved. */
#ifndef CLI_CHILD_H
#define CLI_CHILD_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "kr.h"

#define CLI_WORDS_MAX 128u
#define CLI_WORD_BYTES_MAX 8192u

/* Words of a command line: blanks separate; '...' and "..." group; a backslash takes the next
 * character as it is, except inside '...'. Nothing else is special. `text` holds the words, and
 * words [n_words] point into it and end with NULL. */
typedef struct cli_words_s {
    char text[CLI_WORD_BYTES_MAX];
    size_t n_bytes;
    char *words[CLI_WORDS_MAX + 1];
    size_t n_words;
} cli_words_t;

/* Appends the words of a command line. KR_E_INVALID_ARG: an open quote or a last backslash.
 * KR_E_LIMIT: too many words or bytes. */
kr_status_t cli_words_split(cli_words_t *words, const char *line);
/* Appends one word as it is. KR_E_LIMIT. */
kr_status_t cli_words_add(cli_words_t *words, const char *word);

/* Runs words[0], found like a shell would (PATH), with stdin empty, and appends its stdout to out
 * (init'ed with a maximum). Its group of processes is killed after timeout_s seconds, when it
 * prints too much, or on an interrupt; it dies with this program.
 * KR_E_NOT_FOUND, KR_E_PERMISSION: cannot be started. KR_E_TIMEOUT. KR_E_LIMIT: too much output.
 * KR_E_CHILD_DIED: a signal or an exit status other than 0; the message ends with the last line of
 * its stderr. KR_E_CANCELLED. KR_E_NOMEM, KR_E_IO. */
kr_status_t cli_child_run(const cli_words_t *words, uint32_t timeout_s, kri_buffer_t *out,
                          kr_error_t *error);

#endif

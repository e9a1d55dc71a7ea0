/* input.h: what users type or pipe in, read with bounds and checked before use. */
#ifndef CLI_INPUT_H
#define CLI_INPUT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buffer.h"
#include "kr.h"
#include "options.h"

#define CLI_INPUT_BYTES_MAX ((size_t)16 << 20)

/* Text from `text` when not NULL, else the file `path` when not NULL, else stdin, into an empty
 * buffer; valid UTF-8 of at most CLI_INPUT_BYTES_MAX bytes. With drop_newline one newline at the
 * end of a file or stdin is dropped. Returns 0 or a reported exit code. */
int cli_input_read(const char *text, const char *path, bool drop_newline, kri_buffer_t *buffer);
/* KR_OK, or reports the byte offset of the first invalid byte and returns the exit code. */
int cli_input_check_utf8(const char *name, const char *text, size_t n_bytes);

typedef struct cli_tokens_s {
    kr_token_t *data; /* malloc'ed */
    size_t n;
} cli_tokens_t;

/* "1,2,3", also "[1, 2, 3]" as `kr tokenize` prints it. */
int cli_input_parse_ids(const char *name, const char *text, cli_tokens_t *tokens);
/* Every id below n_vocab, else exit 11 naming the first that is not. */
int cli_input_check_ids(const char *name, const cli_tokens_t *tokens, uint32_t n_vocab);

int cli_tokenize_text(kr_model_t model, const char *text, size_t n_bytes, uint32_t flags,
                      cli_tokens_t *tokens);
int cli_tokenize_chat(kr_model_t model, const kr_message_t *messages, size_t n_messages,
                      cli_tokens_t *tokens);

#endif

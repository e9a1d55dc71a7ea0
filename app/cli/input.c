/* input.c: prompts, files and token ids from outside. Nothing is repaired: invalid UTF-8, an
 * over-long text or a bad id is refused with its place. */
#include "input.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/os.h"
#include "base/utf8.h"
#include "report.h"
#include "terminal.h"

#define READ_BYTES 65536

static int refuse_long(const char *name) {
    return cli_fail(CLI_PHASE_INPUT, KR_E_LIMIT, name, "%s is over the limit of %zu bytes", name,
                    CLI_INPUT_BYTES_MAX);
}

static int append(kri_buffer_t *buffer, const char *name, const void *data, size_t n_bytes) {
    kr_status_t status = kri_buffer_append(buffer, data, n_bytes);
    if (status == KR_E_LIMIT) return refuse_long(name);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_INPUT, status, NULL);
}

static int read_stdin(kri_buffer_t *buffer) {
    char *chunk = malloc(READ_BYTES);
    if (chunk == NULL) return cli_report(CLI_PHASE_INPUT, KR_E_NOMEM, NULL);
    int failed = 0;
    while (failed == 0) {
        ssize_t n = read(STDIN_FILENO, chunk, READ_BYTES);
        if (n == 0) break;
        if (n > 0) {
            failed = append(buffer, "stdin", chunk, (size_t)n);
        } else if (errno == EINTR && cli_interrupted()) {
            failed = cli_report(CLI_PHASE_INPUT, KR_E_CANCELLED, NULL);
        } else if (errno != EINTR) {
            failed = cli_fail(CLI_PHASE_INPUT, KR_E_IO, "stdin", "cannot read stdin: %s",
                              strerror(errno));
        }
    }
    free(chunk);
    return failed;
}

static int read_path(const char *path, kri_buffer_t *buffer) {
    kr_error_t error;
    kr_error_init(&error);
    kri_map_t map;
    kr_status_t status = kri_map_open(path, &map, &error);
    if (status != KR_OK) {
        /* A folder or a FIFO is as unreadable as a missing file. */
        return cli_report(CLI_PHASE_MODEL, status, &error);
    }
    int failed = map.size > CLI_INPUT_BYTES_MAX ? refuse_long("file")
                                                : append(buffer, "file", map.data, map.size);
    kri_map_close(&map);
    return failed;
}

int cli_input_check_utf8(const char *name, const char *text, size_t n_bytes) {
    size_t n_valid = kri_utf8_valid_prefix(text, n_bytes);
    if (n_valid == n_bytes) return 0;
    return cli_fail(CLI_PHASE_INPUT, KR_E_INVALID_ARG, name,
                    "%s is not valid UTF-8: bad byte 0x%02x at offset %zu", name,
                    (unsigned)(unsigned char)text[n_valid], n_valid);
}

int cli_input_read(const char *text, const char *path, bool drop_newline, kri_buffer_t *buffer) {
    int failed = 0;
    const char *name = "stdin";
    if (text != NULL) {
        name = "prompt";
        failed = append(buffer, name, text, strlen(text));
    } else if (path != NULL) {
        name = "file";
        failed = read_path(path, buffer);
    } else {
        if (cli_stdin_is_terminal()) cli_note("reading from the terminal; end with Ctrl-D");
        failed = read_stdin(buffer);
    }
    if (failed != 0) return failed;
    bool has_newline = buffer->n_bytes > 0 && buffer->data[buffer->n_bytes - 1] == '\n';
    if (text == NULL && drop_newline && has_newline) buffer->data[--buffer->n_bytes] = '\0';
    return buffer->n_bytes == 0 ? 0 : cli_input_check_utf8(name, buffer->data, buffer->n_bytes);
}

/* ---- token ids ---------------------------------------------------------------------------- */

int cli_input_parse_ids(const char *name, const char *text, cli_tokens_t *tokens) {
    size_t n_text = strlen(text);
    const char *end = text + n_text;
    if (n_text >= 2 && text[0] == '[' && end[-1] == ']') {
        text++;
        end--;
    }
    size_t capacity = 1;
    for (const char *c = text; c < end; c++) capacity += *c == ',';
    tokens->n = 0;
    tokens->data = malloc(capacity * sizeof *tokens->data);
    if (tokens->data == NULL) return cli_report(CLI_PHASE_INPUT, KR_E_NOMEM, NULL);
    if (text == end) return 0;
    for (;;) {
        while (text < end && *text == ' ') text++;
        size_t n_word = 0;
        while (text + n_word < end && text[n_word] != ',' && text[n_word] != ' ') n_word++;
        char word[16] = "";
        int64_t id = -1;
        if (n_word < sizeof word) memcpy(word, text, n_word);
        if (n_word >= sizeof word || !cli_parse_integer(word, &id) || id < 0 || id > INT32_MAX) {
            return cli_usage(name, "%s: '%.*s' at position %zu is not a token id", name,
                             n_word < 40 ? (int)n_word : 40, text, tokens->n);
        }
        tokens->data[tokens->n++] = (kr_token_t)id;
        text += n_word;
        while (text < end && *text == ' ') text++;
        if (text == end) return 0;
        if (*text != ',') return cli_usage(name, "%s: ids are separated by commas", name);
        text++;
    }
}

int cli_input_check_ids(const char *name, const cli_tokens_t *tokens, uint32_t n_vocab) {
    for (size_t i = 0; i < tokens->n; i++) {
        if (tokens->data[i] >= 0 && (uint32_t)tokens->data[i] < n_vocab) continue;
        return cli_fail(CLI_PHASE_INPUT, KR_E_INVALID_ARG, name,
                        "%s: id %d at position %zu is outside the vocabulary of %u tokens", name,
                        (int)tokens->data[i], i, n_vocab);
    }
    return 0;
}

/* ---- tokenizing --------------------------------------------------------------------------- */

typedef struct source_s {
    kr_model_t model;
    const char *text; /* NULL: messages */
    size_t n_bytes;
    uint32_t flags;
    const kr_message_t *messages;
    size_t n_messages;
} source_t;

static kr_status_t tokenize(const source_t *source, kr_token_t *data, size_t capacity,
                            size_t *n_tokens, kr_error_t *error) {
    if (source->text != NULL) {
        return kr_model_tokenize(source->model, source->text, source->n_bytes, source->flags,
                                 data, capacity, n_tokens, error);
    }
    return kr_model_chat_tokenize(source->model, source->messages, source->n_messages, 1, data,
                                  capacity, n_tokens, error);
}

/* A guess that is nearly always enough, then the exact number: the text is tokenized twice only
 * when it has unusually many tokens per byte. */
static int tokenize_all(const source_t *source, size_t n_bytes, cli_tokens_t *tokens) {
    size_t capacity = n_bytes / 2 + 256;
    kr_status_t status = KR_E_LIMIT;
    kr_error_t error;
    tokens->data = NULL;
    for (int attempt = 0; attempt < 2 && status == KR_E_LIMIT; attempt++) {
        free(tokens->data);
        tokens->data = malloc(capacity * sizeof *tokens->data);
        if (tokens->data == NULL) return cli_report(CLI_PHASE_INPUT, KR_E_NOMEM, NULL);
        kr_error_init(&error);
        size_t n_tokens = 0;
        status = tokenize(source, tokens->data, capacity, &n_tokens, &error);
        tokens->n = n_tokens;
        if (status == KR_E_LIMIT && n_tokens <= capacity) break; /* another limit */
        capacity = n_tokens;
    }
    if (status == KR_OK) return 0;
    free(tokens->data);
    tokens->data = NULL;
    return cli_report(CLI_PHASE_INPUT, status, &error);
}

int cli_tokenize_text(kr_model_t model, const char *text, size_t n_bytes, uint32_t flags,
                      cli_tokens_t *tokens) {
    source_t source = {.model = model, .text = text != NULL ? text : "", .n_bytes = n_bytes,
                       .flags = flags};
    return tokenize_all(&source, n_bytes, tokens);
}

int cli_tokenize_chat(kr_model_t model, const kr_message_t *messages, size_t n_messages,
                      cli_tokens_t *tokens) {
    source_t source = {.model = model, .messages = messages, .n_messages = n_messages};
    size_t n_bytes = 0;
    for (size_t i = 0; i < n_messages; i++) n_bytes += messages[i].content_bytes;
    return tokenize_all(&source, n_bytes, tokens);
}

/* fuzz_rpc.c: the runtime's lines and messages. The first byte chooses the limit of a line and how
 * the rest is cut: any cut must give the same lines. Each line is read as messages; what is refused
 * must say so, and an id must come back as the same value. */
#include <stdlib.h>
#include <string.h>

#include "rpc/frame.h"
#include "rpc/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct seen_s {
    uint64_t hash;
    uint32_t n_lines, n_too_long;
    size_t line_bytes_max;
    int reads;                 /* messages too */
} seen_t;

static void add(seen_t *seen, const char *text, size_t n_bytes, uint8_t kind) {
    seen->hash = (seen->hash ^ kind) * 1099511628211u;
    for (size_t i = 0; i < n_bytes; i++) {
        seen->hash = (seen->hash ^ (uint8_t)text[i]) * 1099511628211u;
    }
}

static void check_error(const rpc_error_t *error) {
    kri_buffer_t out;
    json_t *object = NULL;
    json_mistake_t mistake = {0};
    kri_buffer_init(&out, 1 << 20);
    if (error->message[0] == '\0' || error->code >= 0) abort();
    rpc_error_put(error, &out);
    if (out.status == KR_OK && !json_parse(out.data, out.n_bytes, &object, &mistake)) abort();
    json_decref(object);
    kri_buffer_deinit(&out);
}

static void check_id(const char *id, const json_t *value) {
    char text[4096];
    json_t *object = NULL;
    json_mistake_t mistake = {0};
    const int n = snprintf(text, sizeof text, "{\"id\":%s}", id);
    if (n < 0 || (size_t)n >= sizeof text) abort();
    if (strchr(id, '\n') != NULL || !json_parse(text, (size_t)n, &object, &mistake)) abort();
    if (value != NULL && !json_equal(json_object_get(object, "id"), value)) abort();
    json_decref(object);
}

static void read_one(json_t *value) {
    rpc_message_t message;
    rpc_error_t error;
    if (!rpc_message_read(value, &message, &error)) {
        check_error(&error);
    } else {
        if (!json_is_object(message.params) || strlen(message.method) > 128) abort();
        if (message.has_id != (message.id != NULL)) abort();
    }
    if (message.id != NULL) check_id(message.id, json_object_get(value, "id"));
    rpc_message_deinit(&message);
}

static void read_line(const char *text, size_t n_bytes) {
    json_t *root = NULL;
    rpc_error_t error;
    if (!rpc_line_parse(text, n_bytes, &root, &error)) {
        check_error(&error);
        return;
    }
    if (json_is_object(root)) read_one(root);
    for (size_t i = 0; json_is_array(root) && i < json_array_size(root); i++) {
        read_one(json_array_get(root, i));
    }
    json_decref(root);
}

static void on_line(void *user, kri_buffer_t *line) {
    seen_t *seen = user;
    if (line->n_bytes > seen->line_bytes_max || memchr(line->data, '\n', line->n_bytes)) abort();
    seen->n_lines++;
    add(seen, line->data, line->n_bytes, 1);
    if (!seen->reads) return;
    read_line(line->data, line->n_bytes);
    if (seen->n_lines % 2) return;
    kri_buffer_deinit(line); /* as a sink that keeps it */
    kri_buffer_init(line, seen->line_bytes_max);
}

static void on_too_long(void *user, const char *prefix, size_t n_bytes) {
    seen_t *seen = user;
    char id[2048];
    if (n_bytes > RPC_PREFIX_BYTES) abort();
    rpc_guess_id(prefix, n_bytes, id, sizeof id);
    check_id(id, NULL);
    seen->n_too_long++;
    add(seen, prefix, n_bytes, 2);
}

static seen_t feed(const char *text, size_t n_bytes, size_t line_bytes_max, uint32_t cut,
                   int reads) {
    seen_t seen = {.line_bytes_max = line_bytes_max, .reads = reads, .hash = 1469598103934665603u};
    const rpc_frame_sink_t sink = {.line = on_line, .too_long = on_too_long, .user = &seen};
    rpc_frames_t frames;
    rpc_frames_init(&frames, line_bytes_max);
    for (size_t at = 0; at < n_bytes;) {
        size_t n = n_bytes - at;
        if (cut > 0) {
            cut = cut * 1103515245u + 12345u;
            const size_t n_cut = 1 + (cut >> 16) % 37;
            if (n_cut < n) n = n_cut;
        }
        rpc_frames_feed(&frames, text + at, n, &sink);
        at += n;
    }
    rpc_frames_deinit(&frames);
    return seen;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    const size_t line_bytes_max = (size_t)32 << (2 * (data[0] & 7));
    char *text = malloc(size);
    if (text == NULL) return 0;
    memcpy(text, data + 1, size - 1);
    const seen_t whole = feed(text, size - 1, line_bytes_max, 0, 1);
    const seen_t parts = feed(text, size - 1, line_bytes_max, 1u + data[0], 0);
    if (whole.hash != parts.hash || whole.n_lines != parts.n_lines ||
        whole.n_too_long != parts.n_too_long) abort();
    free(text);
    return 0;
}

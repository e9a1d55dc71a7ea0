/* frame.c: see frame.h. */
#include "frame.h"

#include <string.h>

void rpc_frames_init(rpc_frames_t *frames, size_t line_bytes_max) {
    frames->line_bytes_max = line_bytes_max;
    frames->is_skipping = false;
    kri_buffer_init(&frames->line, line_bytes_max);
}

void rpc_frames_deinit(rpc_frames_t *frames) { kri_buffer_deinit(&frames->line); }

static bool is_blank(const kri_buffer_t *line) {
    for (size_t i = 0; i < line->n_bytes; i++) {
        const char byte = line->data[i];
        if (byte != ' ' && byte != '\t' && byte != '\r') return false;
    }
    return true;
}

/* Part of a line. What the limit leaves room for is kept, so that a prefix of the same length is
 * reported however the line was cut. */
static void add(rpc_frames_t *frames, const char *data, size_t n_bytes,
                const rpc_frame_sink_t *sink) {
    if (frames->is_skipping) return;
    kri_buffer_t *line = &frames->line;
    if (kri_buffer_append(line, data, n_bytes) == KR_OK) return;
    const size_t n_max = frames->line_bytes_max < RPC_PREFIX_BYTES ? frames->line_bytes_max
                                                                   : RPC_PREFIX_BYTES;
    const size_t n_room = line->n_bytes < n_max ? n_max - line->n_bytes : 0;
    (void)kri_buffer_append(line, data, n_room < n_bytes ? n_room : n_bytes);
    const size_t n = line->n_bytes < n_max ? line->n_bytes : n_max;
    frames->is_skipping = true;
    sink->too_long(sink->user, line->data != NULL ? line->data : "", n);
    kri_buffer_deinit(line);
    kri_buffer_init(line, frames->line_bytes_max);
}

void rpc_frames_feed(rpc_frames_t *frames, const char *data, size_t n_bytes,
                     const rpc_frame_sink_t *sink) {
    while (n_bytes > 0) {
        const char *end = memchr(data, '\n', n_bytes);
        const size_t n = end != NULL ? (size_t)(end - data) : n_bytes;
        add(frames, data, n, sink);
        if (end == NULL) return;
        if (!frames->is_skipping && !is_blank(&frames->line)) {
            sink->line(sink->user, &frames->line);
            frames->line.max_bytes = frames->line_bytes_max;
        }
        frames->is_skipping = false;
        kri_buffer_clear(&frames->line);
        data += n + 1;
        n_bytes -= n + 1;
    }
}

/* frame.h: lines out of bytes as they come. A line that is over the limit is reported once and
 * skipped up to its newline. No line is looked at here. */
#ifndef RPC_FRAME_H
#define RPC_FRAME_H

#include <stdbool.h>

#include "base/buffer.h"

#define RPC_PREFIX_BYTES 512u /* of a line that is too long */

typedef struct rpc_frame_sink_s {
    /* A line without its newline, not blank. The sink may take the buffer: it then leaves an
     * empty one (kri_buffer_init). */
    void (*line)(void *user, kri_buffer_t *line);
    /* Its beginning, RPC_PREFIX_BYTES at most. */
    void (*too_long)(void *user, const char *prefix, size_t n_bytes);
    void *user;
} rpc_frame_sink_t;

typedef struct rpc_frames_s {
    kri_buffer_t line;       /* what has come of it */
    size_t line_bytes_max;
    bool is_skipping;
} rpc_frames_t;

void rpc_frames_init(rpc_frames_t *frames, size_t line_bytes_max);
void rpc_frames_deinit(rpc_frames_t *frames);
/* Any cut of the input gives the same calls. Without memory a line counts as too long. */
void rpc_frames_feed(rpc_frames_t *frames, const char *data, size_t n_bytes,
                     const rpc_frame_sink_t *sink);

#endif

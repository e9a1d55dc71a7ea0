/* batch.h: files of requests in OpenAI's batch form, each line run as a call with a sink of its
 * own (docs/server.md, `kr batch`).
 *
 * OUT is a log: a line is appended in one write when its request has ended, and synced at most a
 * second later. A run that was killed is taken up by the next: what OUT has is skipped, a line cut
 * short at its end is removed. So every request of IN has exactly one line in OUT at the end. */
#ifndef SERVER_BATCH_H
#define SERVER_BATCH_H

#include "server.h"

#define BATCH_LINES_MAX 1000000u
#define BATCH_LINE_BYTES_MAX (((size_t)16 << 20) + 65536) /* of IN: a body, and what is around it */
#define BATCH_OUT_LINE_BYTES_MAX ((size_t)1 << 30)
#define BATCH_ID_BYTES_MAX 512u

typedef struct batch_line_s {
    char *custom_id;           /* C string of 1..512 bytes */
    char *method, *url;        /* C strings; NULL: absent or no string */
    char *body;                /* [body_bytes] JSON of the object, and a NUL; NULL: no object */
    size_t body_bytes;
} batch_line_t;
/* A line of IN [n_bytes], without its newline, followed by a NUL. KR_E_BAD_FORMAT with a message
 * for people: no JSON object, or no good custom_id; KR_E_NOMEM. What else is wrong with a line is
 * its own error in OUT. */
kr_status_t batch_line_read(const char *text, size_t n_bytes, batch_line_t *line,
                            kr_error_t *error);
void batch_line_deinit(batch_line_t *line);

typedef struct batch_result_s {
    uint64_t n_lines;          /* of IN, empty ones apart */
    uint64_t n_skipped;        /* were in OUT already */
    uint64_t n_done;           /* written by this run, */
    uint64_t n_failed;         /* of which were not answered with 200 */
    uint64_t n_cut;            /* bytes removed from the end of OUT */
} batch_result_t;

typedef struct batch_s batch_t;

/* Checks all of IN, then opens, locks and reads OUT, whose torn end is cut. The paths are borrowed
 * until batch_close.
 * Errors KR_E_NOT_FOUND, KR_E_PERMISSION, KR_E_IO, KR_E_NOSPC (param "IN" or "OUT"),
 *        KR_E_BAD_FORMAT (IN or OUT, the line is named), KR_E_EXISTS (a custom_id twice),
 *        KR_E_LIMIT, KR_E_BUSY (OUT is being written by another process), KR_E_INVALID_ARG,
 *        KR_E_NOMEM. */
kr_status_t batch_open(const char *in_path, const char *out_path, batch_t **batch,
                       kr_error_t *error);
const batch_result_t *batch_result(const batch_t *batch);

typedef struct batch_params_s {
    server_t *server;          /* with engine, models and pump */
    uint32_t n_in_flight;      /* calls at once, at least 1 */
    bool (*is_interrupted)(void);
    void (*on_progress)(const batch_result_t *result); /* may be NULL */
} batch_params_t;
/* Runs all lines that OUT does not have. On any error OUT has only whole lines. Once.
 * Errors KR_E_IO, KR_E_NOSPC (OUT), KR_E_CHANGED (IN), KR_E_CANCELLED, KR_E_NOMEM. */
kr_status_t batch_run(batch_t *batch, const batch_params_t *params, kr_error_t *error);
/* NULL: a no-op. */
void batch_close(batch_t *batch);

#endif

/* fuzz_http.c: any bytes as what a client sends. The first bytes say how large a body may be and
 * where the rest is cut; cut so and in one piece, the same events must come out. */
#include <stdint.h>

#include "server/http/message.h"
#include "http_trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

/* Byte 0: the body's limit. Byte 1: number of cuts, whose sizes follow. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 2) return 0;
    const uint64_t n_body_max = (uint64_t)data[0] * 16;
    size_t n_cuts = data[1] & 31;
    if (n_cuts > n_bytes - 2) n_cuts = n_bytes - 2;
    const uint8_t *cuts = data + 2;
    const char *bytes = (const char *)data + 2 + n_cuts;
    const size_t n = n_bytes - 2 - n_cuts;

    http_trace_t whole, pieces;
    http_trace_init(&whole, n_body_max);
    http_trace_init(&pieces, n_body_max);
    whole.limits.line_bytes = pieces.limits.line_bytes = 256; /* in reach of small inputs */
    whole.limits.head_bytes = pieces.limits.head_bytes = 512;
    whole.limits.fields = pieces.limits.fields = 8;
    http_trace_feed(&whole, bytes, n);
    size_t at = 0;
    for (size_t i = 0; at < n; i = n_cuts > 0 ? (i + 1) % n_cuts : 0) {
        size_t n_piece = n_cuts > 0 && cuts[i] > 0 ? cuts[i] : 1;
        if (n_piece > n - at) n_piece = n - at;
        http_trace_feed(&pieces, bytes + at, n_piece);
        at += n_piece;
    }
    if (whole.text.n_bytes != pieces.text.n_bytes ||
        (whole.text.n_bytes > 0 &&
         memcmp(whole.text.data, pieces.text.data, whole.text.n_bytes) != 0)) {
        abort();
    }
    http_trace_deinit(&whole);
    http_trace_deinit(&pieces);
    return 0;
}

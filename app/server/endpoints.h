/* endpoints.h: the functions and the table of endpoints.def. */
#ifndef SERVER_ENDPOINTS_H
#define SERVER_ENDPOINTS_H

#include "call.h"

#define KR_ENDPOINT(name, ...) void endpoint_##name(call_t *call);
#include "endpoints.def"

/* In the order of the rows, as endpoint_id_t of prometheus.h counts. */
extern const endpoint_t endpoints[];
extern const uint32_t n_endpoints;

/* The endpoint of method and path. NULL: none; then allow is "" when no endpoint has the path, else
 * the methods that it has ("GET, HEAD"). HEAD finds GET's. tail: what "{id}" stands for, a part
 * of path; "" where there is none. */
typedef struct endpoint_match_s {
    const endpoint_t *endpoint;
    const char *tail;
    size_t tail_bytes;
    char allow[64];
} endpoint_match_t;
endpoint_match_t endpoint_find(const char *method, size_t method_bytes, const char *path,
                               size_t path_bytes);

#endif

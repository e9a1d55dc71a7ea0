/* keys.h: who may do what. A key file gives names, SHA-256 digests of the keys, scopes and limits;
 * the keys themselves are in no file and no log. Form of the file: docs/server.md.
 *
 * A key keeps its id as long as a reload finds its digest again, and an id is never given twice in
 * a process: fair share and cache_salt (prefixes are never shared between keys) go by it. What
 * runs for a key that a reload has removed goes on and is counted to its end. Any thread. */
#ifndef SERVER_KEYS_H
#define SERVER_KEYS_H

#include "call.h"
#include "http/http.h"

typedef struct keys_s keys_t;

#define KEYS_MAX 1024
#define KEYS_FILE_BYTES_MAX ((size_t)1 << 20)
#define KEYS_LINE_BYTES_MAX 512
#define KEYS_IN_FLIGHT_MAX 65536

/* path: of the key file, copied; NULL = no keys are in use: everybody is key 0 and may generate and
 * see metrics, nobody may administrate. in_flight_max: for keys whose line says nothing, 0 = 64.
 * Errors KR_E_BAD_FORMAT and KR_E_LIMIT ("FILE line 3: ..."), those of reading a file,
 * KR_E_NOMEM. */
kr_status_t keys_create(const char *path, uint32_t in_flight_max, keys_t **keys,
                        kr_error_t *error);
/* Reads the file again. With an error the keys stay as they were. */
kr_status_t keys_reload(keys_t *keys, kr_error_t *error);
void keys_destroy(keys_t *keys);

bool keys_in_use(const keys_t *keys);
uint32_t keys_count(keys_t *keys);
/* Whether others than the owner's group may read the file, as of the last load. */
bool keys_is_world_readable(keys_t *keys);

/* Who asks: "Authorization: Bearer KEY" or "x-api-key: KEY"; both must then be the same key. False:
 * no key, an unknown one, or a repeated field; the answer is the same 401 for all of these. Takes
 * the same time for every wrong key. Scopes are not looked at: principal->scopes. Does not block
 * longer than some microseconds. */
bool keys_identify(keys_t *keys, const http_request_t *request, principal_t *principal);

/* One more request of this key is being answered; false: it has max_in_flight already (429
 * too_many_requests) or has just been removed. Key 0 is not bounded. The engine's own
 * key_in_flight_max counts prompts: app/cli/server_setup.c leaves a part of the queue to others. */
bool keys_enter(keys_t *keys, uint64_t key_id);
void keys_leave(keys_t *keys, uint64_t key_id);

/* ---- the parser (keys_parse.c) --------------------------------------------------------------- */

typedef struct key_row_s {
    uint64_t id;             /* keys.c's; 0 from the parser */
    char name[64];           /* [A-Za-z0-9._-]{1,63}, unique */
    uint8_t digest[32];      /* unique */
    uint32_t scopes;         /* SCOPE_* bits, at least one */
    uint32_t in_flight_max;  /* 0 = the default */
} key_row_t;

/* *rows [*n_rows] is freed by the caller (free); NULL when there are none. */
kr_status_t keys_parse(const char *text, size_t n_bytes, key_row_t **rows, uint32_t *n_rows,
                       kr_error_t *error);

#endif

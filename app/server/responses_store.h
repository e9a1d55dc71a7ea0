/* responses_store.h: what POST /v1/responses keeps for `previous_response_id` and GET: the
 * conversation up to and with the answer, and the answer as it was sent. Bounded by count and
 * bytes. What goes first is what has not been used for longest among the entries of keys that have
 * more than an equal part of what is short: no key drives out what another keeps within its part.
 * In memory only: gone with the process.
 *
 * Every entry belongs to the key that made it: under another key its id is not found.
 * Threads: any. An entry that somebody holds stays readable after it has left the store. */
#ifndef SERVER_RESPONSES_STORE_H
#define SERVER_RESPONSES_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kr.h"

typedef struct responses_s responses_t; /* put, get, delete: NULL is a store that keeps nothing */

/* Immutable; roles and contents are the entry's own. */
typedef struct response_s {
    char id[48];
    uint64_t key_id;
    const kr_message_t *messages; /* [n_messages]; without instructions */
    uint32_t n_messages;
    const char *body;             /* [body_bytes] JSON */
    size_t body_bytes;
} response_t;

/* KR_E_INVALID_ARG (a bound of 0), KR_E_NOMEM. */
kr_status_t responses_store_create(uint32_t n_max, size_t bytes_max, responses_t **store);
void responses_store_destroy(responses_t *store);
/* Keeps a copy. KR_E_EXISTS (id), KR_E_LIMIT (over bytes_max alone; or over its key's part while
 * others keep to theirs), KR_E_NOMEM: it is not kept. */
kr_status_t responses_store_put(responses_t *store, const response_t *response);
/* To be released; NULL: there is none under this key. */
const response_t *responses_store_get(responses_t *store, const char *id, uint64_t key_id);
void responses_store_release(const response_t *response); /* NULL is a no-op */
/* False: there is none under this key. */
bool responses_store_delete(responses_t *store, const char *id, uint64_t key_id);

typedef struct responses_stats_s { uint32_t n; size_t n_bytes; } responses_stats_t;
responses_stats_t responses_stats(responses_t *store);

#endif

/* generation.h: fields that methods share: tokens and messages. */
#ifndef RPC_GENERATION_H
#define RPC_GENERATION_H

#include "inner.h"

typedef struct rpc_tokens_s {
    kr_token_t *tokens;        /* malloc'd; [n]; not NULL once the field was there */
    size_t n;
} rpc_tokens_t;
/* Token ids: whole numbers from 0 to 2^31 - 1, n_max of them at most; an array, or the client's
 * descriptor of a segment of i32. */
void rpc_read_tokens(rpc_conn_t *conn, json_reader_t *reader, const char *field, size_t n_max,
                     rpc_tokens_t *list);

typedef struct rpc_messages_s {
    kr_message_t *messages;    /* malloc'd; [n]; texts are the JSON's */
    size_t n;
} rpc_messages_t;
/* 1..2048 of {"role": "system" | "user" | "assistant", "content": TEXT}. */
void rpc_read_messages(json_reader_t *reader, const char *field, rpc_messages_t *list);

#endif

/* message.h: what a line of JSON-RPC says, read strictly; errors and ids as they are written. Knows
 * neither methods nor clients. */
#ifndef RPC_MESSAGE_H
#define RPC_MESSAGE_H

#include "server/json.h"

#define RPC_ID_BYTES_MAX 256u  /* of a string that is an id */
#define RPC_BATCH_MAX 64u      /* messages of a JSON-RPC batch, requests of a batch_* method */

enum { RPC_E_PARSE = -32700, RPC_E_REQUEST = -32600, RPC_E_METHOD = -32601,
       RPC_E_PARAMS = -32602, RPC_E_INTERNAL = -32603, RPC_E_SERVER = -32000,
       RPC_E_LOAD = -32001, RPC_E_GENERATION = -32002, RPC_E_TOKENIZER = -32003,
       RPC_E_GUIDANCE = -32004, RPC_E_NOT_LOADED = -32005, RPC_E_RUNTIME = -32099 };

/* An error as the client sees it: code, message, data {type, kr_status, param, model_id}. */
typedef struct rpc_error_s {
    int code;
    kr_status_t status;
    char param[128];       /* "" = none */
    char message[512];
    char model_id[256];    /* "" = not known */
} rpc_error_t;

void rpc_error_set(rpc_error_t *error, int code, kr_status_t status, const char *param,
                   const char *format, ...) __attribute__((format(printf, 5, 6)));
/* Of what a reader of fields has found. */
void rpc_error_of_mistake(rpc_error_t *error, const json_mistake_t *mistake);
/* Of a status of the library. family: the code that failures of this method have; what is not the
 * method's (memory, the device, a full queue) has another. library: may be NULL. */
void rpc_error_of_status(rpc_error_t *error, int family, kr_status_t status,
                         const kr_error_t *library);
/* "GenerationError"; "Cancelled" and "Timeout" by their status. Static. */
const char *rpc_error_type(const rpc_error_t *error);
/* Appends the error object. */
void rpc_error_put(const rpc_error_t *error, kri_buffer_t *out);

typedef struct rpc_message_s {
    bool has_id;           /* a request; else a notification */
    char *id;              /* as JSON text; NULL without */
    const char *method;    /* borrowed, like params, from the value that was read */
    json_t *params;        /* an object */
} rpc_message_t;

/* A line: *root receives the caller's object, or array of 1..RPC_BATCH_MAX values. */
bool rpc_line_parse(const char *line, size_t n_bytes, json_t **root, rpc_error_t *error);
/* One message of it; without params it gets an empty object. On an error message->id is what can be
 * answered to, or NULL. rpc_message_deinit in both cases. */
bool rpc_message_read(json_t *value, rpc_message_t *message, rpc_error_t *error);
void rpc_message_deinit(rpc_message_t *message);
/* The id of a request whose line is not there as a whole, as JSON text [cap]; "null" when the
 * beginning does not hold it. */
void rpc_guess_id(const char *prefix, size_t n_bytes, char *id, size_t cap);

#endif

/* call_impl.h: answers that wait for each other: those of a JSON-RPC batch, and the items of a
 * batch_* method. */
#ifndef RPC_CALL_IMPL_H
#define RPC_CALL_IMPL_H

#include "inner.h"

struct rpc_gather_s {
    pthread_mutex_t mutex;     /* n_left, n_bytes_left */
    rpc_conn_t *conn;
    rpc_call_t *parent;        /* answered at the end with {"results":[...]}; NULL: [...] is sent */
    kri_buffer_t *slots;       /* [n_slots]; empty ones are left out */
    uint32_t n_slots;
    uint32_t n_left;           /* slots without an answer, and who fills them */
    size_t n_bytes_left;
    bool is_short;             /* there was no memory for one of the calls */
};
/* NULL: no memory. The caller holds one of n_left. */
rpc_gather_t *rpc_gather_create(rpc_conn_t *conn, rpc_call_t *parent, uint32_t n_slots);
/* Takes the text's bytes. */
void rpc_gather_put(rpc_gather_t *gather, uint32_t slot, kri_buffer_t *text);
void rpc_gather_leave(rpc_gather_t *gather);
bool rpc_gather_fits(rpc_gather_t *gather, size_t n_bytes);

#endif

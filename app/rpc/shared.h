/* shared.h: tensors of a client in shared memory (shm.h): agreed on in runtime/info, then given for
 * results of min_bytes or more and taken for fields that hold a descriptor in place of an array:
 * {"kind":"posix" | "memfd", "name", "generation", "dtype", "shape":[..], "bytes"}. What cannot be
 * shared goes as JSON. */
#ifndef RPC_SHARED_H
#define RPC_SHARED_H

#include <sys/types.h>

#include "inner.h"
#include "shm.h"

/* Of a client: given and not taken; come and not used. */
#define RPC_SHARED_SEGMENTS_MAX RPC_SHM_FDS_MAX
#define RPC_SHARED_BYTES_MAX ((size_t)512 << 20) /* given and not yet taken */
#define RPC_SHARED_MIN_BYTES 1000000u
#define RPC_SHARED_MIN_BYTES_LEAST 4096u

/* Named segments, or descriptors where they can travel. */
rpc_shm_kind_t rpc_shared_kind(const rpc_conn_t *conn);
/* False: this system has no such memory, or none is left. */
bool rpc_shared_enable(rpc_conn_t *conn, size_t min_bytes);
/* What stands in runtime/info. */
void rpc_shared_put_info(rpc_conn_t *conn, kri_buffer_t *out);
/* The client has gone: nothing is left of what it was given. Its lock is held. */
void rpc_shared_end_locked(rpc_conn_t *conn);
void rpc_shared_free(rpc_conn_t *conn);
/* As send, with the descriptors that wait. The client's lock is held. */
ssize_t rpc_shared_send_locked(rpc_conn_t *conn, const char *data, size_t n_bytes);
/* As read from its socket; descriptors that come along are kept, or closed. The loop's. */
ssize_t rpc_shared_receive(rpc_conn_t *conn, char *data, size_t cap);

/* ---- tensors --------------------------------------------------------------------------------- */

typedef struct rpc_tensor_s {
    rpc_shm_head_t head;
    uint8_t *data;             /* [head.n_bytes] */
    rpc_shm_t shm;             /* fd -1: data is malloc'd */
} rpc_tensor_t;
/* For n_bytes at most, shared where the client takes that. False: no memory. */
bool rpc_tensor_create(rpc_conn_t *conn, size_t n_bytes, rpc_tensor_t *tensor);
void rpc_tensor_deinit(rpc_tensor_t *tensor);
/* d1 0: one dimension. What it holds, at most what it was made for. */
void rpc_tensor_shape(rpc_tensor_t *tensor, rpc_dtype_t dtype, uint64_t d0, uint64_t d1);
/* Gives it to the client and appends its descriptor. False: it goes as JSON; data is there still,
 * or NULL when there was no memory. */
bool rpc_tensor_give(rpc_conn_t *conn, rpc_tensor_t *tensor, kri_buffer_t *out);

/* Whether one of the members is a descriptor: not for the thread that reads. */
bool rpc_shared_is_in(json_t *params);
/* A field that is a descriptor: opens it. False: the mistake is set. Then rpc_shm_load, close. */
bool rpc_shared_take(rpc_conn_t *conn, json_reader_t *reader, const char *field, json_t *value,
                     int *fd, rpc_shm_head_t *head);
/* Copies what rpc_shared_take has opened to out [head->n_bytes] and closes it. */
bool rpc_shared_load(rpc_conn_t *conn, json_reader_t *reader, const char *field, int fd,
                     const rpc_shm_head_t *head, void *out);

#endif

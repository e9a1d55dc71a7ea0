/* shm.h: segments: blocks of memory that carry one tensor each from one process to another, beside
 * the lines. A segment is filled before it can be found, used once and never changed. The receiver
 * copies it with pread and looks at the copy only, so that nothing the other side does to it
 * meanwhile is seen, or faults.
 *
 * POSIX: a name as of shm_open, 0600, given when the segment is complete and taken away by whoever
 * opens it. It says who made it, so that what a dead process has left can be told and removed.
 * MEMFD: no name; the descriptor travels over a Unix socket; sealed, so that it may be mapped.
 *
 * Knows neither clients nor JSON; the addon of Node uses it too. */
#ifndef RPC_SHM_H
#define RPC_SHM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kr.h"

#define RPC_SHM_VERSION 1u
#define RPC_SHM_HEADER_BYTES 64u
#define RPC_SHM_BYTES_MAX ((size_t)256 << 20) /* of a payload */
#define RPC_SHM_NAME_MAX 128u
#define RPC_SHM_DIMS_MAX 2u
#define RPC_SHM_FDS_MAX 64u    /* descriptors that go with one part of a stream */

typedef enum rpc_shm_kind_e { RPC_SHM_POSIX, RPC_SHM_MEMFD } rpc_shm_kind_t;
typedef enum rpc_dtype_e { RPC_DTYPE_U8 = 1, RPC_DTYPE_I32, RPC_DTYPE_F32 } rpc_dtype_t;
/* "u8", "i32", "f32"; NULL: there is none. */
const char *rpc_dtype_name(rpc_dtype_t dtype);
/* 0: there is none. */
uint32_t rpc_dtype_bytes(rpc_dtype_t dtype);

/* What a segment says of itself: its first RPC_SHM_HEADER_BYTES, little-endian: u32 magic "KRSM",
 * u32 version, u64 generation, u32 dtype, u32 n_dims, u64 dims[2], u64 n_bytes, zeros. */
typedef struct rpc_shm_head_s {
    uint64_t generation;       /* its maker's count of segments for this receiver; from 1 */
    rpc_dtype_t dtype;
    uint32_t n_dims;           /* 1..RPC_SHM_DIMS_MAX; dims beyond are 0 */
    uint64_t dims[RPC_SHM_DIMS_MAX];
    uint64_t n_bytes;          /* of the payload: the product of dims and dtype */
} rpc_shm_head_t;
bool rpc_shm_head_is_equal(const rpc_shm_head_t *a, const rpc_shm_head_t *b);
/* NULL, or what is wrong with it. */
const char *rpc_shm_head_check(const rpc_shm_head_t *head);
void rpc_shm_head_put(const rpc_shm_head_t *head, uint8_t out[RPC_SHM_HEADER_BYTES]);
/* As rpc_shm_head_check; bytes [n_bytes] are foreign. */
const char *rpc_shm_head_read(const uint8_t *bytes, size_t n_bytes, rpc_shm_head_t *head);

/* ---- making one ------------------------------------------------------------------------------ */

typedef struct rpc_shm_s {
    int fd;                    /* -1: none */
    rpc_shm_kind_t kind;
    uint8_t *data;             /* [n_bytes], the payload, to be filled; NULL once published */
    size_t n_bytes;
    char name[RPC_SHM_NAME_MAX]; /* "" = none yet, or MEMFD */
} rpc_shm_t;
/* All its memory is taken at once. KR_E_NOSPC, KR_E_NOMEM, KR_E_LIMIT, KR_E_UNSUPPORTED (no file
 * system for it), KR_E_IO. */
kr_status_t rpc_shm_create(rpc_shm_kind_t kind, size_t n_bytes, rpc_shm_t *shm);
/* Cuts it to head->n_bytes, at most those it was made with, and unmaps it. Then POSIX needs a name
 * (rpc_shm_link); MEMFD is sealed, and its descriptor is the segment. */
kr_status_t rpc_shm_seal(rpc_shm_t *shm, const rpc_shm_head_t *head);
/* From now on it can be found, and lives without fd. */
kr_status_t rpc_shm_link(rpc_shm_t *shm);
/* Closes; a name stays. */
void rpc_shm_deinit(rpc_shm_t *shm);

/* ---- taking one ------------------------------------------------------------------------------ */

/* A descriptor, or -1: no name of a segment, nothing behind it, or no memory of ours. */
int rpc_shm_open(const char *name);
/* Whether there is still one of this name. */
bool rpc_shm_is_there(const char *name);
void rpc_shm_unlink(const char *name);
/* NULL, or what is wrong: the descriptor is no memory, its size is not what its header says. */
const char *rpc_shm_load_head(int fd, rpc_shm_head_t *head);
/* Copies the payload to out [head->n_bytes]. False: it was cut meanwhile. */
bool rpc_shm_load(int fd, const rpc_shm_head_t *head, void *out);
/* ---- descriptors beside the bytes of a Unix socket (SCM_RIGHTS) ------------------------------ */

/* Without waiting; as send and recv, errno too. fds [n_fds], 1..RPC_SHM_FDS_MAX, stay the
 * caller's. */
ssize_t rpc_shm_send(int socket, const char *data, size_t n_bytes, const int *fds, size_t n_fds);
/* fds [RPC_SHM_FDS_MAX]: *n_fds of them have come and are the caller's. */
ssize_t rpc_shm_receive(int socket, char *data, size_t cap, int *fds, size_t *n_fds);

/* Removes the segments of makers that have died; how many. */
uint32_t rpc_shm_sweep(void);

#endif

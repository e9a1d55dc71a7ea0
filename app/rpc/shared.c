/* shared.c: see shared.h. What was given is remembered until the client has taken it, so that it
 * can be removed when the client goes, and so that one that takes nothing cannot fill the memory:
 * a name that is gone was taken; descriptors were when nothing waits in the socket. */
#define _GNU_SOURCE /* MSG_CMSG_CLOEXEC */
#include "shared.h"

#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define WINDOW 1024u           /* generations that may come out of order */

typedef struct given_s {
    size_t n_bytes;
    bool is_ready;             /* named, or its descriptor waits or was sent */
    bool is_sent;
    char name[RPC_SHM_NAME_MAX];
} given_t;

typedef struct got_s {
    int fd;
    rpc_shm_head_t head;
} got_t;

struct rpc_shared_s {          /* under the client's lock */
    size_t min_bytes;
    uint64_t generation;       /* of the last one that was given */
    given_t given[RPC_SHARED_SEGMENTS_MAX];
    uint32_t n_given;
    size_t given_bytes;
    int to_send[RPC_SHARED_SEGMENTS_MAX]; /* MEMFD: descriptors that wait for bytes to go with */
    uint32_t n_to_send;
    got_t got[RPC_SHARED_SEGMENTS_MAX]; /* MEMFD: come and not yet used */
    uint32_t n_got;
    uint64_t seen_max;         /* of the generations that were taken */
    uint64_t seen[WINDOW / 64]; /* bit: this generation modulo WINDOW was taken */
};

rpc_shm_kind_t rpc_shared_kind(const rpc_conn_t *conn) {
    return conn->is_socket && conn->in_fd == conn->out_fd ? RPC_SHM_MEMFD : RPC_SHM_POSIX;
}

bool rpc_shared_enable(rpc_conn_t *conn, size_t min_bytes) {
    rpc_shm_t probe;
    if (rpc_shm_create(rpc_shared_kind(conn), 1, &probe) != KR_OK) return false;
    rpc_shm_deinit(&probe);
    rpc_shared_t *fresh = calloc(1, sizeof *fresh);
    (void)pthread_mutex_lock(&conn->lock);
    if (conn->shared == NULL) {
        conn->shared = fresh;
        fresh = NULL;
    }
    if (conn->shared != NULL) conn->shared->min_bytes = min_bytes;
    const bool is_on = conn->shared != NULL;
    (void)pthread_mutex_unlock(&conn->lock);
    free(fresh);
    return is_on;
}

static size_t min_bytes_of(rpc_conn_t *conn, bool *is_on) {
    (void)pthread_mutex_lock(&conn->lock);
    const rpc_shared_t *shared = conn->shared;
    const size_t n = shared != NULL ? shared->min_bytes : RPC_SHARED_MIN_BYTES;
    *is_on = shared != NULL && !conn->is_broken;
    (void)pthread_mutex_unlock(&conn->lock);
    return n;
}

void rpc_shared_put_info(rpc_conn_t *conn, kri_buffer_t *out) {
    bool is_on = false;
    const size_t min_bytes = min_bytes_of(conn, &is_on);
    (void)kri_buffer_printf(out, "\"shared_memory\":{\"enabled\":%s,\"kind\":\"%s\",\"version\":%u,"
                            "\"min_bytes\":%zu,\"segment_bytes\":%zu,\"segments\":%u}",
                            is_on ? "true" : "false",
                            rpc_shared_kind(conn) == RPC_SHM_POSIX ? "posix" : "memfd",
                            RPC_SHM_VERSION, min_bytes, RPC_SHM_BYTES_MAX,
                            RPC_SHARED_SEGMENTS_MAX);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void close_waiting(rpc_shared_t *shared) {
    for (uint32_t i = 0; i < shared->n_to_send; i++) (void)close(shared->to_send[i]);
    shared->n_to_send = 0;
}

void rpc_shared_end_locked(rpc_conn_t *conn) {
    rpc_shared_t *shared = conn->shared;
    if (shared == NULL) return;
    for (uint32_t i = 0; i < shared->n_given; i++) {
        if (shared->given[i].name[0] != '\0') rpc_shm_unlink(shared->given[i].name);
        shared->given[i].name[0] = '\0';
    }
    close_waiting(shared);
    for (uint32_t i = 0; i < shared->n_got; i++) (void)close(shared->got[i].fd);
    shared->n_got = 0;
    /* What the client had made for us, when it has died. */
    if (rpc_shared_kind(conn) == RPC_SHM_POSIX) {
        atomic_fetch_add(&conn->rpc->shared.n_swept, rpc_shm_sweep());
    }
}

void rpc_shared_free(rpc_conn_t *conn) {
    free(conn->shared);
    conn->shared = NULL;
}

/* ---- giving ---------------------------------------------------------------------------------- */

static void forget_locked(rpc_shared_t *shared, uint32_t index) {
    shared->given_bytes -= shared->given[index].n_bytes;
    shared->given[index] = shared->given[--shared->n_given];
}

static void prune_locked(rpc_conn_t *conn) {
    rpc_shared_t *shared = conn->shared;
    int n_unread = -1;
    if (rpc_shared_kind(conn) == RPC_SHM_MEMFD) (void)ioctl(conn->out_fd, SIOCOUTQ, &n_unread);
    for (uint32_t i = shared->n_given; i-- > 0;) {
        const given_t *given = &shared->given[i];
        if (!given->is_ready) continue;
        const bool is_taken = given->name[0] != '\0' ? !rpc_shm_is_there(given->name)
                                                     : given->is_sent && n_unread == 0;
        if (is_taken) forget_locked(shared, i);
    }
}

/* A place among what is given, not ready. The entry's address is not kept: they move. */
static bool reserve(rpc_conn_t *conn, size_t n_bytes, uint64_t *generation) {
    (void)pthread_mutex_lock(&conn->lock);
    rpc_shared_t *shared = conn->shared;
    bool fits = shared != NULL && !conn->is_broken;
    if (fits) {
        prune_locked(conn);
        fits = shared->n_given < RPC_SHARED_SEGMENTS_MAX &&
               n_bytes <= RPC_SHARED_BYTES_MAX - shared->given_bytes;
    }
    if (fits) {
        *generation = ++shared->generation;
        shared->given[shared->n_given++] = (given_t){.n_bytes = n_bytes};
        shared->given_bytes += n_bytes;
    }
    (void)pthread_mutex_unlock(&conn->lock);
    return fits;
}

/* Makes the reservation of this size ready, or takes it back. */
static bool settle(rpc_conn_t *conn, rpc_tensor_t *tensor, bool is_sealed) {
    (void)pthread_mutex_lock(&conn->lock);
    rpc_shared_t *shared = conn->shared;
    uint32_t index = 0; /* those of one size are as good as each other */
    while (shared->given[index].is_ready || shared->given[index].n_bytes != tensor->head.n_bytes) {
        index++;
    }
    bool is_given = is_sealed && !conn->is_broken;
    /* With the lock: behind the end of the client nothing gets a name any more. */
    if (is_given && tensor->shm.kind == RPC_SHM_POSIX) {
        is_given = rpc_shm_link(&tensor->shm) == KR_OK;
        memcpy(shared->given[index].name, tensor->shm.name, sizeof tensor->shm.name);
    } else if (is_given) {
        is_given = shared->n_to_send < RPC_SHARED_SEGMENTS_MAX;
        if (is_given) shared->to_send[shared->n_to_send++] = tensor->shm.fd;
        if (is_given) tensor->shm.fd = -1;
    }
    if (is_given) shared->given[index].is_ready = true;
    else forget_locked(shared, index);
    (void)pthread_mutex_unlock(&conn->lock);
    return is_given;
}

static void put_descriptor(const rpc_tensor_t *tensor, kri_buffer_t *out) {
    const rpc_shm_head_t *head = &tensor->head;
    if (tensor->shm.kind == RPC_SHM_POSIX) {
        (void)kri_buffer_printf(out, "{\"kind\":\"posix\",\"name\":\"%s\",", tensor->shm.name);
    } else {
        (void)kri_buffer_printf(out, "{\"kind\":\"memfd\",");
    }
    (void)kri_buffer_printf(out, "\"generation\":%llu,\"dtype\":\"%s\",\"shape\":[%llu",
                            (unsigned long long)head->generation, rpc_dtype_name(head->dtype),
                            (unsigned long long)head->dims[0]);
    if (head->n_dims > 1) {
        (void)kri_buffer_printf(out, ",%llu", (unsigned long long)head->dims[1]);
    }
    (void)kri_buffer_printf(out, "],\"bytes\":%llu}", (unsigned long long)head->n_bytes);
}

/* False: the tensor is on the heap now, or lost when there is no memory. */
static bool give(rpc_conn_t *conn, rpc_tensor_t *tensor) {
    if (!reserve(conn, (size_t)tensor->head.n_bytes, &tensor->head.generation)) return false;
    const bool is_sealed = rpc_shm_seal(&tensor->shm, &tensor->head) == KR_OK;
    if (settle(conn, tensor, is_sealed)) return true;
    tensor->data = malloc((size_t)tensor->head.n_bytes);
    if (tensor->data != NULL && !rpc_shm_load(tensor->shm.fd, &tensor->head, tensor->data)) {
        free(tensor->data);
        tensor->data = NULL;
    }
    rpc_shm_deinit(&tensor->shm);
    return false;
}

ssize_t rpc_shared_send_locked(rpc_conn_t *conn, const char *data, size_t n_bytes) {
    rpc_shared_t *shared = conn->shared;
    if (shared == NULL || shared->n_to_send == 0) {
        return send(conn->out_fd, data, n_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    const ssize_t n = rpc_shm_send(conn->out_fd, data, n_bytes, shared->to_send,
                                   shared->n_to_send);
    if (n <= 0) return n;
    close_waiting(shared);
    for (uint32_t i = 0; i < shared->n_given; i++) {
        shared->given[i].is_sent = shared->given[i].is_ready;
    }
    return n;
}

/* ---- taking ---------------------------------------------------------------------------------- */

static got_t *find_got_locked(rpc_shared_t *shared, uint64_t generation) {
    for (uint32_t i = 0; i < shared->n_got; i++) {
        if (shared->got[i].head.generation == generation) return &shared->got[i];
    }
    return NULL;
}

static void keep(rpc_conn_t *conn, int fd) {
    got_t got = {.fd = fd};
    bool is_kept = rpc_shm_load_head(fd, &got.head) == NULL;
    (void)pthread_mutex_lock(&conn->lock);
    rpc_shared_t *shared = conn->shared;
    is_kept = is_kept && shared != NULL && !conn->is_broken &&
              shared->n_got < RPC_SHARED_SEGMENTS_MAX &&
              find_got_locked(shared, got.head.generation) == NULL;
    if (is_kept) shared->got[shared->n_got++] = got;
    (void)pthread_mutex_unlock(&conn->lock);
    if (is_kept) return;
    atomic_fetch_add(&conn->rpc->shared.n_refused, 1);
    (void)close(fd);
}

ssize_t rpc_shared_receive(rpc_conn_t *conn, char *data, size_t cap) {
    int fds[RPC_SHM_FDS_MAX];
    size_t n_fds = 0;
    const ssize_t n = rpc_shm_receive(conn->in_fd, data, cap, fds, &n_fds);
    for (size_t i = 0; i < n_fds; i++) keep(conn, fds[i]);
    return n;
}

/* Whether this generation comes for the first time. */
static bool is_fresh_locked(rpc_shared_t *shared, uint64_t generation) {
    if (generation > shared->seen_max) {
        const uint64_t n_new = generation - shared->seen_max;
        for (uint64_t i = 1; i <= n_new && i <= WINDOW; i++) {
            const uint64_t at = (shared->seen_max + i) % WINDOW;
            shared->seen[at / 64] &= ~(1ull << (at % 64));
        }
        shared->seen_max = generation;
    } else if (shared->seen_max - generation >= WINDOW) {
        return false;
    }
    const uint64_t at = generation % WINDOW, bit = 1ull << (at % 64);
    const bool is_fresh = (shared->seen[at / 64] & bit) == 0;
    shared->seen[at / 64] |= bit;
    return is_fresh;
}

static int take_got(rpc_conn_t *conn, uint64_t generation) {
    int fd = -1;
    (void)pthread_mutex_lock(&conn->lock);
    got_t *got = find_got_locked(conn->shared, generation);
    if (got != NULL) {
        fd = got->fd;
        *got = conn->shared->got[--conn->shared->n_got];
    }
    (void)pthread_mutex_unlock(&conn->lock);
    return fd;
}

/* The descriptor as it stands in the request. */
static bool read_descriptor(json_reader_t *reader, const char *field, json_t *value,
                            rpc_shm_kind_t kind, const char **name, rpc_shm_head_t *head) {
    static const char *const kinds[] = {"posix", "memfd", NULL};
    static const char *const dtypes[] = {"u8", "i32", "f32", NULL};
    char path[sizeof reader->path];
    json_reader_t inner;
    json_t *shape = NULL;
    uint32_t kind_index = 0, dtype = 0;
    int64_t generation = 0, n_bytes = 0;
    memset(head, 0, sizeof *head);
    (void)snprintf(path, sizeof path, "%.40s%s%.40s", reader->path,
                   reader->path[0] != '\0' ? "." : "", field);
    json_open(&inner, value, path, reader->error);
    json_require(&inner, "kind");
    if (json_read_word(&inner, "kind", kinds, &kind_index) && kind_index != (uint32_t)kind) {
        json_fail(&inner, "invalid_value", "kind", "'kind' is '%s' with this client", kinds[kind]);
    }
    if (kind == RPC_SHM_POSIX) {
        json_require(&inner, "name");
        (void)json_read_string(&inner, "name", 1, RPC_SHM_NAME_MAX - 1, name, NULL);
    }
    json_require(&inner, "generation");
    (void)json_read_integer(&inner, "generation", 1, INT64_MAX, &generation);
    json_require(&inner, "dtype");
    (void)json_read_word(&inner, "dtype", dtypes, &dtype);
    json_require(&inner, "shape");
    (void)json_read_array(&inner, "shape", 1, RPC_SHM_DIMS_MAX, &shape);
    json_require(&inner, "bytes");
    (void)json_read_integer(&inner, "bytes", 1, (int64_t)RPC_SHM_BYTES_MAX, &n_bytes);
    head->generation = (uint64_t)generation;
    head->dtype = (rpc_dtype_t)(dtype + 1);
    head->n_bytes = (uint64_t)n_bytes;
    head->n_dims = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < head->n_dims; i++) {
        const json_int_t size = json_integer_value(json_array_get(shape, i)); /* 0: no integer */
        head->dims[i] = size > 0 ? (uint64_t)size : 0;
    }
    json_finish(&inner);
    const char *why = reader->error->is_set ? NULL : rpc_shm_head_check(head);
    if (why != NULL) json_fail(&inner, "invalid_value", "shape", "'%s.shape': %s", field, why);
    return !reader->error->is_set;
}

static const char *look_at(rpc_conn_t *conn, int fd, const rpc_shm_head_t *wanted) {
    rpc_shm_head_t head;
    const char *why = rpc_shm_load_head(fd, &head);
    if (why != NULL) return why;
    if (!rpc_shm_head_is_equal(&head, wanted)) return "its header says another thing";
    (void)pthread_mutex_lock(&conn->lock);
    const bool is_fresh = is_fresh_locked(conn->shared, head.generation);
    (void)pthread_mutex_unlock(&conn->lock);
    return is_fresh ? NULL : "its generation was used before";
}

bool rpc_shared_take(rpc_conn_t *conn, json_reader_t *reader, const char *field, json_t *value,
                     int *fd, rpc_shm_head_t *head) {
    const char *name = NULL, *why = NULL;
    bool is_on = false;
    const rpc_shm_kind_t kind = rpc_shared_kind(conn);
    (void)min_bytes_of(conn, &is_on);
    if (!is_on) {
        json_fail(reader, "invalid_value", field, "'%s' is an object, but shared memory was not "
                  "asked for in runtime/info", field);
        return false;
    }
    if (!read_descriptor(reader, field, value, kind, &name, head)) return false;
    *fd = kind == RPC_SHM_POSIX ? rpc_shm_open(name) : take_got(conn, head->generation);
    why = *fd < 0 ? "there is no such segment" : look_at(conn, *fd, head);
    if (*fd >= 0 && name != NULL) rpc_shm_unlink(name); /* its name is of no use to anybody */
    if (why == NULL) return true;
    atomic_fetch_add(&conn->rpc->shared.n_refused, 1);
    if (*fd >= 0) (void)close(*fd);
    json_fail(reader, "invalid_value", field, "'%s': %s", field, why);
    return false;
}

bool rpc_shared_load(rpc_conn_t *conn, json_reader_t *reader, const char *field, int fd,
                     const rpc_shm_head_t *head, void *out) {
    rpc_shared_counts_t *counts = &conn->rpc->shared;
    const bool is_whole = rpc_shm_load(fd, head, out);
    (void)close(fd);
    if (!is_whole) {
        atomic_fetch_add(&counts->n_refused, 1);
        json_fail(reader, "invalid_value", field, "'%s': its segment was cut", field);
        return false;
    }
    atomic_fetch_add(&counts->n_in, 1);
    atomic_fetch_add(&counts->n_bytes_in, head->n_bytes);
    atomic_fetch_add(&counts->n_copies, 1);
    return true;
}

bool rpc_shared_is_in(json_t *params) {
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(params, key, value) {
        if (json_is_object(value) && json_object_get(value, "generation") != NULL) return true;
    }
    return false;
}

/* ---- tensors --------------------------------------------------------------------------------- */

bool rpc_tensor_create(rpc_conn_t *conn, size_t n_bytes, rpc_tensor_t *tensor) {
    bool is_on = false;
    memset(tensor, 0, sizeof *tensor);
    tensor->shm.fd = -1;
    const size_t min_bytes = min_bytes_of(conn, &is_on);
    if (is_on && n_bytes >= min_bytes &&
        rpc_shm_create(rpc_shared_kind(conn), n_bytes, &tensor->shm) == KR_OK) {
        tensor->data = tensor->shm.data;
        return true;
    }
    tensor->data = malloc(n_bytes > 0 ? n_bytes : 1);
    return tensor->data != NULL;
}

void rpc_tensor_deinit(rpc_tensor_t *tensor) {
    if (tensor->shm.fd < 0) free(tensor->data);
    else rpc_shm_deinit(&tensor->shm);
    tensor->data = NULL;
}

void rpc_tensor_shape(rpc_tensor_t *tensor, rpc_dtype_t dtype, uint64_t d0, uint64_t d1) {
    tensor->head = (rpc_shm_head_t){.dtype = dtype, .n_dims = d1 > 0 ? 2 : 1, .dims = {d0, d1}};
    tensor->head.n_bytes = d0 * (d1 > 0 ? d1 : 1) * rpc_dtype_bytes(dtype);
}

bool rpc_tensor_give(rpc_conn_t *conn, rpc_tensor_t *tensor, kri_buffer_t *out) {
    bool is_on = false;
    rpc_shared_counts_t *counts = &conn->rpc->shared;
    if (tensor->head.n_bytes < min_bytes_of(conn, &is_on)) return false;
    if (tensor->shm.fd >= 0 && give(conn, tensor)) {
        tensor->data = NULL;
        put_descriptor(tensor, out);
        rpc_shm_deinit(&tensor->shm);
        atomic_fetch_add(&counts->n_out, 1);
        atomic_fetch_add(&counts->n_bytes_out, tensor->head.n_bytes);
        return true;
    }
    atomic_fetch_add(&counts->n_fallbacks, 1);
    return false;
}

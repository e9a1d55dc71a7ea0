/* segments.c: shared memory as JavaScript sees it: a segment is copied into an ArrayBuffer of its
 * own, a typed array is copied into a segment. Nothing stays mapped. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "js.h"

/* ---- take(host | null, name | null, generation, dtype, d0, d1) ------------------------------- */

static bool read_head(napi_env env, const napi_value *args, rpc_shm_head_t *head) {
    uint64_t dtype = 0;
    memset(head, 0, sizeof *head);
    if (!js_count(env, args[0], "generation", 1, &head->generation) ||
        !js_count(env, args[1], "dtype", 1, &dtype) ||
        !js_count(env, args[2], "d0", 1, &head->dims[0]) ||
        !js_count(env, args[3], "d1", 0, &head->dims[1])) return false;
    if (dtype > RPC_DTYPE_F32 || head->dims[0] > RPC_SHM_BYTES_MAX ||
        head->dims[1] > RPC_SHM_BYTES_MAX) {
        (void)js_throw(env, "no tensor of shared memory");
        return false;
    }
    head->dtype = (rpc_dtype_t)dtype;
    head->n_dims = head->dims[1] > 0 ? 2 : 1;
    head->n_bytes = head->dims[0] * (head->n_dims > 1 ? head->dims[1] : 1) *
                    rpc_dtype_bytes(head->dtype);
    const char *why = rpc_shm_head_check(head);
    if (why != NULL) (void)js_throw(env, "no tensor of shared memory: %s", why);
    return why == NULL;
}

static napi_value copy_out(napi_env env, int fd, const rpc_shm_head_t *wanted) {
    rpc_shm_head_t head;
    napi_value buffer = NULL;
    void *data = NULL;
    const char *why = rpc_shm_load_head(fd, &head);
    if (why == NULL && !rpc_shm_head_is_equal(&head, wanted)) why = "its header says another thing";
    if (why != NULL) return js_throw(env, "the segment is bad: %s", why);
    if (napi_create_arraybuffer(env, (size_t)head.n_bytes, &data, &buffer) != napi_ok) {
        return js_throw(env, "no memory for %llu bytes", (unsigned long long)head.n_bytes);
    }
    if (!rpc_shm_load(fd, &head, data)) return js_throw(env, "the segment was cut");
    return buffer;
}

napi_value segments_take(napi_env env, napi_callback_info info) {
    napi_value args[JS_ARGS_MAX];
    rpc_shm_head_t head;
    host_t *host = NULL;
    char *name = NULL;
    size_t n_bytes = 0;
    int fd = -1;
    if (!js_args(env, info, 6, args) || !read_head(env, args + 2, &head)) return NULL;
    if (js_is_null(env, args[1])) {
        if (!js_host(env, args[0], &host)) return NULL;
        if (host != NULL) fd = host_take(host, head.generation);
    } else {
        if (!js_text(env, args[1], "name", &name, &n_bytes)) return NULL;
        fd = strlen(name) == n_bytes ? rpc_shm_open(name) : -1;
        if (fd >= 0) rpc_shm_unlink(name); /* both sides hold it */
        free(name);
    }
    if (fd < 0) return js_throw(env, "there is no such segment");
    napi_value buffer = copy_out(env, fd, &head);
    (void)close(fd);
    return buffer;
}

/* ---- give(host | null, data, generation, d0, d1) --------------------------------------------- */

static bool read_data(napi_env env, napi_value value, rpc_dtype_t *dtype, const void **data,
                      size_t *n_values) {
    napi_typedarray_type type = napi_uint8_array;
    bool is_array = false;
    void *bytes = NULL;
    if (napi_is_typedarray(env, value, &is_array) != napi_ok || !is_array ||
        napi_get_typedarray_info(env, value, &type, n_values, &bytes, NULL, NULL) != napi_ok) {
        (void)js_throw(env, "data must be a typed array");
        return false;
    }
    *data = bytes;
    *dtype = type == napi_uint8_array     ? RPC_DTYPE_U8
             : type == napi_int32_array   ? RPC_DTYPE_I32
             : type == napi_float32_array ? RPC_DTYPE_F32
                                          : (rpc_dtype_t)0;
    if (*dtype != 0) return true;
    (void)js_throw(env, "data must be a Uint8Array, an Int32Array or a Float32Array");
    return false;
}

static napi_value give(napi_env env, host_t *host, rpc_shm_t *shm, const rpc_shm_head_t *head) {
    napi_value result = NULL;
    if (rpc_shm_seal(shm, head) != KR_OK) return js_throw(env, "cannot seal shared memory");
    if (shm->kind == RPC_SHM_MEMFD) {
        const int fd = shm->fd;
        shm->fd = -1;
        if (!host_give(host, fd)) return js_throw(env, "too many segments wait, or it has ended");
        (void)napi_get_null(env, &result);
        return result;
    }
    if (rpc_shm_link(shm) != KR_OK) return js_throw(env, "cannot name shared memory");
    if (napi_create_string_utf8(env, shm->name, NAPI_AUTO_LENGTH, &result) == napi_ok) {
        return result;
    }
    rpc_shm_unlink(shm->name);
    return js_throw(env, "no memory");
}

napi_value segments_give(napi_env env, napi_callback_info info) {
    napi_value args[JS_ARGS_MAX];
    rpc_shm_head_t head = {0};
    rpc_shm_t shm;
    host_t *host = NULL;
    const void *data = NULL;
    size_t n_values = 0;
    if (!js_args(env, info, 5, args)) return NULL;
    const bool is_named = js_is_null(env, args[0]);
    if (!is_named && !js_host(env, args[0], &host)) return NULL;
    if (!is_named && host == NULL) return js_throw(env, "it has ended");
    if (!read_data(env, args[1], &head.dtype, &data, &n_values)) return NULL;
    if (!js_count(env, args[2], "generation", 1, &head.generation) ||
        !js_count(env, args[3], "d0", 1, &head.dims[0]) ||
        !js_count(env, args[4], "d1", 0, &head.dims[1])) return NULL;
    head.n_dims = head.dims[1] > 0 ? 2 : 1;
    head.n_bytes = (uint64_t)n_values * rpc_dtype_bytes(head.dtype);
    const char *why = rpc_shm_head_check(&head);
    if (why != NULL) return js_throw(env, "no tensor of shared memory: %s", why);
    const rpc_shm_kind_t kind = is_named ? RPC_SHM_POSIX : RPC_SHM_MEMFD;
    if (rpc_shm_create(kind, (size_t)head.n_bytes, &shm) != KR_OK) {
        return js_throw(env, "no shared memory of %llu bytes", (unsigned long long)head.n_bytes);
    }
    memcpy(shm.data, data, (size_t)head.n_bytes);
    napi_value result = give(env, host, &shm, &head);
    rpc_shm_deinit(&shm);
    return result;
}

/* ---- unlink(name), sweep() ------------------------------------------------------------------- */

napi_value segments_unlink(napi_env env, napi_callback_info info) {
    napi_value args[JS_ARGS_MAX];
    char *name = NULL;
    size_t n_bytes = 0;
    if (!js_args(env, info, 1, args) || !js_text(env, args[0], "name", &name, &n_bytes)) {
        return NULL;
    }
    const int fd = strlen(name) == n_bytes ? rpc_shm_open(name) : -1; /* no other file's name */
    if (fd >= 0) {
        rpc_shm_unlink(name);
        (void)close(fd);
    }
    free(name);
    return NULL;
}

napi_value segments_sweep(napi_env env, napi_callback_info info) {
    (void)info;
    return js_number(env, rpc_shm_sweep());
}

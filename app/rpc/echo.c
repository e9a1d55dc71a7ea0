/* echo.c: runtime/echo gives a tensor back, in shared memory what is large enough for it: with it a
 * client finds out whether both sides see the same memory, and what the way costs. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "shared.h"

#define VALUES_MAX (RPC_SHM_BYTES_MAX / 4)

static bool set_value(rpc_tensor_t *tensor, size_t index, const json_t *value) {
    const double number = json_is_number(value) ? json_number_value(value) : NAN;
    void *data = tensor->data;
    if (tensor->head.dtype == RPC_DTYPE_F32) {
        ((float *)data)[index] = (float)number;
        return isfinite((float)number);
    }
    const bool is_byte = tensor->head.dtype == RPC_DTYPE_U8;
    const json_int_t whole = json_integer_value(value);
    if (!json_is_integer(value) || whole < (is_byte ? 0 : INT32_MIN) ||
        whole > (is_byte ? UINT8_MAX : INT32_MAX)) return false;
    if (is_byte) ((uint8_t *)data)[index] = (uint8_t)whole;
    else ((int32_t *)data)[index] = (int32_t)whole;
    return true;
}

static void no_memory(json_reader_t *reader) {
    json_fail(reader, "overloaded", "tensor", "no memory for this tensor now");
}

/* {"dtype", "shape", "data"} */
static void read_values(rpc_conn_t *conn, json_reader_t *reader, json_t *value,
                        rpc_tensor_t *tensor) {
    static const char *const dtypes[] = {"u8", "i32", "f32", NULL};
    json_reader_t inner;
    json_t *shape = NULL, *data = NULL;
    uint32_t dtype = 0;
    json_open(&inner, value, "tensor", reader->error);
    json_require(&inner, "dtype");
    (void)json_read_word(&inner, "dtype", dtypes, &dtype);
    json_require(&inner, "shape");
    (void)json_read_array(&inner, "shape", 1, RPC_SHM_DIMS_MAX, &shape);
    json_require(&inner, "data");
    (void)json_read_array(&inner, "data", 1, VALUES_MAX, &data);
    json_finish(&inner);
    if (reader->error->is_set) return;
    uint64_t dims[RPC_SHM_DIMS_MAX] = {0, 0};
    for (size_t i = 0; i < json_array_size(shape); i++) {
        const json_int_t size = json_integer_value(json_array_get(shape, i));
        dims[i] = size > 0 && size <= (json_int_t)VALUES_MAX ? (uint64_t)size : 0;
        if (dims[i] == 0) json_fail(&inner, "invalid_value", "shape", "'shape' holds sizes");
    }
    const size_t n = json_array_size(data);
    if (dims[0] * (dims[1] > 0 ? dims[1] : 1) != n) {
        json_fail(&inner, "invalid_value", "shape", "'shape' is not that of 'data'");
    }
    if (reader->error->is_set) return;
    if (!rpc_tensor_create(conn, n * 4, tensor)) no_memory(reader);
    rpc_tensor_shape(tensor, (rpc_dtype_t)(dtype + 1), dims[0], dims[1]);
    for (size_t i = 0; i < n && !reader->error->is_set; i++) {
        if (set_value(tensor, i, json_array_get(data, i))) continue;
        json_fail(&inner, "invalid_value", "data", "'data' holds what is no %s", dtypes[dtype]);
    }
}

static void read_segment(rpc_conn_t *conn, json_reader_t *reader, json_t *value,
                         rpc_tensor_t *tensor) {
    rpc_shm_head_t head;
    int fd = -1;
    if (!rpc_shared_take(conn, reader, "tensor", value, &fd, &head)) return;
    if (!rpc_tensor_create(conn, (size_t)head.n_bytes, tensor)) {
        (void)close(fd);
        no_memory(reader);
        return;
    }
    if (!rpc_shared_load(conn, reader, "tensor", fd, &head, tensor->data)) return;
    tensor->head = head;
}

static void put_value(const rpc_tensor_t *tensor, size_t index, kri_buffer_t *out) {
    const void *data = tensor->data;
    switch (tensor->head.dtype) {
    case RPC_DTYPE_F32: (void)json_put_float(out, ((const float *)data)[index]); return;
    case RPC_DTYPE_I32: (void)kri_buffer_printf(out, "%d", ((const int32_t *)data)[index]); return;
    default: (void)kri_buffer_printf(out, "%u", ((const uint8_t *)data)[index]); return;
    }
}

static void put_values(const rpc_tensor_t *tensor, kri_buffer_t *out) {
    const rpc_shm_head_t *head = &tensor->head;
    const size_t n = (size_t)head->n_bytes / rpc_dtype_bytes(head->dtype);
    if (tensor->data == NULL) out->status = KR_E_NOMEM;
    (void)kri_buffer_printf(out, "{\"dtype\":\"%s\",\"shape\":[%llu",
                            rpc_dtype_name(head->dtype), (unsigned long long)head->dims[0]);
    if (head->n_dims > 1) {
        (void)kri_buffer_printf(out, ",%llu", (unsigned long long)head->dims[1]);
    }
    (void)kri_buffer_printf(out, "],\"data\":[");
    for (size_t i = 0; i < n && out->status == KR_OK; i++) {
        if (i > 0) (void)kri_buffer_append(out, ",", 1);
        put_value(tensor, i, out);
    }
    (void)kri_buffer_append(out, "]}", 2);
}

void rpc_method_echo(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    json_t *value = NULL;
    rpc_tensor_t tensor = {.shm = {.fd = -1}};
    rpc_open(call, &reader, &mistake);
    json_require(&reader, "tensor");
    (void)json_read_object(&reader, "tensor", &value);
    json_finish(&reader);
    if (value != NULL && json_object_get(value, "data") == NULL) {
        read_segment(call->conn, &reader, value, &tensor);
    } else if (value != NULL) {
        read_values(call->conn, &reader, value, &tensor);
    }
    if (!rpc_fail_mistake(call, &mistake)) {
        kri_buffer_t out;
        kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
        (void)kri_buffer_printf(&out, "{\"tensor\":");
        if (!rpc_tensor_give(call->conn, &tensor, &out)) put_values(&tensor, &out);
        (void)kri_buffer_append(&out, "}", 1);
        rpc_reply(call, &out);
        kri_buffer_deinit(&out);
    }
    rpc_tensor_deinit(&tensor);
}

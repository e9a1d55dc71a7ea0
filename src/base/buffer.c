/* buffer.c: doubling growth up to the maximum. The capacity counts the closing NUL, the maximum
 * does not. */
#include "base/buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

#define CAPACITY_MIN 64u

void kri_buffer_init(kri_buffer_t *buffer, size_t max_bytes) {
    memset(buffer, 0, sizeof *buffer);
    /* One byte is kept for the NUL, so that sums with it cannot overflow. */
    buffer->max_bytes = max_bytes < SIZE_MAX ? max_bytes : SIZE_MAX - 1;
}

void kri_buffer_deinit(kri_buffer_t *buffer) {
    kri_free(buffer->data);
    kri_buffer_init(buffer, buffer->max_bytes);
}

/* Makes room for n_more bytes and a NUL. */
static kr_status_t grow(kri_buffer_t *buffer, size_t n_more) {
    if (n_more > buffer->max_bytes - buffer->n_bytes) return KR_E_LIMIT;
    const size_t needed = buffer->n_bytes + n_more + 1;
    if (needed <= buffer->capacity) return KR_OK;
    size_t capacity = buffer->capacity > CAPACITY_MIN ? buffer->capacity : CAPACITY_MIN;
    while (capacity < needed) capacity = capacity <= SIZE_MAX / 2 ? capacity * 2 : needed;
    if (capacity > buffer->max_bytes + 1) capacity = buffer->max_bytes + 1;
    char *data = kri_realloc(buffer->data, capacity, "buffer");
    if (data == NULL) return KR_E_NOMEM;
    buffer->data = data;
    buffer->capacity = capacity;
    return KR_OK;
}

static kr_status_t reserve(kri_buffer_t *buffer, size_t n_more) {
    const kr_status_t status = grow(buffer, n_more);
    if (status != KR_OK && buffer->status == KR_OK) buffer->status = status;
    return status;
}

kr_status_t kri_buffer_append(kri_buffer_t *buffer, const void *data, size_t n_bytes) {
    const kr_status_t status = reserve(buffer, n_bytes);
    if (status != KR_OK) return status;
    if (n_bytes > 0) memcpy(buffer->data + buffer->n_bytes, data, n_bytes);
    buffer->n_bytes += n_bytes;
    buffer->data[buffer->n_bytes] = '\0';
    return KR_OK;
}

/* Into the room that is there; what does not fit is formatted a second time. */
kr_status_t kri_buffer_printf(kri_buffer_t *buffer, const char *format, ...) {
    const size_t room = buffer->data != NULL ? buffer->capacity - buffer->n_bytes : 0;
    va_list args;
    va_start(args, format);
    const int n_chars =
        vsnprintf(room > 0 ? buffer->data + buffer->n_bytes : NULL, room, format, args);
    va_end(args);
    const kr_status_t status = n_chars < 0 ? KR_E_INVALID_ARG : reserve(buffer, (size_t)n_chars);
    if (status != KR_OK) {
        if (room > 0) buffer->data[buffer->n_bytes] = '\0';
        return status;
    }
    if ((size_t)n_chars >= room) {
        va_start(args, format);
        (void)vsnprintf(buffer->data + buffer->n_bytes, (size_t)n_chars + 1, format, args);
        va_end(args);
    }
    buffer->n_bytes += (size_t)n_chars;
    return KR_OK;
}

void kri_buffer_clear(kri_buffer_t *buffer) {
    buffer->n_bytes = 0;
    buffer->status = KR_OK;
    if (buffer->data != NULL) buffer->data[0] = '\0';
}

void kri_buffer_consume(kri_buffer_t *buffer, size_t n_bytes) {
    if (n_bytes > buffer->n_bytes) n_bytes = buffer->n_bytes;
    if (n_bytes == 0) return;
    buffer->n_bytes -= n_bytes;
    memmove(buffer->data, buffer->data + n_bytes, buffer->n_bytes + 1);
}

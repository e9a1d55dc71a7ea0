/* buffer.h: a growable byte buffer that cannot be made without a maximum. */
#ifndef KRI_BASE_BUFFER_H
#define KRI_BASE_BUFFER_H

#include <stddef.h>

#include "kr.h"

typedef struct kri_buffer_s {
    char *data;      /* NUL-terminated when not NULL */
    size_t n_bytes;
    size_t capacity;
    size_t max_bytes;
    kr_status_t status; /* of the first append that failed since init or clear; KR_OK = none */
} kri_buffer_t;

void kri_buffer_init(kri_buffer_t *buffer, size_t max_bytes);
void kri_buffer_deinit(kri_buffer_t *buffer);
/* KR_E_LIMIT past max_bytes (buffer unchanged), KR_E_NOMEM. */
kr_status_t kri_buffer_append(kri_buffer_t *buffer, const void *data, size_t n_bytes);
kr_status_t kri_buffer_printf(kri_buffer_t *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void kri_buffer_clear(kri_buffer_t *buffer);
/* Removes n_bytes from the front. */
void kri_buffer_consume(kri_buffer_t *buffer, size_t n_bytes);

#endif

/* gguf_builder.h: makes GGUF files in memory, valid ones and, through the raw parts, broken ones.
 * Header only; for tests, fuzzing and the tiny-model tool. Out of memory ends the program. */
#ifndef KR_GGUF_BUILDER_H
#define KR_GGUF_BUILDER_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct gguf_bytes_s { uint8_t *data; size_t n, capacity; } gguf_bytes_t;

static inline void gguf_put(gguf_bytes_t *bytes, const void *data, size_t n) {
    if (bytes->n + n > bytes->capacity) {
        bytes->capacity = 2 * (bytes->n + n) + 256;
        bytes->data = realloc(bytes->data, bytes->capacity);
        if (!bytes->data) abort();
    }
    if (n) memcpy(bytes->data + bytes->n, data, n);
    bytes->n += n;
}
static inline void gguf_put_le(gguf_bytes_t *bytes, uint64_t value, size_t n) {
    uint8_t le[8];
    for (size_t i = 0; i < n; i++) le[i] = (uint8_t)(value >> (8 * i));
    gguf_put(bytes, le, n);
}
static inline void gguf_put_str(gguf_bytes_t *bytes, const char *text) {
    gguf_put_le(bytes, strlen(text), 8);
    gguf_put(bytes, text, strlen(text));
}
static inline void gguf_put_f32(gguf_bytes_t *bytes, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    gguf_put_le(bytes, bits, 4);
}
static inline void gguf_pad(gguf_bytes_t *bytes, size_t alignment) {
    while (bytes->n % alignment) gguf_put_le(bytes, 0, 1);
}

/* Fields may be set between init and build to lie about counts. */
typedef struct gguf_builder_s {
    uint32_t version, alignment;
    uint64_t n_kvs, n_tensors;
    gguf_bytes_t kvs, infos, data;
} gguf_builder_t;

static inline void gguf_builder_init(gguf_builder_t *b) {
    memset(b, 0, sizeof *b);
    b->version = 3;
    b->alignment = 32;
}
static inline void gguf_builder_deinit(gguf_builder_t *b) {
    free(b->kvs.data);
    free(b->infos.data);
    free(b->data.data);
    memset(b, 0, sizeof *b);
}

/* ---- keys; types are the format's numbers (src/model/gguf.h) ------------------------------ */

static inline void gguf_key(gguf_builder_t *b, const char *key, uint32_t type) {
    gguf_put_str(&b->kvs, key);
    gguf_put_le(&b->kvs, type, 4);
    b->n_kvs++;
}
/* A scalar of n little-endian bytes. */
static inline void gguf_kv(gguf_builder_t *b, const char *key, uint32_t type, uint64_t value,
                           size_t n) {
    gguf_key(b, key, type);
    gguf_put_le(&b->kvs, value, n);
}
static inline void gguf_kv_u32(gguf_builder_t *b, const char *key, uint32_t value) {
    gguf_kv(b, key, 4, value, 4);
}
static inline void gguf_kv_bool(gguf_builder_t *b, const char *key, int value) {
    gguf_kv(b, key, 7, value != 0, 1);
}
static inline void gguf_kv_f32(gguf_builder_t *b, const char *key, float value) {
    gguf_key(b, key, 6);
    gguf_put_f32(&b->kvs, value);
}
static inline void gguf_kv_str(gguf_builder_t *b, const char *key, const char *text) {
    gguf_key(b, key, 8);
    gguf_put_str(&b->kvs, text);
}
/* Only the head of an array; its items follow through gguf_put* on b->kvs. */
static inline void gguf_kv_array(gguf_builder_t *b, const char *key, uint32_t type, uint64_t n) {
    gguf_key(b, key, 9);
    gguf_put_le(&b->kvs, type, 4);
    gguf_put_le(&b->kvs, n, 8);
}

/* ---- tensors; dims innermost first, types are ggml's numbers (src/tensor/dtypes.def) ------- */

static inline void gguf_info(gguf_builder_t *b, const char *name, uint32_t type, uint32_t n_dims,
                             const uint64_t *dims, uint64_t offset) {
    gguf_put_str(&b->infos, name);
    gguf_put_le(&b->infos, n_dims, 4);
    for (uint32_t i = 0; i < n_dims; i++) gguf_put_le(&b->infos, dims[i], 8);
    gguf_put_le(&b->infos, type, 4);
    gguf_put_le(&b->infos, offset, 8);
    b->n_tensors++;
}
static inline void gguf_tensor(gguf_builder_t *b, const char *name, uint32_t type,
                               uint32_t n_dims, const uint64_t *dims, const void *data,
                               size_t n_bytes) {
    gguf_pad(&b->data, b->alignment);
    gguf_info(b, name, type, n_dims, dims, b->data.n);
    gguf_put(&b->data, data, n_bytes);
}

/* The whole file; the caller frees the bytes. */
static inline gguf_bytes_t gguf_build(const gguf_builder_t *b) {
    gguf_bytes_t file = {NULL, 0, 0};
    gguf_put(&file, "GGUF", 4);
    gguf_put_le(&file, b->version, 4);
    gguf_put_le(&file, b->n_tensors, 8);
    gguf_put_le(&file, b->n_kvs, 8);
    gguf_put(&file, b->kvs.data, b->kvs.n);
    gguf_put(&file, b->infos.data, b->infos.n);
    gguf_pad(&file, b->alignment);
    gguf_put(&file, b->data.data, b->data.n);
    gguf_pad(&file, b->alignment);
    return file;
}

/* Writes bytes to a file; 0 on success. */
static inline int gguf_write(const gguf_bytes_t *bytes, const char *path) {
    FILE *file = fopen(path, "wb");
    if (!file) return -1;
    size_t n = fwrite(bytes->data, 1, bytes->n, file);
    return fclose(file) == 0 && n == bytes->n ? 0 : -1;
}

#endif

/* gguf.h: GGUF v2/v3 reader over mapped files. Everything is validated against the bytes present
 * before anything is allocated or used; limits of docs/limits.md. Typed getters are the only
 * access. Source: the GGUF specification in the ggml repository (docs/gguf.md).
 * Threads: open in one, read from any. */
#ifndef KRI_MODEL_GGUF_H
#define KRI_MODEL_GGUF_H

#include "base/os.h"
#include "kr.h"
#include "tensor/dtype.h"

typedef struct kri_gguf_s kri_gguf_t;

/* GGUF value types, numbers of the format. */
typedef enum kri_gguf_type_e {
    KRI_GGUF_U8 = 0, KRI_GGUF_I8, KRI_GGUF_U16, KRI_GGUF_I16, KRI_GGUF_U32, KRI_GGUF_I32,
    KRI_GGUF_F32, KRI_GGUF_BOOL, KRI_GGUF_STRING, KRI_GGUF_ARRAY, KRI_GGUF_U64, KRI_GGUF_I64,
    KRI_GGUF_F64
} kri_gguf_type_t;

typedef struct kri_str_s { const char *data; size_t n_bytes; } kri_str_t; /* borrowed, no NUL */

typedef struct kri_gguf_array_s {
    kri_gguf_type_t type; /* element type */
    uint64_t n;
    const uint8_t *data;  /* n little-endian values, unaligned; strings each behind its length */
    uint64_t n_bytes;     /* of data */
} kri_gguf_array_t;

/* Opens path; when it is the first part of a split set (split.count > 1, name ends in
 * -00001-of-000NN.gguf) opens the others beside it. Errors: kr_model_open's. */
kr_status_t kri_gguf_open(const char *path, kri_gguf_t **gguf, kr_error_t *error);
/* The same over bytes in memory (fuzzing, tests); borrowed until close. */
kr_status_t kri_gguf_open_memory(const void *data, size_t n_bytes, kri_gguf_t **gguf,
                                 kr_error_t *error);
void kri_gguf_close(kri_gguf_t *gguf);

uint32_t kri_gguf_version(const kri_gguf_t *gguf);
uint64_t kri_gguf_file_bytes(const kri_gguf_t *gguf); /* all parts */
uint32_t kri_gguf_n_parts(const kri_gguf_t *gguf);
const char *kri_gguf_part_path(const kri_gguf_t *gguf, uint32_t part);
const kri_map_t *kri_gguf_part_map(const kri_gguf_t *gguf, uint32_t part);

/* Keys (of a split set: those of the first part). Getters: KR_E_NOT_FOUND when absent (no error
 * text), KR_E_BAD_FORMAT naming the key when the stored type is another or the value does not fit.
 * u32 accepts any integer type in range. */
kr_status_t kri_gguf_get_u32(const kri_gguf_t *gguf, const char *key, uint32_t *value,
                             kr_error_t *error);
kr_status_t kri_gguf_get_f32(const kri_gguf_t *gguf, const char *key, float *value,
                             kr_error_t *error);
kr_status_t kri_gguf_get_bool(const kri_gguf_t *gguf, const char *key, bool *value,
                              kr_error_t *error);
kr_status_t kri_gguf_get_str(const kri_gguf_t *gguf, const char *key, kri_str_t *value,
                             kr_error_t *error);
kr_status_t kri_gguf_get_array(const kri_gguf_t *gguf, const char *key, kri_gguf_type_t type,
                               kri_gguf_array_t *value, kr_error_t *error);
/* The string at byte *at of the data (0 = the first); moves *at to the next. False at the end, and
 * where the file changed since it was opened. */
bool kri_gguf_array_next(const kri_gguf_array_t *array, uint64_t *at, kri_str_t *value);
float kri_gguf_array_f32(const kri_gguf_array_t *array, uint64_t index);
int64_t kri_gguf_array_int(const kri_gguf_array_t *array, uint64_t index);
/* Enumeration for `inspect`: C-string key and the value as text (arrays: "[n] first, second...",
 * cut to cap). KR_E_NOT_FOUND past the last. */
kr_status_t kri_gguf_meta(const kri_gguf_t *gguf, uint32_t index, const char **key, char *buf,
                          size_t cap);

/* Tensors of all parts in file order. Shapes are given outermost first (the file stores them
 * innermost first). Data pointers borrow the mapping. */
typedef struct kri_gguf_tensor_s {
    const char *name; /* C string owned by the reader */
    kri_tensor_t tensor;
    uint32_t part;
    uint64_t offset;  /* of the data in its part's file */
} kri_gguf_tensor_t;
uint32_t kri_gguf_n_tensors(const kri_gguf_t *gguf);
const kri_gguf_tensor_t *kri_gguf_tensor(const kri_gguf_t *gguf, uint32_t index);
const kri_gguf_tensor_t *kri_gguf_find(const kri_gguf_t *gguf, const char *name); /* or NULL */
/* Drops the file pages of bytes [begin, end) of a tensor from memory (they were packed). */
void kri_gguf_release(const kri_gguf_t *gguf, const kri_gguf_tensor_t *tensor, size_t begin,
                      size_t end);

#endif

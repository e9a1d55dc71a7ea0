/* gguf_impl.h: what the files of the GGUF reader share; nobody else includes it.
 * The scan walks everything with a bounded cursor and keeps one record for each key (their number
 * is checked against the bytes of the file), the load takes exactly what the scan counted. So no
 * hostile count can size an allocation. */
#ifndef KRI_MODEL_GGUF_IMPL_H
#define KRI_MODEL_GGUF_IMPL_H

#include <stdbool.h>

#include "base/os.h"
#include "kr.h"
#include "model/gguf.h"

/* Limits; docs/limits.md lists them. */
#define KRI_GGUF_KEYS_MAX 65536u
#define KRI_GGUF_KEY_BYTES_MAX 65535u
#define KRI_GGUF_TENSORS_MAX 262144u /* 2^18: the overlap sweep packs an index into 18 bits */
#define KRI_GGUF_NAME_BYTES_MAX 255u
#define KRI_GGUF_STRING_BYTES_MAX ((uint64_t)16 << 20)
#define KRI_GGUF_ARRAY_ITEMS_MAX ((uint64_t)64 << 20)
#define KRI_GGUF_ARRAY_BYTES_MAX ((uint64_t)512 << 20)
#define KRI_GGUF_ALIGNMENT_MIN 8u
#define KRI_GGUF_ALIGNMENT_MAX 65536u
#define KRI_GGUF_ALIGNMENT_DEFAULT 32u
#define KRI_GGUF_PARTS_MAX 1024u
#define KRI_GGUF_FILE_BYTES_MAX ((uint64_t)1 << 46)

/* A bounded reader over one part. After a failure the position is unspecified. */
typedef struct kri_gguf_cursor_s {
    const uint8_t *data;
    uint64_t n_bytes, pos;
    uint32_t part, n_parts; /* for messages: "part 2: " when there are several */
    kr_error_t *error;
} kri_gguf_cursor_t;

/* One key with its value, pointing into the file. */
typedef struct kri_gguf_kv_s {
    const char *key; /* a C string once loaded; in the scan key_bytes bytes */
    uint32_t key_bytes;
    kri_gguf_type_t type, array_type;
    uint64_t n;          /* bytes of a string, elements of an array */
    uint64_t n_bytes;    /* of all elements */
    const uint8_t *data; /* the value, the string's bytes, or the first element */
} kri_gguf_kv_t;

/* One tensor description as the file has it. */
typedef struct kri_gguf_entry_s {
    const char *name; /* name_bytes bytes */
    uint32_t name_bytes, n_dims;
    uint64_t dims[4]; /* innermost first */
    kr_dtype_t dtype;
    uint64_t n_bytes, offset; /* of the data, in the data area */
    uint64_t pos;             /* of this description in the file */
} kri_gguf_entry_t;

typedef struct kri_gguf_slot_s { uint32_t tag, index; } kri_gguf_slot_t; /* index + 1; 0 = free */

/* Name to index; open addressing, at most half full. */
typedef struct kri_gguf_table_s {
    kri_gguf_slot_t *slots;
    uint32_t mask;
    uint64_t seed;
} kri_gguf_table_t;

typedef struct kri_gguf_part_s {
    kri_map_t map;
    bool is_mapped; /* else the bytes are borrowed */
    char *path;
    /* from the scan */
    uint32_t version, n_kvs, n_tensors;
    uint64_t tensors_pos, tensors_end;
    uint64_t key_text_bytes, name_text_bytes;
    kri_gguf_kv_t *kvs;
    /* from the load */
    char *key_text;
    kri_gguf_table_t keys;
    uint64_t alignment, data_pos; /* where the data area begins */
} kri_gguf_part_t;

struct kri_gguf_s {
    kri_gguf_part_t *parts;
    uint32_t n_parts, n_tensors;
    kri_gguf_tensor_t *tensors;
    char *name_text;
    uint64_t name_text_bytes;
    kri_gguf_table_t names;
};

/* gguf_read.c */
kr_status_t kri_gguf_fail(const kri_gguf_cursor_t *cursor, kr_status_t code, const char *param,
                          size_t param_bytes, uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 6, 7)));
kr_status_t kri_gguf_read_u32(kri_gguf_cursor_t *cursor, const char *field, uint32_t *value);
kr_status_t kri_gguf_read_u64(kri_gguf_cursor_t *cursor, const char *field, uint64_t *value);
kr_status_t kri_gguf_read_name(kri_gguf_cursor_t *cursor, const char *field, uint32_t max,
                               kri_str_t *value);
kr_status_t kri_gguf_read_kv(kri_gguf_cursor_t *cursor, kri_gguf_kv_t *kv);
kr_status_t kri_gguf_read_entry(kri_gguf_cursor_t *cursor, kri_gguf_entry_t *entry);
uint32_t kri_gguf_le32(const uint8_t *data);
uint64_t kri_gguf_le64(const uint8_t *data);
uint32_t kri_gguf_type_bytes(kri_gguf_type_t type); /* 0 for strings, arrays and unknown types */
const char *kri_gguf_type_name(kri_gguf_type_t type);

/* gguf_table.c */
typedef const char *(*kri_gguf_name_fn)(const void *items, uint32_t index, uint32_t *n_bytes);
/* KR_E_NOMEM; KR_E_EXISTS with *duplicate; KR_E_LIMIT (names made to collide, *duplicate). */
kr_status_t kri_gguf_table_build(kri_gguf_table_t *table, const void *items, uint32_t n,
                                 kri_gguf_name_fn name, uint32_t *duplicate);
void kri_gguf_table_deinit(kri_gguf_table_t *table);
/* Index of a name, or UINT32_MAX. */
uint32_t kri_gguf_table_find(const kri_gguf_table_t *table, const void *items,
                             kri_gguf_name_fn name, const char *key, size_t n_bytes);

/* gguf_parse.c: header, keys and shape of one part. */
kr_status_t kri_gguf_part_scan(kri_gguf_part_t *part, kri_gguf_cursor_t *cursor);
kr_status_t kri_gguf_part_load(kri_gguf_part_t *part, kri_gguf_cursor_t *cursor);
void kri_gguf_part_deinit(kri_gguf_part_t *part);
const kri_gguf_kv_t *kri_gguf_part_find(const kri_gguf_part_t *part, const char *key);
kr_status_t kri_gguf_part_u32(const kri_gguf_part_t *part, const char *key, uint32_t *value,
                              kr_error_t *error);

/* gguf_tensors.c: the tensors of all loaded parts. */
kr_status_t kri_gguf_tensors_load(kri_gguf_t *gguf, kr_error_t *error);

#endif

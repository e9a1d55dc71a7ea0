/* gguf_read.c: the bounded cursor of the GGUF reader and the two records of the format, the key
 * with its value and the tensor description. Nothing here takes memory; every length is compared
 * with the bytes left before it is used, and every refusal names the field and its offset. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/utf8.h"
#include "model/gguf_impl.h"

uint32_t kri_gguf_le32(const uint8_t *data) {
    return (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 |
           (uint32_t)data[3] << 24;
}

uint64_t kri_gguf_le64(const uint8_t *data) {
    return (uint64_t)kri_gguf_le32(data) | (uint64_t)kri_gguf_le32(data + 4) << 32;
}

uint32_t kri_gguf_type_bytes(kri_gguf_type_t type) {
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return (uint32_t)type < sizeof bytes ? bytes[type] : 0;
}

const char *kri_gguf_type_name(kri_gguf_type_t type) {
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return (uint32_t)type < sizeof names / sizeof names[0] ? names[type] : "?";
}

/* Names in messages are cut: a key may be 64 KiB long. */
kr_status_t kri_gguf_fail(const kri_gguf_cursor_t *cursor, kr_status_t code, const char *param,
                          size_t param_bytes, uint64_t offset, const char *format, ...) {
    if (!cursor->error) return code;
    char name[64], prefix[24] = "", text[320];
    size_t n = param_bytes < sizeof name - 1 ? param_bytes : sizeof name - 1;
    n = kri_utf8_valid_prefix(param, n);
    memcpy(name, param, n);
    name[n] = 0;
    if (cursor->n_parts > 1) snprintf(prefix, sizeof prefix, "part %u: ", cursor->part + 1);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (offset == UINT64_MAX)
        return kri_error_set(cursor->error, code, name, offset, "GGUF %s%s: %s", prefix, name,
                             text);
    return kri_error_set(cursor->error, code, name, offset, "GGUF %s%s: %s (at byte %llu)", prefix,
                         name, text, (unsigned long long)offset);
}

static kr_status_t fail_field(const kri_gguf_cursor_t *cursor, kr_status_t code,
                              const char *field, uint64_t offset, const char *text) {
    return kri_gguf_fail(cursor, code, field, strlen(field), offset, "%s", text);
}

static uint64_t bytes_left(const kri_gguf_cursor_t *cursor) {
    return cursor->n_bytes - cursor->pos;
}

kr_status_t kri_gguf_read_u32(kri_gguf_cursor_t *cursor, const char *field, uint32_t *value) {
    if (bytes_left(cursor) < 4)
        return fail_field(cursor, KR_E_TRUNCATED, field, cursor->pos, "the file ends here");
    *value = kri_gguf_le32(cursor->data + cursor->pos);
    cursor->pos += 4;
    return KR_OK;
}

kr_status_t kri_gguf_read_u64(kri_gguf_cursor_t *cursor, const char *field, uint64_t *value) {
    if (bytes_left(cursor) < 8)
        return fail_field(cursor, KR_E_TRUNCATED, field, cursor->pos, "the file ends here");
    *value = kri_gguf_le64(cursor->data + cursor->pos);
    cursor->pos += 8;
    return KR_OK;
}

/* Keys and tensor names become C strings and log text: no NUL, no control bytes, UTF-8. */
static bool name_is_plain(const char *name, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f) return false;
    return kri_utf8_valid_prefix(name, n_bytes) == n_bytes;
}

kr_status_t kri_gguf_read_name(kri_gguf_cursor_t *cursor, const char *field, uint32_t max,
                               kri_str_t *value) {
    uint64_t start = cursor->pos, n = 0;
    KR_TRY(kri_gguf_read_u64(cursor, field, &n));
    if (n > bytes_left(cursor))
        return kri_gguf_fail(cursor, KR_E_TRUNCATED, field, strlen(field), start,
                             "length %llu is more than the %llu bytes left",
                             (unsigned long long)n, (unsigned long long)bytes_left(cursor));
    if (n == 0) return fail_field(cursor, KR_E_BAD_FORMAT, field, start, "empty");
    if (n > max)
        return kri_gguf_fail(cursor, KR_E_LIMIT, field, strlen(field), start,
                             "length %llu is over the limit of %u", (unsigned long long)n, max);
    const char *text = (const char *)cursor->data + cursor->pos;
    if (!name_is_plain(text, (size_t)n))
        return fail_field(cursor, KR_E_BAD_FORMAT, field, start,
                          "not plain UTF-8 text without control bytes");
    cursor->pos += n;
    *value = (kri_str_t){text, (size_t)n};
    return KR_OK;
}

static kr_status_t fail_key(const kri_gguf_cursor_t *cursor, kr_status_t code,
                            const kri_gguf_kv_t *kv, const char *text) {
    return kri_gguf_fail(cursor, code, kv->key, kv->key_bytes, cursor->pos, "%s", text);
}

static kr_status_t fail_key_bytes(const kri_gguf_cursor_t *cursor, const kri_gguf_kv_t *kv,
                                  const char *what, uint64_t n) {
    return kri_gguf_fail(cursor, KR_E_TRUNCATED, kv->key, kv->key_bytes, cursor->pos,
                         "%s %llu does not fit the %llu bytes left", what,
                         (unsigned long long)n, (unsigned long long)bytes_left(cursor));
}

/* A string value: its length field, then its bytes. */
static kr_status_t read_string(kri_gguf_cursor_t *cursor, const kri_gguf_kv_t *kv, uint64_t *n) {
    if (bytes_left(cursor) < 8) return fail_key_bytes(cursor, kv, "length field of", 8);
    uint64_t length = kri_gguf_le64(cursor->data + cursor->pos);
    if (length > bytes_left(cursor) - 8) return fail_key_bytes(cursor, kv, "string of", length);
    if (length > KRI_GGUF_STRING_BYTES_MAX)
        return fail_key(cursor, KR_E_LIMIT, kv, "string over 16 MiB");
    cursor->pos += 8 + length;
    *n = length;
    return KR_OK;
}

/* Booleans are one byte, 0 or 1; anything else would be coerced silently. */
static kr_status_t check_bools(const kri_gguf_cursor_t *cursor, const kri_gguf_kv_t *kv,
                               const uint8_t *data, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        if (data[i] > 1)
            return fail_key(cursor, KR_E_BAD_FORMAT, kv, "bool that is neither 0 nor 1");
    return KR_OK;
}

static kr_status_t read_string_items(kri_gguf_cursor_t *cursor, kri_gguf_kv_t *kv) {
    uint64_t start = cursor->pos, length;
    for (uint64_t i = 0; i < kv->n; i++) {
        KR_TRY(read_string(cursor, kv, &length));
        if (cursor->pos - start > KRI_GGUF_ARRAY_BYTES_MAX)
            return fail_key(cursor, KR_E_LIMIT, kv, "array over 512 MiB");
    }
    kv->n_bytes = cursor->pos - start;
    return KR_OK;
}

static kr_status_t read_array(kri_gguf_cursor_t *cursor, kri_gguf_kv_t *kv) {
    if (bytes_left(cursor) < 12) return fail_key_bytes(cursor, kv, "array header of", 12);
    uint32_t type = kri_gguf_le32(cursor->data + cursor->pos);
    if (type == KRI_GGUF_ARRAY) return fail_key(cursor, KR_E_UNSUPPORTED, kv, "array of arrays");
    if (type > KRI_GGUF_F64)
        return kri_gguf_fail(cursor, KR_E_BAD_FORMAT, kv->key, kv->key_bytes, cursor->pos,
                             "unknown array element type %u", type);
    kv->array_type = (kri_gguf_type_t)type;
    kv->n = kri_gguf_le64(cursor->data + cursor->pos + 4);
    cursor->pos += 12;
    kv->data = cursor->data + cursor->pos;
    uint64_t item = kri_gguf_type_bytes(kv->array_type);
    if (kv->n > bytes_left(cursor) / (item ? item : 8))
        return fail_key_bytes(cursor, kv, "array items:", kv->n);
    if (kv->n > KRI_GGUF_ARRAY_ITEMS_MAX)
        return fail_key(cursor, KR_E_LIMIT, kv, "array over 67108864 items");
    if (item == 0) return read_string_items(cursor, kv);
    if (!kri_mul_u64(kv->n, item, &kv->n_bytes) || kv->n_bytes > KRI_GGUF_ARRAY_BYTES_MAX)
        return fail_key(cursor, KR_E_LIMIT, kv, "array over 512 MiB");
    if (kv->array_type == KRI_GGUF_BOOL) KR_TRY(check_bools(cursor, kv, kv->data, kv->n));
    cursor->pos += kv->n_bytes;
    return KR_OK;
}

kr_status_t kri_gguf_read_kv(kri_gguf_cursor_t *cursor, kri_gguf_kv_t *kv) {
    kri_str_t key;
    memset(kv, 0, sizeof *kv);
    KR_TRY(kri_gguf_read_name(cursor, "key", KRI_GGUF_KEY_BYTES_MAX, &key));
    kv->key = key.data;
    kv->key_bytes = (uint32_t)key.n_bytes;
    if (bytes_left(cursor) < 4) return fail_key_bytes(cursor, kv, "value type of", 4);
    uint32_t type = kri_gguf_le32(cursor->data + cursor->pos);
    if (type > KRI_GGUF_F64)
        return kri_gguf_fail(cursor, KR_E_BAD_FORMAT, kv->key, kv->key_bytes, cursor->pos,
                             "unknown value type %u", type);
    kv->type = (kri_gguf_type_t)type;
    cursor->pos += 4;
    if (kv->type == KRI_GGUF_ARRAY) return read_array(cursor, kv);
    if (kv->type == KRI_GGUF_STRING) {
        KR_TRY(read_string(cursor, kv, &kv->n));
        kv->data = cursor->data + (cursor->pos - kv->n);
        return KR_OK;
    }
    uint32_t n_bytes = kri_gguf_type_bytes(kv->type);
    if (bytes_left(cursor) < n_bytes) return fail_key_bytes(cursor, kv, "value of", n_bytes);
    kv->data = cursor->data + cursor->pos;
    if (kv->type == KRI_GGUF_BOOL) KR_TRY(check_bools(cursor, kv, kv->data, 1));
    cursor->pos += n_bytes;
    return KR_OK;
}

static kr_status_t fail_entry(const kri_gguf_cursor_t *cursor, kr_status_t code,
                              const kri_gguf_entry_t *entry, const char *text) {
    return kri_gguf_fail(cursor, code, entry->name, entry->name_bytes, entry->pos, "%s", text);
}

static kr_status_t read_dims(kri_gguf_cursor_t *cursor, kri_gguf_entry_t *entry,
                             uint64_t *n_items) {
    KR_TRY(kri_gguf_read_u32(cursor, "tensor dimensions", &entry->n_dims));
    if (entry->n_dims < 1 || entry->n_dims > 4)
        return kri_gguf_fail(cursor, KR_E_BAD_FORMAT, entry->name, entry->name_bytes, entry->pos,
                             "tensor has %u dimensions, not 1 to 4", entry->n_dims);
    *n_items = 1;
    for (uint32_t i = 0; i < entry->n_dims; i++) {
        KR_TRY(kri_gguf_read_u64(cursor, "tensor dimensions", &entry->dims[i]));
        if (entry->dims[i] == 0)
            return fail_entry(cursor, KR_E_BAD_FORMAT, entry, "tensor dimension is 0");
        if (!kri_mul_u64(*n_items, entry->dims[i], n_items))
            return fail_entry(cursor, KR_E_LIMIT, entry, "tensor has over 2^64 elements");
    }
    return KR_OK;
}

kr_status_t kri_gguf_read_entry(kri_gguf_cursor_t *cursor, kri_gguf_entry_t *entry) {
    kri_str_t name;
    uint64_t n_items = 0;
    uint32_t type = 0;
    memset(entry, 0, sizeof *entry);
    entry->pos = cursor->pos;
    KR_TRY(kri_gguf_read_name(cursor, "tensor name", KRI_GGUF_NAME_BYTES_MAX, &name));
    entry->name = name.data;
    entry->name_bytes = (uint32_t)name.n_bytes;
    KR_TRY(read_dims(cursor, entry, &n_items));
    KR_TRY(kri_gguf_read_u32(cursor, "tensor type", &type));
    KR_TRY(kri_gguf_read_u64(cursor, "tensor offset", &entry->offset));
    entry->dtype = kri_dtype_from_ggml(type);
    const kri_dtype_info_t *info = kri_dtype_info(entry->dtype);
    if (!info)
        return kri_gguf_fail(cursor, KR_E_UNSUPPORTED, entry->name, entry->name_bytes, entry->pos,
                             "tensor type %s (%u) is not supported", kri_ggml_type_name(type),
                             type);
    if (entry->dims[0] % info->block_items != 0)
        return kri_gguf_fail(cursor, KR_E_BAD_FORMAT, entry->name, entry->name_bytes, entry->pos,
                             "row of %llu elements is no multiple of the %u of a %s block",
                             (unsigned long long)entry->dims[0], info->block_items, info->name);
    if (!kri_dtype_bytes(entry->dtype, n_items, &entry->n_bytes))
        return fail_entry(cursor, KR_E_LIMIT, entry, "tensor has over 2^64 bytes");
    return KR_OK;
}

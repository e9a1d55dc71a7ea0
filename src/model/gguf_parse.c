/* gguf_parse.c: one part of a model: header, keys, and the extent of its tensor descriptions.
 * Scan first (one record for each key), load second (exactly what the scan counted). */
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "model/gguf_impl.h"

#define KV_BYTES_MIN 14u     /* length field, one byte of key, type, one byte of value */
#define ENTRY_BYTES_MIN 33u  /* length field, one byte of name, n_dims, one dim, type, offset */

static kr_status_t fail_header(const kri_gguf_cursor_t *cursor, kr_status_t code,
                               const char *field, uint64_t offset, uint64_t value,
                               const char *text) {
    return kri_gguf_fail(cursor, code, field, strlen(field), offset, "%llu %s",
                         (unsigned long long)value, text);
}

static kr_status_t scan_version(kri_gguf_part_t *part, kri_gguf_cursor_t *cursor) {
    uint32_t magic = 0, version = 0;
    KR_TRY(kri_gguf_read_u32(cursor, "magic", &magic));
    if (magic != 0x46554747u)
        return kri_gguf_fail(cursor, KR_E_BAD_FORMAT, "magic", 5, 0,
                             "not a GGUF file (it begins with %08x)", __builtin_bswap32(magic));
    KR_TRY(kri_gguf_read_u32(cursor, "version", &version));
    uint32_t swapped = __builtin_bswap32(version);
    if (swapped >= 1 && swapped <= 3)
        return fail_header(cursor, KR_E_UNSUPPORTED, "version", 4, swapped,
                           "in big-endian order is not supported");
    if (version != 2 && version != 3)
        return fail_header(cursor, KR_E_UNSUPPORTED, "version", 4, version,
                           "is not supported (2 and 3 are)");
    part->version = version;
    return KR_OK;
}

/* A count is compared with the bytes left in the smallest encoding before anything else. */
static kr_status_t check_count(const kri_gguf_cursor_t *cursor, const char *field,
                               uint64_t offset, uint64_t count, uint64_t item_bytes,
                               uint32_t max) {
    if (count > (cursor->n_bytes - cursor->pos) / item_bytes)
        return fail_header(cursor, KR_E_TRUNCATED, field, offset, count,
                           "is more than the rest of the file can hold");
    if (count > max)
        return kri_gguf_fail(cursor, KR_E_LIMIT, field, strlen(field), offset,
                             "%llu is over the limit of %u", (unsigned long long)count, max);
    return KR_OK;
}

kr_status_t kri_gguf_part_scan(kri_gguf_part_t *part, kri_gguf_cursor_t *cursor) {
    uint64_t n_tensors = 0, n_kvs = 0;
    if (cursor->n_bytes > KRI_GGUF_FILE_BYTES_MAX)
        return fail_header(cursor, KR_E_LIMIT, "file", UINT64_MAX, cursor->n_bytes,
                           "bytes are over the limit of 2^46");
    KR_TRY(scan_version(part, cursor));
    KR_TRY(kri_gguf_read_u64(cursor, "tensor_count", &n_tensors));
    KR_TRY(kri_gguf_read_u64(cursor, "metadata_kv_count", &n_kvs));
    KR_TRY(check_count(cursor, "tensor_count", 8, n_tensors, ENTRY_BYTES_MIN,
                       KRI_GGUF_TENSORS_MAX));
    KR_TRY(check_count(cursor, "metadata_kv_count", 16, n_kvs, KV_BYTES_MIN, KRI_GGUF_KEYS_MAX));
    part->n_kvs = (uint32_t)n_kvs;
    part->n_tensors = (uint32_t)n_tensors;
    part->kvs = kri_calloc((size_t)n_kvs + 1, sizeof *part->kvs, "gguf");
    if (!part->kvs)
        return kri_gguf_fail(cursor, KR_E_NOMEM, "keys", 4, UINT64_MAX, "out of memory");
    for (uint32_t i = 0; i < part->n_kvs; i++) {
        KR_TRY(kri_gguf_read_kv(cursor, &part->kvs[i]));
        part->key_text_bytes += (uint64_t)part->kvs[i].key_bytes + 1; /* bounded by the file */
    }
    part->tensors_pos = cursor->pos;
    for (uint32_t i = 0; i < part->n_tensors; i++) {
        kri_gguf_entry_t entry;
        KR_TRY(kri_gguf_read_entry(cursor, &entry));
        part->name_text_bytes += (uint64_t)entry.name_bytes + 1;
    }
    part->tensors_end = cursor->pos;
    return KR_OK;
}

static const char *key_of(const void *items, uint32_t index, uint32_t *n_bytes) {
    const kri_gguf_kv_t *kv = (const kri_gguf_kv_t *)items + index;
    *n_bytes = kv->key_bytes;
    return kv->key;
}

const kri_gguf_kv_t *kri_gguf_part_find(const kri_gguf_part_t *part, const char *key) {
    uint32_t index = kri_gguf_table_find(&part->keys, part->kvs, key_of, key, strlen(key));
    return index == UINT32_MAX ? NULL : &part->kvs[index];
}

static kr_status_t load_keys(kri_gguf_part_t *part, kri_gguf_cursor_t *cursor) {
    char *text = part->key_text; /* zeroed: the NULs are there */
    for (uint32_t i = 0; i < part->n_kvs; i++) {
        kri_gguf_kv_t *kv = &part->kvs[i];
        memcpy(text, kv->key, kv->key_bytes);
        kv->key = text;
        text += kv->key_bytes + 1;
    }
    uint32_t duplicate = 0;
    kr_status_t status =
        kri_gguf_table_build(&part->keys, part->kvs, part->n_kvs, key_of, &duplicate);
    if (status == KR_OK) return KR_OK;
    if (status == KR_E_NOMEM)
        return kri_gguf_fail(cursor, status, "keys", 4, UINT64_MAX, "out of memory");
    const kri_gguf_kv_t *kv = &part->kvs[duplicate];
    return kri_gguf_fail(cursor, status == KR_E_EXISTS ? KR_E_BAD_FORMAT : status, kv->key,
                         kv->key_bytes, UINT64_MAX, "%s",
                         status == KR_E_EXISTS ? "key appears twice" : "too many colliding keys");
}

static kr_status_t load_alignment(kri_gguf_part_t *part, kri_gguf_cursor_t *cursor) {
    uint32_t alignment = KRI_GGUF_ALIGNMENT_DEFAULT;
    kr_status_t status = kri_gguf_part_u32(part, "general.alignment", &alignment, cursor->error);
    if (status != KR_OK && status != KR_E_NOT_FOUND) return status;
    if (alignment < KRI_GGUF_ALIGNMENT_MIN || alignment > KRI_GGUF_ALIGNMENT_MAX ||
        (alignment & (alignment - 1)) != 0)
        return fail_header(cursor, KR_E_BAD_FORMAT, "general.alignment", UINT64_MAX, alignment,
                           "is not a power of two from 8 to 65536");
    part->alignment = alignment;
    if (!kri_align_u64(part->tensors_end, alignment, &part->data_pos))
        return fail_header(cursor, KR_E_LIMIT, "general.alignment", UINT64_MAX, alignment,
                           "overflows the data position");
    return KR_OK;
}

kr_status_t kri_gguf_part_load(kri_gguf_part_t *part, kri_gguf_cursor_t *cursor) {
    part->key_text = kri_calloc((size_t)part->key_text_bytes + 1, 1, "gguf");
    if (!part->key_text)
        return kri_gguf_fail(cursor, KR_E_NOMEM, "keys", 4, UINT64_MAX, "out of memory");
    KR_TRY(load_keys(part, cursor));
    return load_alignment(part, cursor);
}

void kri_gguf_part_deinit(kri_gguf_part_t *part) {
    kri_gguf_table_deinit(&part->keys);
    kri_free(part->key_text);
    kri_free(part->kvs);
    kri_free(part->path);
    if (part->is_mapped) kri_map_close(&part->map);
    memset(part, 0, sizeof *part);
}

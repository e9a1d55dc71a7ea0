/* gguf.c: opening and closing GGUF files, alone or in parts, and what is asked of them as a whole.
 * Reading is in gguf_read.c and gguf_parse.c, values in gguf_meta.c, tensors in gguf_tensors.c. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "model/gguf.h"
#include "model/gguf_impl.h"

#define PATH_BYTES_MAX 4096u

static kri_gguf_cursor_t cursor_of(const kri_gguf_t *gguf, uint32_t index, kr_error_t *error) {
    const kri_map_t *map = &gguf->parts[index].map;
    return (kri_gguf_cursor_t){map->data, map->size, 0, index, gguf->n_parts, error};
}

static kr_status_t read_part(kri_gguf_t *gguf, uint32_t index, kr_error_t *error) {
    kri_gguf_cursor_t cursor = cursor_of(gguf, index, error);
    KR_TRY(kri_gguf_part_scan(&gguf->parts[index], &cursor));
    return kri_gguf_part_load(&gguf->parts[index], &cursor);
}

static kr_status_t map_part(kri_gguf_t *gguf, uint32_t index, const char *path,
                            kr_error_t *error) {
    kri_gguf_part_t *part = &gguf->parts[index];
    part->path = kri_strndup(path, strlen(path), "gguf");
    if (!part->path) return KRI_FAIL(error, KR_E_NOMEM, "path", "out of memory for a path");
    KR_TRY(kri_map_open(path, &part->map, error));
    part->is_mapped = true;
    return read_part(gguf, index, error);
}

/* A split.* number, or `absent` when the key is missing. */
static kr_status_t split_u32(const kri_gguf_part_t *part, const char *key, uint32_t absent,
                             uint32_t *value, kr_error_t *error) {
    *value = absent;
    kr_status_t status = kri_gguf_part_u32(part, key, value, error);
    return status == KR_E_NOT_FOUND ? KR_OK : status;
}

/* The keys every part of a set carries; n_parts and n_tensors are what the first part says. */
static kr_status_t check_split_keys(const kri_gguf_t *gguf, uint32_t index, uint32_t n_parts,
                                    uint32_t n_tensors, kr_error_t *error) {
    const kri_gguf_part_t *part = &gguf->parts[index];
    kri_gguf_cursor_t cursor = cursor_of(gguf, index, error);
    uint32_t no, count, tensors;
    KR_TRY(split_u32(part, "split.no", UINT32_MAX, &no, error));
    KR_TRY(split_u32(part, "split.count", 0, &count, error));
    KR_TRY(split_u32(part, "split.tensors.count", UINT32_MAX, &tensors, error));
    if (no != index)
        return kri_gguf_fail(&cursor, KR_E_BAD_FORMAT, "split.no", 8, UINT64_MAX,
                             no == UINT32_MAX ? "missing" : "is %u where %u belongs", no, index);
    if (count != n_parts)
        return kri_gguf_fail(&cursor, KR_E_BAD_FORMAT, "split.count", 11, UINT64_MAX,
                             "is %u, the first part says %u", count, n_parts);
    if (tensors != n_tensors)
        return kri_gguf_fail(&cursor, KR_E_BAD_FORMAT, "split.tensors.count", 19, UINT64_MAX,
                             tensors == UINT32_MAX ? "missing" : "is %u, the first part says %u",
                             tensors, n_tensors);
    return KR_OK;
}

/* "dir/name-00001-of-00003.gguf": the length before "-00001", or 0 when it is no first part. */
static size_t split_stem(const char *path, uint32_t n_parts) {
    char suffix[40];
    int n = snprintf(suffix, sizeof suffix, "-00001-of-%05u.gguf", n_parts);
    size_t n_path = strlen(path), n_suffix = (size_t)n;
    if (n_path <= n_suffix || strcmp(path + n_path - n_suffix, suffix) != 0) return 0;
    return n_path - n_suffix;
}

static kr_status_t open_other_parts(kri_gguf_t *gguf, uint32_t n_parts, kr_error_t *error) {
    char path[PATH_BYTES_MAX + 40];
    const char *first = gguf->parts[0].path;
    uint32_t n_tensors;
    uint64_t n_seen = gguf->parts[0].n_tensors;
    size_t stem = split_stem(first, n_parts);
    if (stem == 0)
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "split.count",
                        "GGUF split.count: is %u, but the file name does not end in "
                        "-00001-of-%05u.gguf", n_parts, n_parts);
    if (stem > PATH_BYTES_MAX)
        return KRI_FAIL(error, KR_E_LIMIT, "path", "path is over %u bytes", PATH_BYTES_MAX);
    kri_gguf_part_t *parts = kri_realloc(gguf->parts, n_parts * sizeof *parts, "gguf");
    if (!parts) return KRI_FAIL(error, KR_E_NOMEM, "split.count", "out of memory for the parts");
    memset(parts + 1, 0, (n_parts - 1) * sizeof *parts);
    gguf->parts = parts;
    gguf->n_parts = n_parts;
    KR_TRY(split_u32(&parts[0], "split.tensors.count", UINT32_MAX, &n_tensors, error));
    KR_TRY(check_split_keys(gguf, 0, n_parts, n_tensors, error));
    for (uint32_t i = 1; i < n_parts; i++) {
        snprintf(path, sizeof path, "%.*s-%05u-of-%05u.gguf", (int)stem, first, i + 1, n_parts);
        KR_TRY(map_part(gguf, i, path, error));
        KR_TRY(check_split_keys(gguf, i, n_parts, n_tensors, error));
        n_seen += gguf->parts[i].n_tensors;
    }
    if (n_seen != n_tensors)
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "split.tensors.count",
                        "GGUF split.tensors.count: is %u, the parts hold %llu tensors", n_tensors,
                        (unsigned long long)n_seen);
    return KR_OK;
}

static kr_status_t open_parts(kri_gguf_t *gguf, kr_error_t *error) {
    const kri_gguf_part_t *part = &gguf->parts[0];
    uint32_t no, n_parts;
    KR_TRY(split_u32(part, "split.no", 0, &no, error));
    KR_TRY(split_u32(part, "split.count", 1, &n_parts, error));
    if (no != 0)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "split.no",
                        "GGUF split.no: this is part %u of a set, open the first part", no + 1);
    if (n_parts <= 1) return KR_OK;
    if (n_parts > KRI_GGUF_PARTS_MAX)
        return KRI_FAIL(error, KR_E_LIMIT, "split.count",
                        "GGUF split.count: %u is over the limit of %u", n_parts,
                        KRI_GGUF_PARTS_MAX);
    if (!part->is_mapped)
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "split.count",
                        "GGUF split.count: a set of %u parts cannot be read from memory", n_parts);
    return open_other_parts(gguf, n_parts, error);
}

static kr_status_t create_empty(kri_gguf_t **gguf, kr_error_t *error) {
    kri_gguf_t *self = kri_calloc(1, sizeof *self, "gguf");
    if (self) self->parts = kri_calloc(1, sizeof *self->parts, "gguf");
    if (!self || !self->parts) {
        kri_free(self);
        return KRI_FAIL(error, KR_E_NOMEM, "path", "out of memory");
    }
    self->n_parts = 1;
    *gguf = self;
    return KR_OK;
}

/* Parts are known and part 0 is read or about to be: the common rest of both ways to open. */
static kr_status_t finish_open(kri_gguf_t *self, kr_status_t status, kri_gguf_t **gguf,
                               kr_error_t *error) {
    if (status == KR_OK) status = open_parts(self, error);
    if (status == KR_OK) status = kri_gguf_tensors_load(self, error);
    if (status != KR_OK) {
        kri_gguf_close(self);
        return status;
    }
    *gguf = self;
    return KR_OK;
}

kr_status_t kri_gguf_open(const char *path, kri_gguf_t **gguf, kr_error_t *error) {
    kri_gguf_t *self = NULL;
    KR_TRY(create_empty(&self, error));
    return finish_open(self, map_part(self, 0, path, error), gguf, error);
}

kr_status_t kri_gguf_open_memory(const void *data, size_t n_bytes, kri_gguf_t **gguf,
                                 kr_error_t *error) {
    kri_gguf_t *self = NULL;
    KR_TRY(create_empty(&self, error));
    self->parts[0].map.data = data;
    self->parts[0].map.size = n_bytes;
    return finish_open(self, read_part(self, 0, error), gguf, error);
}

void kri_gguf_close(kri_gguf_t *gguf) {
    if (!gguf) return;
    kri_gguf_table_deinit(&gguf->names);
    kri_free(gguf->name_text);
    kri_free(gguf->tensors);
    for (uint32_t i = 0; i < gguf->n_parts; i++) kri_gguf_part_deinit(&gguf->parts[i]);
    kri_free(gguf->parts);
    kri_free(gguf);
}

uint32_t kri_gguf_version(const kri_gguf_t *gguf) { return gguf->parts[0].version; }

uint64_t kri_gguf_file_bytes(const kri_gguf_t *gguf) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < gguf->n_parts; i++) n += gguf->parts[i].map.size;
    return n;
}

uint32_t kri_gguf_n_parts(const kri_gguf_t *gguf) { return gguf->n_parts; }

const char *kri_gguf_part_path(const kri_gguf_t *gguf, uint32_t part) {
    const char *path = part < gguf->n_parts ? gguf->parts[part].path : NULL;
    return path ? path : "";
}

const kri_map_t *kri_gguf_part_map(const kri_gguf_t *gguf, uint32_t part) {
    return part < gguf->n_parts ? &gguf->parts[part].map : NULL;
}

void kri_gguf_release(const kri_gguf_t *gguf, const kri_gguf_tensor_t *tensor, size_t begin,
                      size_t end) {
    const kri_gguf_part_t *part = &gguf->parts[tensor->part];
    if (end > tensor->tensor.n_bytes) end = (size_t)tensor->tensor.n_bytes;
    if (!part->is_mapped || begin >= end) return;
    kri_map_release(&part->map, (size_t)tensor->offset + begin, end - begin);
}

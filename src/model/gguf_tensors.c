/* gguf_tensors.c: the tensors of all parts: inside the file, aligned, not overlapping, each name
 * once. Gaps between tensors are allowed (padding); nothing reads them. */
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "model/gguf_impl.h"

#define INDEX_BITS 18u /* KRI_GGUF_TENSORS_MAX */
#define INDEX_MASK ((1u << INDEX_BITS) - 1)
#define DIGIT_BITS 11u
#define DIGIT_MASK ((1u << DIGIT_BITS) - 1)

/* Radix sort by the offset bits; the index below them is in order already. Linear for every input,
 * which a hostile file could deny a sort by comparison. Returns where the result is. */
static uint64_t *sort_by_offset(uint64_t *items, uint64_t *spare, uint32_t n) {
    uint64_t all_bits = 0;
    for (uint32_t i = 0; i < n; i++) all_bits |= items[i];
    for (uint32_t shift = INDEX_BITS; shift < 64 && all_bits >> shift; shift += DIGIT_BITS) {
        uint32_t begin[1u << DIGIT_BITS] = {0}, sum = 0;
        for (uint32_t i = 0; i < n; i++) begin[items[i] >> shift & DIGIT_MASK]++;
        for (uint32_t digit = 0; digit <= DIGIT_MASK; digit++) {
            uint32_t count = begin[digit];
            begin[digit] = sum;
            sum += count;
        }
        for (uint32_t i = 0; i < n; i++) spare[begin[items[i] >> shift & DIGIT_MASK]++] = items[i];
        uint64_t *sorted = spare;
        spare = items;
        items = sorted;
    }
    return items;
}

static kr_status_t fail_tensor(const kri_gguf_cursor_t *cursor, kr_status_t code,
                               const kri_gguf_entry_t *entry, const char *text) {
    return kri_gguf_fail(cursor, code, entry->name, entry->name_bytes, entry->pos, "%s", text);
}

static kr_status_t place_tensor(const kri_gguf_part_t *part, const kri_gguf_cursor_t *cursor,
                                const kri_gguf_entry_t *entry, kri_gguf_tensor_t *tensor) {
    uint64_t begin, end;
    if (entry->offset % part->alignment != 0)
        return kri_gguf_fail(cursor, KR_E_BAD_FORMAT, entry->name, entry->name_bytes, entry->pos,
                             "tensor offset %llu is no multiple of the alignment %llu",
                             (unsigned long long)entry->offset,
                             (unsigned long long)part->alignment);
    if (!kri_add_u64(part->data_pos, entry->offset, &begin) ||
        !kri_add_u64(begin, entry->n_bytes, &end) || end > cursor->n_bytes)
        return kri_gguf_fail(cursor, KR_E_TRUNCATED, entry->name, entry->name_bytes, entry->pos,
                             "tensor of %llu bytes at offset %llu ends after the file (%llu bytes)",
                             (unsigned long long)entry->n_bytes,
                             (unsigned long long)entry->offset,
                             (unsigned long long)cursor->n_bytes);
    tensor->offset = begin;
    tensor->part = cursor->part;
    tensor->tensor = (kri_tensor_t){.dtype = entry->dtype, .n_dims = entry->n_dims,
                                    .n_bytes = entry->n_bytes, .data = cursor->data + begin};
    for (uint32_t i = 0; i < entry->n_dims; i++)
        tensor->tensor.shape[i] = entry->dims[entry->n_dims - 1 - i];
    return KR_OK;
}

/* Sorts (begin / 8, index) pairs and looks at neighbours. Alignment is at least 8 and files stay
 * below 2^46 bytes, so both fit one number. order: room for twice the part's tensors. */
static kr_status_t check_overlap(const kri_gguf_part_t *part, const kri_gguf_cursor_t *cursor,
                                 const kri_gguf_tensor_t *tensors, uint64_t *order) {
    bool is_sorted = true;
    for (uint32_t i = 0; i < part->n_tensors; i++) {
        order[i] = (tensors[i].offset / KRI_GGUF_ALIGNMENT_MIN) << INDEX_BITS | i;
        if (i && order[i] < order[i - 1]) is_sorted = false;
    }
    if (!is_sorted) order = sort_by_offset(order, order + part->n_tensors, part->n_tensors);
    for (uint32_t i = 1; i < part->n_tensors; i++) {
        const kri_gguf_tensor_t *a = &tensors[order[i - 1] & INDEX_MASK];
        const kri_gguf_tensor_t *b = &tensors[order[i] & INDEX_MASK];
        if (b->offset - a->offset < a->tensor.n_bytes)
            return kri_gguf_fail(cursor, KR_E_BAD_FORMAT, b->name, strlen(b->name), b->offset,
                                 "tensor data overlaps that of %.64s", a->name);
    }
    return KR_OK;
}

static kr_status_t load_part(kri_gguf_t *gguf, uint32_t index, uint32_t first, uint64_t *text_used,
                             uint64_t *order, kr_error_t *error) {
    const kri_gguf_part_t *part = &gguf->parts[index];
    kri_gguf_cursor_t cursor = {part->map.data, part->map.size, part->tensors_pos,
                                index, gguf->n_parts, error};
    if (part->n_tensors == 0) return KR_OK;
    for (uint32_t i = 0; i < part->n_tensors; i++) {
        kri_gguf_entry_t entry;
        kri_gguf_tensor_t *tensor = &gguf->tensors[first + i];
        KR_TRY(kri_gguf_read_entry(&cursor, &entry));
        if (entry.name_bytes >= gguf->name_text_bytes - *text_used)
            return fail_tensor(&cursor, KR_E_CHANGED, &entry, "name grew while the file was read");
        KR_TRY(place_tensor(part, &cursor, &entry, tensor));
        char *text = gguf->name_text + *text_used; /* zeroed: the NUL is there */
        memcpy(text, entry.name, entry.name_bytes);
        tensor->name = text;
        *text_used += (uint64_t)entry.name_bytes + 1;
    }
    return check_overlap(part, &cursor, &gguf->tensors[first], order);
}

static const char *name_of(const void *items, uint32_t index, uint32_t *n_bytes) {
    const char *name = ((const kri_gguf_tensor_t *)items + index)->name;
    *n_bytes = (uint32_t)strlen(name);
    return name;
}

static kr_status_t build_names(kri_gguf_t *gguf, kr_error_t *error) {
    uint32_t duplicate = 0;
    kr_status_t status = kri_gguf_table_build(&gguf->names, gguf->tensors, gguf->n_tensors,
                                              name_of, &duplicate);
    if (status == KR_OK) return KR_OK;
    if (status == KR_E_NOMEM)
        return KRI_FAIL(error, status, "tensors", "GGUF tensors: out of memory");
    const kri_gguf_tensor_t *tensor = &gguf->tensors[duplicate];
    kri_gguf_cursor_t cursor = {NULL, 0, 0, tensor->part, gguf->n_parts, error};
    return kri_gguf_fail(&cursor, status == KR_E_EXISTS ? KR_E_BAD_FORMAT : status, tensor->name,
                         strlen(tensor->name), UINT64_MAX, "%s",
                         status == KR_E_EXISTS ? "tensor appears twice"
                                               : "too many colliding tensor names");
}

kr_status_t kri_gguf_tensors_load(kri_gguf_t *gguf, kr_error_t *error) {
    uint64_t n_tensors = 0, text_used = 0, *order = NULL;
    kr_status_t status = KR_OK;
    for (uint32_t i = 0; i < gguf->n_parts; i++) {
        n_tensors += gguf->parts[i].n_tensors; /* at most 2^10 parts of 2^18 */
        gguf->name_text_bytes += gguf->parts[i].name_text_bytes;
    }
    if (n_tensors > KRI_GGUF_TENSORS_MAX)
        return KRI_FAIL(error, KR_E_LIMIT, "tensor_count",
                        "GGUF tensor_count: %llu tensors in all parts are over the limit of %u",
                        (unsigned long long)n_tensors, KRI_GGUF_TENSORS_MAX);
    gguf->n_tensors = (uint32_t)n_tensors;
    if (n_tensors) {
        gguf->tensors = kri_calloc((size_t)n_tensors, sizeof *gguf->tensors, "gguf");
        gguf->name_text = kri_calloc((size_t)gguf->name_text_bytes, 1, "gguf");
        order = kri_calloc((size_t)n_tensors, 2 * sizeof *order, "gguf");
        if (!gguf->tensors || !gguf->name_text || !order) {
            status = KRI_FAIL(error, KR_E_NOMEM, "tensors", "GGUF tensors: out of memory");
            goto done;
        }
    }
    for (uint32_t i = 0, first = 0; i < gguf->n_parts; first += gguf->parts[i++].n_tensors)
        KR_TRY_DONE(load_part(gguf, i, first, &text_used, order, error));
done:
    kri_free(order);
    return status == KR_OK ? build_names(gguf, error) : status;
}

uint32_t kri_gguf_n_tensors(const kri_gguf_t *gguf) { return gguf->n_tensors; }

const kri_gguf_tensor_t *kri_gguf_tensor(const kri_gguf_t *gguf, uint32_t index) {
    return index < gguf->n_tensors ? &gguf->tensors[index] : NULL;
}

const kri_gguf_tensor_t *kri_gguf_find(const kri_gguf_t *gguf, const char *name) {
    uint32_t index =
        kri_gguf_table_find(&gguf->names, gguf->tensors, name_of, name, strlen(name));
    return index == UINT32_MAX ? NULL : &gguf->tensors[index];
}

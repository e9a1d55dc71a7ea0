/* gguf_table.c: names to indices for keys and tensors. Open addressing with linear probing; the
 * hash is seeded per open and a probe is cut at PROBES_MAX, because whoever writes the file picks
 * the names and could make them collide. */
#include <string.h>
#include <xxhash.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "model/gguf_impl.h"

/* At most half full, an honest run of 2^18 names stays far below this. */
#define PROBES_MAX 512u

static uint64_t hash_of(const kri_gguf_table_t *table, const char *name, size_t n_bytes) {
    return XXH3_64bits_withSeed(name, n_bytes, table->seed);
}

static bool slot_matches(const kri_gguf_slot_t *slot, uint32_t tag, const void *items,
                         kri_gguf_name_fn name, const char *key, size_t n_bytes) {
    uint32_t n;
    if (slot->tag != tag) return false;
    const char *other = name(items, slot->index - 1, &n);
    return n == n_bytes && memcmp(other, key, n_bytes) == 0;
}

kr_status_t kri_gguf_table_build(kri_gguf_table_t *table, const void *items, uint32_t n,
                                 kri_gguf_name_fn name, uint32_t *duplicate) {
    uint32_t n_slots = 16;
    while (n_slots < 2 * n) n_slots *= 2; /* n <= 2^18 */
    table->slots = kri_calloc(n_slots, sizeof *table->slots, "gguf");
    if (!table->slots) return KR_E_NOMEM;
    table->mask = n_slots - 1;
    table->seed = kri_clock_ns() ^ (uint64_t)(uintptr_t)table->slots;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_bytes;
        const char *key = name(items, i, &n_bytes);
        uint64_t hash = hash_of(table, key, n_bytes);
        uint32_t at = (uint32_t)hash & table->mask, tag = (uint32_t)(hash >> 32), probes = 0;
        for (; table->slots[at].index; at = (at + 1) & table->mask) {
            *duplicate = i;
            if (slot_matches(&table->slots[at], tag, items, name, key, n_bytes))
                return KR_E_EXISTS;
            if (++probes == PROBES_MAX) return KR_E_LIMIT;
        }
        table->slots[at] = (kri_gguf_slot_t){tag, i + 1};
    }
    return KR_OK;
}

void kri_gguf_table_deinit(kri_gguf_table_t *table) {
    kri_free(table->slots);
    memset(table, 0, sizeof *table);
}

uint32_t kri_gguf_table_find(const kri_gguf_table_t *table, const void *items,
                             kri_gguf_name_fn name, const char *key, size_t n_bytes) {
    uint64_t hash = hash_of(table, key, n_bytes);
    uint32_t at = (uint32_t)hash & table->mask, tag = (uint32_t)(hash >> 32);
    for (; table->slots[at].index; at = (at + 1) & table->mask)
        if (slot_matches(&table->slots[at], tag, items, name, key, n_bytes))
            return table->slots[at].index - 1;
    return UINT32_MAX;
}

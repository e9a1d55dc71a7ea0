/* keys.c: see keys.h. Linear probing with backward-shift deletion (Knuth, The Art of Computer
 * Programming, volume 3, section 6.4, algorithm R), so that there are no tombstones. Keys are mixed
 * first: a caller may number its keys as it likes. */
#include "engine/keys.h"

#include "base/alloc.h"
#include "base/error.h"

kr_status_t kri_keys_init(kri_keys_t *keys, uint32_t n_keys_max) {
    uint32_t n = 16;
    while (n < UINT32_MAX / 4 && n / 2 < n_keys_max) n *= 2;
    keys->slots = kri_calloc(n, sizeof *keys->slots, "engine");
    if (!keys->slots) return KR_E_NOMEM;
    keys->mask = n - 1;
    return KR_OK;
}

void kri_keys_deinit(kri_keys_t *keys) { kri_free(keys->slots); }

static uint32_t home(const kri_keys_t *keys, uint64_t key) {
    key ^= key >> 32;
    key *= UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(key >> 32) & keys->mask;
}

/* The key's slot, or the free one where it would go. */
static uint32_t find(const kri_keys_t *keys, uint64_t key) {
    uint32_t at = home(keys, key);
    while (keys->slots[at].n != 0 && keys->slots[at].key != key) at = (at + 1) & keys->mask;
    return at;
}

uint32_t kri_keys_count(const kri_keys_t *keys, uint64_t key) {
    return keys->slots[find(keys, key)].n;
}

void kri_keys_add(kri_keys_t *keys, uint64_t key) {
    kri_key_count_t *slot = &keys->slots[find(keys, key)];
    slot->key = key;
    slot->n++;
}

void kri_keys_remove(kri_keys_t *keys, uint64_t key) {
    uint32_t hole = find(keys, key);
    KR_ASSERT(keys->slots[hole].n > 0);
    if (--keys->slots[hole].n > 0) return;
    uint32_t at = hole;
    while (keys->slots[at = (at + 1) & keys->mask].n != 0) {
        const uint32_t from = home(keys, keys->slots[at].key);
        /* An entry moves into the hole unless its home lies behind the hole. */
        if (((at - from) & keys->mask) < ((at - hole) & keys->mask)) continue;
        keys->slots[hole] = keys->slots[at];
        keys->slots[at].n = 0;
        hole = at;
    }
}

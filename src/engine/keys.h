/* keys.h: how many requests each key has in flight. Open addressing in a table sized at create for
 * every request that can be in flight, so that counting never fails and costs O(1); an entry goes
 * when its count does, so that made-up keys leave nothing behind. */
#ifndef KRI_ENGINE_KEYS_H
#define KRI_ENGINE_KEYS_H

#include <stdint.h>

#include "kr.h"

typedef struct kri_key_count_s { uint64_t key; uint32_t n; } kri_key_count_t;
typedef struct kri_keys_s {
    kri_key_count_t *slots; /* n 0 = free */
    uint32_t mask;          /* slots - 1 */
} kri_keys_t;

/* Room for n_keys_max different keys. KR_E_NOMEM. */
kr_status_t kri_keys_init(kri_keys_t *keys, uint32_t n_keys_max);
void kri_keys_deinit(kri_keys_t *keys);
uint32_t kri_keys_count(const kri_keys_t *keys, uint64_t key);
void kri_keys_add(kri_keys_t *keys, uint64_t key);
/* One less; the key was added. */
void kri_keys_remove(kri_keys_t *keys, uint64_t key);

#endif

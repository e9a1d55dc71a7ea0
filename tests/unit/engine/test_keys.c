/* test_keys.c: counts of keys against a plain array, through every collision and deletion. */
#include "engine/keys.h"

#include "test.h"

#define N_KEYS 64

TEST(keys_count_like_an_array) {
    kri_keys_t keys;
    uint64_t random = 1;
    uint32_t counts[N_KEYS] = {0}, n_used = 0;
    assert_status(kri_keys_init(&keys, 24), KR_OK); /* 64 slots: clusters and wrap-arounds */
    for (uint32_t round = 0; round < 200000; round++) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
        const uint32_t i = (uint32_t)(random >> 40) % N_KEYS;
        const uint64_t key = UINT64_C(0x100000000) * i + i % 3;
        if ((random >> 33) % 2 && (counts[i] > 0 || n_used < 24)) {
            n_used += counts[i]++ == 0;
            kri_keys_add(&keys, key);
        } else if (counts[i] > 0) {
            n_used -= --counts[i] == 0;
            kri_keys_remove(&keys, key);
        }
        assert_int_equal(kri_keys_count(&keys, key), counts[i]);
        if (round % 1000 != 0) continue;
        for (uint32_t k = 0; k < N_KEYS; k++) {
            assert_int_equal(kri_keys_count(&keys, UINT64_C(0x100000000) * k + k % 3), counts[k]);
        }
    }
    kri_keys_deinit(&keys);
}

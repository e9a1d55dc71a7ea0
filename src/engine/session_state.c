/* session_state.c: a sequence as bytes: a header and the pages that it holds. The bytes are for the
 * machine and library that made them: the header names the layout by version and the model by a
 * fingerprint, and everything is checked before a page is taken. The hash finds damage, not
 * intent: bytes that were made to deceive give wrong keys and values, but no access out of bounds.
 *
 *   0  "KRSTATE\0"        24  xxh3 fingerprint          40  n_tokens, n_groups (u32)
 *   8  version (u32)      32  payload bytes             48  first page of each group (u32 [4])
 *  12  header bytes (u32)                               64  payload: pages, group after group
 *  16  xxh3 of [24, end)                                    (little endian) */
#define XXH_STATIC_LINKING_ONLY /* the state of a hash on the stack */
#include <string.h>
#include <xxhash.h>

#include "base/error.h"
#include "engine/session_impl.h"

#define HEADER_BYTES 64u
#define VERSION 1u
#define AT_HASH 16u
#define AT_FINGERPRINT 24u

static const char magic[8] = "KRSTATE";

static void put(uint8_t *bytes, uint64_t value, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) bytes[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *bytes, uint32_t n) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < n; i++) value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

/* Shape, types and layout, and the norms of all layers: they tell models of equal shape apart
 * without reading their matrices. */
static uint64_t fingerprint(const struct kr_session_s *s) {
    const struct kr_model_s *model = s->model;
    const kri_hparams_t *hp = &model->hp;
    /* What the pages hold: INT8 keeps its keys rotated, the others do not. */
    const uint32_t attn_qk = s->info.kv_dtype == KR_DTYPE_I8         ? KR_ATTN_QK_INT16
                             : s->exec.attn_qk == KR_ATTN_QK_INT8 ? KR_ATTN_QK_INT8
                                                                  : KR_ATTN_QK_F32;
    const uint32_t numbers[] = {
        hp->n_layers, hp->n_embd, hp->n_ff, hp->n_vocab, hp->n_heads, hp->n_kv_heads,
        hp->head_dim, hp->n_rot, hp->window, hp->window_period, model->n_kv_groups,
        KRI_PAGE_TOKENS, (uint32_t)s->info.kv_dtype, attn_qk};
    const float scales[] = {hp->norm_eps, hp->rope_base, hp->rope_base_local, hp->rope_scale,
                            hp->attn_softcap, hp->final_softcap};
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, model->arch->name, strlen(model->arch->name));
    XXH3_64bits_update(&state, numbers, sizeof(numbers));
    XXH3_64bits_update(&state, scales, sizeof(scales));
    XXH3_64bits_update(&state, model->kv_groups, model->n_kv_groups * sizeof(kri_kv_desc_t));
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        XXH3_64bits_update(&state, model->layers[i].attn_norm, hp->n_embd * sizeof(float));
    }
    return XXH3_64bits_digest(&state);
}

kr_status_t kri_session_save(const struct kr_session_s *s, uint32_t seq, void *buf,
                             size_t capacity, size_t *n_bytes) {
    kri_kv_extent_t extent;
    uint64_t payload = 0;
    uint8_t *bytes = buf;
    if (seq >= s->info.n_seqs) return KR_E_INVALID_ARG;
    kri_kv_pool_extent(s->kv, seq, &extent);
    KR_TRY(kri_kv_pool_extent_bytes(s->kv, &extent, &payload));
    *n_bytes = HEADER_BYTES + (size_t)payload;
    if (capacity < *n_bytes) return KR_E_LIMIT;
    memcpy(bytes, magic, sizeof(magic));
    put(bytes + 8, VERSION, 4);
    put(bytes + 12, HEADER_BYTES, 4);
    put(bytes + AT_FINGERPRINT, fingerprint(s), 8);
    put(bytes + 32, payload, 8);
    put(bytes + 40, extent.n_tokens, 4);
    put(bytes + 44, kri_kv_pool_n_groups(s->kv), 4);
    for (uint32_t g = 0; g < KRI_KV_GROUPS_MAX; g++) put(bytes + 48 + 4 * g, extent.first[g], 4);
    kri_kv_pool_save(s->kv, seq, bytes + HEADER_BYTES);
    put(bytes + AT_HASH, XXH3_64bits(bytes + AT_FINGERPRINT, *n_bytes - AT_FINGERPRINT), 8);
    return KR_OK;
}

static kr_status_t read_header(const struct kr_session_s *s, const uint8_t *bytes, size_t n_bytes,
                               kri_kv_extent_t *extent, kr_error_t *error) {
    const size_t n_magic = n_bytes < sizeof(magic) ? n_bytes : sizeof(magic);
    if (memcmp(bytes, magic, n_magic) != 0) {
        return KRI_FAIL_AT(error, KR_E_BAD_FORMAT, "buf", 0, "not a saved session");
    }
    if (n_bytes < HEADER_BYTES) {
        return KRI_FAIL_AT(error, KR_E_TRUNCATED, "buf", n_bytes, "the header ends too early");
    }
    if (get(bytes + 8, 4) != VERSION || get(bytes + 12, 4) != HEADER_BYTES) {
        return KRI_FAIL_AT(error, KR_E_UNSUPPORTED, "buf", 8, "saved as version %u, this is %u",
                           (uint32_t)get(bytes + 8, 4), VERSION);
    }
    if (get(bytes + AT_FINGERPRINT, 8) != fingerprint(s)) {
        return KRI_FAIL_AT(error, KR_E_UNSUPPORTED, "buf", AT_FINGERPRINT,
                           "saved with another model or kv_dtype, or one with attn_qk int8");
    }
    extent->n_tokens = (uint32_t)get(bytes + 40, 4);
    for (uint32_t g = 0; g < KRI_KV_GROUPS_MAX; g++) {
        extent->first[g] = (uint32_t)get(bytes + 48 + 4 * g, 4);
        if (g >= kri_kv_pool_n_groups(s->kv) && extent->first[g] != 0) {
            return KRI_FAIL_AT(error, KR_E_BAD_FORMAT, "buf", 48, "a group that is not there");
        }
    }
    if (get(bytes + 44, 4) != kri_kv_pool_n_groups(s->kv)) {
        return KRI_FAIL_AT(error, KR_E_BAD_FORMAT, "buf", 44, "the number of groups is wrong");
    }
    return KR_OK;
}

static kr_status_t check_payload(const struct kr_session_s *s, const uint8_t *bytes,
                                 size_t n_bytes, const kri_kv_extent_t *extent,
                                 kr_error_t *error) {
    uint64_t payload = 0;
    const kr_status_t status = kri_kv_pool_extent_bytes(s->kv, extent, &payload);
    if (status == KR_E_CONTEXT_LENGTH) {
        return KRI_FAIL_AT(error, status, "buf", 40, "%u tokens were saved, the context has %u",
                           extent->n_tokens, s->info.n_ctx);
    }
    if (status != KR_OK || get(bytes + 32, 8) != payload) {
        return KRI_FAIL_AT(error, KR_E_BAD_FORMAT, "buf", 32, "the header contradicts itself");
    }
    if (n_bytes - HEADER_BYTES < payload) {
        return KRI_FAIL_AT(error, KR_E_TRUNCATED, "buf", n_bytes, "%llu bytes of pages are missing",
                           (unsigned long long)(payload - (n_bytes - HEADER_BYTES)));
    }
    if (n_bytes - HEADER_BYTES > payload) {
        return KRI_FAIL_AT(error, KR_E_BAD_FORMAT, "buf", HEADER_BYTES + payload,
                           "bytes follow the last page");
    }
    if (get(bytes + AT_HASH, 8) != XXH3_64bits(bytes + AT_FINGERPRINT, n_bytes - AT_FINGERPRINT)) {
        return KRI_FAIL_AT(error, KR_E_CORRUPT, "buf", AT_HASH, "the hash of the bytes differs");
    }
    return KR_OK;
}

kr_status_t kri_session_restore(struct kr_session_s *s, uint32_t seq, const void *buf,
                                size_t n_bytes, kr_error_t *error) {
    kri_kv_extent_t extent = {0};
    const uint8_t *bytes = buf;
    if (seq >= s->info.n_seqs || kri_kv_pool_length(s->kv, seq) > 0) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "seq", "sequence %u is %s", seq,
                        seq >= s->info.n_seqs ? "not there" : "not empty");
    }
    KR_TRY(read_header(s, bytes, n_bytes, &extent, error));
    KR_TRY(check_payload(s, bytes, n_bytes, &extent, error));
    const kr_status_t status = kri_kv_pool_restore(s->kv, seq, &extent, bytes + HEADER_BYTES);
    if (status == KR_OK) return KR_OK;
    return KRI_FAIL(error, status, "buf", "no KV pages for %u tokens", extent.n_tokens);
}

/* kv_pool.h: paged keys and values of a session: per group one pool of pages, per sequence one
 * page table per group (step.h has the page layout). All memory is taken at create; reserving and
 * truncating move page numbers between free list and tables and allocate nothing.
 * Threads: one at a time. */
#ifndef KRI_CACHE_KV_POOL_H
#define KRI_CACHE_KV_POOL_H

#include "kr.h"
#include "ops/step.h"

typedef struct kri_kv_pool_s kri_kv_pool_t;

typedef struct kri_kv_shape_s {
    uint32_t n_layers, n_kv_heads, head_dim, window;
} kri_kv_shape_t;

typedef struct kri_kv_params_s {
    uint32_t n_groups;
    kri_kv_shape_t groups[KRI_KV_GROUPS_MAX];
    kr_dtype_t dtype;        /* KR_DTYPE_F16 or KR_DTYPE_F32 */
    uint32_t n_seqs, n_ctx;  /* every sequence can hold n_ctx tokens */
} kri_kv_params_t;

/* Bytes of all pools; KR_E_LIMIT on overflow. */
kr_status_t kri_kv_pool_bytes(const kri_kv_params_t *params, uint64_t *n_bytes);
kr_status_t kri_kv_pool_create(const kri_kv_params_t *params, kri_kv_pool_t **pool);
void kri_kv_pool_destroy(kri_kv_pool_t *pool);

uint32_t kri_kv_pool_length(const kri_kv_pool_t *pool, uint32_t seq);
/* Makes room for n_tokens tokens in total; the length does not change. KR_E_CONTEXT_LENGTH over
 * n_ctx, KR_E_LIMIT without free pages (nothing is taken then). */
kr_status_t kri_kv_pool_reserve(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens);
/* The tokens reserved and computed now count. n_tokens <= what was reserved. */
void kri_kv_pool_commit(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens);
/* Drops tokens from n_tokens on and returns pages that hold none. */
void kri_kv_pool_truncate(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens);
uint32_t kri_kv_pool_free_pages(const kri_kv_pool_t *pool, uint32_t group);
uint32_t kri_kv_pool_n_groups(const kri_kv_pool_t *pool);
const kri_kv_group_t *kri_kv_pool_groups(const kri_kv_pool_t *pool);
const uint32_t *kri_kv_pool_table(const kri_kv_pool_t *pool, uint32_t seq, uint32_t group);

#endif

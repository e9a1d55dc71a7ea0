/* kv_pool.c: see kv_pool.h. Pages are handed out from a stack, last freed first, so that a short
 * conversation touches little memory. */
#include "cache/kv_pool.h"

#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/os.h"
#include "ops/kernels.h"

typedef struct group_s {
    uint32_t n_pages, n_free;
    uint32_t *free_pages; /* [n_pages], stack */
    uint32_t *tables;     /* [n_seqs, pages_per_seq] */
    size_t pool_bytes;
} group_t;

struct kri_kv_pool_s {
    uint32_t n_groups, n_seqs, n_ctx, pages_per_seq;
    kri_kv_group_t views[KRI_KV_GROUPS_MAX];
    group_t groups[KRI_KV_GROUPS_MAX];
    uint32_t *lengths;  /* [n_seqs] tokens */
    uint32_t *n_tables; /* [n_seqs] pages held (equal in all groups) */
};

static bool group_bytes(const kri_kv_params_t *p, uint32_t g, size_t *page_bytes,
                        size_t *pool_bytes) {
    const kri_kv_shape_t *s = &p->groups[g];
    const size_t item = p->dtype == KR_DTYPE_F32 ? 4 : 2;
    const size_t pages = kri_ceil_div(p->n_ctx, KRI_PAGE_TOKENS);
    size_t n = 0, total = 0;
    if (!kri_mul_size(s->n_layers, (size_t)2 * KRI_PAGE_TOKENS * item, &n) ||
        !kri_mul_size(n, s->n_kv_heads, &n) || !kri_mul_size(n, s->head_dim, &n) ||
        !kri_mul_size(n, pages, &total) || !kri_mul_size(total, p->n_seqs, &total)) {
        return false;
    }
    *page_bytes = n;
    *pool_bytes = total;
    return true;
}

kr_status_t kri_kv_pool_bytes(const kri_kv_params_t *params, uint64_t *n_bytes) {
    uint64_t sum = 0;
    for (uint32_t g = 0; g < params->n_groups; g++) {
        size_t page = 0, pool = 0;
        if (!group_bytes(params, g, &page, &pool) || !kri_add_u64(sum, pool, &sum)) {
            return KR_E_LIMIT;
        }
    }
    *n_bytes = sum;
    return KR_OK;
}

static kr_status_t create_group(kri_kv_pool_t *pool, const kri_kv_params_t *p, uint32_t g) {
    const kri_kv_shape_t *s = &p->groups[g];
    group_t *group = &pool->groups[g];
    kri_kv_group_t *view = &pool->views[g];
    size_t page_bytes = 0, n_pages = 0;
    if (!group_bytes(p, g, &page_bytes, &group->pool_bytes)) return KR_E_LIMIT;
    if (!kri_mul_size(pool->pages_per_seq, p->n_seqs, &n_pages) || n_pages > UINT32_MAX) {
        return KR_E_LIMIT;
    }
    group->n_pages = group->n_free = (uint32_t)n_pages;
    group->free_pages = kri_calloc(n_pages, sizeof(uint32_t), "kv table");
    group->tables = kri_calloc(n_pages, sizeof(uint32_t), "kv table");
    *view = (kri_kv_group_t){
        .pool = kri_pages_alloc(group->pool_bytes), .page_bytes = page_bytes, .dtype = p->dtype,
        .n_layers = s->n_layers, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
        .window = s->window};
    if (!group->free_pages || !group->tables || !view->pool) return KR_E_NOMEM;
    for (uint32_t i = 0; i < group->n_pages; i++) {
        group->free_pages[i] = group->n_pages - 1 - i;
    }
    return KR_OK;
}

kr_status_t kri_kv_pool_create(const kri_kv_params_t *params, kri_kv_pool_t **out) {
    kri_kv_pool_t *pool = kri_calloc(1, sizeof(*pool), "kv pool");
    if (!pool) return KR_E_NOMEM;
    kr_status_t status = KR_OK;
    pool->n_seqs = params->n_seqs;
    pool->n_ctx = params->n_ctx;
    pool->pages_per_seq = (uint32_t)kri_ceil_div(params->n_ctx, KRI_PAGE_TOKENS);
    pool->lengths = kri_calloc(params->n_seqs, sizeof(uint32_t), "kv pool");
    pool->n_tables = kri_calloc(params->n_seqs, sizeof(uint32_t), "kv pool");
    if (!pool->lengths || !pool->n_tables) {
        status = KR_E_NOMEM;
        goto done;
    }
    for (uint32_t g = 0; g < params->n_groups; g++) {
        pool->n_groups = g + 1; /* so that a half-made group is freed */
        KR_TRY_DONE(create_group(pool, params, g));
    }
    *out = pool;
    pool = NULL;
done:
    kri_kv_pool_destroy(pool);
    return status;
}

void kri_kv_pool_destroy(kri_kv_pool_t *pool) {
    if (!pool) return;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (pool->views[g].pool) {
            kri_pages_free(pool->views[g].pool, pool->groups[g].pool_bytes);
        }
        kri_free(pool->groups[g].tables);
        kri_free(pool->groups[g].free_pages);
    }
    kri_free(pool->n_tables);
    kri_free(pool->lengths);
    kri_free(pool);
}

uint32_t kri_kv_pool_length(const kri_kv_pool_t *pool, uint32_t seq) {
    return pool->lengths[seq];
}

kr_status_t kri_kv_pool_reserve(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens) {
    if (n_tokens > pool->n_ctx) return KR_E_CONTEXT_LENGTH;
    const uint32_t want = (uint32_t)kri_ceil_div(n_tokens, KRI_PAGE_TOKENS);
    const uint32_t have = pool->n_tables[seq];
    if (want <= have) return KR_OK;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (pool->groups[g].n_free < want - have) return KR_E_LIMIT;
    }
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        group_t *group = &pool->groups[g];
        uint32_t *table = group->tables + (size_t)seq * pool->pages_per_seq;
        for (uint32_t i = have; i < want; i++) table[i] = group->free_pages[--group->n_free];
    }
    pool->n_tables[seq] = want;
    return KR_OK;
}

void kri_kv_pool_commit(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens) {
    KR_ASSERT(n_tokens <= pool->n_tables[seq] * KRI_PAGE_TOKENS);
    pool->lengths[seq] = n_tokens;
}

void kri_kv_pool_truncate(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens) {
    const uint32_t keep = (uint32_t)kri_ceil_div(n_tokens, KRI_PAGE_TOKENS);
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        group_t *group = &pool->groups[g];
        const uint32_t *table = group->tables + (size_t)seq * pool->pages_per_seq;
        for (uint32_t i = pool->n_tables[seq]; i > keep; i--) {
            group->free_pages[group->n_free++] = table[i - 1];
        }
    }
    if (keep < pool->n_tables[seq]) pool->n_tables[seq] = keep;
    if (n_tokens < pool->lengths[seq]) pool->lengths[seq] = n_tokens;
}

uint32_t kri_kv_pool_free_pages(const kri_kv_pool_t *pool, uint32_t group) {
    return pool->groups[group].n_free;
}

uint32_t kri_kv_pool_n_groups(const kri_kv_pool_t *pool) { return pool->n_groups; }

const kri_kv_group_t *kri_kv_pool_groups(const kri_kv_pool_t *pool) { return pool->views; }

const uint32_t *kri_kv_pool_table(const kri_kv_pool_t *pool, uint32_t seq, uint32_t group) {
    return pool->groups[group].tables + (size_t)seq * pool->pages_per_seq;
}

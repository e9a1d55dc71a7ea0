/* kv_pool.c: see kv_pool.h. Sequences as tables of pages. A decode row finds its page reserved in
 * most steps: then reserve is two comparisons and commit a division per windowed group. */
#include "cache/kv_pool.h"

#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/os.h"
#include "cache/kv_pool_impl.h"

/* ---- create --------------------------------------------------------------------------------- */

/* Pages of a windowed group that a sequence holds at most: from the first key of the oldest row
 * that may come back to the last row of a step, at any offset within pages. */
static uint64_t window_pages(uint64_t window, uint64_t n_rows) {
    return (window + KRI_KV_UNDO_TOKENS + n_rows) / KRI_PAGE_TOKENS + 2;
}

/* Bytes of a page of each group, and of all pages when every sequence holds n_ctx tokens. */
static kr_status_t measure(const kri_kv_params_t *p, size_t *page_bytes, uint64_t *n_bytes) {
    if (p->dtype != KR_DTYPE_F16 && p->dtype != KR_DTYPE_F32 && !kri_kv_is_8bit(p->dtype)) {
        return KR_E_UNSUPPORTED;
    }
    if (p->n_groups == 0 || p->n_groups > KRI_KV_GROUPS_MAX || p->n_seqs == 0 || p->n_ctx == 0) {
        return KR_E_INVALID_ARG;
    }
    if (p->n_ctx > INT32_MAX) return KR_E_LIMIT; /* tokens are counted in 32 bits */
    uint64_t sum = 0;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        const kri_kv_shape_t *shape = &p->groups[g];
        const uint64_t n_most = window_pages(shape->window, p->n_rows ? p->n_rows : p->n_ctx);
        uint64_t n_pages = kri_ceil_div(p->n_ctx, KRI_PAGE_TOKENS), group = 0;
        if (shape->window > 0 && n_pages > n_most) n_pages = n_most;
        n_pages *= p->n_seqs;
        if (!kri_kv_page_bytes(p->dtype, shape->n_layers, shape->n_kv_heads, shape->head_dim,
                               &page_bytes[g]) ||
            !kri_mul_u64(n_pages, page_bytes[g], &group) || !kri_add_u64(sum, group, &sum)) {
            return KR_E_LIMIT;
        }
        if (page_bytes[g] == 0) return KR_E_INVALID_ARG;
    }
    *n_bytes = sum;
    return KR_OK;
}

kr_status_t kri_kv_pool_bytes(const kri_kv_params_t *params, uint64_t *n_bytes) {
    size_t page_bytes[KRI_KV_GROUPS_MAX];
    uint64_t full = 0;
    KR_TRY(measure(params, page_bytes, &full));
    *n_bytes = params->bytes_max ? params->bytes_max : full;
    return KR_OK;
}

/* Pages of a group that there can ever be. Without a cache no page is held but by tables. */
static uint64_t count_pages(const kri_kv_params_t *p, uint64_t bytes_reserved, size_t page_bytes) {
    const uint64_t n_most = bytes_reserved / page_bytes;
    const uint64_t n_held = (uint64_t)kri_ceil_div(p->n_ctx, KRI_PAGE_TOKENS) * p->n_seqs;
    return p->prefix_cache || n_most < n_held ? n_most : n_held;
}

kr_status_t kri_kv_pool_device_bytes(const kri_kv_params_t *params, uint64_t *n_bytes) {
    size_t page_bytes[KRI_KV_GROUPS_MAX];
    uint64_t full = 0, sum = 0;
    KR_TRY(measure(params, page_bytes, &full));
    const uint64_t reserved = params->bytes_max ? params->bytes_max : full;
    for (uint32_t g = 0; g < params->n_groups; g++) {
        const uint64_t group = count_pages(params, reserved, page_bytes[g]) * page_bytes[g];
        if (!kri_add_u64(sum, group, &sum)) return KR_E_LIMIT;
    }
    *n_bytes = sum;
    return KR_OK;
}

static void *host_alloc(void *ctx, size_t n_bytes) {
    (void)ctx;
    return kri_pages_alloc(n_bytes);
}

static void host_free(void *ctx, void *ptr, size_t n_bytes) {
    (void)ctx;
    kri_pages_free(ptr, n_bytes);
}

static void host_copy(void *ctx, void *to, const void *from, size_t n_bytes) {
    (void)ctx;
    memcpy(to, from, n_bytes);
}

static const kri_kv_memory_t host_memory = {
    .alloc = host_alloc, .free = host_free, .copy = host_copy, .read = host_copy,
    .write = host_copy};

static kr_status_t create_group(kri_kv_pool_t *pool, const kri_kv_params_t *p, uint32_t g,
                                size_t page_bytes) {
    const kri_kv_shape_t *s = &p->groups[g];
    kri_kv_pages_t *group = &pool->groups[g];
    const uint64_t n_pages = count_pages(p, pool->bytes_reserved, page_bytes);
    size_t pool_bytes = 0, record_bytes = 0;
    if (n_pages >= KRI_PAGE_NONE || n_pages == 0) return KR_E_LIMIT;
    if (!kri_mul_size((size_t)n_pages, page_bytes, &pool_bytes) ||
        !kri_mul_size((size_t)n_pages, sizeof(kri_kv_page_t), &record_bytes)) {
        return KR_E_LIMIT;
    }
    group->n_pages = (uint32_t)n_pages;
    group->free_first = group->returned_first = KRI_PAGE_NONE;
    group->lru_first = group->lru_last = KRI_PAGE_NONE;
    group->pages = kri_pages_alloc(record_bytes);
    group->tables = kri_calloc((size_t)pool->pages_per_seq * p->n_seqs, sizeof(uint32_t),
                               "kv table");
    pool->views[g] = (kri_kv_group_t){
        .pool = pool->memory.alloc(pool->memory.ctx, pool_bytes), .page_bytes = page_bytes,
        .dtype = p->dtype,
        .n_layers = s->n_layers, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
        .window = s->window};
    return group->pages && group->tables && pool->views[g].pool ? KR_OK : KR_E_NOMEM;
}

/* Every node holds a page of each group without window; without such a group, any page. */
static kr_status_t create_cache(kri_kv_pool_t *pool) {
    uint64_t n_nodes = 0;
    for (uint32_t g = 0; g < pool->n_groups; g++) n_nodes += pool->groups[g].n_pages;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (pool->views[g].window != 0) continue;
        pool->chain_group = g;
        if (pool->groups[g].n_pages < n_nodes) n_nodes = pool->groups[g].n_pages;
    }
    if (n_nodes >= KRI_NODE_NONE) return KR_E_LIMIT;
    return kri_prefix_cache_create((uint32_t)n_nodes, &pool->cache);
}

kr_status_t kri_kv_pool_create(const kri_kv_params_t *params, kri_kv_pool_t **out) {
    size_t page_bytes[KRI_KV_GROUPS_MAX];
    uint64_t full = 0;
    KR_TRY(measure(params, page_bytes, &full));
    kri_kv_pool_t *pool = kri_calloc(1, sizeof(*pool), "kv pool");
    if (!pool) return KR_E_NOMEM;
    kr_status_t status = KR_OK;
    pool->memory = params->memory ? *params->memory : host_memory;
    pool->is_host = params->memory == NULL;
    pool->n_seqs = params->n_seqs;
    pool->n_ctx = params->n_ctx;
    pool->pages_per_seq = (uint32_t)kri_ceil_div(params->n_ctx, KRI_PAGE_TOKENS);
    pool->bytes_full = full;
    pool->bytes_max = params->bytes_max ? params->bytes_max : full;
    /* Address space is free, a device's memory is not: there it is what was asked for. */
    pool->bytes_reserved = pool->is_host && full > pool->bytes_max ? full : pool->bytes_max;
    pool->seqs = kri_calloc(params->n_seqs, sizeof(*pool->seqs), "kv pool");
    if (!pool->seqs) {
        status = KR_E_NOMEM;
        goto done;
    }
    for (uint32_t g = 0; g < params->n_groups; g++) {
        pool->n_groups = g + 1; /* so that a half-made group is freed */
        KR_TRY_DONE(create_group(pool, params, g, page_bytes[g]));
    }
    if (params->prefix_cache) KR_TRY_DONE(create_cache(pool));
    *out = pool;
    pool = NULL;
done:
    kri_kv_pool_destroy(pool);
    return status;
}

void kri_kv_pool_destroy(kri_kv_pool_t *pool) {
    if (!pool) return;
    kri_prefix_cache_destroy(pool->cache);
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        const kri_kv_pages_t *group = &pool->groups[g];
        pool->memory.free(pool->memory.ctx, pool->views[g].pool,
                          group->n_pages * pool->views[g].page_bytes);
        kri_pages_free(group->pages, group->n_pages * sizeof(kri_kv_page_t));
        kri_free(group->tables);
    }
    kri_free(pool->seqs);
    kri_free(pool);
}

/* ---- sequences ------------------------------------------------------------------------------ */

uint32_t kri_kv_pool_length(const kri_kv_pool_t *pool, uint32_t seq) {
    return pool->seqs[seq].length;
}

/* The page that the next token goes into, when there already is one. */
static bool has_tail(const kri_kv_seq_t *s) { return s->length % KRI_PAGE_TOKENS != 0; }

static bool tail_is_shared(const kri_kv_pool_t *pool, uint32_t seq, uint32_t g, bool is_copied) {
    const uint32_t id = kri_kv_table(pool, seq, g)[pool->seqs[seq].length / KRI_PAGE_TOKENS];
    const kri_kv_page_t *page = &pool->groups[g].pages[id];
    return page->refs > 1 || (is_copied && page->node != KRI_NODE_NONE);
}

/* Bytes of new pages. is_copied: the cache keeps its page and the sequence gets a copy, also where
 * only the two hold it. */
static uint64_t bytes_wanted(const kri_kv_pool_t *pool, uint32_t seq, uint32_t n_pages,
                             bool is_copied) {
    const kri_kv_seq_t *s = &pool->seqs[seq];
    const uint64_t n_new = n_pages > s->n_pages ? n_pages - s->n_pages : 0;
    uint64_t sum = 0;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        uint64_t n = n_new;
        if (s->is_tail_shared && has_tail(s) && tail_is_shared(pool, seq, g, is_copied)) n++;
        sum += n * pool->views[g].page_bytes;
    }
    return sum;
}

static void make_tail_private(kri_kv_pool_t *pool, uint32_t seq, bool is_copied) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    for (uint32_t g = 0; g < pool->n_groups && has_tail(s); g++) {
        const kri_kv_group_t *view = &pool->views[g];
        uint32_t *own = &kri_kv_table(pool, seq, g)[s->length / KRI_PAGE_TOKENS];
        const uint32_t old = *own;
        if (tail_is_shared(pool, seq, g, is_copied)) {
            *own = kri_kv_page_take(pool, g);
            pool->memory.copy(pool->memory.ctx, view->pool + (size_t)*own * view->page_bytes,
                              view->pool + (size_t)old * view->page_bytes, view->page_bytes);
            pool->bytes_moved += view->page_bytes;
            kri_kv_page_unref(pool, g, old);
        } else if (pool->groups[g].pages[old].node != KRI_NODE_NONE) {
            kri_kv_page_detach(pool, g, old);
        }
    }
    s->is_tail_shared = false;
}

kr_status_t kri_kv_pool_reserve(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    if (n_tokens > pool->n_ctx) return KR_E_CONTEXT_LENGTH;
    if (n_tokens <= s->length) return KR_OK;
    const uint32_t n_pages = (uint32_t)kri_ceil_div(n_tokens, KRI_PAGE_TOKENS);
    if (n_pages <= s->n_pages && !s->is_tail_shared) return KR_OK;
    bool is_copied = true;
    uint64_t wanted = bytes_wanted(pool, seq, n_pages, is_copied);
    if (wanted > pool->bytes_max - pool->bytes_used) {
        is_copied = false;
        wanted = bytes_wanted(pool, seq, n_pages, is_copied);
        if (wanted > pool->bytes_max - pool->bytes_used) return KR_E_LIMIT;
    }
    kri_kv_make_room(pool, wanted);
    if (s->is_tail_shared) make_tail_private(pool, seq, is_copied);
    for (; s->n_pages < n_pages; s->n_pages++) {
        for (uint32_t g = 0; g < pool->n_groups; g++) {
            kri_kv_table(pool, seq, g)[s->n_pages] = kri_kv_page_take(pool, g);
        }
    }
    return KR_OK;
}

void kri_kv_give_back(kri_kv_pool_t *pool, uint32_t seq) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    const uint32_t n_tokens = s->length > KRI_KV_UNDO_TOKENS ? s->length - KRI_KV_UNDO_TOKENS : 0;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (pool->views[g].window == 0) continue;
        uint32_t end = kri_kv_first_page(pool, g, n_tokens);
        if (pool->cache && end > s->n_published) end = s->n_published;
        uint32_t *table = kri_kv_table(pool, seq, g);
        for (; s->first[g] < end; s->first[g]++) {
            kri_kv_page_unref(pool, g, table[s->first[g]]);
            table[s->first[g]] = 0; /* never read, but always a page */
        }
    }
}

void kri_kv_pool_commit(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    KR_ASSERT(n_tokens <= s->n_pages * KRI_PAGE_TOKENS && n_tokens >= s->length);
    s->length = n_tokens;
    kri_kv_give_back(pool, seq);
}

/* Whether the windows of the row at n_tokens are still there. */
static bool sees_all(const kri_kv_pool_t *pool, const kri_kv_seq_t *s, uint32_t n_tokens) {
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (s->first[g] > kri_kv_first_page(pool, g, n_tokens)) return false;
    }
    return true;
}

static void drop_pages(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_kept) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    while (s->n_pages > n_kept) {
        const uint32_t i = --s->n_pages;
        for (uint32_t g = 0; g < pool->n_groups; g++) {
            if (i >= s->first[g]) kri_kv_page_unref(pool, g, kri_kv_table(pool, seq, g)[i]);
        }
    }
}

kr_status_t kri_kv_pool_truncate(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    if (n_tokens == 0) {
        kri_kv_pool_release(pool, seq);
        return KR_OK;
    }
    if (n_tokens < s->length) {
        if (!sees_all(pool, s, n_tokens)) return KR_E_UNSUPPORTED;
        s->length = n_tokens;
        s->is_tail_shared = true; /* perhaps: the page left half full may be cached or forked */
        const uint32_t n_full = n_tokens / KRI_PAGE_TOKENS;
        if (s->n_published > n_full) s->n_published = n_full;
    }
    drop_pages(pool, seq, (uint32_t)kri_ceil_div(s->length, KRI_PAGE_TOKENS));
    return KR_OK;
}

void kri_kv_pool_release(kri_kv_pool_t *pool, uint32_t seq) {
    drop_pages(pool, seq, 0);
    pool->seqs[seq] = (kri_kv_seq_t){0};
}

kr_status_t kri_kv_pool_fork(kri_kv_pool_t *pool, uint32_t src, uint32_t dst, uint32_t n_tokens) {
    kri_kv_seq_t *from = &pool->seqs[src], *to = &pool->seqs[dst];
    if (to->length > 0 || to->n_pages > 0 || n_tokens > from->length) return KR_E_INVALID_ARG;
    if (n_tokens == 0) return KR_OK;
    if (!sees_all(pool, from, n_tokens)) return KR_E_UNSUPPORTED;
    const uint32_t n_full = n_tokens / KRI_PAGE_TOKENS;
    to->length = n_tokens;
    to->n_pages = (uint32_t)kri_ceil_div(n_tokens, KRI_PAGE_TOKENS);
    to->n_published = from->n_published < n_full ? from->n_published : n_full;
    to->is_tail_shared = from->is_tail_shared = true;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        const uint32_t *pages = kri_kv_table(pool, src, g);
        uint32_t *table = kri_kv_table(pool, dst, g);
        to->first[g] = from->first[g];
        for (uint32_t i = 0; i < to->first[g]; i++) table[i] = 0;
        for (uint32_t i = to->first[g]; i < to->n_pages; i++) {
            table[i] = pages[i];
            kri_kv_page_ref(pool, g, pages[i]);
        }
    }
    return KR_OK;
}

/* ---- ledger --------------------------------------------------------------------------------- */

void kri_kv_pool_stats(const kri_kv_pool_t *pool, kri_kv_stats_t *stats) {
    *stats = (kri_kv_stats_t){
        .bytes_max = pool->bytes_max, .bytes_used = pool->bytes_used,
        .bytes_cached = pool->bytes_cached, .bytes_moved = pool->bytes_moved,
        .n_evicted = pool->n_evicted};
}

uint64_t kri_kv_pool_need(const kri_kv_pool_t *pool, uint32_t n_cached, uint32_t n_tokens,
                          uint32_t n_rows) {
    const uint64_t n_all = kri_ceil_div(n_tokens, KRI_PAGE_TOKENS);
    const uint64_t n_new = n_all - n_cached / KRI_PAGE_TOKENS;
    uint64_t sum = 0;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        const uint64_t n_most = window_pages(pool->views[g].window, n_rows);
        const uint64_t n = pool->views[g].window > 0 && n_new > n_most ? n_most : n_new;
        sum += n * pool->views[g].page_bytes;
    }
    return sum;
}

uint64_t kri_kv_pool_available(const kri_kv_pool_t *pool) {
    return pool->bytes_max - pool->bytes_used;
}

kr_status_t kri_kv_pool_resize(kri_kv_pool_t *pool, uint64_t bytes_max) {
    if (bytes_max == 0) {
        bytes_max = pool->bytes_full < pool->bytes_reserved ? pool->bytes_full
                                                            : pool->bytes_reserved;
    }
    if (bytes_max > pool->bytes_reserved) return KR_E_LIMIT;
    if (bytes_max < pool->bytes_used) return KR_E_BUSY;
    pool->bytes_max = bytes_max;
    kri_kv_make_room(pool, 0);
    kri_kv_trim(pool);
    return KR_OK;
}

/* ---- what a step needs ---------------------------------------------------------------------- */

uint32_t kri_kv_pool_n_groups(const kri_kv_pool_t *pool) { return pool->n_groups; }

const kri_kv_group_t *kri_kv_pool_groups(const kri_kv_pool_t *pool) { return pool->views; }

const uint32_t *kri_kv_pool_table(const kri_kv_pool_t *pool, uint32_t seq, uint32_t group) {
    return kri_kv_table(pool, seq, group);
}

/* kv_state.c: the pages of a sequence as bytes and back. Whole pages are copied: a page is the unit
 * of every layout, and only the last one has slots that hold nothing of this sequence. */
#include <string.h>

#include "base/error.h"
#include "cache/kv_pool_impl.h"

void kri_kv_pool_extent(const kri_kv_pool_t *pool, uint32_t seq, kri_kv_extent_t *extent) {
    *extent = (kri_kv_extent_t){.n_tokens = pool->seqs[seq].length};
    for (uint32_t g = 0; g < pool->n_groups; g++) extent->first[g] = pool->seqs[seq].first[g];
}

static uint32_t end_page(const kri_kv_extent_t *extent) {
    return extent->n_tokens / KRI_PAGE_TOKENS + (extent->n_tokens % KRI_PAGE_TOKENS != 0);
}

kr_status_t kri_kv_pool_extent_bytes(const kri_kv_pool_t *pool, const kri_kv_extent_t *extent,
                                     uint64_t *n_bytes) {
    uint64_t sum = 0;
    if (extent->n_tokens > pool->n_ctx) return KR_E_CONTEXT_LENGTH;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (extent->first[g] > kri_kv_first_page(pool, g, extent->n_tokens)) {
            return KR_E_BAD_FORMAT;
        }
        /* No more than a full sequence of the pool, whose size was checked at create. */
        sum += (uint64_t)(end_page(extent) - extent->first[g]) * pool->views[g].page_bytes;
    }
    *n_bytes = sum;
    return KR_OK;
}

static void clear_bytes_8bit(const kri_kv_group_t *view, uint8_t *k, uint8_t *v, size_t slot) {
    for (size_t dim = 0; dim < KRI_I8_DIMS(view->head_dim); dim++) {
        k[kri_i8_key_at(slot, dim)] = 0;
        v[kri_i8_value_at(view->head_dim, slot, dim)] = 0;
    }
}

/* Zeros in the slots from n_slots on, which hold whatever the page was used for before. */
static void clear_slots(const kri_kv_group_t *view, uint8_t *page, size_t n_slots) {
    const size_t block = kri_kv_block_bytes(view->dtype, view->head_dim);
    const size_t row = block / KRI_PAGE_TOKENS;
    for (uint32_t i = 0; i < view->n_layers * view->n_kv_heads; i++) {
        const kri_kv_place_t at = kri_kv_place(view, i / view->n_kv_heads, i % view->n_kv_heads);
        if (!kri_kv_is_8bit(view->dtype)) {
            memset(page + at.k + n_slots * row, 0, block - n_slots * row);
            memset(page + at.v + n_slots * row, 0, block - n_slots * row);
            continue;
        }
        for (size_t slot = n_slots; slot < KRI_PAGE_TOKENS; slot++) {
            clear_bytes_8bit(view, page + at.k, page + at.v, slot);
            memset(page + at.scales + slot * 2, 0, 2);
            memset(page + at.scales + (KRI_PAGE_TOKENS + slot) * 2, 0, 2);
        }
    }
}

void kri_kv_pool_save(const kri_kv_pool_t *pool, uint32_t seq, uint8_t *bytes) {
    kri_kv_extent_t extent;
    kri_kv_pool_extent(pool, seq, &extent);
    const size_t n_slots = extent.n_tokens % KRI_PAGE_TOKENS;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        const kri_kv_group_t *view = &pool->views[g];
        const uint32_t *table = kri_kv_table(pool, seq, g);
        for (uint32_t i = extent.first[g]; i < end_page(&extent); i++) {
            pool->memory.read(pool->memory.ctx, bytes,
                              view->pool + (size_t)table[i] * view->page_bytes, view->page_bytes);
            if (n_slots > 0 && i + 1 == end_page(&extent)) clear_slots(view, bytes, n_slots);
            bytes += view->page_bytes;
        }
    }
}

kr_status_t kri_kv_pool_restore(kri_kv_pool_t *pool, uint32_t seq, const kri_kv_extent_t *extent,
                                const uint8_t *bytes) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    uint64_t n_bytes = 0;
    if (s->length > 0 || s->n_pages > 0) return KR_E_INVALID_ARG;
    KR_TRY(kri_kv_pool_extent_bytes(pool, extent, &n_bytes));
    if (n_bytes > kri_kv_pool_available(pool)) return KR_E_LIMIT;
    kri_kv_make_room(pool, n_bytes);
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        const kri_kv_group_t *view = &pool->views[g];
        uint32_t *table = kri_kv_table(pool, seq, g);
        s->first[g] = extent->first[g];
        for (uint32_t i = 0; i < extent->first[g]; i++) table[i] = 0;
        for (uint32_t i = extent->first[g]; i < end_page(extent); i++) {
            table[i] = kri_kv_page_take(pool, g);
            pool->memory.write(pool->memory.ctx, view->pool + (size_t)table[i] * view->page_bytes,
                               bytes, view->page_bytes);
            bytes += view->page_bytes;
        }
    }
    s->length = extent->n_tokens;
    s->n_pages = end_page(extent);
    return KR_OK;
}

/* candidates.c: see candidates.h. */
#include "sample/candidates.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

/* Any fixed number: it decides only how long a selection takes. */
#define PIVOT_SEED 0x9E3779B9u

uint32_t kri_candidates_capacity(uint32_t n_vocab, uint32_t k) {
    /* The k-th largest block maximum bounds the k-th largest logit from below, so fewer than k
     * blocks hold anything above it; the block maxima themselves pass through the same items. */
    uint64_t n_blocks = n_vocab / KRI_ROW_BLOCK + (n_vocab % KRI_ROW_BLOCK != 0);
    uint64_t n = (uint64_t)k * KRI_ROW_BLOCK;
    if (n > n_vocab) n = n_vocab;
    return (uint32_t)(n < n_blocks ? n_blocks : n);
}

kr_status_t kri_candidates_init(kri_candidates_t *candidates, uint32_t n_vocab,
                                uint32_t capacity) {
    memset(candidates, 0, sizeof *candidates);
    if (capacity == 0) return KR_OK;
    size_t n_words = n_vocab / 64u + (n_vocab % 64u != 0);
    candidates->items =
        kri_calloc((size_t)capacity + 1, sizeof *candidates->items, "sampler");
    candidates->is_kept = kri_calloc(n_words, sizeof *candidates->is_kept, "sampler");
    if (candidates->items == NULL || candidates->is_kept == NULL) return KR_E_NOMEM;
    candidates->capacity = capacity;
    return KR_OK;
}

void kri_candidates_deinit(kri_candidates_t *candidates) {
    kri_free(candidates->is_kept);
    kri_free(candidates->items);
    memset(candidates, 0, sizeof *candidates);
}

static uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Larger logits get smaller keys. IEEE 754 bits order like integers once negative numbers are
 * turned round; adding 0 makes -0 equal to +0. */
static uint32_t logit_key(float logit) {
    uint32_t bits = float_bits(logit + 0.0f);
    return bits >> 31 ? bits : ~bits & 0x7FFFFFFFu;
}

static bool is_before(const kri_candidate_t *a, const kri_candidate_t *b) {
    return a->key < b->key || (a->key == b->key && a->token < b->token);
}

static void swap(kri_candidate_t *a, kri_candidate_t *b) {
    kri_candidate_t t = *a;
    *a = *b;
    *b = t;
}

/* Splits items [begin, end) round a random pivot; returns where the pivot is afterwards. The item
 * that is not before the pivot is swapped with itself instead of branched over: the outcome of
 * the comparison cannot be predicted. */
static uint32_t partition(kri_candidates_t *c, uint32_t begin, uint32_t end) {
    kri_candidate_t *items = c->items;
    swap(&items[begin + kri_rng_below(&c->pivots, end - begin)], &items[end - 1]);
    kri_candidate_t pivot = items[end - 1];
    uint32_t split = begin;
    for (uint32_t i = begin; i + 1 < end; i++) {
        kri_candidate_t item = items[i];
        uint32_t before = is_before(&item, &pivot);
        items[i] = items[split];
        items[split] = item;
        split += before;
    }
    swap(&items[split], &items[end - 1]);
    return split;
}

/* Brings the first k items of the order to the front; the rest are dropped. */
static void keep_first(kri_candidates_t *c, uint32_t k) {
    uint32_t begin = 0, end = c->n;
    if (k >= c->n) return;
    while (end - begin > 1) {
        uint32_t split = partition(c, begin, end);
        if (split == k) break;
        if (split < k)
            begin = split + 1;
        else
            end = split;
    }
    c->n = k;
}

void kri_candidates_keep_mass(kri_candidates_t *c, double mass) {
    uint32_t begin = 0, end = c->n;
    double before = 0.0; /* weight of items [0, begin), always below `mass` */
    while (begin < end) {
        uint32_t split = partition(c, begin, end);
        double left = before;
        for (uint32_t i = begin; i < split; i++) left += (double)c->items[i].weight;
        if (split > begin && left >= mass) {
            end = split;
            continue;
        }
        before = left + (double)c->items[split].weight;
        begin = split + 1;
        if (before >= mass) break;
    }
    c->n = begin;
}

/* Appends the tokens of one block that are over `above`, or equal to it as well. Writing always
 * and counting conditionally costs less than a branch that is taken now and then. */
static void gather(kri_candidates_t *c, const float *x, uint32_t block, float above,
                   bool or_equal) {
    uint32_t n = c->n;
    for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++) {
        kri_candidate_t *item = &c->items[n];
        item->key = logit_key(x[i]);
        item->token = (kr_token_t)(block * KRI_ROW_BLOCK + i);
        item->logit = x[i];
        item->weight = 0.0f;
        n += (uint32_t)((x[i] > above) | (or_equal & (x[i] == above)));
    }
    KR_ASSERT(n <= c->capacity);
    c->n = n;
}

/* The k-th largest block maximum: at least k logits are no smaller. */
static float top_threshold(kri_candidates_t *c, const kri_row_t *row, uint32_t k) {
    if (k >= row->n_blocks) return -INFINITY;
    for (uint32_t b = 0; b < row->n_blocks; b++) {
        float max = row->block_max[b];
        c->items[b] = (kri_candidate_t){logit_key(max), (kr_token_t)b, max, 0.0f};
    }
    c->n = row->n_blocks;
    keep_first(c, k);
    float threshold = INFINITY;
    for (uint32_t i = 0; i < k; i++)
        threshold = c->items[i].logit < threshold ? c->items[i].logit : threshold;
    return threshold;
}

void kri_candidates_top(kri_candidates_t *c, const kri_row_t *row, uint32_t k) {
    kri_rng_seed(&c->pivots, PIVOT_SEED, 0);
    float threshold = top_threshold(c, row, k);
    c->n = 0;
    for (uint32_t b = 0; b < row->n_blocks; b++)
        if (row->block_max[b] > threshold)
            gather(c, kri_row_block(row, b), b, threshold, false);
    /* Ties with the threshold, lowest ids first, and no more of them than can be kept: a row of
     * equal logits must not overrun the items. */
    for (uint32_t b = 0; b < row->n_blocks && c->n < k && threshold > -INFINITY; b++) {
        if (row->block_max[b] < threshold) continue;
        const float *x = kri_row_block(row, b);
        for (uint32_t i = 0; i < KRI_ROW_BLOCK && c->n < k; i++)
            if (x[i] == threshold)
                c->items[c->n++] = (kri_candidate_t){
                    logit_key(x[i]), (kr_token_t)(b * KRI_ROW_BLOCK + i), x[i], 0.0f};
    }
    keep_first(c, k);
}

void kri_candidates_above(kri_candidates_t *c, const kri_row_t *row, float threshold) {
    kri_rng_seed(&c->pivots, PIVOT_SEED, 0);
    c->n = 0;
    for (uint32_t b = 0; b < row->n_blocks; b++)
        if (row->block_max[b] >= threshold && row->block_max[b] > -INFINITY)
            gather(c, kri_row_block(row, b), b, threshold, threshold > -INFINITY);
}

double kri_candidates_weigh(kri_candidates_t *c, float shift, float scale) {
    double total = 0.0;
    for (uint32_t begin = 0; begin < c->n; begin += KRI_ROW_BLOCK) {
        float x[KRI_ROW_BLOCK], e[KRI_ROW_BLOCK];
        uint32_t n = c->n - begin < KRI_ROW_BLOCK ? c->n - begin : KRI_ROW_BLOCK;
        for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++)
            x[i] = i < n ? c->items[begin + i].logit : -INFINITY;
        kri_row_exp(x, shift, scale, e);
        for (uint32_t i = 0; i < n; i++) {
            c->items[begin + i].weight = e[i];
            total += (double)e[i];
        }
    }
    return total;
}

void kri_candidates_keep_typical(kri_candidates_t *c, float shift, double total, float p) {
    double log_total = log(total), mean = 0.0;
    for (uint32_t i = 0; i < c->n; i++) {
        const kri_candidate_t *item = &c->items[i];
        /* A weight that vanished contributes 0, though its logit may be hugely negative. */
        if (item->weight > 0.0f)
            mean += (double)item->weight * ((double)item->logit - (double)shift);
    }
    double entropy = log_total - mean / total;
    for (uint32_t i = 0; i < c->n; i++) {
        double information = log_total - ((double)c->items[i].logit - (double)shift);
        c->items[i].key = float_bits((float)fabs(information - entropy));
    }
    kri_candidates_keep_mass(c, (double)p * total);
    for (uint32_t i = 0; i < c->n; i++) c->items[i].key = logit_key(c->items[i].logit);
}

static float max_logit(const kri_candidates_t *c) {
    float max = -INFINITY;
    for (uint32_t i = 0; i < c->n; i++)
        max = c->items[i].logit > max ? c->items[i].logit : max;
    return max;
}

void kri_candidates_keep_min_p(kri_candidates_t *c, float min_p) {
    double threshold = (double)max_logit(c) + log((double)min_p);
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++)
        if ((double)c->items[i].logit >= threshold) c->items[n++] = c->items[i];
    c->n = n;
}

void kri_candidates_sort_few(kri_candidates_t *c) {
    for (uint32_t i = 1; i < c->n; i++) {
        kri_candidate_t item = c->items[i];
        uint32_t j = i;
        for (; j > 0 && is_before(&item, &c->items[j - 1]); j--) c->items[j] = c->items[j - 1];
        c->items[j] = item;
    }
}

/* Rewrites the items in order of id, through a bit per token of the vocabulary: linear, where
 * sorting a flat distribution's survivors would not be. */
static void order_by_token(kri_candidates_t *c, const kri_row_t *row) {
    uint32_t n_words = row->n_vocab / 64u + (row->n_vocab % 64u != 0), n = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        uint32_t token = (uint32_t)c->items[i].token;
        c->is_kept[token / 64u] |= UINT64_C(1) << (token % 64u);
    }
    for (uint32_t w = 0; w < n_words; w++) {
        for (uint64_t word = c->is_kept[w]; word != 0; word &= word - 1) {
            kr_token_t token = (kr_token_t)(w * 64u + (uint32_t)__builtin_ctzll(word));
            c->items[n].token = token;
            c->items[n++].logit = kri_row_get(row, token);
        }
        c->is_kept[w] = 0;
    }
    KR_ASSERT(n == c->n);
}

kr_token_t kri_candidates_draw(kri_candidates_t *c, const kri_row_t *row, float scale,
                               double unit) {
    order_by_token(c, row);
    double target = unit * kri_candidates_weigh(c, max_logit(c), scale), sum = 0.0;
    kr_token_t last = c->items[0].token;
    for (uint32_t i = 0; i < c->n; i++) {
        if (!(c->items[i].weight > 0.0f)) continue;
        last = c->items[i].token;
        sum += (double)c->items[i].weight;
        if (target < sum) break;
    }
    return last; /* also when rounding left the target at the very end */
}

/* batch.c: see batch.h. */
#include "engine/batch.h"

#include <string.h>

#include "base/error.h"

static size_t round_up(size_t n) { return (n + 63) & ~(size_t)63; }

size_t kri_batch_space_bytes(uint32_t n_rows_max, uint32_t n_seqs) {
    return round_up(n_seqs * sizeof(kri_step_seq_t)) +
           round_up((size_t)n_rows_max * KRI_POS_COMPONENTS * sizeof(int32_t)) + round_up(n_seqs);
}

void kri_batch_space_init(kri_batch_space_t *space, void *memory, uint32_t n_rows_max,
                          uint32_t n_seqs) {
    uint8_t *at = memory;
    space->seqs = (kri_step_seq_t *)(void *)at;
    at += round_up(n_seqs * sizeof(kri_step_seq_t));
    space->positions = (int32_t *)(void *)at;
    at += round_up((size_t)n_rows_max * KRI_POS_COMPONENTS * sizeof(int32_t));
    space->seen = at;
}

static kr_status_t check_unbuilt(const kr_batch_t *b, kr_error_t *error) {
    const char *field = b->positions ? "positions" : b->embeddings ? "embeddings"
                        : b->adapters ? "adapters" : NULL;
    if (!field) return KR_OK;
    return KRI_FAIL(error, KR_E_UNSUPPORTED, field, "%s is not built: must be NULL", field);
}

static kr_status_t check_seqs(const kr_batch_t *b, const kri_kv_pool_t *kv,
                              const kr_session_info_t *info, uint8_t *seen, kr_error_t *error) {
    uint64_t n_rows = 0;
    memset(seen, 0, info->n_seqs);
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const kr_batch_seq_t *q = &b->seqs[i];
        if (q->seq >= info->n_seqs) {
            return KRI_FAIL(error, KR_E_INVALID_ARG, "seqs", "sequence %u, the session has %u",
                            q->seq, info->n_seqs);
        }
        if (seen[q->seq]) {
            return KRI_FAIL(error, KR_E_INVALID_ARG, "seqs", "sequence %u appears twice", q->seq);
        }
        seen[q->seq] = 1;
        if (q->n_rows == 0) {
            return KRI_FAIL(error, KR_E_INVALID_ARG, "seqs", "sequence %u has no rows", q->seq);
        }
        n_rows += q->n_rows;
        const uint64_t length = (uint64_t)kri_kv_pool_length(kv, q->seq) + q->n_rows;
        if (length > info->n_ctx) {
            return KRI_FAIL(error, KR_E_CONTEXT_LENGTH, "seqs",
                            "sequence %u would hold %llu tokens, the context has %u", q->seq,
                            (unsigned long long)length, info->n_ctx);
        }
    }
    if (n_rows != b->n_rows) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_rows", "n_rows is %u, the sequences have %llu",
                        b->n_rows, (unsigned long long)n_rows);
    }
    return KR_OK;
}

/* Rows of which something is wanted, and the names of the fields that say so. */
typedef struct wanted_s {
    const char *n_name, *rows_name, *out_name;
    uint32_t n;
    const uint32_t *rows;
    const float *out;
} wanted_t;

static kr_status_t check_wanted(const wanted_t *w, uint32_t n_rows, kr_error_t *error) {
    if (w->n > 0 && (!w->rows || !w->out)) {
        const char *name = w->rows ? w->out_name : w->rows_name;
        return KRI_FAIL(error, KR_E_INVALID_ARG, name, "%s is NULL with %s %u", name, w->n_name,
                        w->n);
    }
    /* Ascending rows cannot be more than the rows: refused before the array is walked. */
    if (w->n > n_rows) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, w->n_name, "%s is %u of %u rows", w->n_name, w->n,
                        n_rows);
    }
    for (uint32_t i = 0; i < w->n; i++) {
        if (w->rows[i] >= n_rows || (i > 0 && w->rows[i] <= w->rows[i - 1])) {
            return KRI_FAIL(error, KR_E_INVALID_ARG, w->rows_name,
                            "%s[%u] is %u: not ascending or not below %u", w->rows_name, i,
                            w->rows[i], n_rows);
        }
    }
    return KR_OK;
}

kr_status_t kri_batch_check(const kr_batch_t *b, const float *logits, const kri_kv_pool_t *kv,
                            const kr_session_info_t *info, uint32_t n_vocab,
                            kri_batch_space_t *space, kr_error_t *error) {
    KR_TRY(check_unbuilt(b, error));
    if (b->reserved) return KRI_FAIL(error, KR_E_INVALID_ARG, "reserved", "reserved is not 0");
    if (b->n_rows == 0 || !b->tokens) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "tokens", "the batch has no tokens");
    }
    if (b->n_rows > info->n_rows_max) {
        return KRI_FAIL(error, KR_E_LIMIT, "n_rows", "n_rows is %u, the session takes %u",
                        b->n_rows, info->n_rows_max);
    }
    if (b->n_seqs == 0 || b->n_seqs > info->n_seqs || !b->seqs) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_seqs", "n_seqs is %u, allowed are 1 to %u",
                        b->n_seqs, info->n_seqs);
    }
    KR_TRY(check_seqs(b, kv, info, space->seen, error));
    for (uint32_t i = 0; i < b->n_rows; i++) {
        if (b->tokens[i] < 0 || (uint32_t)b->tokens[i] >= n_vocab) {
            return KRI_FAIL(error, KR_E_INVALID_ARG, "tokens",
                            "tokens[%u] is %d, the vocabulary has %u", i, b->tokens[i], n_vocab);
        }
    }
    const wanted_t logit_rows = {"n_out_rows", "out_rows", "logits", b->n_out_rows, b->out_rows,
                                 logits};
    const wanted_t hidden_rows = {"n_hidden_rows", "hidden_rows", "hidden", b->n_hidden_rows,
                                  b->hidden_rows, b->hidden};
    KR_TRY(check_wanted(&logit_rows, b->n_rows, error));
    return check_wanted(&hidden_rows, b->n_rows, error);
}

kr_status_t kri_batch_prepare(const kr_batch_t *b, kri_kv_pool_t *kv, kri_batch_space_t *space,
                              kri_step_t *step, kr_error_t *error) {
    uint32_t row = 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const kr_batch_seq_t *q = &b->seqs[i];
        kri_step_seq_t *out = &space->seqs[i];
        const uint32_t begin = kri_kv_pool_length(kv, q->seq);
        const kr_status_t status = kri_kv_pool_reserve(kv, q->seq, begin + q->n_rows);
        if (status != KR_OK) {
            for (uint32_t j = 0; j < i; j++) {
                (void)kri_kv_pool_truncate(kv, space->seqs[j].seq, space->seqs[j].pos_begin);
            }
            return KRI_FAIL(error, status, "seqs", "no KV pages for sequence %u", q->seq);
        }
        *out = (kri_step_seq_t){.seq = q->seq, .row_begin = row, .n_rows = q->n_rows,
                                .pos_begin = begin};
        for (uint32_t g = 0; g < kri_kv_pool_n_groups(kv); g++) {
            out->page_table[g] = kri_kv_pool_table(kv, q->seq, g);
        }
        for (uint32_t r = 0; r < q->n_rows; r++, row++) {
            for (uint32_t c = 0; c < KRI_POS_COMPONENTS; c++) {
                space->positions[row * KRI_POS_COMPONENTS + c] = (int32_t)(begin + r);
            }
        }
    }
    *step = (kri_step_t){
        .n_rows = b->n_rows, .tokens = b->tokens, .positions = space->positions,
        .n_seqs = b->n_seqs, .seqs = space->seqs, .n_out_rows = b->n_out_rows,
        .out_rows = b->out_rows, .n_hidden_rows = b->n_hidden_rows,
        .hidden_rows = b->hidden_rows, .n_groups = kri_kv_pool_n_groups(kv),
        .groups = kri_kv_pool_groups(kv)};
    return KR_OK;
}

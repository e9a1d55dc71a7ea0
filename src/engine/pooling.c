/* pooling.c: see pooling.h. */
#include "engine/pooling.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

uint64_t kri_pooling_work_bytes(int32_t kind, uint32_t n_embd) {
    return kind == KR_POOLING_MEAN ? n_embd * (uint64_t)sizeof(double) : 0;
}

uint64_t kri_pooling_event_bytes(int32_t kind, uint32_t n_embd) {
    return kind != KR_POOLING_NONE ? n_embd * (uint64_t)sizeof(float) : 0;
}

kr_status_t kri_pooling_init(kri_pooling_t *p, int32_t kind, bool normalize, uint32_t n_embd) {
    *p = (kri_pooling_t){.kind = kind, .normalize = normalize, .n_embd = n_embd};
    if (kind == KR_POOLING_NONE) return KR_OK;
    p->embedding = kri_calloc(n_embd, sizeof *p->embedding, "request");
    if (kind == KR_POOLING_MEAN) p->sum = kri_calloc(n_embd, sizeof *p->sum, "request");
    return p->embedding && (p->sum || kind != KR_POOLING_MEAN) ? KR_OK : KR_E_NOMEM;
}

void kri_pooling_free_work(kri_pooling_t *p) {
    kri_free(p->sum);
    p->sum = NULL;
}

void kri_pooling_free_embedding(kri_pooling_t *p) {
    kri_free(p->embedding);
    p->embedding = NULL;
}

void kri_pooling_add(kri_pooling_t *p, const float *hidden, uint32_t n_rows, uint32_t position) {
    if (p->kind == KR_POOLING_LAST) {
        KR_ASSERT(n_rows == 1);
        memcpy(p->embedding, hidden, p->n_embd * sizeof *hidden);
        return;
    }
    if (position == 0) {
        memset(p->sum, 0, p->n_embd * sizeof *p->sum);
        p->n_added = 0;
    }
    KR_ASSERT(p->n_added == position);
    for (uint32_t r = 0; r < n_rows; r++, hidden += p->n_embd) {
        for (uint32_t i = 0; i < p->n_embd; i++) p->sum[i] += (double)hidden[i];
    }
    p->n_added += n_rows;
}

/* In f64 no square of an f32 overflows or vanishes. */
static void normalise(float *x, uint32_t n) {
    double squares = 0.0;
    for (uint32_t i = 0; i < n; i++) squares += (double)x[i] * (double)x[i];
    if (squares == 0.0) return;
    const double length = sqrt(squares);
    for (uint32_t i = 0; i < n; i++) x[i] = (float)((double)x[i] / length);
}

void kri_pooling_finish(kri_pooling_t *p) {
    for (uint32_t i = 0; i < p->n_embd && p->kind == KR_POOLING_MEAN; i++) {
        p->embedding[i] = (float)(p->sum[i] / p->n_added);
    }
    if (p->normalize) normalise(p->embedding, p->n_embd);
}

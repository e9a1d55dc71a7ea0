/* attention_ref.c: softmax attention of one query head at a time, in double, one pass over the
 * keys of a span with a running maximum (Milakov & Gimelshein 2018), spans merged in ascending
 * order. Partial results are rounded to float in every stage, so that the stages agree. Needs no
 * scratch and takes any head_dim up to KRI_HEAD_DIM_MAX. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "ops/kernels.h"
#include "ops/pack.h"

typedef float element_fn(const uint8_t *src, size_t index);

static float element_f32(const uint8_t *src, size_t index) {
    float v;
    memcpy(&v, src + 4 * index, sizeof v);
    return v;
}

static float element_f16(const uint8_t *src, size_t index) {
    uint16_t h;
    memcpy(&h, src + 2 * index, sizeof h);
    return kri_f16_to_f32(h);
}

/* What a kernel is made of: how the cache is read, and whether q.k is taken in integers. */
typedef struct form_s {
    element_fn *element; /* NULL: the cache holds 8-bit integers */
    uint32_t qk_bits;    /* 0: in floats */
} form_t;

/* A query, in the form that the scores are taken in. */
typedef struct query_s {
    const kri_attn_args_t *args;
    const form_t *form;
    uint32_t pos;
    float x[KRI_HEAD_DIM_MAX];
    int16_t q[KRI_HEAD_DIM_MAX];
    float d;
} query_t;

/* Running softmax, or the partial result of a span, or what partial results were merged into. */
typedef struct state_s {
    double max, sum, acc[KRI_HEAD_DIM_MAX];
} state_t;

static void state_clear(state_t *state, size_t head_dim) {
    state->max = -(double)FLT_MAX; /* below no score but -infinity, whose weight is thus 0 */
    state->sum = 0;
    for (size_t i = 0; i < head_dim; i++) state->acc[i] = 0;
}

/* x [n] -> q [n]; returns the scale. */
static float quantise(const float *x, size_t n, float levels, int16_t *q) {
    uint32_t amax_bits = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffffu;
        if (bits > amax_bits) amax_bits = bits;
        q[i] = 0;
    }
    float amax;
    memcpy(&amax, &amax_bits, sizeof amax);
    if (!(amax <= FLT_MAX)) return NAN;
    if (amax < 1e-30f) return 0;
    float inverse = levels / amax;
    for (size_t i = 0; i < n; i++) q[i] = (int16_t)rintf(x[i] * inverse);
    return amax / levels;
}

static double dot_integers(const query_t *query, const uint8_t *k, size_t at) {
    size_t n = query->args->head_dim;
    float x[KRI_HEAD_DIM_MAX];
    int16_t q[KRI_HEAD_DIM_MAX];
    int32_t idot = 0;
    for (size_t i = 0; i < n; i++) x[i] = query->form->element(k, at + i);
    float d = quantise(x, n, kri_attn_qk_levels(query->form->qk_bits, (uint32_t)n), q);
    for (size_t i = 0; i < n; i++) idot += (int32_t)query->q[i] * q[i];
    return (double)query->d * (double)d * (double)idot;
}

/* Scale of a slot's key (which 0) or value (1) of a page of integers. */
static double scale_i8(const kri_attn_args_t *args, const uint8_t *page, size_t which,
                       size_t slot) {
    return (double)element_f16(page + args->scale_offset, which * KRI_PAGE_TOKENS + slot);
}

static double dot_i8_slot(const query_t *query, const uint8_t *page, size_t slot) {
    const kri_attn_args_t *args = query->args;
    int32_t idot = 0;
    for (size_t i = 0; i < args->head_dim; i++) {
        int32_t k = page[args->k_offset + kri_i8_key_at(slot, i)];
        idot += (int32_t)query->q[i] * (k - KRI_I8_KEY_BIAS);
    }
    return (double)query->d * fabs(scale_i8(args, page, 0, slot)) * (double)idot;
}

static double dot_i8(const query_t *query, const uint8_t *page, size_t slot) {
    double dot = dot_i8_slot(query, page, slot);
    return scale_i8(query->args, page, 0, slot) < 0 ? dot + dot_i8_slot(query, page, 0) : dot;
}

/* acc += weight * value of the slot. */
static void add_value(const query_t *query, const uint8_t *page, size_t slot, double weight,
                      double *acc) {
    const kri_attn_args_t *args = query->args;
    const uint8_t *v = page + args->v_offset;
    if (query->form->element == NULL) {
        if (weight <= 0) return;
        weight *= scale_i8(args, page, 1, slot);
        for (size_t i = 0; i < args->head_dim; i++)
            acc[i] += weight * (int8_t)v[kri_i8_value_at(args->head_dim, slot, i)];
        return;
    }
    for (size_t i = 0; i < args->head_dim; i++)
        acc[i] += weight * (double)query->form->element(v, slot * args->head_dim + i);
}

static double score(const query_t *query, const uint8_t *page, size_t slot) {
    const kri_attn_args_t *args = query->args;
    const uint8_t *k = page + args->k_offset;
    size_t at = slot * args->head_dim;
    double dot = 0;
    if (query->form->element == NULL) {
        dot = dot_i8(query, page, slot);
    } else if (query->form->qk_bits) {
        dot = dot_integers(query, k, at);
    } else {
        for (size_t i = 0; i < args->head_dim; i++)
            dot += (double)query->x[i] * (double)query->form->element(k, at + i);
    }
    dot *= (double)args->scale;
    if (args->softcap > 0) dot = (double)args->softcap * tanh(dot / (double)args->softcap);
    return dot < -(double)FLT_MAX ? -INFINITY : dot; /* a score is a float elsewhere */
}

/* The keys of one span that the query sees; 0 when there are none. */
static int attend_span(const query_t *query, uint32_t span, state_t *state) {
    const kri_attn_args_t *args = query->args;
    uint32_t begin = kri_attn_first_key(query->pos, args->window), end = query->pos + 1;
    if (begin < span * KRI_ATTN_SPAN) begin = span * KRI_ATTN_SPAN;
    if (end > (span + 1) * KRI_ATTN_SPAN) end = (span + 1) * KRI_ATTN_SPAN;
    state_clear(state, args->head_dim);
    for (uint32_t key = begin; key < end; key++) {
        const uint8_t *page =
            args->pool + (size_t)args->page_table[key / KRI_PAGE_TOKENS] * args->page_bytes;
        size_t slot = key % KRI_PAGE_TOKENS;
        double s = score(query, page, slot);
        if (s > state->max) {
            double shrink = exp(state->max - s);
            for (size_t i = 0; i < args->head_dim; i++) state->acc[i] *= shrink;
            state->sum *= shrink;
            state->max = s;
        }
        double weight = exp(s - state->max);
        state->sum += weight;
        add_value(query, page, slot, weight, state->acc);
    }
    return begin < end;
}

static void round_partial(const state_t *state, size_t head_dim, float *partial) {
    for (size_t i = 0; i < head_dim; i++) partial[i] = (float)state->acc[i];
    partial[head_dim] = (float)state->max;
    partial[head_dim + 1] = (float)state->sum;
}

static void merge(const float *partial, size_t head_dim, state_t *total) {
    double max = (double)partial[head_dim] > total->max ? (double)partial[head_dim] : total->max;
    double old = exp(total->max - max), new = exp((double)partial[head_dim] - max);
    for (size_t i = 0; i < head_dim; i++)
        total->acc[i] = total->acc[i] * old + (double)partial[i] * new;
    total->sum = total->sum * old + (double)partial[head_dim + 1] * new;
    total->max = max;
}

/* One query (row * n_heads + head) through the stage. */
static void attend(const query_t *query, size_t index, float *out) {
    const kri_attn_args_t *args = query->args;
    size_t head_dim = args->head_dim, record = KRI_ATTN_PARTIAL_FLOATS(head_dim);
    float local[KRI_ATTN_PARTIAL_FLOATS(KRI_HEAD_DIM_MAX)];
    state_t state, total;
    uint32_t first, end, begin = kri_attn_first_key(query->pos, args->window) / KRI_ATTN_SPAN;
    kri_attn_spans(args->pos_begin, args->n_rows, args->window, &first, &end);
    state_clear(&total, head_dim);
    for (uint32_t span = begin; span <= query->pos / KRI_ATTN_SPAN; span++) {
        float *partial = local;
        if (args->stage != KRI_ATTN_WHOLE)
            partial = args->partials +
                      ((size_t)(span - first) * args->n_rows * args->n_heads + index) * record;
        if (args->stage == KRI_ATTN_PARTIAL && span != args->span) continue;
        if (args->stage != KRI_ATTN_MERGE && attend_span(query, span, &state))
            round_partial(&state, head_dim, partial);
        if (args->stage != KRI_ATTN_PARTIAL) merge(partial, head_dim, &total);
    }
    if (args->stage == KRI_ATTN_PARTIAL) return;
    for (size_t i = 0; i < head_dim; i++) out[i] = (float)(total.acc[i] / total.sum);
}

static void attention(const kri_attn_args_t *args, element_fn *element, uint32_t qk_bits) {
    const form_t form = {element, qk_bits};
    query_t query = {.args = args, .form = &form};
    for (uint32_t r = 0; r < args->n_rows; r++) {
        for (uint32_t h = 0; h < args->n_heads; h++) {
            size_t head = (size_t)h * args->head_dim;
            query.pos = args->pos_begin + r;
            memcpy(query.x, args->q + r * args->q_stride + head, args->head_dim * sizeof(float));
            if (qk_bits)
                query.d = quantise(query.x, args->head_dim,
                                   element != NULL ? kri_attn_qk_levels(qk_bits, args->head_dim)
                                                   : KRI_I8_QUERY_LEVELS, query.q);
            attend(&query, (size_t)r * args->n_heads + h,
                   args->out + r * args->out_stride + head);
        }
    }
}

void kri_attention_f32_ref(const kri_attn_args_t *args) { attention(args, element_f32, 0); }
void kri_attention_f16_ref(const kri_attn_args_t *args) { attention(args, element_f16, 0); }
void kri_attention_i8_ref(const kri_attn_args_t *args) { attention(args, NULL, 16); }
void kri_attention_f32_qk8_ref(const kri_attn_args_t *args) { attention(args, element_f32, 8); }
void kri_attention_f16_qk8_ref(const kri_attn_args_t *args) { attention(args, element_f16, 8); }
void kri_attention_f32_qk16_ref(const kri_attn_args_t *args) { attention(args, element_f32, 16); }
void kri_attention_f16_qk16_ref(const kri_attn_args_t *args) { attention(args, element_f16, 16); }

/* attention_ref.c: softmax attention of one query head at a time, in double, one pass over the
 * keys with a running maximum (Milakov & Gimelshein 2018). Needs no scratch and takes any
 * head_dim up to KRI_HEAD_DIM_MAX. */
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

static double score(const kri_attn_args_t *args, element_fn *element, const float *q,
                    const uint8_t *page, size_t slot) {
    double dot = 0;
    for (size_t i = 0; i < args->head_dim; i++)
        dot += (double)q[i] * (double)element(page + args->k_offset, slot * args->head_dim + i);
    dot *= (double)args->scale;
    if (args->softcap > 0) dot = (double)args->softcap * tanh(dot / (double)args->softcap);
    return dot;
}

static void attend(const kri_attn_args_t *args, element_fn *element, const float *q,
                   uint32_t pos, float *out) {
    double acc[KRI_HEAD_DIM_MAX] = {0};
    double max = -INFINITY, sum = 0;
    uint32_t begin = args->window && pos >= args->window ? pos - args->window + 1 : 0;
    for (uint32_t key = begin; key <= pos; key++) {
        const uint8_t *page =
            args->pool + (size_t)args->page_table[key / KRI_PAGE_TOKENS] * args->page_bytes;
        size_t slot = key % KRI_PAGE_TOKENS;
        double s = score(args, element, q, page, slot);
        if (s > max) {
            double shrink = exp(max - s);
            for (size_t i = 0; i < args->head_dim; i++) acc[i] *= shrink;
            sum *= shrink;
            max = s;
        }
        double weight = exp(s - max);
        sum += weight;
        for (size_t i = 0; i < args->head_dim; i++)
            acc[i] += weight *
                      (double)element(page + args->v_offset, slot * args->head_dim + i);
    }
    for (size_t i = 0; i < args->head_dim; i++) out[i] = (float)(acc[i] / sum);
}

static void attention(const kri_attn_args_t *args, element_fn *element) {
    for (uint32_t r = 0; r < args->n_rows; r++) {
        for (uint32_t h = 0; h < args->n_heads; h++) {
            size_t head = (size_t)h * args->head_dim;
            attend(args, element, args->q + r * args->q_stride + head, args->pos_begin + r,
                   args->out + r * args->out_stride + head);
        }
    }
}

void kri_attention_f32_ref(const kri_attn_args_t *args) { attention(args, element_f32); }
void kri_attention_f16_ref(const kri_attn_args_t *args) { attention(args, element_f16); }

/* weights_cuda.c: see weights_cuda.h. */
#include "engine/weights_cuda.h"

#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/mutex.h"
#include "cuda/exec_cuda.h"

#define ALIGN 256u
#define PIECE_BYTES ((size_t)16 << 20) /* of the two pinned buffers that copies go through */

/* One mutex for all models: loads of several to one device gain nothing from running at once. */
static kri_mutex_t mutex = {PTHREAD_MUTEX_INITIALIZER};

typedef struct upload_s {
    kri_cuda_weights_t *w;
    kri_cuda_stream_t stream;
    uint8_t *pinned[2];
    uint32_t turn;
    size_t at; /* next free byte of the block */
} upload_t;

static size_t aligned(uint64_t n) { return (size_t)((n + ALIGN - 1) / ALIGN * ALIGN); }

/* Float matrices as in the file, the others as packed. */
static uint64_t matrix_bytes(const kri_packed_tensor_t *t) {
    return kri_dtype_is_float(t->source->tensor.dtype) ? t->source->tensor.n_bytes : t->n_bytes;
}

/* A tied head of a float type is the embedding's table. */
static bool is_embedding(const struct kr_model_s *m, const kri_packed_tensor_t *t) {
    return t->source->tensor.data == m->embed.data && kri_dtype_is_float(m->embed.dtype);
}

/* ---- vectors -------------------------------------------------------------------------------- */

typedef void vector_fn(void *ctx, const float **field, size_t n);

static void each_bias(kri_weight_t *w, vector_fn *fn, void *ctx) {
    for (uint32_t i = 0; i < w->n_parts; i++) fn(ctx, &w->parts[i].bias, w->parts[i].n_out);
}

/* Every vector of the model, with layers at `layers`; NULL ones are not called. */
static void each_vector(struct kr_model_s *m, kri_layer_t *layers, vector_fn *fn, void *ctx) {
    const kri_hparams_t *hp = &m->hp;
    fn(ctx, &m->output_norm, hp->n_embd);
    fn(ctx, &m->rope_factors, hp->n_rot / 2);
    each_bias(&m->head, fn, ctx);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        kri_layer_t *l = &layers[i];
        fn(ctx, &l->attn_norm, hp->n_embd);
        fn(ctx, &l->ffn_norm, hp->n_embd);
        fn(ctx, &l->q_norm, hp->head_dim);
        fn(ctx, &l->k_norm, hp->head_dim);
        fn(ctx, &l->post_attn_norm, hp->n_embd);
        fn(ctx, &l->post_ffn_norm, hp->n_embd);
        each_bias(&l->qkv, fn, ctx);
        each_bias(&l->attn_out, fn, ctx);
        each_bias(&l->gate_up, fn, ctx);
        each_bias(&l->ffn_down, fn, ctx);
    }
}

static void count_vector(void *ctx, const float **field, size_t n) {
    if (*field) *(uint64_t *)ctx += aligned(n * sizeof(float));
}

/* ---- size ----------------------------------------------------------------------------------- */

kr_status_t kri_cuda_weights_bytes(const struct kr_model_s *model, uint64_t *n_bytes,
                                   kr_error_t *error) {
    struct kr_model_s m = *model; /* only read */
    uint64_t sum = aligned(m.embed.n_bytes);
    for (uint32_t i = 0; i < m.n_packed_tensors; i++) {
        const kri_packed_tensor_t *t = &m.packed_tensors[i];
        if (t->n_in % KRI_CUDA_N_IN != 0) {
            return KRI_FAIL(error, KR_E_UNSUPPORTED, t->source->name,
                            "tensor %.96s has rows of %zu: on cuda they must be multiples of %u",
                            t->source->name, t->n_in, KRI_CUDA_N_IN);
        }
        if (!is_embedding(&m, t)) sum += aligned(matrix_bytes(t));
    }
    each_vector(&m, m.layers, count_vector, &sum);
    *n_bytes = sum;
    return KR_OK;
}

/* ---- copy ----------------------------------------------------------------------------------- */

/* Copies n_bytes to the next place of the block, piece by piece through pinned memory: while one is
 * on its way the other is filled. */
static const void *put(upload_t *u, const void *from, size_t n_bytes) {
    uint8_t *to = u->w->block + u->at;
    for (size_t done = 0; done < n_bytes; done += PIECE_BYTES) {
        const size_t n = n_bytes - done < PIECE_BYTES ? n_bytes - done : PIECE_BYTES;
        uint8_t *piece = u->pinned[u->turn];
        u->turn ^= 1;
        memcpy(piece, (const uint8_t *)from + done, n);
        /* The piece before has had this memcpy's time; its buffer is the next to be filled. */
        (void)kri_cuda_wait(&u->stream, NULL);
        kri_cuda_copy_in(&u->stream, to + done, piece, n);
    }
    u->at += aligned(n_bytes);
    return to;
}

static void put_vector(void *ctx, const float **field, size_t n) {
    if (*field) *field = put(ctx, *field, n * sizeof(float));
}

/* The part of the copy that stands where `part` stands in the model. */
static kri_weight_part_t *twin_part(const struct kr_model_s *m, kri_cuda_weights_t *w,
                                    const kri_weight_part_t *part) {
    const uintptr_t at = (uintptr_t)part, layers = (uintptr_t)m->layers;
    const size_t n_bytes = m->hp.n_layers * sizeof(kri_layer_t);
    uint8_t *base = at >= layers && at - layers < n_bytes ? (uint8_t *)w->layers + (at - layers)
                                                          : (uint8_t *)&w->model +
                                                                (at - (uintptr_t)m);
    return (kri_weight_part_t *)(void *)base;
}

static void copy_all(upload_t *u, const struct kr_model_s *m) {
    kri_cuda_weights_t *w = u->w;
    w->model.embed.data = put(u, m->embed.data, (size_t)m->embed.n_bytes);
    for (uint32_t i = 0; i < m->n_packed_tensors; i++) {
        const kri_packed_tensor_t *t = &m->packed_tensors[i];
        kri_weight_part_t *part = twin_part(m, w, t->part);
        const void *from = kri_dtype_is_float(part->dtype) ? t->source->tensor.data
                                                           : t->part->packed;
        part->packed = is_embedding(m, t) ? w->model.embed.data
                                          : put(u, from, (size_t)matrix_bytes(t));
    }
    each_vector(&w->model, w->layers, put_vector, u);
}

static void destroy(void *on_device) {
    kri_cuda_weights_t *w = on_device;
    if (!w) return;
    if (w->cuda) kri_cuda_free(w->cuda, w->block, w->n_bytes);
    kri_cuda_close(w->cuda);
    kri_free(w->layers);
    kri_free(w);
}

static kr_status_t upload(const struct kr_model_s *m, kri_cuda_weights_t *w, kr_error_t *error) {
    upload_t u = {.w = w};
    kr_status_t status = kri_cuda_stream_open(w->cuda, &u.stream, error);
    if (status != KR_OK) return status;
    u.pinned[0] = kri_cuda_pinned_alloc(w->cuda, 2 * PIECE_BYTES);
    if (u.pinned[0]) {
        u.pinned[1] = u.pinned[0] + PIECE_BYTES;
        copy_all(&u, m);
        status = kri_cuda_wait(&u.stream, error);
    } else {
        status = KRI_FAIL(error, KR_E_NOMEM, NULL, "no pinned memory to copy weights through");
    }
    kri_cuda_pinned_free(w->cuda, u.pinned[0]);
    kri_cuda_stream_close(&u.stream);
    return status;
}

static kr_status_t create(struct kr_model_s *m, uint64_t n_bytes, kri_cuda_weights_t **out,
                          kr_error_t *error) {
    kri_cuda_weights_t *w = kri_calloc(1, sizeof *w, "cuda weights");
    void *block = NULL;
    if (!w) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the weights' table");
    kr_status_t status = KR_OK;
    w->model = *m;
    w->n_bytes = (size_t)n_bytes;
    w->layers = kri_calloc(m->hp.n_layers, sizeof *w->layers, "cuda weights");
    if (!w->layers) {
        status = KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the weights' table");
        goto done;
    }
    memcpy(w->layers, m->layers, m->hp.n_layers * sizeof *w->layers);
    w->model.layers = w->layers;
    KR_TRY_DONE(kri_cuda_open(&w->cuda, error));
    KR_TRY_DONE(kri_cuda_alloc(w->cuda, "weights", w->n_bytes, &block, error));
    w->block = block;
    KR_TRY_DONE(upload(m, w, error));
    *out = w;
    w = NULL;
done:
    destroy(w);
    return status;
}

bool kri_cuda_weights_are_loaded(struct kr_model_s *model) {
    kri_mutex_lock(&mutex);
    const bool are = model->on_device != NULL;
    kri_mutex_unlock(&mutex);
    return are;
}

kr_status_t kri_cuda_weights_get(struct kr_model_s *model, kri_pool_t *pool, uint32_t n_threads,
                                 const kri_cuda_weights_t **weights, kr_error_t *error) {
    kri_cuda_weights_t *made = NULL;
    uint64_t n_bytes = 0;
    KR_TRY(kri_cuda_weights_bytes(model, &n_bytes, error));
    kri_mutex_lock(&mutex);
    kr_status_t status = KR_OK;
    if (!model->on_device) {
        status = kri_weights_begin(model, pool, n_threads, NULL);
        if (status == KR_OK) {
            status = create(model, n_bytes, &made, error);
            kri_weights_end(model);
        } else {
            KRI_FAIL(error, status, NULL, "the weights cannot be read");
        }
        if (status == KR_OK) {
            model->free_on_device = destroy;
            model->on_device = made;
        }
    }
    *weights = model->on_device;
    kri_mutex_unlock(&mutex);
    return status;
}

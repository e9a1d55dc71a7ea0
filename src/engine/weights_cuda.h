/* weights_cuda.h: a model's weights in the memory of the CUDA device: one block, filled from the
 * packed weights (quantised types) and the file (float types), shared by all sessions of the model
 * and kept until it is closed. */
#ifndef KRI_ENGINE_WEIGHTS_CUDA_H
#define KRI_ENGINE_WEIGHTS_CUDA_H

#include "cuda/device.h"
#include "model/model.h"

typedef struct kri_cuda_weights_s {
    kri_cuda_t *cuda;        /* one reference */
    struct kr_model_s model; /* the model with device pointers, for forward passes: not a model to
                                retain, close or open anything of */
    kri_layer_t *layers;
    uint8_t *block;
    size_t n_bytes;
} kri_cuda_weights_t;

/* Bytes of the block. KR_E_UNSUPPORTED names a matrix that the kernels cannot take. */
kr_status_t kri_cuda_weights_bytes(const struct kr_model_s *model, uint64_t *n_bytes,
                                   kr_error_t *error);
/* The model's weights on the device; copied by the first call. They live as long as the model.
 * pool: for the check of mapped weights. */
kr_status_t kri_cuda_weights_get(struct kr_model_s *model, kri_pool_t *pool, uint32_t n_threads,
                                 const kri_cuda_weights_t **weights, kr_error_t *error);
/* Whether they are there already. */
bool kri_cuda_weights_are_loaded(struct kr_model_s *model);

#endif

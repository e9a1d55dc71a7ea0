/* images.h: machine code of the kernels, as nvcc made it. */
#ifndef KRI_CUDA_IMAGES_H
#define KRI_CUDA_IMAGES_H

typedef enum kri_cuda_image_e {
#define KR_CUDA_IMAGE(image) KRI_CUDA_IMAGE_##image,
#include "cuda/kernels.def"
    KRI_CUDA_N_IMAGES
} kri_cuda_image_t;

/* The image's bytes; NULL: this build has none (KR_CUDA=OFF). */
const void *kri_cuda_image(kri_cuda_image_t image);
const char *kri_cuda_image_name(kri_cuda_image_t image);

#endif

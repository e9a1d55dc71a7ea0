/* images.c: see images.h. The files come into the library through the assembler; KRI_CUDA_IMAGES is
 * the folder that cmake/cuda.cmake compiled them into. */
#include "cuda/images.h"

#include <stddef.h>

#ifdef KRI_CUDA_IMAGES
#define KR_CUDA_IMAGE(image)                                                                     \
    __asm__(".section .rodata,\"a\",@progbits\n.balign 64\nkri_cubin_" #image ":\n"              \
            ".incbin \"" KRI_CUDA_IMAGES "/" #image ".cubin\"\n.previous\n");                    \
    extern const unsigned char kri_cubin_##image[] __attribute__((visibility("hidden")));
#include "cuda/kernels.def"

const void *kri_cuda_image(kri_cuda_image_t image) {
    switch (image) {
#define KR_CUDA_IMAGE(image)                                                                     \
    case KRI_CUDA_IMAGE_##image: return kri_cubin_##image;
#include "cuda/kernels.def"
    case KRI_CUDA_N_IMAGES: break;
    }
    return NULL;
}
#else
const void *kri_cuda_image(kri_cuda_image_t image) {
    (void)image;
    return NULL;
}
#endif

const char *kri_cuda_image_name(kri_cuda_image_t image) {
    static const char *const names[] = {
#define KR_CUDA_IMAGE(image) #image,
#include "cuda/kernels.def"
    };
    return names[image];
}

/* driver.h: the CUDA driver's interface, taken from its library at run time, so that the same
 * program runs where there is none. Types are the driver's, by their sizes: CUdevice and
 * CUresult are int, CUdeviceptr 64 bits, handles pointers. */
#ifndef KRI_CUDA_DRIVER_H
#define KRI_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "kr.h"

#define KRI_CUDA_SUCCESS 0
#define KRI_CUDA_OUT_OF_MEMORY 2
#define KRI_CUDA_NO_DEVICE 100
#define KRI_CUDA_ATTR_PROCESSORS 16
#define KRI_CUDA_ATTR_MAJOR 75
#define KRI_CUDA_ATTR_MINOR 76
#define KRI_CUDA_FUNCTION_SHARED_BYTES 8 /* of cuFuncSetAttribute: dynamic shared memory */
#define KRI_CUDA_STREAM_NON_BLOCKING 1u
#define KRI_CUDA_CAPTURE_RELAXED 2
#define KRI_CUDA_LAUNCH_DEPENDENT 6 /* CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION */
#define KRI_CUDA_TENSOR_F16 6         /* CU_TENSOR_MAP_DATA_TYPE_FLOAT16 */
#define KRI_CUDA_TENSOR_SWIZZLE_128 3 /* CU_TENSOR_MAP_SWIZZLE_128B */
#define KRI_CUDA_TENSOR_L2_256 3      /* CU_TENSOR_MAP_L2_PROMOTION_L2_256B */

/* CUlaunchAttribute, CUlaunchConfig */
typedef struct kri_cuda_attribute_s {
    int id;
    char padding[4];
    union { int value; char bytes[64]; } value;
} kri_cuda_attribute_t;
typedef struct kri_cuda_launch_s {
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    kri_cuda_attribute_t *attributes;
    unsigned n_attributes;
} kri_cuda_launch_t;

typedef struct kri_cuda_driver_s {
#define KR_CUDA_CALL(field, symbol, parameters) int(*field) parameters;
#include "cuda/driver.def"
} kri_cuda_driver_t;

/* Fills the table. KR_E_NOT_FOUND when this machine has no driver, KR_E_UNSUPPORTED when it lacks a
 * function, which the message names. */
kr_status_t kri_cuda_driver_open(kri_cuda_driver_t *driver, kr_error_t *error);
/* "CUDA_ERROR_OUT_OF_MEMORY", static. */
const char *kri_cuda_error_name(const kri_cuda_driver_t *driver, int code);

#endif

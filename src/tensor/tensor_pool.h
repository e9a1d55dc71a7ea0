/* tensor_pool.h: the inside of kr_tensor_acquire (kr.h): one pool for the process. */
#ifndef KRI_TENSOR_TENSOR_POOL_H
#define KRI_TENSOR_TENSOR_POOL_H

#include <stdint.h>

#include "kr.h"

/* Idle memory beyond this goes back to the heap, longest idle first. Headers are counted. */
#define KRI_TENSOR_IDLE_BYTES_MAX ((uint64_t)64 << 20)
#define KRI_TENSOR_BYTES_MAX ((uint64_t)1 << 39)

/* Gives all idle memory back to the heap. Any thread; kr_allocator_set does it first of all. */
void kri_tensor_pool_trim(void);
/* Idle bytes, headers included; the gauge tensor_pool_bytes. Any thread. */
uint64_t kri_tensor_pool_idle_bytes(void);

#endif

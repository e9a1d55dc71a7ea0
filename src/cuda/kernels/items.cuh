/* items.cuh: the items of 16 bytes of float weights. */
#ifndef KRI_CUDA_ITEMS_CUH
#define KRI_CUDA_ITEMS_CUH

#include "common.cuh"

template <typename T> struct items;
template <> struct items<float> {
    static constexpr int n = 4;
    __device__ static float at(const uint4 &v, int i) {
        return __uint_as_float(i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w);
    }
};
template <> struct items<__nv_bfloat16> {
    static constexpr int n = 8;
    __device__ static float at(const uint4 &v, int i) {
        const uint32_t u = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : i / 2 == 2 ? v.z : v.w;
        return __uint_as_float(i % 2 ? u & 0xffff0000u : u << 16);
    }
};
template <> struct items<__half> {
    static constexpr int n = 8;
    __device__ static float at(const uint4 &v, int i) {
        const uint32_t u = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : i / 2 == 2 ? v.z : v.w;
        return kri_half((uint16_t)(i % 2 ? u >> 16 : u));
    }
};

#endif

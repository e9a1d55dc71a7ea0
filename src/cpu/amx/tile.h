/* tile.h: the tile registers of AMX as the kernels of this folder use them: eight tiles of 16 rows
 * of 64 bytes. Compiled with KRI_AMX_EMULATED the same kernels run on tiles in ordinary memory: the
 * way to test them, everything but speed, on a machine without AMX.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. */
#ifndef KRI_CPU_AMX_TILE_H
#define KRI_CPU_AMX_TILE_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define TILE_ROWS 16u
#define TILE_ROW_BYTES 64u
#define TILE_BYTES 1024u

#if !defined(KRI_AMX_EMULATED)

#define KRI_AMX_NAME(slot) kri_##slot##_amx

typedef struct tile_config_s {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config_t;

/* All eight tiles are full: 16 rows of 64 bytes. The configuration belongs to the thread. Loads and
 * the configuration are written out, because the compilers' own forms do not say that they read
 * memory: stores before them could be moved or dropped. */
INLINE void tile_begin(void) {
    _Alignas(64) tile_config_t config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (unsigned i = 0; i < 8; i++) {
        config.rows[i] = TILE_ROWS;
        config.row_bytes[i] = TILE_ROW_BYTES;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
/* Tiles left in use keep the core out of its deep sleep states. */
INLINE void tile_end(void) { _tile_release(); }
#define tile_zero(t) _tile_zero(t)
#define tile_load(t, p, stride)                                                                  \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t                                             \
                     :                                                                           \
                     : "r"((const void *)(p)), "r"((int64_t)(stride))                            \
                     : "memory")
#define tile_store(t, p, stride)                                                                 \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)"                                         \
                     :                                                                           \
                     : "r"((void *)(p)), "r"((int64_t)(stride))                                  \
                     : "memory")
#define tile_dot_bf16(c, a, b) _tile_dpbf16ps(c, a, b)

#else

#define KRI_AMX_NAME(slot) kri_##slot##_amx_emulated

typedef struct tiles_s {
    union {
        float f[TILE_ROWS][16];
        uint16_t h[TILE_ROWS][32];
        uint8_t b[TILE_ROWS][TILE_ROW_BYTES];
    } t[8];
} tiles_t;
static _Thread_local tiles_t tiles;

INLINE void tile_begin(void) { memset(&tiles, 0, sizeof tiles); }
INLINE void tile_end(void) { memset(&tiles, 0xff, sizeof tiles); }
static inline void tile_zero(unsigned t) { memset(&tiles.t[t], 0, sizeof tiles.t[t]); }
static inline void tile_load(unsigned t, const void *p, size_t stride) {
    for (size_t r = 0; r < TILE_ROWS; r++)
        memcpy(tiles.t[t].b[r], (const uint8_t *)p + r * stride, TILE_ROW_BYTES);
}
static inline void tile_store(unsigned t, void *p, size_t stride) {
    for (size_t r = 0; r < TILE_ROWS; r++)
        memcpy((uint8_t *)p + r * stride, tiles.t[t].b[r], TILE_ROW_BYTES);
}
INLINE float tile_bf16(uint16_t h) {
    const uint32_t bits = (h & 0x7f80u) == 0 ? (uint32_t)(h & 0x8000u) << 16 : (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline void tile_dot_bf16(unsigned c, unsigned a, unsigned b) {
    for (unsigned m = 0; m < TILE_ROWS; m++)
        for (unsigned k = 0; k < TILE_ROW_BYTES / 2u; k++)
            for (unsigned n = 0; n < 16; n++)
                tiles.t[c].f[m][n] += tile_bf16(tiles.t[a].h[m][k]) *
                                      tile_bf16(tiles.t[b].h[k / 2][2 * n + k % 2]);
}
#endif

#endif

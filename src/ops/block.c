/* block.c: reading and writing 32-blocks. Block layouts of the files follow the GGUF types named
 * in tensor/dtypes.def; packed layouts follow pack.h. Works on four quants at a time in a 32-bit
 * word: fast enough to pack at the speed of a disk, and the same on every machine. */
#include "ops/block.h"

#include <string.h>

#define NIBBLES 0x0f0f0f0fu
#define LOW_BITS 0x01010101u
#define LOW_PAIRS 0x03030303u

static uint16_t load_u16(const uint8_t *src) {
    uint16_t v;
    memcpy(&v, src, sizeof v);
    return v;
}

static uint32_t load_u32(const uint8_t *src) {
    uint32_t v;
    memcpy(&v, src, sizeof v);
    return v;
}

static void store_u16(uint8_t *dst, uint16_t v) { memcpy(dst, &v, sizeof v); }
static void store_u32(uint8_t *dst, uint32_t v) { memcpy(dst, &v, sizeof v); }

/* ---- file blocks --------------------------------------------------------------------------- */

/* q4_0 q4_1 q5_0 q5_1: low nibbles are items 0..15, high nibbles 16..31, as in a packed nib. */
static void from_file_legacy(const uint8_t *src, bool has_m, bool has_high, kri_block_t *out) {
    out->d = load_u16(src);
    src += 2;
    if (has_m) {
        out->m = load_u16(src);
        src += 2;
    }
    if (has_high) {
        out->high = load_u32(src);
        src += 4;
    }
    memcpy(out->quants, src, 16);
}

static void from_file_q8_0(const uint8_t *src, kri_block_t *out) {
    out->d = load_u16(src);
    memcpy(out->quants, src + 2, 32);
    for (size_t u = 0; u < 8; u++) out->quants[u] ^= 0x80808080u;
}

/* The eight 6-bit (scale, min) pairs of q4_k and q5_k in 12 bytes: pairs 0..3 in the low six
 * bits of bytes 0..3 and 4..7; pairs 4..7 are a nibble of bytes 8..11 below the top two bits of
 * those. */
static void k_scale_min(const uint8_t *scales, size_t i, uint8_t *scale, uint8_t *min) {
    if (i < 4) {
        *scale = scales[i] & 63u;
        *min = scales[i + 4] & 63u;
    } else {
        uint32_t pair = scales[i + 4], scale_top = scales[i - 4] >> 6, min_top = scales[i] >> 6;
        *scale = (uint8_t)((pair & 15u) | scale_top << 4);
        *min = (uint8_t)((pair >> 4) | min_top << 4);
    }
}

/* 64 items share 32 bytes: the even 32-block has the low nibbles, the odd one the high nibbles. */
static void from_file_k_nibbles(const uint8_t *quants, size_t i, kri_block_t *out) {
    const uint8_t *src = quants + 32 * (i / 2);
    uint32_t shift = 4u * (uint32_t)(i % 2);
    for (size_t v = 0; v < 4; v++) {
        uint32_t low = load_u32(src + 4 * v), high = load_u32(src + 16 + 4 * v);
        out->quants[v] = ((low >> shift) & NIBBLES) | (((high >> shift) & NIBBLES) << 4);
    }
}

static void from_file_q4_k(const uint8_t *src, size_t i, kri_block_t *out) {
    out->d = load_u16(src);
    out->m = load_u16(src + 2);
    k_scale_min(src + 4, i, &out->s[0], &out->s[1]);
    from_file_k_nibbles(src + 16, i, out);
}

/* The fifth bits: bit i of byte l is that of item l of 32-block i. */
static void from_file_q5_k(const uint8_t *src, size_t i, kri_block_t *out) {
    out->d = load_u16(src);
    out->m = load_u16(src + 2);
    k_scale_min(src + 4, i, &out->s[0], &out->s[1]);
    uint32_t high = 0;
    for (size_t u = 0; u < 8; u++) {
        uint32_t bits = (load_u32(src + 16 + 4 * u) >> i) & LOW_BITS;
        high |= ((bits * 0x01020408u) >> 24) << (4 * u);
    }
    out->high = high;
    from_file_k_nibbles(src + 48, i, out);
}

/* Each half of 128 items has ql[64] and qh[32]: 32-block j of the half takes nibbles of
 * ql[32 (j % 2) ..], low for j < 2 and high after, and bits 2j..2j+1 of qh. */
static void from_file_q6_k(const uint8_t *src, size_t i, kri_block_t *out) {
    const uint8_t *scales = src + 192;
    uint32_t j = (uint32_t)(i % 4);
    const uint8_t *low = src + 64 * (i / 4) + 32 * (j % 2);
    const uint8_t *high = src + 128 + 32 * (i / 4);
    uint32_t shift = 4 * (j / 2);
    out->d = load_u16(src + 208);
    out->s[0] = scales[2 * i];
    out->s[1] = scales[2 * i + 1];
    for (size_t v = 0; v < 4; v++) {
        uint32_t first = load_u32(low + 4 * v), second = load_u32(low + 16 + 4 * v);
        out->quants[v] = ((first >> shift) & NIBBLES) | (((second >> shift) & NIBBLES) << 4);
    }
    for (size_t u = 0; u < 8; u++) {
        uint32_t pair = (load_u32(high + 4 * u) >> (2 * j)) & LOW_PAIRS;
        out->two[u / 4] |= pair << (2 * (u % 4));
    }
}

void kri_block_from_file(kr_dtype_t dtype, const uint8_t *row, size_t block, kri_block_t *out) {
    const kri_dtype_info_t *info = kri_dtype_info(dtype);
    const uint8_t *src;
    size_t i = block % 8;
    memset(out, 0, sizeof *out);
    if (info->block_items == 32) src = row + block * info->block_bytes;
    else src = row + block / 8 * info->block_bytes;
    switch (dtype) {
    case KR_DTYPE_Q4_0: from_file_legacy(src, false, false, out); break;
    case KR_DTYPE_Q4_1: from_file_legacy(src, true, false, out); break;
    case KR_DTYPE_Q5_0: from_file_legacy(src, false, true, out); break;
    case KR_DTYPE_Q5_1: from_file_legacy(src, true, true, out); break;
    case KR_DTYPE_Q8_0: from_file_q8_0(src, out); break;
    case KR_DTYPE_Q4_K: from_file_q4_k(src, i, out); break;
    case KR_DTYPE_Q5_K: from_file_q5_k(src, i, out); break;
    case KR_DTYPE_Q6_K: from_file_q6_k(src, i, out); break;
    default: break;
    }
}

/* ---- packed groups ------------------------------------------------------------------------- */

static bool has_high(kr_dtype_t dtype) {
    return dtype == KR_DTYPE_Q5_0 || dtype == KR_DTYPE_Q5_1 || dtype == KR_DTYPE_Q5_K;
}

static bool has_m(kr_dtype_t dtype) {
    return dtype == KR_DTYPE_Q4_1 || dtype == KR_DTYPE_Q5_1 || dtype == KR_DTYPE_Q4_K ||
           dtype == KR_DTYPE_Q5_K;
}

static bool is_super(kr_dtype_t dtype) {
    return dtype == KR_DTYPE_Q4_K || dtype == KR_DTYPE_Q5_K || dtype == KR_DTYPE_Q6_K;
}

void kri_block_from_group(kr_dtype_t dtype, const uint8_t *group, const kri_pack_layout_t *layout,
                          size_t block, size_t row, kri_block_t *out) {
    const uint8_t *scales = group + layout->scales + block * layout->scale_bytes;
    const uint8_t *d = scales;
    const uint8_t *quants = group + layout->quants + block * layout->quant_bytes;
    size_t n_words = dtype == KR_DTYPE_Q8_0 ? 8 : 4;
    memset(out, 0, sizeof *out);
    if (is_super(dtype)) {
        d = group + layout->super + block / 8 * layout->super_bytes;
        out->s[0] = scales[row];
        out->s[1] = scales[16 + row];
    }
    out->d = load_u16(d + 2 * row);
    if (has_m(dtype)) out->m = load_u16(d + 32 + 2 * row);
    if (has_high(dtype)) {
        for (size_t u = 0; u < 8; u++) {
            uint32_t bits = (uint32_t)(quants[8 * u + row / 2] >> (4 * (row % 2))) & 15u;
            out->high |= bits << (4 * u);
        }
        quants += 64;
    }
    if (dtype == KR_DTYPE_Q6_K) {
        out->two[0] = load_u32(quants + 4 * row);
        out->two[1] = load_u32(quants + 64 + 4 * row);
        quants += 128;
    }
    for (size_t v = 0; v < n_words; v++) out->quants[v] = load_u32(quants + 64 * v + 4 * row);
}

void kri_block_to_group(kr_dtype_t dtype, const kri_block_t *in, const kri_pack_layout_t *layout,
                        size_t block, size_t row, uint8_t *group) {
    uint8_t *scales = group + layout->scales + block * layout->scale_bytes;
    uint8_t *d = scales;
    uint8_t *quants = group + layout->quants + block * layout->quant_bytes;
    size_t n_words = dtype == KR_DTYPE_Q8_0 ? 8 : 4;
    if (is_super(dtype)) {
        d = group + layout->super + block / 8 * layout->super_bytes;
        scales[row] = in->s[0];
        scales[16 + row] = in->s[1];
    }
    store_u16(d + 2 * row, in->d);
    if (has_m(dtype)) store_u16(d + 32 + 2 * row, in->m);
    if (has_high(dtype)) {
        uint32_t shift = 4u * (uint32_t)(row % 2);
        for (size_t u = 0; u < 8; u++) {
            uint8_t *byte = quants + 8 * u + row / 2;
            uint32_t bits = (in->high >> (4 * u)) & 15u;
            *byte = (uint8_t)((*byte & (0xf0u >> shift)) | (bits << shift));
        }
        quants += 64;
    }
    if (dtype == KR_DTYPE_Q6_K) {
        store_u32(quants + 4 * row, in->two[0]);
        store_u32(quants + 64 + 4 * row, in->two[1]);
        quants += 128;
    }
    for (size_t v = 0; v < n_words; v++) store_u32(quants + 64 * v + 4 * row, in->quants[v]);
}

/* ---- numbers ------------------------------------------------------------------------------- */

void kri_block_quants(kr_dtype_t dtype, const kri_block_t *block, uint8_t *quants) {
    if (dtype == KR_DTYPE_Q8_0) {
        memcpy(quants, block->quants, 32);
        return;
    }
    for (size_t u = 0; u < 8; u++) {
        uint32_t word = (u < 4 ? block->quants[u] : block->quants[u - 4] >> 4) & NIBBLES;
        uint32_t bits = (block->high >> (4 * u)) & 15u;
        uint32_t pairs = (block->two[u / 4] >> (2 * (u % 4))) & LOW_PAIRS;
        word |= ((bits * 0x00204081u) & LOW_BITS) << 4; /* bit i to byte i */
        word |= pairs << 4;
        store_u32(quants + 4 * u, word);
    }
}

void kri_block_values(kr_dtype_t dtype, const kri_block_t *block, float *values) {
    uint8_t quants[KRI_BLOCK_ITEMS];
    float d = kri_f16_to_f32(block->d), m = kri_f16_to_f32(block->m);
    int32_t zero = 0;
    kri_block_quants(dtype, block, quants);
    switch (dtype) {
    case KR_DTYPE_Q4_0: zero = 8; break;
    case KR_DTYPE_Q5_0: zero = 16; break;
    case KR_DTYPE_Q8_0: zero = 128; break;
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K:
        d *= (float)block->s[0];
        m = -(m * (float)block->s[1]);
        break;
    case KR_DTYPE_Q6_K: {
        float halves[2] = {d * (float)(int8_t)block->s[0], d * (float)(int8_t)block->s[1]};
        for (size_t i = 0; i < KRI_BLOCK_ITEMS; i++)
            values[i] = halves[i / 16] * (float)(quants[i] - 32);
        return;
    }
    default: break;
    }
    for (size_t i = 0; i < KRI_BLOCK_ITEMS; i++) {
        float v = d * (float)(quants[i] - zero);
        values[i] = has_m(dtype) ? v + m : v;
    }
}

float kri_block_element(kr_dtype_t dtype, const uint8_t *src, size_t index) {
    if (dtype == KR_DTYPE_F32) {
        float v;
        memcpy(&v, src + 4 * index, sizeof v);
        return v;
    }
    uint16_t h = load_u16(src + 2 * index);
    return dtype == KR_DTYPE_F16 ? kri_f16_to_f32(h) : kri_bf16_to_f32(h);
}

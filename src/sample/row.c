/* row.c: see row.h. The two passes over the whole vocabulary (maximum, sum of exponentials) are
 * here; nothing here depends on sampling parameters. */
#include "sample/row.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"

#define LANES 16u /* independent partial results: hides latency at any vector width */
#define SCAN_LANES 32u
_Static_assert(KRI_ROW_BLOCK == 2 * SCAN_LANES, "the scan folds a block once");

kr_status_t kri_row_init(kri_row_t *row, uint32_t n_vocab, uint64_t n_edits_max) {
    memset(row, 0, sizeof *row);
    row->n_vocab = n_vocab;
    row->n_blocks = n_vocab / KRI_ROW_BLOCK + (n_vocab % KRI_ROW_BLOCK != 0);
    /* One more than the edits: the ragged last block. */
    row->n_patches_max =
        n_edits_max < row->n_blocks ? (uint32_t)n_edits_max + 1 : row->n_blocks;
    row->patch_of_block = kri_calloc(row->n_blocks, sizeof *row->patch_of_block, "sampler");
    row->patched = kri_calloc(row->n_patches_max, sizeof *row->patched, "sampler");
    row->patches =
        kri_calloc(row->n_patches_max, KRI_ROW_BLOCK * sizeof *row->patches, "sampler");
    row->block_max = kri_calloc(row->n_blocks, sizeof *row->block_max, "sampler");
    row->block_sum = kri_calloc(row->n_blocks, sizeof *row->block_sum, "sampler");
    if (row->patch_of_block == NULL || row->patched == NULL || row->patches == NULL ||
        row->block_max == NULL || row->block_sum == NULL)
        return KR_E_NOMEM;
    return KR_OK;
}

void kri_row_deinit(kri_row_t *row) {
    kri_free(row->block_sum);
    kri_free(row->block_max);
    kri_free(row->patches);
    kri_free(row->patched);
    kri_free(row->patch_of_block);
    memset(row, 0, sizeof *row);
}

/* Copies a block on its first edit. */
static float *patch(kri_row_t *row, uint32_t block) {
    if (row->patch_of_block[block] == 0) {
        size_t begin = (size_t)block * KRI_ROW_BLOCK;
        size_t n = row->n_vocab - begin;
        if (n > KRI_ROW_BLOCK) n = KRI_ROW_BLOCK;
        float *copy = row->patches + (size_t)row->n_patches * KRI_ROW_BLOCK;
        memcpy(copy, row->logits + begin, n * sizeof *copy);
        for (size_t i = n; i < KRI_ROW_BLOCK; i++) copy[i] = -INFINITY;
        row->patched[row->n_patches++] = block;
        row->patch_of_block[block] = row->n_patches;
    }
    return row->patches + (size_t)(row->patch_of_block[block] - 1) * KRI_ROW_BLOCK;
}

void kri_row_begin(kri_row_t *row, const float *logits) {
    for (uint32_t i = 0; i < row->n_patches; i++) row->patch_of_block[row->patched[i]] = 0;
    row->n_patches = 0;
    row->logits = logits;
    if (row->n_vocab % KRI_ROW_BLOCK != 0) (void)patch(row, row->n_blocks - 1);
}

float *kri_row_edit(kri_row_t *row, kr_token_t token) {
    return patch(row, (uint32_t)token / KRI_ROW_BLOCK) + (uint32_t)token % KRI_ROW_BLOCK;
}

/* max[j] of n (a constant) becomes the larger of max[j] and max[j + n]. */
static inline void halve(float *max, uint32_t n) {
    for (uint32_t j = 0; j < n; j++) max[j] = max[j] > max[j + n] ? max[j] : max[j + n];
}

/* Maximum of a block; a lane of finite [SCAN_LANES] becomes 0 when it meets a NaN or +Inf. Both
 * halves of the block meet in loops that are too long to be unrolled, which is what keeps GCC 12
 * from making scalars of their lanes. */
static inline float scan_block(const float *restrict x, int32_t *restrict finite) {
    const float *high = x + SCAN_LANES;
    float max[SCAN_LANES];
    for (uint32_t j = 0; j < SCAN_LANES; j++) max[j] = x[j] > high[j] ? x[j] : high[j];
    for (uint32_t j = 0; j < SCAN_LANES; j++)
        finite[j] &= -(int32_t)(x[j] < INFINITY) & -(int32_t)(high[j] < INFINITY);
    halve(max, 16);
    halve(max, 8);
    halve(max, 4);
    halve(max, 2);
    halve(max, 1);
    return max[0];
}

kr_status_t kri_row_scan(kri_row_t *row) {
    int32_t finite[SCAN_LANES], all_finite = -1;
    float max = -INFINITY;
    memset(finite, -1, sizeof finite);
    for (uint32_t b = 0; b < row->n_blocks; b++) {
        row->block_max[b] = scan_block(kri_row_block(row, b), finite);
        max = row->block_max[b] > max ? row->block_max[b] : max;
    }
    for (uint32_t j = 0; j < SCAN_LANES; j++) all_finite &= finite[j];
    row->max = max;
    return all_finite && max > -INFINITY ? KR_OK : KR_E_NUMERIC;
}

kr_token_t kri_row_argmax(const kri_row_t *row) {
    uint32_t block = 0, i = 0;
    while (row->block_max[block] < row->max) block++;
    const float *x = kri_row_block(row, block);
    while (x[i] < row->max) i++;
    return (kr_token_t)(block * KRI_ROW_BLOCK + i);
}

/* exp(v) = 2^n * exp(r) with n = round(v / ln 2) and |r| <= ln(2) / 2 (Cody and Waite, "Software
 * Manual for the Elementary Functions", 1980, chapter 6): ln 2 is taken off in two parts, the
 * first short enough for n * LN2_HIGH to be exact; exp(r) is its Taylor polynomial of degree 6,
 * whose remainder, r^7 / 5040, is below 1.3e-7. Several short loops, because GCC 12 would make one
 * out of them a branch on the clamp and then vectorise nothing. */
void kri_row_exp(const float *restrict x, float shift, float scale, float *restrict out) {
    const float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    union { int32_t i[KRI_ROW_BLOCK]; float f[KRI_ROW_BLOCK]; } power;
    float v[KRI_ROW_BLOCK];
    int32_t keep[KRI_ROW_BLOCK]; /* all ones, or 0 where the result is 0 */
    for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++) v[i] = (x[i] - shift) * scale;
    for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++) keep[i] = -(int32_t)(v[i] > KRI_ROW_EXP_MIN);
    for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++)
        v[i] = v[i] > KRI_ROW_EXP_MIN ? v[i] : KRI_ROW_EXP_MIN;
    for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++) {
        int32_t n = (int32_t)(v[i] * LOG2_E - 0.5f); /* v <= 0: truncation rounds to nearest */
        float r = (v[i] - (float)n * LN2_HIGH) - (float)n * LN2_LOW;
        float p = 1.0f / 720.0f;
        p = p * r + 1.0f / 120.0f;
        p = p * r + 1.0f / 24.0f;
        p = p * r + 1.0f / 6.0f;
        p = p * r + 0.5f;
        p = p * r + 1.0f;
        p = p * r + 1.0f;
        power.i[i] = ((n + 127) * (1 << 23)) & keep[i]; /* the bits of 2^n, or of 0 */
        out[i] = p;
    }
    for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++) out[i] *= power.f[i];
}

double kri_row_sum_exp(kri_row_t *row, float scale) {
    double total = 0.0;
    for (uint32_t b = 0; b < row->n_blocks; b++) {
        float e[KRI_ROW_BLOCK];
        /* A block whose best adds nothing needs no pass. */
        if ((row->block_max[b] - row->max) * scale <= KRI_ROW_EXP_MIN) {
            row->block_sum[b] = 0.0f;
            continue;
        }
        kri_row_exp(kri_row_block(row, b), row->max, scale, e);
        for (uint32_t i = LANES; i < KRI_ROW_BLOCK; i += LANES)
            for (uint32_t j = 0; j < LANES; j++) e[j] += e[i + j];
        for (uint32_t half = LANES / 2; half > 0; half /= 2)
            for (uint32_t j = 0; j < half; j++) e[j] += e[j + half];
        row->block_sum[b] = e[0];
        total += (double)e[0];
    }
    return total;
}

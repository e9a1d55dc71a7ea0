/* dtype.c: the table of element types; no arithmetic on elements. Types of files that kr does not
 * compute with have a name all the same, so that a refusal can say which one it met. */
#include "tensor/dtype.h"

#include "base/checked.h"

static const kri_dtype_info_t dtype_rows[] = {
#define KR_DTYPE(name, text, ggml_id, block_items, block_bytes)                                  \
    [KR_DTYPE_##name] = {text, ggml_id, block_items, block_bytes},
#include "tensor/dtypes.def"
};

#define N_ROWS (sizeof dtype_rows / sizeof dtype_rows[0])

typedef struct foreign_row_s {
    uint32_t ggml_id;
    const char *name;
} foreign_row_t;

/* GGUF type ids without a row in dtypes.def; 4, 5, 31..33 and 36..38 were withdrawn. */
static const foreign_row_t foreign_rows[] = {
    {4, "q4_2"},      {5, "q4_3"},      {9, "q8_1"},         {10, "q2_k"},
    {11, "q3_k"},     {15, "q8_k"},     {16, "iq2_xxs"},     {17, "iq2_xs"},
    {18, "iq3_xxs"},  {19, "iq1_s"},    {20, "iq4_nl"},      {21, "iq3_s"},
    {22, "iq2_s"},    {23, "iq4_xs"},   {24, "i8"},          {25, "i16"},
    {26, "i32"},      {27, "i64"},      {28, "f64"},         {29, "iq1_m"},
    {31, "q4_0_4_4"}, {32, "q4_0_4_8"}, {33, "q4_0_8_8"},    {34, "tq1_0"},
    {35, "tq2_0"},    {36, "iq4_nl_4_4"}, {37, "iq4_nl_4_8"}, {38, "iq4_nl_8_8"},
    {39, "mxfp4"},    {40, "nvfp4"},    {41, "q1_0"},        {42, "q2_0"},
};

const kri_dtype_info_t *kri_dtype_info(kr_dtype_t dtype) {
    if (dtype <= KR_DTYPE_NONE || (size_t)dtype >= N_ROWS) return NULL;
    return dtype_rows[dtype].name != NULL ? &dtype_rows[dtype] : NULL;
}

const char *kr_dtype_name(kr_dtype_t dtype) {
    const kri_dtype_info_t *info = kri_dtype_info(dtype);
#define KR_DTYPE_OF_CACHE(name, text)                                                            \
    if (dtype == KR_DTYPE_##name) return text;
#include "tensor/dtypes.def"
    return info != NULL ? info->name : "?";
}

kr_dtype_t kri_dtype_from_ggml(uint32_t ggml_id) {
    for (kr_dtype_t dtype = KR_DTYPE_NONE + 1; (size_t)dtype < N_ROWS; dtype++) {
        const kri_dtype_info_t *info = kri_dtype_info(dtype);
        if (info != NULL && (uint32_t)info->ggml_id == ggml_id) return dtype;
    }
    return KR_DTYPE_NONE;
}

const char *kri_ggml_type_name(uint32_t ggml_id) {
    const kr_dtype_t dtype = kri_dtype_from_ggml(ggml_id);
    if (dtype != KR_DTYPE_NONE) return kr_dtype_name(dtype);
    for (size_t i = 0; i < sizeof foreign_rows / sizeof foreign_rows[0]; i++) {
        if (foreign_rows[i].ggml_id == ggml_id) return foreign_rows[i].name;
    }
    return "?";
}

bool kri_dtype_bytes(kr_dtype_t dtype, uint64_t n_items, uint64_t *n_bytes) {
    const kri_dtype_info_t *info = kri_dtype_info(dtype);
    if (info == NULL || n_items % info->block_items != 0) return false;
    return kri_mul_u64(n_items / info->block_items, info->block_bytes, n_bytes);
}

/* test_dtype.c: the element type table and the names of types that are refused. */
#include "tensor/dtype.h"

#include "test.h"

TEST(dtype_table_answers_by_id_and_by_file_id) {
#define KR_DTYPE(NAME, text, ggml, items, bytes)                                                 \
    {                                                                                            \
        const kri_dtype_info_t *info = kri_dtype_info(KR_DTYPE_##NAME);                          \
        assert_non_null(info);                                                                   \
        assert_string_equal(info->name, text);                                                   \
        assert_string_equal(kr_dtype_name(KR_DTYPE_##NAME), text);                               \
        assert_int_equal(info->block_items, items);                                              \
        assert_int_equal(info->block_bytes, bytes);                                              \
        assert_int_equal(kri_dtype_from_ggml(ggml), KR_DTYPE_##NAME);                            \
        assert_string_equal(kri_ggml_type_name(ggml), text);                                     \
    }
#include "tensor/dtypes.def"
}

TEST(dtype_unknown_ids_have_no_row) {
    const kr_dtype_t ids[] = {KR_DTYPE_NONE, -1, 14, 1000, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        uint64_t n_bytes = 5;
        assert_null(kri_dtype_info(ids[i]));
        assert_string_equal(kr_dtype_name(ids[i]), "?");
        assert_false(kri_dtype_bytes(ids[i], 32, &n_bytes));
        assert_int_equal(n_bytes, 5);
    }
}

TEST(dtype_of_a_cache_has_a_name_and_is_no_tensors) {
    uint64_t n_bytes = 5;
    assert_string_equal(kr_dtype_name(KR_DTYPE_I8), "int8");
    assert_string_equal(kr_dtype_name(KR_DTYPE_F8), "fp8");
    assert_null(kri_dtype_info(KR_DTYPE_I8));
    assert_null(kri_dtype_info(KR_DTYPE_F8));
    assert_false(kri_dtype_bytes(KR_DTYPE_I8, 32, &n_bytes));
    assert_int_equal(kri_dtype_from_ggml(24), KR_DTYPE_NONE); /* GGUF's i8 */
}

TEST(dtype_foreign_file_types_are_named_but_not_accepted) {
    const struct { uint32_t id; const char *name; } rows[] = {
        {10, "q2_k"}, {16, "iq2_xxs"}, {20, "iq4_nl"}, {26, "i32"}, {28, "f64"},
        {29, "iq1_m"}, {34, "tq1_0"}, {35, "tq2_0"}, {39, "mxfp4"}, {43, "?"}, {UINT32_MAX, "?"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(kri_dtype_from_ggml(rows[i].id), KR_DTYPE_NONE);
        assert_string_equal(kri_ggml_type_name(rows[i].id), rows[i].name);
    }
    /* Every id up to the newest is either ours or has a name of its own. */
    for (uint32_t a = 0; a < 43; a++) {
        assert_string_not_equal(kri_ggml_type_name(a), "?");
        for (uint32_t b = 0; b < a; b++) {
            assert_string_not_equal(kri_ggml_type_name(a), kri_ggml_type_name(b));
        }
    }
}

TEST(dtype_bytes_are_whole_blocks_and_checked) {
    uint64_t n_bytes = 5;
    assert_true(kri_dtype_bytes(KR_DTYPE_Q4_K, 512, &n_bytes));
    assert_int_equal(n_bytes, 288);
    assert_true(kri_dtype_bytes(KR_DTYPE_F32, 0, &n_bytes));
    assert_int_equal(n_bytes, 0);
    n_bytes = 5;
    assert_false(kri_dtype_bytes(KR_DTYPE_Q4_0, 31, &n_bytes));
    assert_false(kri_dtype_bytes(KR_DTYPE_Q8_0, 33, &n_bytes));
    assert_false(kri_dtype_bytes(KR_DTYPE_F32, UINT64_MAX / 4 + 1, &n_bytes));
    assert_false(kri_dtype_bytes(KR_DTYPE_Q8_0, UINT64_MAX - 31, &n_bytes));
    assert_int_equal(n_bytes, 5);
    assert_true(kri_dtype_bytes(KR_DTYPE_F32, UINT64_MAX / 4, &n_bytes));
    assert_true(n_bytes == UINT64_MAX - 3);
}

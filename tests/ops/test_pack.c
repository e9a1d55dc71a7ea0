/* test_pack.c: block decode against an independent implementation, packing against the decode,
 * layouts and half precision. */
#include "ops_util.h"

/* All types but f32 were decoded by the gguf Python package (tests/golden/make_dequant.py). The
 * float order is the same, so equality is of bits. */
TEST(dequant_row_matches_independent_decoder_when_blocks_are_random) {
    golden_t golden = golden_open("dequant.bin");
    for (kr_dtype_t dtype = KR_DTYPE_F16; kri_dtype_info(dtype); dtype++) {
        const kri_dtype_info_t *info = kri_dtype_info(dtype);
        char name[32];
        size_t n_bytes, n_values;
        snprintf(name, sizeof name, "%s.blocks", info->name);
        const void *blocks = golden_find(&golden, name, &n_bytes);
        snprintf(name, sizeof name, "%s.values", info->name);
        const float *values = golden_floats(&golden, name, &n_values);
        assert_int_equal(n_bytes / info->block_bytes * info->block_items, n_values);
        float *decoded = must_alloc(n_values * sizeof *decoded);
        kri_dequant_row(dtype, blocks, n_values, decoded);
        assert_same_floats(decoded, values, n_values, info->name);
        free(decoded);
    }
    free(golden.bytes);
}

static void check_round_trip(rng_t *rng, kr_dtype_t dtype, fill_t fill, size_t n_rows,
                             size_t n_in) {
    matrix_t m = matrix_new(rng, dtype, fill, n_rows, n_in);
    float *expected = must_alloc(n_in * sizeof(float)), *actual = must_alloc(n_in * sizeof(float));
    /* Read between guard pages: neither side may look past the bytes it was given. */
    guard_t file = guard_copy(m.file, n_rows * m.row_bytes, true);
    guard_t packed = guard_new(m.packed_bytes, true);
    kri_pack_rows(dtype, file.data, m.row_bytes, n_rows, n_in, 0, m.n_groups, packed.data);
    assert_memory_equal(packed.data, m.packed, m.packed_bytes);
    guard_lock(&packed);
    for (size_t r = 0; r < n_rows; r++) {
        kri_dequant_row(dtype, (uint8_t *)file.data + r * m.row_bytes, n_in, expected);
        kri_unpack_row(dtype, packed.data, n_in, r, actual);
        assert_same_floats(actual, expected, n_in, kri_dtype_info(dtype)->name);
    }
    for (size_t r = n_rows; r < m.n_groups * KRI_GROUP_ROWS; r++) {
        kri_unpack_row(dtype, packed.data, n_in, r, actual);
        for (size_t k = 0; k < n_in; k++) assert_true(actual[k] == 0.0f);
    }
    guard_free(&file);
    guard_free(&packed);
    free(expected);
    free(actual);
    matrix_free(&m);
}

TEST(unpack_row_gives_the_decoded_file_row_when_packed) {
    rng_t rng = {1};
    static const size_t n_rows[] = {1, 15, 16, 17, 48};
    for (kr_dtype_t dtype = 1; kri_dtype_info(dtype); dtype++) {
        size_t unit = kri_dtype_info(dtype)->block_items;
        for (size_t i = 0; i < 5; i++) {
            size_t n_units = unit == 1 ? 1 + 14 * i : 1 + i;
            check_round_trip(&rng, dtype, FILL_NORMAL, n_rows[i], unit * n_units);
            check_round_trip(&rng, dtype, FILL_HOSTILE, n_rows[i], unit * n_units);
        }
    }
}

TEST(pack_rows_gives_the_same_bytes_when_groups_are_packed_apart) {
    rng_t rng = {2};
    for (kr_dtype_t dtype = 1; kri_dtype_info(dtype); dtype++) {
        matrix_t m = matrix_new(&rng, dtype, FILL_NORMAL, 53, 512);
        uint8_t *packed = must_alloc(m.packed_bytes);
        memset(packed, 0x5a, m.packed_bytes);
        for (size_t g = m.n_groups; g-- > 0;)
            kri_pack_rows(dtype, m.file, m.row_bytes, m.n_rows, m.n_in, g, g + 1, packed);
        assert_memory_equal(packed, m.packed, m.packed_bytes);
        free(packed);
        matrix_free(&m);
    }
}

/* One q4_0 and one q6_k value are placed by hand, so that packing and unpacking cannot agree on a
 * layout that is not pack.h's. */
TEST(pack_rows_places_quants_as_the_header_says) {
    kri_pack_layout_t layout;
    uint8_t q4_0[3][18] = {{0}}, q6_k[3][210] = {{0}};
    q4_0[2][0] = 0x34;
    q4_0[2][1] = 0x12;
    q4_0[2][2 + 7] = 0xb5; /* k = 7: 5, k = 23: 11 */
    assert_true(kri_pack_layout(KR_DTYPE_Q4_0, 32, &layout));
    uint8_t *packed = must_alloc(layout.group_bytes);
    kri_pack_rows(KR_DTYPE_Q4_0, q4_0[0], 18, 3, 32, 0, 1, packed);
    assert_int_equal(layout.quants, 64);
    assert_int_equal(packed[2 * 2], 0x34);
    assert_int_equal(packed[2 * 2 + 1], 0x12);
    assert_int_equal(packed[layout.quants + 64 * 1 + 4 * 2 + 3], 0xb5);
    free(packed);

    /* Item 128 + 32 + 5 (block 5, k = 5): low bits 9 in ql[64 + 32 + 5], high bits 2. */
    q6_k[1][64 + 32 + 5] = 0x09;
    q6_k[1][128 + 32 + 5] = 2u << 2;
    q6_k[1][192 + 2 * 5] = 0x85;
    q6_k[1][209] = 0x3c;
    assert_true(kri_pack_layout(KR_DTYPE_Q6_K, 256, &layout));
    packed = must_alloc(layout.group_bytes);
    kri_pack_rows(KR_DTYPE_Q6_K, q6_k[0], 210, 3, 256, 0, 1, packed);
    assert_int_equal(layout.scales, 32);
    assert_int_equal(layout.quants, 320);
    assert_int_equal(packed[2 * 1 + 1], 0x3c);
    assert_int_equal(packed[layout.scales + 5 * 32 + 1], 0x85);
    const uint8_t *quants = packed + layout.quants + 5 * layout.quant_bytes;
    assert_int_equal(quants[4 * 1 + 1], 2u << 2);           /* two[0], u = 1 */
    assert_int_equal(quants[128 + 64 * 1 + 4 * 1 + 1], 0x09); /* nib, v = 1 */
    free(packed);

    /* q5_0: item 20 (u = 5) of row 3 has only its fifth bit. */
    uint8_t q5_0[4][22] = {{0}};
    q5_0[3][2 + 2] = 1u << 4;
    assert_true(kri_pack_layout(KR_DTYPE_Q5_0, 32, &layout));
    packed = must_alloc(layout.group_bytes);
    kri_pack_rows(KR_DTYPE_Q5_0, q5_0[0], 22, 4, 32, 0, 1, packed);
    assert_int_equal(packed[layout.quants + 8 * 5 + 1], 1u << 4); /* bit 12: row 3, k = 20 */
    free(packed);
}

TEST(pack_layout_refuses_when_columns_do_not_fit) {
    kri_pack_layout_t layout;
    assert_false(kri_pack_layout(KR_DTYPE_Q4_0, 33, &layout));
    assert_false(kri_pack_layout(KR_DTYPE_Q4_0, 0, &layout));
    assert_false(kri_pack_layout(KR_DTYPE_Q6_K, 128, &layout));
    assert_false(kri_pack_layout(KR_DTYPE_NONE, 256, &layout));
    assert_false(kri_pack_layout(99, 256, &layout));
    assert_false(kri_pack_layout(KR_DTYPE_F32, SIZE_MAX / 2, &layout));
    assert_false(kri_pack_layout(KR_DTYPE_Q8_0, SIZE_MAX / 32 * 32, &layout));
    for (kr_dtype_t dtype = 1; kri_dtype_info(dtype); dtype++) {
        assert_true(kri_pack_layout(dtype, 768, &layout));
        assert_int_equal(layout.group_bytes % 64, 0);
        assert_int_equal(layout.quants % 64, 0);
    }
}

/* The definition: nearest half of all, ties to the even one. */
TEST(f16_conversions_round_to_nearest_even_when_any_half_is_given) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = kri_f16_to_f32((uint16_t)h);
        uint16_t back = kri_f32_to_f16(f);
        if (isnan(f)) assert_true((back & 0x7fff) > 0x7c00);
        else assert_int_equal(back, h);
        uint32_t magnitude = h & 0x7fff;
        if (magnitude >= 0x7bff) continue;
        double low = (double)f, high = (double)kri_f16_to_f32((uint16_t)(h + 1));
        float middle = (float)((low + high) / 2); /* exact: one more bit than a half */
        assert_int_equal(kri_f32_to_f16(middle), (h & 1) ? h + 1 : h);
        assert_int_equal(kri_f32_to_f16(nextafterf(middle, (float)low)), h);
        assert_int_equal(kri_f32_to_f16(nextafterf(middle, (float)high)), h + 1);
    }
    assert_int_equal(kri_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(kri_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(kri_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(kri_f32_to_f16(1e-30f), 0);
    assert_true(kri_f16_to_f32(0x0001) == 0x1p-24f);
    assert_true(kri_f16_to_f32(0x3c01) == 1.0f + 0x1p-10f);
}

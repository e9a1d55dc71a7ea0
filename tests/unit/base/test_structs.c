/* test_structs.c: the struct_bytes rule with callers older and newer than the library. */
#include "base/structs.h"

#include "test.h"

typedef struct params_s {
    uint32_t struct_bytes;
    uint32_t a;
    uint64_t b;
} params_t;

typedef struct params_next_s {
    params_t now;
    uint64_t c;
    uint32_t d[2];
} params_next_t;

static params_t defaults(void) { return (params_t){sizeof(params_t), 11, 22}; }

TEST(struct_read_keeps_defaults_when_source_is_null) {
    params_t params = defaults();
    assert_status(kri_struct_read(&params, sizeof params, NULL, "params", NULL), KR_OK);
    assert_int_equal(params.a, 11);
    assert_int_equal(params.b, 22);
}

TEST(struct_read_takes_every_field_when_sizes_agree) {
    params_t params = defaults();
    const params_t given = {sizeof given, 1, 2};
    assert_status(kri_struct_read(&params, sizeof params, &given, "params", NULL), KR_OK);
    assert_int_equal(params.struct_bytes, sizeof params);
    assert_int_equal(params.a, 1);
    assert_int_equal(params.b, 2);
}

TEST(struct_read_uses_defaults_for_missing_fields_when_source_is_smaller) {
    params_t params = defaults();
    const params_t given = {8, 1, 2};
    assert_status(kri_struct_read(&params, sizeof params, &given, "params", NULL), KR_OK);
    assert_int_equal(params.struct_bytes, sizeof params);
    assert_int_equal(params.a, 1);
    assert_int_equal(params.b, 22);
}

TEST(struct_read_accepts_larger_source_when_tail_is_zero) {
    params_t params = defaults();
    const params_next_t given = {{sizeof given, 1, 2}, 0, {0, 0}};
    assert_status(kri_struct_read(&params, sizeof params, &given, "params", NULL), KR_OK);
    assert_int_equal(params.struct_bytes, sizeof params);
    assert_int_equal(params.b, 2);
}

TEST(struct_read_refuses_larger_source_when_any_tail_byte_is_set) {
    for (size_t at = sizeof(params_t); at < sizeof(params_next_t); at++) {
        params_next_t given = {{sizeof given, 1, 2}, 0, {0, 0}};
        ((unsigned char *)&given)[at] = 1;
        params_t params = defaults();
        kr_error_t error;
        kr_error_init(&error);
        assert_status(kri_struct_read(&params, sizeof params, &given, "params", &error),
                      KR_E_UNSUPPORTED);
        assert_status(error.code, KR_E_UNSUPPORTED);
        assert_string_equal(error.param, "params");
        assert_int_equal(params.a, 11);
        assert_int_equal(params.b, 22);
    }
}

TEST(struct_read_refuses_sizes_that_no_init_function_writes) {
    const uint32_t sizes[] = {0, 1, 4, 7, 9, 10, 12, 4100, 0xdeadbeef, UINT32_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const params_t given = {sizes[i], 1, 2};
        params_t params = defaults();
        assert_status(kri_struct_read(&params, sizeof params, &given, "params", NULL),
                      KR_E_INVALID_ARG);
        assert_int_equal(params.a, 11);
    }
}

TEST(struct_write_copies_the_smaller_size_and_keeps_struct_bytes) {
    const params_t filled = {sizeof filled, 1, 2};
    params_t shorter = {8, 5, 6};
    assert_status(kri_struct_write(&shorter, &filled, sizeof filled), KR_OK);
    assert_int_equal(shorter.struct_bytes, 8);
    assert_int_equal(shorter.a, 1);
    assert_int_equal(shorter.b, 6);
    params_next_t longer = {{sizeof longer, 5, 6}, 7, {8, 9}};
    assert_status(kri_struct_write(&longer, &filled, sizeof filled), KR_OK);
    assert_int_equal(longer.now.struct_bytes, sizeof longer);
    assert_int_equal(longer.now.b, 2);
    assert_int_equal(longer.c, 7);
    assert_int_equal(longer.d[1], 9);
}

TEST(struct_write_refuses_null_and_uninitialised_targets) {
    const params_t filled = {sizeof filled, 1, 2};
    params_t target = {0, 5, 6};
    assert_status(kri_struct_write(NULL, &filled, sizeof filled), KR_E_INVALID_ARG);
    assert_status(kri_struct_write(&target, &filled, sizeof filled), KR_E_INVALID_ARG);
    assert_int_equal(target.a, 5);
}

TEST(struct_init_zeroes_all_but_the_size) {
    params_t target = {1, 2, 3};
    kri_struct_init(&target, sizeof target);
    assert_int_equal(target.struct_bytes, sizeof target);
    assert_int_equal(target.a, 0);
    assert_int_equal(target.b, 0);
}

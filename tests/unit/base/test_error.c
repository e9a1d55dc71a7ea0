/* test_error.c: status names, error filling, and that hostile text leaves one clean line. */
#include "base/error.h"

#include "base/utf8.h"
#include "test.h"

TEST(status_name_and_text_come_from_the_list) {
#define CHECK(name, number, text)                                                                \
    assert_string_equal(kr_status_name(number), "KR_" #name);                                    \
    assert_string_equal(kr_status_text(number), text);
    KR_STATUS_LIST(CHECK)
#undef CHECK
}

TEST(status_name_is_a_placeholder_when_unknown) {
    const kr_status_t unknown[] = {-1, 28, 1000, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        assert_string_equal(kr_status_name(unknown[i]), "KR_?");
        assert_string_equal(kr_status_text(unknown[i]), "unknown status");
    }
}

TEST(error_init_is_empty) {
    kr_error_t error;
    memset(&error, 0xAA, sizeof error);
    kr_error_init(&error);
    assert_int_equal(error.struct_bytes, sizeof error);
    assert_int_equal(error.code, KR_OK);
    assert_true(error.offset == UINT64_MAX);
    assert_string_equal(error.param, "");
    assert_string_equal(error.message, "");
    kr_error_init(NULL);
}

TEST(error_set_fills_every_field_and_returns_the_code) {
    kr_error_t error;
    kr_error_init(&error);
    assert_status(KRI_FAIL_AT(&error, KR_E_LIMIT, "n_ctx", 77, "%d over %d", 5, 4), KR_E_LIMIT);
    assert_status(error.code, KR_E_LIMIT);
    assert_int_equal(error.offset, 77);
    assert_string_equal(error.param, "n_ctx");
    assert_string_equal(error.message, "5 over 4");
    assert_status(KRI_FAIL(&error, KR_E_IO, NULL, "x"), KR_E_IO);
    assert_true(error.offset == UINT64_MAX);
    assert_string_equal(error.param, "");
}

TEST(error_set_returns_the_code_when_no_error_was_given) {
    assert_status(KRI_FAIL(NULL, KR_E_BUSY, "p", "message"), KR_E_BUSY);
}

TEST(error_set_leaves_an_uninitialised_struct_alone) {
    kr_error_t error;
    memset(&error, 0, sizeof error);
    assert_status(KRI_FAIL(&error, KR_E_BUSY, "p", "message"), KR_E_BUSY);
    assert_string_equal(error.message, "");
}

TEST(error_set_writes_no_further_than_struct_bytes) {
    kr_error_t error;
    memset(&error, 0x55, sizeof error);
    error.struct_bytes = 16;
    assert_status(KRI_FAIL_AT(&error, KR_E_BUSY, "p", 9, "message"), KR_E_BUSY);
    assert_status(error.code, KR_E_BUSY);
    assert_int_equal(error.offset, 9);
    assert_int_equal(error.param[0], 0x55);
    assert_int_equal(error.message[511], 0x55);
}

TEST(error_message_is_one_clean_line_when_it_quotes_bytes) {
    kr_error_t error;
    kr_error_init(&error);
    KRI_FAIL(&error, KR_E_BAD_FORMAT, "a\tb", "key %s", "a\n\x1b[31m\x7f\xff\xc3\xa9\xed\xa0\x80!");
    assert_string_equal(error.message, "key a\?\?[31m\?\?\xc3\xa9\?\?\?!");
    assert_string_equal(error.param, "a?b");
}

TEST(error_message_is_cut_between_characters_when_too_long) {
    kr_error_t error;
    for (size_t shift = 0; shift < 4; shift++) {
        char text[1024] = "abc";
        size_t n = shift;
        while (n + 4 < sizeof text) {
            memcpy(text + n, "\xf0\x9f\x98\x80", 5);
            n += 4;
        }
        kr_error_init(&error);
        KRI_FAIL(&error, KR_E_BAD_FORMAT, text, "%s", text);
        const size_t n_message = strlen(error.message);
        assert_in_range(n_message, sizeof error.message - 4, sizeof error.message - 1);
        assert_int_equal(kri_utf8_valid_prefix(error.message, n_message), n_message);
        assert_null(strchr(error.message, '?'));
        assert_memory_equal(error.message, text, n_message);
        assert_in_range(strlen(error.param), sizeof error.param - 4, sizeof error.param - 1);
        assert_null(strchr(error.param, '?'));
    }
}

static kr_status_t forward(kr_status_t status, int *reached) {
    KR_TRY(status);
    *reached = 1;
    return KR_OK;
}

TEST(try_forwards_failures_only) {
    int reached = 0;
    assert_status(forward(KR_E_IO, &reached), KR_E_IO);
    assert_int_equal(reached, 0);
    assert_status(forward(KR_OK, &reached), KR_OK);
    assert_int_equal(reached, 1);
}

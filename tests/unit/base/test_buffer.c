/* test_buffer.c: growth, maximum, printing and consuming of the bounded buffer. */
#include "base/buffer.h"

#include "base/alloc.h"
#include "test.h"

TEST(buffer_appends_until_the_maximum_and_no_byte_more) {
    kri_buffer_t buffer;
    for (size_t max = 0; max < 300; max += 7) {
        kri_buffer_init(&buffer, max);
        for (size_t i = 0; i < max; i++) {
            const char byte = (char)('a' + i % 26);
            assert_status(kri_buffer_append(&buffer, &byte, 1), KR_OK);
            assert_int_equal(buffer.data[buffer.n_bytes], '\0');
        }
        assert_int_equal(buffer.n_bytes, max);
        assert_status(kri_buffer_append(&buffer, "x", 1), KR_E_LIMIT);
        assert_status(kri_buffer_printf(&buffer, "%d", 5), KR_E_LIMIT);
        assert_int_equal(buffer.n_bytes, max);
        for (size_t i = 0; i < max; i++) assert_int_equal(buffer.data[i], 'a' + i % 26);
        kri_buffer_deinit(&buffer);
        assert_null(buffer.data);
        assert_int_equal(buffer.max_bytes, max);
    }
}

TEST(buffer_refuses_sizes_that_overflow) {
    kri_buffer_t buffer;
    kri_buffer_init(&buffer, SIZE_MAX);
    assert_status(kri_buffer_append(&buffer, "abc", 3), KR_OK);
    assert_status(kri_buffer_append(&buffer, "abc", SIZE_MAX), KR_E_LIMIT);
    assert_status(kri_buffer_append(&buffer, "abc", SIZE_MAX - 3), KR_E_LIMIT);
    assert_status(kri_buffer_append(&buffer, "abc", SIZE_MAX - 4), KR_E_NOMEM);
    assert_string_equal(buffer.data, "abc");
    kri_buffer_deinit(&buffer);
}

TEST(buffer_is_unchanged_when_memory_runs_out) {
    kri_buffer_t buffer;
    kri_buffer_init(&buffer, 100000);
    assert_status(kri_buffer_append(&buffer, "kept", 4), KR_OK);
    char big[1000];
    memset(big, 'x', sizeof big);
    kri_alloc_fail(1, false);
    assert_status(kri_buffer_append(&buffer, big, sizeof big), KR_E_NOMEM);
    kri_alloc_fail(1, false);
    assert_status(kri_buffer_printf(&buffer, "%1000d", 1), KR_E_NOMEM);
    assert_string_equal(buffer.data, "kept");
    assert_status(kri_buffer_append(&buffer, big, sizeof big), KR_OK);
    assert_int_equal(buffer.n_bytes, 1004);
    kri_buffer_deinit(&buffer);
}

TEST(buffer_printf_appends_text_of_any_length) {
    kri_buffer_t buffer;
    kri_buffer_init(&buffer, 1 << 20);
    char expected[8192] = "";
    for (int i = 0; i < 60; i++) {
        char piece[128];
        (void)snprintf(piece, sizeof piece, "[%*d]", i, i);
        strcat(expected, piece);
        assert_status(kri_buffer_printf(&buffer, "[%*d]", i, i), KR_OK);
        assert_string_equal(buffer.data, expected);
    }
    assert_status(kri_buffer_printf(&buffer, "%s", ""), KR_OK);
    assert_int_equal(buffer.n_bytes, strlen(expected));
    kri_buffer_deinit(&buffer);
}

TEST(buffer_consume_drops_the_front) {
    kri_buffer_t buffer;
    kri_buffer_init(&buffer, 100);
    kri_buffer_consume(&buffer, 5);
    kri_buffer_clear(&buffer);
    assert_status(kri_buffer_append(&buffer, "abcdef", 6), KR_OK);
    kri_buffer_consume(&buffer, 0);
    assert_string_equal(buffer.data, "abcdef");
    kri_buffer_consume(&buffer, 2);
    assert_string_equal(buffer.data, "cdef");
    assert_int_equal(buffer.n_bytes, 4);
    kri_buffer_consume(&buffer, 99);
    assert_int_equal(buffer.n_bytes, 0);
    assert_string_equal(buffer.data, "");
    assert_status(kri_buffer_append(&buffer, NULL, 0), KR_OK);
    kri_buffer_deinit(&buffer);
}

TEST(buffer_remembers_its_first_failure_until_cleared) {
    kri_buffer_t buffer;
    kri_buffer_init(&buffer, 4);
    assert_status(kri_buffer_append(&buffer, "abc", 3), KR_OK);
    assert_status(buffer.status, KR_OK);
    assert_status(kri_buffer_append(&buffer, "de", 2), KR_E_LIMIT);
    assert_status(kri_buffer_append(&buffer, "d", 1), KR_OK);
    assert_status(buffer.status, KR_E_LIMIT);
    kri_buffer_consume(&buffer, 4);
    assert_status(buffer.status, KR_E_LIMIT);
    kri_buffer_clear(&buffer);
    assert_status(buffer.status, KR_OK);
    kri_alloc_fail(1, false);
    kri_buffer_deinit(&buffer);
    assert_status(kri_buffer_append(&buffer, "abc", 3), KR_E_NOMEM);
    assert_status(kri_buffer_append(&buffer, "abcde", 5), KR_E_LIMIT);
    assert_status(buffer.status, KR_E_NOMEM);
    kri_buffer_deinit(&buffer);
    assert_status(buffer.status, KR_OK);
}

/* test_utf8.c: the boundary rows of the Unicode table by hand, everything else by counting: a
 * validator that accepts one wrong or refuses one right sequence gives another count. */
#include "base/utf8.h"

#include "test.h"

typedef struct case_s {
    uint32_t code_point;
    const char *bytes;
} case_t;

static const case_t cases[] = {
    {0x01, "\x01"},           {0x7F, "\x7f"},           {0x80, "\xc2\x80"},
    {0x7FF, "\xdf\xbf"},      {0x800, "\xe0\xa0\x80"},  {0xFFF, "\xe0\xbf\xbf"},
    {0x1000, "\xe1\x80\x80"}, {0xCFFF, "\xec\xbf\xbf"}, {0xD000, "\xed\x80\x80"},
    {0xD7FF, "\xed\x9f\xbf"}, {0xE000, "\xee\x80\x80"}, {0xFFFD, "\xef\xbf\xbd"},
    {0xFFFF, "\xef\xbf\xbf"}, {0x10000, "\xf0\x90\x80\x80"}, {0x3FFFF, "\xf0\xbf\xbf\xbf"},
    {0x40000, "\xf1\x80\x80\x80"}, {0xFFFFF, "\xf3\xbf\xbf\xbf"},
    {0x100000, "\xf4\x80\x80\x80"}, {0x10FFFF, "\xf4\x8f\xbf\xbf"},
};

TEST(utf8_boundary_code_points_have_the_bytes_of_the_standard) {
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[4];
        uint32_t code_point = 0;
        const size_t n = strlen(cases[i].bytes);
        assert_int_equal(kri_utf8_encode(cases[i].code_point, out), n);
        assert_memory_equal(out, cases[i].bytes, n);
        assert_int_equal(kri_utf8_valid_prefix(cases[i].bytes, n), n);
        assert_int_equal(kri_utf8_decode(cases[i].bytes, n, &code_point), n);
        assert_int_equal(code_point, cases[i].code_point);
    }
}

TEST(utf8_refuses_malformed_sequences) {
    static const char *const bad[] = {
        "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xc2\xc0", "\xe0\x9f\xbf",
        "\xe0\xa0", "\xe0\xa0\x41", "\xed\xa0\x80", "\xed\xbf\xbf", "\xef\xbf\xc0",
        "\xf0\x8f\xbf\xbf", "\xf0\x90\x80", "\xf0\x90\x80\x41", "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80", "\xf7\xbf\xbf\xbf", "\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80",
        "\xfe", "\xff",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint32_t code_point = 0;
        assert_int_equal(kri_utf8_valid_prefix(bad[i], strlen(bad[i])), 0);
        assert_int_equal(kri_utf8_decode(bad[i], strlen(bad[i]), &code_point), 1);
        assert_int_equal(code_point, 0xFFFD);
    }
}

TEST(utf8_every_code_point_survives_a_round_trip_and_no_other_encodes) {
    for (uint32_t code_point = 0; code_point <= 0x10FFFF; code_point++) {
        char out[4];
        uint32_t back = UINT32_MAX;
        const size_t n = kri_utf8_encode(code_point, out);
        if (code_point >= 0xD800 && code_point <= 0xDFFF) {
            assert_int_equal(n, 0);
            continue;
        }
        const size_t expected =
            code_point < 0x80 ? 1 : code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
        if (n != expected || kri_utf8_valid_prefix(out, n) != n ||
            kri_utf8_decode(out, n, &back) != n || back != code_point) {
            fail_msg("U+%04X", (unsigned)code_point);
        }
    }
    char out[4];
    assert_int_equal(kri_utf8_encode(0x110000, out), 0);
    assert_int_equal(kri_utf8_encode(UINT32_MAX, out), 0);
}

/* Sequences of n bytes that are one character: bytes 3 and 4 only at their edges. */
static size_t count_characters(size_t n) {
    static const unsigned char edges[] = {0x00, 0x7F, 0x80, 0xBF, 0xC0, 0xFF};
    size_t n_valid = 0;
    for (unsigned first = 0; first < 256; first++) {
        for (unsigned second = 0; second < 256; second++) {
            for (unsigned e = 0; e < 36; e++) {
                const unsigned char bytes[4] = {(unsigned char)first, (unsigned char)second,
                                                edges[e / 6], edges[e % 6]};
                uint32_t code_point;
                const char *text = (const char *)bytes;
                if (kri_utf8_valid_prefix(text, n) != n) continue;
                n_valid += kri_utf8_decode(text, n, &code_point) == n;
            }
        }
    }
    return n_valid;
}

TEST(utf8_accepts_exactly_as_many_sequences_as_there_are_characters) {
    assert_int_equal(count_characters(2), 1920 * 36);
    assert_int_equal(count_characters(3), (0x10000 - 0x800 - 0x800) / 64 * 2 * 6);
    assert_int_equal(count_characters(4), 0x100000 / 4096 * 4);
}

TEST(utf8_valid_prefix_stops_at_the_same_place_for_every_alignment) {
    char text[96];
    for (size_t start = 0; start < 9; start++) {
        for (size_t at = start; at < 80; at++) {
            memset(text, 'a', sizeof text);
            text[at] = (char)0xFF;
            assert_int_equal(kri_utf8_valid_prefix(text + start, 90 - start), at - start);
            memcpy(text + at, "\xe2\x82\xac", 3);
            assert_int_equal(kri_utf8_valid_prefix(text + start, 90 - start), 90 - start);
            assert_int_equal(kri_utf8_valid_prefix(text + start, at + 2 - start), at - start);
        }
    }
    assert_int_equal(kri_utf8_valid_prefix("", 0), 0);
    assert_int_equal(kri_utf8_valid_prefix("a\0b", 3), 3);
}

TEST(utf8_is_incomplete_only_for_proper_beginnings) {
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t n = strlen(cases[i].bytes);
        for (size_t k = 1; k < n; k++) assert_true(kri_utf8_is_incomplete(cases[i].bytes, k));
        assert_false(kri_utf8_is_incomplete(cases[i].bytes, n));
    }
    assert_false(kri_utf8_is_incomplete("", 0));
    static const char *const never[] = {"\x80", "\xc0", "\xc1", "\xf5", "\xff", "\xe0\x80",
                                        "\xed\xa0", "\xf0\x8f", "\xf4\x90", "\xf0\x90\x41", "a"};
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
        assert_false(kri_utf8_is_incomplete(never[i], strlen(never[i])));
    }
}

TEST(utf8_decode_ends_on_any_bytes) {
    unsigned seed = 7;
    for (int round = 0; round < 2000; round++) {
        char text[64];
        for (size_t i = 0; i < sizeof text; i++) {
            seed = seed * 1664525u + 1013904223u;
            text[i] = (char)(seed >> 24);
        }
        size_t at = 0;
        while (at < sizeof text) {
            uint32_t code_point;
            const size_t n = kri_utf8_decode(text + at, sizeof text - at, &code_point);
            assert_in_range(n, 1, 4);
            at += n;
        }
        assert_int_equal(at, sizeof text);
        kri_utf8_clean_line(text, sizeof text);
        assert_int_equal(kri_utf8_valid_prefix(text, sizeof text), sizeof text);
        for (size_t i = 0; i < sizeof text; i++) {
            assert_true((unsigned char)text[i] >= 0x20 && text[i] != 0x7F);
        }
    }
}

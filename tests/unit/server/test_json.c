/* Request bodies: bounds of the text, types and bounds of fields, names in messages, printing. */
#include <math.h>

#include "server/json.h"
#include "test.h"

static bool parses(const char *text, size_t n_bytes, json_mistake_t *mistake) {
    json_t *root = NULL;
    memset(mistake, 0, sizeof *mistake);
    const bool is_good = json_parse(text, n_bytes, &root, mistake);
    if (is_good) {
        assert_true(json_is_object(root));
        json_decref(root);
    } else {
        assert_true(mistake->is_set);
        assert_string_equal(mistake->code, "invalid_json");
        assert_true(mistake->message[0] != '\0');
    }
    return is_good;
}

static bool parses_text(const char *text) {
    json_mistake_t mistake;
    return parses(text, strlen(text), &mistake);
}

TEST(json_accepts_objects_and_nothing_else) {
    assert_true(parses_text("{}"));
    assert_true(parses_text(" {\"a\" : [1, 2.5e3, true, null, \"x\", {}]} \r\n\t"));
    assert_true(parses_text("{\"a\":\"\\u0000\\ud83d\\ude00\"}"));
    const char *const refused[] = {
        "", " ", "[]", "1", "null", "\"a\"", "{", "}", "{\"a\":1,}", "{,}", "{\"a\"}", "{a:1}",
        "{'a':1}", "{\"a\":01}", "{\"a\":+1}", "{\"a\":.5}", "{\"a\":1.}", "{\"a\":NaN}",
        "{\"a\":Infinity}", "{\"a\":1e999}", "{\"a\":9223372036854775808}",
        "{\"a\":-9223372036854775809}", "{\"a\":1} {}", "{\"a\":1}x", "{\"a\":1,\"a\":1}",
        "{\"a\":\"\\ud800\"}", "{\"a\":\"\\udc00\\ud800\"}", "{\"a\":\"\xff\"}",
        "{\"a\":\"\xc0\xaf\"}", "{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\n\"}", "{\"a\":\"\\x\"}",
        "\xef\xbb\xbf{}", "{\"a\\u0000b\":1}", "{\"a\":tru}", "// c\n{}", "{\"a\":1]",
        "]]]]}}}}", "{\"a\":\"\\", "{\"a\":\"", "{\"a\":-}", "{\"a\":[1 2]}",
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (parses_text(refused[i])) fail_msg("accepted: %s", refused[i]);
    }
    json_mistake_t mistake;
    assert_false(parses("{\"a\":1}\0", 8, &mistake));
    assert_false(parses("\0", 1, &mistake));
    assert_true(parses_text("{\"a\":9223372036854775807,\"b\":-9223372036854775808}"));
}

/* {"a":[[[...]]]}, depth containers in all. */
static bool parses_depth(size_t depth, bool is_closed) {
    kri_buffer_t text;
    kri_buffer_init(&text, 1u << 20);
    kri_buffer_printf(&text, "{\"a\":");
    for (size_t i = 1; i < depth; i++) kri_buffer_append(&text, "[", 1);
    for (size_t i = 1; i < depth && is_closed; i++) kri_buffer_append(&text, "]", 1);
    kri_buffer_printf(&text, "}");
    json_mistake_t mistake;
    const bool is_good = parses(text.data, text.n_bytes, &mistake);
    if (!is_good && is_closed) assert_non_null(strstr(mistake.message, "deeper than 128"));
    kri_buffer_deinit(&text);
    return is_good;
}

TEST(json_bounds_depth) {
    assert_true(parses_depth(127, true));
    assert_true(parses_depth(128, true));
    assert_false(parses_depth(129, true));
    assert_false(parses_depth(100000, true));
    assert_false(parses_depth(100000, false));
}

/* An object of n members, or with in_array an array of n values. */
static bool parses_count(size_t n, bool in_array, const char *wanted) {
    kri_buffer_t text;
    kri_buffer_init(&text, 64u << 20);
    kri_buffer_printf(&text, in_array ? "{\"a\":[" : "{");
    for (size_t i = 0; i < n; i++) {
        if (i > 0) kri_buffer_append(&text, ",", 1);
        if (in_array) kri_buffer_append(&text, "0", 1);
        else kri_buffer_printf(&text, "\"%zu\":0", i);
    }
    kri_buffer_printf(&text, in_array ? "]}" : "}");
    json_mistake_t mistake;
    const bool is_good = parses(text.data, text.n_bytes, &mistake);
    if (!is_good) assert_non_null(strstr(mistake.message, wanted));
    kri_buffer_deinit(&text);
    return is_good;
}

TEST(json_bounds_values_and_members) {
    /* The object and the array count too. */
    assert_true(parses_count(1000000 - 2, true, ""));
    assert_false(parses_count(1000000 - 1, true, "1000000 values"));
    assert_true(parses_count(99999, false, ""));
    assert_true(parses_count(100000, false, ""));
    assert_false(parses_count(100001, false, "100000 members"));
}

static bool parses_number(size_t n_digits) {
    char text[256];
    memset(text, '0', sizeof text);
    memcpy(text, "{\"a\":0.", 7);
    memcpy(text + 5 + n_digits, "}", 2);
    return parses_text(text);
}

TEST(json_bounds_the_text_of_numbers) {
    assert_true(parses_number(63));
    assert_true(parses_number(64));
    assert_false(parses_number(65));
    /* Long strings are no numbers. */
    assert_true(parses_text("{\"a\":\"00000000000000000000000000000000000000000000000000000000000"
                            "000000000000000000000000000000000000000000000000000000000000\"}"));
}

TEST(json_messages_are_one_line_of_utf8) {
    json_mistake_t mistake;
    assert_false(parses("{\"a\":\x01\x02\xff}", 9, &mistake));
    for (const char *c = mistake.message; *c != '\0'; c++) assert_true((unsigned char)*c >= 0x20);
}

/* ---- fields -------------------------------------------------------------------------------- */

typedef struct fixture_s {
    json_t *root;
    json_mistake_t mistake;
    json_reader_t reader;
} fixture_t;

static void open_text(fixture_t *f, const char *text) {
    memset(f, 0, sizeof *f);
    assert_true(json_parse(text, strlen(text), &f->root, &f->mistake));
    json_open(&f->reader, f->root, NULL, &f->mistake);
}

static void expect(fixture_t *f, const char *code, const char *param, const char *part) {
    assert_true(f->mistake.is_set);
    assert_string_equal(f->mistake.code, code);
    assert_string_equal(f->mistake.param, param);
    if (strstr(f->mistake.message, part) == NULL) fail_msg("no '%s' in: %s", part,
                                                           f->mistake.message);
    json_decref(f->root);
}

static void expect_good(fixture_t *f) {
    json_finish(&f->reader);
    if (f->mistake.is_set) fail_msg("%s", f->mistake.message);
    json_decref(f->root);
}

TEST(json_reads_every_type) {
    fixture_t f;
    open_text(&f, "{\"s\":\"ab\\u0000\",\"i\":2.0,\"j\":-3,\"x\":1,\"y\":0.25,\"t\":true,"
                  "\"f\":false,\"a\":[1],\"o\":{},\"w\":\"two\",\"n\":null,\"m\":-0.0}");
    const char *text = NULL;
    size_t n = 0;
    assert_true(json_read_string(&f.reader, "s", 0, 3, &text, &n));
    assert_int_equal(n, 3);
    int64_t integer = 0;
    assert_true(json_read_integer(&f.reader, "i", 0, 2, &integer));
    assert_int_equal(integer, 2);
    assert_true(json_read_integer(&f.reader, "j", -3, 2, &integer));
    assert_int_equal(integer, -3);
    assert_true(json_read_integer(&f.reader, "m", 0, 0, &integer));
    assert_int_equal(integer, 0);
    double number = 0;
    assert_true(json_read_number(&f.reader, "x", 0, 1, &number));
    assert_true(number == 1);
    assert_true(json_read_number(&f.reader, "y", 0.25, 1, &number));
    assert_true(number == 0.25);
    bool flag = false;
    assert_true(json_read_bool(&f.reader, "t", &flag));
    assert_true(flag);
    assert_true(json_read_bool(&f.reader, "f", &flag));
    assert_false(flag);
    json_t *value = NULL;
    assert_true(json_read_array(&f.reader, "a", 1, 1, &value));
    assert_true(json_read_object(&f.reader, "o", &value));
    static const char *const words[] = {"one", "two", NULL};
    uint32_t index = 9;
    assert_true(json_read_word(&f.reader, "w", words, &index));
    assert_int_equal(index, 1);
    assert_false(json_read_any(&f.reader, "n", &value));
    assert_false(json_read_integer(&f.reader, "absent", 0, 1, &integer));
    expect_good(&f);
}

TEST(json_refuses_wrong_types_and_ranges_by_name) {
    static const struct {
        const char *value;
        char kind;
        const char *part;
    } cases[] = {
        {"\"2\"", 'i', "a string"}, {"2.5", 'i', "2.5"}, {"11", 'i', "from 1 to 10, not 11"},
        {"0", 'i', "not 0"}, {"true", 'i', "a boolean"}, {"1e300", 'i', "whole"},
        {"9223372036854775807", 'i', "9223372036854775807"}, {"-1e19", 'i', "whole"},
        {"9223372036854775808.0", 'i', "whole"}, {"\"1\"", 'n', "a string"}, {"1.5", 'n', "1.5"},
        {"-0.001", 'n', "from 0 to 1"}, {"[]", 'n', "an array"}, {"1", 'b', "true or false"},
        {"\"true\"", 'b', "a string"}, {"1", 's', "a whole number"}, {"\"\"", 's', "not empty"},
        {"\"abcdef\"", 's', "has 6"}, {"{}", 'a', "an object"}, {"[]", 'a', "not empty"},
        {"[1,2,3]", 'a', "has 3"}, {"[]", 'o', "an array"}, {"\"three\"", 'w', "'one', 'two'"},
        {"1", 'w', "a whole number"}, {"\"a\\u0000\"", 'z', "NUL"},
    };
    static const char *const words[] = {"one", "two", NULL};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[128];
        (void)snprintf(text, sizeof text, "{\"f\":%s}", cases[i].value);
        fixture_t f;
        open_text(&f, text);
        const char *s = NULL;
        size_t n = 77;
        int64_t integer = 77;
        double number = 77;
        bool flag = false;
        json_t *value = NULL;
        uint32_t index = 77;
        switch (cases[i].kind) {
        case 'i': assert_false(json_read_integer(&f.reader, "f", 1, 10, &integer)); break;
        case 'n': assert_false(json_read_number(&f.reader, "f", 0, 1, &number)); break;
        case 'b': assert_false(json_read_bool(&f.reader, "f", &flag)); break;
        case 's': assert_false(json_read_string(&f.reader, "f", 1, 5, &s, &n)); break;
        case 'z': assert_false(json_read_string(&f.reader, "f", 1, 5, &s, NULL)); break;
        case 'a': assert_false(json_read_array(&f.reader, "f", 1, 2, &value)); break;
        case 'o': assert_false(json_read_object(&f.reader, "f", &value)); break;
        default: assert_false(json_read_word(&f.reader, "f", words, &index)); break;
        }
        assert_true(s == NULL && n == 77 && integer == 77 && number == 77 && value == NULL);
        assert_int_equal(index, 77);
        expect(&f, "invalid_value", "f", cases[i].part);
    }
}

TEST(json_names_fields_that_nobody_asked_for) {
    fixture_t f;
    open_text(&f, "{\"known\":1,\"Known\":1}");
    int64_t integer = 0;
    assert_true(json_read_integer(&f.reader, "known", 0, 1, &integer));
    json_finish(&f.reader);
    expect(&f, "unsupported_parameter", "Known", "'Known'");
    open_text(&f, "{\"x\":null}");
    json_finish(&f.reader);
    expect(&f, "unsupported_parameter", "x", "'x'");
}

TEST(json_joins_paths) {
    fixture_t f;
    open_text(&f, "{\"messages\":[{\"content\":1}]}");
    json_t *messages = NULL;
    assert_true(json_read_array(&f.reader, "messages", 1, 2, &messages));
    json_reader_t inner;
    json_open(&inner, json_array_get(messages, 0), "messages.0", &f.mistake);
    const char *text = NULL;
    assert_false(json_read_string(&inner, "content", 0, 5, &text, NULL));
    expect(&f, "invalid_value", "messages.0.content", "'messages.0.content' must be a string");
    open_text(&f, "{\"a\":1}");
    json_open(&inner, json_object_get(f.root, "a"), "a", &f.mistake);
    assert_false(json_read_string(&inner, "content", 0, 5, &text, NULL));
    expect(&f, "invalid_value", "a", "'a' must be an object, not a whole number");
}

/* "Two", a long one, and one that only begins alike. */
TEST(json_words_match_in_full) {
    static const char *const words[] = {"two", NULL};
    static const char *const wrong[] = {"\"Two\"", "\"twofold\"", "\"tw\"", "\"two\\u0000\"",
                                        "\"\""};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char text[64];
        (void)snprintf(text, sizeof text, "{\"w\":%s}", wrong[i]);
        fixture_t f;
        uint32_t index = 9;
        open_text(&f, text);
        assert_false(json_read_word(&f.reader, "w", words, &index));
        expect(&f, "invalid_value", "w", "one of 'two'");
    }
}

TEST(json_refuses_objects_that_are_missing) {
    fixture_t f;
    open_text(&f, "{}");
    json_reader_t inner;
    json_t *value = NULL;
    json_open(&inner, NULL, "a.b", &f.mistake);
    assert_false(json_read_any(&inner, "c", &value));
    json_read_ignored(&inner, "c");
    json_finish(&inner);
    expect(&f, "invalid_value", "a.b", "must be an object, not missing");
}

TEST(json_keeps_the_first_mistake) {
    fixture_t f;
    open_text(&f, "{\"a\":\"x\",\"b\":\"y\"}");
    int64_t integer = 0;
    (void)json_read_integer(&f.reader, "b", 0, 1, &integer);
    (void)json_read_integer(&f.reader, "a", 0, 1, &integer);
    json_require(&f.reader, "c");
    json_finish(&f.reader);
    expect(&f, "invalid_value", "b", "'b'");
}

TEST(json_requires_fields) {
    fixture_t f;
    open_text(&f, "{\"a\":1,\"b\":null}");
    json_require(&f.reader, "a");
    assert_false(f.mistake.is_set);
    json_require(&f.reader, "b");
    expect(&f, "missing_required_parameter", "b", "'b'");
}

TEST(json_accepts_neutral_values_of_what_is_not_built) {
    fixture_t f;
    open_text(&f, "{\"a\":null,\"b\":false,\"c\":1.0,\"d\":\"auto\",\"e\":[]}");
    json_read_neutral(&f.reader, "a", NULL);
    json_read_neutral(&f.reader, "b", "false");
    json_read_neutral(&f.reader, "c", "1");
    json_read_neutral(&f.reader, "d", "\"auto\"");
    json_read_neutral(&f.reader, "e", "[]");
    json_read_neutral(&f.reader, "absent", NULL);
    expect_good(&f);
    open_text(&f, "{\"b\":true}");
    json_read_neutral(&f.reader, "b", "false");
    expect(&f, "unsupported_parameter", "b", "only false or null");
    open_text(&f, "{\"b\":0}");
    json_read_neutral(&f.reader, "b", NULL);
    expect(&f, "unsupported_parameter", "b", "only null");
}

TEST(json_cuts_long_names_at_a_character) {
    kri_buffer_t text;
    kri_buffer_init(&text, 1u << 16);
    kri_buffer_printf(&text, "{\"");
    for (int i = 0; i < 1000; i++) kri_buffer_printf(&text, "\xe2\x82\xac");
    kri_buffer_printf(&text, "\":1}");
    fixture_t f;
    open_text(&f, text.data);
    json_finish(&f.reader);
    assert_true(f.mistake.is_set);
    const size_t n = strlen(f.mistake.param);
    assert_true(n > 120 && n % 3 == 0);
    json_decref(f.root);
    kri_buffer_deinit(&text);
}

/* ---- printing ------------------------------------------------------------------------------ */

static void expect_put(const char *text, size_t n, const char *wanted) {
    kri_buffer_t out;
    kri_buffer_init(&out, 4096);
    assert_status(json_put_string(&out, text, n), KR_OK);
    assert_string_equal(out.data, wanted);
    kri_buffer_deinit(&out);
}

TEST(json_puts_strings) {
    expect_put("", 0, "\"\"");
    expect_put("a\"\\/\b\f\n\r\t\x01\x1f\x7f", 12,
               "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\"");
    expect_put("a\0b", 3, "\"a\\u0000b\"");
    expect_put("\xff" "a\xe2\x82" "b\xe2\x82\xac\xc3", 9,
               "\"\xef\xbf\xbd" "a\xef\xbf\xbd\xef\xbf\xbd" "b\xe2\x82\xac\xef\xbf\xbd\"");
}

TEST(json_puts_fail_without_room) {
    static const char text[] = "a\n\xff" "b\x01";
    const size_t n_whole = strlen("\"a\\n...b\\u0001\"");
    for (size_t max = 0; max <= n_whole; max++) {
        kri_buffer_t small;
        kri_buffer_init(&small, max);
        assert_status(json_put_string(&small, text, 5), max < n_whole ? KR_E_LIMIT : KR_OK);
        kri_buffer_deinit(&small);
    }
    kri_buffer_t none;
    kri_buffer_init(&none, 2);
    assert_status(json_put_float(&none, 0.5f), KR_E_LIMIT);
    assert_status(json_put_double(&none, (double)NAN), KR_E_LIMIT);
    kri_buffer_deinit(&none);
}

TEST(json_puts_numbers_that_read_back) {
    kri_buffer_t out;
    kri_buffer_init(&out, 4096);
    const float floats[] = {0.0f, -0.0f, 1.0f, 0.1f, -1.2345678f, 3.4e38f, 1e-45f, 16777217.0f};
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++) {
        kri_buffer_clear(&out);
        assert_status(json_put_float(&out, floats[i]), KR_OK);
        assert_true(strtof(out.data, NULL) == floats[i]);
        kri_buffer_clear(&out);
        assert_status(json_put_double(&out, (double)floats[i] / 3), KR_OK);
        assert_true(strtod(out.data, NULL) == (double)floats[i] / 3);
    }
    kri_buffer_clear(&out);
    json_put_float(&out, 0.1f);
    assert_string_equal(out.data, "0.1");
    kri_buffer_clear(&out);
    json_put_float(&out, INFINITY);
    json_put_float(&out, -INFINITY);
    json_put_double(&out, NAN);
    assert_string_equal(out.data, "nullnullnull");
    kri_buffer_deinit(&out);
}

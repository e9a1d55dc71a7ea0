/* Incremental detokenizer: what is given out must not depend on how bytes were cut into tokens. */
#include "test.h"

#include "base/alloc.h"
#include "base/utf8.h"
#include "vocab_builder.h"

typedef struct fixture_s {
    builder_t *builder;
    kri_tokenizer_t *tokenizer;
} fixture_t;

/* Tokens 0..255 are single bytes, 256 is control; more are added by the tests. */
static fixture_t fixture(const char *const *pieces, size_t n_pieces) {
    fixture_t f = {malloc(sizeof *f.builder), NULL};
    builder_init(f.builder, KRI_VOCAB_SPM);
    builder_add_byte_tokens(f.builder);
    builder_add(f.builder, "<|im_end|>", KRI_TOKEN_CONTROL);
    for (size_t i = 0; i < n_pieces; i++) {
        builder_add(f.builder, pieces[i], KRI_TOKEN_NORMAL);
    }
    assert_status(kri_tokenizer_create(&f.builder->desc, &f.tokenizer, NULL), KR_OK);
    return f;
}

static void fixture_free(fixture_t *f) {
    kri_tokenizer_destroy(f->tokenizer);
    free(f->builder);
}

typedef struct result_s {
    char text[4096];
    size_t n_bytes;
    int32_t stopped;
} result_t;

static void collect(result_t *r, const char *text, size_t n_bytes) {
    assert_true(r->n_bytes + n_bytes < sizeof r->text);
    assert_int_equal(kri_utf8_valid_prefix(text, n_bytes), n_bytes);
    memcpy(r->text + r->n_bytes, text, n_bytes);
    r->n_bytes += n_bytes;
    r->text[r->n_bytes] = '\0';
}

/* Pushes bytes as single-byte tokens. */
static void push_bytes(kri_detok_t *d, result_t *r, const char *bytes, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) {
        const char *text;
        size_t n;
        assert_status(kri_detok_push(d, (uint8_t)bytes[i], &text, &n, &r->stopped), KR_OK);
        collect(r, text, n);
    }
}

static void finish(kri_detok_t *d, result_t *r) {
    const char *text;
    size_t n;
    assert_status(kri_detok_finish(d, &text, &n), KR_OK);
    collect(r, text, n);
}

static result_t run_bytes(const fixture_t *f, const char *bytes, size_t n_bytes,
                          const char *const *stops, size_t n_stops) {
    result_t r = {.n_bytes = 0};
    kri_detok_t *d = NULL;
    assert_status(kri_detok_create(f->tokenizer, stops, n_stops, &d, NULL), KR_OK);
    push_bytes(d, &r, bytes, n_bytes);
    finish(d, &r);
    kri_detok_destroy(d);
    return r;
}

TEST(detok_holds_back_incomplete_characters) {
    fixture_t f = fixture(NULL, 0);
    kri_detok_t *d = NULL;
    assert_status(kri_detok_create(f.tokenizer, NULL, 0, &d, NULL), KR_OK);
    const char *text;
    size_t n;
    int32_t stopped;
    for (size_t i = 0; i < 3; i++) {
        const kr_token_t byte = (uint8_t)"\xF0\x9F\x98"[i];
        assert_status(kri_detok_push(d, byte, &text, &n, &stopped), KR_OK);
        assert_int_equal(n, 0);
    }
    assert_status(kri_detok_push(d, 0x80, &text, &n, &stopped), KR_OK);
    assert_int_equal(n, 4);
    assert_memory_equal(text, "\xF0\x9F\x98\x80", 4);
    kri_detok_destroy(d);
    fixture_free(&f);
}

TEST(detok_replaces_invalid_bytes_as_unicode_recommends) {
    static const struct { const char *bytes; size_t n_bytes; const char *wanted; } cases[] = {
        {"a\xFF" "b", 3, "a\xEF\xBF\xBD" "b"},
        {"\xE2\x82", 2, "\xEF\xBF\xBD"},
        {"\xE2\x82" "A", 3, "\xEF\xBF\xBD" "A"},
        {"\xF0\x9F\x98" "A", 4, "\xEF\xBF\xBD" "A"},
        {"\xE2\xE2\x82\xAC", 4, "\xEF\xBF\xBD\xE2\x82\xAC"},
        {"\xC0\x80", 2, "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xED\xA0\x80", 3, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xF4\x90\x80\x80", 4, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\x80", 1, "\xEF\xBF\xBD"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fixture_t f = fixture(NULL, 0);
        const result_t r = run_bytes(&f, cases[i].bytes, cases[i].n_bytes, NULL, 0);
        assert_string_equal(r.text, cases[i].wanted);
        fixture_free(&f);
    }
}

TEST(detok_finds_stops_across_token_borders) {
    const char *const pieces[] = {"one EN", "D two", "EN", "D"};
    const char *const stops[] = {"END", "\n\n"};
    fixture_t f = fixture(pieces, 4);
    kri_detok_t *d = NULL;
    assert_status(kri_detok_create(f.tokenizer, stops, 2, &d, NULL), KR_OK);
    const char *text;
    size_t n;
    int32_t stopped = 7;
    assert_status(kri_detok_push(d, 257, &text, &n, &stopped), KR_OK);
    assert_int_equal(n, 4);
    assert_memory_equal(text, "one ", 4);
    assert_int_equal(stopped, 0);
    assert_status(kri_detok_push(d, 258, &text, &n, &stopped), KR_OK);
    assert_int_equal(n, 0);
    assert_int_equal(stopped, 1);
    assert_status(kri_detok_push(d, 'x', &text, &n, &stopped), KR_OK);
    assert_int_equal(n, 0);
    assert_int_equal(stopped, 1);
    assert_status(kri_detok_finish(d, &text, &n), KR_OK);
    assert_int_equal(n, 0);
    kri_detok_destroy(d);
    fixture_free(&f);
}

TEST(detok_gives_back_what_only_looked_like_a_stop) {
    const char *const stops[] = {"\n\n\n"};
    fixture_t f = fixture(NULL, 0);
    result_t r = run_bytes(&f, "a\n\nb\n", 5, stops, 1);
    assert_string_equal(r.text, "a\n\nb\n");
    assert_int_equal(r.stopped, 0);
    r = run_bytes(&f, "a\n\n\nb", 5, stops, 1);
    assert_string_equal(r.text, "a");
    assert_int_equal(r.stopped, 1);
    fixture_free(&f);
}

TEST(detok_stop_that_is_complete_first_wins) {
    const char *const stops[] = {"bc", "abcd"};
    fixture_t f = fixture((const char *const[]){"abcd"}, 1);
    result_t r = run_bytes(&f, "xabcd", 5, stops, 2);
    assert_string_equal(r.text, "xa");
    kri_detok_t *d = NULL;
    assert_status(kri_detok_create(f.tokenizer, stops, 2, &d, NULL), KR_OK);
    const char *text;
    size_t n;
    int32_t stopped;
    assert_status(kri_detok_push(d, 257, &text, &n, &stopped), KR_OK);
    assert_int_equal(n, 1);
    assert_memory_equal(text, "a", 1);
    assert_int_equal(stopped, 1);
    assert_int_equal(kri_detok_stop(d), 0);
    kri_detok_destroy(d);
    fixture_free(&f);
}

/* Of several that end at the same byte the longest; -1 while what came only looks like one. */
TEST(detok_says_which_stop) {
    const char *const stops[] = {"zz", "c", "abc", "bc"};
    fixture_t f = fixture(NULL, 0);
    kri_detok_t *d = NULL;
    const char *text;
    size_t n;
    int32_t stopped = 0;
    assert_status(kri_detok_create(f.tokenizer, stops, 4, &d, NULL), KR_OK);
    for (const char *c = "zabc"; *c; c++) {
        assert_int_equal(kri_detok_stop(d), -1);
        assert_status(kri_detok_push(d, *c, &text, &n, &stopped), KR_OK);
    }
    assert_int_equal(stopped, 1);
    assert_int_equal(kri_detok_stop(d), 2);
    kri_detok_destroy(d);
    fixture_free(&f);
}

TEST(detok_skips_special_tokens) {
    fixture_t f = fixture(NULL, 0);
    kri_detok_t *d = NULL;
    const char *text;
    size_t n;
    int32_t stopped;
    assert_status(kri_detok_create(f.tokenizer, NULL, 0, &d, NULL), KR_OK);
    assert_status(kri_detok_push(d, 256, &text, &n, &stopped), KR_OK);
    assert_int_equal(n, 0);
    assert_status(kri_detok_push(d, 257, &text, &n, &stopped), KR_E_INVALID_ARG);
    assert_status(kri_detok_push(d, -1, &text, &n, &stopped), KR_E_INVALID_ARG);
    kri_detok_destroy(d);
    fixture_free(&f);
}

static uint32_t next_random(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

/* Random bytes, cut into random tokens: the same text as byte by byte. */
TEST(detok_text_does_not_depend_on_the_cut) {
    static const char alphabet[] = "ab\xE2\x82\xAC\xF0\x9F\x98\x80\xFF\n";
    const char *const stops[] = {"aba", "\xE2\x82\xAC\x61", "b\xEF\xBF\xBD"};
    uint64_t seed = 42;
    for (int round = 0; round < 400; round++) {
        char bytes[24];
        for (size_t i = 0; i < sizeof bytes; i++) {
            bytes[i] = alphabet[next_random(&seed) % (sizeof alphabet - 1)];
        }
        builder_t *b = malloc(sizeof *b);
        builder_init(b, KRI_VOCAB_SPM);
        builder_add_byte_tokens(b);
        kr_token_t ids[sizeof bytes];
        size_t n_ids = 0;
        for (size_t at = 0; at < sizeof bytes;) {
            size_t n = 1 + next_random(&seed) % 6;
            if (n > sizeof bytes - at) n = sizeof bytes - at;
            ids[n_ids++] = builder_add_bytes(b, bytes + at, n, KRI_TOKEN_NORMAL, 0);
            at += n;
        }
        fixture_t f = {b, NULL};
        assert_status(kri_tokenizer_create(&b->desc, &f.tokenizer, NULL), KR_OK);
        const size_t n_stops = next_random(&seed) % 4;
        const result_t wanted = run_bytes(&f, bytes, sizeof bytes, stops, n_stops);
        result_t r = {.n_bytes = 0};
        kri_detok_t *d = NULL;
        assert_status(kri_detok_create(f.tokenizer, stops, n_stops, &d, NULL), KR_OK);
        for (size_t i = 0; i < n_ids; i++) {
            const char *text;
            size_t n;
            assert_status(kri_detok_push(d, ids[i], &text, &n, &r.stopped), KR_OK);
            collect(&r, text, n);
        }
        finish(d, &r);
        assert_string_equal(r.text, wanted.text);
        assert_int_equal(r.stopped, wanted.stopped);
        kri_detok_destroy(d);
        fixture_free(&f);
    }
}

TEST(detok_checks_its_stops) {
    fixture_t f = fixture(NULL, 0);
    kri_detok_t *d = NULL;
    char longest[258];
    memset(longest, 'x', sizeof longest);
    longest[256] = '\0';
    const char *const good[] = {longest};
    assert_status(kri_detok_create(f.tokenizer, good, 1, &d, NULL), KR_OK);
    kri_detok_destroy(d);
    d = NULL;
    longest[256] = 'x';
    longest[257] = '\0';
    assert_status(kri_detok_create(f.tokenizer, good, 1, &d, NULL), KR_E_INVALID_ARG);
    assert_status(kri_detok_create(f.tokenizer, (const char *const[]){""}, 1, &d, NULL),
                  KR_E_INVALID_ARG);
    assert_status(kri_detok_create(f.tokenizer, (const char *const[]){"\xFF"}, 1, &d, NULL),
                  KR_E_INVALID_ARG);
    const char *many[17];
    for (size_t i = 0; i < 17; i++) many[i] = "x";
    assert_status(kri_detok_create(f.tokenizer, many, 17, &d, NULL), KR_E_LIMIT);
    assert_null(d);
    assert_status(kri_detok_create(f.tokenizer, many, 16, &d, NULL), KR_OK);
    kri_detok_destroy(d);
    fixture_free(&f);
}

TEST(detok_is_over_after_finish) {
    fixture_t f = fixture(NULL, 0);
    kri_detok_t *d = NULL;
    const char *text;
    size_t n;
    int32_t stopped;
    assert_status(kri_detok_create(f.tokenizer, NULL, 0, &d, NULL), KR_OK);
    assert_status(kri_detok_push(d, 0xE2, &text, &n, &stopped), KR_OK);
    assert_status(kri_detok_finish(d, &text, &n), KR_OK);
    assert_int_equal(n, 3);
    assert_memory_equal(text, "\xEF\xBF\xBD", 3);
    assert_status(kri_detok_finish(d, &text, &n), KR_OK);
    assert_int_equal(n, 0);
    assert_status(kri_detok_push(d, 'a', &text, &n, &stopped), KR_E_INVALID_ARG);
    kri_detok_destroy(d);
    fixture_free(&f);
}

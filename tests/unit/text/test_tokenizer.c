/* Tokenizer: merges, pre-tokenizer rules, special tokens, byte fallback, decoding, bad input. */
#include "test.h"

#include "base/alloc.h"
#include "vocab_builder.h"

static kri_tokenizer_t *create(const builder_t *b) {
    kri_tokenizer_t *tokenizer = NULL;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = kri_tokenizer_create(&b->desc, &tokenizer, &error);
    if (status != KR_OK) fprintf(stderr, "%s\n", error.message);
    assert_status(status, KR_OK);
    return tokenizer;
}

static void assert_ids_flags(const kri_tokenizer_t *t, const char *text, uint32_t flags,
                             const kr_token_t *ids, size_t n_ids) {
    kr_token_t out[256];
    size_t n = 0;
    assert_status(kri_tokenizer_encode(t, text, strlen(text), flags, out, 256, &n, NULL, NULL),
                  KR_OK);
    assert_int_equal(n, n_ids);
    assert_memory_equal(out, ids, n_ids * sizeof *ids);
}
#define assert_ids(t, text, flags, ...)                                                          \
    do {                                                                                         \
        const kr_token_t ids_wanted[] = {__VA_ARGS__};                                           \
        assert_ids_flags(t, text, flags, ids_wanted, sizeof ids_wanted / sizeof ids_wanted[0]);  \
    } while (0)

static void assert_text(const kri_tokenizer_t *t, const kr_token_t *ids, size_t n_ids,
                        uint32_t flags, const char *wanted) {
    char buf[512];
    size_t n = 0;
    assert_status(kri_tokenizer_decode(t, ids, n_ids, flags, buf, sizeof buf, &n, NULL), KR_OK);
    assert_int_equal(n, strlen(wanted));
    assert_memory_equal(buf, wanted, n);
}

/* 256 he, 257 ll, 258 hell, 259 hello, 260 "Ġ"+hello, 261 control, 262 user-defined. */
static builder_t *bpe(void) {
    builder_t *b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_BPE);
    builder_add_alphabet(b);
    builder_merge(b, "h", "e");
    builder_merge(b, "l", "l");
    builder_merge(b, "he", "ll");
    builder_merge(b, "hell", "o");
    builder_merge(b, "\xC4\xA0", "hello");
    builder_add(b, "<|im_end|>", KRI_TOKEN_CONTROL);
    builder_add(b, "<tool>", KRI_TOKEN_USER_DEFINED);
    return b;
}

TEST(tokenizer_merges_by_rank) {
    builder_t *b = bpe();
    kri_tokenizer_t *t = create(b);
    assert_ids(t, "hello", 0, 259);
    assert_ids(t, "hello hello", 0, 259, 260);
    assert_ids(t, "hel", 0, 256, 'l');
    assert_ids(t, "12", 0, '1', '2');
    assert_ids(t, "\xC3\xA9", 0, 0xC3, 0xA9);
    size_t n = 99;
    assert_status(kri_tokenizer_encode(t, NULL, 0, 0, NULL, 0, &n, NULL, NULL), KR_OK);
    assert_int_equal(n, 0);
    assert_int_equal(kri_tokenizer_n_tokens(t), 263);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_makes_control_tokens_only_when_asked) {
    builder_t *b = bpe();
    kri_tokenizer_t *t = create(b);
    assert_ids(t, "a<|im_end|>", KR_TOKENIZE_PARSE_SPECIAL, 'a', 261);
    assert_ids(t, "a<|im_end|>", 0, 'a', '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    assert_ids(t, "a<tool>b", 0, 'a', 262, 'b');
    assert_ids(t, "a<tool>b", KR_TOKENIZE_PARSE_SPECIAL, 'a', 262, 'b');
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_never_merges_content_into_a_control_token) {
    builder_t *b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_BPE);
    builder_add_alphabet(b);
    const int32_t id = builder_merge(b, "[", "x");
    b->types[id] = KRI_TOKEN_CONTROL;
    kri_tokenizer_t *t = create(b);
    assert_ids(t, "[x", 0, '[', 'x');
    assert_ids(t, "[x", KR_TOKENIZE_PARSE_SPECIAL, id);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_adds_bos_when_model_and_caller_want_it) {
    builder_t *b = bpe();
    b->desc.bos = 261;
    kri_tokenizer_t *t = create(b);
    assert_ids(t, "a", KR_TOKENIZE_ADD_BOS, 'a');
    kri_tokenizer_destroy(t);
    b->desc.add_bos = 1;
    t = create(b);
    assert_ids(t, "a", KR_TOKENIZE_ADD_BOS, 261, 'a');
    assert_ids(t, "", KR_TOKENIZE_ADD_BOS, 261);
    assert_ids(t, "a", 0, 'a');
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_drops_bytes_without_a_token) {
    builder_t *b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_BPE);
    builder_add(b, "a", KRI_TOKEN_NORMAL);
    builder_add(b, "b", KRI_TOKEN_NORMAL);
    /* The rule's left side is a byte the vocabulary has no token for. */
    builder_merge(b, "c", "b");
    kri_tokenizer_t *t = create(b);
    assert_ids(t, "axb", 0, 0, 1);
    assert_ids(t, "acb", 0, 0, 2);
    const size_t n_bytes = (size_t)2 << 20; /* no length is too long */
    char *text = malloc(n_bytes);
    kr_token_t out[1];
    size_t n = 9;
    int32_t is_least = 7;
    assert_non_null(text);
    memset(text, 'x', n_bytes);
    assert_status(kri_tokenizer_encode(t, text, n_bytes, 0, out, 1, &n, &is_least, NULL), KR_OK);
    free(text);
    assert_int_equal(n + (size_t)is_least, 0);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_keeps_whole_words_where_the_rule_says_so) {
    builder_t *b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_BPE);
    builder_add_alphabet(b);
    const int32_t word = builder_add(b, "\xC4\xA0xyz", KRI_TOKEN_NORMAL);
    kri_tokenizer_t *t = create(b);
    assert_ids(t, " xyz", 0, ' ', 'x', 'y', 'z');
    kri_tokenizer_destroy(t);
    b->desc.pre = "llama-bpe";
    t = create(b);
    assert_ids(t, " xyz", 0, word);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_splits_digits_as_the_rule_says) {
    builder_t *b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_BPE);
    builder_add_alphabet(b);
    const int32_t two = builder_merge(b, "1", "2");
    const int32_t four = builder_merge(b, "12", "34");
    const char *const names[] = {"smollm", "qwen2", "gpt-2", "llama-bpe"};
    const kr_token_t wanted[4][4] = {
        {'1', '2', '3', '4'}, {'1', '2', '3', '4'}, {two, '3', '4'}, {two, '3', '4'}};
    const size_t n_wanted[4] = {4, 4, 3, 3};
    (void)four;
    for (size_t i = 0; i < 4; i++) {
        b->desc.pre = names[i];
        b->desc.n_merges = 1;
        kri_tokenizer_t *t = create(b);
        assert_ids_flags(t, "1234", 0, wanted[i], n_wanted[i]);
        kri_tokenizer_destroy(t);
    }
    free(b);
}

/* ids: 0 unk, 1 bos, 2..257 bytes, then pieces. */
static builder_t *spm(void) {
    builder_t *b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_SPM);
    builder_add(b, "<unk>", KRI_TOKEN_UNKNOWN);
    builder_add(b, "<bos>", KRI_TOKEN_CONTROL);
    builder_add_byte_tokens(b);
    b->desc.unk = 0;
    b->desc.bos = 1;
    return b;
}

static int32_t add_piece(builder_t *b, const char *text, float score) {
    return builder_add_bytes(b, text, strlen(text), KRI_TOKEN_NORMAL, score);
}

TEST(tokenizer_spm_joins_the_best_score_first) {
    builder_t *b = spm();
    const int32_t a = add_piece(b, "a", -10), bb = add_piece(b, "b", -11);
    const int32_t c = add_piece(b, "c", -12), ab = add_piece(b, "ab", -2);
    const int32_t bc = add_piece(b, "bc", -1), space = add_piece(b, "\xE2\x96\x81", -3);
    const int32_t space_a = add_piece(b, "\xE2\x96\x81" "a", -4);
    kri_tokenizer_t *t = create(b);
    assert_ids(t, "abc", 0, a, bc);
    assert_ids(t, "ab", 0, ab);
    assert_ids(t, "b a", 0, bb, space_a);
    assert_ids(t, "c \xE2\x96\x81", 0, c, space, space);
    /* A character without a piece is spelled in bytes. */
    assert_ids(t, "a\xC3\xA9", 0, a, 2 + 0xC3, 2 + 0xA9);
    const kr_token_t ids[] = {a, 2 + 0xC3, 2 + 0xA9, space_a, 1};
    assert_text(t, ids, 5, 0, "a\xC3\xA9 a");
    assert_text(t, ids, 5, KR_TOKENIZE_PARSE_SPECIAL, "a\xC3\xA9 a<bos>");
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_spm_space_prefix_comes_and_goes) {
    builder_t *b = spm();
    const int32_t a = add_piece(b, "a", -1), space = add_piece(b, "\xE2\x96\x81", -3);
    b->desc.add_space_prefix = 1;
    b->desc.add_bos = 1;
    kri_tokenizer_t *t = create(b);
    assert_ids(t, "a", KR_TOKENIZE_ADD_BOS, 1, space, a);
    assert_ids(t, "a<bos>a", KR_TOKENIZE_PARSE_SPECIAL, space, a, 1, space, a);
    const kr_token_t ids[] = {1, space, a, space, a};
    assert_text(t, ids, 5, 0, "a a");
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_spm_equal_scores_join_from_the_left) {
    builder_t *b = spm();
    add_piece(b, "a", -10);
    const int32_t aa = add_piece(b, "aa", -1), aaa = add_piece(b, "aaa", -1);
    (void)aaa;
    kri_tokenizer_t *t = create(b);
    assert_ids(t, "aaaa", 0, aaa, aaa - 2);
    assert_ids(t, "aa", 0, aa);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_refuses_invalid_utf8_with_offset) {
    builder_t *b = bpe();
    kri_tokenizer_t *t = create(b);
    kr_error_t error;
    kr_error_init(&error);
    kr_token_t out[8];
    size_t n = 77;
    assert_status(kri_tokenizer_encode(t, "ab\xFF" "c", 4, 0, out, 8, &n, NULL, &error),
                  KR_E_INVALID_ARG);
    assert_int_equal(error.offset, 2);
    assert_int_equal(n, 77);
    assert_status(kri_tokenizer_encode(t, "ab\xE2\x82", 4, 0, out, 8, &n, NULL, &error),
                  KR_E_INVALID_ARG);
    assert_int_equal(error.offset, 2);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_reports_the_room_needed) {
    builder_t *b = bpe();
    kri_tokenizer_t *t = create(b);
    kr_token_t out[4] = {-7, -7, -7, -7};
    size_t n = 0;
    assert_status(kri_tokenizer_encode(t, "abcd", 4, 0, out, 3, &n, NULL, NULL), KR_E_LIMIT);
    assert_int_equal(n, 4);
    assert_int_equal(out[3], -7);
    assert_status(kri_tokenizer_encode(t, "abcd", 4, 0, out, 4, &n, NULL, NULL), KR_OK);
    char text[3];
    assert_status(kri_tokenizer_decode(t, out, 4, 0, text, 3, &n, NULL), KR_E_LIMIT);
    assert_int_equal(n, 4);
    assert_status(kri_tokenizer_decode(t, out, 4, 0, NULL, 0, &n, NULL), KR_E_LIMIT);
    const kr_token_t bad[] = {'a', 263};
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kri_tokenizer_decode(t, bad, 2, 0, text, 3, &n, &error), KR_E_INVALID_ARG);
    assert_int_equal(error.offset, 1);
    assert_status(kri_tokenizer_encode(t, "a", 1, 4, out, 4, &n, NULL, NULL), KR_E_INVALID_ARG);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_passes_over_what_cannot_fit) {
    builder_t *b = bpe();
    kri_tokenizer_t *t = create(b);
    const size_t n_large = (size_t)2 << 20;
    char *text = malloc(n_large);
    kr_token_t out[8];
    size_t n = 0, n_least = 0;
    int32_t is_least = 7;
    assert_non_null(text);
    memset(text, 'h', n_large);
    assert_status(kri_tokenizer_encode(t, text, n_large, 0, NULL, 0, &n, NULL, NULL), KR_E_LIMIT);
    assert_status(kri_tokenizer_encode(t, text, n_large, 0, out, 8, &n_least, &is_least, NULL),
                  KR_E_LIMIT);
    assert_int_equal(is_least, 1);
    assert_in_range(n_least, 9, n - 1);
    /* What is not much is counted exactly, and so is what could fit. */
    assert_status(kri_tokenizer_encode(t, text, 5000, 0, NULL, 0, &n, NULL, NULL), KR_E_LIMIT);
    assert_status(kri_tokenizer_encode(t, text, 5000, 0, out, 8, &n_least, &is_least, NULL),
                  KR_E_LIMIT);
    assert_int_equal(is_least, 0);
    assert_int_equal(n_least, n);
    is_least = 7;
    assert_status(kri_tokenizer_encode(t, text, 3, 0, out, 8, &n, &is_least, NULL), KR_OK);
    assert_int_equal(is_least, 0);
    free(text);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_takes_16_mib_and_no_byte_more) {
    builder_t *b = bpe();
    kri_tokenizer_t *t = create(b);
    const size_t limit = (size_t)16 << 20;
    char *text = malloc(limit + 1);
    assert_non_null(text);
    for (size_t i = 0; i <= limit; i++) text[i] = i % 5 == 4 ? ' ' : "hello"[i % 5];
    size_t n = 0;
    assert_status(kri_tokenizer_encode(t, text, limit + 1, 0, NULL, 0, &n, NULL, NULL), KR_E_LIMIT);
    assert_int_equal(n, 0);
    assert_status(kri_tokenizer_encode(t, text, limit, 0, NULL, 0, &n, NULL, NULL), KR_E_LIMIT);
    assert_true(n > limit / 5);
    free(text);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_knows_the_tokens_that_end_generation) {
    builder_t *b = bpe();
    const int32_t eot = builder_add(b, "<end_of_turn>", KRI_TOKEN_NORMAL);
    const int32_t fim = builder_add(b, "<|fim_middle|>", KRI_TOKEN_USER_DEFINED);
    const int32_t pad = builder_add(b, "<|fim_pad|>", KRI_TOKEN_USER_DEFINED);
    b->desc.eos = 'z';
    kri_tokenizer_t *t = create(b);
    size_t n;
    int is_special = 0;
    assert_true(kri_tokenizer_is_end(t, 261));
    assert_true(kri_tokenizer_is_end(t, eot));
    assert_true(kri_tokenizer_is_end(t, pad));
    assert_true(kri_tokenizer_is_end(t, 'z'));
    assert_false(kri_tokenizer_is_end(t, fim));
    assert_false(kri_tokenizer_is_end(t, 'a'));
    assert_false(kri_tokenizer_is_end(t, -1));
    assert_false(kri_tokenizer_is_end(t, 100000));
    kri_tokenizer_token(t, fim, &n, &is_special);
    assert_true(is_special);
    /* Spelled so, they are control tokens whatever the file says. */
    kr_token_t out[32];
    assert_status(kri_tokenizer_encode(t, "<end_of_turn>", 13, 0, out, 32, &n, NULL, NULL), KR_OK);
    assert_int_equal(n, 13);
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_channel_end_is_no_end_beside_return_and_call) {
    builder_t *b = bpe();
    const int32_t end = builder_add(b, "<|end|>", KRI_TOKEN_CONTROL);
    kri_tokenizer_t *t = create(b);
    assert_true(kri_tokenizer_is_end(t, end));
    kri_tokenizer_destroy(t);
    builder_add(b, "<|return|>", KRI_TOKEN_CONTROL);
    builder_add(b, "<|call|>", KRI_TOKEN_CONTROL);
    t = create(b);
    assert_false(kri_tokenizer_is_end(t, end));
    kri_tokenizer_destroy(t);
    free(b);
}

TEST(tokenizer_decodes_every_byte) {
    builder_t *b = bpe();
    kri_tokenizer_t *t = create(b);
    for (int32_t byte = 0; byte < 256; byte++) {
        size_t n;
        int is_special;
        const char *text = kri_tokenizer_token(t, byte, &n, &is_special);
        assert_int_equal(n, 1);
        assert_int_equal((uint8_t)text[0], byte);
        assert_false(is_special);
    }
    const kr_token_t ids[] = {261, 260, 262};
    assert_text(t, ids, 3, 0, " hello<tool>");
    assert_text(t, ids, 3, KR_TOKENIZE_PARSE_SPECIAL, "<|im_end|> hello<tool>");
    kri_tokenizer_destroy(t);
    free(b);
}

static void assert_refused(const builder_t *b, kr_status_t wanted, const char *words) {
    kri_tokenizer_t *t = NULL;
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kri_tokenizer_create(&b->desc, &t, &error), wanted);
    assert_null(t);
    if (!strstr(error.message, words)) fprintf(stderr, "%s\n", error.message);
    assert_non_null(strstr(error.message, words));
}

TEST(tokenizer_refuses_bad_vocabularies_by_name) {
    builder_t *b = bpe();
    b->desc.pre = "klingon";
    assert_refused(b, KR_E_UNSUPPORTED, "klingon");
    b->desc.pre = "smollm";
    builder_merge_bytes(b, "nospace", 7);
    assert_refused(b, KR_E_BAD_FORMAT, "nospace");
    b->desc.n_merges--;
    builder_merge_bytes(b, "qq ww", 5);
    assert_refused(b, KR_E_BAD_FORMAT, "qq ww");
    b->desc.n_merges--;
    b->types[3] = 9;
    assert_refused(b, KR_E_BAD_FORMAT, "token 3");
    b->types[3] = KRI_TOKEN_NORMAL;
    builder_add(b, "", KRI_TOKEN_CONTROL);
    assert_refused(b, KR_E_BAD_FORMAT, "empty");
    b->desc.n_tokens--;
    b->desc.eos = 100000;
    assert_refused(b, KR_E_INVALID_ARG, "incomplete");
    b->desc.eos = -1;
    b->desc.n_tokens = 0;
    assert_refused(b, KR_E_LIMIT, "0 tokens");
    free(b);
    b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_SPM);
    builder_add(b, "a", KRI_TOKEN_NORMAL);
    assert_refused(b, KR_E_BAD_FORMAT, "0x00");
    free(b);
}

TEST(tokenizer_survives_failing_allocations) {
    builder_t *b = bpe();
    for (uint64_t k = 1;; k++) {
        kri_tokenizer_t *t = NULL;
        kri_alloc_fail(k, false);
        const kr_status_t status = kri_tokenizer_create(&b->desc, &t, NULL);
        kri_alloc_fail(0, false);
        if (status == KR_OK) {
            assert_true(k > 3);
            kri_tokenizer_destroy(t);
            break;
        }
        assert_status(status, KR_E_NOMEM);
        assert_null(t);
    }
    free(b);
}

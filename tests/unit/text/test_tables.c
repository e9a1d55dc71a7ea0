/* test_tables.c: tokenizers over the tables of an earlier one: the same tokens, at any address, and
 * whatever is done to the bytes no read outside them and no id outside the vocabulary. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "text/text.h"
#include "test.h"
#include "vocab_builder.h"

#define N_IDS_MAX 512u

static const char *const texts[] = {
    "the theme <end> of the\n\n\nsea", "<s>the</s> \xC3\xA9\xE6\xBC\xA2 \xF0\x9F\x91\x8D", "",
    "    the   <s", "\xE2\x96\x81the\xE2\x96\x81theme", "thethethethethethethethethethetheme"};
#define N_TEXTS (sizeof texts / sizeof texts[0])

static builder_t *vocabulary(kri_vocab_kind_t kind) {
    builder_t *b = malloc(sizeof *b);
    assert_non_null(b);
    builder_init(b, kind);
    if (kind == KRI_VOCAB_BPE) {
        b->desc.pre = "llama-bpe"; /* whole words are looked up by their text, too */
        builder_add_alphabet(b);
        builder_merge(b, "t", "h");
        builder_merge(b, "th", "e");
        builder_merge(b, "m", "e");
        builder_merge(b, "\xC4\xA0", "the");
    } else {
        builder_add_byte_tokens(b);
        static const char *const pieces[] = {"t", "h", "e", "m", "\xE2\x96\x81", "th", "the", "me",
                                             "\xE2\x96\x81the", "\xC3\xA9"};
        for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++)
            builder_add_bytes(b, pieces[i], strlen(pieces[i]), KRI_TOKEN_NORMAL, (float)i);
    }
    b->desc.bos = builder_add(b, "<s>", KRI_TOKEN_CONTROL);
    b->desc.eos = builder_add(b, "</s>", KRI_TOKEN_CONTROL);
    builder_add(b, "<end>", KRI_TOKEN_USER_DEFINED);
    builder_add(b, "\n\n", KRI_TOKEN_USER_DEFINED);
    b->desc.add_bos = 1;
    return b;
}

/* Encodes and decodes everything; what comes out is right when `expected` says so. */
static void use(const kri_tokenizer_t *t, const kri_tokenizer_t *expected) {
    const uint32_t n_tokens = kri_tokenizer_n_tokens(t);
    for (size_t i = 0; i < 2 * N_TEXTS; i++) {
        const char *text = texts[i / 2];
        const uint32_t flags = i % 2 ? KR_TOKENIZE_PARSE_SPECIAL | KR_TOKENIZE_ADD_BOS : 0;
        kr_token_t ids[N_IDS_MAX], wanted[N_IDS_MAX];
        size_t n = 0, n_wanted = 0;
        assert_status(kri_tokenizer_encode(t, text, strlen(text), flags, ids, N_IDS_MAX, &n, NULL,
                                           NULL), KR_OK);
        for (size_t k = 0; k < n; k++) assert_true(ids[k] >= 0 && (uint32_t)ids[k] < n_tokens);
        if (!expected) continue;
        assert_status(kri_tokenizer_encode(expected, text, strlen(text), flags, wanted, N_IDS_MAX,
                                           &n_wanted, NULL, NULL), KR_OK);
        assert_int_equal(n, n_wanted);
        assert_memory_equal(ids, wanted, n * sizeof ids[0]);
    }
    for (uint32_t id = 0; id <= n_tokens; id++) {
        size_t n_bytes, n_wanted;
        int is_special, is_wanted;
        const char *bytes = kri_tokenizer_token(t, (kr_token_t)id, &n_bytes, &is_special);
        char copy[1 << 16];
        memcpy(copy, bytes, n_bytes); /* at most 64 KiB, and readable */
        if (!expected) continue;
        bytes = kri_tokenizer_token(expected, (kr_token_t)id, &n_wanted, &is_wanted);
        assert_int_equal(n_bytes, n_wanted);
        assert_memory_equal(copy, bytes, n_bytes);
        assert_int_equal(is_special, is_wanted);
        assert_int_equal(kri_tokenizer_is_end(t, (kr_token_t)id),
                         kri_tokenizer_is_end(expected, (kr_token_t)id));
    }
}

typedef struct kept_s {
    builder_t *b;
    kri_tokenizer_t *built;
    uint8_t *bytes; /* exactly n_bytes of the heap: a sanitizer sees each read outside */
    size_t n_bytes;
} kept_t;

static kept_t keep(kri_vocab_kind_t kind) {
    kept_t kept = {.b = vocabulary(kind)};
    assert_status(kri_tokenizer_create(&kept.b->desc, &kept.built, NULL), KR_OK);
    const uint8_t *tables = kri_tokenizer_tables(kept.built, &kept.n_bytes);
    kept.bytes = malloc(kept.n_bytes);
    assert_non_null(kept.bytes);
    memcpy(kept.bytes, tables, kept.n_bytes);
    return kept;
}

static void drop(kept_t *kept) {
    free(kept->bytes);
    kri_tokenizer_destroy(kept->built);
    free(kept->b);
}

/* Of a description only the few fields that krt.h names are used. */
static kri_vocab_desc_t bare(const kept_t *kept) {
    kri_vocab_desc_t desc = kept->b->desc;
    desc.text = desc.merges = NULL;
    desc.offsets = desc.merge_offsets = NULL;
    desc.types = NULL;
    desc.scores = NULL;
    return desc;
}

static kr_status_t open_kept(const kept_t *kept, size_t n_bytes, kri_tokenizer_t **t) {
    const kri_vocab_desc_t desc = bare(kept);
    *t = NULL;
    return kri_tokenizer_open(&desc, kept->bytes, n_bytes, t, NULL);
}

TEST(tables_give_the_same_tokens_at_any_address) {
    for (int kind = KRI_VOCAB_BPE; kind <= KRI_VOCAB_SPM; kind++) {
        kept_t kept = keep((kri_vocab_kind_t)kind);
        const kri_vocab_desc_t desc = bare(&kept);
        kri_tokenizer_t *t;
        assert_status(open_kept(&kept, kept.n_bytes, &t), KR_OK);
        use(t, kept.built);
        kri_tokenizer_destroy(t);
        uint8_t *moved = malloc(kept.n_bytes + 1);
        assert_non_null(moved);
        memcpy(moved + 1, kept.bytes, kept.n_bytes);
        assert_status(kri_tokenizer_open(&desc, moved + 1, kept.n_bytes, &t, NULL), KR_OK);
        use(t, kept.built);
        kri_tokenizer_destroy(t);
        free(moved);
        drop(&kept);
    }
}

TEST(tables_of_another_vocabulary_are_refused) {
    for (int kind = KRI_VOCAB_BPE; kind <= KRI_VOCAB_SPM; kind++) {
        kept_t kept = keep((kri_vocab_kind_t)kind);
        kri_vocab_desc_t desc = bare(&kept);
        kri_tokenizer_t *t = NULL;
        kr_error_t error;
        kr_error_init(&error);
        desc.n_tokens++;
        assert_status(kri_tokenizer_open(&desc, kept.bytes, kept.n_bytes, &t, &error),
                      KR_E_BAD_FORMAT);
        assert_non_null(strstr(error.message, "instead of"));
        desc = bare(&kept);
        desc.kind = kind == KRI_VOCAB_BPE ? KRI_VOCAB_SPM : KRI_VOCAB_BPE;
        assert_status(kri_tokenizer_open(&desc, kept.bytes, kept.n_bytes, &t, &error),
                      KR_E_BAD_FORMAT);
        assert_non_null(strstr(error.message, "another kind"));
        assert_status(kri_tokenizer_open(&desc, NULL, 0, &t, &error), KR_E_INVALID_ARG);
        assert_null(t);
        drop(&kept);
    }
}

TEST(tables_that_are_cut_are_refused) {
    for (int kind = KRI_VOCAB_BPE; kind <= KRI_VOCAB_SPM; kind++) {
        kept_t kept = keep((kri_vocab_kind_t)kind);
        kri_tokenizer_t *t;
        for (size_t n = 1; n < kept.n_bytes; n += n < 1024 ? 1 : 1021) {
            assert_status(open_kept(&kept, n, &t), KR_E_BAD_FORMAT);
            assert_null(t);
        }
        drop(&kept);
    }
}

/* Without the checksum of the file around them, which would refuse all of these. */
TEST(tables_that_are_damaged_are_refused_or_harmless) {
    for (int kind = KRI_VOCAB_BPE; kind <= KRI_VOCAB_SPM; kind++) {
        kept_t kept = keep((kri_vocab_kind_t)kind);
        uint64_t random = 7;
        unsigned n_opened = 0;
        for (size_t i = 0; i < 4000; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            /* Each byte of the header, then anywhere but mostly in front of the long filter. */
            const size_t range = i % 8 || kept.n_bytes < 16384 ? 16384 : kept.n_bytes;
            size_t at = i < 400 ? i : (size_t)(random >> 33) % range;
            if (at >= kept.n_bytes) at %= kept.n_bytes;
            const uint8_t before = kept.bytes[at];
            kept.bytes[at] ^= (uint8_t)(i % 3 == 0 ? 0xFF : 1u << (random >> 20) % 8);
            kri_tokenizer_t *t;
            const kr_status_t status = open_kept(&kept, kept.n_bytes, &t);
            if (status == KR_OK) {
                n_opened++;
                use(t, NULL);
                kri_tokenizer_destroy(t);
            } else {
                assert_status(status, KR_E_BAD_FORMAT);
            }
            kept.bytes[at] = before;
        }
        assert_true(n_opened > 0 && n_opened < 4000);
        kri_tokenizer_t *t;
        assert_status(open_kept(&kept, kept.n_bytes, &t), KR_OK);
        use(t, kept.built);
        kri_tokenizer_destroy(t);
        drop(&kept);
    }
}

TEST(tables_survive_failing_allocations) {
    kept_t kept = keep(KRI_VOCAB_BPE);
    kri_tokenizer_t *t;
    kri_alloc_fail(1, false);
    const kr_status_t status = open_kept(&kept, kept.n_bytes, &t);
    kri_alloc_fail(0, false);
    assert_status(status, KR_E_NOMEM);
    assert_null(t);
    drop(&kept);
}

/* fuzz_tokenizer.c: a small vocabulary built from the input, then text through it and back.
 * Input: byte 0 kind (bit 0: SentencePiece) and parse_special (bit 1), byte 1 the pre-tokenizer,
 * byte 2 the number of entries; each entry is a length, a type, a score and that many bytes (in a
 * byte-level vocabulary an entry with a space is a merge rule and adds the token it makes); the
 * rest is text. All bytes have tokens, so the text must come back. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "unit/text/vocab_builder.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static const char *const pre_names[] = {"gpt-2", "smollm", "qwen2", "llama-bpe", "dbrx", "default",
                                        "falcon", "laguna", "no such rule"};

static void require(bool condition) {
    if (!condition) abort();
}

typedef struct input_s {
    const uint8_t *data;
    size_t n_bytes;
} input_t;

static uint8_t take(input_t *in) {
    if (in->n_bytes == 0) return 0;
    in->n_bytes--;
    return *in->data++;
}

/* Adds one entry; returns whether it is a user-defined token. */
static bool add_entry(builder_t *b, input_t *in) {
    size_t n = take(in);
    const uint8_t type = (uint8_t)(1 + take(in) % 6);
    const float score = -(float)take(in);
    if (n > in->n_bytes) n = in->n_bytes;
    const char *text = (const char *)in->data;
    in->data += n;
    in->n_bytes -= n;
    const char *space = n > 2 ? memchr(text + 1, ' ', n - 1) : NULL;
    if (b->desc.kind == KRI_VOCAB_BPE && space) {
        char joined[256];
        const size_t n_left = (size_t)(space - text);
        memcpy(joined, text, n_left);
        memcpy(joined + n_left, space + 1, n - n_left - 1);
        builder_merge_bytes(b, text, n);
        builder_add_bytes(b, joined, n - 1, KRI_TOKEN_NORMAL, 0);
        return false;
    }
    builder_add_bytes(b, text, n, type, score);
    return type == KRI_TOKEN_USER_DEFINED;
}

/* In SentencePiece U+2581 and the space are one and the same. */
static size_t fold_spaces(char *text, size_t n_bytes) {
    size_t n_out = 0;
    for (size_t i = 0; i < n_bytes;) {
        const bool is_mark = n_bytes - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0;
        text[n_out++] = is_mark ? ' ' : text[i];
        i += is_mark ? 3 : 1;
    }
    return n_out;
}

static void round_trip(const kri_tokenizer_t *t, const char *text, size_t n_text, uint32_t flags,
                       bool is_spm, bool is_exact) {
    /* A space without a token of its own is three bytes in SentencePiece. */
    const size_t room = 3 * n_text + 1;
    size_t n_ids = 0, n_back = 0;
    kr_token_t *ids = malloc(room * sizeof *ids);
    char *back = malloc(room), *wanted = malloc(room);
    require(ids && back && wanted);
    const kr_status_t status =
        kri_tokenizer_encode(t, text, n_text, flags, ids, room, &n_ids, NULL, NULL);
    require(status == KR_OK);
    for (size_t i = 0; i < n_ids; i++) {
        size_t n_piece;
        int is_special;
        require(ids[i] >= 0 && (uint32_t)ids[i] < kri_tokenizer_n_tokens(t));
        kri_tokenizer_token(t, ids[i], &n_piece, &is_special);
        require(!is_special || (flags & KR_TOKENIZE_PARSE_SPECIAL));
    }
    memcpy(wanted, text, n_text);
    const size_t n_wanted = is_spm ? fold_spaces(wanted, n_text) : n_text;
    if (is_exact) {
        require(kri_tokenizer_decode(t, ids, n_ids, KR_TOKENIZE_PARSE_SPECIAL, back, room,
                                     &n_back, NULL) == KR_OK);
        if (is_spm) n_back = fold_spaces(back, n_back);
        require(n_back == n_wanted && memcmp(back, wanted, n_back) == 0);
    }
    free(wanted);
    free(back);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static builder_t b;
    input_t in = {data, n_bytes};
    const uint8_t mode = take(&in);
    const bool is_spm = mode & 1;
    builder_init(&b, is_spm ? KRI_VOCAB_SPM : KRI_VOCAB_BPE);
    b.desc.pre = pre_names[take(&in) % (sizeof pre_names / sizeof pre_names[0])];
    if (is_spm) {
        builder_add_byte_tokens(&b);
    } else {
        builder_add_alphabet(&b);
    }
    /* A user-defined token may share its text with a byte-level one and mean other bytes. */
    bool is_exact = true;
    for (uint32_t n = take(&in); n > 0; n--) is_exact = !add_entry(&b, &in) && is_exact;
    kri_tokenizer_t *t = NULL;
    kr_error_t error;
    kr_error_init(&error);
    if (kri_tokenizer_create(&b.desc, &t, &error) != KR_OK) {
        require(t == NULL && error.message[0] != 0);
        return 0;
    }
    const char *text = (const char *)in.data;
    const size_t n_valid = kri_utf8_valid_prefix(text, in.n_bytes);
    if (n_valid < in.n_bytes) {
        size_t n_ids = 0;
        require(kri_tokenizer_encode(t, text, in.n_bytes, 0, NULL, 0, &n_ids, NULL, &error) ==
                KR_E_INVALID_ARG);
        require(error.offset == n_valid);
    }
    round_trip(t, text, n_valid, mode & 2 ? KR_TOKENIZE_PARSE_SPECIAL : 0, is_spm, is_exact);
    kri_tokenizer_destroy(t);
    return 0;
}

/* fuzz_tables.c: tables of a tokenizer that are not what was built: the input itself as tables, and
 * good tables with changed bytes. Input: byte 0 kind (bit 0: SentencePiece), then changes of three
 * bytes {u16 position, u8 xor}; a position at or over 0x8000 counts from the end. Whatever is
 * accepted must encode to ids of the vocabulary and decode inside its bytes. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "unit/text/vocab_builder.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static volatile uint64_t sink;

static void require(bool condition) {
    if (!condition) abort();
}

static void build(builder_t *b, bool is_spm) {
    builder_init(b, is_spm ? KRI_VOCAB_SPM : KRI_VOCAB_BPE);
    b->desc.pre = "llama-bpe";
    if (is_spm) {
        builder_add_byte_tokens(b);
        builder_add_bytes(b, "a", 1, KRI_TOKEN_NORMAL, -1);
        builder_add_bytes(b, "ab", 2, KRI_TOKEN_NORMAL, -2);
        builder_add_bytes(b, "\xE2\x96\x81" "ab", 5, KRI_TOKEN_NORMAL, -3);
    } else {
        builder_add_alphabet(b);
        builder_merge(b, "a", "b");
        builder_merge(b, "ab", "b");
    }
    builder_add(b, "<s>", KRI_TOKEN_CONTROL);
    builder_add(b, "<s>>", KRI_TOKEN_CONTROL);
    builder_add(b, "\n\n", KRI_TOKEN_USER_DEFINED);
}

static void use(const kri_tokenizer_t *t) {
    static const char text[] = "ab abb <s>>\n\n\n\xC3\xA9<s aabbab";
    kr_token_t ids[256];
    size_t n_ids = 0;
    const uint32_t n_tokens = kri_tokenizer_n_tokens(t);
    require(kri_tokenizer_encode(t, text, sizeof text - 1, KR_TOKENIZE_PARSE_SPECIAL, ids, 256,
                                 &n_ids, NULL, NULL) == KR_OK);
    for (size_t i = 0; i < n_ids; i++) require(ids[i] >= 0 && (uint32_t)ids[i] < n_tokens);
    for (uint32_t id = 0; id <= n_tokens; id++) {
        size_t n_piece;
        int is_special;
        const char *piece = kri_tokenizer_token(t, (kr_token_t)id, &n_piece, &is_special);
        for (size_t i = 0; i < n_piece; i++) sink += (uint8_t)piece[i];
        sink += (uint64_t)kri_tokenizer_is_end(t, (kr_token_t)id);
    }
}

static void try_tables(kri_vocab_desc_t desc, const uint8_t *tables, size_t n_bytes) {
    kri_tokenizer_t *t = NULL;
    /* The count is the caller's to know; here any that the tables give themselves will do. */
    if (n_bytes >= 16) memcpy(&desc.n_tokens, tables + 12, 4);
    if (kri_tokenizer_open(&desc, tables, n_bytes, &t, NULL) == KR_OK) use(t);
    kri_tokenizer_destroy(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static builder_t b;
    if (n_bytes == 0) return 0;
    build(&b, data[0] & 1);
    try_tables(b.desc, data, n_bytes);
    kri_tokenizer_t *built = NULL;
    require(kri_tokenizer_create(&b.desc, &built, NULL) == KR_OK);
    size_t n_tables;
    const uint8_t *tables = kri_tokenizer_tables(built, &n_tables);
    uint8_t *copy = malloc(n_tables);
    require(copy != NULL);
    memcpy(copy, tables, n_tables);
    for (size_t i = 1; i + 3 <= n_bytes; i += 3) {
        const size_t at = (size_t)data[i] | (size_t)data[i + 1] << 8;
        copy[(at < 0x8000 ? at : n_tables - (at & 0x7FFF) - 1) % n_tables] ^= data[i + 2];
    }
    kri_tokenizer_destroy(built); /* nothing may point into it */
    try_tables(b.desc, copy, n_tables);
    free(copy);
    return 0;
}

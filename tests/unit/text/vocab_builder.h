/* vocab_builder.h: small vocabularies for the tests of src/text, and for the fuzz targets.
 * The byte-level one has all 256 bytes (ids 0..255 in byte order); tokens added later get the next
 * ids. Texts are given as the file would hold them. */
#ifndef VOCAB_BUILDER_H
#define VOCAB_BUILDER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/text.h"

#define BUILDER_TEXT_MAX 65536
#define BUILDER_TOKENS_MAX 2048

typedef struct builder_s {
    char text[BUILDER_TEXT_MAX];
    uint64_t offsets[BUILDER_TOKENS_MAX + 1];
    uint8_t types[BUILDER_TOKENS_MAX];
    float scores[BUILDER_TOKENS_MAX];
    char merges[BUILDER_TEXT_MAX];
    uint64_t merge_offsets[BUILDER_TOKENS_MAX + 1];
    kri_vocab_desc_t desc;
} builder_t;

static inline int32_t builder_add_bytes(builder_t *b, const char *text, size_t n_bytes,
                                        uint8_t type, float score) {
    const uint32_t id = b->desc.n_tokens;
    if (id >= BUILDER_TOKENS_MAX || b->offsets[id] + n_bytes > BUILDER_TEXT_MAX) return -1;
    memcpy(b->text + b->offsets[id], text, n_bytes);
    b->offsets[id + 1] = b->offsets[id] + n_bytes;
    b->types[id] = type;
    b->scores[id] = score;
    b->desc.n_tokens++;
    return (int32_t)id;
}

static inline int32_t builder_add(builder_t *b, const char *text, uint8_t type) {
    return builder_add_bytes(b, text, strlen(text), type, 0);
}

static inline void builder_merge_bytes(builder_t *b, const char *rule, size_t n_bytes) {
    const uint64_t n = b->desc.n_merges;
    if (n >= BUILDER_TOKENS_MAX || b->merge_offsets[n] + n_bytes > BUILDER_TEXT_MAX) return;
    memcpy(b->merges + b->merge_offsets[n], rule, n_bytes);
    b->merge_offsets[n + 1] = b->merge_offsets[n] + n_bytes;
    b->desc.n_merges++;
}

/* Adds the rule "left right" and the token it makes. */
static inline int32_t builder_merge(builder_t *b, const char *left, const char *right) {
    char joined[512], rule[512];
    const size_t n_left = strlen(left), n_right = strlen(right);
    if (n_left + n_right + 2 > sizeof rule) return -1;
    memcpy(rule, left, n_left);
    rule[n_left] = ' ';
    memcpy(rule + n_left + 1, right, n_right);
    builder_merge_bytes(b, rule, n_left + 1 + n_right);
    memcpy(joined, left, n_left);
    memcpy(joined + n_left, right, n_right);
    return builder_add_bytes(b, joined, n_left + n_right, KRI_TOKEN_NORMAL, 0);
}

static inline void builder_init(builder_t *b, kri_vocab_kind_t kind) {
    memset(b, 0, sizeof *b);
    b->desc = (kri_vocab_desc_t){.kind = kind, .pre = "smollm", .text = b->text,
                                 .offsets = b->offsets, .types = b->types, .bos = -1, .eos = -1,
                                 .eot = -1, .unk = -1};
    if (kind == KRI_VOCAB_SPM) {
        b->desc.scores = b->scores;
    } else {
        b->desc.merges = b->merges;
        b->desc.merge_offsets = b->merge_offsets;
    }
}

/* The printable character that stands for a byte in byte-level vocabularies. */
static inline size_t builder_alphabet(uint32_t byte, char out[4]) {
    uint32_t code = byte;
    if (byte <= 0x20) code = 0x100 + byte;
    if (byte >= 0x7F && byte <= 0xA0) code = 0x121 + (byte - 0x7F);
    if (byte == 0xAD) code = 0x143;
    return kri_utf8_encode(code, out);
}

static inline void builder_add_alphabet(builder_t *b) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        char text[4];
        const size_t n_bytes = builder_alphabet(byte, text);
        builder_add_bytes(b, text, n_bytes, KRI_TOKEN_NORMAL, 0);
    }
}

/* <0x00> .. <0xFF>, as SentencePiece vocabularies have them. */
static inline void builder_add_byte_tokens(builder_t *b) {
    static const char hex[] = "0123456789ABCDEF";
    for (uint32_t byte = 0; byte < 256; byte++) {
        const char text[6] = {'<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>'};
        builder_add_bytes(b, text, sizeof text, KRI_TOKEN_BYTE, -1000);
    }
}

#endif

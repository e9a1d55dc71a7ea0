/* vocab.c: what each token of a GGUF vocabulary is: its bytes, and whether it is text at all.
 * Byte-level vocabularies write every byte as a printable character, SentencePiece writes a space
 * as U+2581 and single bytes as <0xXX>; both are undone here, once, at load. Files often mark
 * end-of-turn tokens as ordinary ones, so those are known by their spelling (the rule of
 * llama.cpp, whose ids ours must equal). */
#include "text/vocab.h"

#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/utf8.h"
#include "krt.h"

/* Spellings of tokens that are control tokens whatever the file says. */
typedef struct spelling_s {
    const char *text;
    bool is_end;
} spelling_t;

static const spelling_t spellings[] = {
    {"<|eot_id|>", true},      {"<|im_end|>", true},
    {"<|end|>", true},         {"<|return|>", true},
    {"<|call|>", true},        {"<|flush|>", true},
    {"<|calls|>", true},       {"<end_of_turn>", true},
    {"<|endoftext|>", true},   {"</s>", true},
    {"<|eom_id|>", true},      {"<EOT>", true},
    {"_<EOT>", true},          {"[EOT]", true},
    {"[EOS]", true},           {"<|end_of_text|>", true},
    {"<end_of_utterance>", true}, {"<eos>", true},
    {"<turn|>", true},         {"<|tool_response>", true},
    {"<\xEF\xBD\x9C" "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>", true},
    {"[e~[", true},
    /* Infilling: padding and file borders end generation, the other marks do not. */
    {"<|fim_pad|>", true},     {"<fim-pad>", true},
    {"<fim_pad>", true},       {"<PAD>", true},
    {"[PAD]", true},           {"<|fim_repo|>", true},
    {"<|repo_name|>", true},   {"<fim-repo>", true},
    {"<REPO>", true},          {"<reponame>", true},
    {"<|file_sep|>", true},
    {"<|fim_prefix|>", false}, {"<fim-prefix>", false},
    {"<fim_prefix>", false},   {"<\xEF\xBD\x9C" "fim\xE2\x96\x81" "begin\xEF\xBD\x9C>", false},
    {"<PRE>", false},          {"\xE2\x96\x81<PRE>", false},
    {"<|code_prefix|>", false}, {"<|prefix|>", false},
    {"<|fim_suffix|>", false}, {"<fim-suffix>", false},
    {"<fim_suffix>", false},   {"<\xEF\xBD\x9C" "fim\xE2\x96\x81hole\xEF\xBD\x9C>", false},
    {"<SUF>", false},          {"\xE2\x96\x81<SUF>", false},
    {"<|code_suffix|>", false}, {"<|suffix|>", false},
    {"<|fim_middle|>", false}, {"<fim-middle>", false},
    {"<fim_middle>", false},   {"<\xEF\xBD\x9C" "fim\xE2\x96\x81" "end\xEF\xBD\x9C>", false},
    {"<MID>", false},          {"\xE2\x96\x81<MID>", false},
    {"<|code_middle|>", false}, {"<|middle|>", false},
};

#define N_SPELLINGS (sizeof spellings / sizeof spellings[0])
#define NO_TOKEN UINT32_MAX

typedef struct text_s {
    const char *data;
    size_t n_bytes;
} text_t;

static text_t token_text(const kri_vocab_desc_t *desc, uint32_t id) {
    const uint64_t begin = desc->offsets[id];
    return (text_t){desc->text + begin, (size_t)(desc->offsets[id + 1] - begin)};
}

static bool text_is(text_t text, const char *wanted) {
    /* strlen is for the few that begin alike: a vocabulary has 262,144 texts, the list 50. */
    if (text.n_bytes < 2 || text.data[0] != wanted[0] || text.data[1] != wanted[1]) return false;
    return text.n_bytes == strlen(wanted) && memcmp(text.data, wanted, text.n_bytes) == 0;
}

static bool id_is_valid(const kri_vocab_desc_t *desc, kr_token_t id) {
    return id >= -1 && id < (int64_t)desc->n_tokens;
}

static kr_status_t check(const kri_vocab_desc_t *desc, kr_error_t *error) {
    if (!desc->text || !desc->offsets || !desc->types || !id_is_valid(desc, desc->bos) ||
        !id_is_valid(desc, desc->eos) || !id_is_valid(desc, desc->eot) ||
        !id_is_valid(desc, desc->unk)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "tokenizer", "incomplete vocabulary");
    }
    if (desc->n_tokens == 0 || desc->n_tokens > KRI_TOKENS_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "tokenizer",
                        "vocabulary of %u tokens, allowed are 1..%u", desc->n_tokens,
                        KRI_TOKENS_MAX);
    }
    for (uint32_t id = 0; id < desc->n_tokens; id++) {
        const uint64_t begin = desc->offsets[id], end = desc->offsets[id + 1];
        if (begin > end || (id == 0 && begin != 0)) {
            return KRI_FAIL(error, KR_E_INVALID_ARG, "tokenizer", "token offsets do not ascend");
        }
        if (end - begin > KRI_TOKEN_BYTES_MAX || end > UINT32_MAX) {
            return KRI_FAIL(error, KR_E_LIMIT, "tokenizer", "token %u has over %u bytes", id,
                            KRI_TOKEN_BYTES_MAX);
        }
        if (desc->types[id] < KRI_TOKEN_NORMAL || desc->types[id] > KRI_TOKEN_BYTE) {
            return KRI_FAIL(error, KR_E_BAD_FORMAT, "tokenizer", "token %u has unknown type %u", id,
                            desc->types[id]);
        }
    }
    return KR_OK;
}

/* ---- which tokens end generation ---------------------------------------------------------- */

static void set_end(kri_vocab_t *vocab, kr_token_t id) {
    if (id >= 0) vocab->types[id] |= KRT_TOKEN_IS_END;
}

static bool is_end(const kri_vocab_t *vocab, uint32_t id) {
    return (vocab->types[id] & KRT_TOKEN_IS_END) != 0;
}

/* Two families use a spelling of the list for something that ends nothing. */
static void drop_false_ends(kri_vocab_t *vocab, const kri_vocab_desc_t *desc) {
    uint32_t channel_end = NO_TOKEN, closing_s = NO_TOKEN;
    bool has_return = false, has_call = false, has_flush = false, has_tool_response = false;
    for (uint32_t id = 0; id < desc->n_tokens; id++) {
        if (!is_end(vocab, id)) continue;
        const text_t text = token_text(desc, id);
        if (text_is(text, "<|end|>")) channel_end = id;
        if (text_is(text, "</s>")) closing_s = id;
        has_return = has_return || text_is(text, "<|return|>");
        has_call = has_call || text_is(text, "<|call|>") || text_is(text, "<|calls|>");
        has_flush = has_flush || text_is(text, "<|flush|>");
        has_tool_response = has_tool_response || text_is(text, "<|tool_response>");
    }
    if (channel_end != NO_TOKEN && has_call && (has_return || has_flush)) {
        vocab->types[channel_end] &= KRT_TOKEN_TYPE;
    }
    if (closing_s != NO_TOKEN && has_tool_response) {
        vocab->types[closing_s] &= KRT_TOKEN_TYPE;
    }
}

/* How every spelling of the list begins and ends. */
static bool may_be_spelling(text_t text) {
    if (text.n_bytes < 4) return false;
    const char first = text.data[0], last = text.data[text.n_bytes - 1];
    return (last == '>' || last == ']' || last == '[') &&
           (first == '<' || first == '[' || first == '_' || first == '\xE2');
}

/* Fills the types. */
static void classify(kri_vocab_t *vocab, const kri_vocab_desc_t *desc) {
    uint8_t *types = vocab->types;
    memcpy(types, desc->types, desc->n_tokens);
    for (uint32_t id = 0; id < desc->n_tokens; id++) {
        const text_t text = token_text(desc, id);
        if (!may_be_spelling(text)) continue;
        for (size_t i = 0; i < N_SPELLINGS; i++) {
            if (!text_is(text, spellings[i].text)) continue;
            types[id] = spellings[i].is_end ? types[id] | KRT_TOKEN_IS_END : KRI_TOKEN_CONTROL;
        }
    }
    drop_false_ends(vocab, desc);
    for (uint32_t id = 0; id < desc->n_tokens; id++) {
        if (is_end(vocab, id)) types[id] = KRI_TOKEN_CONTROL | KRT_TOKEN_IS_END;
    }
    set_end(vocab, desc->eos);
    set_end(vocab, desc->eot);
}

/* ---- bytes -------------------------------------------------------------------------------- */

/* The byte behind a character of the byte-level alphabet: printable Latin-1 stands for itself,
 * the other 68 bytes are numbered from U+0100. -1 if it is none. */
static int alphabet_byte(uint32_t code_point) {
    if ((code_point >= 0x21 && code_point <= 0x7E) || (code_point >= 0xA1 && code_point <= 0xAC) ||
        (code_point >= 0xAE && code_point <= 0xFF)) {
        return (int)code_point;
    }
    if (code_point < 0x100 || code_point > 0x143) return -1;
    const uint32_t index = code_point - 0x100;
    if (index <= 0x20) return (int)index;               /* 00..20 */
    if (index <= 0x42) return (int)(index + 0x5E);      /* 7F..A0 */
    return 0xAD;
}

static size_t decode_byte_level(text_t text, char *out) {
    size_t n_out = 0;
    for (size_t at = 0; at < text.n_bytes;) {
        const uint8_t first = (uint8_t)text.data[at];
        if (first > 0x20 && first < 0x7F) { /* most of all texts; stands for itself */
            out[n_out++] = text.data[at++];
            continue;
        }
        uint32_t code_point = 0;
        /* Four bytes hold any character: looking further would be quadratic in long tokens. */
        const size_t n_look = text.n_bytes - at < 4 ? text.n_bytes - at : 4;
        size_t n_char = kri_utf8_valid_prefix(text.data + at, n_look) == 0
                            ? 0 : kri_utf8_decode(text.data + at, n_look, &code_point);
        const int byte = n_char == 0 ? -1 : alphabet_byte(code_point);
        if (n_char == 0) n_char = 1;
        if (byte >= 0) {
            out[n_out++] = (char)byte;
        } else {
            memcpy(out + n_out, text.data + at, n_char);
            n_out += n_char;
        }
        at += n_char;
    }
    return n_out;
}

static size_t decode_pieces(text_t text, char *out) {
    size_t n_out = 0;
    for (size_t at = 0; at < text.n_bytes;) {
        if (text.n_bytes - at >= 3 && memcmp(text.data + at, "\xE2\x96\x81", 3) == 0) {
            out[n_out++] = ' ';
            at += 3;
        } else {
            out[n_out++] = text.data[at++];
        }
    }
    return n_out;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* Decoded bytes of one token, never more than its text has. */
static size_t decode_token(const kri_vocab_desc_t *desc, uint32_t id, uint8_t type, char *out) {
    const text_t text = token_text(desc, id);
    if (type == KRI_TOKEN_BYTE && text.n_bytes == 6 && memcmp(text.data, "<0x", 3) == 0 &&
        hex_digit(text.data[3]) >= 0 && hex_digit(text.data[4]) >= 0) {
        out[0] = (char)(hex_digit(text.data[3]) * 16 + hex_digit(text.data[4]));
        return 1;
    }
    if (type == KRI_TOKEN_NORMAL) {
        return desc->kind == KRI_VOCAB_BPE ? decode_byte_level(text, out)
                                           : decode_pieces(text, out);
    }
    if (text.n_bytes) memcpy(out, text.data, text.n_bytes);
    return text.n_bytes;
}

kr_status_t kri_vocab_init(kri_vocab_t *vocab, const kri_vocab_desc_t *desc, kr_error_t *error) {
    *vocab = (kri_vocab_t){0};
    KR_TRY(check(desc, error));
    const size_t n_tokens = desc->n_tokens;
    vocab->bytes = kri_alloc((size_t)desc->offsets[n_tokens] + 1, "vocab");
    vocab->offsets = kri_calloc(n_tokens + 1, sizeof *vocab->offsets, "vocab");
    vocab->types = kri_alloc(n_tokens, "vocab");
    if (!vocab->bytes || !vocab->offsets || !vocab->types) {
        kri_vocab_deinit(vocab);
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the vocabulary");
    }
    classify(vocab, desc);
    uint32_t at = 0;
    for (uint32_t id = 0; id < desc->n_tokens; id++) {
        const uint8_t type = vocab->types[id] & KRT_TOKEN_TYPE;
        at += (uint32_t)decode_token(desc, id, type, vocab->bytes + at);
        vocab->offsets[id + 1] = at;
    }
    return KR_OK;
}

void kri_vocab_deinit(kri_vocab_t *vocab) {
    kri_free(vocab->types);
    kri_free(vocab->offsets);
    kri_free(vocab->bytes);
    *vocab = (kri_vocab_t){0};
}

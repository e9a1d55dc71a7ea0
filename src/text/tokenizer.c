/* tokenizer.c: the tokenizer handle. Tables are built from the vocabulary or come from an earlier
 * run; encoding by them is done by the Rust library, decoding is a look-up. */
#include "text/tokenizer.h"

#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "text/vocab.h"

kr_status_t kri_text_fail(int32_t status, const krt_error_t *failure, const char *param,
                          kr_error_t *error) {
    return kri_error_set(error, status, param, failure->offset, "%s", failure->message);
}

/* Builds the tables of t. */
static kr_status_t build(kri_tokenizer_t *t, const kri_vocab_desc_t *desc, kr_error_t *error) {
    const bool is_spm = desc->kind == KRI_VOCAB_SPM;
    kri_vocab_t decoded;
    KR_TRY(kri_vocab_init(&decoded, desc, error));
    const krt_vocab_t vocab = {
        .text = desc->text, .offsets = desc->offsets, .types = decoded.types,
        .scores = desc->scores, .decoded = decoded.bytes, .decoded_offsets = decoded.offsets,
        .n_tokens = desc->n_tokens, .merges = desc->merges, .merge_offsets = desc->merge_offsets,
        .n_merges = (size_t)desc->n_merges, .pre = desc->pre,
        .pre_bytes = is_spm ? 0 : strlen(desc->pre), .unk = desc->unk, .is_spm = is_spm,
    };
    krt_error_t failure;
    kr_status_t status = krt_tables_build(&vocab, &t->built, &t->table_bytes, &failure);
    if (status != KR_OK) kri_text_fail(status, &failure, "tokenizer", error);
    t->tables = t->built;
    kri_vocab_deinit(&decoded);
    return status;
}

/* A tokenizer over the tables of t. */
static kr_status_t open_tables(kri_tokenizer_t *t, const kri_vocab_desc_t *desc,
                               kr_error_t *error) {
    const bool is_spm = desc->kind == KRI_VOCAB_SPM;
    krt_error_t failure;
    const kr_status_t status = krt_tokenizer_create(
        t->tables, t->table_bytes, desc->pre, is_spm ? 0 : strlen(desc->pre), is_spm,
        desc->add_space_prefix, &t->encoder, &failure);
    if (status != KR_OK) return kri_text_fail(status, &failure, "tokenizer", error);
    t->n_tokens = krt_tokenizer_n_tokens(t->encoder);
    if (t->n_tokens != desc->n_tokens) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "tokenizer", "tables of %u tokens instead of %u",
                        t->n_tokens, desc->n_tokens);
    }
    t->bos = desc->bos;
    t->eos = desc->eos;
    t->add_bos = desc->add_bos && desc->bos >= 0;
    t->strip_space = is_spm && desc->add_space_prefix;
    return KR_OK;
}

/* tables NULL: they are built. */
static kr_status_t create(const kri_vocab_desc_t *desc, const uint8_t *tables, size_t n_bytes,
                          kri_tokenizer_t **tokenizer, kr_error_t *error) {
    if (desc->kind == KRI_VOCAB_BPE && !desc->pre)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "tokenizer", "incomplete vocabulary");
    kri_tokenizer_t *t = kri_calloc(1, sizeof *t, "tokenizer");
    if (!t) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the tokenizer");
    t->tables = tables;
    t->table_bytes = n_bytes;
    kr_status_t status = tables ? KR_OK : build(t, desc, error);
    if (status == KR_OK) status = open_tables(t, desc, error);
    if (status == KR_OK) *tokenizer = t;
    else kri_tokenizer_destroy(t);
    return status;
}

kr_status_t kri_tokenizer_create(const kri_vocab_desc_t *desc, kri_tokenizer_t **tokenizer,
                                 kr_error_t *error) {
    if (!desc || !tokenizer) return KRI_FAIL(error, KR_E_INVALID_ARG, NULL, "NULL argument");
    if (desc->kind == KRI_VOCAB_SPM ? !desc->scores : desc->n_merges && !desc->merge_offsets)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "tokenizer", "incomplete vocabulary");
    return create(desc, NULL, 0, tokenizer, error);
}

kr_status_t kri_tokenizer_open(const kri_vocab_desc_t *desc, const uint8_t *tables,
                               size_t n_bytes, kri_tokenizer_t **tokenizer, kr_error_t *error) {
    if (!desc || !tables || !tokenizer)
        return KRI_FAIL(error, KR_E_INVALID_ARG, NULL, "NULL argument");
    return create(desc, tables, n_bytes, tokenizer, error);
}

const uint8_t *kri_tokenizer_tables(const kri_tokenizer_t *tokenizer, size_t *n_bytes) {
    *n_bytes = tokenizer->table_bytes;
    return tokenizer->tables;
}

uint32_t kri_tokenizer_tables_version(void) { return KRT_TABLES_VERSION; }

void kri_tokenizer_destroy(kri_tokenizer_t *tokenizer) {
    if (!tokenizer) return;
    krt_tokenizer_destroy(tokenizer->encoder);
    krt_tables_free(tokenizer->built, tokenizer->table_bytes);
    kri_free(tokenizer);
}

kr_status_t kri_tokenizer_encode(const kri_tokenizer_t *tokenizer, const char *text,
                                 size_t n_bytes, uint32_t flags, kr_token_t *tokens,
                                 size_t capacity, size_t *n_tokens, int32_t *is_least,
                                 kr_error_t *error) {
    const uint32_t known = KR_TOKENIZE_ADD_BOS | KR_TOKENIZE_PARSE_SPECIAL;
    if (!tokenizer || !n_tokens || (!text && n_bytes) || (!tokens && capacity)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "text", "NULL argument");
    }
    if (flags & ~known) return KRI_FAIL(error, KR_E_INVALID_ARG, "flags", "unknown flag");
    const bool has_bos = (flags & KR_TOKENIZE_ADD_BOS) && tokenizer->add_bos;
    krt_error_t failure;
    const int32_t status = krt_tokenizer_encode(
        tokenizer->encoder, text, n_bytes, (flags & KR_TOKENIZE_PARSE_SPECIAL) != 0,
        has_bos ? tokenizer->bos : -1, tokens, capacity, n_tokens, is_least,
        &failure);
    return status == KR_OK ? KR_OK : kri_text_fail(status, &failure, "text", error);
}

kr_status_t kri_tokenizer_decode(const kri_tokenizer_t *tokenizer, const kr_token_t *tokens,
                                 size_t n_tokens, uint32_t flags, char *buf, size_t capacity,
                                 size_t *n_bytes, kr_error_t *error) {
    if (!tokenizer || !n_bytes || (!tokens && n_tokens) || (!buf && capacity)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "tokens", "NULL argument");
    }
    if (flags & ~(uint32_t)KR_TOKENIZE_PARSE_SPECIAL) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "flags", "unknown flag");
    }
    for (size_t i = 0; i < n_tokens; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= tokenizer->n_tokens) {
            return KRI_FAIL_AT(error, KR_E_INVALID_ARG, "tokens", i,
                               "token %d is not in the vocabulary", tokens[i]);
        }
    }
    /* At most 64 KiB a token: 2^48 tokens do not fit in memory, so the sum cannot overflow. */
    size_t n_out = 0;
    bool strip = tokenizer->strip_space != 0;
    for (size_t i = 0; i < n_tokens; i++) {
        size_t n_piece;
        int is_special;
        const char *piece = kri_tokenizer_token(tokenizer, tokens[i], &n_piece, &is_special);
        if (is_special && !(flags & KR_TOKENIZE_PARSE_SPECIAL)) continue;
        if (strip && !is_special) {
            strip = false;
            if (n_piece && piece[0] == ' ') {
                piece++;
                n_piece--;
            }
        }
        if (n_piece && n_out <= capacity && n_piece <= capacity - n_out) {
            memcpy(buf + n_out, piece, n_piece);
        }
        n_out += n_piece;
    }
    *n_bytes = n_out;
    if (n_out > capacity) {
        return KRI_FAIL(error, KR_E_LIMIT, "buf", "needs room for %zu bytes", n_out);
    }
    return KR_OK;
}

int kri_tokenizer_is_end(const kri_tokenizer_t *tokenizer, kr_token_t token) {
    size_t n_bytes;
    uint8_t type;
    if (token < 0) return 0;
    (void)krt_tokenizer_token(tokenizer->encoder, (uint32_t)token, &n_bytes, &type);
    return (type & KRT_TOKEN_IS_END) != 0;
}

uint32_t kri_tokenizer_n_tokens(const kri_tokenizer_t *tokenizer) { return tokenizer->n_tokens; }

const char *kri_tokenizer_token(const kri_tokenizer_t *tokenizer, kr_token_t token,
                                size_t *n_bytes, int *is_special) {
    uint8_t type;
    /* A negative id becomes one past every vocabulary. */
    const char *bytes = krt_tokenizer_token(tokenizer->encoder, (uint32_t)token, n_bytes, &type);
    type &= KRT_TOKEN_TYPE;
    *is_special =
        type == KRI_TOKEN_CONTROL || type == KRI_TOKEN_UNKNOWN || type == KRI_TOKEN_UNUSED;
    return bytes;
}

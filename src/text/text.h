/* text.h: tokenizer, chat template, incremental detokenizer and stop rules.
 * The heavy work (BPE merging, pre-tokenizers, Jinja) is done by the Rust library in text/, bound
 * through text/krt.h; this side checks arguments, owns the vocabulary table and turns ids into
 * bytes. text/ includes base only: the vocabulary reaches it as plain arrays (kri_vocab_desc_t).
 * Threads: a kri_tokenizer_t is immutable after creation and used from any thread; calls that
 * enter the Rust library need 2 MiB of stack. */
#ifndef KRI_TEXT_TEXT_H
#define KRI_TEXT_TEXT_H

#include "kr.h"

/* GGUF token types. */
enum { KRI_TOKEN_NORMAL = 1, KRI_TOKEN_UNKNOWN = 2, KRI_TOKEN_CONTROL = 3,
       KRI_TOKEN_USER_DEFINED = 4, KRI_TOKEN_UNUSED = 5, KRI_TOKEN_BYTE = 6 };

typedef enum kri_vocab_kind_e { KRI_VOCAB_BPE, KRI_VOCAB_SPM } kri_vocab_kind_t;

/* Everything borrowed for the call that creates the tokenizer, except where said. */
typedef struct kri_vocab_desc_s {
    kri_vocab_kind_t kind;      /* tokenizer.ggml.model: "gpt2" = BPE, "llama" = SPM */
    const char *pre;            /* BPE: tokenizer.ggml.pre, C string ("smollm", "qwen2", ...) */
    uint32_t n_tokens;
    const char *text;           /* all token texts, one after another */
    const uint64_t *offsets;    /* [n_tokens + 1] into text */
    const uint8_t *types;       /* [n_tokens] KRI_TOKEN_* */
    const float *scores;        /* [n_tokens], SPM only, else NULL */
    uint64_t n_merges;          /* BPE only */
    const char *merges;         /* merge rules "left right", one after another */
    const uint64_t *merge_offsets; /* [n_merges + 1] */
    kr_token_t bos, eos, eot, unk; /* -1 = none; all below n_tokens (checked by the caller) */
    int32_t add_bos, add_space_prefix; /* 0 or 1 */
} kri_vocab_desc_t;

typedef struct kri_tokenizer_s kri_tokenizer_t;
/* Errors: KR_E_UNSUPPORTED (pre-tokenizer name, named), KR_E_BAD_FORMAT (merge of an unknown
 * token, empty added token, ...), KR_E_LIMIT, KR_E_NOMEM. A probe string is encoded before
 * success is reported. Copies what it needs. */
kr_status_t kri_tokenizer_create(const kri_vocab_desc_t *desc, kri_tokenizer_t **tokenizer,
                                 kr_error_t *error);
/* Over the tables of an earlier tokenizer of the same vocabulary, which outlive this one: of desc
 * only kind, pre, n_tokens, bos, eos and the flags are used. KR_E_BAD_FORMAT: they are none, or of
 * another vocabulary. */
kr_status_t kri_tokenizer_open(const kri_vocab_desc_t *desc, const uint8_t *tables,
                               size_t n_bytes, kri_tokenizer_t **tokenizer, kr_error_t *error);
const uint8_t *kri_tokenizer_tables(const kri_tokenizer_t *tokenizer, size_t *n_bytes);
/* Of their format and of the rules they are made by. */
uint32_t kri_tokenizer_tables_version(void);
void kri_tokenizer_destroy(kri_tokenizer_t *tokenizer);

/* As kr_model_tokenize / kr_model_detokenize / kr_model_token_is_end. is_least NULL: *n_tokens is
 * exact. Else text over 1 MiB that is too long for the capacity whatever its tokens are is not
 * encoded, which can take seconds: *is_least 1 = there are at least *n_tokens. */
kr_status_t kri_tokenizer_encode(const kri_tokenizer_t *tokenizer, const char *text,
                                 size_t n_bytes, uint32_t flags, kr_token_t *tokens,
                                 size_t capacity, size_t *n_tokens, int32_t *is_least,
                                 kr_error_t *error);
kr_status_t kri_tokenizer_decode(const kri_tokenizer_t *tokenizer, const kr_token_t *tokens,
                                 size_t n_tokens, uint32_t flags, char *buf, size_t capacity,
                                 size_t *n_bytes, kr_error_t *error);
int kri_tokenizer_is_end(const kri_tokenizer_t *tokenizer, kr_token_t token);
uint32_t kri_tokenizer_n_tokens(const kri_tokenizer_t *tokenizer);
/* Raw bytes of one token (borrowed); special tokens give their spelling and *is_special = 1. */
const char *kri_tokenizer_token(const kri_tokenizer_t *tokenizer, kr_token_t token,
                                size_t *n_bytes, int *is_special);

/* Chat template: compiled once, rendered per request. KR_E_BAD_TEMPLATE, KR_E_LIMIT. */
typedef struct kri_template_s kri_template_t;
kr_status_t kri_template_create(const char *source, size_t n_bytes,
                                const kri_tokenizer_t *tokenizer, kri_template_t **tmpl,
                                kr_error_t *error);
void kri_template_destroy(kri_template_t *tmpl);
/* As kr_model_chat_tokenize: renders, then encodes so that the spelling of a special token inside
 * a message stays ordinary text. BOS is not doubled when the template itself begins with it.
 * is_least as in encode. */
kr_status_t kri_template_tokenize(const kri_template_t *tmpl, const kr_message_t *messages,
                                  size_t n_messages, uint32_t add_generation_prompt,
                                  kr_token_t *tokens, size_t capacity, size_t *n_tokens,
                                  int32_t *is_least, kr_error_t *error);
/* The rendered text itself (tests, oracle comparison); buf/n_bytes as in decode. */
kr_status_t kri_template_render(const kri_template_t *tmpl, const kr_message_t *messages,
                                size_t n_messages, uint32_t add_generation_prompt, char *buf,
                                size_t capacity, size_t *n_bytes, kr_error_t *error);

/* As kr_detokenizer_*. The tokenizer must outlive it. */
typedef struct kri_detok_s kri_detok_t;
kr_status_t kri_detok_create(const kri_tokenizer_t *tokenizer, const char *const *stops,
                             size_t n_stops, kri_detok_t **detok, kr_error_t *error);
void kri_detok_destroy(kri_detok_t *detok);
kr_status_t kri_detok_push(kri_detok_t *detok, kr_token_t token, const char **text,
                           size_t *n_bytes, int32_t *stopped);
kr_status_t kri_detok_finish(kri_detok_t *detok, const char **text, size_t *n_bytes);
/* Index of the stop string that ended the text; -1 while none has. */
int32_t kri_detok_stop(const kri_detok_t *detok);

#endif

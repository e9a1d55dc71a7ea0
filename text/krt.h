/* krt.h: C ABI of the Rust text library (libkrt.a). Used by src/text only.
 * Statuses are those of kr.h. Text is pointer + length and need not end in NUL; buffers belong to
 * the caller; *n_... receives the size needed, also when it is over the capacity (KR_E_LIMIT).
 * Handles are immutable after creation and may be used from any thread. Calls that compile or
 * render a template recurse and need 2 MiB of stack; no call lets a panic out. */
#ifndef KRT_H
#define KRT_H

#include <stddef.h>
#include <stdint.h>

typedef struct krt_tokenizer_s krt_tokenizer_t;
typedef struct krt_template_s krt_template_t;

typedef struct krt_error_s {
    uint64_t offset;   /* byte offset in the input where known, else UINT64_MAX */
    char message[256]; /* valid UTF-8, NUL-terminated; may hold control bytes */
} krt_error_t;

typedef struct krt_vocab_s {
    const char *text;         /* token texts, one after another */
    const uint64_t *offsets;  /* [n_tokens + 1], ascending from 0 */
    const uint8_t *types;     /* [n_tokens] GGUF token types, + KRT_TOKEN_IS_END */
    const float *scores;      /* [n_tokens]; SentencePiece only */
    const char *decoded;      /* what each token stands for in text, one after another */
    const uint32_t *decoded_offsets; /* [n_tokens + 1], ascending from 0 */
    size_t n_tokens;          /* at least 1 */
    const char *merges;       /* rules "left right", one after another; byte-level BPE only */
    const uint64_t *merge_offsets; /* [n_merges + 1], ascending from 0 */
    size_t n_merges;
    const char *pre;          /* [pre_bytes] name of the pre-tokenizer rule; BPE only */
    size_t pre_bytes;
    int32_t unk;              /* token id or -1 */
    int32_t is_spm;           /* 1: SentencePiece with scores, 0: byte-level BPE */
} krt_vocab_t;

typedef struct krt_message_s {
    const char *role;         /* [role_bytes] */
    size_t role_bytes;
    const char *content;      /* [content_bytes] */
    size_t content_bytes;
} krt_message_t;

/* Tables: all that a tokenizer looks up, as bytes without pointers that may be kept in a file and
 * used from a mapping of it. Counts up with every change of what is in them or how it is derived,
 * also by src/text/vocab.c. */
#define KRT_TABLES_VERSION 1u
#define KRT_TOKEN_TYPE 0x7Fu   /* of a type byte */
#define KRT_TOKEN_IS_END 0x80u /* ends generation */

/* Everything in `vocab` is borrowed for the call; the tables are the caller's to free.
 * KR_E_UNSUPPORTED (pre), KR_E_BAD_FORMAT, KR_E_LIMIT. */
int32_t krt_tables_build(const krt_vocab_t *vocab, uint8_t **tables, size_t *n_bytes,
                         krt_error_t *error);
void krt_tables_free(uint8_t *tables, size_t n_bytes);
/* tables [n_bytes], at any address, stay the caller's and unchanged until the tokenizer is
 * destroyed; `pre` is borrowed for the call. Any bytes may be given: what is not a table is
 * refused, and a wrong one gives wrong tokens, never ids or reads out of bounds. space_prefix, of
 * SentencePiece: a space goes before text that follows no text. A probe is encoded before success
 * is reported. KR_E_BAD_FORMAT, KR_E_UNSUPPORTED (pre). */
int32_t krt_tokenizer_create(const uint8_t *tables, size_t n_bytes, const char *pre,
                             size_t pre_bytes, int32_t is_spm, int32_t space_prefix,
                             krt_tokenizer_t **tokenizer, krt_error_t *error);
void krt_tokenizer_destroy(krt_tokenizer_t *tokenizer);
uint32_t krt_tokenizer_n_tokens(const krt_tokenizer_t *tokenizer);
/* What a token stands for in text (borrowed; empty for ids that are none) and its type byte. */
const char *krt_tokenizer_token(const krt_tokenizer_t *tokenizer, uint32_t id, size_t *n_bytes,
                                uint8_t *type);
/* At most 16 MiB. `bos` (-1 = none) goes in front. Without parse_special no control token is ever
 * produced. KR_E_INVALID_ARG (invalid UTF-8, offset set), KR_E_LIMIT. is_least NULL: *n_ids is how
 * many ids there are. Else text over 1 MiB that cannot fit is not encoded: *is_least 1 = there are
 * at least *n_ids. */
int32_t krt_tokenizer_encode(const krt_tokenizer_t *tokenizer, const char *text, size_t n_bytes,
                             int32_t parse_special, int32_t bos, int32_t *ids, size_t capacity,
                             size_t *n_ids, int32_t *is_least, krt_error_t *error);

/* `bos` and `eos` are the spellings given to the template as bos_token and eos_token.
 * KR_E_BAD_TEMPLATE, KR_E_LIMIT (source over 256 KiB). */
int32_t krt_template_create(const char *source, size_t n_bytes, const char *bos, size_t bos_bytes,
                            const char *eos, size_t eos_bytes, krt_template_t **tmpl,
                            krt_error_t *error);
void krt_template_destroy(krt_template_t *tmpl);
/* At most 2048 messages and 16 MiB of text
 * in them; output at most 16 MiB. KR_E_BAD_TEMPLATE, KR_E_LIMIT, KR_E_INVALID_ARG. */
int32_t krt_template_render(const krt_template_t *tmpl, const krt_tokenizer_t *tokenizer,
                            const krt_message_t *messages, size_t n_messages, int32_t add_prompt,
                            char *text, size_t capacity, size_t *n_bytes, krt_error_t *error);
/* Renders and encodes; control tokens come from the template's own literals only. `bos` (-1 =
 * none) goes in front unless the template itself begins with it. is_least as above. */
int32_t krt_template_encode(const krt_template_t *tmpl, const krt_tokenizer_t *tokenizer,
                            const krt_message_t *messages, size_t n_messages, int32_t add_prompt,
                            int32_t bos, int32_t *ids, size_t capacity, size_t *n_ids,
                            int32_t *is_least, krt_error_t *error);

#endif

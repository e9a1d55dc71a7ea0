/* vocab.h: the table of decoded token bytes with one flag byte per token; private to src/text.
 * Immutable after creation. */
#ifndef KRI_TEXT_VOCAB_H
#define KRI_TEXT_VOCAB_H

#include "text/text.h"

enum {
    KRI_TOKEN_IS_SPECIAL = 1, /* control, unknown or unused: not text, skipped by default */
    KRI_TOKEN_IS_END = 2      /* ends generation */
};

#define KRI_TOKEN_BYTES_MAX (64u << 10)
#define KRI_TOKENS_MAX (4u << 20)

typedef struct kri_vocab_s {
    uint32_t n_tokens;
    char *bytes;        /* decoded bytes of all tokens, one after another */
    uint32_t *offsets;  /* [n_tokens + 1] into bytes */
    uint8_t *flags;     /* [n_tokens] KRI_TOKEN_IS_* */
} kri_vocab_t;

/* Checks the token arrays of desc and decodes them. *types (kri_alloc'd, owned by the caller on
 * success) is desc->types with the tokens that end generation or steer infilling made control
 * tokens, as their spelling demands. KR_E_INVALID_ARG, KR_E_BAD_FORMAT, KR_E_LIMIT, KR_E_NOMEM. */
kr_status_t kri_vocab_init(kri_vocab_t *vocab, const kri_vocab_desc_t *desc, uint8_t **types,
                           kr_error_t *error);
void kri_vocab_deinit(kri_vocab_t *vocab);

#endif

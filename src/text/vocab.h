/* vocab.h: decoded tokens and their types, from which the tokenizer's tables are built; private to
 * src/text. */
#ifndef KRI_TEXT_VOCAB_H
#define KRI_TEXT_VOCAB_H

#include "text/text.h"

#define KRI_TOKEN_BYTES_MAX (64u << 10)
#define KRI_TOKENS_MAX (4u << 20)

typedef struct kri_vocab_s {
    char *bytes;        /* decoded bytes of all tokens, one after another */
    uint32_t *offsets;  /* [n_tokens + 1] into bytes */
    uint8_t *types;     /* [n_tokens] KRI_TOKEN_* as the spelling demands: tokens that end
                         * generation (+ KRT_TOKEN_IS_END) or steer infilling are control tokens */
} kri_vocab_t;

/* Checks the token arrays of desc and decodes them. What is done here is kept in files: a change
 * wants another KRT_TABLES_VERSION. KR_E_INVALID_ARG, KR_E_BAD_FORMAT, KR_E_LIMIT, KR_E_NOMEM. */
kr_status_t kri_vocab_init(kri_vocab_t *vocab, const kri_vocab_desc_t *desc, kr_error_t *error);
void kri_vocab_deinit(kri_vocab_t *vocab);

#endif

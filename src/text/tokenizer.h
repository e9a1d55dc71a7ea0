/* tokenizer.h: the inside of kri_tokenizer_t, for the other files of src/text. */
#ifndef KRI_TEXT_TOKENIZER_H
#define KRI_TEXT_TOKENIZER_H

#include "krt.h"
#include "text/text.h"

struct kri_tokenizer_s {
    krt_tokenizer_t *encoder; /* looks up in the tables */
    uint8_t *built;           /* tables of our own, or NULL when they are the caller's */
    const uint8_t *tables;
    size_t table_bytes;
    uint32_t n_tokens;
    kr_token_t bos, eos;
    int32_t add_bos;
    int32_t strip_space; /* decoding drops the space that encoding puts in front */
};

/* Turns a failure of the Rust library into *error; returns status. */
kr_status_t kri_text_fail(int32_t status, const krt_error_t *failure, const char *param,
                          kr_error_t *error);

#endif

/* utf8.h: strict UTF-8 (Unicode 15, table 3-7): no overlong forms, surrogates, or > U+10FFFF. */
#ifndef KRI_BASE_UTF8_H
#define KRI_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length of the longest valid prefix made of whole characters. */
size_t kri_utf8_valid_prefix(const char *text, size_t n_bytes);
/* 1 if text[0..n) could be the beginning of one valid character that needs more bytes. */
int kri_utf8_is_incomplete(const char *text, size_t n_bytes);
/* Encodes a code point; returns 1..4, or 0 for an invalid one. */
size_t kri_utf8_encode(uint32_t code_point, char out[4]);
/* Decodes one character of valid text; returns its length. Anything else: U+FFFD and 1, so that
 * a loop over it ends; 0 only for n_bytes 0. */
size_t kri_utf8_decode(const char *text, size_t n_bytes, uint32_t *code_point);
/* Makes text[0..n) one line of valid UTF-8 in place, same length: control bytes and bytes of
 * malformed characters become '?'. */
void kri_utf8_clean_line(char *text, size_t n_bytes);

#endif

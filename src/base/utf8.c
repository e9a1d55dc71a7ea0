/* utf8.c: strict UTF-8. Most text is ASCII, so that is skipped eight bytes at a time; the rest is
 * decided by table 3-7 of the Unicode standard: only the second byte has a range that depends on
 * the first one. */
#include "base/utf8.h"

#include <stdbool.h>
#include <string.h>

/* Length of the character that `lead` begins and the range of its second byte; 0 for a byte that
 * begins none. */
static size_t lead_info(unsigned char lead, unsigned char *low, unsigned char *high) {
    *low = 0x80;
    *high = 0xBF;
    if (lead < 0x80) return 1;
    if (lead < 0xC2) return 0; /* continuation bytes, and C0 C1 which only begin overlong forms */
    if (lead < 0xE0) return 2;
    if (lead < 0xF0) {
        if (lead == 0xE0) *low = 0xA0;  /* below: overlong */
        if (lead == 0xED) *high = 0x9F; /* above: surrogates */
        return 3;
    }
    if (lead < 0xF5) {
        if (lead == 0xF0) *low = 0x90;  /* below: overlong */
        if (lead == 0xF4) *high = 0x8F; /* above: over U+10FFFF */
        return 4;
    }
    return 0;
}

/* Bytes at the front that belong to one character, as far as they go: *n_needed is its whole
 * length (0: no character begins so), the result how many of them are there and right. */
static size_t match(const unsigned char *text, size_t n_bytes, size_t *n_needed) {
    unsigned char low, high;
    *n_needed = n_bytes == 0 ? 0 : lead_info(text[0], &low, &high);
    if (*n_needed <= 1) return *n_needed;
    size_t n_right = 1;
    while (n_right < *n_needed && n_right < n_bytes) {
        if (text[n_right] < low || text[n_right] > high) break;
        low = 0x80;
        high = 0xBF;
        n_right++;
    }
    return n_right;
}

static size_t skip_ascii(const unsigned char *text, size_t n_bytes, size_t at) {
    while (n_bytes - at >= sizeof(uint64_t)) {
        uint64_t eight;
        memcpy(&eight, text + at, sizeof eight);
        if ((eight & UINT64_C(0x8080808080808080)) != 0) break;
        at += sizeof eight;
    }
    while (at < n_bytes && text[at] < 0x80) at++;
    return at;
}

size_t kri_utf8_valid_prefix(const char *text, size_t n_bytes) {
    const unsigned char *bytes = (const unsigned char *)text;
    size_t at = 0;
    for (;;) {
        at = skip_ascii(bytes, n_bytes, at);
        if (at == n_bytes) return at;
        size_t n_needed;
        if (match(bytes + at, n_bytes - at, &n_needed) != n_needed || n_needed == 0) return at;
        at += n_needed;
    }
}

int kri_utf8_is_incomplete(const char *text, size_t n_bytes) {
    size_t n_needed;
    const size_t n_right = match((const unsigned char *)text, n_bytes, &n_needed);
    return n_needed > 1 && n_right == n_bytes && n_right < n_needed;
}

size_t kri_utf8_encode(uint32_t code_point, char out[4]) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = (char)(0xC0 | (code_point >> 6));
        out[1] = (char)(0x80 | (code_point & 0x3F));
        return 2;
    }
    if (code_point < 0x10000) {
        if (code_point >= 0xD800 && code_point <= 0xDFFF) return 0;
        out[0] = (char)(0xE0 | (code_point >> 12));
        out[1] = (char)(0x80 | ((code_point >> 6) & 0x3F));
        out[2] = (char)(0x80 | (code_point & 0x3F));
        return 3;
    }
    if (code_point > 0x10FFFF) return 0;
    out[0] = (char)(0xF0 | (code_point >> 18));
    out[1] = (char)(0x80 | ((code_point >> 12) & 0x3F));
    out[2] = (char)(0x80 | ((code_point >> 6) & 0x3F));
    out[3] = (char)(0x80 | (code_point & 0x3F));
    return 4;
}

size_t kri_utf8_decode(const char *text, size_t n_bytes, uint32_t *code_point) {
    const unsigned char *bytes = (const unsigned char *)text;
    size_t n_needed;
    if (n_bytes == 0) return 0;
    if (match(bytes, n_bytes, &n_needed) != n_needed || n_needed == 0) {
        *code_point = 0xFFFD;
        return 1;
    }
    if (n_needed == 1) {
        *code_point = bytes[0];
        return 1;
    }
    /* A lead byte of n bytes carries 7 - n bits, each further byte 6. */
    uint32_t value = bytes[0] & (0x7Fu >> n_needed);
    for (size_t i = 1; i < n_needed; i++) value = (value << 6) | (bytes[i] & 0x3Fu);
    *code_point = value;
    return n_needed;
}

void kri_utf8_clean_line(char *text, size_t n_bytes) {
    size_t at = 0;
    while (at < n_bytes) {
        uint32_t code_point;
        const size_t n = kri_utf8_decode(text + at, n_bytes - at, &code_point);
        const bool malformed = n == 1 && (unsigned char)text[at] >= 0x80;
        if (malformed || code_point < 0x20 || code_point == 0x7F) text[at] = '?';
        at += n;
    }
}

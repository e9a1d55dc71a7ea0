/* parser.c: the lines of a head. A state machine over single bytes: positions are kept, nothing is
 * looked at twice, and a head that arrives in one byte a packet costs the same. What the fields
 * mean is check.c's. */
#include "server/http/parser.h"

#include <string.h>

enum head_state_e {
    HEAD_BEGIN,       /* one empty line before the request is forgiven (RFC 9112, 2.2) */
    HEAD_BEGIN_LF,
    HEAD_METHOD_BEGIN,
    HEAD_METHOD,
    HEAD_TARGET,
    HEAD_VERSION,
    HEAD_MINOR,
    HEAD_LINE_CR,
    HEAD_LINE_LF,
    HEAD_FIELD_BEGIN,
    HEAD_NAME,
    HEAD_VALUE_BEGIN,
    HEAD_VALUE,
    HEAD_VALUE_LF,
    HEAD_END_LF,
    HEAD_DONE,
    HEAD_BAD,
};

/* Bytes of a token (RFC 9110, 5.6.2), as bits. */
static const uint32_t token_bits[8] = {
    0x00000000u, 0x03ff6cfau, /* ! # $ % & ' * + - . 0-9 */
    0xc7fffffeu, 0x57ffffffu, /* A-Z ^ _ ` a-z | ~ */
    0, 0, 0, 0,
};

bool http_is_token_byte(unsigned char c) { return token_bits[c >> 5] >> (c & 31) & 1; }

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c; }

bool http_text_equals(const char *text, size_t n_bytes, const char *word) {
    if (strlen(word) != n_bytes) return false;
    for (size_t i = 0; i < n_bytes; i++) {
        if (lower(text[i]) != lower(word[i])) return false;
    }
    return true;
}

void http_head_init(http_head_t *head, uint32_t line_bytes, uint32_t head_bytes,
                    uint32_t n_fields_max) {
    memset(head, 0, sizeof *head);
    head->line_bytes = line_bytes;
    head->head_bytes = head_bytes;
    head->n_fields_max = n_fields_max < HTTP_FIELDS_MAX ? n_fields_max : HTTP_FIELDS_MAX;
    head->state = HEAD_BEGIN;
}

static void refuse(http_head_t *head, int status, const char *code, const char *message) {
    head->refusal = (http_refusal_t){status, code, message};
    head->state = HEAD_BAD;
}

static void bad_line(http_head_t *head, const char *message) {
    refuse(head, 400, "invalid_request_line", message);
}

static void bad_field(http_head_t *head, const char *message) {
    refuse(head, 400, "invalid_header", message);
}

static void end_slice(const http_head_t *head, http_slice_t *slice) {
    slice->n_bytes = head->at - slice->at;
}

/* The request line, one byte. */
static void take_line(http_head_t *head, unsigned char c) {
    static const char version[] = "HTTP/1.";
    switch (head->state) {
    case HEAD_METHOD_BEGIN:
        head->method.at = head->line_at = head->at;
        head->state = HEAD_METHOD;
        /* fall through */
    case HEAD_METHOD:
        if (http_is_token_byte(c)) {
            if (head->at - head->method.at == HTTP_METHOD_BYTES_MAX) {
                bad_line(head, "the method is longer than 32 bytes");
            }
            return;
        }
        end_slice(head, &head->method);
        if (c != ' ' || head->method.n_bytes == 0) {
            bad_line(head, "the request line does not begin with a method and one space");
            return;
        }
        head->target.at = head->at + 1;
        head->state = HEAD_TARGET;
        return;
    case HEAD_TARGET:
        if (c > 0x20 && c < 0x7f) return;
        end_slice(head, &head->target);
        if (c != ' ') bad_line(head, "the request target is not followed by a space and a version");
        else if (head->target.n_bytes == 0) bad_line(head, "the request target is empty");
        else head->state = HEAD_VERSION;
        return;
    case HEAD_VERSION: {
        const uint32_t i = head->at - (head->target.at + head->target.n_bytes + 1);
        if (c != (unsigned char)version[i]) {
            refuse(head, i == 5 && c >= '0' && c <= '9' ? 505 : 400, "unsupported_http_version",
                   "the version of the request is not HTTP/1.1 or HTTP/1.0");
        } else if (i + 1 == sizeof version - 1) {
            head->state = HEAD_MINOR;
        }
        return;
    }
    case HEAD_MINOR:
        head->minor = (uint32_t)(c - '0');
        head->state = HEAD_LINE_CR;
        if (c == '0' || c == '1') return;
        refuse(head, c >= '0' && c <= '9' ? 505 : 400, "unsupported_http_version",
               "the version of the request is not HTTP/1.1 or HTTP/1.0");
        return;
    case HEAD_LINE_CR:
        head->state = HEAD_LINE_LF;
        if (c != '\r') bad_line(head, "the version is not followed by CR LF");
        return;
    default: /* HEAD_LINE_LF */
        head->block_at = head->at + 1;
        head->state = HEAD_FIELD_BEGIN;
        if (c != '\n') bad_line(head, "CR without LF in the request line");
        return;
    }
}

static void begin_field(http_head_t *head, unsigned char c) {
    head->line_at = head->at;
    if (c == '\r') {
        head->state = HEAD_END_LF;
    } else if (c == ' ' || c == '\t') {
        bad_field(head, "a header line begins with white space (folding is not supported)");
    } else if (!http_is_token_byte(c)) {
        bad_field(head, "a header line does not begin with a name");
    } else if (head->n_fields == head->n_fields_max) {
        refuse(head, 431, "headers_too_large", "too many header lines");
    } else {
        head->fields[head->n_fields].name.at = head->at;
        head->state = HEAD_NAME;
    }
}

/* Field lines, one byte. */
static void take_field(http_head_t *head, unsigned char c) {
    http_slice_t *name = &head->fields[head->n_fields % HTTP_FIELDS_MAX].name;
    http_slice_t *value = &head->fields[head->n_fields % HTTP_FIELDS_MAX].value;
    switch (head->state) {
    case HEAD_FIELD_BEGIN: begin_field(head, c); return;
    case HEAD_NAME:
        if (http_is_token_byte(c)) return;
        end_slice(head, name);
        head->state = HEAD_VALUE_BEGIN;
        if (c != ':') bad_field(head, "a header name has a byte that is not allowed in it");
        return;
    case HEAD_VALUE_BEGIN:
        if (c == ' ' || c == '\t') return;
        value->at = head->at;
        value->n_bytes = 0; /* grows with each byte that is not white space */
        head->state = HEAD_VALUE;
        /* fall through */
    case HEAD_VALUE:
        if (c == '\r') head->state = HEAD_VALUE_LF;
        else if ((c < 0x20 && c != '\t') || c == 0x7f) {
            bad_field(head, "a header value has a control byte");
        } else if (c != ' ' && c != '\t') {
            value->n_bytes = head->at + 1 - value->at;
        }
        return;
    case HEAD_VALUE_LF:
        head->n_fields++;
        head->state = HEAD_FIELD_BEGIN;
        if (c != '\n') bad_field(head, "CR without LF in a header line");
        return;
    default: /* HEAD_END_LF */
        head->state = HEAD_DONE;
        if (c != '\n') bad_field(head, "CR without LF at the end of the headers");
        return;
    }
}

/* Bytes of a line that its end does not count towards its limit. */
static bool is_over_line(const http_head_t *head, unsigned char c) {
    return c != '\r' && c != '\n' && head->at - head->line_at >= head->line_bytes;
}

static void take(http_head_t *head, unsigned char c) {
    if (head->state == HEAD_BEGIN) {
        head->state = c == '\r' ? HEAD_BEGIN_LF : HEAD_METHOD_BEGIN;
        if (c == '\r') return;
    } else if (head->state == HEAD_BEGIN_LF) {
        head->state = HEAD_METHOD_BEGIN;
        if (c != '\n') bad_line(head, "CR without LF before the request line");
        return;
    }
    if (head->state < HEAD_FIELD_BEGIN) {
        if (head->state > HEAD_METHOD_BEGIN && is_over_line(head, c)) {
            refuse(head, 414, "uri_too_long", "the request line is too long");
            return;
        }
        take_line(head, c);
        return;
    }
    if (head->state != HEAD_FIELD_BEGIN && is_over_line(head, c)) {
        refuse(head, 431, "headers_too_large", "a header line is too long");
        return;
    }
    /* The empty line at the end is not part of the block. */
    const bool is_end = head->state == HEAD_END_LF ||
                        (head->state == HEAD_FIELD_BEGIN && c == '\r');
    if (!is_end && head->at - head->block_at >= head->head_bytes) {
        refuse(head, 431, "headers_too_large", "the headers together are too long");
        return;
    }
    take_field(head, c);
}

http_parse_t http_head_feed(http_head_t *head, const char *data, size_t n_bytes, size_t *n_used) {
    size_t i = 0;
    while (i < n_bytes && head->state < HEAD_DONE) {
        take(head, (unsigned char)data[i++]);
        head->at++;
    }
    *n_used = i;
    if (head->state == HEAD_BAD) return HTTP_PARSE_BAD;
    return head->state == HEAD_DONE ? HTTP_PARSE_DONE : HTTP_PARSE_MORE;
}

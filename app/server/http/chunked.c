/* chunked.c: the chunked coding (RFC 9112, 7.1), byte by byte outside the data. Stricter than the
 * RFC in one place: no white space around an extension, which only lenient senders write. */
#include <string.h>

#include "server/http/parser.h"

enum chunk_state_e {
    CHUNK_SIZE_BEGIN,
    CHUNK_SIZE,
    CHUNK_EXT_NAME_BEGIN,
    CHUNK_EXT_NAME,
    CHUNK_EXT_VALUE_BEGIN,
    CHUNK_EXT_VALUE,
    CHUNK_EXT_QUOTED,
    CHUNK_EXT_PAIR,
    CHUNK_EXT_QUOTED_END,
    CHUNK_LINE_LF,
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    CHUNK_TRAILER_BEGIN,
    CHUNK_TRAILER_NAME,
    CHUNK_TRAILER_VALUE,
    CHUNK_TRAILER_LF,
    CHUNK_END_LF,
    CHUNK_DONE,
    CHUNK_BAD,
};

void http_chunked_init(http_chunked_t *chunked, uint64_t n_body_max) {
    memset(chunked, 0, sizeof *chunked);
    chunked->state = CHUNK_SIZE_BEGIN;
    chunked->n_body_max = n_body_max;
}

static void refuse(http_chunked_t *chunked, int status, const char *code, const char *message) {
    chunked->refusal = (http_refusal_t){status, code, message};
    chunked->state = CHUNK_BAD;
}

static void bad(http_chunked_t *chunked, const char *message) {
    refuse(chunked, 400, "invalid_chunk", message);
}

static void too_large(http_chunked_t *chunked) {
    refuse(chunked, 413, "body_too_large", "the body is too large");
}

static int hex_digit(unsigned char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static void take_size(http_chunked_t *chunked, unsigned char c) {
    const int digit = hex_digit(c);
    if (digit >= 0) {
        chunked->state = CHUNK_SIZE;
        if (chunked->size > UINT64_MAX >> 4) too_large(chunked);
        else chunked->size = chunked->size << 4 | (uint64_t)digit;
    } else if (chunked->state == CHUNK_SIZE_BEGIN) {
        bad(chunked, "a chunk does not begin with its size in hex digits");
    } else if (c == ';') {
        chunked->state = CHUNK_EXT_NAME_BEGIN;
    } else if (c == '\r') {
        chunked->state = CHUNK_LINE_LF;
    } else {
        bad(chunked, "a chunk size is not hex digits alone");
    }
}

/* RFC 9110, 5.6.4. */
static bool is_quoted_byte(unsigned char c) {
    return c == '\t' || (c >= 0x20 && c != 0x7f);
}

/* After a name or a value: another extension, or the end of the line. False: neither. */
static bool take_extension_end(http_chunked_t *chunked, unsigned char c) {
    if (c == ';') chunked->state = CHUNK_EXT_NAME_BEGIN;
    else if (c == '\r') chunked->state = CHUNK_LINE_LF;
    else return false;
    return true;
}

static void take_extension(http_chunked_t *chunked, unsigned char c) {
    bool is_good = true;
    const bool is_token = http_is_token_byte(c);
    switch (chunked->state) {
    case CHUNK_EXT_NAME_BEGIN:
        is_good = is_token;
        chunked->state = CHUNK_EXT_NAME;
        break;
    case CHUNK_EXT_NAME:
        if (c == '=') chunked->state = CHUNK_EXT_VALUE_BEGIN;
        else is_good = is_token || take_extension_end(chunked, c);
        break;
    case CHUNK_EXT_VALUE_BEGIN:
        is_good = is_token || c == '"';
        chunked->state = c == '"' ? CHUNK_EXT_QUOTED : CHUNK_EXT_VALUE;
        break;
    case CHUNK_EXT_VALUE: is_good = is_token || take_extension_end(chunked, c); break;
    case CHUNK_EXT_QUOTED:
        if (c == '"') chunked->state = CHUNK_EXT_QUOTED_END;
        else if (c == '\\') chunked->state = CHUNK_EXT_PAIR;
        else is_good = is_quoted_byte(c);
        break;
    case CHUNK_EXT_PAIR:
        is_good = is_quoted_byte(c);
        chunked->state = CHUNK_EXT_QUOTED;
        break;
    default: is_good = take_extension_end(chunked, c); break; /* CHUNK_EXT_QUOTED_END */
    }
    if (!is_good) bad(chunked, "a chunk extension is malformed");
}

/* The LF of a chunk's line: the size is known. */
static void end_line(http_chunked_t *chunked, unsigned char c) {
    chunked->n_line = 0;
    if (c != '\n') {
        bad(chunked, "CR without LF in a chunk's line");
    } else if (chunked->size == 0) {
        chunked->state = CHUNK_TRAILER_BEGIN;
    } else if (chunked->size > chunked->n_body_max - chunked->n_body) {
        too_large(chunked);
    } else {
        chunked->n_body += chunked->size;
        chunked->state = CHUNK_DATA;
    }
}

static void take_trailer(http_chunked_t *chunked, unsigned char c) {
    switch (chunked->state) {
    case CHUNK_TRAILER_BEGIN:
        if (c == '\r') {
            chunked->state = CHUNK_END_LF;
        } else if (!http_is_token_byte(c)) {
            bad(chunked, "a trailer does not begin with a name");
        } else if (chunked->n_trailers++ == HTTP_TRAILERS_MAX) {
            bad(chunked, "too many trailers");
        } else {
            chunked->state = CHUNK_TRAILER_NAME;
        }
        return;
    case CHUNK_TRAILER_NAME:
        if (c == ':') chunked->state = CHUNK_TRAILER_VALUE;
        else if (!http_is_token_byte(c)) bad(chunked, "a trailer's name is malformed");
        return;
    case CHUNK_TRAILER_VALUE:
        if (c == '\r') chunked->state = CHUNK_TRAILER_LF;
        else if (!is_quoted_byte(c)) bad(chunked, "a trailer has a control byte");
        return;
    case CHUNK_TRAILER_LF:
        chunked->state = CHUNK_TRAILER_BEGIN;
        if (c != '\n') bad(chunked, "CR without LF in a trailer");
        return;
    default: /* CHUNK_END_LF */
        chunked->state = CHUNK_DONE;
        if (c != '\n') bad(chunked, "CR without LF after the last chunk");
        return;
    }
}

/* One byte that is not data. */
static void take(http_chunked_t *chunked, unsigned char c) {
    const uint32_t state = chunked->state;
    if (state < CHUNK_LINE_LF) {
        if (c != '\r' && ++chunked->n_line > HTTP_CHUNK_LINE_BYTES_MAX) {
            bad(chunked, "a chunk's line is too long");
            return;
        }
        if (state <= CHUNK_SIZE) {
            take_size(chunked, c);
            return;
        }
        if (c != '\r' && ++chunked->n_extensions > HTTP_EXTENSION_BYTES_MAX) {
            bad(chunked, "the chunk extensions together are too long");
            return;
        }
        take_extension(chunked, c);
    } else if (state == CHUNK_LINE_LF) {
        end_line(chunked, c);
    } else if (state == CHUNK_DATA_CR) {
        chunked->state = CHUNK_DATA_LF;
        if (c != '\r') bad(chunked, "a chunk is longer than its size says");
    } else if (state == CHUNK_DATA_LF) {
        chunked->state = CHUNK_SIZE_BEGIN;
        if (c != '\n') bad(chunked, "CR without LF after a chunk");
    } else {
        const bool is_end = state == CHUNK_END_LF || (state == CHUNK_TRAILER_BEGIN && c == '\r');
        if (!is_end && ++chunked->n_trailer_bytes > HTTP_TRAILER_BYTES_MAX) {
            bad(chunked, "the trailers together are too long");
            return;
        }
        take_trailer(chunked, c);
    }
}

http_parse_t http_chunked_feed(http_chunked_t *chunked, const char *data, size_t n_bytes,
                               size_t *n_used, size_t *data_at, size_t *n_data) {
    size_t i = 0;
    *data_at = *n_data = 0;
    while (i < n_bytes && chunked->state < CHUNK_DONE) {
        if (chunked->state != CHUNK_DATA) {
            take(chunked, (unsigned char)data[i++]);
            continue;
        }
        const size_t n_here = n_bytes - i < chunked->size ? n_bytes - i : (size_t)chunked->size;
        *data_at = i;
        *n_data = n_here;
        chunked->size -= n_here;
        if (chunked->size == 0) chunked->state = CHUNK_DATA_CR;
        i += n_here;
        break;
    }
    *n_used = i;
    if (chunked->state == CHUNK_BAD) return HTTP_PARSE_BAD;
    return chunked->state == CHUNK_DONE ? HTTP_PARSE_DONE : HTTP_PARSE_MORE;
}

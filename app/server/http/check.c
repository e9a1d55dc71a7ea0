/* check.c: what the lines of a head mean: target, Host, framing, connection, expectation. Each of
 * these is refused when it can be read in two ways: what stands before this server (a proxy, a
 * cache) may read it in the other. */
#include <string.h>

#include "base/utf8.h"
#include "server/http/parser.h"

typedef struct view_s {
    const char *data;
    size_t n_bytes;
} view_t;

static bool refuse(http_head_t *head, int status, const char *code, const char *message) {
    head->refusal = (http_refusal_t){status, code, message};
    return false;
}

static bool bad_framing(http_head_t *head, const char *message) {
    return refuse(head, 400, "invalid_framing", message);
}

/* How many fields have this name; the last one's value. */
static uint32_t find(const http_head_t *head, const char *text, const char *name, view_t *value) {
    uint32_t n_found = 0;
    for (uint32_t i = 0; i < head->n_fields; i++) {
        const http_slice_t at = head->fields[i].name;
        if (!http_text_equals(text + at.at, at.n_bytes, name)) continue;
        *value = (view_t){text + head->fields[i].value.at, head->fields[i].value.n_bytes};
        n_found++;
    }
    return n_found;
}

/* ---- target ---------------------------------------------------------------------------------- */

static bool bad_target(http_head_t *head, const char *message) {
    return refuse(head, 400, "invalid_target", message);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* RFC 3986, 3.3: pchar and '/', without '%'. */
static bool is_path_byte(char c) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) return true;
    return c != '\0' && strchr("/-._~!$&'()*+,;=:@", c) != NULL;
}

/* Decodes the path in place. */
static bool decode_path(http_head_t *head, char *path, size_t n_bytes, size_t *n_decoded) {
    size_t n_out = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = path[i];
        if (c == '%') {
            if (n_bytes - i < 3 || hex_digit(path[i + 1]) < 0 || hex_digit(path[i + 2]) < 0) {
                return bad_target(head, "the path has a '%' that two hex digits do not follow");
            }
            c = (char)(hex_digit(path[i + 1]) * 16 + hex_digit(path[i + 2]));
            i += 2;
            if ((unsigned char)c < 0x20 || c == 0x7f) {
                return bad_target(head, "the path has a control byte");
            }
        } else if (!is_path_byte(c)) {
            return bad_target(head, "the path has a byte that must be percent-encoded");
        }
        path[n_out++] = c;
    }
    *n_decoded = n_out;
    return true;
}

/* Looked at after decoding: routes and access see the same text. */
static bool check_segments(http_head_t *head, const char *path, size_t n_bytes) {
    for (size_t at = 0; at < n_bytes;) { /* at: a '/' */
        size_t end = at + 1;
        while (end < n_bytes && path[end] != '/') end++;
        const size_t n_segment = end - at - 1;
        if (n_segment == 0 && end < n_bytes) {
            return bad_target(head, "the path has an empty segment");
        }
        if ((n_segment == 1 && path[at + 1] == '.') ||
            (n_segment == 2 && path[at + 1] == '.' && path[at + 2] == '.')) {
            return bad_target(head, "the path has a segment \".\" or \"..\"");
        }
        at = end;
    }
    if (kri_utf8_valid_prefix(path, n_bytes) != n_bytes) {
        return bad_target(head, "the path is not valid UTF-8");
    }
    return true;
}

static bool check_target(http_head_t *head, char *text) {
    char *target = text + head->target.at;
    if (target[0] != '/') return bad_target(head, "the request target does not begin with '/'");
    size_t n_path = 0;
    while (n_path < head->target.n_bytes && target[n_path] != '?') n_path++;
    head->query = (http_slice_t){head->target.at + head->target.n_bytes, 0};
    if (n_path < head->target.n_bytes) {
        head->query.at = head->target.at + (uint32_t)n_path + 1;
        head->query.n_bytes = head->target.n_bytes - (uint32_t)n_path - 1;
    }
    for (uint32_t i = 0; i < head->query.n_bytes; i++) {
        if (strchr("#\"<>\\^`{|}", text[head->query.at + i]) != NULL) {
            return bad_target(head, "the query has a byte that must be percent-encoded");
        }
    }
    size_t n_decoded = 0;
    if (!decode_path(head, target, n_path, &n_decoded)) return false;
    head->path = (http_slice_t){head->target.at, (uint32_t)n_decoded};
    return check_segments(head, target, n_decoded);
}

/* ---- Host ------------------------------------------------------------------------------------ */

static bool is_host_byte(char c, bool is_bracketed) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) return true;
    return c == '.' || (is_bracketed ? c == ':' : c == '-' || c == '_');
}

/* A name, an IPv4 address or a bracketed IPv6 address, and a port or none. */
static bool is_host(view_t host) {
    const char *end = host.data + host.n_bytes;
    const char *at = host.data;
    const bool is_bracketed = host.n_bytes > 0 && *at == '[';
    if (is_bracketed) at++;
    const char *name = at;
    while (at < end && is_host_byte(*at, is_bracketed)) at++;
    if (at == name) return false;
    if (is_bracketed && (at == end || *at++ != ']')) return false;
    if (at == end) return true;
    if (*at++ != ':') return false;
    uint32_t port = 0, n_digits = 0;
    for (; at < end && *at >= '0' && *at <= '9' && n_digits < 6; at++, n_digits++) {
        port = port * 10 + (uint32_t)(*at - '0');
    }
    return at == end && n_digits > 0 && n_digits < 6 && port <= 65535;
}

static bool check_host(http_head_t *head, const char *text) {
    view_t host = {0};
    const uint32_t n_hosts = find(head, text, "host", &host);
    if (n_hosts == 0 && head->minor == 0) return true;
    if (n_hosts == 0) return refuse(head, 400, "invalid_host", "the Host header is missing");
    if (n_hosts > 1) return refuse(head, 400, "invalid_host", "more than one Host header");
    if (!is_host(host)) {
        return refuse(head, 400, "invalid_host", "the Host header is not a name and a port");
    }
    return true;
}

/* ---- framing --------------------------------------------------------------------------------- */

static bool check_coding(http_head_t *head, view_t value, uint32_t n_codings) {
    if (head->minor == 0) return bad_framing(head, "Transfer-Encoding in an HTTP/1.0 request");
    if (n_codings == 1 && http_text_equals(value.data, value.n_bytes, "chunked")) {
        head->is_chunked = true;
        return true;
    }
    /* One other coding by name is unknown; all else is a list that may end in any way. */
    bool is_name = n_codings == 1 && value.n_bytes > 0;
    for (size_t i = 0; i < value.n_bytes; i++) {
        is_name = is_name && http_is_token_byte((unsigned char)value.data[i]);
    }
    static const char chunked_last[] = ", chunked";
    const size_t n_last = sizeof chunked_last - 1;
    if (n_codings == 1 && value.n_bytes > n_last &&
        http_text_equals(value.data + value.n_bytes - n_last, n_last, chunked_last)) {
        is_name = true;
        for (size_t i = 0; i < value.n_bytes - n_last; i++) {
            is_name = is_name && http_is_token_byte((unsigned char)value.data[i]);
        }
        if (http_text_equals(value.data, value.n_bytes - n_last, "chunked")) is_name = false;
    }
    if (is_name) {
        return refuse(head, 501, "unsupported_transfer_coding",
                      "the only transfer coding is \"chunked\"");
    }
    return bad_framing(head, "Transfer-Encoding is not exactly \"chunked\"");
}

static bool check_framing(http_head_t *head, const char *text) {
    view_t length = {0}, coding = {0};
    const uint32_t n_lengths = find(head, text, "content-length", &length);
    const uint32_t n_codings = find(head, text, "transfer-encoding", &coding);
    if (n_lengths > 0 && n_codings > 0) {
        return bad_framing(head, "both Content-Length and Transfer-Encoding");
    }
    if (n_codings > 0) return check_coding(head, coding, n_codings);
    if (n_lengths == 0) return true;
    if (n_lengths > 1) return bad_framing(head, "more than one Content-Length");
    if (length.n_bytes < 1 || length.n_bytes > 19) {
        return bad_framing(head, "Content-Length is not a number of 1 to 19 digits");
    }
    uint64_t value = 0; /* 19 digits fit */
    for (size_t i = 0; i < length.n_bytes; i++) {
        if (length.data[i] < '0' || length.data[i] > '9') {
            return bad_framing(head, "Content-Length is not a number of 1 to 19 digits");
        }
        value = value * 10 + (uint64_t)(length.data[i] - '0');
    }
    head->body_declared = value;
    return true;
}

/* ---- connection and expectation -------------------------------------------------------------- */

/* One element of a Connection list, without white space around it. */
static bool take_option(http_head_t *head, const char *option, size_t n_bytes, bool *closes) {
    for (size_t i = 0; i < n_bytes; i++) {
        if (!http_is_token_byte((unsigned char)option[i])) {
            return refuse(head, 400, "invalid_header", "Connection is not a list of names");
        }
    }
    if (http_text_equals(option, n_bytes, "close")) *closes = true;
    if (http_text_equals(option, n_bytes, "keep-alive")) head->is_keep_alive = true;
    return true;
}

static bool check_connection(http_head_t *head, const char *text) {
    bool closes = false;
    head->is_keep_alive = head->minor == 1;
    for (uint32_t i = 0; i < head->n_fields; i++) {
        const http_slice_t name = head->fields[i].name, value = head->fields[i].value;
        if (!http_text_equals(text + name.at, name.n_bytes, "connection")) continue;
        const char *at = text + value.at, *end = at + value.n_bytes;
        while (at <= end) {
            const char *stop = at;
            while (stop < end && *stop != ',') stop++;
            const char *last = stop;
            while (at < last && (*at == ' ' || *at == '\t')) at++;
            while (last > at && (last[-1] == ' ' || last[-1] == '\t')) last--;
            if (!take_option(head, at, (size_t)(last - at), &closes)) return false;
            at = stop + 1;
        }
    }
    if (closes) head->is_keep_alive = false;
    return true;
}

static bool check_expectation(http_head_t *head, const char *text) {
    view_t value = {0};
    const uint32_t n_found = find(head, text, "expect", &value);
    if (n_found == 0) return true;
    if (n_found > 1 || !http_text_equals(value.data, value.n_bytes, "100-continue")) {
        return refuse(head, 417, "expectation_failed",
                      "the only expectation that is met is \"100-continue\"");
    }
    head->expects_continue = head->minor == 1; /* RFC 9110, 10.1.1: a 1.0 client cannot mean it */
    return true;
}

bool http_head_check(http_head_t *head, char *text) {
    /* Framing first: after a refusal there the connection cannot go on. */
    return check_framing(head, text) && check_target(head, text) && check_host(head, text) &&
           check_connection(head, text) && check_expectation(head, text);
}

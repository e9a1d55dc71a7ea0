/* access.c: Host and Origin. */
#include "access.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#define NAME_BYTES_MAX 255u

static char to_lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c; }

/* Names of hosts and schemes are compared without regard to case. */
static bool is_same(http_text_t text, const char *wanted) {
    if (text.n_bytes != strlen(wanted)) return false;
    for (size_t i = 0; i < text.n_bytes; i++) {
        if (to_lower(text.data[i]) != to_lower(wanted[i])) return false;
    }
    return true;
}

static bool is_digits(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
    }
    return true;
}

/* "name", "name:port", "[v6]:port" -> the name without port and brackets. False: none of these. */
static bool split_host(http_text_t text, http_text_t *name, bool *is_v6) {
    const bool is_bracketed = text.n_bytes > 0 && text.data[0] == '[';
    const char *end = is_bracketed ? memchr(text.data, ']', text.n_bytes)
                                   : memchr(text.data, ':', text.n_bytes);
    if (is_bracketed && end == NULL) return false;
    const size_t n = end != NULL ? (size_t)(end - text.data) : text.n_bytes;
    const size_t n_skip = is_bracketed ? 1 : 0;
    *name = (http_text_t){text.data + n_skip, n - n_skip};
    *is_v6 = is_bracketed;
    if (name->n_bytes == 0 || name->n_bytes > NAME_BYTES_MAX) return false;
    const size_t rest = n + n_skip;
    if (rest >= text.n_bytes) return true;
    const size_t n_port = text.n_bytes - rest - 1;
    return text.data[rest] == ':' && n_port <= 5 && is_digits(text.data + rest + 1, n_port);
}

static bool is_numeric(http_text_t name, bool is_v6) {
    char text[NAME_BYTES_MAX + 1];
    unsigned char address[16];
    memcpy(text, name.data, name.n_bytes);
    text[name.n_bytes] = '\0';
    return inet_pton(is_v6 ? AF_INET6 : AF_INET, text, address) == 1;
}

bool access_is_loopback(const char *host) {
    unsigned char address[16];
    if (strcmp(host, "localhost") == 0) return true;
    if (inet_pton(AF_INET, host, address) == 1) return address[0] == 127;
    static const unsigned char one[16] = {[15] = 1};
    return inet_pton(AF_INET6, host, address) == 1 && memcmp(address, one, sizeof one) == 0;
}

static bool is_name_byte(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           c == '-' || c == '.' || c == '_';
}

bool access_is_host_name(const char *name) {
    const size_t n = strlen(name);
    for (size_t i = 0; i < n; i++) {
        if (!is_name_byte(name[i])) return false;
    }
    return n >= 1 && n <= NAME_BYTES_MAX;
}

bool access_is_origin(const char *origin) {
    const char *host = strstr(origin, "://");
    if (host == NULL || host == origin) return false;
    for (const char *c = origin; c < host; c++) {
        if (!is_name_byte(*c) && *c != '+') return false;
    }
    const http_text_t text = {host + 3, strlen(host + 3)};
    http_text_t name;
    bool is_v6 = false;
    if (!split_host(text, &name, &is_v6)) return false;
    if (is_v6) return is_numeric(name, true);
    for (size_t i = 0; i < name.n_bytes; i++) {
        if (!is_name_byte(name.data[i])) return false;
    }
    return true;
}

static bool is_host_allowed(const server_t *server, http_text_t host) {
    http_text_t name;
    bool is_v6 = false;
    if (!split_host(host, &name, &is_v6)) return false;
    if (is_v6) {
        if (is_same(name, "::1")) return true;
    } else if (is_same(name, "localhost") || is_same(name, "127.0.0.1")) {
        return true;
    }
    if (is_same(name, server->host)) return true;
    if (!server->is_loopback && is_numeric(name, is_v6)) return true;
    for (uint32_t i = 0; i < server->n_allowed_hosts && !is_v6; i++) {
        if (is_same(name, server->allowed_hosts[i])) return true;
    }
    return false;
}

static bool is_origin_allowed(const server_t *server, http_text_t origin, http_text_t host) {
    for (uint32_t i = 0; i < server->n_allowed_origins; i++) {
        if (is_same(origin, server->allowed_origins[i])) return true;
    }
    const char *scheme = server->is_tls ? "https://" : "http://";
    const size_t n_scheme = strlen(scheme);
    if (host.n_bytes == 0 || origin.n_bytes != n_scheme + host.n_bytes) return false;
    const http_text_t begin = {origin.data, n_scheme};
    return is_same(begin, scheme) &&
           memcmp(origin.data + n_scheme, host.data, host.n_bytes) == 0;
}

access_answer_t access_check(const server_t *server, const http_request_t *request) {
    const uint32_t n_hosts = http_field_count(request, "host");
    const http_text_t host = http_field(request, "host");
    if (n_hosts > 1 || (n_hosts == 1 && !is_host_allowed(server, host))) return ACCESS_HOST;
    const uint32_t n_origins = http_field_count(request, "origin");
    if (n_origins == 0) return ACCESS_GRANTED;
    const http_text_t origin = http_field(request, "origin");
    if (n_origins > 1 || !is_origin_allowed(server, origin, host)) return ACCESS_ORIGIN;
    return ACCESS_GRANTED;
}

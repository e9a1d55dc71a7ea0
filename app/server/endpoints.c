/* endpoints.c: which endpoint a path means. */
#include "endpoints.h"

#include <string.h>

const endpoint_t endpoints[] = {
#define KR_ENDPOINT(name, method, path, scope, style, has_body) \
    {#name, method, path, SCOPE_##scope, STYLE_##style, has_body, endpoint_##name},
#include "endpoints.def"
};
const uint32_t n_endpoints = (uint32_t)(sizeof endpoints / sizeof endpoints[0]);

/* How many bytes of path the row stands for before its "{id}"; 0 = not this row. */
static size_t match_path(const endpoint_t *row, const char *path, size_t n_bytes) {
    const char *id = strstr(row->path, "{id}");
    const size_t n = id != NULL ? (size_t)(id - row->path) : strlen(row->path);
    const bool is_long_enough = id != NULL ? n_bytes > n : n_bytes == n;
    return is_long_enough && memcmp(path, row->path, n) == 0 ? n : 0;
}

static bool is_word(const char *text, size_t n_bytes, const char *word) {
    return n_bytes == strlen(word) && memcmp(text, word, n_bytes) == 0;
}

static void allow(endpoint_match_t *match, const char *method) {
    const size_t n_method = strlen(method), n = strlen(match->allow);
    if (strstr(match->allow, method) != NULL || n + n_method + 3 > sizeof match->allow) return;
    if (n > 0) strncat(match->allow, ", ", 3);
    strncat(match->allow, method, n_method + 1);
}

endpoint_match_t endpoint_find(const char *method, size_t method_bytes, const char *path,
                               size_t path_bytes) {
    endpoint_match_t match = {.tail = ""};
    const bool is_head = is_word(method, method_bytes, "HEAD");
    bool is_exact = false;
    for (uint32_t i = 0; i < n_endpoints; i++) {
        const endpoint_t *row = &endpoints[i];
        const size_t n = match_path(row, path, path_bytes);
        if (n == 0) continue;
        /* "/v1/x/y" of its own wins over "/v1/x/{id}", for all methods. */
        const bool is_row_exact = n == path_bytes;
        if (is_exact && !is_row_exact) continue;
        if (is_row_exact && !is_exact) match = (endpoint_match_t){.tail = ""};
        is_exact = is_row_exact;
        const bool is_get = strcmp(row->method, "GET") == 0;
        if (is_word(method, method_bytes, row->method) || (is_head && is_get)) {
            match.endpoint = row;
            match.tail = path + n;
            match.tail_bytes = path_bytes - n;
        }
        allow(&match, row->method);
        if (is_get) allow(&match, "HEAD");
    }
    return match;
}

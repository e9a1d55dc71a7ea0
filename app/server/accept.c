/* accept.c: see accept.h. */
#include "accept.h"

#include <string.h>
#include <strings.h>

/* What endpoints answer with. */
static const char *const types[] = {"application/json", "text/event-stream", "text/plain",
                                    "application/x-ndjson"};
#define N_TYPES (sizeof types / sizeof types[0])

/* How close a range comes to a type. */
enum { MATCH_NONE, MATCH_ALL, MATCH_FAMILY, MATCH_TYPE };

typedef struct wish_s {
    int match;        /* of the closest range so far */
    int weight;       /* its greatest weight, in thousandths */
} wish_t;

static http_text_t trim(http_text_t text) {
    while (text.n_bytes > 0 && (*text.data == ' ' || *text.data == '\t')) {
        text.data++;
        text.n_bytes--;
    }
    while (text.n_bytes > 0 && (text.data[text.n_bytes - 1] == ' ' ||
                                text.data[text.n_bytes - 1] == '\t')) {
        text.n_bytes--;
    }
    return text;
}

/* Cuts off what stands before the next `mark` outside of quotes; *rest is what is behind it. */
static http_text_t cut_at(http_text_t *rest, char mark) {
    http_text_t piece = {rest->data, 0};
    bool is_quoted = false;
    while (piece.n_bytes < rest->n_bytes) {
        const char c = piece.data[piece.n_bytes];
        if (c == mark && !is_quoted) break;
        if (c == '"') is_quoted = !is_quoted;
        piece.n_bytes += c == '\\' && is_quoted && piece.n_bytes + 1 < rest->n_bytes ? 2 : 1;
    }
    const size_t n_skip = piece.n_bytes + (piece.n_bytes < rest->n_bytes ? 1 : 0);
    *rest = (http_text_t){rest->data + n_skip, rest->n_bytes - n_skip};
    return trim(piece);
}

/* "0", "0.25", "1.000": thousandths; -1: something else. */
static int read_weight(http_text_t text) {
    int weight = 0, unit = 1000;
    if (text.n_bytes < 1 || text.n_bytes > 5) return -1;
    for (size_t i = 0; i < text.n_bytes; i++) {
        const char c = text.data[i];
        if (i == 1) {
            if (c != '.') return -1;
            continue;
        }
        if (c < '0' || c > '9') return -1;
        weight += (c - '0') * unit;
        unit /= 10;
    }
    return weight <= 1000 ? weight : -1;
}

/* The weight among the parameters of a range; 1000 where there is none, -1: not a proper one. */
static int find_weight(http_text_t parameters) {
    int weight = 1000;
    while (parameters.n_bytes > 0) {
        const http_text_t one = cut_at(&parameters, ';');
        if (one.n_bytes < 2 || (one.data[0] | 0x20) != 'q' || one.data[1] != '=') continue;
        weight = read_weight((http_text_t){one.data + 2, one.n_bytes - 2});
        if (weight < 0) return -1;
    }
    return weight;
}

static int match_of(http_text_t range, const char *type) {
    const size_t n_family = (size_t)(strchr(type, '/') - type) + 1;
    if (range.n_bytes == 3 && memcmp(range.data, "*/*", 3) == 0) return MATCH_ALL;
    if (range.n_bytes == strlen(type) && strncasecmp(range.data, type, range.n_bytes) == 0) {
        return MATCH_TYPE;
    }
    const bool is_family = range.n_bytes == n_family + 1 && range.data[n_family] == '*' &&
                           strncasecmp(range.data, type, n_family) == 0;
    return is_family ? MATCH_FAMILY : MATCH_NONE;
}

/* One element of the list: a range and its parameters. */
static void take(http_text_t element, wish_t *wishes) {
    const http_text_t range = cut_at(&element, ';');
    const int weight = find_weight(element);
    if (weight < 0) return;
    for (size_t i = 0; i < N_TYPES; i++) {
        const int match = match_of(range, types[i]);
        if (match == MATCH_NONE || match < wishes[i].match) continue;
        if (match > wishes[i].match || weight > wishes[i].weight) {
            wishes[i] = (wish_t){match, weight};
        }
    }
}

bool accept_answers(const http_request_t *request) {
    wish_t wishes[N_TYPES] = {{0}};
    bool says_something = false;
    for (uint32_t f = 0; f < request->n_fields; f++) {
        const http_text_t name = request->fields[f].name;
        http_text_t rest = request->fields[f].value;
        if (name.n_bytes != 6 || strncasecmp(name.data, "accept", 6) != 0) continue;
        while (rest.n_bytes > 0) {
            const http_text_t element = cut_at(&rest, ',');
            if (element.n_bytes == 0) continue;
            says_something = true;
            take(element, wishes);
        }
    }
    for (size_t i = 0; i < N_TYPES; i++) {
        if (wishes[i].match != MATCH_NONE && wishes[i].weight > 0) return true;
    }
    return !says_something;
}

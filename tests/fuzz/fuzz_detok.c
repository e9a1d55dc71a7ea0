/* fuzz_detok.c: bytes through the incremental detokenizer, cut into tokens in two ways: the text
 * and the stop must be the same. Input: byte 0 the number of stop strings (0..3), each a length and
 * its bytes; then a byte that seeds the cut; the rest is what the tokens spell. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "unit/text/vocab_builder.h"

#define N_SPELLED_MAX 1024u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

typedef struct result_s {
    char text[N_SPELLED_MAX * 3];
    size_t n_bytes;
    int32_t stopped;
} result_t;

static void require(bool condition) {
    if (!condition) abort();
}

static void collect(result_t *r, const char *text, size_t n_bytes) {
    require(kri_utf8_valid_prefix(text, n_bytes) == n_bytes);
    require(n_bytes <= sizeof r->text - r->n_bytes);
    memcpy(r->text + r->n_bytes, text, n_bytes);
    r->n_bytes += n_bytes;
}

static void run(const kri_tokenizer_t *t, const char *const *stops, size_t n_stops,
                const kr_token_t *ids, size_t n_ids, result_t *r) {
    kri_detok_t *d = NULL;
    const char *text;
    size_t n;
    r->n_bytes = 0;
    r->stopped = 0;
    if (kri_detok_create(t, stops, n_stops, &d, NULL) != KR_OK) return;
    for (size_t i = 0; i < n_ids; i++) {
        require(kri_detok_push(d, ids[i], &text, &n, &r->stopped) == KR_OK);
        collect(r, text, n);
    }
    require(kri_detok_finish(d, &text, &n) == KR_OK);
    collect(r, text, n);
    kri_detok_destroy(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static builder_t b;
    static result_t by_byte, by_piece;
    static kr_token_t bytes[N_SPELLED_MAX], pieces[N_SPELLED_MAX];
    char stop_texts[3][257];
    const char *stops[3];
    size_t n_stops = 0, at = 0;
    const size_t n_wanted = n_bytes ? data[at++] % 4u : 0;
    while (n_stops < n_wanted && at < n_bytes) {
        size_t n = data[at++];
        if (n > n_bytes - at) n = n_bytes - at;
        memcpy(stop_texts[n_stops], data + at, n);
        stop_texts[n_stops][n] = '\0';
        stops[n_stops] = stop_texts[n_stops];
        n_stops++;
        at += n;
    }
    uint32_t seed = at < n_bytes ? data[at++] : 0;
    size_t n_spelled = n_bytes - at;
    if (n_spelled > N_SPELLED_MAX) n_spelled = N_SPELLED_MAX;
    builder_init(&b, KRI_VOCAB_SPM);
    builder_add_byte_tokens(&b);
    size_t n_pieces = 0;
    for (size_t i = 0; i < n_spelled;) {
        seed = seed * 1664525u + 1013904223u;
        size_t n = 1 + (seed >> 24) % 7;
        if (n > n_spelled - i) n = n_spelled - i;
        /* A user-defined token spells its bytes as they are. */
        pieces[n_pieces] = builder_add_bytes(&b, (const char *)data + at + i, n,
                                             KRI_TOKEN_USER_DEFINED, 0);
        require(pieces[n_pieces++] >= 0);
        i += n;
    }
    for (size_t i = 0; i < n_spelled; i++) bytes[i] = data[at + i];
    kri_tokenizer_t *t = NULL;
    if (kri_tokenizer_create(&b.desc, &t, NULL) != KR_OK) return 0;
    int has_control = 0;
    for (size_t i = 0; i < n_pieces; i++) {
        size_t n;
        int is_special;
        kri_tokenizer_token(t, pieces[i], &n, &is_special);
        has_control |= is_special; /* spelled like a token that ends generation: skipped */
    }
    run(t, stops, n_stops, bytes, n_spelled, &by_byte);
    run(t, stops, n_stops, pieces, n_pieces, &by_piece);
    require(has_control || (by_byte.stopped == by_piece.stopped &&
                            by_byte.n_bytes == by_piece.n_bytes &&
                            memcmp(by_byte.text, by_piece.text, by_byte.n_bytes) == 0));
    kri_tokenizer_destroy(t);
    return 0;
}

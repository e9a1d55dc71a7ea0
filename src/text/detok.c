/* detok.c: the incremental detokenizer. Text is given out as soon as nothing that comes later can
 * change it: an incomplete character waits for its remaining bytes, and the longest end of the
 * text that a stop string could begin with waits for the decision. What comes out depends on the
 * bytes only, not on how they were cut into tokens: the stop string that is complete first wins,
 * of several that end at the same byte the longest. */
#include <string.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/error.h"
#include "base/utf8.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

#define STOPS_MAX 16u
#define STOP_BYTES_MAX 256u
#define REPLACEMENT "\xEF\xBF\xBD"
/* Held text (shorter than a stop string) plus one token, each byte of which may become U+FFFD. */
#define TEXT_BYTES_MAX (STOP_BYTES_MAX + 3u * (KRI_TOKEN_BYTES_MAX + 8u))

typedef struct stop_s {
    size_t n_bytes;
    char text[STOP_BYTES_MAX + 1];
} stop_t;

struct kri_detok_s {
    const kri_tokenizer_t *tokenizer; /* borrowed */
    kri_buffer_t text;   /* valid UTF-8: n_given bytes given out by the last call, then the held */
    size_t n_given;
    char partial[4];     /* beginning of a character */
    size_t n_partial;
    int32_t is_stopped;
    int32_t stop;        /* which stop string; -1 */
    int32_t is_finished;
    size_t n_stops;
    stop_t stops[];
};

kr_status_t kri_detok_create(const kri_tokenizer_t *tokenizer, const char *const *stops,
                             size_t n_stops, kri_detok_t **detok, kr_error_t *error) {
    if (!tokenizer || !detok || (!stops && n_stops)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "stops", "NULL argument");
    }
    if (n_stops > STOPS_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "stops", "%zu stop strings, allowed are %u", n_stops,
                        STOPS_MAX);
    }
    kri_detok_t *d = kri_calloc(1, sizeof *d + n_stops * sizeof d->stops[0], "detok");
    if (!d) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the detokenizer");
    d->tokenizer = tokenizer;
    d->n_stops = n_stops;
    d->stop = -1;
    kri_buffer_init(&d->text, TEXT_BYTES_MAX);
    for (size_t i = 0; i < n_stops; i++) {
        const size_t n_bytes = stops[i] ? strnlen(stops[i], STOP_BYTES_MAX + 1) : 0;
        if (n_bytes == 0 || n_bytes > STOP_BYTES_MAX ||
            kri_utf8_valid_prefix(stops[i], n_bytes) != n_bytes) {
            kri_detok_destroy(d);
            return KRI_FAIL(error, KR_E_INVALID_ARG, "stops",
                            "stop string %zu must be 1..%u bytes of UTF-8", i, STOP_BYTES_MAX);
        }
        memcpy(d->stops[i].text, stops[i], n_bytes);
        d->stops[i].n_bytes = n_bytes;
    }
    *detok = d;
    return KR_OK;
}

void kri_detok_destroy(kri_detok_t *detok) {
    if (!detok) return;
    kri_buffer_deinit(&detok->text);
    kri_free(detok);
}

/* Bytes of an invalid sequence that one U+FFFD replaces: the beginning of a character as far as
 * it goes, at least one byte. */
static size_t invalid_length(const char *bytes, size_t n_bytes) {
    size_t n_bad = 1;
    while (n_bad < 3 && n_bad < n_bytes && kri_utf8_is_incomplete(bytes, n_bad + 1)) n_bad++;
    return n_bad;
}

/* Appends bytes as valid text. The incomplete beginning of a character at the end goes to
 * `partial`, or becomes U+FFFD when nothing will follow (is_last). */
static kr_status_t append_text(kri_detok_t *d, const char *bytes, size_t n_bytes, int is_last) {
    while (n_bytes) {
        const size_t n_valid = kri_utf8_valid_prefix(bytes, n_bytes);
        if (n_valid) KR_TRY(kri_buffer_append(&d->text, bytes, n_valid));
        bytes += n_valid;
        n_bytes -= n_valid;
        if (n_bytes == 0) break;
        if (!is_last && kri_utf8_is_incomplete(bytes, n_bytes)) {
            memcpy(d->partial, bytes, n_bytes);
            d->n_partial = n_bytes;
            break;
        }
        const size_t n_bad = invalid_length(bytes, n_bytes);
        KR_TRY(kri_buffer_append(&d->text, REPLACEMENT, sizeof REPLACEMENT - 1));
        bytes += n_bad;
        n_bytes -= n_bad;
    }
    return KR_OK;
}

/* Adds a token's bytes behind those of a character left over from the token before. */
static kr_status_t append_bytes(kri_detok_t *d, const char *bytes, size_t n_bytes) {
    while (d->n_partial && n_bytes) {
        d->partial[d->n_partial] = *bytes;
        if (kri_utf8_valid_prefix(d->partial, d->n_partial + 1) == d->n_partial + 1) {
            KR_TRY(kri_buffer_append(&d->text, d->partial, d->n_partial + 1));
            d->n_partial = 0;
        } else if (kri_utf8_is_incomplete(d->partial, d->n_partial + 1)) {
            d->n_partial++;
        } else { /* the character was never finished; this byte begins anew */
            KR_TRY(kri_buffer_append(&d->text, REPLACEMENT, sizeof REPLACEMENT - 1));
            d->n_partial = 0;
            break;
        }
        bytes++;
        n_bytes--;
    }
    return append_text(d, bytes, n_bytes, 0);
}

/* Start of the stop string that is complete first in text[from..], or n_bytes. */
static size_t find_stop(kri_detok_t *d, size_t from) {
    const char *text = d->text.data;
    for (size_t end = from + 1; end <= d->text.n_bytes; end++) {
        size_t n_found = 0;
        for (size_t i = 0; i < d->n_stops; i++) {
            const stop_t *stop = &d->stops[i];
            if (stop->n_bytes > n_found && stop->n_bytes <= end - from &&
                stop->text[stop->n_bytes - 1] == text[end - 1] &&
                memcmp(text + end - stop->n_bytes, stop->text, stop->n_bytes) == 0) {
                n_found = stop->n_bytes;
                d->stop = (int32_t)i;
            }
        }
        if (n_found) return end - n_found;
    }
    return d->text.n_bytes;
}

/* Length of the longest end of text[from..] that a stop string begins with. */
static size_t held_length(const kri_detok_t *d, size_t from) {
    size_t longest = 0;
    for (size_t i = 0; i < d->n_stops; i++) {
        const stop_t *stop = &d->stops[i];
        size_t n = d->text.n_bytes - from;
        if (n >= stop->n_bytes) n = stop->n_bytes - 1;
        while (n > longest && memcmp(d->text.data + d->text.n_bytes - n, stop->text, n) != 0) n--;
        if (n > longest) longest = n;
    }
    return longest;
}

/* Decides what of the text can be given out. */
static void give(kri_detok_t *d, int is_last, const char **text, size_t *n_bytes) {
    const size_t stop_at = d->n_stops && d->text.n_bytes ? find_stop(d, 0) : d->text.n_bytes;
    d->n_given = d->text.n_bytes;
    if (stop_at < d->text.n_bytes) {
        d->is_stopped = 1;
        d->n_given = stop_at;
    } else if (!is_last && d->text.n_bytes) {
        d->n_given -= held_length(d, 0);
    }
    *text = d->n_given ? d->text.data : "";
    *n_bytes = d->n_given;
}

/* Forgets what the last call gave out; after a stop, everything. */
static void begin(kri_detok_t *d) {
    kri_buffer_consume(&d->text, d->is_stopped ? d->text.n_bytes : d->n_given);
    d->n_given = 0;
    if (d->is_stopped) d->n_partial = 0;
}

kr_status_t kri_detok_push(kri_detok_t *detok, kr_token_t token, const char **text,
                           size_t *n_bytes, int32_t *stopped) {
    if (!detok || !text || !n_bytes || !stopped || detok->is_finished || token < 0 ||
        (uint32_t)token >= detok->tokenizer->n_tokens) {
        return KR_E_INVALID_ARG;
    }
    begin(detok);
    if (!detok->is_stopped) {
        size_t n_piece;
        int is_special;
        const char *piece = kri_tokenizer_token(detok->tokenizer, token, &n_piece, &is_special);
        if (!is_special) KR_TRY(append_bytes(detok, piece, n_piece));
    }
    give(detok, 0, text, n_bytes);
    *stopped = detok->is_stopped;
    return KR_OK;
}

kr_status_t kri_detok_finish(kri_detok_t *detok, const char **text, size_t *n_bytes) {
    if (!detok || !text || !n_bytes) return KR_E_INVALID_ARG;
    begin(detok);
    const size_t n_partial = detok->n_partial;
    detok->n_partial = 0;
    if (!detok->is_stopped) KR_TRY(append_text(detok, detok->partial, n_partial, 1));
    detok->is_finished = 1;
    give(detok, 1, text, n_bytes);
    return KR_OK;
}

int32_t kri_detok_stop(const kri_detok_t *detok) {
    return detok->stop;
}

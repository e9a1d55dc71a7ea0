/* request_prompt.c: the segments of a prompt to tokens, on the thread that submits. One buffer of
 * the context's size receives them one behind the other, so that no prompt can ask for more memory
 * than the longest one that is accepted; text that cannot fit into it is not tokenized. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "engine/engine_impl.h"

#define SEGMENTS_MAX 256u

typedef struct prompt_s {
    kri_engine_model_t *em;
    kr_token_t *tokens;       /* [capacity] */
    size_t n_tokens, capacity;
    bool is_last;             /* no segment follows */
} prompt_t;

/* n: tokens of the segment, at the least. */
static kr_status_t too_long(const prompt_t *prompt, size_t n, bool is_least, kr_error_t *error) {
    const size_t n_all = prompt->n_tokens + n;
    return KRI_FAIL_AT(error, KR_E_CONTEXT_LENGTH, "segments", n_all,
                       "the prompt has %s%zu tokens (n_prompt), the context of %u (n_ctx) leaves "
                       "room for %zu", is_least || !prompt->is_last ? "at least " : "", n_all,
                       prompt->em->info.n_ctx, prompt->capacity);
}

static kr_status_t bad_flags(uint32_t flags, kr_error_t *error) {
    return KRI_FAIL(error, KR_E_INVALID_ARG, "flags", "flags %u of a segment are not known",
                    flags);
}

static kr_status_t add_tokens(prompt_t *prompt, const kr_segment_t *segment, kr_error_t *error) {
    if (segment->flags) return bad_flags(segment->flags, error);
    if (!segment->tokens && segment->count) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "tokens", "tokens is NULL");
    }
    if (segment->count > prompt->capacity - prompt->n_tokens) {
        return too_long(prompt, segment->count, false, error);
    }
    for (size_t i = 0; i < segment->count; i++) {
        const kr_token_t token = segment->tokens[i];
        if (token < 0 || (uint32_t)token >= prompt->em->n_vocab) {
            return KRI_FAIL_AT(error, KR_E_INVALID_ARG, "tokens", i,
                               "token %d is not in the vocabulary of %u", token,
                               prompt->em->n_vocab);
        }
        prompt->tokens[prompt->n_tokens++] = token;
    }
    return KR_OK;
}

/* The text functions report what they would need: over the capacity it is the context that is too
 * short, otherwise a limit of their own. */
static kr_status_t added(prompt_t *prompt, kr_status_t status, size_t n, int32_t is_least,
                         kr_error_t *error) {
    const size_t left = prompt->capacity - prompt->n_tokens;
    if (status == KR_E_LIMIT && n > left) return too_long(prompt, n, is_least != 0, error);
    if (status == KR_OK) prompt->n_tokens += n;
    return status;
}

static kr_status_t add_text(prompt_t *prompt, const kr_segment_t *segment, kr_error_t *error) {
    size_t n = 0;
    int32_t is_least = 0;
    const kr_status_t status = kri_tokenizer_encode(
        prompt->em->model->tokenizer, segment->text, segment->count, segment->flags,
        prompt->tokens + prompt->n_tokens, prompt->capacity - prompt->n_tokens, &n, &is_least,
        error);
    return added(prompt, status, n, is_least, error);
}

static kr_status_t add_messages(prompt_t *prompt, const kr_segment_t *segment,
                                kr_error_t *error) {
    const kri_template_t *tmpl = NULL;
    size_t n = 0;
    int32_t is_least = 0;
    if (segment->flags > 1) return bad_flags(segment->flags, error);
    KR_TRY(kri_model_template(prompt->em->model, &tmpl, error));
    const kr_status_t status = kri_template_tokenize(
        tmpl, segment->messages, segment->count, segment->flags == 0,
        prompt->tokens + prompt->n_tokens, prompt->capacity - prompt->n_tokens, &n, &is_least,
        error);
    return added(prompt, status, n, is_least, error);
}

static kr_status_t add_segment(prompt_t *prompt, const kr_segment_t *segment,
                               kr_request_stats_t *stats, kr_error_t *error) {
    kr_telemetry_t t = prompt->em->engine->params.telemetry;
    const uint64_t begin_ns = kri_clock_ns();
    switch (segment->type) {
    case KR_SEGMENT_TOKENS: return add_tokens(prompt, segment, error);
    case KR_SEGMENT_TEXT:
        KR_TRY(add_text(prompt, segment, error));
        stats->tokenize_ms += (double)(kri_clock_ns() - begin_ns) / 1e6;
        kri_telemetry_record_ns(t, KRI_METRIC_tokenize, kri_clock_ns() - begin_ns);
        return KR_OK;
    case KR_SEGMENT_MESSAGES:
        /* Rendering and tokenizing are one call: a template's literals are told from content by
         * the tokenizer. */
        KR_TRY(add_messages(prompt, segment, error));
        stats->template_ms += (double)(kri_clock_ns() - begin_ns) / 1e6;
        kri_telemetry_record_ns(t, KRI_METRIC_template, kri_clock_ns() - begin_ns);
        return KR_OK;
    default:
        return KRI_FAIL(error, KR_E_INVALID_ARG, "type", "segment type %d is not known",
                        segment->type);
    }
}

kr_status_t kri_request_prompt(kri_engine_model_t *em, const kr_request_params_t *p,
                               kr_token_t **tokens, uint32_t *n_tokens, kr_request_stats_t *stats,
                               kr_error_t *error) {
    if (p->n_segments == 0 || p->n_segments > SEGMENTS_MAX) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_segments",
                        "n_segments is %u, allowed are 1 to %u", p->n_segments, SEGMENTS_MAX);
    }
    if (!p->segments) return KRI_FAIL(error, KR_E_INVALID_ARG, "segments", "segments is NULL");
    prompt_t prompt = {.em = em, .capacity = em->info.n_ctx};
    if (p->pooling == KR_POOLING_NONE) prompt.capacity--; /* room for a token */
    if (prompt.capacity == 0) {
        return KRI_FAIL(error, KR_E_CONTEXT_LENGTH, "segments", "the context holds no prompt");
    }
    prompt.tokens = kri_alloc(prompt.capacity * sizeof *prompt.tokens, "prompt");
    if (!prompt.tokens) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the prompt");
    kr_status_t status = KR_OK;
    for (uint32_t i = 0; i < p->n_segments && status == KR_OK; i++) {
        prompt.is_last = i + 1 == p->n_segments;
        status = add_segment(&prompt, &p->segments[i], stats, error);
    }
    if (status == KR_OK && prompt.n_tokens == 0) {
        status = KRI_FAIL(error, KR_E_INVALID_ARG, "segments", "the prompt has no tokens");
    }
    if (status != KR_OK) {
        kri_free(prompt.tokens);
        return status;
    }
    *tokens = prompt.tokens;
    *n_tokens = (uint32_t)prompt.n_tokens;
    return KR_OK;
}

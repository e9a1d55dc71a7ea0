/* job_put.c: pieces of answers that several dialects share. Appends whose status is not looked at
 * are seen in kri_buffer_t.status. */
#include <string.h>

#include "base/utf8.h"
#include "job.h"

#define TOKEN_BYTES_MAX 1024u

const char *job_finish_word(int32_t finish) {
    return finish == KR_FINISH_LENGTH ? "length" : "stop";
}

/* The bytes that a token stands for; longer ones are cut. */
static size_t spell(const job_t *job, kr_token_t token, char text[TOKEN_BYTES_MAX]) {
    size_t n_bytes = 0;
    const kr_status_t status = kr_model_detokenize(job->model_handle, &token, 1,
                                                   KR_TOKENIZE_PARSE_SPECIAL, text,
                                                   TOKEN_BYTES_MAX, &n_bytes, NULL);
    return status == KR_OK ? n_bytes : 0;
}

void job_put_token(job_t *job, kr_token_t token, kri_buffer_t *out) {
    char text[TOKEN_BYTES_MAX], hex[8 + TOKEN_BYTES_MAX * 4];
    const size_t n_bytes = spell(job, token, text);
    if (kri_utf8_valid_prefix(text, n_bytes) == n_bytes) {
        (void)json_put_string(out, text, n_bytes);
        return;
    }
    static const char digits[] = "0123456789abcdef";
    size_t n = 6;
    memcpy(hex, "bytes:", n);
    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char byte = (unsigned char)text[i];
        hex[n++] = '\\';
        hex[n++] = 'x';
        hex[n++] = digits[byte >> 4];
        hex[n++] = digits[byte & 15];
    }
    (void)json_put_string(out, hex, n);
}

void job_put_token_bytes(job_t *job, kr_token_t token, kri_buffer_t *out) {
    char text[TOKEN_BYTES_MAX];
    const size_t n_bytes = spell(job, token, text);
    (void)kri_buffer_append(out, "[", 1);
    for (size_t i = 0; i < n_bytes; i++) {
        (void)kri_buffer_printf(out, i > 0 ? ",%u" : "%u", (unsigned)(unsigned char)text[i]);
    }
    (void)kri_buffer_append(out, "]", 1);
}

static void put_number(kri_buffer_t *out, const char *name, double value) {
    /* Microseconds are more than the clock of a step is good for. */
    (void)kri_buffer_printf(out, "\"%s\":%.3f,", name, value);
}

void job_put_timings(job_t *job, kri_buffer_t *out) {
    const job_usage_t *usage = &job->usage;
    (void)kri_buffer_printf(out, "\"timings\":{");
    put_number(out, "queue_ms", usage->queue_ms);
    put_number(out, "prefill_ms", usage->prefill_ms);
    put_number(out, "ttft_ms", usage->ttft_ms);
    put_number(out, "decode_ms", usage->decode_ms);
    put_number(out, "total_ms", usage->total_ms);
    (void)kri_buffer_printf(out, "\"n_prompt\":%llu,\"n_cached\":%llu,\"n_generated\":%llu}",
                            (unsigned long long)usage->n_prompt,
                            (unsigned long long)usage->n_cached,
                            (unsigned long long)usage->n_generated);
}

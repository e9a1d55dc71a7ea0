/* bench_baseline.h: the file of `kr bench gate`: what was measured, where, and with what. A file
 * is outside data: everything in it is bounded and checked before it is used. */
#ifndef CLI_BENCH_BASELINE_H
#define CLI_BENCH_BASELINE_H

#include <stddef.h>
#include <stdint.h>

#include "kr.h"

#define CLI_BASELINE_VERSION 1
#define CLI_BASELINE_BYTES_MAX ((size_t)1 << 20)
#define CLI_BASELINE_STAGES_MAX 128u
#define CLI_BASELINE_SAMPLES_MIN 5u /* fewer can never be significant */
#define CLI_BASELINE_SAMPLES_MAX 64u
#define CLI_BASELINE_TEXT_BYTES 128u
#define CLI_BASELINE_PATH_BYTES 4096u

/* Times of one stage in nanoseconds; smaller is better. */
typedef struct cli_stage_s {
    char name[CLI_BASELINE_TEXT_BYTES]; /* [a-z0-9_/.:-] */
    double samples[CLI_BASELINE_SAMPLES_MAX]; /* positive and finite */
    uint32_t n_samples;
} cli_stage_t;

typedef struct cli_baseline_s {
    char cpu[CLI_BASELINE_TEXT_BYTES];
    uint32_t n_cores, n_threads;
    char isa[CLI_BASELINE_TEXT_BYTES], compiler[CLI_BASELINE_TEXT_BYTES];
    char build_type[CLI_BASELINE_TEXT_BYTES], commit[CLI_BASELINE_TEXT_BYTES];
    char model[CLI_BASELINE_PATH_BYTES]; /* as -m was given; "" = no stage needs one */
    uint32_t n_prompt, n_generate;
    cli_stage_t stages[CLI_BASELINE_STAGES_MAX]; /* no two of one name */
    uint32_t n_stages;
} cli_baseline_t;

/* KR_E_BAD_FORMAT, KR_E_LIMIT, KR_E_UNSUPPORTED (another version); the message names the field.
 * On failure *baseline is not to be used. */
kr_status_t cli_baseline_parse(const char *text, size_t n_bytes, cli_baseline_t *baseline,
                               kr_error_t *error);
/* The file's text, to be freed; NULL without memory. */
char *cli_baseline_print(const cli_baseline_t *baseline);

#endif

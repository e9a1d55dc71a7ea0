/* fuzz_bench_baseline.c: any bytes as a baseline file of `kr bench gate`. What is accepted keeps
 * its bounds and comes back the same after printing; what is refused says why in one line. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench_baseline.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool condition) {
    if (!condition) abort();
}

static void check(const cli_baseline_t *baseline) {
    require(baseline->n_stages > 0 && baseline->n_stages <= CLI_BASELINE_STAGES_MAX);
    for (uint32_t i = 0; i < baseline->n_stages; i++) {
        const cli_stage_t *stage = &baseline->stages[i];
        require(stage->name[0] != '\0' && strlen(stage->name) < sizeof stage->name);
        require(stage->n_samples >= CLI_BASELINE_SAMPLES_MIN);
        require(stage->n_samples <= CLI_BASELINE_SAMPLES_MAX);
        for (uint32_t k = 0; k < stage->n_samples; k++) {
            require(isfinite(stage->samples[k]) && stage->samples[k] > 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static cli_baseline_t first, second;
    kr_error_t error;
    kr_error_init(&error);
    char *copy = malloc(n_bytes + 1); /* of exact size, so that a read past the end is seen */
    require(copy != NULL);
    memcpy(copy, data, n_bytes);
    const kr_status_t status = cli_baseline_parse(copy, n_bytes, &first, &error);
    free(copy);
    if (status != KR_OK) {
        require(status == KR_E_BAD_FORMAT || status == KR_E_LIMIT || status == KR_E_UNSUPPORTED);
        require(error.message[0] != '\0' && strchr(error.message, '\n') == NULL);
        return 0;
    }
    check(&first);
    char *text = cli_baseline_print(&first);
    require(text != NULL);
    require(cli_baseline_parse(text, strlen(text), &second, &error) == KR_OK);
    require(memcmp(&first, &second, sizeof first) == 0);
    free(text);
    return 0;
}

/* bench_baseline.c: see bench_baseline.h. The parser leans on jansson for the text (its nesting is
 * bounded, duplicate keys are refused here) and checks every value itself. */
#include "bench_baseline.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/error.h"

#define NUMBER_MAX 1e15 /* nanoseconds: eleven days */

static kr_status_t take_text(const json_t *object, const char *key, char *out, size_t cap,
                             kr_error_t *error) {
    const json_t *value = json_object_get(object, key);
    const char *text = json_string_value(value);
    size_t n_bytes = json_string_length(value);
    if (text == NULL) return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "%s is no text", key);
    if (n_bytes >= cap) return KRI_FAIL(error, KR_E_LIMIT, key, "%s is too long", key);
    if (strlen(text) != n_bytes) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "%s holds a zero byte", key);
    }
    memcpy(out, text, n_bytes + 1);
    return KR_OK;
}

static kr_status_t take_count(const json_t *object, const char *key, int64_t min, int64_t max,
                              uint32_t *out, kr_error_t *error) {
    const json_t *value = json_object_get(object, key);
    int64_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < min || number > max) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "%s is no whole number from %lld to %lld",
                        key, (long long)min, (long long)max);
    }
    *out = (uint32_t)number;
    return KR_OK;
}

static kr_status_t take_name(const json_t *object, cli_stage_t *stage, kr_error_t *error) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyz0123456789_/.:-";
    KR_TRY(take_text(object, "name", stage->name, sizeof stage->name, error));
    if (stage->name[0] == '\0' || strspn(stage->name, allowed) != strlen(stage->name)) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "name", "a stage has no proper name");
    }
    return KR_OK;
}

static kr_status_t take_stage(const json_t *object, cli_stage_t *stage, kr_error_t *error) {
    KR_TRY(take_name(object, stage, error));
    const json_t *samples = json_object_get(object, "ns");
    size_t n = json_array_size(samples);
    if (n < CLI_BASELINE_SAMPLES_MIN) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "ns", "stage %s has no list of at least %u times",
                        stage->name, CLI_BASELINE_SAMPLES_MIN);
    }
    if (n > CLI_BASELINE_SAMPLES_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "ns", "stage %s has more than %u times", stage->name,
                        CLI_BASELINE_SAMPLES_MAX);
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(samples, i);
        double number = json_number_value(value);
        if (!json_is_number(value) || !(number > 0) || !(number <= NUMBER_MAX)) {
            return KRI_FAIL(error, KR_E_BAD_FORMAT, "ns", "time %zu of stage %s is no time", i,
                            stage->name);
        }
        stage->samples[i] = number;
    }
    stage->n_samples = (uint32_t)n;
    return KR_OK;
}

static kr_status_t take_stages(const json_t *root, cli_baseline_t *baseline, kr_error_t *error) {
    const json_t *stages = json_object_get(root, "stages");
    size_t n = json_array_size(stages);
    if (n == 0) return KRI_FAIL(error, KR_E_BAD_FORMAT, "stages", "there is no list of stages");
    if (n > CLI_BASELINE_STAGES_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "stages", "more than %u stages",
                        CLI_BASELINE_STAGES_MAX);
    }
    for (size_t i = 0; i < n; i++) {
        KR_TRY(take_stage(json_array_get(stages, i), &baseline->stages[i], error));
        for (size_t k = 0; k < i; k++) {
            if (strcmp(baseline->stages[i].name, baseline->stages[k].name) != 0) continue;
            return KRI_FAIL(error, KR_E_BAD_FORMAT, "name", "two stages are named %s",
                            baseline->stages[i].name);
        }
    }
    baseline->n_stages = (uint32_t)n;
    return KR_OK;
}

static kr_status_t take_all(const json_t *root, cli_baseline_t *baseline, kr_error_t *error) {
    const json_t *machine = json_object_get(root, "machine");
    const json_t *build = json_object_get(root, "build");
    uint32_t version = 0;
    KR_TRY(take_count(root, "kr_bench_baseline", 0, INT32_MAX, &version, error));
    if (version != CLI_BASELINE_VERSION) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "kr_bench_baseline",
                        "the file is of version %u, this program reads %u", version,
                        (unsigned)CLI_BASELINE_VERSION);
    }
    KR_TRY(take_text(machine, "cpu", baseline->cpu, sizeof baseline->cpu, error));
    KR_TRY(take_count(machine, "cores", 1, 65536, &baseline->n_cores, error));
    KR_TRY(take_text(root, "isa", baseline->isa, sizeof baseline->isa, error));
    KR_TRY(take_count(root, "threads", 1, 256, &baseline->n_threads, error));
    KR_TRY(take_text(build, "compiler", baseline->compiler, sizeof baseline->compiler, error));
    KR_TRY(take_text(build, "type", baseline->build_type, sizeof baseline->build_type, error));
    KR_TRY(take_text(root, "commit", baseline->commit, sizeof baseline->commit, error));
    KR_TRY(take_text(root, "model", baseline->model, sizeof baseline->model, error));
    KR_TRY(take_count(root, "n_prompt", 1, INT32_MAX, &baseline->n_prompt, error));
    KR_TRY(take_count(root, "n_generated", 2, INT32_MAX, &baseline->n_generate, error));
    return take_stages(root, baseline, error);
}

kr_status_t cli_baseline_parse(const char *text, size_t n_bytes, cli_baseline_t *baseline,
                               kr_error_t *error) {
    json_error_t why;
    memset(baseline, 0, sizeof *baseline);
    if (n_bytes > CLI_BASELINE_BYTES_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, NULL, "larger than %zu bytes", CLI_BASELINE_BYTES_MAX);
    }
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &why);
    if (root == NULL) {
        return KRI_FAIL_AT(error, KR_E_BAD_FORMAT, NULL, (uint64_t)why.position,
                           "not JSON at byte %d: %s", why.position, why.text);
    }
    kr_status_t status = take_all(root, baseline, error);
    json_decref(root);
    return status;
}

char *cli_baseline_print(const cli_baseline_t *baseline) {
    json_t *stages = json_array();
    for (uint32_t i = 0; i < baseline->n_stages; i++) {
        const cli_stage_t *stage = &baseline->stages[i];
        json_t *samples = json_array();
        for (uint32_t k = 0; k < stage->n_samples; k++) {
            json_array_append_new(samples, json_real(stage->samples[k]));
        }
        json_array_append_new(stages, json_pack("{s:s, s:o}", "name", stage->name, "ns", samples));
    }
    json_t *root = json_pack(
        "{s:i, s:{s:s, s:i}, s:s, s:i, s:{s:s, s:s}, s:s, s:s, s:i, s:i, s:o}",
        "kr_bench_baseline", CLI_BASELINE_VERSION, "machine", "cpu", baseline->cpu, "cores",
        (int)baseline->n_cores, "isa", baseline->isa, "threads", (int)baseline->n_threads, "build",
        "compiler", baseline->compiler, "type", baseline->build_type, "commit", baseline->commit,
        "model", baseline->model, "n_prompt", (int)baseline->n_prompt, "n_generated",
        (int)baseline->n_generate, "stages", stages);
    char *text = root != NULL ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    return text;
}

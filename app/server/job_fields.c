/* job_fields.c: fields of a request that the dialects share, read with their bounds. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"
#include "server.h"

#define STOPS_MAX 16u
#define STOP_BYTES_MAX 256u
#define BIAS_MAX 1024u
#define PARTS_MAX 256u
#define PRIORITY_MAX 100
#define METADATA_MAX 16u
#define METADATA_NAME_BYTES_MAX 64u
#define METADATA_VALUE_BYTES_MAX 512u
#define NAME_BYTES_MAX 256u
#define TEXT_BYTES_MAX ((size_t)16 << 20)

static void read_float(json_reader_t *reader, const char *name, double min, double max,
                       float *value) {
    double number = 0;
    if (json_read_number(reader, name, min, max, &number)) *value = (float)number;
}

/* As a float it must be over 0 too. */
static void read_fraction(json_reader_t *reader, const char *name, double max, float *value) {
    double number = 0;
    if (!json_read_number(reader, name, 0, max, &number)) return;
    if ((float)number > 0) *value = (float)number;
    else json_fail(reader, "invalid_value", name, "%s is %g; allowed: over 0, at most %g", name,
                   number, max);
}

/* ---- stop ------------------------------------------------------------------------------------ */

static bool add_stop(job_t *job, json_reader_t *reader, const char *name, const json_t *value) {
    const size_t n_bytes = json_is_string(value) ? json_string_length(value) : 0;
    const char *text = json_string_value(value);
    if (n_bytes == 0 || n_bytes > STOP_BYTES_MAX) {
        json_fail(reader, "invalid_value", name,
                  "%s: a stop string is a string of 1 to %u bytes", name, STOP_BYTES_MAX);
        return false;
    }
    if (strlen(text) != n_bytes) {
        json_fail(reader, "invalid_value", name, "%s: a stop string holds a NUL", name);
        return false;
    }
    char *copy = job_alloc(job, n_bytes + 1);
    if (copy == NULL) {
        json_fail(reader, "overloaded", name, "no memory");
        return false;
    }
    memcpy(copy, text, n_bytes);
    job->stops[job->n_stops++] = copy;
    return true;
}

void job_read_stop(job_t *job, json_reader_t *reader, const char *name) {
    json_t *value = NULL;
    if (!json_read_any(reader, name, &value)) return;
    if (json_is_string(value)) {
        (void)add_stop(job, reader, name, value);
        return;
    }
    if (!json_is_array(value) || json_array_size(value) > STOPS_MAX) {
        json_fail(reader, "invalid_value", name,
                  "%s must be a string or an array of at most %u strings", name, STOPS_MAX);
        return;
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        if (!add_stop(job, reader, name, json_array_get(value, i))) return;
    }
}

/* ---- logit_bias ------------------------------------------------------------------------------ */

/* Canonical decimal: no sign, no leading zero, in int32. */
static bool parse_token(const char *key, kr_token_t *token) {
    const size_t n = strlen(key);
    if (n == 0 || n > 10 || strspn(key, "0123456789") != n || (key[0] == '0' && n > 1)) {
        return false;
    }
    errno = 0;
    const long long value = strtoll(key, NULL, 10);
    if (errno != 0 || value > INT32_MAX) return false;
    *token = (kr_token_t)value;
    return true;
}

static void read_bias(job_t *job, json_reader_t *reader) {
    static const char field[] = "logit_bias";
    json_t *object = NULL, *value = NULL;
    const char *key = NULL;
    if (!json_read_object(reader, field, &object)) return;
    const size_t n = json_object_size(object);
    if (n == 0) return;
    if (n > BIAS_MAX) {
        json_fail(reader, "invalid_value", field, "logit_bias has %zu entries, the maximum is %u",
                  n, BIAS_MAX);
        return;
    }
    kr_logit_bias_t *rows = job_alloc(job, n * sizeof *rows);
    if (rows == NULL) {
        json_fail(reader, "overloaded", field, "no memory");
        return;
    }
    uint32_t i = 0;
    json_object_foreach(object, key, value) {
        kr_logit_bias_t *row = &rows[i++];
        const double bias = json_is_number(value) ? json_number_value(value) : NAN;
        if (!parse_token(key, &row->token)) {
            json_fail(reader, "invalid_value", field, "logit_bias: \"%.20s\" is no token id", key);
            return;
        }
        if (!(bias >= -100 && bias <= 100)) {
            json_fail(reader, "invalid_value", field,
                      "logit_bias of token %d must be a number from -100 to 100", row->token);
            return;
        }
        row->bias = (float)bias;
    }
    job->sampler.logit_bias = rows;
    job->sampler.n_logit_bias = i;
}

/* ---- stream, meta ---------------------------------------------------------------------------- */

static void read_stream(job_t *job, json_reader_t *reader) {
    (void)json_read_bool(reader, "stream", &job->is_stream);
    if (job->is_stream && !call_can_stream(job->call)) {
        json_fail(reader, "unsupported_parameter", "stream",
                  "stream is not possible here: answers come in one piece");
    }
}

static void read_stream_options(job_t *job, json_reader_t *reader) {
    json_t *options = NULL;
    if (!json_read_object(reader, "stream_options", &options)) return;
    if (!job->is_stream) {
        json_fail(reader, "invalid_value", "stream_options",
                  "stream_options is allowed only with stream true");
        return;
    }
    json_reader_t inner;
    json_open(&inner, options, "stream_options", reader->error);
    (void)json_read_bool(&inner, "include_usage", &job->with_usage);
    json_read_neutral(&inner, "include_obfuscation", "false");
    json_finish(&inner);
}

static void read_metadata(json_reader_t *reader) {
    static const char field[] = "metadata";
    json_t *object = NULL, *value = NULL;
    const char *key = NULL;
    if (!json_read_object(reader, field, &object)) return;
    if (json_object_size(object) > METADATA_MAX) {
        json_fail(reader, "invalid_value", field, "metadata has %zu pairs, the maximum is %u",
                  json_object_size(object), METADATA_MAX);
        return;
    }
    json_object_foreach(object, key, value) {
        const bool is_good = strlen(key) <= METADATA_NAME_BYTES_MAX && json_is_string(value) &&
                             json_string_length(value) <= METADATA_VALUE_BYTES_MAX;
        if (is_good) continue;
        json_fail(reader, "invalid_value", field,
                  "metadata: names of at most %u bytes with strings of at most %u",
                  METADATA_NAME_BYTES_MAX, METADATA_VALUE_BYTES_MAX);
        return;
    }
}

static void read_meta(json_reader_t *reader) {
    static const char *const tiers[] = {"auto", "default", NULL};
    uint32_t tier = 0;
    json_read_ignored(reader, "user");
    json_read_ignored(reader, "safety_identifier");
    json_read_ignored(reader, "prompt_cache_key");
    read_metadata(reader);
    json_read_neutral(reader, "store", "false");
    (void)json_read_word(reader, "service_tier", tiers, &tier);
}

/* ---- all ------------------------------------------------------------------------------------- */

static void read_model(job_t *job, json_reader_t *reader) {
    const char *text = NULL;
    size_t n_bytes = 0;
    if (!json_read_string(reader, "model", 0, NAME_BYTES_MAX, &text, &n_bytes)) return;
    if (n_bytes > 0) job->model = text;
    if (strlen(text) != n_bytes) json_fail(reader, "invalid_value", "model", "model holds a NUL");
}

static void read_schedule(job_t *job, json_reader_t *reader) {
    int64_t integer = 0;
    bool caches = true;
    if (json_read_integer(reader, "priority", -PRIORITY_MAX, PRIORITY_MAX, &integer)) {
        job->priority = (int32_t)integer;
    }
    const int64_t deadline_ms_max = call_server(job->call)->deadline_ms;
    if (json_read_integer(reader, "deadline_ms", 1, deadline_ms_max, &integer)) {
        job->deadline_ms = (uint32_t)integer;
    }
    if (json_read_bool(reader, "cache_prompt", &caches)) job->no_cache = !caches;
}

static void read_own(job_t *job, json_reader_t *reader) {
    kr_sampler_params_t *sampler = &job->sampler;
    int64_t integer = 0;
    if (json_read_integer(reader, "top_k", -1, INT32_MAX, &integer)) {
        sampler->top_k = (int32_t)integer;
    }
    read_float(reader, "min_p", 0, 1, &sampler->min_p);
    read_fraction(reader, "typical_p", 1, &sampler->typical_p);
    read_fraction(reader, "repeat_penalty", 2, &sampler->repeat_penalty);
    (void)json_read_bool(reader, "ignore_eos", &job->ignore_end);
}

void job_read_fields(job_t *job, json_reader_t *reader, uint32_t mask) {
    kr_sampler_params_t *sampler = &job->sampler;
    int64_t integer = 0;
    if (mask & JOB_FIELD_MODEL) read_model(job, reader);
    if (mask & JOB_FIELD_SAMPLING) {
        read_float(reader, "temperature", 0, 2, &sampler->temperature);
        read_fraction(reader, "top_p", 1, &sampler->top_p);
    }
    if (mask & JOB_FIELD_PENALTIES) {
        read_float(reader, "presence_penalty", -2, 2, &sampler->presence_penalty);
        read_float(reader, "frequency_penalty", -2, 2, &sampler->frequency_penalty);
    }
    if ((mask & JOB_FIELD_SEED) &&
        json_read_integer(reader, "seed", INT64_MIN, INT64_MAX, &integer)) {
        sampler->seed = (uint64_t)integer;
    }
    if (mask & JOB_FIELD_STOP) job_read_stop(job, reader, "stop");
    if (mask & JOB_FIELD_BIAS) read_bias(job, reader);
    if ((mask & JOB_FIELD_N) && json_read_integer(reader, "n", 1, JOB_CHOICES_MAX, &integer)) {
        job->n_choices = (uint32_t)integer;
    }
    if (mask & JOB_FIELD_STREAM) read_stream(job, reader);
    if (mask & JOB_FIELD_STREAM_OPTIONS) read_stream_options(job, reader);
    if (mask & JOB_FIELD_META) read_meta(reader);
    if (mask & JOB_FIELD_SCHEDULE) read_schedule(job, reader);
    if ((mask & JOB_FIELD_OWN) == JOB_FIELD_OWN) read_own(job, reader);
}

/* ---- content --------------------------------------------------------------------------------- */

static bool is_word(const char *const *words, const char *word) {
    for (; *words != NULL; words++) {
        if (strcmp(*words, word) == 0) return true;
    }
    return false;
}

/* Text of one part; NULL: a mistake is set. */
static json_t *read_part(json_reader_t *reader, const char *name, size_t index, json_t *part,
                         const char *const *types) {
    char path[96];
    const char *type = NULL, *text = NULL;
    size_t n_bytes = 0;
    (void)snprintf(path, sizeof path, "%.70s%s%.16s.%zu", reader->path,
                   reader->path[0] != '\0' ? "." : "", name, index);
    json_reader_t inner;
    json_open(&inner, part, path, reader->error);
    json_require(&inner, "type");
    if (json_read_string(&inner, "type", 1, 64, &type, &n_bytes) && !is_word(types, type)) {
        json_fail(&inner, "unsupported_parameter", "type",
                  "content of type %.64s is not supported, only %s", type, types[0]);
    }
    json_require(&inner, "text");
    (void)json_read_string(&inner, "text", 0, TEXT_BYTES_MAX, &text, &n_bytes);
    json_finish(&inner);
    return reader->error->is_set ? NULL : json_object_get(part, "text");
}

static bool join_parts(job_t *job, json_reader_t *reader, const char *name, json_t *parts,
                       const char *const *types, const char **text, size_t *n_bytes) {
    const size_t n_parts = json_array_size(parts);
    size_t n_all = 0, n = 0;
    if (n_parts == 0 || n_parts > PARTS_MAX) {
        json_fail(reader, "invalid_value", name, "%s has %zu parts; allowed: 1 to %u", name,
                  n_parts, PARTS_MAX);
        return false;
    }
    for (size_t i = 0; i < n_parts; i++) {
        json_t *part = read_part(reader, name, i, json_array_get(parts, i), types);
        if (part == NULL) return false;
        n_all += json_string_length(part); /* of a body that is bounded */
    }
    char *joined = job_alloc(job, n_all + 1);
    if (joined == NULL) {
        json_fail(reader, "overloaded", name, "no memory");
        return false;
    }
    for (size_t i = 0; i < n_parts; i++) {
        const json_t *part = json_object_get(json_array_get(parts, i), "text");
        memcpy(joined + n, json_string_value(part), json_string_length(part));
        n += json_string_length(part);
    }
    *text = joined;
    *n_bytes = n_all;
    return true;
}

bool job_read_content(job_t *job, json_reader_t *reader, const char *name,
                      const char *const *types, const char **text, size_t *n_bytes) {
    json_t *value = NULL;
    if (!json_read_any(reader, name, &value)) return false;
    if (json_is_string(value)) {
        *text = json_string_value(value);
        *n_bytes = json_string_length(value);
        return true;
    }
    if (json_is_array(value)) {
        return join_parts(job, reader, name, value, types, text, n_bytes);
    }
    json_fail(reader, "invalid_value", name, "%s must be a string or an array of parts", name);
    return false;
}

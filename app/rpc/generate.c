/* generate.c: generate, chat, batch_generate, cancel, stream.credit: fields of a request to a
 * generation. Names and defaults are those of the surface (docs/runtime.md). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "generation.h"
#include "shared.h"

#define TEXT_BYTES_MAX ((size_t)16 << 20)
#define MESSAGES_MAX 2048u
#define PROMPT_TOKENS_MAX 1000000u
#define TOKENS_MAX 100000
#define TOKENS_DEFAULT 512u
#define TIMEOUT_MS_DEFAULT 300000u
#define STOPS_MAX 16u
#define STOP_BYTES_MAX 256u
#define STOP_TOKENS_MAX 100u
#define BIAS_MAX 1024u
#define CREDITS_MAX (1 << 20)

/* What is malloc'd for a request and not needed behind rpc_stream_start. */
typedef struct request_s {
    rpc_conn_t *conn;
    rpc_generation_t generation;
    rpc_tokens_t tokens;
    rpc_messages_t messages;
    rpc_tokens_t stop_tokens;
    kr_logit_bias_t *bias;
    const char *model_id;
    bool has_guidance;
} request_t;

/* ---- shared fields --------------------------------------------------------------------------- */

static void no_memory(json_reader_t *reader, const char *field) {
    json_fail(reader, "overloaded", field, "no memory for this request now");
}

static void fail_token(json_reader_t *reader, const char *field, size_t index) {
    char param[64];
    (void)snprintf(param, sizeof param, "%.40s.%zu", field, index);
    json_fail(reader, "invalid_value", param, "'%s' must be a token id", param);
}

static void read_shared_tokens(rpc_conn_t *conn, json_reader_t *reader, const char *field,
                               json_t *value, size_t n_max, rpc_tokens_t *list) {
    rpc_shm_head_t head;
    int fd = -1;
    if (!rpc_shared_take(conn, reader, field, value, &fd, &head)) return;
    const bool is_list = head.dtype == RPC_DTYPE_I32 && head.n_dims == 1 && head.dims[0] <= n_max;
    list->tokens = is_list ? malloc((size_t)head.n_bytes) : NULL;
    if (list->tokens == NULL) {
        (void)close(fd);
        if (is_list) no_memory(reader, field);
        else json_fail(reader, "invalid_value", field, "'%s' must be i32 of one dimension, up to "
                       "%zu of them", field, n_max);
        return;
    }
    if (!rpc_shared_load(conn, reader, field, fd, &head, list->tokens)) return;
    list->n = (size_t)head.dims[0];
    for (size_t i = 0; i < list->n; i++) {
        if (list->tokens[i] >= 0) continue;
        fail_token(reader, field, i);
        return;
    }
}

void rpc_read_tokens(rpc_conn_t *conn, json_reader_t *reader, const char *field, size_t n_max,
                     rpc_tokens_t *list) {
    json_t *array = json_object_get(reader->object, field);
    if (json_is_object(array)) {
        if (json_read_any(reader, field, &array)) {
            read_shared_tokens(conn, reader, field, array, n_max, list);
        }
        return;
    }
    if (!json_read_array(reader, field, 0, n_max, &array)) return;
    const size_t n = json_array_size(array);
    list->tokens = malloc((n + 1) * sizeof *list->tokens);
    if (list->tokens == NULL) {
        no_memory(reader, field);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        const json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > INT32_MAX) {
            fail_token(reader, field, i);
            return;
        }
        list->tokens[i] = (kr_token_t)id;
    }
    list->n = n;
}

void rpc_read_messages(json_reader_t *reader, const char *field, rpc_messages_t *list) {
    static const char *const roles[] = {"system", "user", "assistant", NULL};
    json_t *array = NULL;
    if (!json_read_array(reader, field, 1, MESSAGES_MAX, &array)) return;
    const size_t n = json_array_size(array);
    list->messages = calloc(n, sizeof *list->messages);
    if (list->messages == NULL) {
        no_memory(reader, field);
        return;
    }
    for (size_t i = 0; i < n && !reader->error->is_set; i++) {
        kr_message_t *message = &list->messages[i];
        char path[sizeof reader->path];
        uint32_t role = 0;
        json_reader_t inner;
        (void)snprintf(path, sizeof path, "%.40s%s%.24s.%zu", reader->path,
                       reader->path[0] != '\0' ? "." : "", field, i);
        json_open(&inner, json_array_get(array, i), path, reader->error);
        json_require(&inner, "role");
        (void)json_read_word(&inner, "role", roles, &role);
        message->role = roles[role];
        json_require(&inner, "content");
        (void)json_read_string(&inner, "content", 0, TEXT_BYTES_MAX, &message->content,
                               &message->content_bytes);
        json_finish(&inner);
    }
    list->n = n;
}

/* ---- sampling -------------------------------------------------------------------------------- */

static void read_float(json_reader_t *reader, const char *name, double min, double max,
                       float *value) {
    double number = 0;
    if (json_read_number(reader, name, min, max, &number)) *value = (float)number;
}

/* Over 0, as a float too. */
static void read_fraction(json_reader_t *reader, const char *name, double max, float *value) {
    double number = 0;
    if (!json_read_number(reader, name, 0, max, &number)) return;
    if ((float)number > 0) *value = (float)number;
    else json_fail(reader, "invalid_value", name, "'%s' must be over 0", name);
}

static bool parse_token(const char *key, kr_token_t *token) {
    const size_t n = strlen(key);
    if (n == 0 || n > 10 || strspn(key, "0123456789") != n || (key[0] == '0' && n > 1)) {
        return false;
    }
    const long long value = strtoll(key, NULL, 10); /* ten digits */
    if (value > INT32_MAX) return false;
    *token = (kr_token_t)value;
    return true;
}

static void read_bias(json_reader_t *reader, request_t *request) {
    static const char field[] = "logit_bias";
    json_t *object = NULL, *value = NULL;
    const char *key = NULL;
    uint32_t n = 0;
    if (!json_read_object(reader, field, &object) || json_object_size(object) == 0) return;
    if (json_object_size(object) > BIAS_MAX) {
        json_fail(reader, "invalid_value", field, "'logit_bias' has over %u members", BIAS_MAX);
        return;
    }
    request->bias = calloc(json_object_size(object), sizeof *request->bias);
    if (request->bias == NULL) {
        no_memory(reader, field);
        return;
    }
    json_object_foreach(object, key, value) {
        kr_logit_bias_t *row = &request->bias[n++];
        const double bias = json_is_number(value) ? json_number_value(value) : NAN;
        if (!parse_token(key, &row->token) || !(bias >= -100 && bias <= 100)) {
            json_fail(reader, "invalid_value", field, "'logit_bias' maps token ids to numbers "
                      "from -100 to 100; '%.20s' does not", key);
            return;
        }
        row->bias = (float)bias;
    }
    request->generation.sampler.logit_bias = request->bias;
    request->generation.sampler.n_logit_bias = n;
}

static void read_sampling(json_reader_t *reader, request_t *request) {
    kr_sampler_params_t *sampler = &request->generation.sampler;
    int64_t integer = 0;
    kr_sampler_params_init(sampler);
    sampler->temperature = 0.7f;
    sampler->top_p = 1.0f;
    sampler->top_k = 0;
    if (getrandom(&sampler->seed, sizeof sampler->seed, 0) != (ssize_t)sizeof sampler->seed) {
        sampler->seed = kri_clock_ns();
    }
    read_float(reader, "temperature", 0, 2, &sampler->temperature);
    read_fraction(reader, "top_p", 1, &sampler->top_p);
    read_float(reader, "min_p", 0, 1, &sampler->min_p);
    read_fraction(reader, "typical_p", 1, &sampler->typical_p);
    read_fraction(reader, "repetition_penalty", 2, &sampler->repeat_penalty);
    read_float(reader, "presence_penalty", -2, 2, &sampler->presence_penalty);
    read_float(reader, "frequency_penalty", -2, 2, &sampler->frequency_penalty);
    if (json_read_integer(reader, "top_k", -1, INT32_MAX, &integer)) {
        sampler->top_k = (int32_t)integer;
    }
    if (json_read_integer(reader, "seed", 0, INT64_MAX, &integer)) {
        sampler->seed = (uint64_t)integer;
    }
    read_bias(reader, request);
}

/* ---- the end of a generation ----------------------------------------------------------------- */

static void read_stops(json_reader_t *reader, rpc_generation_t *generation) {
    static const char field[] = "stop_sequences";
    json_t *array = NULL;
    if (!json_read_array(reader, field, 0, STOPS_MAX, &array)) return;
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *value = json_array_get(array, i);
        const size_t n = json_is_string(value) ? json_string_length(value) : 0;
        if (n == 0 || n > STOP_BYTES_MAX || strlen(json_string_value(value)) != n) {
            char param[48];
            (void)snprintf(param, sizeof param, "%s.%zu", field, i);
            json_fail(reader, "invalid_value", param,
                      "'%s' must be a string of 1 to %u bytes without NUL", param, STOP_BYTES_MAX);
            return;
        }
        generation->stops[generation->n_stops++] = json_string_value(value);
    }
}

static void read_logprobs(json_reader_t *reader, rpc_generation_t *generation) {
    int64_t n = 0;
    (void)json_read_bool(reader, "logprobs", &generation->has_logprobs);
    if (!json_read_integer(reader, "top_logprobs", 0, 20, &n)) return;
    if (n > 0 && !generation->has_logprobs) {
        json_fail(reader, "invalid_value", "top_logprobs", "'top_logprobs' needs logprobs true");
    }
    generation->n_tops = (uint32_t)n;
}

static void read_rest(const rpc_call_t *call, json_reader_t *reader, request_t *request) {
    static const char *const words[] = {"default", "urgent", "background", NULL};
    static const int32_t priorities[] = {0, 50, -50};
    rpc_generation_t *generation = &request->generation;
    const uint32_t deadline_ms = atomic_load(&call->rpc->deadline_ms);
    int64_t integer = 0;
    uint32_t word = 0;
    bool caches = true;
    generation->n_tokens_max = TOKENS_DEFAULT;
    if (json_read_integer(reader, "max_tokens", 1, TOKENS_MAX, &integer)) {
        generation->n_tokens_max = (uint32_t)integer;
    }
    generation->deadline_ms = deadline_ms < TIMEOUT_MS_DEFAULT ? deadline_ms : TIMEOUT_MS_DEFAULT;
    if (json_read_integer(reader, "timeout_ms", 1, deadline_ms, &integer)) {
        generation->deadline_ms = (uint32_t)integer;
    }
    if (json_read_integer(reader, "credits", 1, CREDITS_MAX, &integer)) {
        generation->credits = (uint32_t)integer;
    }
    read_stops(reader, generation);
    rpc_read_tokens(call->conn, reader, "stop_token_ids", STOP_TOKENS_MAX, &request->stop_tokens);
    read_logprobs(reader, generation);
    generation->is_stream = true;
    (void)json_read_bool(reader, "stream", &generation->is_stream);
    (void)json_read_bool(reader, "ignore_eos", &generation->ignore_end);
    if (json_read_bool(reader, "cache_prompt", &caches)) generation->no_cache = !caches;
    if (json_read_word(reader, "priority", words, &word)) generation->priority = priorities[word];
    if (generation->credits > 0 && !generation->is_stream) {
        json_fail(reader, "invalid_value", "credits", "'credits' needs stream true");
    }
}

/* Known, and refused by name unless they say nothing. */
static void read_neutral(json_reader_t *reader, request_t *request) {
    json_t *value = NULL;
    request->has_guidance = json_read_any(reader, "guidance", &value);
    if (json_read_any(reader, "structured", &value)) request->has_guidance = true;
    json_read_neutral(reader, "draft_model", NULL);
    json_read_neutral(reader, "multimodal", NULL);
    json_read_neutral(reader, "images", NULL);
    json_read_neutral(reader, "required_dtype", NULL);
    json_read_neutral(reader, "tools", "[]");
    json_read_neutral(reader, "n", "1");
}

static void make_uuid(char *out, size_t cap) {
    unsigned char b[16];
    if (getrandom(b, sizeof b, 0) != (ssize_t)sizeof b) {
        const uint64_t ns = kri_clock_ns();
        memcpy(b, &ns, sizeof ns);
        memcpy(b + 8, &ns, sizeof ns);
    }
    (void)snprintf(out, cap,
                   "%02x%02x%02x%02x-%02x%02x-4%01x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                   b[0], b[1], b[2], b[3], b[4], b[5], b[6] & 15u, b[7], (b[8] & 0x3fu) | 0x80u,
                   b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

static void read_stream_id(const rpc_call_t *call, json_reader_t *reader,
                           rpc_generation_t *generation) {
    const char *id = NULL;
    /* Chunks of a batch may come before its answer: who asks must know their names. */
    if (call->answer == RPC_ANSWER_ITEM && generation->is_stream) {
        json_require(reader, "stream_id");
    }
    if (json_read_string(reader, "stream_id", 1, 128, &id, NULL)) {
        (void)snprintf(generation->stream_id, sizeof generation->stream_id, "%s", id);
    } else {
        make_uuid(generation->stream_id, sizeof generation->stream_id);
    }
}

/* ---- prompts --------------------------------------------------------------------------------- */

static void read_prompt(json_reader_t *reader, request_t *request) {
    kr_segment_t *segment = &request->generation.segment;
    const char *text = NULL;
    size_t n_bytes = 0;
    request->generation.prompt_name = "prompt";
    const bool has_text = json_read_string(reader, "prompt", 1, TEXT_BYTES_MAX, &text, &n_bytes);
    rpc_read_tokens(request->conn, reader, "prompt_tokens", PROMPT_TOKENS_MAX, &request->tokens);
    if (has_text == (request->tokens.tokens != NULL)) {
        json_fail(reader, "invalid_value", "prompt", "give either 'prompt' or 'prompt_tokens'");
    }
    if (has_text) {
        *segment = (kr_segment_t){.type = KR_SEGMENT_TEXT, .flags = KR_TOKENIZE_ADD_BOS,
                                  .count = n_bytes, .text = text};
    } else {
        request->generation.prompt_name = "prompt_tokens";
        *segment = (kr_segment_t){.type = KR_SEGMENT_TOKENS, .count = request->tokens.n,
                                  .tokens = request->tokens.tokens};
    }
}

static void read_chat(json_reader_t *reader, request_t *request) {
    json_require(reader, "messages");
    rpc_read_messages(reader, "messages", &request->messages);
    request->generation.prompt_name = "messages";
    request->generation.segment = (kr_segment_t){
        .type = KR_SEGMENT_MESSAGES, .count = request->messages.n,
        .messages = request->messages.messages};
}

/* The call goes on as a stream, or is answered. */
static void start(rpc_call_t *call, request_t *request, const json_mistake_t *mistake) {
    if (rpc_fail_mistake(call, mistake)) return;
    if (request->has_guidance) {
        rpc_fail(call, RPC_E_GUIDANCE, KR_E_UNSUPPORTED, "guidance",
                 "structured output is not built");
        return;
    }
    rpc_error_t error;
    rpc_generation_t *generation = &request->generation;
    generation->model = rpc_models_get(call->rpc, request->model_id, true, &error);
    if (generation->model == NULL) {
        rpc_fail_error(call, &error);
        return;
    }
    generation->stop_tokens = request->stop_tokens.tokens;
    generation->n_stop_tokens = (uint32_t)request->stop_tokens.n;
    request->stop_tokens.tokens = NULL;
    rpc_stream_start(call, generation);
}

static void run(rpc_call_t *call, void (*read)(json_reader_t *reader, request_t *request)) {
    json_mistake_t mistake;
    json_reader_t reader;
    request_t request = {.conn = call->conn};
    rpc_open(call, &reader, &mistake);
    request.model_id = rpc_read_model_id(&reader, "model_id");
    read(&reader, &request);
    read_sampling(&reader, &request);
    read_rest(call, &reader, &request);
    read_stream_id(call, &reader, &request.generation);
    read_neutral(&reader, &request);
    json_finish(&reader);
    start(call, &request, &mistake);
    free(request.tokens.tokens);
    free(request.messages.messages);
    free(request.stop_tokens.tokens);
    free(request.bias);
}

void rpc_method_generate(rpc_call_t *call) { run(call, read_prompt); }
void rpc_method_chat(rpc_call_t *call) { run(call, read_chat); }
void rpc_method_batch_generate(rpc_call_t *call) { rpc_run_requests(call, "generate"); }

/* ---- while it runs --------------------------------------------------------------------------- */

void rpc_method_cancel(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    const char *id = NULL;
    rpc_open(call, &reader, &mistake);
    json_require(&reader, "stream_id");
    (void)json_read_string(&reader, "stream_id", 1, 128, &id, NULL);
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    const bool is_cancelled = rpc_stream_cancel(call->conn, id);
    rpc_reply_text(call, is_cancelled ? "{\"success\":true,\"cancelled\":true}"
                                      : "{\"success\":true,\"cancelled\":false}");
}

void rpc_method_stream_credit(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    const char *id = NULL;
    int64_t n = 0;
    rpc_open(call, &reader, &mistake);
    json_require(&reader, "stream_id");
    (void)json_read_string(&reader, "stream_id", 1, 128, &id, NULL);
    json_require(&reader, "credits");
    (void)json_read_integer(&reader, "credits", 1, CREDITS_MAX, &n);
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    /* One that has just ended is no mistake of the client's. */
    const bool is_there = rpc_stream_credit(call->conn, id, (uint32_t)n);
    rpc_reply_text(call, is_there ? "{\"success\":true}" : "{\"success\":false}");
}

/* job.c: a job from its creation to the submit of its prompts. All prompts are accepted before
 * anything is sent; events that come meanwhile are rendered and kept back. */
#include "job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/clock.h"
#include "endpoints/dry.h"
#include "job_impl.h"

typedef struct job_block_s {
    struct job_block_s *next;
    max_align_t data[];
} job_block_t;

/* What the public struct does not show. */
typedef struct job_full_s {
    job_t job;
    job_run_t run;
    job_block_t *blocks;
} job_full_t;

static void random_bytes(void *data, size_t n_bytes) {
    /* Up to 256 bytes this never comes short; without it (very early boot) time has to do. */
    if (getrandom(data, n_bytes, 0) == (ssize_t)n_bytes) return;
    uint64_t state = kri_clock_ns();
    for (size_t i = 0; i < n_bytes; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ((unsigned char *)data)[i] = (unsigned char)(state >> 56);
    }
}

void job_make_id(const char *prefix, char *id, size_t cap) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    unsigned char random[24];
    char name[sizeof random + 1];
    random_bytes(random, sizeof random);
    for (size_t i = 0; i < sizeof random; i++) name[i] = letters[random[i] % (sizeof letters - 1)];
    name[sizeof random] = '\0';
    (void)snprintf(id, cap, "%s%s", prefix, name);
}

job_t *job_create(call_t *call, const char *id_prefix, const job_style_t *style) {
    job_full_t *full = calloc(1, sizeof *full);
    if (full == NULL || !kri_mutex_init(&full->run.lock)) {
        free(full);
        call_fail_status(call, KR_E_NOMEM, NULL);
        return NULL;
    }
    job_t *job = &full->job;
    job->run = &full->run;
    job->style = style;
    job->call = call;
    job->prompt_name = "prompt";
    job->length_name = "max_tokens";
    job->n_choices = 1;
    job->n_tops = -1;
    job->created = (int64_t)time(NULL);
    job->created_ns = kri_clock_ns();
    job_make_id(id_prefix, job->id, sizeof job->id);
    kr_sampler_params_init(&job->sampler);
    job->sampler.temperature = 1.0f;
    job->sampler.top_p = 1.0f;
    job->sampler.top_k = 0;
    random_bytes(&job->sampler.seed, sizeof job->sampler.seed);
    kri_buffer_init(&job->run->out, JOB_OUT_BYTES_MAX);
    kr_error_init(&job->run->error);
    atomic_init(&job->run->n_left, 1);
    call_retain(call);
    return job;
}

job_t *job_open(call_t *call, const char *id_prefix, const job_style_t *style, size_t user_bytes,
                job_input_t *input) {
    json_t *body = call_body(call);
    job_t *job = body != NULL ? job_create(call, id_prefix, style) : NULL;
    if (job == NULL) return NULL;
    input->mistake = (json_mistake_t){0};
    json_open(&input->reader, body, NULL, &input->mistake);
    if (user_bytes == 0 || (job->user = job_alloc(job, user_bytes)) != NULL) return job;
    call_fail_status(call, KR_E_NOMEM, NULL);
    job_discard(job);
    return NULL;
}

void *job_alloc(job_t *job, size_t n_bytes) {
    job_full_t *full = (job_full_t *)(void *)job;
    if (n_bytes > SIZE_MAX - sizeof(job_block_t)) return NULL;
    job_block_t *block = calloc(1, sizeof *block + n_bytes);
    if (block == NULL) return NULL;
    block->next = full->blocks;
    full->blocks = block;
    return block->data;
}

void job_free(job_t *job) {
    job_full_t *full = (job_full_t *)(void *)job;
    job_run_t *run = job->run;
    if (job->style->destroy != NULL) job->style->destroy(job);
    for (uint32_t i = 0; i < atomic_load(&run->n_submitted); i++) {
        kr_request_release(run->requests[i].handle);
    }
    for (uint32_t i = 0; i < job->n_choices_all; i++) {
        job_choice_t *choice = &job->choices[i];
        kri_buffer_deinit(&choice->text);
        free(choice->tokens);
        free(choice->logprobs);
        free(choice->tops);
        free(choice->text_starts);
    }
    kri_buffer_deinit(&run->out);
    kri_mutex_deinit(&run->lock);
    call_t *call = job->call;
    while (full->blocks != NULL) {
        job_block_t *block = full->blocks;
        full->blocks = block->next;
        free(block);
    }
    free(full);
    call_release(call);
}

void job_discard(job_t *job) { job_free(job); }

bool job_refuse_mistake(job_t *job, const json_mistake_t *mistake) {
    if (!mistake->is_set) return false;
    call_fail_json(job->call, mistake);
    job_discard(job);
    return true;
}

/* ---- submit --------------------------------------------------------------------------------- */

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Bytes of a token's event: the envelope, and what log-probabilities add. */
static uint32_t choose_credits(const job_t *job) {
    const uint32_t token_bytes = 400 + 130 * (uint32_t)(job->n_tops + 1);
    const uint32_t n_ahead = JOB_AHEAD_BYTES / token_bytes / job->n_prompts;
    const uint32_t n_wanted = min_u32(JOB_CREDITS * job->n_choices, n_ahead);
    return n_wanted > 0 ? n_wanted : 1;
}

/* Choices, requests, marks. False: no memory. */
static bool take_memory(job_t *job) {
    job_run_t *run = job->run;
    const bool is_pooled = job->pooling != KR_POOLING_NONE;
    const uint32_t n_all = is_pooled ? 0 : job->n_prompts * job->n_choices; /* 256 * 8 at most */
    run->requests = job_alloc(job, job->n_prompts * sizeof *run->requests);
    job->choices = job_alloc(job, n_all * sizeof *job->choices);
    if (run->requests == NULL || job->choices == NULL) return false;
    job->n_choices_all = n_all;
    for (uint32_t i = 0; i < n_all; i++) {
        job_choice_t *choice = &job->choices[i];
        choice->prompt = i / job->n_choices;
        choice->choice = i % job->n_choices;
        choice->stop = -1;
        kri_buffer_init(&choice->text, JOB_TEXT_BYTES_MAX);
    }
    for (uint32_t i = 0; i < job->n_prompts; i++) {
        run->requests[i].user.take = job_take_event;
        run->requests[i].job = job;
        run->requests[i].prompt = i;
    }
    if (!job->is_stream) return true;
    run->credits = choose_credits(job);
    run->n_marks_max = run->credits * job->n_prompts;
    run->marks = job_alloc(job, run->n_marks_max * sizeof *run->marks);
    return run->marks != NULL;
}

static void fill_segment(const job_prompt_t *prompt, kr_segment_t *segment) {
    *segment = (kr_segment_t){0};
    if (prompt->messages != NULL) {
        segment->type = KR_SEGMENT_MESSAGES;
        segment->messages = prompt->messages;
        segment->count = prompt->n_messages;
    } else if (prompt->tokens != NULL) {
        segment->type = KR_SEGMENT_TOKENS;
        segment->tokens = prompt->tokens;
        segment->count = prompt->n_tokens;
    } else {
        segment->type = KR_SEGMENT_TEXT;
        segment->flags = KR_TOKENIZE_ADD_BOS;
        segment->text = prompt->text;
        segment->count = prompt->n_bytes;
    }
}

static void fill_params(job_t *job, kr_request_params_t *params) {
    const principal_t *principal = call_principal(job->call);
    kr_request_params_init(params);
    params->n_segments = 1;
    params->model = job->model_name;
    params->priority = job->priority;
    params->deadline_ms = job->deadline_ms > 0 ? job->deadline_ms
                                               : call_server(job->call)->deadline_ms;
    params->credits = job->run->credits;
    params->key = principal->client;
    params->cache_salt = principal->key_id;
    /* Nobody has a prefix under a salt of its own. */
    if (job->no_cache) random_bytes(&params->cache_salt, sizeof params->cache_salt);
    params->pooling = job->pooling;
    if (job->pooling != KR_POOLING_NONE) {
        params->normalize = 1;
        return;
    }
    params->sampler = &job->sampler;
    params->stops = job->stops;
    params->n_stops = job->n_stops;
    params->n_choices = job->n_choices;
    params->n_tokens_max = job->n_tokens_max;
    params->ignore_end = job->ignore_end ? 1 : 0;
    if (job->n_tops >= 0) job->sampler.n_logprobs = job->n_tops > 0 ? (uint32_t)job->n_tops : 1;
}

void job_fill_request(job_t *job, uint32_t index, kr_request_params_t *params,
                      kr_segment_t *segment) {
    fill_params(job, params);
    fill_segment(&job->prompts[index], segment);
    params->segments = segment;
}

static bool is_over(const job_run_t *run) {
    return atomic_load(&run->is_gone) || atomic_load(&run->is_failed) ||
           atomic_load(&run->abort_status) != KR_OK;
}

static kr_status_t submit(job_t *job, uint32_t index, kr_request_params_t *params,
                          kr_error_t *error) {
    job_run_t *run = job->run;
    kr_segment_t segment;
    fill_segment(&job->prompts[index], &segment);
    params->segments = &segment;
    params->user = &run->requests[index].user;
    atomic_fetch_add(&run->n_left, 1);
    const kr_status_t status = kr_engine_submit(call_server(job->call)->engine, params,
                                                &run->requests[index].handle, error);
    if (status != KR_OK) {
        atomic_fetch_sub(&run->n_left, 1); /* never the last: the worker holds one */
        return status;
    }
    /* Who ended the job meanwhile has cancelled what was below n_submitted; we look after having
     * moved it. */
    atomic_store(&run->n_submitted, index + 1);
    if (is_over(run)) kr_request_cancel(run->requests[index].handle);
    return KR_OK;
}

/* The library's names of fields are not those of the request. */
void job_name_error(const job_t *job, uint32_t index, kr_error_t *error) {
    static const char *const names[][2] = {
        {"n_choices", "n"}, {"stops", "stop"}, {"n_stops", "stop"},
        {"n_logit_bias", "logit_bias"}, {"n_logprobs", "top_logprobs"},
        {"n_penalty_last", "presence_penalty"}};
    static const char *const prompts[] = {"segments", "tokens", "text", "messages", "type",
                                          "content", "role"};
    const char *name = error->param;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i][0]) == 0) name = names[i][1];
    }
    if (strcmp(name, "n_tokens_max") == 0) name = job->length_name;
    for (size_t i = 0; i < sizeof prompts / sizeof prompts[0]; i++) {
        if (strcmp(error->param, prompts[i]) == 0) name = job->prompt_name;
    }
    if (name == job->prompt_name && job->n_prompts > 1) {
        (void)snprintf(error->param, sizeof error->param, "%.40s.%u", name, index);
    } else if (name != error->param) {
        (void)snprintf(error->param, sizeof error->param, "%s", name);
    }
}

/* The deadline is the whole job's: those that come later have what is left of it. */
static kr_status_t submit_late(job_t *job, uint32_t index, kr_request_params_t *params,
                               kr_error_t *error) {
    const uint64_t passed_ms = (kri_clock_ns() - job->created_ns) / 1000000;
    kr_request_params_t late = *params;
    if (is_over(job->run)) return KR_E_CANCELLED;
    if (passed_ms >= params->deadline_ms) return KR_E_TIMEOUT;
    late.deadline_ms = params->deadline_ms - (uint32_t)passed_ms;
    return submit(job, index, &late, error);
}

void job_submit_more(job_t *job) {
    job_run_t *run = job->run;
    kr_request_params_t params;
    kr_error_t error;
    fill_params(job, &params);
    while (run->status == KR_OK) {
        const uint32_t n = atomic_load(&run->n_submitted), n_ahead = n - run->n_ended;
        if (n == job->n_prompts || n_ahead >= JOB_POOLED_AHEAD) return;
        const size_t n_tokens = job->prompts[n].n_tokens;
        if (n_ahead > 0 && run->n_tokens_ahead + n_tokens > JOB_POOLED_TOKENS) return;
        kr_error_init(&error);
        const kr_status_t status = submit_late(job, n, &params, &error);
        if (status == KR_E_BUSY && n > 0) {
            /* There is room again when one of ours ends; or of others, who do not tell. */
            if (n_ahead == 0) job_try_later(job);
            return;
        }
        if (status == KR_OK) {
            run->n_tokens_ahead += n_tokens;
            continue;
        }
        job_name_error(job, n, &error);
        run->is_refused = true;
        job_note_failure(job, status, &error);
    }
}

static void submit_all(job_t *job) {
    job_run_t *run = job->run;
    const bool is_pooled = job->pooling != KR_POOLING_NONE;
    const uint32_t n_first = is_pooled ? 0 : job->n_prompts;
    kr_request_params_t params;
    kr_error_t error;
    kr_status_t status = KR_OK;
    uint32_t i = 0;
    kr_error_init(&error);
    fill_params(job, &params);
    for (; i < n_first && status == KR_OK; i++) {
        status = is_over(run) ? KR_E_CANCELLED : submit(job, i, &params, &error);
    }
    if (status != KR_OK) job_name_error(job, i - 1, &error);
    kri_mutex_lock(&run->lock);
    if (status != KR_OK && run->status == KR_OK) {
        run->is_refused = true;
        job_note_failure(job, status, &error);
    }
    if (job->style->drops_body) {
        call_drop_body(job->call);
        if (!is_pooled) job->prompts = NULL;
    }
    run->is_submitted = true;
    if (is_pooled) job_submit_more(job);
    job_advance(job);
    const bool waits = job->is_stream && !run->is_open && !run->is_answered;
    if (waits) job_set_waiting(job, job->created_ns + JOB_HOLD_NS);
    kri_mutex_unlock(&run->lock);
    if (waits) pump_wake(call_server(job->call)->pump);
}

void job_run(job_t *job) {
    server_t *server = call_server(job->call);
    const server_model_t *model = server_find_model(server, job->model);
    if (model == NULL) {
        call_fail(job->call, "model_not_found", "model", "there is no model %.200s",
                  job->model != NULL ? job->model : "at all");
        job_discard(job);
        return;
    }
    job->model_name = model->name;
    job->model_handle = model->model;
    const bool is_pooled = job->pooling != KR_POOLING_NONE;
    const uint32_t n_prompts_max = is_pooled ? JOB_INPUTS_MAX : JOB_PROMPTS_MAX;
    const bool is_sane = job->n_prompts > 0 && job->n_prompts <= n_prompts_max &&
                         job->n_choices > 0 && job->n_choices <= JOB_CHOICES_MAX;
    if (is_sane && dry_run(job, model)) return;
    if (!is_sane || !take_memory(job)) {
        call_fail_status(job->call, is_sane ? KR_E_NOMEM : KR_E_INTERNAL, NULL);
        job_discard(job);
        return;
    }
    job_register(job);
    call_watch(job->call, job_on_gone, job->is_stream ? job_on_taken : NULL,
               (void *)(uintptr_t)job->run->ticket);
    submit_all(job);
    if (server->http != NULL) http_flush(server->http);
    job_leave(job, 1);
}

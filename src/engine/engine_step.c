/* engine_step.c: one step of one model: the scheduler's plan, the forward pass, then for each row
 * of logits mask, sample, accept and detokenize, and for each prompt to be embedded its pooling:
 * they are independent, so the threads of the step take them one by one. Only then, on the step
 * thread alone, results become events and the scheduler learns what was appended. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "engine/engine_impl.h"

/* ---- one row, on any thread ----------------------------------------------------------------- */

static kr_status_t fail_row(kri_row_result_t *row, kr_status_t status, const char *what) {
    row->status = status;
    row->what = what;
    return status;
}

/* Logits of tokens that the mask forbids become -Inf; false when it forbids all. */
static bool apply_mask(float *logits, const uint32_t *mask, uint32_t n_vocab) {
    bool is_any = false;
    for (uint32_t begin = 0; begin < n_vocab; begin += 32) {
        const uint32_t word = mask[begin / 32];
        const uint32_t n = n_vocab - begin < 32 ? n_vocab - begin : 32;
        const uint32_t inside = n == 32 ? UINT32_MAX : (1u << n) - 1;
        is_any |= (word & inside) != 0;
        if ((word & inside) == inside) continue;
        for (uint32_t i = 0; i < n; i++) {
            if ((word >> i & 1) == 0) logits[begin + i] = -INFINITY;
        }
    }
    return is_any;
}

static kr_status_t mask_row(kri_engine_model_t *em, kri_row_result_t *row, uint32_t *mask) {
    const kri_choice_t *choice = row->choice;
    const kr_grammar_t *grammar = &choice->request->grammar;
    const size_t n_words = (em->n_vocab + 31) / 32;
    memset(mask, 0xff, n_words * sizeof *mask);
    const kr_status_t status = grammar->mask(grammar->user, choice->index, mask, n_words);
    if (status != KR_OK) return fail_row(row, status, "the grammar's mask failed");
    if (!apply_mask(row->logits, mask, em->n_vocab)) {
        return fail_row(row, KR_E_INTERNAL, "the grammar allows no token");
    }
    return KR_OK;
}

static kr_status_t sample_row(kri_row_result_t *row) {
    const kri_choice_t *choice = row->choice;
    kr_status_t status = KR_OK;
    if (row->logits) status = kri_sampler_sample(choice->sampler, row->logits, &row->token);
    else if (row->token < 0) status = KR_E_NUMERIC;
    if (status != KR_OK) return fail_row(row, status, "the model computed no usable logits");
    status = kri_sampler_accept(choice->sampler, row->token);
    if (status != KR_OK) return fail_row(row, KR_E_INTERNAL, "the sampler refused its token");
    return KR_OK;
}

static kr_status_t push_row(const kri_engine_model_t *em, kri_row_result_t *row) {
    const kri_choice_t *choice = row->choice;
    int32_t stopped = 0;
    row->is_end = !choice->request->ignore_end &&
                  kri_tokenizer_is_end(em->model->tokenizer, row->token);
    if (row->is_end) return KR_OK;
    const kr_status_t status = kri_detok_push(choice->detok, row->token, &row->text,
                                              &row->text_bytes, &stopped);
    if (status != KR_OK) return fail_row(row, status, "a token cannot become text");
    row->is_stopped = stopped != 0;
    return KR_OK;
}

/* All hidden states that the prompt has in this step. */
static void pool_row(kri_row_result_t *row, bool is_suspect) {
    const kri_task_t *task = &row->choice->task;
    kri_pooling_t *pooling = &row->choice->request->pooling;
    const size_t n = (size_t)row->n_hidden * pooling->n_embd;
    if (is_suspect && !kri_all_finite(row->hidden, n)) {
        (void)fail_row(row, KR_E_NUMERIC, "the model computed a value that is not finite");
        return;
    }
    kri_pooling_add(pooling, row->hidden, row->n_hidden, row->position);
    row->is_embedded = task->n_computed + task->n_rows == task->n_tokens;
    if (row->is_embedded) kri_pooling_finish(pooling);
}

static void compute_row(kri_engine_model_t *em, kri_row_result_t *row, uint32_t *mask,
                        bool is_suspect) {
    const kr_grammar_t *grammar = &row->choice->request->grammar;
    kr_telemetry_t t = em->engine->params.telemetry;
    uint64_t begin_ns = t ? kri_clock_ns() : 0, end_ns = begin_ns;
    if (row->n_hidden > 0) {
        pool_row(row, is_suspect);
        return;
    }
    if (is_suspect && (row->logits ? !kri_all_finite(row->logits, em->n_vocab) : row->token < 0)) {
        (void)fail_row(row, KR_E_NUMERIC, "the model computed a value that is not finite");
        return;
    }
    if (row->choice->request->has_grammar) {
        if (mask_row(em, row, mask) != KR_OK) return;
        if (t) end_ns = kri_clock_ns();
        kri_telemetry_record_ns(t, KRI_METRIC_grammar, end_ns - begin_ns);
        begin_ns = end_ns;
    }
    if (sample_row(row) != KR_OK) return;
    if (t) end_ns = kri_clock_ns();
    kri_telemetry_record_ns(t, KRI_METRIC_sample, end_ns - begin_ns);
    begin_ns = end_ns;
    if (row->choice->request->has_grammar) {
        const kr_status_t status =
            grammar->accept(grammar->user, row->choice->index, row->token);
        if (status != KR_OK) {
            (void)fail_row(row, status, "the grammar did not accept a token");
            return;
        }
    }
    if (push_row(em, row) != KR_OK) return;
    if (t) end_ns = kri_clock_ns();
    kri_telemetry_record_ns(t, KRI_METRIC_detokenize, end_ns - begin_ns);
}

/* ---- all rows ------------------------------------------------------------------------------- */

typedef struct rows_job_s {
    kri_engine_model_t *em;
    uint32_t n_rows;
    bool is_suspect; /* some row is not finite */
    _Atomic uint32_t next;
} rows_job_t;

static void run_rows(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    rows_job_t *job = ctx;
    kri_engine_model_t *em = job->em;
    uint32_t *mask = em->masks + (size_t)thread_index * em->n_words;
    (void)n_threads;
    for (;;) {
        const uint32_t i = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed);
        if (i >= job->n_rows) return;
        compute_row(em, &em->rows[i], mask, job->is_suspect);
    }
}

/* Hidden states stand in the order of tasks. Appends to em->rows; how many there are then. */
static uint32_t list_hidden(kri_engine_model_t *em, const kri_plan_t *plan, uint32_t n_rows) {
    const float *hidden = kri_session_hidden(em->session);
    const kri_step_t *step = &plan->step;
    for (uint32_t i = 0, at = 0; i < step->n_seqs && at < step->n_hidden_rows; i++) {
        const kri_step_seq_t *q = &step->seqs[i];
        const uint32_t first = at, row_end = q->row_begin + q->n_rows;
        while (at < step->n_hidden_rows && step->hidden_rows[at] < row_end) at++;
        if (at == first) continue;
        em->rows[n_rows++] = (kri_row_result_t){
            .choice = plan->tasks[i]->owner, .hidden = hidden + (size_t)first * em->n_embd,
            .n_hidden = at - first,
            .position = q->pos_begin + step->hidden_rows[first] - q->row_begin, .text = ""};
    }
    return n_rows;
}

/* How many rows of em->rows are results now: a task has one or none. */
static uint32_t compute_rows(kri_engine_model_t *em, const kri_plan_t *plan, bool is_suspect) {
    rows_job_t job = {.em = em, .n_rows = plan->step.n_out_rows, .is_suspect = is_suspect};
    for (uint32_t i = 0; i < job.n_rows; i++) {
        em->rows[i] = (kri_row_result_t){.choice = plan->out_tasks[i]->owner, .text = ""};
        if (plan->step.argmax) em->rows[i].token = em->argmax[i];
        else em->rows[i].logits = em->logits + (size_t)i * em->n_vocab;
    }
    job.n_rows = list_hidden(em, plan, job.n_rows);
    const uint32_t n_threads = job.n_rows < em->info.n_threads ? job.n_rows : em->info.n_threads;
    if (job.n_rows > 0) kri_pool_run(em->pool, n_threads, run_rows, &job);
    return job.n_rows;
}

/* Whether the device can choose the tokens of all rows, so that no logits come back. */
static bool is_argmax(const kri_engine_model_t *em, const kri_plan_t *plan) {
    if (!em->argmax) return false;
    for (uint32_t i = 0; i < plan->step.n_out_rows; i++) {
        const kri_choice_t *choice = plan->out_tasks[i]->owner;
        if (choice->request->has_grammar || !kri_sampler_is_argmax(choice->sampler)) return false;
    }
    return plan->step.n_out_rows > 0;
}

/* Nothing of the model can be computed any more: what waits need not wait for its turn. */
static void lose(kri_engine_model_t *em, const kr_error_t *error) {
    kri_mutex_lock(&em->engine->mutex);
    em->is_lost = true;
    kri_mutex_unlock(&em->engine->mutex);
    kri_log(KR_LOG_ERROR, "model %s: %s", em->name, error->message);
    while (em->requests) {
        kri_request_end(em->requests, KR_E_DEVICE_LOST, error->message, false);
    }
}

/* The step did not run to its end: somebody stopped it, and who did ends its requests; or it failed
 * as a whole, then they end here, or it would fail for ever. */
static void give_up(kri_engine_model_t *em, const kri_plan_t *plan, kr_status_t status,
                    const kr_error_t *error) {
    kr_request_t doomed[256];
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->step.n_seqs && status != KR_E_CANCELLED; i++) {
        const kri_choice_t *choice = plan->tasks[i]->owner;
        if (n < sizeof doomed / sizeof doomed[0]) doomed[n++] = choice->request;
    }
    kri_sched_abort(em->sched, plan);
    for (uint32_t i = 0; i < n; i++) kri_request_end(doomed[i], status, error->message, false);
    if (status == KR_E_DEVICE_LOST) lose(em, error);
}

static void count_step(const kri_engine_model_t *em, const kri_plan_t *plan, uint64_t ns) {
    kr_telemetry_t t = em->telemetry;
    kri_telemetry_record_ns(t, plan->n_rows_prefill > 0 ? KRI_METRIC_prefill : KRI_METRIC_decode,
                            ns);
    kri_telemetry_add(t, KRI_METRIC_tokens_prompt, plan->n_rows_prefill);
}

void kri_engine_stop_unwanted(kr_engine_t e) {
    const kri_plan_t *plan = e->plan;
    if (!plan) return;
    for (uint32_t i = 0; i < plan->step.n_seqs; i++) {
        const kri_choice_t *choice = plan->tasks[i]->owner;
        if (!atomic_load(&choice->request->cancel_asked)) return;
    }
    __atomic_fetch_or(&e->plan_em->cancel, KRI_CANCEL_STEP, __ATOMIC_RELAXED);
}

/* The forward pass. */
static kr_status_t run_plan(kri_engine_model_t *em, kri_plan_t *plan, kr_error_t *error) {
    kr_engine_t e = em->engine;
    plan->step.cancel = &em->cancel;
    kri_mutex_lock(&e->mutex);
    e->plan = plan;
    e->plan_em = em;
    kri_engine_stop_unwanted(e); /* cancels that came after this turn had looked at requests */
    kri_mutex_unlock(&e->mutex);
    const kr_status_t status = kri_session_run(em->session, &plan->step, em->logits, error);
    kri_mutex_lock(&e->mutex);
    e->plan = NULL;
    e->plan_em = NULL;
    __atomic_fetch_and(&em->cancel, ~(uint32_t)KRI_CANCEL_STEP, __ATOMIC_RELAXED);
    kri_mutex_unlock(&e->mutex);
    return status;
}

bool kri_engine_step(kri_engine_model_t *em) {
    kri_plan_t plan;
    kr_error_t error;
    const uint64_t plan_ns = kri_clock_ns();
    if (!kri_sched_plan(em->sched, plan_ns, &plan)) return false;
    const uint64_t begin_ns = kri_clock_ns();
    for (uint32_t i = 0; i < plan.step.n_seqs; i++) {
        kri_request_started(((const kri_choice_t *)plan.tasks[i]->owner)->request, begin_ns);
    }
    /* Their places in the queue are free now, not after a long step. */
    if (em->engine->touched) kri_engine_publish(em->engine);
    kr_error_init(&error);
    if (is_argmax(em, &plan)) plan.step.argmax = em->argmax;
    const kr_status_t status = run_plan(em, &plan, &error);
    const uint64_t run_ns = em->telemetry ? kri_clock_ns() : begin_ns;
    if (status != KR_OK && status != KR_E_NUMERIC) {
        give_up(em, &plan, status, &error);
        return true;
    }
    count_step(em, &plan, run_ns - begin_ns);
    const uint32_t n_rows = compute_rows(em, &plan, status == KR_E_NUMERIC);
    const uint64_t end_ns = kri_clock_ns();
    kri_sched_commit(em->sched, &plan, end_ns - begin_ns);
    const uint64_t sched_ns = (begin_ns - plan_ns) + (kri_clock_ns() - end_ns);
    for (uint32_t i = 0; i < n_rows; i++) kri_request_take_row(&em->rows[i], end_ns);
    em->sched_ns_mean = em->sched_ns_mean ? (em->sched_ns_mean * 15 + sched_ns) / 16 : sched_ns;
    return true;
}

/* engine_impl.h: the structs that the files of the engine share, and who may touch which field:
 *   [const]  set before other threads see it
 *   [mutex]  under engine->mutex, which is never held across a step, a callback or a system call
 *            other than a wake-up
 *   [step]   the step thread only (and, between two of its phases, the threads that sample)
 *   [eat]    the consumer of events: the dispatcher thread, or the one thread that polls
 * Lists go through fields of the objects themselves, so that nothing is allocated after submit
 * but the text of an event that is longer than usual. */
#ifndef KRI_ENGINE_ENGINE_IMPL_H
#define KRI_ENGINE_ENGINE_IMPL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/mutex.h"
#include "base/threads.h"
#include "engine/engine.h"
#include "engine/keys.h"
#include "engine/pooling.h"
#include "engine/sched.h"
#include "engine/session.h"
#include "model/model.h"
#include "sample/sampler.h"
#include "telemetry/telemetry.h"

#define KRI_MODELS_MAX 16u
#define KRI_MODEL_NAME_BYTES_MAX 255u
#define KRI_CHOICES_MAX 64u
#define KRI_CREDITS_MAX (1u << 20)
/* TOKEN events of a request that may wait for their consumer. */
#define KRI_WINDOW 256u
#define KRI_TEXT_INLINE 32u

/* ---- events --------------------------------------------------------------------------------- */

typedef struct kri_event_slot_s {
    int32_t type, finish;
    uint32_t choice;
    kr_token_t token;           /* TOKEN; CHOICE: index of the stop string */
    float logprob;
    uint32_t text_bytes;
    char *text_heap;            /* NULL: in text */
    char text[KRI_TEXT_INLINE];
} kri_event_slot_t;

/* One producer (the step thread) and one consumer; positions only grow. Never overwritten: a task
 * gets credits only for free slots, and those of CHOICE, DONE and ERROR are set apart. */
typedef struct kri_ring_s {
    kri_event_slot_t *slots;    /* [capacity], a power of two */
    kr_logprob_t *logprobs;     /* [capacity, n_logprobs] */
    uint32_t capacity, n_logprobs; /* [const] */
    uint32_t n_max;             /* [const] slots in use at a time; at most capacity */
    uint32_t n_written;         /* [step] */
    uint32_t n_published;       /* [mutex] the consumer reads up to here */
    uint32_t n_taken;           /* [eat] handed out */
    _Atomic uint32_t n_consumed; /* the slots before it may be written again */
} kri_ring_t;

/* ---- requests ------------------------------------------------------------------------------- */

typedef struct kri_choice_s {
    kri_task_t task;            /* [step]; owner = this */
    kr_request_t request;       /* [const] */
    uint32_t index;             /* [const] */
    uint32_t n_granted;         /* [step] credits given to the scheduler and not used yet */
    bool is_finished;           /* [step] */
    bool is_paused;             /* [step] its consumer has left it without credits */
    uint64_t last_ns;           /* [step] of the last token, or when it went on; 0 = none */
    kri_sampler_t *sampler;     /* owned; gone when the request ends */
    kri_detok_t *detok;
} kri_choice_t;

typedef struct kri_engine_model_s kri_engine_model_t;

struct kr_request_s {
    _Atomic uint32_t n_refs;    /* handle, step thread, undelivered events, list of asks */
    kr_engine_t engine;         /* [const] a reference */
    kri_engine_model_t *em;     /* [const] a reference, until it ends */
    void *user;                 /* [const] */
    uint64_t key;               /* [const] */
    uint64_t work_bytes, event_bytes; /* [const] heap, until it ends and until all is consumed */
    uint32_t n_choices, n_tokens_max; /* [const] */
    bool has_explicit_credits, ignore_end, has_grammar; /* [const] */
    kr_grammar_t grammar;       /* [const] */
    kri_choice_t *choices;      /* [n_choices] */
    kr_token_t *tokens;         /* [n_choices, n_tokens_max]; gone when it ends */
    kri_pooling_t pooling;      /* [step]; kind [const]; the embedding readable once published */
    kri_ring_t ring;
    kr_error_t error;           /* [step] of the ERROR event; readable once published */

    _Atomic uint32_t cancel_asked, is_starved;
    _Atomic uint32_t credits;   /* explicit ones that no TOKEN event has used */

    bool is_accepted, is_started, is_ended; /* [step] */
    uint32_t n_finished, n_granted, next_grant; /* [step]; n_granted: of all choices */
    uint64_t submit_ns, start_ns, first_ns, last_ns; /* [step]; submit_ns [const] */
    kr_request_stats_t live;    /* [step] */
    kr_request_stats_t stats;   /* [mutex] as of the last publication */

    struct kr_request_s *next, *prev;  /* [step] requests of the model */
    struct kr_request_s *touched_next; /* [step] to be published */
    bool is_touched;
    bool has_left_queue;               /* [mutex] as the engine counts */
    struct kr_request_s *asks_next;    /* [mutex] */
    bool is_asking;
    struct kr_request_s *ready_next;   /* [mutex] has events to be consumed */
    bool is_ready;
    struct kr_request_s *held_next;    /* [eat] handed out by the last poll */
    bool is_held, is_terminal_taken;
};

/* ---- models --------------------------------------------------------------------------------- */

/* What one thread found for one row of logits, or for the rows of hidden states of one prompt. */
typedef struct kri_row_result_s {
    kri_choice_t *choice;
    float *logits;              /* [n_vocab]; NULL: the device has chosen `token` */
    const float *hidden;        /* [n_hidden, n_embd] instead, with pooling */
    uint32_t n_hidden, position; /* of the first of them */
    kr_status_t status;
    const char *what;           /* static; why */
    kr_token_t token;
    bool is_end, is_stopped;
    bool is_embedded;           /* the embedding is there */
    const char *text;           /* borrowed from the detokenizer */
    size_t text_bytes;
} kri_row_result_t;

/* Why a step stops between two layers: the model or the engine goes, or nobody wants what it
 * computes any more. */
enum { KRI_CANCEL_ALL = 1, KRI_CANCEL_STEP = 2 };

struct kri_engine_model_s {
    char name[KRI_MODEL_NAME_BYTES_MAX + 1]; /* [const] */
    _Atomic uint32_t n_refs;    /* table, submits under way, requests that have not ended */
    kr_engine_t engine;         /* [const] */
    kr_model_t model;           /* [const] a reference */
    uint32_t n_vocab, n_embd;   /* [const] */
    kr_session_info_t info;     /* [const] */
    uint64_t order;             /* [mutex] the least of all ready ones is the default */
    bool is_ready;              /* [mutex] */
    bool is_lost;               /* [mutex] its device computes no more */
    uint64_t kv_bytes;          /* [mutex] its part of the ledger */

    struct kr_session_s *session; /* [step] once ready; the pool's shape is [const] */
    kri_kv_pool_t *kv;
    kri_sched_t *sched;
    kr_telemetry_t telemetry;   /* of steps; a reference */
    kri_pool_t *pool;           /* of threads */
    kr_tensor_t logits_tensor;  /* f32 [n_seqs, n_vocab], of the tensor pool */
    float *logits;              /* its data */
    kr_token_t *argmax;         /* [n_seqs]: what a device chooses by itself; NULL without one */
    uint32_t *masks;            /* [n_threads, n_words] */
    uint32_t n_words;
    kri_row_result_t *rows;     /* [n_seqs] */
    uint32_t cancel;            /* atomic KRI_CANCEL_*: not 0 stops the step under way */
    struct kr_request_s *requests; /* [step] that have not ended */
    uint32_t n_running, n_waiting; /* [step] requests */
    uint64_t sched_ns_mean, n_preempted; /* [step] */
    uint64_t last_turn;         /* [step] engine->n_turns after its last step */
    kr_engine_stats_t stats;    /* [mutex] as of the last publication */
};

/* ---- engine --------------------------------------------------------------------------------- */

/* Something another thread wants done by the step thread, on the asker's stack. */
typedef struct kri_ask_s {
    struct kri_ask_s *next;
    kr_status_t (*fn)(struct kri_ask_s *ask); /* on the step thread */
    kri_engine_model_t *em;
    void *args;
    kr_status_t status;
    _Atomic uint32_t is_done;   /* futex */
} kri_ask_t;

struct kr_engine_s {
    _Atomic uint32_t n_refs;    /* owner, requests */
    kr_engine_params_t params;  /* [const] completed */
    uint64_t request_bytes_max; /* [const] heap that requests may hold together */
    uint32_t open_max;          /* [const] requests whose events are not consumed to the end */
    uint32_t n_tasks_max;       /* [const] of requests that have not ended */
    kri_mutex_t mutex;
    kri_mutex_t admin_mutex;    /* held by remove and resize, which wait for the step thread */

    kri_engine_model_t *models[KRI_MODELS_MAX]; /* [mutex] */
    uint64_t n_models_added, kv_bytes_reserved; /* [mutex] */
    kr_engine_stats_t removed;  /* [mutex] counters of models that were removed */
    /* [mutex] stopped: nobody is asked any more; over: nothing is published any more. */
    bool is_draining, is_stopping, is_stopped, step_is_over;
    uint32_t n_waiting;                         /* [mutex] requests that never ran */
    uint32_t n_active, n_tasks, n_undelivered;  /* [mutex] requests that have not ended, and their
                                                   tasks; requests not consumed to the end */
    uint64_t request_bytes;                     /* [mutex] */
    kri_keys_t keys;                            /* [mutex] requests in flight of each key */
    struct kr_request_s *asks_head, *asks_tail; /* [mutex] requests the step thread must look at */
    struct kr_request_s *new_head, *new_tail;   /* [mutex] the same, for the first time */
    kri_ask_t *ask_head, *ask_tail;             /* [mutex] */
    struct kr_request_s *ready_head, *ready_tail; /* [mutex] */

    _Atomic uint32_t step_word, event_word, idle_word; /* futexes: count what happened */
    _Atomic uint32_t step_sleeps, n_eaters_asleep;
    _Atomic uint32_t is_polling;
    int event_fd;               /* [const]; -1 with a callback */
    bool fd_is_set;             /* [mutex] */
    const kri_plan_t *plan;     /* [mutex] of the step under way, or NULL */
    kri_engine_model_t *plan_em; /* [mutex] whose step it is */
    struct kr_request_s *held;  /* [eat] */
    bool destroy_asked;         /* [eat] from inside a callback */
    kri_background_t *step_thread, *dispatcher;

    struct kr_request_s *touched; /* [step] */
    uint32_t turn;              /* [step] model whose turn it is */
    uint64_t n_turns;           /* [step] steps of all models */
};

/* engine.c */
void kri_engine_retain(kr_engine_t engine);
void kri_engine_unref(kr_engine_t engine);
void kri_engine_wake(kr_engine_t engine); /* the step thread */
/* Has fn run by the step thread, waits for it, and yields its status; KR_E_SHUTTING_DOWN when the
 * thread is gone. */
kr_status_t kri_engine_ask(kr_engine_t engine, kri_ask_t *ask);
/* Adds what only grows. */
void kri_engine_add_counters(kr_engine_stats_t *sum, const kr_engine_stats_t *one);
void kri_engine_idle_changed(kr_engine_t engine);
void kri_engine_stop(kr_engine_t engine);
/* After stop: joins the threads and frees. Called by the owner, or by the dispatcher itself. */
void kri_engine_teardown(kr_engine_t engine, bool is_dispatcher);

/* engine_models.c */
/* The model of a name (NULL: the one added first), with a reference. With the mutex held. */
kri_engine_model_t *kri_engine_find(kr_engine_t engine, const char *name);
void kri_engine_model_unref(kri_engine_model_t *em);
void kri_engine_model_close(kri_engine_model_t *em);

/* engine_loop.c */
void kri_engine_step_main(void *engine);
void kri_engine_publish(kr_engine_t engine);
/* Its figures, with the mutex held [step]. */
void kri_engine_publish_model(kri_engine_model_t *em);

/* engine_step.c */
/* One step of a model, when it has one. */
bool kri_engine_step(kri_engine_model_t *em);
/* Stops the step under way when all its requests were cancelled. With the mutex held. */
void kri_engine_stop_unwanted(kr_engine_t engine);

/* request_prompt.c: the tokens of all segments, at most n_ctx - 1 (pooling: n_ctx); *tokens is the
 * caller's to free. The times go to stats. */
kr_status_t kri_request_prompt(kri_engine_model_t *em, const kr_request_params_t *params,
                               kr_token_t **tokens, uint32_t *n_tokens, kr_request_stats_t *stats,
                               kr_error_t *error);

/* request.c */
kr_status_t kri_request_check(const kr_request_params_t *params, kr_error_t *error);
void kri_request_unref(kr_request_t request);
/* What an ended request needs no more [step], and one whose events are consumed [eat]. */
void kri_request_free_work(kr_request_t request);
void kri_request_free_events(kr_request_t request);
/* Has the step thread look at the request. Any thread. */
void kri_request_ask(kr_request_t request);

/* request_run.c, all [step] */
void kri_request_look(kr_request_t request);
void kri_request_touch(kr_request_t request);
void kri_request_started(kr_request_t request, uint64_t now_ns);
void kri_request_grant(kr_request_t request);
void kri_request_take_row(const kri_row_result_t *row, uint64_t now_ns);
/* Ends it with DONE (KR_OK) or ERROR; keep: its pages may stay cached. */
void kri_request_end(kr_request_t request, kr_status_t status, const char *what, bool keep);
void kri_request_refresh(kr_request_t request); /* live figures that the scheduler keeps */

/* events.c */
/* With the mutex held. */
void kri_events_ready(kr_engine_t engine, kr_request_t request);
kr_request_t kri_events_pop(kr_engine_t engine, uint32_t *n_published);
/* What the slot at a position says, borrowed from the ring. */
void kri_events_fill(kr_request_t request, uint32_t position, kr_event_t *event);
bool kri_events_is_terminal(kr_request_t request, uint32_t position);
/* The slots up to `position` are free again. */
void kri_events_consume(kr_request_t request, uint32_t position);
/* After the consumer took the last event. */
void kri_events_delivered(kr_request_t request);
void kri_events_wake(kr_engine_t engine);
/* Sleeps while event_word is as seen, at most timeout_ms (UINT32_MAX = for ever). */
void kri_events_wait(kr_engine_t engine, uint32_t seen, uint32_t timeout_ms);
/* Gives back what the last poll handed out. */
void kri_events_release_held(kr_engine_t engine);

/* dispatch.c */
void kri_dispatch_main(void *engine);
/* Whether the calling thread is inside a callback of this engine. */
bool kri_dispatch_is_inside(kr_engine_t engine);

#endif

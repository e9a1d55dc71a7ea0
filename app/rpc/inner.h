/* inner.h: what the parts of the runtime share.
 *
 * Threads. One for the clients (loop.c): polls, reads, cuts lines, writes what was left; short
 * messages of quick methods are answered there. Workers (work.c) do everything else that takes
 * time, one loader opens and closes models, and the server's pump brings the engine's events.
 * Locks, outermost first: those of calls that gather; rpc_conn_s.lock; models.c's; the engine's. */
#ifndef RPC_INNER_H
#define RPC_INNER_H

#include <pthread.h>
#include <stdatomic.h>

#include "frame.h"
#include "message.h"
#include "rpc.h"
#include "server/pump.h"
#include "server/server.h"

#define RPC_IN_FLIGHT_MAX 256u          /* calls without an answer and streams, of a client */
#define RPC_CLIENTS_MAX 64u
#define RPC_OUT_PAUSE_BYTES ((size_t)64 << 20) /* waiting for a client: nothing more is read */
#define RPC_OUT_BYTES_MAX ((size_t)1 << 30)    /* then the client is given up */
#define RPC_LINES_PAUSE_BYTES ((size_t)64 << 20) /* read and not yet looked at: the same */
#define RPC_LINES_PAUSE 512u
#define RPC_SMOOTH_BYTES ((size_t)1 << 20) /* waiting for a client: its streams get no credits */
#define RPC_WINDOW 32u                  /* tokens of a stream that may be under way */
#define RPC_HOLD_NS 33000000u           /* as long, tokens wait for those that come in this time */
#define RPC_QUICK_BYTES_MAX 4096u
#define RPC_RESULT_BYTES_MAX ((size_t)256 << 20)
#define RPC_PROTOCOL_VERSION 1

typedef struct rpc_conn_s rpc_conn_t;
typedef struct rpc_call_s rpc_call_t;
typedef struct rpc_gather_s rpc_gather_t;
typedef struct rpc_stream_s rpc_stream_t;
typedef struct rpc_model_s rpc_model_t;
typedef struct rpc_models_s rpc_models_t;
typedef struct rpc_work_s rpc_work_t;
typedef struct rpc_loop_s rpc_loop_t;
typedef struct rpc_shared_s rpc_shared_t;

/* Segments of shared memory since the start (shared.h). */
typedef struct rpc_shared_counts_s {
    _Atomic uint64_t n_out, n_bytes_out; /* given to clients */
    _Atomic uint64_t n_in, n_bytes_in;   /* taken from clients */
    _Atomic uint64_t n_fallbacks;        /* tensors that went as JSON although they were large */
    _Atomic uint64_t n_copies;           /* payloads copied on their way: none out, one in */
    _Atomic uint64_t n_refused;          /* descriptors that lead to no good segment */
    _Atomic uint64_t n_swept;            /* left by dead processes, removed */
} rpc_shared_counts_t;

struct rpc_s {
    rpc_params_t params;
    server_t *server;          /* engine and pump; no models, no HTTP */
    kr_telemetry_t calls;      /* durations of whole calls; NULL where it is not built */
    rpc_models_t *models;
    rpc_work_t *work;
    rpc_loop_t *loop;
    uint64_t begin_ns;
    _Atomic uint32_t deadline_ms;
    _Atomic uint64_t end_ns;   /* when the end has begun: two seconds later it is over; 0 = never */
    atomic_bool is_ending;     /* no new generations, a load stops */
    _Atomic uint64_t n_calls, n_errors, n_timeouts, n_bad_lines, n_streams_ever, n_tokens;
    _Atomic uint32_t n_streams, n_clients;
    rpc_shared_counts_t shared;
    /* The pump's: what this batch of events has moved. */
    rpc_stream_t *touched;
    rpc_conn_t *touched_conns;
    uint64_t token_ns, step_ns; /* when the last tokens came; how long after those before them */
    uint64_t sent_ns;           /* when tokens were last sent */
    bool has_news;              /* tokens have come that is_due has not seen */
};

/* ---- clients: conn.c ------------------------------------------------------------------------- */

struct rpc_conn_s {
    rpc_t *rpc;
    atomic_uint n_refs;
    int in_fd, out_fd;         /* the same for a socket */
    bool is_socket;
    /* The loop's. */
    rpc_frames_t frames;
    rpc_conn_t *next;
    bool is_ended;             /* nothing more is read */
    bool is_told;              /* its streams were cancelled because it had ended */
    uint64_t end_ns;           /* is_ended: when */

    pthread_mutex_t lock;      /* all below */
    bool is_broken;            /* nothing can be written any more */
    kri_buffer_t out;          /* [out_at, n_bytes) is to be written */
    size_t out_at;
    uint32_t n_calls;          /* without an answer */
    uint32_t n_lines;          /* read and not yet looked at */
    size_t line_bytes;
    rpc_stream_t *streams;
    uint32_t n_streams;        /* in that list */
    uint32_t n_open;           /* of these: answered calls that go on as a stream */
    struct embed_s *embeds;
    bool is_congested;         /* streams wait for the client to take what is there */
    /* Streams that were cancelled before they were known. */
    uint32_t n_generating;     /* calls of generate on their way */
    char (*early)[132];
    uint32_t n_early;
    rpc_shared_t *shared;      /* NULL: not agreed on */

    bool is_touched;           /* the pump's */
    rpc_conn_t *touched_next;
};
rpc_conn_t *rpc_conn_create(rpc_t *rpc, int in_fd, int out_fd, bool is_socket);
void rpc_conn_retain(rpc_conn_t *conn);
void rpc_conn_release(rpc_conn_t *conn);
/* One line; its newline is added. With the lock: _locked. */
void rpc_conn_put(rpc_conn_t *conn, const char *line, size_t n_bytes);
void rpc_conn_put_locked(rpc_conn_t *conn, const char *line, size_t n_bytes);
/* Writes what the client takes now; the loop writes the rest. */
void rpc_conn_flush(rpc_conn_t *conn);
size_t rpc_conn_pending(rpc_conn_t *conn);
/* Nothing more can be written: what is left for it ends. */
void rpc_conn_break(rpc_conn_t *conn);
/* For the pump: flushed at the end of the batch. */
void rpc_conn_touch(rpc_conn_t *conn);

/* ---- calls: call.c --------------------------------------------------------------------------- */

typedef enum rpc_answer_e { RPC_ANSWER_RESPONSE, RPC_ANSWER_ITEM, RPC_ANSWER_NONE } rpc_answer_t;

typedef struct rpc_method_s {
    const char *name;
    uint32_t flags;            /* RPC_QUICK, ... */
    void (*run)(rpc_call_t *call);
} rpc_method_t;
enum { RPC_WORKER = 0, RPC_QUICK = 1, RPC_LOADER = 2, RPC_GENERATES = 4 };

/* The JSON of a line. jansson's own counts are no business of several threads. */
typedef struct rpc_doc_s {
    atomic_uint n_refs;
    json_t *root;
} rpc_doc_t;
/* Takes root, in every case. NULL: no memory. */
rpc_doc_t *rpc_doc_create(json_t *root);
void rpc_doc_retain(rpc_doc_t *doc);
void rpc_doc_release(rpc_doc_t *doc);

/* One call: belongs to whoever runs it, ends with rpc_reply or rpc_fail*. */
struct rpc_call_s {
    rpc_t *rpc;
    rpc_conn_t *conn;          /* a reference */
    const rpc_method_t *method;
    rpc_doc_t *doc;            /* a reference to what holds params */
    json_t *params;            /* an object; of an item: any value */
    char path[32];             /* of params: "" or "requests.3" */
    rpc_answer_t answer;
    char *id;                  /* JSON text; NULL for items and notifications */
    rpc_gather_t *gather;      /* where the answer goes; NULL: to the client */
    uint32_t slot;
    uint64_t begin_ns;
    bool is_generating;        /* counted in conn->n_generating */
    rpc_stream_t *stream;      /* goes on behind the answer; NULL: none */
};
/* result: one JSON value. A result that did not fit becomes an error. Both free the call. */
void rpc_reply(rpc_call_t *call, const kri_buffer_t *result);
void rpc_reply_text(rpc_call_t *call, const char *result);
void rpc_fail_error(rpc_call_t *call, const rpc_error_t *error);
void rpc_fail(rpc_call_t *call, int code, kr_status_t status, const char *param,
              const char *format, ...) __attribute__((format(printf, 5, 6)));
void rpc_fail_status(rpc_call_t *call, int family, kr_status_t status, const kr_error_t *error);
/* Answers with the mistake when there is one: true. */
bool rpc_fail_mistake(rpc_call_t *call, const json_mistake_t *mistake);
/* A reader of the call's params. */
void rpc_open(const rpc_call_t *call, json_reader_t *reader, json_mistake_t *mistake);
/* The call of generate is known by its stream now, or has failed. */
void rpc_call_stop_generating(rpc_call_t *call);
/* A line without a call: errors of what was no message. */
void rpc_put_error(rpc_conn_t *conn, const char *id, const rpc_error_t *error);
/* Runs requests[] of the call each as a call of `method` and gathers what they answer. */
void rpc_run_requests(rpc_call_t *call, const char *method);

/* ---- dispatch: dispatch.c -------------------------------------------------------------------- */

/* A parsed line. may_run: methods that are not quick too; false: those are handed to workers. Takes
 * root. */
void rpc_dispatch(rpc_conn_t *conn, json_t *root, bool may_run);
const rpc_method_t *rpc_method_find(const char *name);
/* Row `index`, NULL past the last. */
const rpc_method_t *rpc_method_at(uint32_t index);
/* Why a known method is refused; NULL: it is not known. */
const char *rpc_method_later(const char *name);

/* ---- work: work.c ---------------------------------------------------------------------------- */

kr_status_t rpc_work_start(rpc_t *rpc, kr_error_t *error);
/* Drops what was not begun. */
void rpc_work_stop(rpc_t *rpc);
/* Behind it, once nobody pushes any more. */
void rpc_work_destroy(rpc_t *rpc);
/* Runs fn(user) on a worker; conn, which may be NULL, is flushed behind it. False: no memory. */
bool rpc_work_push(rpc_t *rpc, rpc_conn_t *conn, void (*fn)(rpc_conn_t *conn, void *user),
                   void *user);
/* The same on the one thread that loads, in order. */
bool rpc_work_push_load(rpc_t *rpc, rpc_conn_t *conn, void (*fn)(rpc_conn_t *conn, void *user),
                        void *user);
/* A thread of 4 MiB of stack. */
bool rpc_thread_start(pthread_t *thread, void *(*main)(void *), void *user);

/* ---- the loop: loop.c ------------------------------------------------------------------------ */

kr_status_t rpc_loop_create(rpc_t *rpc, kr_error_t *error);
void rpc_loop_run(rpc_t *rpc);
void rpc_loop_destroy(rpc_t *rpc);
/* Something has changed that the loop waits for. Any thread. */
void rpc_loop_wake(rpc_t *rpc);
/* Ends the runtime: `shutdown`. Any thread. */
void rpc_loop_end(rpc_t *rpc);

/* ---- models: models.c ------------------------------------------------------------------------ */

struct rpc_model_s {
    char name[256];
    atomic_uint n_refs;
    kr_model_t model;
    kr_model_info_t info;
    kr_session_info_t session;
    const char *dtype;         /* of most of its weights; static */
    char path[4096];
    bool is_draft;
    uint32_t n_ctx_asked;      /* 0 = none */
    double load_ms;
    uint32_t n_streams;        /* models' lock: generations and embeddings under way */
};
kr_status_t rpc_models_create(rpc_t *rpc);
void rpc_models_destroy(rpc_t *rpc);
typedef struct rpc_load_s {
    const char *name, *path;   /* path NULL: what resolve says */
    uint32_t n_ctx;
    bool is_draft;
} rpc_load_t;
/* A model that is there with the same properties is returned as it is. The loader's thread, or
 * before there is one. *model is a reference. */
kr_status_t rpc_models_load(rpc_t *rpc, const rpc_load_t *load, rpc_model_t **model,
                            kr_error_t *error);
/* KR_E_BUSY while it generates, unless force. *was_there: false with KR_OK: there is none. */
kr_status_t rpc_models_unload(rpc_t *rpc, const char *name, bool force, bool *was_there,
                              kr_error_t *error);
/* A reference, or NULL with the error: not loaded, or not yet. with_stream: counted until
 * rpc_model_end_stream. */
rpc_model_t *rpc_models_get(rpc_t *rpc, const char *name, bool with_stream, rpc_error_t *error);
void rpc_model_end_stream(rpc_t *rpc, rpc_model_t *model);
void rpc_model_release(rpc_model_t *model);
/* Appends objects {"model_id":...}, comma-separated. */
void rpc_models_put(rpc_t *rpc, bool with_details, kri_buffer_t *out);
void rpc_model_put(const rpc_model_t *model, kri_buffer_t *out);
/* Reads `name` of a model, 1..255 bytes of A-Z a-z 0-9 _ - . / @ : + space, without "..". */
const char *rpc_read_model_id(json_reader_t *reader, const char *field);
/* Looks the model up; answers the call when it is not there. */
rpc_model_t *rpc_need_model(rpc_call_t *call, const char *name);

/* ---- streams: stream.c ----------------------------------------------------------------------- */

typedef struct rpc_generation_s {
    char stream_id[129];
    rpc_model_t *model;        /* a counted reference, taken over */
    kr_segment_t segment;      /* borrowed from the call until rpc_stream_start returns */
    kr_sampler_params_t sampler;
    const char *stops[16];
    uint32_t n_stops;
    const kr_token_t *stop_tokens; /* malloc'd, taken over */
    uint32_t n_stop_tokens;
    uint32_t n_tokens_max, deadline_ms;
    bool ignore_end, is_stream, has_logprobs, no_cache;
    uint32_t n_tops;
    int32_t priority;
    uint32_t credits;          /* that the client gives at first; 0: as many as it takes */
    const char *prompt_name;   /* field of the prompt, for errors */
} rpc_generation_t;
/* Submits and answers, at once or at the end. Takes the call. */
void rpc_stream_start(rpc_call_t *call, rpc_generation_t *generation);
/* Its call is being answered: what came before the answer follows it. The client's lock is held. */
void rpc_stream_announce_locked(rpc_stream_t *stream);
/* Both false: there is no such stream. */
bool rpc_stream_cancel(rpc_conn_t *conn, const char *id);
bool rpc_stream_credit(rpc_conn_t *conn, const char *id, uint32_t n);
/* Ends all of a client, with KR_E_CANCELLED or KR_E_SHUTTING_DOWN. Its lock is held. */
void rpc_streams_cancel_locked(rpc_conn_t *conn, kr_status_t why);
/* Gives credits for what the client has taken. Its lock is held. */
void rpc_streams_resume_locked(rpc_conn_t *conn);
/* server_t.on_batch. */
int rpc_streams_on_batch(void *rpc);

/* ---- the methods: methods.def ---------------------------------------------------------------- */

#define KR_RPC(id, ...) void rpc_method_##id(rpc_call_t *call);
#include "methods.def"

#endif

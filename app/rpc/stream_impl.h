/* stream_impl.h: the inside of a stream, shared by stream.c (its life) and stream_events.c (what it
 * sends). */
#ifndef RPC_STREAM_IMPL_H
#define RPC_STREAM_IMPL_H

#include "inner.h"

#define RPC_TEXT_BYTES_MAX ((size_t)64 << 20)

struct rpc_stream_s {
    pump_user_t user;          /* first: kr_request_params_t.user */
    atomic_uint n_refs;
    rpc_t *rpc;
    rpc_conn_t *conn;          /* a reference */
    rpc_model_t *model;        /* a counted reference */
    char id[129];
    bool is_stream, has_logprobs;
    uint32_t n_tops;
    kr_token_t *stop_tokens;   /* [n_stop_tokens] */
    uint32_t n_stop_tokens;
    uint64_t created_ns;
    double started_at;         /* wall clock, s */
    kr_request_t handle;       /* set by submit, before the first event */
    rpc_call_t *call;          /* without streaming: answered at the end; the pump's */

    /* Under the client's lock. */
    rpc_stream_t *next, *prev;
    bool is_submitted, is_cancelled, is_shut_down;
    bool is_announced;         /* its call is answered: lines go to the client */
    bool is_over;
    bool is_open;              /* counted in conn->n_open */
    kri_buffer_t held;         /* lines before that, each with its newline */
    uint64_t granted;          /* tokens that the client allows in all */
    uint64_t given;            /* of these, that the engine may send */
    uint64_t n_sent, n_taken;  /* tokens in lines; of these, that the client has not left lying */

    /* The pump's. */
    rpc_stream_t *touched_next;
    bool is_touched;
    bool has_last;             /* the last token waits: it may be the final one */
    kr_token_t last_token;
    float last_logprob;
    kri_buffer_t last_text, last_tops;
    kri_buffer_t entries;      /* {...},{...} since the last line */
    uint32_t n_entries;
    kri_buffer_t text;         /* without streaming */
    kr_detokenizer_t detokenizer; /* with stop tokens: what the text holds back */
    uint64_t n_tokens, first_ns;
    const char *finish;        /* "eos", "stop", "length"; NULL: the choice goes on */
    bool is_ended;             /* its last event has come */
    kr_status_t status;        /* of the end */
    kr_error_t error;
};
void rpc_stream_take(pump_user_t *user, pump_t *pump, const kr_event_t *event);
void rpc_stream_release(rpc_stream_t *stream);
void rpc_stream_leave_locked(rpc_stream_t *stream);
/* embed.c: the same for embeddings of a client. */
void rpc_embeds_cancel_locked(rpc_conn_t *conn);

#endif

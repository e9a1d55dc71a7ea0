/* test_job.c: jobs over a tiny model, with a sink that the test controls: what is sent, in which
 * order of gone, done, error and submit; credits; that nothing is left behind. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "../../model/tiny.h"
#include "base/clock.h"
#include "server/endpoints.h"
#include "server/job_impl.h"
#include "server/pump.h"
#include "server/server.h"
#include "test.h"

/* ---- a client -------------------------------------------------------------------------------- */

typedef struct client_s {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    char *body;
    int status;                /* of the reply; 0 = none */
    bool has_begun, has_ended, is_whole, is_destroyed, is_gone;
    bool goes_at_watch;        /* has gone before anything is submitted */
    uint32_t goes_at_write;    /* after so many writes; 0 = never */
    bool takes;                /* what is written is taken at once */
    uint32_t n_writes;
    uint64_t n_waiting;        /* written and not taken */
    char text[1 << 20];
    size_t n_text;
    void (*gone)(void *user);
    void (*taken)(void *user, size_t n_bytes);
    void *user;
} client_t;

#define WAIT_FOR(client, condition)                                                              \
    do {                                                                                         \
        struct timespec wait_until;                                                              \
        clock_gettime(CLOCK_REALTIME, &wait_until);                                              \
        wait_until.tv_sec += 120;                                                                \
        pthread_mutex_lock(&(client)->mutex);                                                    \
        int wait_failed = 0;                                                                     \
        while (!(condition) && !wait_failed) {                                                   \
            wait_failed = pthread_cond_timedwait(&(client)->changed, &(client)->mutex,           \
                                                 &wait_until);                                   \
        }                                                                                        \
        pthread_mutex_unlock(&(client)->mutex);                                                  \
        if (wait_failed) fail_msg("never: %s", #condition);                                      \
    } while (0)

static void add_text(client_t *client, const char *text, size_t n_bytes) {
    if (client->n_text + n_bytes >= sizeof client->text) return;
    memcpy(client->text + client->n_text, text, n_bytes);
    client->n_text += n_bytes;
    client->text[client->n_text] = '\0';
}

static void on_reply(void *sink, int status, const char *type, const char *fields,
                     const char *body, size_t n_bytes) {
    client_t *client = sink;
    (void)type, (void)fields;
    pthread_mutex_lock(&client->mutex);
    client->status = status;
    add_text(client, body, n_bytes);
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->mutex);
}

static void on_begin(void *sink, const char *type, const char *fields, bool is_event_stream) {
    client_t *client = sink;
    (void)type, (void)fields, (void)is_event_stream;
    pthread_mutex_lock(&client->mutex);
    client->has_begun = true;
    pthread_mutex_unlock(&client->mutex);
}

static bool on_write(void *sink, const char *data, size_t n_bytes) {
    client_t *client = sink;
    void (*call_gone)(void *user) = NULL;
    void (*call_taken)(void *user, size_t n) = NULL;
    pthread_mutex_lock(&client->mutex);
    void *user = client->user;
    const bool is_here = !client->is_gone;
    client->n_writes++;
    if (is_here) add_text(client, data, n_bytes);
    if (client->takes) call_taken = client->taken;
    else client->n_waiting += n_bytes;
    if (client->goes_at_write > 0 && client->n_writes == client->goes_at_write) {
        client->is_gone = true;
        call_gone = client->gone;
    }
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->mutex);
    if (call_taken != NULL) call_taken(user, n_bytes);
    if (call_gone != NULL) call_gone(user);
    return is_here;
}

static void on_end(void *sink, bool whole) {
    client_t *client = sink;
    pthread_mutex_lock(&client->mutex);
    client->has_ended = true;
    client->is_whole = whole;
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->mutex);
}

static void on_watch(void *sink, void (*gone)(void *user), void (*taken)(void *user, size_t n),
                     void *user) {
    client_t *client = sink;
    pthread_mutex_lock(&client->mutex);
    client->gone = gone;
    client->taken = taken;
    client->user = user;
    client->is_gone = client->is_gone || client->goes_at_watch;
    pthread_mutex_unlock(&client->mutex);
    if (client->goes_at_watch) gone(user);
}

static void on_destroy(void *sink) {
    client_t *client = sink;
    pthread_mutex_lock(&client->mutex);
    client->is_destroyed = true;
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->mutex);
}

static const call_sink_t sink = {
    .reply = on_reply, .begin = on_begin, .write = on_write, .end = on_end, .watch = on_watch,
    .destroy = on_destroy, .can_stream = true};

static void client_leave(client_t *client) {
    pthread_mutex_lock(&client->mutex);
    client->is_gone = true;
    void (*gone)(void *user) = client->gone;
    void *user = client->user;
    pthread_mutex_unlock(&client->mutex);
    gone(user);
}

static void client_take(client_t *client) {
    pthread_mutex_lock(&client->mutex);
    const uint64_t n = client->n_waiting;
    client->n_waiting = 0;
    void *user = client->user;
    pthread_mutex_unlock(&client->mutex);
    client->taken(user, n);
}

static client_t *client_create(const char *body) {
    client_t *client = calloc(1, sizeof *client);
    pthread_mutex_init(&client->mutex, NULL);
    pthread_cond_init(&client->changed, NULL);
    client->body = strdup(body);
    client->takes = true;
    return client;
}

static void client_destroy(client_t *client) {
    WAIT_FOR(client, client->is_destroyed);
    pthread_mutex_destroy(&client->mutex);
    pthread_cond_destroy(&client->changed);
    free(client->body);
    free(client);
}

/* ---- the server ------------------------------------------------------------------------------ */

static server_t *make_server(uint32_t n_seqs, uint32_t queue_max) {
    server_t *server = NULL;
    kr_error_t error;
    kr_engine_params_t params;
    kr_session_params_t session;
    kr_error_init(&error);
    kr_engine_params_init(&params);
    kr_session_params_init(&session);
    params.n_threads = 1;
    params.queue_max = queue_max;
    params.kv_bytes_max = (uint64_t)1 << 28;
    session.n_seqs = n_seqs;
    session.invariant = KR_INVARIANT_ON;
    kr_model_t model = open_tiny("llama");
    assert_status(server_create(&params, &server, &error), KR_OK);
    assert_status(server_add_model(server, "tiny", "tiny.gguf", model, &session, &error), KR_OK);
    assert_status(server_begin(server, &error), KR_OK);
    kr_model_close(model);
    return server;
}

static void start(server_t *server, client_t *client, const char *path) {
    const endpoint_match_t match = endpoint_find("POST", 4, path, strlen(path));
    assert_non_null(match.endpoint);
    const call_params_t params = {.server = server, .endpoint = match.endpoint, .id = "test",
                                  .principal = {.scopes = SCOPE_GENERATE}, .body = client->body,
                                  .body_bytes = strlen(client->body), .tail = "", .sink = &sink,
                                  .sink_user = client};
    call_t *call = call_create(&params);
    assert_non_null(call);
    match.endpoint->run(call);
    call_release(call);
}

static client_t *ask(server_t *server, const char *path, const char *body) {
    client_t *client = client_create(body);
    start(server, client, path);
    return client;
}

static void wait_idle(server_t *server) {
    kr_engine_stats_t stats;
    for (uint32_t i = 0; i < 60000; i++) {
        kr_engine_stats_init(&stats);
        assert_status(kr_engine_stats(server->engine, NULL, &stats), KR_OK);
        if (stats.n_running == 0 && stats.n_waiting == 0 && job_count() == 0) {
            assert_int_equal(stats.kv_bytes_used, 0);
            return;
        }
        const struct timespec pause = {.tv_nsec = 2000000};
        (void)nanosleep(&pause, NULL);
    }
    fail_msg("something is left");
}

static uint32_t count(const char *text, const char *word) {
    uint32_t n = 0;
    for (; (text = strstr(text, word)) != NULL; text += strlen(word)) n++;
    return n;
}

/* All "content" or "text" of a stream's chunks of one index, as JSON escapes stand. */
static void collect_text(const char *stream, uint32_t index, char *out, size_t cap) {
    size_t n = 0;
    char head[64];
    snprintf(head, sizeof head, "\"choices\":[{\"index\":%u,", index);
    for (const char *at = stream; (at = strstr(at, head)) != NULL;) {
        at += strlen(head);
        const char *line_end = strchr(at, '\n');
        const char *text = strstr(at, "\"text\":\"");
        size_t skip = 8;
        if (text == NULL || text > line_end) {
            text = strstr(at, "\"content\":\"");
            skip = 11;
        }
        if (text == NULL || text > line_end) continue;
        for (text += skip; *text != '"' && n + 2 < cap; text++) {
            if (*text == '\\') out[n++] = *text++;
            out[n++] = *text;
        }
    }
    out[n] = '\0';
}

static void whole_text(const char *reply, uint32_t index, char *out, size_t cap) {
    char head[64];
    size_t n = 0;
    snprintf(head, sizeof head, "{\"index\":%u,", index);
    const char *text = strstr(reply, head);
    assert_non_null(text);
    const char *content = strstr(text, "\"content\":\"");
    const char *plain = strstr(text, "\"text\":\"");
    text = content != NULL ? content + 11 : plain + 8;
    for (; *text != '"' && n + 2 < cap; text++) {
        if (*text == '\\') out[n++] = *text++;
        out[n++] = *text;
    }
    out[n] = '\0';
}

static const char *const COMPLETIONS = "/v1/completions";
static const char *const CHAT = "/v1/chat/completions";

static const char *const LONG_STREAM = "{\"prompt\":\"a\",\"max_tokens\":400,\"ignore_eos\":true,"
                                       "\"stream\":true}";

/* A stream without credits, which holds a sequence. */
static client_t *hold(server_t *server) {
    client_t *client = client_create(LONG_STREAM);
    client->takes = false;
    start(server, client, COMPLETIONS);
    WAIT_FOR(client, client->n_writes > 0);
    return client;
}

/* ---- tests ----------------------------------------------------------------------------------- */

TEST(job_streams_what_it_answers_whole) {
    server_t *server = make_server(4, 64);
    static const char *const bodies[][2] = {
        {"/v1/completions", "\"prompt\":\"the end\",\"max_tokens\":40,\"seed\":7"},
        {"/v1/completions", "\"prompt\":[\"a\",\"of the\",[5,6,7]],\"n\":2,\"max_tokens\":30,"
                            "\"seed\":1,\"echo\":true"},
        {"/v1/chat/completions", "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                                 "\"max_tokens\":50,\"seed\":3,\"n\":3"},
        {"/v1/chat/completions", "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                                 "\"max_tokens\":60,\"seed\":3,\"stop\":[\"e\",\"o\"]"},
    };
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        char body[512], whole[8192], streamed[8192];
        snprintf(body, sizeof body, "{%s}", bodies[i][1]);
        client_t *one = ask(server, bodies[i][0], body);
        snprintf(body, sizeof body, "{%s,\"stream\":true}", bodies[i][1]);
        client_t *two = ask(server, bodies[i][0], body);
        WAIT_FOR(one, one->is_destroyed);
        WAIT_FOR(two, two->is_destroyed);
        assert_int_equal(one->status, 200);
        assert_int_equal(two->status, 0);
        assert_true(two->has_ended && two->is_whole);
        const char *done = strstr(two->text, "data: [DONE]\n\n");
        assert_non_null(done);
        assert_int_equal(strlen(done), 14);
        const uint32_t n = i == 1 ? 6 : i == 2 ? 3 : 1;
        for (uint32_t k = 0; k < n; k++) {
            whole_text(one->text, k, whole, sizeof whole);
            collect_text(two->text, k, streamed, sizeof streamed);
            assert_string_equal(streamed, whole);
        }
        client_destroy(one);
        client_destroy(two);
    }
    wait_idle(server);
    server_destroy(server);
}

TEST(job_writes_once_a_step) {
    server_t *server = make_server(8, 64);
    client_t *client = ask(server, CHAT,
                           "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"n\":8,"
                           "\"max_tokens\":50,\"ignore_eos\":true,\"stream\":true,"
                           "\"logprobs\":true}");
    WAIT_FOR(client, client->has_ended);
    assert_int_equal(count(client->text, "\"logprob\":"), 400);
    /* Choices join the first one a step or two later. */
    assert_in_range(client->n_writes, 1, 60);
    client_destroy(client);
    server_destroy(server);
}

TEST(job_renders_long_answers_too) {
    server_t *server = make_server(8, 64);
    client_t *clients[3];
    for (uint32_t i = 0; i < 3; i++) {
        clients[i] = ask(server, CHAT,
                         "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"n\":4,"
                         "\"max_tokens\":60,\"ignore_eos\":true,\"logprobs\":true,"
                         "\"top_logprobs\":20}");
    }
    for (uint32_t i = 0; i < 3; i++) {
        WAIT_FOR(clients[i], clients[i]->is_destroyed);
        assert_int_equal(clients[i]->status, 200);
        assert_int_equal(count(clients[i]->text, "\"top_logprobs\":"), 240);
        client_destroy(clients[i]);
    }
    wait_idle(server);
    server_destroy(server);
}

TEST(job_begins_a_stream_that_waits_long) {
    server_t *server = make_server(1, 64);
    static const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                               "\"max_tokens\":400,\"ignore_eos\":true,\"stream\":true}";
    client_t *running = client_create(body), *waiting = client_create(body);
    running->takes = waiting->takes = false;
    start(server, running, CHAT);
    WAIT_FOR(running, running->n_writes > 0);
    start(server, waiting, CHAT);
    (void)job_open_waiting(kri_clock_ns() + 2 * JOB_HOLD_NS); /* as if it were later */
    WAIT_FOR(waiting, waiting->has_begun && waiting->n_writes > 0);
    assert_non_null(strstr(waiting->text, "\"role\":\"assistant\""));
    client_leave(waiting);
    client_leave(running);
    client_destroy(waiting);
    client_destroy(running);
    wait_idle(server);
    server_destroy(server);
}

TEST(job_pauses_until_the_client_takes) {
    server_t *server = make_server(2, 64);
    client_t *slow = client_create("{\"prompt\":\"a\",\"max_tokens\":200,\"ignore_eos\":true,"
                                   "\"stream\":true,\"logprobs\":0}");
    slow->takes = false;
    start(server, slow, COMPLETIONS);
    for (uint32_t wanted = 32; wanted <= 200; wanted += wanted < 192 ? 32 : 8) {
        WAIT_FOR(slow, count(slow->text, "\"tokens\":[") >= wanted); /* what its credits allow */
        /* Another one runs from begin to end meanwhile; this one has not moved. */
        client_t *other = ask(server, COMPLETIONS, "{\"prompt\":\"b\",\"max_tokens\":50}");
        client_destroy(other);
        pthread_mutex_lock(&slow->mutex);
        assert_int_equal(count(slow->text, "\"tokens\":["), wanted);
        pthread_mutex_unlock(&slow->mutex);
        client_take(slow);
    }
    WAIT_FOR(slow, slow->has_ended);
    assert_true(slow->is_whole);
    assert_non_null(strstr(slow->text, "[DONE]"));
    client_destroy(slow);
    wait_idle(server);
    server_destroy(server);
}

TEST(job_goes_on_through_tokens_that_show_nothing) {
    server_t *server = make_server(1, 64);
    client_t *mute = client_create("{\"prompt\":\"a\",\"max_tokens\":200,\"stream\":true,"
                                   "\"logit_bias\":{\"302\":100}}");
    mute->takes = false;
    start(server, mute, COMPLETIONS);
    WAIT_FOR(mute, mute->has_ended);
    assert_non_null(strstr(mute->text, "\"finish_reason\":\"length\""));
    assert_non_null(strstr(mute->text, "\"n_generated\":200"));
    client_destroy(mute);
    wait_idle(server);
    server_destroy(server);
}

TEST(job_ends_what_runs_when_the_client_goes) {
    server_t *server = make_server(1, 64);
    static const char plain[] = "{\"prompt\":\"a\",\"max_tokens\":400,\"ignore_eos\":true}";

    client_t *early = client_create(LONG_STREAM); /* before the submit */
    early->goes_at_watch = true;
    start(server, early, COMPLETIONS);
    client_destroy(early);

    client_t *running = hold(server); /* the only sequence */
    client_t *queued = ask(server, COMPLETIONS, plain);
    client_t *queued_stream = ask(server, COMPLETIONS, LONG_STREAM);
    client_leave(queued_stream);
    client_destroy(queued_stream);
    client_leave(queued);
    client_destroy(queued);
    assert_false(running->has_ended);
    client_leave(running);
    client_destroy(running);
    wait_idle(server);

    client_t *decoding = client_create(LONG_STREAM);
    decoding->goes_at_write = 3;
    start(server, decoding, COMPLETIONS);
    client_destroy(decoding);
    wait_idle(server);
    server_destroy(server);
}

TEST(job_is_refused_as_a_whole) {
    server_t *server = make_server(2, 3);
    client_t *bad = ask(server, COMPLETIONS,
                        "{\"prompt\":[[5],[6],[999999]],\"max_tokens\":400,\"ignore_eos\":true,"
                        "\"stream\":true}");
    WAIT_FOR(bad, bad->is_destroyed);
    assert_int_equal(bad->status, 400);
    assert_false(bad->has_begun);
    assert_non_null(strstr(bad->text, "\"param\":\"prompt.2\""));
    client_destroy(bad);
    client_t *many = ask(server, COMPLETIONS,
                         "{\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\",\"j\","
                         "\"k\"],\"max_tokens\":400,\"ignore_eos\":true}");
    WAIT_FOR(many, many->is_destroyed);
    assert_int_equal(many->status, 429);
    assert_non_null(strstr(many->text, "queue_full"));
    client_destroy(many);
    client_t *longer = client_create("");
    free(longer->body);
    longer->body = calloc(1, 8192);
    strcpy(longer->body, "{\"prompt\":[1");
    for (uint32_t i = 1; i < 600; i++) strcat(longer->body, ",1");
    strcat(longer->body, "]}");
    start(server, longer, COMPLETIONS);
    WAIT_FOR(longer, longer->is_destroyed);
    assert_int_equal(longer->status, 400);
    assert_non_null(strstr(longer->text, "context_length_exceeded"));
    assert_non_null(strstr(longer->text, "600 tokens"));
    assert_non_null(strstr(longer->text, "512"));
    client_destroy(longer);
    wait_idle(server);
    server_destroy(server);
}

TEST(job_fails_late_with_one_event) {
    server_t *server = make_server(1, 64);
    client_t *late = client_create("{\"prompt\":\"a\",\"max_tokens\":400,\"ignore_eos\":true,"
                                   "\"stream\":true,\"deadline_ms\":500}");
    late->takes = false; /* it is out of credits when its time is over */
    start(server, late, COMPLETIONS);
    WAIT_FOR(late, late->has_ended || late->status != 0);
    /* On a machine so slow that no token came in time it is an error before the first byte. */
    if (late->status != 0) assert_int_equal(late->status, 504);
    else assert_true(late->is_whole);
    assert_non_null(strstr(late->text, "deadline_exceeded"));
    assert_null(strstr(late->text, "[DONE]"));
    assert_null(strstr(late->text, "\"finish_reason\":\""));
    client_destroy(late);
    wait_idle(server);
    server_destroy(server);
}

TEST(job_tells_streams_that_the_server_ends) {
    server_t *server = make_server(1, 64);
    client_t *running = client_create("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                                      "\"max_tokens\":400,\"ignore_eos\":true,\"stream\":true}");
    running->takes = false;
    start(server, running, CHAT);
    WAIT_FOR(running, running->n_writes > 0);
    client_t *queued = client_create(LONG_STREAM);
    queued->takes = false;
    start(server, queued, COMPLETIONS);
    assert_int_equal(job_count(), 2);
    (void)kr_engine_drain(server->engine, 0);
    job_abort_all(KR_E_SHUTTING_DOWN);
    WAIT_FOR(running, running->has_ended);
    WAIT_FOR(queued, queued->status != 0 || queued->has_ended);
    assert_true(running->is_whole);
    assert_non_null(strstr(running->text, "data: {\"error\":{"));
    assert_non_null(strstr(running->text, "shutting_down"));
    assert_null(strstr(running->text, "[DONE]"));
    /* It had the sequence if the machine was slow enough for the other one to be put aside. */
    assert_true(queued->has_begun ? queued->is_whole : queued->status == 503);
    assert_non_null(strstr(queued->text, "shutting_down"));
    client_destroy(running);
    client_destroy(queued);
    client_t *after = ask(server, COMPLETIONS, "{\"prompt\":\"a\"}");
    assert_int_equal(after->status, 503);
    client_destroy(after);
    server_destroy(server);
}

/* ---- many at once ---------------------------------------------------------------------------- */

typedef struct crowd_s {
    server_t *server;
    uint64_t seed;
    uint32_t n_jobs;
} crowd_t;

static void *crowd_main(void *arg) {
    crowd_t *crowd = arg;
    for (uint32_t i = 0; i < crowd->n_jobs; i++) {
        const uint64_t random = tiny_random(crowd->seed, i);
        char body[256];
        snprintf(body, sizeof body,
                 "{\"prompt\":[\"a\",[%u,7,8,9]],\"n\":%u,\"max_tokens\":%u,\"ignore_eos\":true,"
                 "\"logprobs\":%u,\"stream\":%s}",
                 (unsigned)(random % 200), (unsigned)(random >> 8 & 1) + 1,
                 (unsigned)(random >> 16 & 31) + 1, (unsigned)(random >> 24 & 3),
                 random >> 32 & 3 ? "true" : "false");
        client_t *client = client_create(body);
        const uint32_t fate = random >> 40 & 7;
        if (fate == 0) client->goes_at_watch = true;
        if (fate == 1) client->goes_at_write = 1;
        if (fate == 2) client->goes_at_write = 2 + (random >> 48 & 7);
        start(crowd->server, client, COMPLETIONS);
        if (fate == 3) client_leave(client);
        WAIT_FOR(client, client->is_destroyed);
        if (fate >= 4) {
            assert_true(client->status == 200 || (client->has_ended && client->is_whole));
        }
        client_destroy(client);
    }
    return NULL;
}

TEST(job_survives_every_order_of_ends) {
    server_t *server = make_server(4, 64);
    pthread_t threads[4];
    crowd_t crowds[4];
    for (uint32_t i = 0; i < 4; i++) {
        crowds[i] = (crowd_t){.server = server, .seed = i + 1, .n_jobs = 40};
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_main, &crowds[i]), 0);
    }
    for (uint32_t i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    wait_idle(server);
    server_destroy(server);
}

/* ---- pooling --------------------------------------------------------------------------------- */

static const char *const EMBEDDINGS = "/v1/embeddings";

/* {"input":[[1],[2],...],...}: n inputs of one token. */
static client_t *ask_vectors(server_t *server, uint32_t n, const char *more) {
    client_t *client = client_create("");
    free(client->body);
    client->body = malloc(16 * n + 256);
    static const char head[] = "{%s\"encoding_format\":\"base64\",\"input\":[";
    size_t at = (size_t)sprintf(client->body, head, more);
    for (uint32_t i = 0; i < n; i++) {
        at += (size_t)sprintf(client->body + at, "%s[%u]", i ? "," : "", 1 + i % 300);
    }
    strcpy(client->body + at, "]}");
    start(server, client, EMBEDDINGS);
    return client;
}

TEST(job_pools_more_prompts_than_the_queue_holds) {
    server_t *server = make_server(2, 3);
    client_t *one = ask_vectors(server, 1, "");
    WAIT_FOR(one, one->is_destroyed);
    client_t *clients[4];
    for (uint32_t i = 0; i < 4; i++) clients[i] = ask_vectors(server, 301, "");
    for (uint32_t i = 0; i < 4; i++) {
        WAIT_FOR(clients[i], clients[i]->is_destroyed);
        /* The queue may have had no place for the first prompt of a later call. Whoever has begun
         * gets to the end, also with the queue full of the others' prompts. */
        if (clients[i]->status == 429) {
            assert_non_null(strstr(clients[i]->text, "queue_full"));
        } else {
            assert_int_equal(clients[i]->status, 200);
            assert_int_equal(count(clients[i]->text, "\"object\":\"embedding\""), 301);
            /* The first and the last input are the same token. */
            const char *first = strstr(one->text, "\"embedding\":\"");
            const char *begin = strstr(clients[i]->text, "\"embedding\":\"");
            const char *last = strstr(clients[i]->text, "\"index\":300,");
            assert_non_null(last);
            last = strstr(last, "\"embedding\":\"");
            assert_memory_equal(begin, first, 64 * 4 * 4 / 3);
            assert_memory_equal(last, first, 64 * 4 * 4 / 3);
        }
    }
    assert_int_equal(clients[0]->status, 200);
    for (uint32_t i = 0; i < 4; i++) client_destroy(clients[i]);
    client_destroy(one);
    wait_idle(server);
    server_destroy(server);
}

/* Its own prompts must not make each other wait until the queue's time is over. */
TEST(job_with_pooling_submits_few_long_prompts_at_a_time) {
    server_t *server = make_server(1, 64);
    client_t *holder = hold(server);
    client_t *client = client_create("");
    free(client->body);
    client->body = calloc(1, 1 << 16);
    char *at = client->body + sprintf(client->body, "{\"input\":[");
    for (uint32_t i = 0; i < 20; i++) {
        at += sprintf(at, "%s[%u", i ? "," : "", i);
        for (uint32_t k = 1; k < 500; k++) at += sprintf(at, ",7");
        at += sprintf(at, "]");
    }
    (void)sprintf(at, "]}");
    start(server, client, EMBEDDINGS);
    kr_engine_stats_t stats;
    kr_engine_stats_init(&stats);
    assert_status(kr_engine_stats(server->engine, NULL, &stats), KR_OK);
    /* 4 x 500 tokens and the holder. */
    assert_in_range(stats.n_running + stats.n_waiting, 1, 5);
    client_leave(holder);
    client_destroy(holder);
    WAIT_FOR(client, client->is_destroyed);
    assert_int_equal(client->status, 200);
    assert_int_equal(count(client->text, "\"object\":\"embedding\""), 20);
    assert_non_null(strstr(client->text, "\"prompt_tokens\":10000,"));
    client_destroy(client);
    wait_idle(server);
    server_destroy(server);
}

TEST(job_with_pooling_ends_when_the_client_goes) {
    server_t *server = make_server(1, 64);
    client_t *holder = hold(server);
    client_t *queued = ask_vectors(server, 200, "");
    client_leave(queued);
    client_destroy(queued);
    /* Also alone it would take longer than that. */
    client_t *late = ask_vectors(server, 2000, "\"deadline_ms\":1,");
    WAIT_FOR(late, late->is_destroyed);
    assert_int_equal(late->status, 504);
    client_destroy(late);
    client_leave(holder);
    client_destroy(holder);
    wait_idle(server);
    for (uint32_t i = 0; i < 20; i++) { /* anywhere on its way */
        client_t *leaving = ask_vectors(server, 500, "");
        WAIT_FOR(leaving, leaving->gone != NULL || leaving->status != 0);
        const struct timespec pause = {.tv_nsec = (long)i * 500000};
        (void)nanosleep(&pause, NULL);
        client_leave(leaving);
        client_destroy(leaving);
    }
    wait_idle(server);
    server_destroy(server);
}

/* test_http_stream.c: answers in pieces: what leaves when, who is told what was taken, and that a
 * client's going is noticed whatever its request is doing. */
#define _GNU_SOURCE
#include "http_rig.h"

#define CHUNKS "\r\nTransfer-Encoding: chunked\r\n"

static _Atomic(http_exchange_t *) kept;
static atomic_int n_gone;
static atomic_ullong n_taken;

static void count_gone(void *user) {
    assert_ptr_equal(user, &n_gone);
    atomic_fetch_add(&n_gone, 1);
}

static void count_taken(void *user, size_t n_bytes) {
    assert_ptr_equal(user, &n_gone);
    assert_true(n_bytes > 0);
    atomic_fetch_add(&n_taken, n_bytes);
}

static void keep(http_exchange_t *exchange) {
    http_retain(exchange);
    atomic_store(&kept, exchange);
}

static void start(const http_params_t *params) {
    rig_start(params);
    rig.on_request = keep;
    n_gone = 0;
    n_taken = 0;
    kept = NULL;
}

static http_exchange_t *wait_kept(void) {
    RIG_UNTIL(atomic_load(&kept) != NULL);
    return atomic_exchange(&kept, NULL);
}

/* A request that waits for its answer: the exchange, watched. */
static http_exchange_t *ask(int fd, const char *request) {
    rig_send(fd, request);
    http_exchange_t *exchange = wait_kept();
    http_watch(exchange, count_gone, count_taken, &n_gone);
    return exchange;
}

static void begin(http_exchange_t *exchange, bool is_events) {
    http_stream_begin(exchange, 200, is_events ? "text/event-stream" : "application/x-ndjson",
                      "X-Own: 1\r\n", is_events);
}

static void put(http_exchange_t *exchange, const char *text) {
    assert_true(http_stream_write(exchange, text, strlen(text)));
}

static kri_buffer_t new_input(void) {
    kri_buffer_t in;
    kri_buffer_init(&in, (size_t)64 << 20);
    return in;
}

TEST(http_stream_sends_what_was_written_at_the_flush_in_one_chunk) {
    const http_params_t params = rig_params();
    start(&params);
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    http_exchange_t *exchange = ask(fd, GET("/"));
    begin(exchange, false);
    put(exchange, "ab");
    put(exchange, "");
    put(exchange, "cd");
    http_flush(rig.server);
    rig_read_until(fd, &in, "abcd");
    assert_non_null(strstr(in.data, CHUNKS));
    assert_non_null(strstr(in.data, "\r\nX-Own: 1\r\n"));
    assert_non_null(strstr(in.data, "\r\n\r\n4\r\nabcd\r\n"));
    kri_buffer_clear(&in);
    for (int i = 0; i < 300; i++) put(exchange, "0123456789");
    http_flush(rig.server);
    rig_read_until(fd, &in, "\r\n");
    assert_memory_equal(in.data, "bb8\r\n", 5); /* 3000 bytes, one chunk */
    while (in.n_bytes < 3007) assert_true(rig_receive(fd, &in));
    RIG_UNTIL(atomic_load(&n_taken) == 3004);
    kri_buffer_clear(&in);
    put(exchange, "last"); /* what comes with the end is not reported */
    http_stream_end(exchange, true);
    rig_read_until(fd, &in, "0\r\n\r\n");
    assert_string_equal(in.data, "4\r\nlast\r\n0\r\n\r\n");
    const rig_done_t done = rig_done_at(0);
    assert_int_equal(n_taken, 3004);
    assert_int_equal(done.status, 200);
    assert_int_equal(done.n_bytes, 3008);
    assert_false(http_stream_write(exchange, "x", 1));
    http_release(exchange);
    exchange = ask(fd, GET("/")); /* the connection goes on */
    rig_reply(exchange, 200, "", false);
    http_release(exchange);
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
    assert_int_equal(n_gone, 0);
}

TEST(http_stream_ends_with_the_connection_for_http_1_0) {
    const http_params_t params = rig_params();
    start(&params);
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    http_exchange_t *exchange = ask(fd, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    begin(exchange, false);
    put(exchange, "abc");
    http_flush(rig.server);
    put(exchange, "def");
    http_stream_end(exchange, true);
    http_release(exchange);
    rig_read_all(fd, &in);
    assert_null(strstr(in.data, "chunked"));
    assert_non_null(strstr(in.data, "\r\nConnection: close\r\n"));
    assert_non_null(strstr(in.data, "\r\n\r\nabcdef"));
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

TEST(http_stream_has_no_body_for_head) {
    const http_params_t params = rig_params();
    start(&params);
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    http_exchange_t *exchange = ask(fd, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    begin(exchange, true);
    put(exchange, "data: 1\n\n");
    http_flush(rig.server);
    RIG_UNTIL(atomic_load(&n_taken) == 9); /* as if: the writer goes on */
    http_stream_end(exchange, true);
    http_release(exchange);
    exchange = ask(fd, GET("/"));
    rig_reply(exchange, 404, "", false);
    http_release(exchange);
    rig_read_until(fd, &in, "HTTP/1.1 404 ");
    assert_non_null(strstr(in.data, CHUNKS));
    assert_non_null(strstr(in.data, "\r\n\r\nHTTP/1.1 404 "));
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

TEST(http_stream_that_is_not_whole_ends_without_its_last_chunk) {
    const http_params_t params = rig_params();
    start(&params);
    for (int is_old = 0; is_old < 2; is_old++) {
        const int fd = rig_connect();
        kri_buffer_t in = new_input();
        http_exchange_t *exchange = ask(fd, is_old ? "GET / HTTP/1.0\r\n\r\n" : GET("/"));
        begin(exchange, false);
        put(exchange, "abc");
        http_flush(rig.server);
        rig_read_until(fd, &in, "abc");
        http_stream_end(exchange, false);
        http_release(exchange);
        if (is_old) { /* its end is the connection's: only a reset can say that it is none */
            char byte;
            while (recv(fd, &byte, 1, 0) > 0) {}
            assert_int_equal(errno, ECONNRESET);
        } else {
            rig_read_all(fd, &in);
            assert_null(strstr(in.data, "0\r\n\r\n"));
        }
        assert_int_equal(rig_done_at(is_old).status, 200);
        kri_buffer_deinit(&in);
        (void)close(fd);
    }
    rig_stop();
    assert_int_equal(n_gone, 0);
}

TEST(http_stream_tells_every_byte_that_a_slow_reader_takes) {
    http_params_t params = rig_params();
    params.limits.stream_bytes = (uint64_t)64 << 20;
    start(&params);
    const int fd = rig_connect_small();
    kri_buffer_t in = new_input();
    http_exchange_t *exchange = ask(fd, GET("/"));
    begin(exchange, false);
    static char block[65536];
    memset(block, '#', sizeof block);
    const uint64_t n_all = sizeof block * 256; /* more than the kernel holds */
    for (int i = 0; i < 256; i++) {
        assert_true(http_stream_write(exchange, block, sizeof block));
        http_flush(rig.server);
    }
    put(exchange, "@"); /* and a byte of another batch */
    http_flush(rig.server);
    assert_true(atomic_load(&n_taken) < n_all);
    size_t n_x = 0;
    while (!rig_has(&in, "@")) {
        kri_buffer_clear(&in);
        assert_true(rig_receive(fd, &in));
        for (size_t i = 0; i < in.n_bytes; i++) n_x += in.data[i] == '#';
    }
    assert_int_equal(n_x, n_all);
    RIG_UNTIL(atomic_load(&n_taken) == n_all + 1);
    http_stream_end(exchange, true);
    http_release(exchange);
    assert_int_equal(rig_done_at(0).n_bytes, n_all + 1);
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

/* ---- clients that go ------------------------------------------------------------------------- */

enum leaving_e { LEAVE_CLOSE, LEAVE_RESET, LEAVE_HALF, N_LEAVINGS };

static void leave(int fd, int how) {
    if (how == LEAVE_RESET) rig_reset(fd);
    else if (how == LEAVE_CLOSE) (void)close(fd);
    else (void)shutdown(fd, SHUT_WR);
}

TEST(http_stream_client_that_goes_is_noticed_while_its_request_waits_for_an_answer) {
    const http_params_t params = rig_params();
    start(&params);
    for (int how = 0; how < N_LEAVINGS; how++) {
        for (int has_begun = 0; has_begun < 2; has_begun++) {
            n_gone = 0;
            const int n_before = rig.n_done, fd = rig_connect();
            http_exchange_t *exchange = ask(fd, GET("/"));
            if (has_begun) {
                begin(exchange, true);
                http_flush(rig.server);
                kri_buffer_t in = new_input();
                rig_read_until(fd, &in, "\r\n\r\n");
                kri_buffer_deinit(&in);
            }
            leave(fd, how);
            assert_int_equal(rig_done_at(n_before).status, 499);
            RIG_UNTIL(atomic_load(&n_gone) == 1);
            assert_false(http_stream_write(exchange, "x", 1));
            http_stream_end(exchange, true);
            if (how == LEAVE_HALF) (void)close(fd);
            /* Who watches only now is told at once, on this thread. */
            http_watch(exchange, count_gone, NULL, &n_gone);
            assert_int_equal(n_gone, 2);
            http_watch(exchange, NULL, NULL, NULL);
            http_release(exchange);
        }
    }
    assert_int_equal(rig.n_done, 2 * N_LEAVINGS);
    rig_stop();
}

static atomic_int n_ran;

static void wait_at_the_gate(http_exchange_t *exchange) {
    atomic_fetch_add(&n_ran, 1);
    rig_gate_wait();
    rig_reply(exchange, 200, "", false);
}

TEST(http_stream_client_that_goes_takes_its_request_out_of_the_queue) {
    http_params_t params = rig_params();
    params.n_workers = 1;
    start(&params);
    rig.on_request = wait_at_the_gate;
    n_ran = 0;
    const int first = rig_connect();
    rig_send(first, GET("/first"));
    RIG_UNTIL(rig_gate_waiting() == 1);
    for (int how = 0; how < N_LEAVINGS; how++) { /* behind the first */
        const int fd = rig_connect();
        rig_send(fd, GET("/gone"));
        RIG_UNTIL(atomic_load(&rig.n_heads) == 2 + how);
        leave(fd, how);
        const rig_done_t done = rig_done_at(how);
        assert_int_equal(done.status, 499);
        assert_string_equal(done.path, "/gone");
        if (how == LEAVE_HALF) (void)close(fd);
    }
    rig_gate_open(1);
    assert_int_equal(rig_done_at(N_LEAVINGS).status, 200);
    rig_stop();
    (void)close(first);
    assert_int_equal(n_ran, 1);
}

TEST(http_stream_client_that_goes_in_its_request_is_reported) {
    const http_params_t params = rig_params();
    start(&params);
    int fd = rig_connect();
    rig_send(fd, "GET /");
    leave(fd, LEAVE_CLOSE);
    rig_done_t done = rig_done_at(0);
    assert_int_equal(done.status, 499);
    assert_string_equal(done.path, "");
    fd = rig_connect();
    rig_send(fd, "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell");
    RIG_UNTIL(atomic_load(&rig.n_heads) == 1);
    leave(fd, LEAVE_CLOSE);
    done = rig_done_at(1);
    assert_int_equal(done.status, 499);
    assert_string_equal(done.path, "/a");
    fd = rig_connect(); /* without a byte: nothing to report */
    leave(fd, LEAVE_CLOSE);
    fd = rig_connect();
    http_exchange_t *exchange = ask(fd, GET("/b"));
    rig_reply(exchange, 200, "", false);
    http_release(exchange);
    assert_string_equal(rig_done_at(2).path, "/b");
    (void)close(fd);
    rig_stop();
    assert_int_equal(rig.n_done, 3);
}

TEST(http_stream_watcher_is_not_told_after_the_answer_has_ended) {
    http_params_t params = rig_params();
    params.limits.stream_bytes = (uint64_t)64 << 20;
    start(&params);
    const int fd = rig_connect_small();
    http_exchange_t *exchange = ask(fd, GET("/"));
    begin(exchange, false);
    static char block[65536];
    for (int i = 0; i < 256; i++) assert_true(http_stream_write(exchange, block, sizeof block));
    http_stream_end(exchange, true); /* and cannot leave: the client reads nothing */
    leave(fd, LEAVE_CLOSE);
    assert_int_equal(rig_done_at(0).status, 499);
    assert_int_equal(n_gone, 0);
    http_release(exchange);
    rig_stop();
}

TEST(http_stream_client_that_takes_nothing_counts_as_gone) {
    http_params_t params = rig_params();
    params.limits.stream_bytes = (uint64_t)64 << 20;
    params.limits.write_stall_ms = 50;
    start(&params);
    const int fd = rig_connect_small();
    http_exchange_t *exchange = ask(fd, GET("/"));
    begin(exchange, false);
    static char block[65536];
    for (int i = 0; i < 256; i++) (void)http_stream_write(exchange, block, sizeof block);
    http_flush(rig.server);
    RIG_UNTIL(atomic_load(&n_gone) == 1);
    assert_int_equal(rig_done_at(0).status, 499);
    http_release(exchange);
    (void)close(fd);
    rig_stop();
}

TEST(http_stream_writer_that_does_not_wait_for_its_client_is_cut_off) {
    http_params_t params = rig_params();
    params.limits.stream_bytes = 1000;
    start(&params);
    const int fd = rig_connect();
    http_exchange_t *exchange = ask(fd, GET("/"));
    begin(exchange, false);
    char block[1000];
    memset(block, 'x', sizeof block);
    assert_true(http_stream_write(exchange, block, 999));
    assert_true(http_stream_write(exchange, block, 1));
    assert_false(http_stream_write(exchange, block, 1));
    RIG_UNTIL(atomic_load(&n_gone) == 1);
    assert_int_equal(rig_done_at(0).status, 499);
    http_release(exchange);
    (void)close(fd);
    rig_stop();
}

/* ---- heartbeats ------------------------------------------------------------------------------ */

TEST(http_stream_of_events_beats_while_it_is_silent_between_two_events) {
    http_params_t params = rig_params();
    params.limits.heartbeat_ms = 5;
    start(&params);
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    http_exchange_t *exchange = ask(fd, GET("/"));
    begin(exchange, true);
    http_flush(rig.server);
    rig_read_until(fd, &in, "3\r\n:\n\n\r\n3\r\n:\n\n\r\n3\r\n:\n\n\r\n");
    put(exchange, "data: half"); /* no comment inside an event */
    http_flush(rig.server);
    rig_read_until(fd, &in, "data: half\r\n");
    const char *half = strstr(in.data, "data: half\r\n");
    assert_string_equal(half, "data: half\r\n");
    usleep(30000); /* as long as it takes: none may come, however long */
    put(exchange, "data\n\n");
    http_flush(rig.server);
    rig_read_until(fd, &in, "data\n\n\r\n3\r\n:\n\n\r\n");
    assert_non_null(strstr(in.data, "data: half\r\n6\r\ndata\n\n\r\n"));
    http_stream_end(exchange, true);
    rig_read_until(fd, &in, "0\r\n\r\n");
    http_release(exchange);
    assert_int_equal(rig_done_at(0).n_bytes, 16); /* comments are not the answer's */
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

TEST(http_stream_of_other_kinds_does_not_beat) {
    http_params_t params = rig_params();
    params.limits.heartbeat_ms = 1;
    start(&params);
    const int fd = rig_connect(), other = rig_connect();
    kri_buffer_t in = new_input(), beats = new_input();
    http_exchange_t *exchange = ask(fd, GET("/"));
    begin(exchange, false);
    http_flush(rig.server);
    http_exchange_t *events = ask(other, "GET / HTTP/1.0\r\n\r\n");
    begin(events, true);
    http_flush(rig.server);
    rig_read_until(other, &beats, ":\n\n:\n\n:\n\n:\n\n"); /* while this one beats, bare in 1.0 */
    put(exchange, "end");
    http_stream_end(exchange, true);
    rig_read_until(fd, &in, "0\r\n\r\n");
    assert_non_null(strstr(in.data, "\r\n\r\n3\r\nend\r\n0\r\n\r\n"));
    http_stream_end(events, true);
    http_release(exchange);
    http_release(events);
    kri_buffer_deinit(&in);
    kri_buffer_deinit(&beats);
    (void)close(fd);
    (void)close(other);
    rig_stop();
}

/* ---- all at once ----------------------------------------------------------------------------- */

#define CROWD 48
#define ROUNDS 6

typedef struct job_s {
    http_exchange_t *exchange;
    atomic_bool has_gone;
    atomic_int n_left; /* credits */
} job_t;

static struct {
    pthread_mutex_t mutex;
    job_t *jobs[4 * CROWD];
    int n_jobs;
    atomic_bool ends;
    atomic_int n_live;
} pump = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void job_gone(void *user) { atomic_store(&((job_t *)user)->has_gone, true); }
static void job_taken(void *user, size_t n_bytes) {
    atomic_fetch_add(&((job_t *)user)->n_left, (int)n_bytes);
}

static void submit(http_exchange_t *exchange) {
    job_t *job = calloc(1, sizeof *job);
    assert_non_null(job);
    job->exchange = exchange;
    atomic_store(&job->n_left, 4000);
    http_retain(exchange);
    http_watch(exchange, job_gone, job_taken, job);
    http_stream_begin(exchange, 200, "text/event-stream", NULL, true);
    atomic_fetch_add(&pump.n_live, 1);
    pthread_mutex_lock(&pump.mutex);
    pump.jobs[pump.n_jobs++] = job;
    pthread_mutex_unlock(&pump.mutex);
}

/* As the server's: a step of all that have credits, one flush. */
static void *run_pump(void *unused) {
    int n_steps[4 * CROWD] = {0};
    while (!atomic_load(&pump.ends)) {
        pthread_mutex_lock(&pump.mutex);
        for (int i = 0; i < pump.n_jobs; i++) {
            job_t *job = pump.jobs[i];
            if (!atomic_load(&job->has_gone) && n_steps[i] < 200) {
                if (atomic_load(&job->n_left) < 100) continue;
                atomic_fetch_sub(&job->n_left, 20);
                if (http_stream_write(job->exchange, "data: 0123456789ab\n\n", 20) &&
                    ++n_steps[i] < 200) {
                    continue;
                }
            }
            http_stream_end(job->exchange, true);
            http_watch(job->exchange, NULL, NULL, NULL);
            http_release(job->exchange);
            free(job);
            pump.jobs[i] = pump.jobs[--pump.n_jobs];
            n_steps[i] = n_steps[pump.n_jobs];
            n_steps[pump.n_jobs] = 0;
            i--;
            atomic_fetch_sub(&pump.n_live, 1);
        }
        pthread_mutex_unlock(&pump.mutex);
        http_flush(rig.server);
        usleep(100);
    }
    return unused;
}

TEST(http_stream_many_clients_of_which_half_disconnect_leave_nothing_behind) {
    const http_params_t params = rig_params();
    start(&params);
    rig.on_request = submit;
    pump.ends = false;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_pump, NULL), 0);
    kri_buffer_t in = new_input();
    for (int round = 0; round < ROUNDS; round++) {
        int fds[CROWD];
        for (int i = 0; i < CROWD; i++) {
            fds[i] = rig_connect();
            rig_send(fds[i], GET("/"));
        }
        for (int i = 0; i < CROWD; i += 2) leave(fds[i], i % 3 == 0 ? LEAVE_RESET : LEAVE_CLOSE);
        for (int i = 1; i < CROWD; i += 2) {
            kri_buffer_clear(&in);
            rig_read_until(fds[i], &in, "0\r\n\r\n");
            int n_events = 0;
            for (const char *at = in.data; (at = strstr(at, "data: 0123456789ab\n\n")) != NULL;) {
                n_events++;
                at++;
            }
            assert_int_equal(n_events, 200);
            (void)close(fds[i]);
        }
    }
    http_stats_t stats;
    RIG_UNTIL((http_server_stats(rig.server, &stats), stats.n_connections == 0));
    rig.on_request = wait_at_the_gate; /* when all workers stand there, none has a job any more */
    int last[2] = {rig_connect(), rig_connect()};
    for (int i = 0; i < 2; i++) rig_send(last[i], GET("/"));
    RIG_UNTIL(rig_gate_waiting() == 2);
    rig_gate_open(2);
    for (int i = 0; i < 2; i++) (void)close(last[i]);
    RIG_UNTIL((http_server_stats(rig.server, &stats), stats.n_connections == 0));
    RIG_UNTIL(atomic_load(&pump.n_live) == 0);
    /* Of those that left, some were reset before the server saw a byte. */
    assert_in_range(rig.n_done, CROWD / 2 * ROUNDS, CROWD * ROUNDS + 2);
    assert_int_equal(stats.n_exchanges, 0);
    assert_int_equal(stats.n_misused, 0);
    atomic_store(&pump.ends, true);
    (void)pthread_join(thread, NULL);
    kri_buffer_deinit(&in);
    rig_stop();
}

/* test_http_listen.c: where a server listens, TLS, how it begins and ends. */
#define _GNU_SOURCE
#include <malloc.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "http_rig.h"

/* ---- parameters ------------------------------------------------------------------------------ */

static void expect_start_fails(const http_params_t *params, kr_status_t status, const char *param) {
    http_server_t *server = (http_server_t *)&rig;
    kr_error_t error;
    kr_error_init(&error);
    assert_status(http_server_start(params, &server, &error), status);
    assert_string_equal(error.param, param);
    assert_true(error.message[0] != '\0');
    assert_ptr_equal(server, &rig); /* untouched */
}

TEST(http_listen_refuses_parameters_that_make_no_server) {
    http_params_t params = rig_params();
    params.host = NULL;
    expect_start_fails(&params, KR_E_INVALID_ARG, "host");
    params = rig_params();
    params.host = "example.com";
    expect_start_fails(&params, KR_E_INVALID_ARG, "host");
    params = rig_params();
    params.n_workers = 0;
    expect_start_fails(&params, KR_E_INVALID_ARG, "n_workers");
    params.n_workers = 65;
    expect_start_fails(&params, KR_E_INVALID_ARG, "n_workers");
    params = rig_params();
    params.on_head = NULL;
    expect_start_fails(&params, KR_E_INVALID_ARG, "on_head");
    params = rig_params();
    params.tls_cert = "/nowhere";
    expect_start_fails(&params, KR_E_INVALID_ARG, "tls_key");
    params.tls_key = "/nowhere";
    expect_start_fails(&params, KR_E_NOT_FOUND, "tls_cert");
    params = rig_params();
    params.limits.fields = 129;
    expect_start_fails(&params, KR_E_INVALID_ARG, "fields");
    params = rig_params();
    params.limits.body_bytes = ((uint64_t)256 << 20) + 1;
    expect_start_fails(&params, KR_E_INVALID_ARG, "body_bytes");
    params = rig_params();
    params.unix_path = "";
    expect_start_fails(&params, KR_E_INVALID_ARG, "unix_path");
    char path[200];
    memset(path, 'a', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    params.unix_path = path;
    expect_start_fails(&params, KR_E_INVALID_ARG, "unix_path");
    params.unix_path = "/nowhere/kr.sock";
    expect_start_fails(&params, KR_E_IO, "unix_path");
}

TEST(http_listen_says_when_a_port_is_taken) {
    http_params_t params = rig_params();
    rig_start(&params);
    params.port = rig.port;
    expect_start_fails(&params, KR_E_IO, "port");
    rig_stop();
    rig_start(&params); /* free again at once */
    assert_int_equal(rig.port, params.port);
    rig_stop();
}

static bool reaches(int family, const void *address, socklen_t n_bytes) {
    const int fd = socket(family, SOCK_STREAM, 0);
    if (fd < 0) return false;
    const bool good = connect(fd, address, n_bytes) == 0 && rig_ask(fd, GET("/")) == 200;
    (void)close(fd);
    return good;
}

TEST(http_listen_on_localhost_is_on_both_loopback_addresses) {
    http_params_t params = rig_params();
    params.host = "localhost";
    rig_start(&params);
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(rig.port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(rig.port),
                               .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    assert_true(reaches(AF_INET, &four, sizeof four));
    const int fd = socket(AF_INET6, SOCK_STREAM, 0);
    six.sin6_port = 0;
    const bool has_six = fd >= 0 && bind(fd, (struct sockaddr *)&six, sizeof six) == 0;
    if (fd >= 0) (void)close(fd);
    six.sin6_port = htons(rig.port);
    if (has_six) {
        assert_true(reaches(AF_INET6, &six, sizeof six));
        rig_stop();
        params.host = "::";
        rig_start(&params);
        four.sin_port = six.sin6_port = htons(rig.port);
        assert_true(reaches(AF_INET6, &six, sizeof six));
        assert_true(reaches(AF_INET, &four, sizeof four));
    }
    rig_stop();
}

/* ---- Unix sockets ---------------------------------------------------------------------------- */

static struct sockaddr_un local(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    return address;
}

TEST(http_listen_on_a_unix_socket) {
    char folder[] = "/tmp/kr_test_http_XXXXXX", path[64], file[64];
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/s", folder);
    (void)snprintf(file, sizeof file, "%s/f", folder);
    http_params_t params = rig_params();
    params.host = NULL;
    params.unix_path = path;
    const struct sockaddr_un address = local(path);
    rig_start(&params);
    assert_int_equal(rig.port, 0);
    struct stat info;
    assert_int_equal(lstat(path, &info), 0);
    assert_true(S_ISSOCK(info.st_mode));
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_true(reaches(AF_UNIX, &address, sizeof address));
    expect_start_fails(&params, KR_E_EXISTS, "unix_path"); /* in use */
    assert_true(reaches(AF_UNIX, &address, sizeof address));
    rig_stop();
    assert_int_equal(lstat(path, &info), -1);

    const int stale = socket(AF_UNIX, SOCK_STREAM, 0); /* left by one that was killed */
    assert_int_equal(bind(stale, (const struct sockaddr *)&address, sizeof address), 0);
    (void)close(stale);
    rig_start(&params);
    assert_true(reaches(AF_UNIX, &address, sizeof address));
    assert_int_equal(rename(path, file), 0); /* another takes the place: it is left alone */
    FILE *other = fopen(path, "w");
    assert_non_null(other);
    (void)fclose(other);
    rig_stop();
    assert_int_equal(lstat(path, &info), 0);

    expect_start_fails(&params, KR_E_EXISTS, "unix_path"); /* not a socket */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(file, path), 0);
    expect_start_fails(&params, KR_E_EXISTS, "unix_path");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(rmdir(folder), 0);
}

/* ---- draining -------------------------------------------------------------------------------- */

static void wait_at_the_gate(http_exchange_t *exchange) {
    rig_gate_wait();
    rig_reply(exchange, 200, "done", false);
}

static void answer_turn(http_exchange_t *exchange) {
    if (rig_is_path(exchange, "/turn")) rig_reply(exchange, 200, "", true);
    else http_accept(exchange, 1000);
}

static bool is_refused(void) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(rig.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const bool refused = connect(fd, (struct sockaddr *)&address, sizeof address) != 0;
    (void)close(fd);
    return refused;
}

TEST(http_listen_drain_closes_what_is_idle_and_ends_what_runs) {
    const http_params_t params = rig_params();
    rig_start(&params);
    rig.on_head = answer_turn;
    rig.on_request = wait_at_the_gate;
    const int idle = rig_connect(), fresh = rig_connect();
    const int busy = rig_connect(), half = rig_connect();
    kri_buffer_t in;
    kri_buffer_init(&in, 65536);
    rig_gate_open(1);
    assert_int_equal(rig_ask(idle, GET("/")), 200);
    rig_send(busy, GET("/") GET("/second"));
    RIG_UNTIL(rig_gate_waiting() == 1);
    rig_send(half, "GET / HTTP/1.1\r\n");
    http_stats_t stats;
    RIG_UNTIL((http_server_stats(rig.server, &stats), stats.n_accepted == 4));
    const int turn = rig_connect(); /* answered after what was sent before it was read */
    rig_send(turn, GET("/turn"));
    rig_read_all(turn, &in);
    (void)close(turn);

    http_server_drain(rig.server);
    rig_expect_end(idle);
    rig_expect_end(fresh);
    RIG_UNTIL(is_refused());
    char head[1024];
    rig_send(half, "Host: a\r\n\r\n"); /* begun before: answered, and the last */
    RIG_UNTIL(rig_gate_waiting() == 2);
    rig_gate_open(2);
    assert_int_equal(rig_answer(half, &in, head, sizeof head), 200);
    assert_non_null(strstr(head, "\r\nConnection: close\r\n"));
    rig_expect_end(half);
    assert_int_equal(rig_answer(busy, &in, head, sizeof head), 200);
    assert_non_null(strstr(head, "\r\nConnection: close\r\n"));
    rig_expect_end(busy); /* its second request is not taken up */
    RIG_UNTIL((http_server_stats(rig.server, &stats), stats.n_exchanges == 0));
    (void)close(idle);
    (void)close(fresh);
    (void)close(busy);
    (void)close(half);
    kri_buffer_deinit(&in);
    rig_stop();
}

static void *stop(void *unused) {
    rig_stop();
    return unused;
}

TEST(http_listen_destroy_cuts_what_is_left) {
    const http_params_t params = rig_params();
    rig_start(&params);
    rig.on_request = wait_at_the_gate;
    const int fds[3] = {rig_connect(), rig_connect(), rig_connect()};
    rig_send(fds[0], GET("/"));
    rig_send(fds[1], "GET");
    RIG_UNTIL(rig_gate_waiting() == 1);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stop, NULL), 0);
    for (int i = 0; i < 3; i++) { /* cut while the handler still runs */
        rig_expect_end(fds[i]);
        (void)close(fds[i]);
    }
    rig_gate_open(1);
    (void)pthread_join(thread, NULL);
    assert_int_equal(rig_done_at(0).status, 0);
}

/* ---- TLS ------------------------------------------------------------------------------------- */

static char tls_folder[] = "/tmp/kr_test_tls_XXXXXX", cert_path[64], key_path[64], other_path[64];

static EVP_PKEY *write_key(const char *path) {
    EVP_PKEY *key = EVP_EC_gen("P-256");
    FILE *file = fopen(path, "w");
    assert_non_null(key);
    assert_non_null(file);
    assert_int_equal(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
    (void)fclose(file);
    return key;
}

static void make_certificate(void) {
    assert_non_null(mkdtemp(tls_folder));
    (void)snprintf(cert_path, sizeof cert_path, "%s/cert.pem", tls_folder);
    (void)snprintf(key_path, sizeof key_path, "%s/key.pem", tls_folder);
    (void)snprintf(other_path, sizeof other_path, "%s/other.pem", tls_folder);
    EVP_PKEY_free(write_key(other_path));
    EVP_PKEY *key = write_key(key_path);
    X509 *cert = X509_new();
    assert_non_null(cert);
    (void)ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    (void)X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    (void)X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    (void)X509_set_pubkey(cert, key);
    X509_NAME *name = X509_get_subject_name(cert);
    static const unsigned char common_name[] = "localhost";
    (void)X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, common_name, -1, -1, 0);
    (void)X509_set_issuer_name(cert, name);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    FILE *file = fopen(cert_path, "w");
    assert_non_null(file);
    assert_int_equal(PEM_write_X509(file, cert), 1);
    (void)fclose(file);
    X509_free(cert);
    EVP_PKEY_free(key);
}

static void remove_certificate(void) {
    (void)unlink(cert_path);
    (void)unlink(key_path);
    (void)unlink(other_path);
    (void)rmdir(tls_folder);
    memcpy(tls_folder + strlen(tls_folder) - 6, "XXXXXX", 6);
}

static http_params_t tls_params(void) {
    http_params_t params = rig_params();
    params.tls_cert = cert_path;
    params.tls_key = key_path;
    return params;
}

/* A blocking client of at most this version; NULL: the handshake failed. */
static SSL *tls_connect(SSL_CTX *context, int version) {
    SSL *ssl = SSL_new(context);
    assert_non_null(ssl);
    (void)SSL_set_max_proto_version(ssl, version);
    if (version < TLS1_2_VERSION) {
        (void)SSL_set_cipher_list(ssl, "ALL:@SECLEVEL=0");
        (void)SSL_set_min_proto_version(ssl, version);
    }
    static const unsigned char protocols[] = "\x02h2\x08http/1.1";
    (void)SSL_set_alpn_protos(ssl, protocols, sizeof protocols - 1);
    const int fd = rig_connect();
    (void)SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) == 1) return ssl;
    ERR_clear_error();
    (void)close(fd);
    SSL_free(ssl);
    return NULL;
}

static void tls_close(SSL *ssl) {
    const int fd = SSL_get_fd(ssl);
    SSL_free(ssl);
    (void)close(fd);
}

/* Until `text` has come; false: the connection ended first. */
static bool tls_read_until(SSL *ssl, kri_buffer_t *in, const char *text) {
    char data[20000];
    while (!rig_has(in, text)) {
        const int n = SSL_read(ssl, data, sizeof data);
        if (n <= 0) return false;
        assert_status(kri_buffer_append(in, data, (size_t)n), KR_OK);
    }
    return true;
}

static void stream_a_lot(http_exchange_t *exchange) {
    static char block[100000];
    memset(block, 'z', sizeof block);
    http_stream_begin(exchange, 200, "text/plain", NULL, false);
    for (int i = 0; i < 8; i++) (void)http_stream_write(exchange, block, sizeof block);
    http_stream_end(exchange, true);
}

static void tls_talk(SSL_CTX *context, int version) {
    SSL *ssl = tls_connect(context, version);
    assert_non_null(ssl);
    const unsigned char *protocol;
    unsigned n_protocol;
    SSL_get0_alpn_selected(ssl, &protocol, &n_protocol);
    assert_int_equal(n_protocol, 8);
    assert_memory_equal(protocol, "http/1.1", 8);
    kri_buffer_t in;
    kri_buffer_init(&in, 4 << 20);
    /* Two requests in one record, the second one's body in another. */
    static const char two[] = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
                              "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n";
    assert_true(SSL_write(ssl, two, sizeof two - 1) > 0);
    assert_true(tls_read_until(ssl, &in, "\r\n\r\nabc"));
    static char body[30000];
    memset(body, 'b', sizeof body - 1);
    body[sizeof body - 1] = '!';
    assert_int_equal(SSL_write(ssl, body, sizeof body), sizeof body);
    assert_true(tls_read_until(ssl, &in, "b!"));
    rig.on_request = stream_a_lot;
    kri_buffer_clear(&in);
    assert_true(SSL_write(ssl, GET("/"), sizeof GET("/") - 1) > 0);
    assert_true(tls_read_until(ssl, &in, "0\r\n\r\n"));
    size_t n_z = 0;
    for (size_t i = 0; i < in.n_bytes; i++) n_z += in.data[i] == 'z';
    assert_int_equal(n_z, 800000);
    rig.on_request = NULL;
    static const char last[] = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_true(SSL_write(ssl, last, sizeof last - 1) > 0);
    assert_false(tls_read_until(ssl, &in, "never"));
    assert_int_equal(SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN, SSL_RECEIVED_SHUTDOWN);
    kri_buffer_deinit(&in);
    tls_close(ssl);
}

TEST(http_listen_with_tls_speaks_1_2_and_1_3_and_nothing_older) {
    make_certificate();
    const http_params_t params = tls_params();
    rig_start(&params);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    assert_non_null(context);
    tls_talk(context, TLS1_3_VERSION);
    tls_talk(context, TLS1_2_VERSION);
    assert_null(tls_connect(context, TLS1_1_VERSION));
    const int fd = rig_connect(); /* plain text to it */
    rig_send(fd, GET("/"));
    kri_buffer_t in;
    kri_buffer_init(&in, 65536);
    rig_read_all(fd, &in);
    assert_false(rig_has(&in, "HTTP/1.1"));
    (void)close(fd);
    kri_buffer_deinit(&in);
    SSL_CTX_free(context);
    rig_stop();
    remove_certificate();
}

static _Atomic(http_exchange_t *) kept;
static atomic_int n_gone;
static void keep(http_exchange_t *exchange) {
    http_retain(exchange);
    atomic_store(&kept, exchange);
}
static void count_gone(void *user) { atomic_fetch_add((atomic_int *)user, 1); }

TEST(http_listen_with_tls_notices_clients_that_go) {
    make_certificate();
    http_params_t params = tls_params();
    params.limits.head_ms = 50;
    rig_start(&params);
    const int silent = rig_connect(); /* never begins its handshake */
    rig_expect_end(silent);
    (void)close(silent);
    rig_stop();
    params = tls_params();
    rig_start(&params);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    rig.on_request = keep;
    SSL *ssl = tls_connect(context, TLS1_3_VERSION);
    assert_non_null(ssl);
    assert_true(SSL_write(ssl, GET("/"), sizeof GET("/") - 1) > 0);
    RIG_UNTIL(atomic_load(&kept) != NULL);
    http_watch(kept, count_gone, NULL, &n_gone);
    tls_close(ssl);
    RIG_UNTIL(atomic_load(&n_gone) == 1);
    assert_int_equal(rig_done_at(0).status, 499);
    http_release(kept);
    SSL_CTX_free(context);
    rig_stop();
    remove_certificate();
}

#define N_IDLE 200

/* Clients of N_IDLE connections, each after one request: another process, so that this one's memory
 * is the server's. Reads the port, writes a byte when all stand, ends with its input. */
static void run_clients(int in, int out) {
    uint16_t port;
    char byte = 1;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (context == NULL || read(in, &port, sizeof port) != (ssize_t)sizeof port) _exit(1);
    rig.port = port;
    for (int i = 0; i < N_IDLE; i++) {
        SSL *ssl = tls_connect(context, TLS1_3_VERSION);
        char answer[4096];
        if (ssl == NULL || SSL_write(ssl, GET("/"), sizeof GET("/") - 1) <= 0 ||
            SSL_read(ssl, answer, sizeof answer) <= 0) {
            _exit(1);
        }
    }
    if (write(out, &byte, 1) != 1 || read(in, &byte, 1) != 0) _exit(1);
    _exit(0);
}

TEST(http_listen_with_tls_idle_connections_take_little_memory) {
    make_certificate();
    int to[2], from[2];
    assert_int_equal(pipe(to) | pipe(from), 0);
    const pid_t child = fork(); /* before there are threads */
    assert_true(child >= 0);
    if (child == 0) {
        (void)close(to[1]);
        (void)close(from[0]);
        run_clients(to[0], from[1]);
    }
    (void)close(to[0]);
    (void)close(from[1]);
    const http_params_t params = tls_params();
    rig_start(&params);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL *first = tls_connect(context, TLS1_3_VERSION); /* what is taken once, is */
    assert_non_null(first);
    tls_close(first);
    http_stats_t stats;
    RIG_UNTIL((http_server_stats(rig.server, &stats), stats.n_connections == 0));
    const size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    char byte;
    assert_int_equal(write(to[1], &rig.port, sizeof rig.port), sizeof rig.port);
    assert_int_equal(read(from[0], &byte, 1), 1);
    RIG_UNTIL((http_server_stats(rig.server, &stats), stats.n_exchanges == 0));
    assert_int_equal(stats.n_connections, N_IDLE);
    const size_t each = (mallinfo2().uordblks + mallinfo2().hblkhd - before) / N_IDLE;
    printf("bytes an idle TLS connection: %zu\n", each);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_in_range(each, 1, 16384); /* a sanitizer's heap does not count */
#endif
    (void)close(to[1]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    (void)close(from[0]);
    SSL_CTX_free(context);
    rig_stop();
    remove_certificate();
}

TEST(http_listen_with_tls_needs_a_certificate_and_its_key) {
    make_certificate();
    http_params_t params = tls_params();
    params.tls_key = other_path; /* of another certificate */
    expect_start_fails(&params, KR_E_BAD_FORMAT, "tls_key");
    params.tls_key = cert_path; /* no key in it */
    expect_start_fails(&params, KR_E_BAD_FORMAT, "tls_key");
    params = tls_params();
    params.tls_cert = key_path;
    expect_start_fails(&params, KR_E_BAD_FORMAT, "tls_cert");
    params.tls_cert = tls_folder; /* a folder */
    expect_start_fails(&params, KR_E_NOT_FOUND, "tls_cert");
    remove_certificate();
}

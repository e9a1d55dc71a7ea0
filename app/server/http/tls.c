/* tls.c: OpenSSL over a non-blocking socket: TLS 1.2 and 1.3, no renegotiation, no tickets, no
 * session cache. The thread's error queue is emptied before each call, as SSL_get_error asks. */
#include <openssl/err.h>

#include "base/error.h"
#include "base/os.h"
#include "server/http/internal.h"

/* HTTP/1.1 when the client names it; a client that names only others finds out by itself. */
static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *n_out,
                           const unsigned char *in, unsigned int n_in, void *user) {
    static const unsigned char ours[] = "\x08http/1.1";
    (void)ssl;
    (void)user;
    unsigned char *chosen;
    if (SSL_select_next_proto(&chosen, n_out, ours, sizeof ours - 1, in, n_in) !=
        OPENSSL_NPN_NEGOTIATED) {
        return SSL_TLSEXT_ERR_NOACK;
    }
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static kr_status_t check_readable(const char *path, const char *param, kr_error_t *error) {
    kri_map_t map;
    const kr_status_t status = kri_map_open(path, &map, error);
    if (status == KR_OK) {
        kri_map_close(&map);
        return KR_OK;
    }
    return KRI_FAIL(error, status == KR_E_NOMEM ? status : KR_E_NOT_FOUND, param,
                    "cannot read %s", path);
}

kr_status_t http_tls_create(const char *cert, const char *key, SSL_CTX **tls, kr_error_t *error) {
    KR_TRY(check_readable(cert, "tls_cert", error));
    KR_TRY(check_readable(key, "tls_key", error));
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (context == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for TLS");
    kr_status_t status = KR_OK;
    ERR_clear_error();
    if (SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) != 1) status = KR_E_INTERNAL;
    (void)SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                           SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE |
                                           SSL_OP_IGNORE_UNEXPECTED_EOF);
    (void)SSL_CTX_set_num_tickets(context, 0);
    (void)SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    (void)SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_RELEASE_BUFFERS |
                                        SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_alpn_select_cb(context, choose_protocol, NULL);
    if (status == KR_OK && SSL_CTX_use_certificate_chain_file(context, cert) != 1) {
        status = KRI_FAIL(error, KR_E_BAD_FORMAT, "tls_cert", "%s holds no PEM certificate", cert);
    }
    if (status == KR_OK && SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1) {
        status = KRI_FAIL(error, KR_E_BAD_FORMAT, "tls_key",
                          "%s holds no PEM private key, or not the one of the certificate", key);
    }
    if (status == KR_OK && SSL_CTX_check_private_key(context) != 1) {
        status = KRI_FAIL(error, KR_E_BAD_FORMAT, "tls_key",
                          "%s is not the private key of the certificate", key);
    }
    ERR_clear_error();
    if (status != KR_OK) {
        SSL_CTX_free(context);
        return status;
    }
    *tls = context;
    return KR_OK;
}

long http_tls_read(SSL *ssl, void *data, size_t n_bytes, bool *wants_out) {
    size_t n = 0;
    ERR_clear_error();
    if (SSL_read_ex(ssl, data, n_bytes, &n) == 1) return (long)n;
    switch (SSL_get_error(ssl, 0)) {
    case SSL_ERROR_WANT_READ: return -1;
    case SSL_ERROR_WANT_WRITE: *wants_out = true; return -1;
    case SSL_ERROR_ZERO_RETURN: return 0;
    default: return -2;
    }
}

long http_tls_write(SSL *ssl, const void *data, size_t n_bytes, bool *wants_out) {
    size_t n = 0;
    ERR_clear_error();
    if (SSL_write_ex(ssl, data, n_bytes, &n) == 1) return (long)n;
    if (SSL_get_error(ssl, 0) != SSL_ERROR_WANT_WRITE) return -2;
    *wants_out = true;
    return -1;
}

int http_tls_handshake(SSL *ssl, bool *wants_out) {
    ERR_clear_error();
    const int done = SSL_do_handshake(ssl);
    if (done == 1) return 1;
    switch (SSL_get_error(ssl, done)) {
    case SSL_ERROR_WANT_READ: return -1;
    case SSL_ERROR_WANT_WRITE: *wants_out = true; return -1;
    default: return -2;
    }
}

void http_tls_shutdown(SSL *ssl) {
    ERR_clear_error();
    (void)SSL_shutdown(ssl); /* the notice; the answer to it is not waited for */
    ERR_clear_error();
}

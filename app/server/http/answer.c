/* answer.c: heads of answers and the error body. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "server/http/internal.h"

static const char *reason(int status) {
    switch (status) {
    case 100: return "Continue";
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 406: return "Not Acceptable";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return status < 400 ? "OK" : status < 500 ? "Refused" : "Failed";
    }
}

/* RFC 9110, 5.6.7; strftime would ask the locale. */
static bool put_date(kri_buffer_t *out) {
    static const char days[7][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                       "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    struct tm tm;
    const time_t now = time(NULL);
    if (gmtime_r(&now, &tm) == NULL) return true;
    return kri_buffer_printf(out, "Date: %s, %02d %s %04d %02d:%02d:%02d GMT\r\n",
                             days[tm.tm_wday % 7], tm.tm_mday, months[tm.tm_mon % 12],
                             tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec) == KR_OK;
}

bool http_put_head(kri_buffer_t *out, const http_exchange_t *exchange, const http_answer_t *answer,
                   uint64_t n_length, bool closes) {
    bool good = kri_buffer_printf(out, "HTTP/1.1 %d %s\r\n", answer->status,
                                  reason(answer->status)) == KR_OK &&
                put_date(out) &&
                kri_buffer_printf(out, "X-Request-Id: %s\r\n", exchange->request.id) == KR_OK;
    if (answer->content_type != NULL) {
        good = good && kri_buffer_printf(out, "Content-Type: %s\r\n",
                                         answer->content_type) == KR_OK;
    }
    if (n_length != UINT64_MAX) {
        if (answer->status != 204 && answer->status != 304) {
            good = good && kri_buffer_printf(out, "Content-Length: %llu\r\n",
                                             (unsigned long long)n_length) == KR_OK;
        }
    } else if (exchange->minor == 1) {
        good = good && kri_buffer_printf(out, "Transfer-Encoding: chunked\r\n") == KR_OK;
    }
    if (closes) good = good && kri_buffer_printf(out, "Connection: close\r\n") == KR_OK;
    else if (exchange->minor == 0) {
        good = good && kri_buffer_printf(out, "Connection: keep-alive\r\n") == KR_OK;
    }
    if (answer->fields != NULL) {
        good = good && kri_buffer_append(out, answer->fields, strlen(answer->fields)) == KR_OK;
    }
    return good && kri_buffer_append(out, "\r\n", 2) == KR_OK;
}

bool http_put_error(kri_buffer_t *out, http_refusal_t refusal) {
    /* The texts are this library's own, without a byte that JSON must escape but '"'. */
    bool good = kri_buffer_printf(out, "{\"error\":{\"message\":\"") == KR_OK;
    for (const char *at = refusal.message; *at != '\0' && good; at++) {
        if (*at == '"' || *at == '\\') good = kri_buffer_append(out, "\\", 1) == KR_OK;
        good = good && kri_buffer_append(out, at, 1) == KR_OK;
    }
    return good && kri_buffer_printf(out, "\",\"type\":\"%s\",\"param\":null,\"code\":\"%s\"}}",
                                     refusal.status < 500 || refusal.status == 501 ||
                                             refusal.status == 505
                                         ? "invalid_request_error" : "server_error",
                                     refusal.code) == KR_OK;
}

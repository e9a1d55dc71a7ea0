/* accept.h: what the Accept lines of a request say (RFC 9110, 12.5.1). */
#ifndef SERVER_ACCEPT_H
#define SERVER_ACCEPT_H

#include "http/http.h"

/* Whether one of the media types that endpoints answer with would be welcome: the most specific
 * range that names a type decides, a weight of 0 refuses. What is no range, or has no proper
 * weight, says nothing. No line, and nothing in any of them, welcomes all. */
bool accept_answers(const http_request_t *request);

#endif

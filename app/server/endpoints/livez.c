/* livez.c: GET /livez: the loop turns, for it is the I/O thread that answers. */
#include "server/endpoints.h"

void endpoint_livez(call_t *call) {
    static const char body[] = "{\"status\":\"ok\"}";
    call_reply(call, 200, "application/json", body, sizeof body - 1);
}

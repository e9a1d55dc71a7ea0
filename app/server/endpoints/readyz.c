/* readyz.c: GET /readyz: whether a request would be answered now. Reads only what other threads
 * have found out: it runs on the I/O thread. */
#include "server/endpoints.h"
#include "server/server.h"

void endpoint_readyz(call_t *call) {
    static const char body[] = "{\"status\":\"ok\"}";
    const server_t *server = call_server(call);
    if (server_is_ready(server)) {
        call_reply(call, 200, "application/json", body, sizeof body - 1);
    } else if (atomic_load(&server->is_lost)) {
        call_fail(call, "device_lost", NULL, "the device was lost");
    } else if (atomic_load(&server->is_draining)) {
        call_fail(call, "shutting_down", NULL, "the server is shutting down");
    } else if (!atomic_load(&server->is_loaded)) {
        call_fail(call, "model_loading", NULL, "the model is loading");
    } else {
        call_fail(call, "not_ready", NULL, "no token has been produced for a while");
    }
}

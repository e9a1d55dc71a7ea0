/* admin.c: POST /admin/drain and /admin/reload: what SIGTERM and SIGHUP do, for who has a key with
 * the scope. */
#include "server/endpoints.h"
#include "server/errors.h"
#include "server/server.h"

#define ANSWER_BYTES_MAX 16384

/* NULL: answered. */
static const server_control_t *find_control(call_t *call) {
    const server_control_t *control = call_server(call)->control;
    if (control == NULL) {
        call_fail(call, "not_found", NULL, "this server has no life cycle to administrate");
    }
    return control;
}

void endpoint_admin_drain(call_t *call) {
    static const char answer[] = "{\"status\":\"draining\"}";
    const server_control_t *control = find_control(call);
    if (control == NULL) return;
    control->drain();
    call_reply(call, 202, "application/json", answer, sizeof answer - 1);
}

void endpoint_admin_reload(call_t *call) {
    const server_control_t *control = find_control(call);
    if (control == NULL) return;
    kri_buffer_t out;
    kr_error_t error;
    kr_error_init(&error);
    kri_buffer_init(&out, ANSWER_BYTES_MAX);
    kr_status_t status = control->reload(&out, &error);
    if (status == KR_OK) status = out.status;
    if (status == KR_OK) {
        call_reply_json(call, 200, &out);
    } else if (error_of_status(status)->status < 429) { /* of the files: the log's to say */
        call_fail(call, "invalid_request", NULL,
                  "the configuration or the key file is not in order, nothing has changed: "
                  "the log says what is wrong");
    } else {
        call_fail_status(call, status, &error);
    }
    kri_buffer_deinit(&out);
}

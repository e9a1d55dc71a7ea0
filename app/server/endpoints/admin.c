/* admin.c: POST /admin/drain and /admin/reload: what SIGTERM and SIGHUP do, for who has a key with
 * the scope. */
#include <string.h>

#include "server/endpoints.h"
#include "server/life.h"

#define ANSWER_BYTES_MAX 16384

void endpoint_admin_drain(call_t *call) {
    static const char answer[] = "{\"status\":\"draining\"}";
    life_drain();
    call_reply(call, 202, "application/json", answer, sizeof answer - 1);
}

static void put_names(kri_buffer_t *out, const char *field, const char *const *names, uint32_t n) {
    (void)kri_buffer_printf(out, ",\"%s\":[", field);
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) (void)kri_buffer_append(out, ",", 1);
        (void)json_put_string(out, names[i], strlen(names[i]));
    }
    (void)kri_buffer_append(out, "]", 1);
}

void endpoint_admin_reload(call_t *call) {
    life_reload_t reload;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = life_reload(&reload, &error);
    if (status != KR_OK) {
        call_fail_status(call, status, &error);
        return;
    }
    kri_buffer_t out;
    kri_buffer_init(&out, ANSWER_BYTES_MAX);
    (void)kri_buffer_printf(&out, "{\"status\":\"reloaded\",\"keys\":%u", reload.n_keys);
    put_names(&out, "changed", reload.changed, reload.n_changed);
    put_names(&out, "needs_restart", reload.refused, reload.n_refused);
    (void)kri_buffer_append(&out, "}", 1);
    if (out.status == KR_OK) call_reply_json(call, 200, &out);
    else call_fail_status(call, out.status, NULL);
    kri_buffer_deinit(&out);
}

/* text_tools.c: see text_tools.h. */
#include "text_tools.h"

const server_model_t *text_tools_read_model(call_t *call, json_reader_t *reader) {
    const char *name = NULL;
    (void)json_read_string(reader, "model", 1, 255, &name, NULL);
    if (reader->error->is_set) return NULL;
    const server_model_t *model = server_find_model(call_server(call), name);
    if (model == NULL) {
        json_fail(reader, "model_not_found", "model", "the model '%.200s' does not exist",
                  name != NULL ? name : "");
    }
    return model;
}

void text_tools_reply(call_t *call, kri_buffer_t *out) {
    if (out->status == KR_OK) call_reply_json(call, 200, out);
    else call_fail_status(call, out->status, NULL);
    kri_buffer_deinit(out);
}

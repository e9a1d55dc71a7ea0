/* batch.c: the run of a batch. One thread reads, submits and writes; what the requests answer comes
 * from the pump's thread through a list. Only so many calls are in flight as the engine has use
 * for, so a file of a million lines needs no more memory than its custom_ids. */
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "batch_file.h"
#include "endpoints.h"
#include "job.h"

#define WAIT_MS 100 /* between two looks at is_interrupted */

/* A call in flight; it is its sink. */
typedef struct item_s {
    batch_t *batch;
    struct item_s *next;       /* of the list of ended ones */
    uint32_t entry;
    batch_line_t line;
    char request_id[48];
    int status;                /* of HTTP; 0 = no answer */
    kri_buffer_t answer;
    bool is_broken;            /* no memory for the answer */
} item_t;

struct batch_s {
    const char *in_path, *out_path;
    const batch_params_t *params; /* while it runs */
    batch_result_t result;
    batch_index_t index;
    batch_log_t log;
    int in_fd;
    uint32_t next;             /* entry to look at */
    uint32_t *again;           /* [n_again] entries to be submitted once more: there was no place */
    uint32_t n_again;
    uint32_t n_flying;
    uint32_t n_flying_max;     /* lower than asked for while the engine has no place for more */
    pthread_mutex_t mutex;     /* ended */
    pthread_cond_t changed;
    item_t *ended;
};

/* ---- before anything runs -------------------------------------------------------------------- */

static bool is_blank(const char *text, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) {
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r') return false;
    }
    return true;
}

static kr_status_t add_line(batch_t *batch, const batch_lines_t *lines, const char *text,
                            size_t n_bytes, kr_error_t *error) {
    batch_line_t line;
    kr_error_t why;
    kr_error_init(&why);
    kr_status_t status = batch_line_read(text, n_bytes, &line, &why);
    if (status != KR_OK) {
        return KRI_FAIL(error, status, "IN", "%s line %llu: %s", batch->in_path,
                        (unsigned long long)lines->number, why.message);
    }
    const size_t id_bytes = strlen(line.custom_id);
    const batch_entry_t *twin = batch_index_find(&batch->index, line.custom_id, id_bytes);
    if (twin != NULL) {
        status = KRI_FAIL(error, KR_E_EXISTS, "IN",
                          "%s line %llu: custom_id \"%.100s\" stands in line %llu already",
                          batch->in_path, (unsigned long long)lines->number,
                          line.custom_id, (unsigned long long)twin->number);
    } else {
        const batch_entry_t entry = {.in_at = lines->at, .number = lines->number,
                                     .in_bytes = (uint32_t)n_bytes};
        status = batch_index_add(&batch->index, line.custom_id, id_bytes, &entry);
        if (status != KR_OK) {
            (void)KRI_FAIL(error, status, "IN", "%s has more than %u lines, or memory is short",
                           batch->in_path, BATCH_LINES_MAX);
        }
    }
    batch_line_deinit(&line);
    return status;
}

static kr_status_t read_in(batch_t *batch, kr_error_t *error) {
    batch_lines_t lines;
    char *text = NULL;
    size_t n_bytes = 0;
    bool is_whole = false;
    kr_status_t status = KR_OK;
    batch_lines_init(&lines, batch->in_fd, BATCH_LINE_BYTES_MAX);
    for (;;) {
        status = batch_lines_next(&lines, &text, &n_bytes, &is_whole);
        if (status != KR_OK) {
            (void)KRI_FAIL(error, status, "IN", "%s line %llu: %s", batch->in_path,
                           (unsigned long long)lines.number + 1, kr_status_text(status));
            break;
        }
        if (text == NULL) break;
        if (is_blank(text, n_bytes)) continue;
        status = add_line(batch, &lines, text, n_bytes, error);
        if (status != KR_OK) break;
        batch->result.n_lines++;
    }
    batch_lines_deinit(&lines);
    return status;
}

/* Marks what OUT has. *n_whole: bytes of its whole lines. */
static kr_status_t mark_done(batch_t *batch, const batch_lines_t *lines, const char *text,
                             size_t n_bytes, kri_buffer_t *id, kr_error_t *error) {
    const char *path = batch->out_path;
    const unsigned long long number = lines->number;
    if (!batch_out_read(text, n_bytes, id)) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "OUT",
                        "%s line %llu is not what kr batch writes: give another file", path,
                        number);
    }
    batch_entry_t *entry = batch_index_find(&batch->index, id->data, id->n_bytes);
    if (entry == NULL) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "OUT",
                        "%s line %llu: custom_id \"%.100s\" is not in %s: give another file", path,
                        number, id->data, batch->in_path);
    }
    if (entry->is_done) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "OUT", "%s line %llu: custom_id \"%.100s\" again",
                        path, number, id->data);
    }
    entry->is_done = true;
    batch->result.n_skipped++;
    return KR_OK;
}

static kr_status_t read_out(batch_t *batch, kr_error_t *error) {
    batch_lines_t lines;
    kri_buffer_t id;
    char *text = NULL;
    size_t n_bytes = 0;
    bool is_whole = false;
    uint64_t n_whole = 0;
    kr_status_t status = KR_OK;
    kri_buffer_init(&id, BATCH_OUT_LINE_BYTES_MAX);
    batch_lines_init(&lines, batch->log.fd, BATCH_OUT_LINE_BYTES_MAX);
    for (;;) {
        status = batch_lines_next(&lines, &text, &n_bytes, &is_whole);
        if (status != KR_OK) {
            (void)KRI_FAIL(error, status, "OUT", "%s line %llu: %s", batch->out_path,
                           (unsigned long long)lines.number + 1, kr_status_text(status));
            break;
        }
        if (text == NULL) break;
        if (!is_whole) {
            if (batch_out_is_torn(text, n_bytes, n_whole == 0)) break;
            status = KRI_FAIL(error, KR_E_BAD_FORMAT, "OUT",
                              "the end of %s is not what kr batch writes: give another file",
                              batch->out_path);
            break;
        }
        status = mark_done(batch, &lines, text, n_bytes, &id, error);
        if (status != KR_OK) break;
        n_whole += n_bytes + 1;
    }
    batch_lines_deinit(&lines);
    kri_buffer_deinit(&id);
    if (status != KR_OK) return status;
    batch->result.n_cut = batch->log.n_bytes - n_whole;
    return batch_log_cut(&batch->log, n_whole, error);
}

/* ---- the sink -------------------------------------------------------------------------------- */

static void on_reply(void *sink, int status, const char *content_type, const char *fields,
                     const char *body, size_t n_bytes) {
    item_t *item = sink;
    (void)content_type, (void)fields;
    item->status = status;
    item->is_broken = kri_buffer_append(&item->answer, body, n_bytes) != KR_OK;
}

static void on_destroy(void *sink) {
    item_t *item = sink;
    batch_t *batch = item->batch;
    (void)pthread_mutex_lock(&batch->mutex);
    item->next = batch->ended;
    batch->ended = item;
    (void)pthread_cond_signal(&batch->changed);
    (void)pthread_mutex_unlock(&batch->mutex);
}

static const call_sink_t sink_functions = {.reply = on_reply, .destroy = on_destroy};

/* ---- lines of OUT ---------------------------------------------------------------------------- */

static void put(kri_buffer_t *out, const char *text) {
    (void)kri_buffer_append(out, text, strlen(text));
}

/* The answer as the endpoint made it; a newline could only be white space. */
static void put_body(kri_buffer_t *out, const kri_buffer_t *body) {
    const size_t at = out->n_bytes;
    (void)kri_buffer_append(out, body->data, body->n_bytes);
    for (size_t i = at; i < out->n_bytes; i++) {
        if (out->data[i] == '\n' || out->data[i] == '\r') out->data[i] = ' ';
    }
}

/* code NULL: the item's answer. */
static kr_status_t write_line(batch_t *batch, uint32_t entry, const item_t *item,
                              const char *code, const char *message, kr_error_t *error) {
    const char *custom_id = batch_index_id(&batch->index, &batch->index.entries[entry]);
    char id[48];
    kri_buffer_t out;
    kri_buffer_init(&out, BATCH_OUT_LINE_BYTES_MAX);
    job_make_id(BATCH_ID_PREFIX, id, sizeof id);
    (void)kri_buffer_printf(&out, "{\"id\":\"%s\",\"custom_id\":", id);
    (void)json_put_string(&out, custom_id, strlen(custom_id));
    if (code == NULL) {
        (void)kri_buffer_printf(&out, ",\"response\":{\"status_code\":%d,\"request_id\":\"%s\","
                                "\"body\":", item->status, item->request_id);
        put_body(&out, &item->answer);
        put(&out, "},\"error\":null}\n");
    } else {
        (void)kri_buffer_printf(&out, ",\"response\":null,\"error\":{\"code\":\"%s\",\"message\":",
                                code);
        (void)json_put_string(&out, message, strlen(message));
        put(&out, "}}\n");
    }
    kr_status_t status = out.status;
    if (status != KR_OK) (void)KRI_FAIL(error, status, "OUT", "no memory for a line of OUT");
    else status = batch_log_append(&batch->log, out.data, out.n_bytes, error);
    kri_buffer_deinit(&out);
    if (status != KR_OK) return status;
    batch->index.entries[entry].is_done = true;
    batch->result.n_done++;
    if (code != NULL || item->status != 200) batch->result.n_failed++;
    if (batch->params->on_progress != NULL) batch->params->on_progress(&batch->result);
    return KR_OK;
}

/* ---- calls ----------------------------------------------------------------------------------- */

static void free_item(item_t *item) {
    batch_line_deinit(&item->line);
    kri_buffer_deinit(&item->answer);
    free(item);
}

/* Reads the line once more: only ids were kept. */
static kr_status_t load_line(batch_t *batch, item_t *item, kr_error_t *error) {
    const batch_entry_t *entry = &batch->index.entries[item->entry];
    char *text = malloc((size_t)entry->in_bytes + 1);
    kr_status_t status = text == NULL ? KR_E_NOMEM
                                      : batch_read_at(batch->in_fd, entry->in_at, text,
                                                      entry->in_bytes);
    if (status == KR_OK) status = batch_line_read(text, entry->in_bytes, &item->line, NULL);
    free(text);
    if (status == KR_OK &&
        strcmp(item->line.custom_id, batch_index_id(&batch->index, entry)) == 0) {
        return KR_OK;
    }
    if (status == KR_E_NOMEM) return KRI_FAIL(error, status, "IN", "no memory for a line");
    return KRI_FAIL(error, KR_E_CHANGED, "IN", "%s line %llu has changed while it was read",
                    batch->in_path, (unsigned long long)entry->number);
}

static const endpoint_t *find_endpoint(const batch_line_t *line, const char **code,
                                       const char **message) {
    *code = "invalid_method";
    *message = "method must be \"POST\"";
    if (line->method == NULL || strcmp(line->method, "POST") != 0) return NULL;
    *code = "invalid_url";
    *message = "url must be the path of a generating endpoint, like \"/v1/chat/completions\"";
    if (line->url == NULL) return NULL;
    const endpoint_t *endpoint = endpoint_find("POST", 4, line->url, strlen(line->url)).endpoint;
    if (endpoint == NULL || endpoint->scope != SCOPE_GENERATE || !endpoint->has_body) return NULL;
    *code = "invalid_body";
    *message = "body must be an object";
    return line->body != NULL ? endpoint : NULL;
}

static kr_status_t start(batch_t *batch, uint32_t entry, kr_error_t *error) {
    const char *code = NULL, *message = NULL;
    item_t *item = calloc(1, sizeof *item);
    if (item == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for a request");
    item->batch = batch;
    item->entry = entry;
    kri_buffer_init(&item->answer, BATCH_OUT_LINE_BYTES_MAX);
    job_make_id("req_", item->request_id, sizeof item->request_id);
    kr_status_t status = load_line(batch, item, error);
    if (status != KR_OK) {
        free_item(item);
        return status;
    }
    const endpoint_t *endpoint = find_endpoint(&item->line, &code, &message);
    if (endpoint == NULL) {
        status = write_line(batch, entry, NULL, code, message, error);
        free_item(item);
        return status;
    }
    const call_params_t params = {
        .server = batch->params->server, .endpoint = endpoint,
        .principal = {.scopes = SCOPE_GENERATE, .name = "batch"}, .id = item->request_id,
        .body = item->line.body, .body_bytes = item->line.body_bytes, .tail = "",
        .sink = &sink_functions, .sink_user = item};
    batch->n_flying++;
    call_t *call = call_create(&params);
    if (call == NULL) return KR_OK; /* the item has its 503 */
    endpoint->run(call);
    call_release(call);
    return KR_OK;
}

/* Ended items, waiting a little for the first. */
static item_t *take_ended(batch_t *batch) {
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_MS * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    (void)pthread_mutex_lock(&batch->mutex);
    if (batch->ended == NULL) {
        (void)pthread_cond_timedwait(&batch->changed, &batch->mutex, &until);
    }
    item_t *ended = batch->ended;
    batch->ended = NULL;
    (void)pthread_mutex_unlock(&batch->mutex);
    return ended;
}

/* is_over: the run ends early; only answers that are as they would have been are kept. */
static kr_status_t finish_item(batch_t *batch, item_t *item, bool is_over, kr_error_t *error) {
    batch->n_flying--;
    if (is_over && item->status != 200) return KR_OK;
    if (item->status == 429 && batch->n_flying > 0) { /* again when another one has ended */
        batch->again[batch->n_again++] = item->entry;
        batch->n_flying_max = batch->n_flying;
        return KR_OK;
    }
    if (batch->n_flying_max < batch->params->n_in_flight) batch->n_flying_max++;
    if (item->is_broken || item->status == 0) {
        return write_line(batch, item->entry, NULL, "internal", "the answer was lost", error);
    }
    return write_line(batch, item->entry, item, NULL, NULL, error);
}

static bool next_entry(batch_t *batch, uint32_t *entry) {
    if (batch->n_again > 0) {
        *entry = batch->again[--batch->n_again];
        return true;
    }
    while (batch->next < batch->index.n_entries && batch->index.entries[batch->next].is_done) {
        batch->next++;
    }
    if (batch->next == batch->index.n_entries) return false;
    *entry = batch->next++;
    return true;
}

static kr_status_t run_all(batch_t *batch, kr_error_t *error) {
    kr_status_t status = KR_OK;
    for (;;) {
        uint32_t entry = 0;
        while (status == KR_OK && batch->n_flying < batch->n_flying_max &&
               next_entry(batch, &entry)) {
            status = start(batch, entry, error);
        }
        if (batch->n_flying == 0) break;
        for (item_t *item = take_ended(batch), *next = NULL; item != NULL; item = next) {
            kr_error_t ignored;
            kr_error_init(&ignored);
            next = item->next;
            const bool is_over = status != KR_OK;
            const kr_status_t written = finish_item(batch, item, is_over,
                                                    is_over ? &ignored : error);
            if (!is_over) status = written;
            free_item(item);
        }
        if (status == KR_OK && batch->params->is_interrupted()) status = KR_E_CANCELLED;
        if (status != KR_OK) job_abort_all(KR_E_SHUTTING_DOWN);
    }
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static kr_status_t open_files(batch_t *batch, kr_error_t *error) {
    struct stat in, out;
    batch->in_fd = open(batch->in_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (batch->in_fd < 0) return batch_fail_errno("IN", batch->in_path, errno, error);
    if (fstat(batch->in_fd, &in) != 0 || !S_ISREG(in.st_mode)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "IN", "%s is not a regular file", batch->in_path);
    }
    KR_TRY(read_in(batch, error));
    KR_TRY(batch_log_open(batch->out_path, &batch->log, error));
    if (fstat(batch->log.fd, &out) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "OUT", "IN and OUT are the same file");
    }
    return read_out(batch, error);
}

kr_status_t batch_open(const char *in_path, const char *out_path, batch_t **batch,
                       kr_error_t *error) {
    batch_t *made = calloc(1, sizeof *made);
    if (made == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the batch");
    made->in_path = in_path;
    made->out_path = out_path;
    made->in_fd = made->log.fd = -1;
    batch_index_init(&made->index);
    (void)pthread_mutex_init(&made->mutex, NULL);
    (void)pthread_cond_init(&made->changed, NULL);
    const kr_status_t status = open_files(made, error);
    if (status == KR_OK) *batch = made;
    else batch_close(made);
    return status;
}

const batch_result_t *batch_result(const batch_t *batch) { return &batch->result; }

kr_status_t batch_run(batch_t *batch, const batch_params_t *params, kr_error_t *error) {
    batch->params = params;
    batch->n_flying_max = params->n_in_flight;
    batch->again = calloc(params->n_in_flight, sizeof *batch->again);
    if (batch->again == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory");
    const kr_status_t status = run_all(batch, error);
    const kr_status_t synced = batch_log_sync(&batch->log, status == KR_OK ? error : NULL);
    return status != KR_OK ? status : synced;
}

void batch_close(batch_t *batch) {
    if (batch == NULL) return;
    (void)pthread_cond_destroy(&batch->changed);
    (void)pthread_mutex_destroy(&batch->mutex);
    batch_log_close(&batch->log);
    if (batch->in_fd >= 0) (void)close(batch->in_fd);
    batch_index_deinit(&batch->index);
    free(batch->again);
    free(batch);
}

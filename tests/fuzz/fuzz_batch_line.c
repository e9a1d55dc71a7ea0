/* fuzz_batch_line.c: lines of both files of `kr batch`. What a line of OUT is taken for must hold
 * when it is read again, and its beginning must count as torn. */
#include <stdlib.h>
#include <string.h>

#include "server/batch.h"
#include "server/batch_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_in(const char *text, size_t n_bytes) {
    batch_line_t line;
    kr_error_t error;
    kr_error_init(&error);
    if (batch_line_read(text, n_bytes, &line, &error) != KR_OK) {
        if (error.message[0] == '\0' || line.custom_id != NULL) abort();
        return;
    }
    const size_t n = strlen(line.custom_id);
    if (n == 0 || n > BATCH_ID_BYTES_MAX) abort();
    if (line.body != NULL && (line.body[0] != '{' || strlen(line.body) != line.body_bytes)) abort();
    batch_line_deinit(&line);
}

static void read_out(const char *text, size_t n_bytes) {
    kri_buffer_t id;
    kri_buffer_init(&id, 1 << 20);
    if (batch_out_read(text, n_bytes, &id)) {
        if (id.n_bytes == 0 || id.n_bytes > n_bytes) abort();
        for (size_t i = 0; i < n_bytes; i += 1 + n_bytes / 16) {
            if (!batch_out_is_torn(text, i, false)) abort();
            if (i > sizeof BATCH_ID_PREFIX + 8 && !batch_out_is_torn(text, i, true)) abort();
        }
    }
    kri_buffer_deinit(&id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1);
    if (text == NULL) return 0;
    if (size > 0) memcpy(text, data, size);
    text[size] = '\0';
    read_in(text, size);
    read_out(text, size);
    free(text);
    return 0;
}

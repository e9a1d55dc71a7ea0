/* error.c: status names and the filling of kr_error_t. Messages may quote file bytes, so they are
 * cleaned here, in one place, and never used as a format. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/os.h"
#include "base/structs.h"
#include "base/utf8.h"

typedef struct status_row_s {
    const char *name;
    const char *text;
} status_row_t;

static const status_row_t status_rows[] = {
#define STATUS_ROW(name, number, text) [number] = {"KR_" #name, text},
    KR_STATUS_LIST(STATUS_ROW)
#undef STATUS_ROW
};

static const status_row_t *find_status(kr_status_t status) {
    static const status_row_t unknown = {"KR_?", "unknown status"};
    const size_t n_rows = sizeof status_rows / sizeof status_rows[0];
    if (status < 0 || (size_t)status >= n_rows || status_rows[status].name == NULL) return &unknown;
    return &status_rows[status];
}

const char *kr_status_name(kr_status_t status) { return find_status(status)->name; }

const char *kr_status_text(kr_status_t status) { return find_status(status)->text; }

void kr_error_init(kr_error_t *error) {
    if (error == NULL) return;
    kri_struct_init(error, sizeof *error);
    error->offset = UINT64_MAX;
}

/* snprintf may have cut a character in half; drop the rest of it, then clean what remains. */
static void clean_text(char *text) {
    size_t n_bytes = strlen(text);
    for (size_t n_cut = 1; n_cut <= 3 && n_cut <= n_bytes; n_cut++) {
        if (!kri_utf8_is_incomplete(text + n_bytes - n_cut, n_cut)) continue;
        n_bytes -= n_cut;
        text[n_bytes] = '\0';
        break;
    }
    kri_utf8_clean_line(text, n_bytes);
}

kr_status_t kri_error_set(kr_error_t *error, kr_status_t code, const char *param,
                          uint64_t offset, const char *format, ...) {
    if (error == NULL) return code;
    kr_error_t filled;
    kr_error_init(&filled);
    filled.code = code;
    filled.offset = offset;
    if (param != NULL) {
        (void)snprintf(filled.param, sizeof filled.param, "%s", param);
        clean_text(filled.param);
    }
    va_list args;
    va_start(args, format);
    const int n_chars = vsnprintf(filled.message, sizeof filled.message, format, args);
    va_end(args);
    if (n_chars < 0) filled.message[0] = '\0';
    clean_text(filled.message);
    /* A struct that was never initialised is left alone: the status still tells what happened. */
    (void)kri_struct_write(error, &filled, sizeof filled);
    return code;
}

kr_status_t kri_check_max(const char *param, uint32_t value, uint32_t max, kr_error_t *error) {
    if (value <= max) return KR_OK;
    return KRI_FAIL(error, KR_E_INVALID_ARG, param, "%s is %u, the maximum is %u", param, value,
                    max);
}

#ifdef KR_ASSERTIONS
void kri_assert_failed(const char *cond, const char *file, int line) {
    char text[512];
    (void)snprintf(text, sizeof text, "%s:%d: assertion failed: %s", file, line, cond);
    kri_panic(text);
}
#endif

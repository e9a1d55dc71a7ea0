/* fuzz_accept.c: any bytes as an Accept line. The answer does not depend on white space around the
 * list or on the line it stands in, and a type by its name is welcome. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/accept.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static bool ask(http_text_t one, http_text_t two) {
    const http_field_t fields[] = {{{"Accept", 6}, one}, {{"accept", 6}, two}};
    const http_request_t request = {.fields = fields, .n_fields = 2};
    return accept_answers(&request);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    char *text = malloc(n_bytes + 2); /* exact, so that a read past the end is seen */
    if (text == NULL) return 0;
    text[0] = ' ';
    if (n_bytes > 0) memcpy(text + 1, data, n_bytes);
    text[n_bytes + 1] = '\t';
    const http_text_t none = {"", 0}, line = {text + 1, n_bytes}, wide = {text, n_bytes + 2};
    static const char types[] = "application/json";
    const bool is_welcome = ask(line, none);
    if (ask(wide, none) != is_welcome || ask(none, line) != is_welcome) abort();
    /* A type by its name, and at full weight, decides for itself. */
    if (!ask(line, (http_text_t){types, sizeof types - 1})) abort();
    free(text);
    return 0;
}

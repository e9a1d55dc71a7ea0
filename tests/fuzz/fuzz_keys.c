/* fuzz_keys.c: any bytes as a key file. What is accepted keeps its bounds and comes back the same
 * after printing; what is refused says why in one line. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/keys.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool condition) {
    if (!condition) abort();
}

static void check_row(const key_row_t *row) {
    const char known[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    require(row->id == 0 && row->name[0] != '\0' && strlen(row->name) < sizeof row->name);
    require(strspn(row->name, known) == strlen(row->name));
    require(row->scopes != 0 && row->scopes <= (SCOPE_GENERATE | SCOPE_METRICS | SCOPE_ADMIN));
    require(row->in_flight_max <= KEYS_IN_FLIGHT_MAX);
}

static int print_row(const key_row_t *row, char *out, size_t cap) {
    char digest[2 * sizeof row->digest + 1];
    for (size_t i = 0; i < sizeof row->digest; i++) {
        snprintf(digest + 2 * i, 3, "%02x", (unsigned)row->digest[i]);
    }
    char scopes[64] = "", limit[64] = "";
    if ((row->scopes & SCOPE_ADMIN) != 0) strcat(scopes, ",admin");
    if ((row->scopes & SCOPE_METRICS) != 0) strcat(scopes, ",metrics");
    if ((row->scopes & SCOPE_GENERATE) != 0) strcat(scopes, ",generate");
    if (row->in_flight_max != 0) snprintf(limit, sizeof limit, "max_in_flight=%u",
                                          row->in_flight_max);
    return snprintf(out, cap, "%s %s %s %s\n", row->name, digest, scopes + 1, limit);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static char printed[KEYS_FILE_BYTES_MAX];
    kr_error_t error;
    kr_error_init(&error);
    key_row_t *rows = NULL, *again = NULL;
    uint32_t n_rows = 0, n_again = 0;
    char *copy = malloc(n_bytes + (n_bytes == 0)); /* exact, so that a read past the end is seen */
    require(copy != NULL);
    memcpy(copy, data, n_bytes);
    const kr_status_t status = keys_parse(copy, n_bytes, &rows, &n_rows, &error);
    free(copy);
    if (status != KR_OK) {
        require(status == KR_E_BAD_FORMAT || status == KR_E_LIMIT || status == KR_E_UNSUPPORTED);
        require(error.message[0] != '\0' && strchr(error.message, '\n') == NULL);
        require(rows == NULL);
        return 0;
    }
    require(n_rows <= KEYS_MAX && (rows != NULL) == (n_rows > 0));
    size_t n_printed = 0;
    for (uint32_t i = 0; i < n_rows; i++) {
        check_row(&rows[i]);
        n_printed += (size_t)print_row(&rows[i], printed + n_printed, sizeof printed - n_printed);
    }
    require(keys_parse(printed, n_printed, &again, &n_again, &error) == KR_OK);
    require(n_again == n_rows);
    require(n_rows == 0 || memcmp(rows, again, n_rows * sizeof *rows) == 0);
    free(rows);
    free(again);
    return 0;
}

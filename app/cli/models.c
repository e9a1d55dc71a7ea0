/* models.c: aliases, their files, and `kr models`. The program never downloads; fetching is the
 * business of tools/fetch_model.py, which reads the same table. */
#include "models.h"

#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "base/os.h"
#include "report.h"
#include "terminal.h"

const cli_model_row_t cli_model_rows[] = {
#define KR_MODEL(alias, package, n_packages, version, payload, file, bytes, sha256, title) \
    {alias, file, sha256, title, bytes},
#include "models.def"
};
const size_t cli_n_model_rows = sizeof(cli_model_rows) / sizeof(cli_model_rows[0]);

#define HASH_STEP_BYTES ((size_t)4 << 20)

const cli_model_row_t *cli_model_find(const char *alias) {
    for (size_t i = 0; i < cli_n_model_rows; i++) {
        if (strcmp(alias, cli_model_rows[i].alias) == 0) return &cli_model_rows[i];
    }
    return NULL;
}

int cli_model_path(const cli_options_t *options, const char *alias, char *path, size_t cap) {
    const char *folder = cli_text(options, CLI_OPT_models_dir);
    const char *cache = kri_env("XDG_CACHE_HOME"), *home = kri_env("HOME");
    int n = -1;
    if (folder != NULL) n = snprintf(path, cap, "%s/%s.gguf", folder, alias);
    else if (cache != NULL) n = snprintf(path, cap, "%s/kr/models/%s.gguf", cache, alias);
    else if (home != NULL) n = snprintf(path, cap, "%s/.cache/kr/models/%s.gguf", home, alias);
    if (n >= 0 && (size_t)n < cap) return 0;
    return cli_fail(CLI_PHASE_MODEL, KR_E_NOT_FOUND, "KR_MODELS_DIR",
                    n < 0 ? "no models folder: set KR_MODELS_DIR or HOME"
                          : "the path of the models folder is too long");
}

static void list_aliases(char *out, size_t cap) {
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; i < cli_n_model_rows && n < cap; i++) {
        n += (size_t)snprintf(out + n, cap - n, "%s%s", i > 0 ? ", " : "",
                              cli_model_rows[i].alias);
    }
}

/* KR_OK with the size of a plain file. */
static kr_status_t measure(const char *path, uint64_t *bytes, kr_error_t *error) {
    kri_map_t map;
    kr_status_t status = kri_map_open(path, &map, error);
    if (status != KR_OK) return status;
    *bytes = map.size;
    kri_map_close(&map);
    return KR_OK;
}

int cli_model_resolve(const cli_options_t *options, const char *name, char *path, size_t cap) {
    const cli_model_row_t *row = cli_model_find(name);
    uint64_t bytes = 0;
    kr_error_t error;
    kr_error_init(&error);
    if (row != NULL) {
        int failed = cli_model_path(options, name, path, cap);
        if (failed != 0) return failed;
        kr_status_t status = measure(path, &bytes, &error);
        if (status == KR_OK) return 0;
        if (status != KR_E_NOT_FOUND) return cli_report(CLI_PHASE_MODEL, status, &error);
        return cli_fail(CLI_PHASE_MODEL, status, "model",
                        "model %s is not here yet (%.900s): fetch it with `make models` or "
                        "`tools/fetch_model.py %s`", name, path, name);
    }
    int n = snprintf(path, cap, "%s", name);
    if (n < 0 || (size_t)n >= cap) {
        return cli_fail(CLI_PHASE_MODEL, KR_E_NOT_FOUND, "model", "the model's path is too long");
    }
    if (strchr(name, '/') != NULL || strstr(name, ".gguf") != NULL) return 0;
    kr_status_t status = measure(path, &bytes, &error);
    if (status != KR_E_NOT_FOUND) return 0; /* the library says what is wrong with it */
    char known[256];
    list_aliases(known, sizeof known);
    return cli_fail(CLI_PHASE_MODEL, KR_E_NOT_FOUND, "model",
                    "no model '%.200s': neither a file nor an alias (known: %s)", name, known);
}

/* ---- kr models ---------------------------------------------------------------------------- */

typedef struct checked_s {
    const char *state; /* "ok", "missing", "wrong size", "unreadable", "digest differs" */
    uint64_t bytes;
    char path[CLI_PATH_BYTES_MAX];
} checked_t;

/* Lower-case hexadecimal digits and NUL. */
static void write_hex(const unsigned char digest[32], char hex[65]) {
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

static int hash_file(const char *path, const char *alias, char hex[65]) {
    kr_error_t error;
    kr_error_init(&error);
    kri_map_t map;
    kr_status_t status = kri_map_open(path, &map, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_MODEL, status, &error);
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    unsigned char digest[EVP_MAX_MD_SIZE];
    int failed = 0;
    if (!hash || EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1) {
        failed = cli_report(CLI_PHASE_MODEL, KR_E_NOMEM, NULL);
    }
    for (size_t offset = 0; offset < map.size && failed == 0; offset += HASH_STEP_BYTES) {
        size_t n = map.size - offset < HASH_STEP_BYTES ? map.size - offset : HASH_STEP_BYTES;
        if (EVP_DigestUpdate(hash, map.data + offset, n) != 1) {
            failed = cli_report(CLI_PHASE_MODEL, KR_E_INTERNAL, NULL);
        }
        cli_progress(alias, offset + n, map.size);
        if (cli_interrupted()) failed = cli_report(CLI_PHASE_MODEL, KR_E_CANCELLED, NULL);
    }
    cli_progress_clear();
    kri_map_close(&map);
    if (failed == 0) {
        if (EVP_DigestFinal_ex(hash, digest, NULL) == 1) write_hex(digest, hex);
        else failed = cli_report(CLI_PHASE_MODEL, KR_E_INTERNAL, NULL);
    }
    EVP_MD_CTX_free(hash);
    return failed;
}

/* `failed` is an exit code only when the check itself could not be made. */
static int check_model(const cli_options_t *options, const cli_model_row_t *row, bool verify,
                       checked_t *checked) {
    int failed = cli_model_path(options, row->alias, checked->path, sizeof checked->path);
    if (failed != 0) return failed;
    kr_status_t status = measure(checked->path, &checked->bytes, NULL);
    if (status == KR_E_NOT_FOUND) checked->state = "missing";
    else if (status != KR_OK) checked->state = "unreadable";
    else if (checked->bytes != row->bytes) checked->state = "wrong size";
    else checked->state = "ok";
    if (!verify || strcmp(checked->state, "ok") != 0) return 0;
    char hex[65];
    failed = hash_file(checked->path, row->alias, hex);
    if (failed == 0 && strcmp(hex, row->sha256) != 0) checked->state = "digest differs";
    return failed;
}

static json_t *model_json(const cli_model_row_t *row, const checked_t *checked) {
    json_t *object = json_object();
    json_object_set_new(object, "alias", json_string(row->alias));
    json_object_set_new(object, "title", json_string(row->title));
    json_object_set_new(object, "state", json_string(checked->state));
    json_object_set_new(object, "bytes", json_integer((json_int_t)row->bytes));
    json_object_set_new(object, "sha256", json_string(row->sha256));
    json_t *path = json_string(checked->path); /* NULL when the folder's name is not UTF-8 */
    json_object_set_new(object, "path", path != NULL ? path : json_null());
    return object;
}

/* Exit code of a verify for one model; `asked` = named by the user. */
static int judge(const cli_model_row_t *row, const checked_t *checked, bool asked) {
    const char *state = checked->state;
    if (strcmp(state, "ok") == 0) return 0;
    if (strcmp(state, "missing") == 0) {
        if (!asked) return 0;
        return cli_fail(CLI_PHASE_MODEL, KR_E_NOT_FOUND, "model",
                        "model %s is not here: `tools/fetch_model.py %s` fetches it", row->alias,
                        row->alias);
    }
    if (strcmp(state, "unreadable") == 0) {
        return cli_fail(CLI_PHASE_MODEL, KR_E_PERMISSION, "model", "cannot read %.900s",
                        checked->path);
    }
    return cli_fail(CLI_PHASE_MODEL, KR_E_CORRUPT, "model",
                    "%s: %s; delete %.800s and run `tools/fetch_model.py %s`", row->alias, state,
                    checked->path, row->alias);
}

/* ---- files of the artifact cache ---------------------------------------------------------- */

typedef struct cache_walk_s {
    json_t *list; /* NULL: lines instead */
    uint32_t n_bad;
    char worst[CLI_PATH_BYTES_MAX]; /* the first bad one */
} cache_walk_t;

static int32_t on_cache_file(const char *path, uint64_t bytes, kr_status_t status, void *user) {
    cache_walk_t *walk = user;
    const char *state = status == KR_OK ? "ok" : kr_status_text(status);
    if (walk->list != NULL) {
        json_t *name = json_string(path); /* NULL when the folder's name is not UTF-8 */
        json_array_append_new(walk->list, json_pack("{s:o,s:I,s:s}", "path",
                                                    name != NULL ? name : json_null(), "bytes",
                                                    (json_int_t)bytes, "state", state));
    } else {
        (void)cli_out_printf("%-9s %8.1f MB  %-14s  %s\n", "cache", (double)bytes / 1e6, state,
                             path);
    }
    if (status != KR_OK && walk->n_bad++ == 0) {
        snprintf(walk->worst, sizeof walk->worst, "%s", path);
    }
    return cli_interrupted();
}

/* Checks every kept file; what is damaged would be noticed at its next use and written anew. */
static int check_cache(const cli_options_t *options, json_t *list) {
    static cache_walk_t walk; /* large: a path */
    walk.list = list;
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status =
        kr_cache_verify(cli_text(options, CLI_OPT_cache_dir), on_cache_file, &walk, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_MODEL, status, &error);
    if (walk.n_bad == 0) return 0;
    return cli_fail(CLI_PHASE_MODEL, KR_E_CORRUPT, "cache_dir",
                    "%u files of packed weights are damaged, the first is %.800s; delete them: "
                    "they are written anew when needed", walk.n_bad, walk.worst);
}

/* ---- the command -------------------------------------------------------------------------- */

static bool is_asked(const cli_options_t *options, const char *alias) {
    for (size_t i = 1; i < options->n_positional; i++) {
        if (strcmp(options->positional[i], alias) == 0) return true;
    }
    return false;
}

static int check_words(const cli_options_t *options, bool *verify) {
    const char *action = options->n_positional > 0 ? options->positional[0] : "list";
    *verify = strcmp(action, "verify") == 0;
    if (!*verify && strcmp(action, "list") != 0) {
        return cli_usage("command", "`kr models` takes list or verify, not '%.64s'", action);
    }
    if (!*verify && options->n_positional > 1) {
        return cli_usage("command", "`kr models list` takes no names");
    }
    char known[256];
    list_aliases(known, sizeof known);
    for (size_t i = 1; i < options->n_positional; i++) {
        if (cli_model_find(options->positional[i]) != NULL) continue;
        return cli_fail(CLI_PHASE_MODEL, KR_E_NOT_FOUND, "model",
                        "unknown alias '%.64s' (known: %s)", options->positional[i], known);
    }
    return 0;
}

int cli_models(const cli_options_t *options) {
    bool verify = false, as_json = cli_given(options, CLI_OPT_json);
    int failed = check_words(options, &verify), worst = 0;
    json_t *list = json_array();
    for (size_t i = 0; i < cli_n_model_rows && failed == 0; i++) {
        const cli_model_row_t *row = &cli_model_rows[i];
        bool asked = is_asked(options, row->alias);
        if (options->n_positional > 1 && !asked) continue;
        static checked_t checked; /* large: a path */
        failed = check_model(options, row, verify, &checked);
        if (failed != 0) break;
        if (as_json) {
            json_array_append_new(list, model_json(row, &checked));
        } else {
            (void)cli_out_printf("%-9s %8.1f MB  %-14s  %s\n", row->alias,
                                 (double)row->bytes / 1e6, checked.state, row->title);
        }
        /* With --json only the first bad model becomes the error object, instead of the list. */
        if (verify && (worst == 0 || !as_json)) {
            int code = judge(row, &checked, asked);
            if (worst == 0) worst = code;
        }
    }
    json_t *files = json_array();
    if (verify && failed == 0 && options->n_positional <= 1 && (worst == 0 || !as_json)) {
        int code = check_cache(options, as_json ? files : NULL);
        if (worst == 0) worst = code;
    }
    json_t *object = json_pack("{s:o}", "models", list);
    if (verify) json_object_set(object, "cache", files);
    json_decref(files);
    if (failed == 0 && worst == 0 && as_json) (void)cli_out_json(object);
    json_decref(object);
    return failed != 0 ? failed : worst;
}

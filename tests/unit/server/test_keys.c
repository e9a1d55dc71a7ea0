/* test_keys.c: key files, who is let in, what a reload keeps. */
#include <openssl/sha.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/keys.h"
#include "test.h"

typedef struct file_s {
    char path[64];
} file_t;

static file_t make_file(void) {
    file_t file = {"/tmp/kr-keys-XXXXXX"};
    const int fd = mkstemp(file.path);
    assert_true(fd >= 0);
    close(fd);
    return file;
}

/* "NAME DIGEST(key) rest" lines: name, key, rest, ..., NULL. */
static void write_keys(const file_t *file, const char *const *words) {
    FILE *out = fopen(file->path, "w");
    assert_non_null(out);
    for (; words[0] != NULL; words += 3) {
        uint8_t digest[SHA256_DIGEST_LENGTH];
        SHA256((const uint8_t *)words[1], strlen(words[1]), digest);
        fprintf(out, "%s ", words[0]);
        for (size_t i = 0; i < sizeof digest; i++) fprintf(out, "%02x", (unsigned)digest[i]);
        fprintf(out, " %s\n", words[2]);
    }
    assert_int_equal(fclose(out), 0);
}

static keys_t *open_keys(const file_t *file) {
    keys_t *keys = NULL;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = keys_create(file->path, 2, &keys, &error);
    if (status != KR_OK) fail_msg("%s", error.message);
    return keys;
}

#define FIELDS_MAX 4
typedef struct asked_s {
    http_field_t fields[FIELDS_MAX];
    http_request_t request;
} asked_t;

static http_text_t text_of(const char *text) { return (http_text_t){text, strlen(text)}; }

/* name, value, ..., NULL */
static bool identify(keys_t *keys, const char *const *words, principal_t *principal) {
    asked_t asked;
    memset(&asked, 0, sizeof asked);
    for (; words[0] != NULL; words += 2) {
        asked.fields[asked.request.n_fields++] =
            (http_field_t){text_of(words[0]), text_of(words[1])};
    }
    asked.request.fields = asked.fields;
    return keys_identify(keys, &asked.request, principal);
}

static bool identify_one(keys_t *keys, const char *name, const char *value,
                         principal_t *principal) {
    const char *const words[] = {name, value, NULL};
    return identify(keys, words, principal);
}

TEST(keys_let_their_owners_in) {
    const file_t file = make_file();
    const char *const words[] = {"alice", "sk-alice", "generate", "bob", "sk-bob",
                                 "metrics,admin max_in_flight=7", NULL};
    write_keys(&file, words);
    keys_t *keys = open_keys(&file);
    principal_t alice, bob, again;
    assert_true(keys_in_use(keys));
    assert_int_equal(keys_count(keys), 2);
    assert_true(identify_one(keys, "Authorization", "Bearer sk-alice", &alice));
    assert_string_equal(alice.name, "alice");
    assert_int_equal(alice.scopes, SCOPE_GENERATE);
    assert_true(identify_one(keys, "X-API-Key", "sk-bob", &bob));
    assert_int_equal(bob.scopes, SCOPE_METRICS | SCOPE_ADMIN);
    assert_true(alice.key_id != 0 && bob.key_id != 0 && alice.key_id != bob.key_id);
    assert_true(identify_one(keys, "authorization", "bearer   sk-alice", &again));
    assert_true(again.key_id == alice.key_id);
    const char *const both[] = {"x-api-key", "sk-bob", "authorization", "Bearer sk-bob", NULL};
    assert_true(identify(keys, both, &again));
    keys_destroy(keys);
    unlink(file.path);
}

TEST(keys_refuse_everything_else) {
    const file_t file = make_file();
    const char *const words[] = {"alice", "sk-alice", "generate", "bob", "sk-bob", "admin", NULL};
    write_keys(&file, words);
    keys_t *keys = open_keys(&file);
    static char endless[600];
    memset(endless, 'k', sizeof endless - 1);
    static const char *const wrong[][5] = {
        {NULL},
        {"x-api-key", "", NULL},
        {"x-api-key", "sk-alic", NULL},
        {"x-api-key", "sk-alice ", NULL},
        {"x-api-key", "Bearer sk-alice", NULL},
        {"x-api-key", endless, NULL},
        {"authorization", "sk-alice", NULL},
        {"authorization", "Bearer", NULL},
        {"authorization", "Bearer ", NULL},
        {"authorization", "Basic c2stYWxpY2U=", NULL},
        {"authorization", "Bearer sk-alice", "authorization", "Bearer sk-alice", NULL},
        {"x-api-key", "sk-alice", "x-api-key", "sk-alice", NULL},
        {"x-api-key", "sk-alice", "authorization", "Bearer sk-bob", NULL},
        {"x-api-key", "sk-alice", "authorization", "Bearer nobody", NULL},
        {"cookie", "sk-alice", NULL},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        principal_t principal;
        memset(&principal, 0xff, sizeof principal);
        assert_false(identify(keys, wrong[i], &principal));
        assert_true(principal.key_id == 0 && principal.scopes == SCOPE_NONE);
    }
    keys_destroy(keys);
    unlink(file.path);
}

TEST(keys_without_a_file_let_all_in_but_administrators) {
    keys_t *keys = NULL;
    principal_t principal;
    assert_status(keys_create(NULL, 0, &keys, NULL), KR_OK);
    assert_false(keys_in_use(keys));
    assert_true(identify_one(keys, "authorization", "Bearer whatever", &principal));
    assert_true(principal.key_id == 0);
    assert_int_equal(principal.scopes, SCOPE_GENERATE | SCOPE_METRICS);
    for (int i = 0; i < 1000; i++) assert_true(keys_enter(keys, 0));
    keys_leave(keys, 0);
    assert_status(keys_reload(keys, NULL), KR_OK);
    keys_destroy(keys);
    keys_destroy(NULL);
}

TEST(keys_bound_what_is_in_flight) {
    const file_t file = make_file();
    const char *const words[] = {"alice", "a", "generate", "bob", "b",
                                 "generate max_in_flight=1", NULL};
    write_keys(&file, words);
    keys_t *keys = open_keys(&file);
    principal_t alice, bob;
    assert_true(identify_one(keys, "x-api-key", "a", &alice));
    assert_true(identify_one(keys, "x-api-key", "b", &bob));
    assert_true(keys_enter(keys, alice.key_id));
    assert_true(keys_enter(keys, alice.key_id));
    assert_false(keys_enter(keys, alice.key_id)); /* 2 is this test's default */
    assert_true(keys_enter(keys, bob.key_id));
    assert_false(keys_enter(keys, bob.key_id));
    keys_leave(keys, bob.key_id);
    assert_true(keys_enter(keys, bob.key_id));
    keys_leave(keys, alice.key_id);
    assert_true(keys_enter(keys, alice.key_id));
    assert_false(keys_enter(keys, 4711));
    keys_leave(keys, 4711);
    keys_destroy(keys);
    unlink(file.path);
}

TEST(keys_reload_adds_removes_and_keeps_ids) {
    const file_t file = make_file();
    const char *const first[] = {"alice", "a", "generate", "bob", "b", "generate", NULL};
    const char *const second[] = {"carol", "c", "generate", "alice2", "a",
                                  "admin max_in_flight=1", NULL};
    write_keys(&file, first);
    keys_t *keys = open_keys(&file);
    principal_t alice, bob, carol, again;
    assert_true(identify_one(keys, "x-api-key", "a", &alice));
    assert_true(identify_one(keys, "x-api-key", "b", &bob));
    assert_true(keys_enter(keys, alice.key_id));
    assert_true(keys_enter(keys, bob.key_id));
    write_keys(&file, second);
    assert_status(keys_reload(keys, NULL), KR_OK);
    assert_int_equal(keys_count(keys), 2);
    /* Removed: not let in, but what ran is counted to its end. */
    assert_false(identify_one(keys, "x-api-key", "b", &again));
    assert_false(keys_enter(keys, bob.key_id));
    keys_leave(keys, bob.key_id);
    /* Kept under another name, with what is in flight. */
    assert_true(identify_one(keys, "x-api-key", "a", &again));
    assert_true(again.key_id == alice.key_id);
    assert_string_equal(again.name, "alice2");
    assert_int_equal(again.scopes, SCOPE_ADMIN);
    assert_false(keys_enter(keys, alice.key_id));
    keys_leave(keys, alice.key_id);
    assert_true(keys_enter(keys, alice.key_id));
    assert_true(identify_one(keys, "x-api-key", "c", &carol));
    assert_true(carol.key_id != bob.key_id && carol.key_id != alice.key_id);
    /* Who comes back shares nothing with others. */
    write_keys(&file, first);
    assert_status(keys_reload(keys, NULL), KR_OK);
    assert_true(identify_one(keys, "x-api-key", "b", &again));
    assert_true(again.key_id != alice.key_id && again.key_id != carol.key_id);
    keys_destroy(keys);
    unlink(file.path);
}

TEST(keys_reload_of_a_bad_file_changes_nothing) {
    const file_t file = make_file();
    const char *const words[] = {"alice", "a", "generate", NULL};
    write_keys(&file, words);
    keys_t *keys = open_keys(&file);
    FILE *out = fopen(file.path, "a");
    assert_non_null(out);
    fprintf(out, "# comment\nbob nonsense generate\n");
    fclose(out);
    kr_error_t error;
    kr_error_init(&error);
    assert_status(keys_reload(keys, &error), KR_E_BAD_FORMAT);
    assert_non_null(strstr(error.message, file.path));
    assert_non_null(strstr(error.message, "line 3: "));
    principal_t principal;
    assert_true(identify_one(keys, "x-api-key", "a", &principal));
    unlink(file.path);
    assert_status(keys_reload(keys, &error), KR_E_NOT_FOUND);
    assert_true(identify_one(keys, "x-api-key", "a", &principal));
    keys_destroy(keys);
}

TEST(keys_file_may_be_empty_and_then_lets_nobody_in) {
    const file_t file = make_file();
    keys_t *keys = open_keys(&file);
    principal_t principal;
    assert_true(keys_in_use(keys));
    assert_int_equal(keys_count(keys), 0);
    assert_false(identify_one(keys, "x-api-key", "a", &principal));
    keys_destroy(keys);
    unlink(file.path);
}

TEST(keys_file_that_everybody_may_read_is_noticed) {
    const file_t file = make_file();
    assert_int_equal(chmod(file.path, 0600), 0);
    keys_t *keys = open_keys(&file);
    assert_false(keys_is_world_readable(keys));
    assert_int_equal(chmod(file.path, 0644), 0);
    assert_status(keys_reload(keys, NULL), KR_OK);
    assert_true(keys_is_world_readable(keys));
    keys_destroy(keys);
    unlink(file.path);
}

static void assert_refused(const char *text, const char *why) {
    key_row_t *rows = NULL;
    uint32_t n_rows = 0;
    kr_error_t error;
    kr_error_init(&error);
    assert_true(keys_parse(text, strlen(text), &rows, &n_rows, &error) != KR_OK);
    if (strstr(error.message, why) == NULL) fail_msg("'%s' lacks '%s'", error.message, why);
}

#define DIGEST "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
#define OTHER_DIGEST "d7697570462f7562b83e81258de0f1e41832e98072e44c36ec8efec46786e24e"

TEST(keys_parser_names_the_line_and_the_trouble) {
    assert_refused("alice\n", "line 1: behind the name stands the SHA-256");
    assert_refused("\n\nalice secret generate\n", "line 3: behind the name stands the SHA-256");
    assert_refused("al/ice " DIGEST " generate\n", "line 1: a name has only letters");
    assert_refused("alice " DIGEST "\n", "scopes are generate, metrics and admin");
    assert_refused("alice " DIGEST " Generate\n", "scopes are generate, metrics and admin");
    assert_refused("alice " DIGEST " ,admin\n", "scopes are generate, metrics and admin");
    assert_refused("alice " DIGEST " admin,admin\n", "a scope stands there twice");
    assert_refused("alice " DIGEST " admin max_in_flight=65537\n", "from 1 to 65536");
    assert_refused("alice " DIGEST " admin max_in_flight=\n", "from 1 to 65536");
    assert_refused("alice " DIGEST " admin max_in_flight=1 max_in_flight=1\n", "twice");
    assert_refused("alice " DIGEST " admin rate=1\n", "only max_in_flight=N is known");
    assert_refused("alice " DIGEST " admin\r\n", "a control byte");
    assert_refused("a " DIGEST " admin\na " OTHER_DIGEST " admin\n", "line 2: this name");
    assert_refused("a " DIGEST " admin\nb " DIGEST " admin\n", "line 2: this key");
}

TEST(keys_parser_has_bounds) {
    static char text[KEYS_FILE_BYTES_MAX + 2];
    memset(text, '#', 512);
    key_row_t *rows = NULL;
    uint32_t n_rows = 0;
    kr_error_t error;
    kr_error_init(&error);
    assert_status(keys_parse(text, 512, &rows, &n_rows, &error), KR_OK);
    memset(text, '#', 513);
    assert_status(keys_parse(text, 513, &rows, &n_rows, &error), KR_E_LIMIT);
    memset(text, '\n', sizeof text);
    assert_status(keys_parse(text, KEYS_FILE_BYTES_MAX, &rows, &n_rows, &error), KR_OK);
    assert_status(keys_parse(text, KEYS_FILE_BYTES_MAX + 1, &rows, &n_rows, &error), KR_E_LIMIT);
    size_t n = 0;
    for (int i = 0; i <= KEYS_MAX; i++) {
        if (i == KEYS_MAX) {
            assert_status(keys_parse(text, n, &rows, &n_rows, &error), KR_OK);
            assert_int_equal(n_rows, KEYS_MAX);
            assert_int_equal(rows[KEYS_MAX - 1].in_flight_max, 65536);
            free(rows);
        }
        n += (size_t)sprintf(text + n, "k%d %060d%04d generate max_in_flight=65536\n", i, 0, i);
    }
    assert_status(keys_parse(text, n, &rows, &n_rows, &error), KR_E_LIMIT);
    char name[80];
    memset(name, 'n', sizeof name);
    n = (size_t)sprintf(text, "%.63s " DIGEST " generate", name);
    assert_status(keys_parse(text, n, &rows, &n_rows, &error), KR_OK);
    assert_string_equal(rows[0].name + 60, "nnn");
    free(rows);
    n = (size_t)sprintf(text, "%.64s " DIGEST " generate", name);
    assert_status(keys_parse(text, n, &rows, &n_rows, &error), KR_E_LIMIT);
}

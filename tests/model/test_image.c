/* test_image.c: packed weights kept between opens: equal logits from packing and from the image,
 * every kind of damage, folders that cannot be used, several processes. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "base/os.h"
#include "model/artifact_cache.h"
#include "model/model.h"
#include "model/packed_image.h"
#include "tiny.h"

/* The thread sanitizer allows no threads in the child of a process that had some. */
#if defined(__SANITIZE_THREAD__)
#define CAN_FORK 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CAN_FORK 0
#endif
#endif
#ifndef CAN_FORK
#define CAN_FORK 1
#endif

#define N_VOCAB 320u
#define N_TOKENS 6u
#define DATA_OFFSET (2l << 20)

typedef struct place_s {
    char dir[64], cache[80], model[80];
    tiny_config_t config;
    kr_model_params_t params;
    float expected[N_VOCAB]; /* without any cache */
} place_t;

static _Atomic int n_warnings;
static char last_warning[1024];

static void count_log(kr_log_level_t level, const char *text, void *user) {
    (void)user;
    if (level > KR_LOG_WARN) return;
    n_warnings++;
    snprintf(last_warning, sizeof(last_warning), "%s", text);
}

static void write_model(const char *path, const tiny_config_t *config) {
    gguf_bytes_t file = tiny_model(config);
    assert_int_equal(gguf_write(&file, path), 0);
    free(file.data);
}

static kr_model_t open_at(const place_t *p) {
    kr_model_t model = NULL;
    kr_error_t error;
    kr_error_init(&error);
    if (kr_model_open(p->model, &p->params, &model, &error) != KR_OK) fail_msg("%s", error.message);
    return model;
}

/* Logits of the last of a few tokens; the first decode may not allocate. */
static void logits_of(kr_model_t model, float *logits) {
    const kr_token_t tokens[N_TOKENS] = {1, 17, 300, 5, 64, 9};
    kr_session_t session = tiny_session(model, KR_DTYPE_F32, NULL, 1, 2);
    kri_alloc_guard_begin("decode");
    decode_chunks(session, tokens, N_TOKENS, N_TOKENS, N_TOKENS - 1, N_VOCAB, logits);
    assert_int_equal(kri_alloc_guard_end(), 0);
    kr_session_destroy(session);
}

/* Opens, compares, closes; true when the weights came from the image. */
static bool use(const place_t *p) {
    float logits[N_VOCAB];
    kr_model_t model = open_at(p);
    const bool is_mapped = kri_image_is_mapped(model);
    logits_of(model, logits);
    kr_model_close(model);
    assert_memory_equal(logits, p->expected, sizeof(logits));
    return is_mapped;
}

static void enter(place_t *p) {
    strcpy(p->dir, "/tmp/kr-image-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->cache, sizeof(p->cache), "%s/cache", p->dir);
    snprintf(p->model, sizeof(p->model), "%s/model.gguf", p->dir);
    p->config = tiny_config("image");
    write_model(p->model, &p->config);
    kr_model_params_init(&p->params);
    p->params.n_threads = 2;
    p->params.cache_dir = "";
    kr_model_t model = open_at(p);
    assert_false(kri_image_is_mapped(model));
    logits_of(model, p->expected);
    kr_model_close(model);
    assert_int_equal(access(p->cache, F_OK), -1);
    p->params.cache_dir = p->cache;
    kr_log_set(count_log, KR_LOG_DEBUG, NULL);
    n_warnings = 0;
}

static void leave(const place_t *p) {
    char command[128];
    kr_log_set(NULL, KR_LOG_ERROR, NULL);
    snprintf(command, sizeof(command), "rm -rf %s", p->dir);
    assert_int_equal(system(command), 0);
}

/* Files of the cache: all with a suffix, at least min_bytes large; the path of the last one. */
static int count_files(const place_t *p, const char *suffix, long min_bytes, char *path) {
    DIR *folder = opendir(p->cache);
    if (!folder) return 0;
    struct dirent *entry;
    int n = 0;
    while ((entry = readdir(folder))) {
        char found[400];
        struct stat st;
        const size_t n_name = strlen(entry->d_name), n_suffix = strlen(suffix);
        if (n_name < n_suffix || strcmp(entry->d_name + n_name - n_suffix, suffix) != 0) continue;
        snprintf(found, sizeof(found), "%s/%s", p->cache, entry->d_name);
        if (stat(found, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < min_bytes) continue;
        if (path) strcpy(path, found);
        n++;
    }
    closedir(folder);
    return n;
}

/* The image, whether synced to the disk or not. */
static void image_path(const place_t *p, char *path) {
    assert_int_equal(count_files(p, ".kra", DATA_OFFSET, path) +
                         count_files(p, ".kru", DATA_OFFSET, path), 1);
}

static bool wait_for(const place_t *p, const char *suffix, int n) {
    for (int i = 0; i < 12000 && count_files(p, suffix, 0, NULL) != n; i++) usleep(10000);
    return count_files(p, suffix, 0, NULL) == n;
}

static void flip(const char *path, long at) {
    uint8_t byte;
    const int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x04;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

TEST(image_of_the_first_open_is_mapped_by_the_second) {
    place_t p;
    enter(&p);
    assert_false(use(&p));
    assert_true(use(&p));
    assert_true(use(&p));
    assert_int_equal(n_warnings, 0);
    leave(&p);
}

TEST(image_is_synced_while_the_model_stays_open) {
    place_t p;
    enter(&p);
    kr_model_t model = open_at(&p);
    assert_true(wait_for(&p, ".kra", 3)); /* image, tables, record */
    kr_model_close(model);
    assert_int_equal(count_files(&p, ".kru", 0, NULL), 0);
    assert_true(use(&p));
    leave(&p);
}

TEST(image_is_not_written_while_somebody_computes) {
    place_t p;
    kri_pool_t *pool = NULL;
    bool has_rested = false;
    enter(&p);
    assert_status(kri_pool_shared(2, &pool), KR_OK);
    /* The thread may be ahead of us once, when this one was not scheduled for long. */
    for (int i = 0; i < 10 && !has_rested; i++) {
        snprintf(p.cache, sizeof(p.cache), "%s/cache%d", p.dir, i);
        kr_model_t model = open_at(&p);
        assert_status(kri_weights_begin(model, pool, 2, NULL), KR_OK);
        usleep(300000);
        has_rested = count_files(&p, ".kra", 0, NULL) == 0;
        kri_weights_end(model);
        assert_true(wait_for(&p, ".kra", 3));
        kr_model_close(model);
    }
    assert_true(has_rested);
    leave(&p);
}

TEST(image_of_a_hurried_close_is_synced_by_a_later_open) {
    place_t p;
    enter(&p);
    kr_model_close(open_at(&p));
    char path[400];
    image_path(&p, path);
    kr_model_t model = open_at(&p);
    assert_true(kri_image_is_mapped(model));
    assert_true(wait_for(&p, ".kra", 3));
    kr_model_close(model);
    assert_int_equal(count_files(&p, ".kru", 0, NULL), 0);
    leave(&p);
}

TEST(image_damaged_in_its_data_is_repaired_at_first_use_and_removed) {
    place_t p;
    char path[400];
    enter(&p);
    assert_false(use(&p));
    image_path(&p, path);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    const long ats[] = {DATA_OFFSET, DATA_OFFSET + (3l << 20), st.st_size - 1};
    for (size_t i = 0; i < sizeof(ats) / sizeof(ats[0]); i++) {
        image_path(&p, path);
        flip(path, ats[i]);
        n_warnings = 0;
        assert_true(use(&p));
        assert_int_equal(n_warnings, 1);
        assert_non_null(strstr(last_warning, "damaged"));
        assert_int_equal(access(path, F_OK), -1);
        assert_false(use(&p)); /* packed and written anew */
        assert_true(use(&p));
        assert_int_equal(n_warnings, 1);
    }
    leave(&p);
}

/* Not the first step: other streams would wait for it. */
TEST(image_is_checked_by_the_thread_that_adds_the_model_to_an_engine) {
    place_t p;
    char path[400];
    kr_engine_t engine = NULL;
    kr_engine_params_t params;
    enter(&p);
    assert_false(use(&p));
    image_path(&p, path);
    flip(path, DATA_OFFSET);
    n_warnings = 0;
    kr_engine_params_init(&params);
    params.kv_bytes_max = (uint64_t)1 << 30;
    assert_status(kr_engine_create(&params, &engine, NULL), KR_OK);
    kr_model_t model = open_at(&p);
    assert_int_equal(n_warnings, 0);
    assert_status(kr_engine_add_model(engine, "image", model, NULL, NULL), KR_OK);
    assert_int_equal(n_warnings, 1);
    assert_non_null(strstr(last_warning, "damaged"));
    kr_engine_destroy(engine);
    kr_model_close(model);
    leave(&p);
}

TEST(image_with_damaged_header_or_size_is_never_used) {
    place_t p;
    char path[400];
    enter(&p);
    assert_false(use(&p));
    /* Magic, version, sizes, header hash, key, index; then cut and empty files. */
    static const long flips[] = {0, 8, 16, 24, 32, 40, 50, 4096, 4200};
    static const long cuts[] = {0, 100, 4096, 5000, DATA_OFFSET, DATA_OFFSET + 4096};
    const size_t n_flips = sizeof(flips) / sizeof(flips[0]);
    for (size_t i = 0; i < n_flips + sizeof(cuts) / sizeof(cuts[0]); i++) {
        image_path(&p, path);
        if (i < n_flips) flip(path, flips[i]);
        else assert_int_equal(truncate(path, cuts[i - n_flips]), 0);
        n_warnings = 0;
        assert_false(use(&p));
        assert_int_equal(n_warnings, 1);
        assert_non_null(strstr(last_warning, "not usable"));
        assert_true(use(&p)); /* written anew */
        assert_int_equal(n_warnings, 1);
    }
    leave(&p);
}

TEST(image_of_changed_content_is_not_found) {
    place_t p, other;
    enter(&p);
    enter(&other);
    assert_false(use(&p));
    other.config.seed += 1;
    write_model(other.model, &other.config);
    other.params.cache_dir = "";
    kr_model_t model = open_at(&other);
    logits_of(model, other.expected);
    kr_model_close(model);
    assert_memory_not_equal(other.expected, p.expected, sizeof(p.expected));
    write_model(p.model, &p.config); /* same bytes, new time */
    assert_false(use(&p));
    assert_true(use(&p));
    char path[400];
    image_path(&p, path); /* still one image: the content is the same */
    write_model(p.model, &other.config);
    memcpy(p.expected, other.expected, sizeof(p.expected));
    assert_false(use(&p));
    assert_true(use(&p));
    assert_int_equal(n_warnings, 0);
    leave(&p);
    leave(&other);
}

TEST(image_is_copied_where_huge_pages_are_not_to_be_had) {
    place_t p;
    enter(&p);
    assert_false(use(&p));
    assert_int_equal(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
    float logits[N_VOCAB];
    char path[400];
    for (int damaged = 0; damaged < 2; damaged++) {
        if (damaged) {
            image_path(&p, path);
            flip(path, DATA_OFFSET + (2l << 20) + 77);
        }
        kr_model_t model = open_at(&p);
        assert_true(kri_image_is_mapped(model));
        logits_of(model, logits);
        for (uint32_t i = 0; i < model->n_packed_tensors; i++) {
            const kri_packed_tensor_t *t = &model->packed_tensors[i];
            assert_ptr_equal(t->part->packed, model->packed + t->offset);
        }
        kr_model_close(model);
        assert_memory_equal(logits, p.expected, sizeof(logits));
        assert_int_equal(n_warnings, damaged);
    }
    assert_int_equal(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0), 0);
    leave(&p);
}

TEST(image_check_can_be_cancelled_and_taken_up_again) {
    place_t p;
    enter(&p);
    assert_false(use(&p));
    float logits[N_VOCAB];
    const uint32_t cancel = 1;
    kri_pool_t *pool = NULL;
    kr_model_t model = open_at(&p);
    assert_status(kri_pool_shared(2, &pool), KR_OK);
    assert_status(kri_weights_begin(model, pool, 2, &cancel), KR_E_CANCELLED);
    assert_status(kri_weights_begin(model, pool, 2, NULL), KR_OK);
    kri_weights_end(model);
    assert_status(kri_weights_begin(model, pool, 2, &cancel), KR_OK); /* nothing left to do */
    kri_weights_end(model);
    logits_of(model, logits);
    assert_memory_equal(logits, p.expected, sizeof(logits));
    kr_model_close(model);
    leave(&p);
}

static void *thread_use(void *arg) {
    float *logits = arg;
    kr_model_t model = *(kr_model_t *)(void *)(logits + N_VOCAB);
    const kr_token_t tokens[N_TOKENS] = {1, 17, 300, 5, 64, 9};
    kr_session_t session = tiny_session(model, KR_DTYPE_F32, NULL, 1, 2);
    decode_chunks(session, tokens, N_TOKENS, N_TOKENS, N_TOKENS - 1, N_VOCAB, logits);
    kr_session_destroy(session);
    return NULL;
}

TEST(image_is_checked_once_for_sessions_that_begin_together) {
    enum { N_THREADS = 4 };
    place_t p;
    char path[400];
    enter(&p);
    assert_false(use(&p));
    image_path(&p, path);
    flip(path, DATA_OFFSET + 5);
    kr_model_t model = open_at(&p);
    pthread_t threads[N_THREADS];
    static struct { float logits[N_VOCAB]; kr_model_t model; } args[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        args[i].model = model;
        assert_int_equal(pthread_create(&threads[i], NULL, thread_use, &args[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_memory_equal(args[i].logits, p.expected, sizeof(p.expected));
    }
    assert_int_equal(n_warnings, 1);
    kr_model_close(model);
    leave(&p);
}

#if CAN_FORK
TEST(image_is_right_for_processes_that_open_at_once) {
    enum { N_CHILDREN = 4 };
    place_t p;
    enter(&p);
    pid_t children[N_CHILDREN];
    for (int i = 0; i < N_CHILDREN; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0) {
            for (int k = 0; k < 3; k++) (void)use(&p); /* failing ends with another code */
            _exit(n_warnings == 0 ? 0 : 3);
        }
    }
    for (int i = 0; i < N_CHILDREN; i++) {
        int result;
        assert_int_equal(waitpid(children[i], &result, 0), children[i]);
        assert_true(WIFEXITED(result));
        assert_int_equal(WEXITSTATUS(result), 0);
    }
    char path[400];
    image_path(&p, path);
    assert_int_equal(count_files(&p, "", DATA_OFFSET, NULL), 1); /* no leftovers either */
    assert_true(use(&p));
    leave(&p);
}

TEST(image_of_a_killed_process_is_not_seen) {
    place_t p;
    enter(&p);
    for (int i = 0; i < 8; i++) {
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            (void)open_at(&p);
            usleep((useconds_t)i * 3000);
            raise(SIGKILL);
        }
        int result;
        assert_int_equal(waitpid(child, &result, 0), child);
        assert_true(WIFSIGNALED(result));
        (void)use(&p); /* right in any case */
    }
    assert_true(use(&p));
    assert_int_equal(n_warnings, 0);
    leave(&p);
}

#endif

TEST(image_is_not_kept_where_it_cannot_be_written) {
    place_t p;
    enter(&p);
    /* As a full disk: every write past 3 MB fails. */
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = (struct rlimit){3000000, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_false(use(&p));
    assert_false(use(&p));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(n_warnings, 2);
    assert_non_null(strstr(last_warning, "not kept"));
    assert_int_equal(count_files(&p, "", 1, NULL), 0); /* no temporary file is left */
    /* A folder that cannot be one. */
    p.params.cache_dir = p.model;
    n_warnings = 0;
    assert_false(use(&p));
    assert_int_equal(n_warnings, 1);
    assert_non_null(strstr(last_warning, "artifact cache off"));
    leave(&p);
}

TEST(image_folder_is_bounded_and_small_models_leave_nothing) {
    place_t p;
    enter(&p);
    p.params.cache_bytes_max = 12 << 20; /* one image of 9 MB */
    assert_false(use(&p));
    assert_true(use(&p));
    tiny_config_t other = p.config;
    other.seed += 7;
    write_model(p.model, &other);
    kr_model_close(open_at(&p));
    char path[400];
    image_path(&p, path); /* the other one was evicted */
    p.params.cache_bytes_max = 1 << 20;
    write_model(p.model, &p.config);
    assert_false(use(&p));
    assert_false(use(&p)); /* no room: not kept */
    const tiny_config_t small = tiny_config("llama");
    snprintf(p.cache, sizeof(p.cache), "%s/small", p.dir);
    write_model(p.model, &small);
    kr_model_close(open_at(&p));
    assert_int_equal(access(p.cache, F_OK), -1);
    assert_int_equal(n_warnings, 0);
    leave(&p);
}

static void write_split(const place_t *p, char paths[2][120]) {
    for (uint32_t part = 0; part < 2; part++) {
        gguf_builder_t b;
        gguf_builder_init(&b);
        if (part == 0) tiny_keys(&b, &p->config);
        gguf_kv(&b, "split.no", 2, part, 2);
        gguf_kv(&b, "split.count", 2, 2, 2);
        const uint32_t n_layer = 9; /* tensors of a llama layer */
        gguf_kv(&b, "split.tensors.count", 5, 2 + 2 * n_layer, 4);
        if (part == 0) {
            tiny_matrix(&b, &p->config, "token_embd.weight", p->config.n_vocab,
                        p->config.n_embd);
        } else {
            tiny_vector(&b, &p->config, "output_norm.weight", p->config.n_embd, 1.0f);
        }
        tiny_layer(&b, &p->config, part);
        gguf_bytes_t file = gguf_build(&b);
        gguf_builder_deinit(&b);
        snprintf(paths[part], 120, "%s/m-%05u-of-00002.gguf", p->dir, part + 1);
        assert_int_equal(gguf_write(&file, paths[part]), 0);
        free(file.data);
    }
}

TEST(image_of_a_split_model_depends_on_every_part) {
    place_t p;
    char paths[2][120];
    enter(&p);
    write_split(&p, paths);
    strcpy(p.model, paths[0]);
    assert_false(use(&p));
    assert_true(use(&p));
    const struct timespec times[2] = {{1000000, 5}, {1000000, 5}};
    assert_int_equal(utimensat(AT_FDCWD, paths[1], times, 0), 0);
    assert_false(use(&p));
    assert_true(use(&p));
    assert_int_equal(n_warnings, 0);
    leave(&p);
}

TEST(image_open_survives_every_failing_allocation) {
    place_t p;
    enter(&p);
    for (int warm = 0; warm < 2; warm++) {
        for (uint64_t k = 1;; k++) {
            kr_model_t model = NULL;
            kri_alloc_fail(k, false);
            const kr_status_t status = kr_model_open(p.model, &p.params, &model, NULL);
            kri_alloc_fail(0, false);
            if (status == KR_OK) kr_model_close(model);
            else assert_status(status, KR_E_NOMEM);
            if (status == KR_OK && k > 60) break;
        }
        assert_true(use(&p));
    }
    leave(&p);
}

/* ---- tables of the tokenizer ---------------------------------------------------------------- */

/* The file of the tables: smaller than an image, larger than a record. */
static void tables_path(const place_t *p, char *path) {
    const int n_images = count_files(p, ".kra", DATA_OFFSET, NULL) +
                         count_files(p, ".kru", DATA_OFFSET, NULL);
    char found[400];
    DIR *folder = opendir(p->cache);
    assert_non_null(folder);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        struct stat st;
        snprintf(found, sizeof(found), "%s/%s", p->cache, entry->d_name);
        if (stat(found, &st) != 0 || !S_ISREG(st.st_mode)) continue;
        if (st.st_size <= 4112 || st.st_size >= DATA_OFFSET) continue;
        strcpy(path, found);
        n++;
    }
    closedir(folder);
    assert_int_equal(n_images, 1);
    assert_int_equal(n, 1);
}

static const char sample[] = "The sea, 12 \xC3\xA9\xE6\xBC\xA2 <s></s> the\n\n end";

typedef struct tokens_s {
    kr_token_t ids[128];
    size_t n;
} tokens_t;

/* Opens, tokenizes, closes; true when the tables came from their file. */
static bool use_tables(const place_t *p, tokens_t *tokens) {
    size_t n_bytes = 0;
    kr_model_t model = open_at(p);
    const bool is_mapped = kri_image_tables(model, &n_bytes) != NULL;
    memset(tokens, 0, sizeof(*tokens));
    assert_status(kr_model_tokenize(model, sample, strlen(sample), KR_TOKENIZE_PARSE_SPECIAL,
                                    tokens->ids, 128, &tokens->n, NULL), KR_OK);
    assert_true(tokens->n > 0);
    kr_model_close(model);
    return is_mapped;
}

static void check_tables(const place_t *p, const tokens_t *expected, bool is_mapped) {
    tokens_t tokens;
    assert_int_equal(use_tables(p, &tokens), is_mapped);
    assert_memory_equal(&tokens, expected, sizeof(tokens));
}

TEST(tables_of_the_first_open_are_mapped_by_the_second) {
    place_t p;
    tokens_t expected;
    char path[400];
    enter(&p);
    p.params.cache_dir = "";
    assert_false(use_tables(&p, &expected));
    p.params.cache_dir = p.cache;
    check_tables(&p, &expected, false);
    check_tables(&p, &expected, true);
    p.params.vocab_only = 1; /* weights or not */
    check_tables(&p, &expected, true);
    p.params.vocab_only = 0;
    /* Without its file alone: the image is used, the tables are written again. */
    tables_path(&p, path);
    assert_int_equal(unlink(path), 0);
    kr_model_t model = open_at(&p);
    assert_true(kri_image_is_mapped(model));
    kr_model_close(model);
    check_tables(&p, &expected, true);
    assert_true(use(&p));
    assert_int_equal(n_warnings, 0);
    leave(&p);
}

TEST(tables_only_leave_no_folder) {
    place_t p;
    tokens_t tokens;
    enter(&p);
    p.params.vocab_only = 1;
    assert_false(use_tables(&p, &tokens));
    assert_int_equal(access(p.cache, F_OK), -1);
    assert_int_equal(n_warnings, 0);
    leave(&p);
}

TEST(tables_with_any_damage_are_never_used) {
    place_t p;
    tokens_t expected;
    char path[400];
    enter(&p);
    assert_false(use_tables(&p, &expected));
    /* Every field of the file's header and of the tables', then anywhere. */
    static const long flips[] = {0, 8, 12, 16, 24, 32, 40, 48, 60, 4095, 4096, 4104, 4108, 4112,
                                 4120, 4124, 4128, 4136, 4144, 4152};
    const size_t n_flips = sizeof(flips) / sizeof(flips[0]);
    uint64_t random = 3;
    for (size_t i = 0; i < n_flips + 30; i++) {
        struct stat st;
        tables_path(&p, path);
        assert_int_equal(stat(path, &st), 0);
        random = random * 6364136223846793005u + 1442695040888963407u;
        if (i < n_flips) flip(path, flips[i]);
        else if (i % 3) flip(path, 4096 + (long)(random >> 33) % (st.st_size - 4096));
        else assert_int_equal(truncate(path, (long)(random >> 33) % st.st_size), 0);
        n_warnings = 0;
        check_tables(&p, &expected, false);
        assert_int_equal(n_warnings, 1);
        assert_non_null(strstr(last_warning, "not usable"));
        check_tables(&p, &expected, true); /* written anew */
        assert_true(use(&p));              /* and the image is untouched */
        assert_int_equal(n_warnings, 1);
    }
    leave(&p);
}

static kr_status_t put_foreign(const char *dir, const char *key, const void *bytes, size_t n) {
    kri_artifact_cache_t cache;
    const kri_artifact_content_t content = {bytes, NULL, n, 0};
    assert_status(kri_artifact_cache_init(&cache, dir, 0), KR_OK);
    assert_true(kri_artifact_discard(&cache, key));
    const kr_status_t status =
        kri_artifact_write(&cache, key, &content, (kri_artifact_pace_t){NULL, NULL}, NULL);
    kri_artifact_cache_deinit(&cache);
    return status;
}

/* Whole files with good checksums whose content is something else. */
TEST(tables_of_something_else_are_removed) {
    place_t p;
    tokens_t expected;
    char path[400], key[128] = "";
    enter(&p);
    assert_false(use_tables(&p, &expected));
    tables_path(&p, path);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 48, SEEK_SET), 0);
    assert_int_equal(fread(key, 1, 100, file), 100); /* zeros follow the key */
    fclose(file);
    assert_memory_equal(key, "text/1 ", 7);
    static const char *const contents[] = {"x", "KRTEXT\0\0", "KRTEXT\0\0\1\0\0\0\377\0\0\0abc"};
    static const size_t sizes[] = {1, 8, 19};
    for (int i = 0; i < 3; i++) {
        assert_status(put_foreign(p.cache, key, contents[i], sizes[i]), KR_OK);
        n_warnings = 0;
        tokens_t tokens;
        (void)use_tables(&p, &tokens);
        assert_memory_equal(&tokens, &expected, sizeof(tokens));
        assert_int_equal(n_warnings, 1);
        assert_non_null(strstr(last_warning, "not of this model"));
        check_tables(&p, &expected, true);
        assert_int_equal(n_warnings, 1);
    }
    leave(&p);
}

typedef struct seen_s { int n, n_good, n_corrupt, stop; } seen_t;
static int32_t see(const char *path, uint64_t bytes, kr_status_t status, void *user) {
    seen_t *seen = user;
    assert_non_null(strstr(path, "/cache/"));
    assert_true(status != KR_OK || bytes > 0);
    seen->n++;
    seen->n_good += status == KR_OK;
    seen->n_corrupt += status == KR_E_CORRUPT;
    return seen->stop;
}

TEST(cache_verify_finds_what_is_damaged) {
    place_t p;
    char path[400];
    seen_t seen = {0, 0, 0, 0};
    enter(&p);
    assert_status(kr_cache_verify(p.cache, NULL, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_cache_verify("", see, &seen, NULL), KR_OK);
    assert_int_equal(seen.n, 0);
    assert_false(use(&p));
    assert_status(kr_cache_verify(p.cache, see, &seen, NULL), KR_OK);
    assert_int_equal(seen.n, 3);
    assert_int_equal(seen.n_good, 3);
    image_path(&p, path);
    flip(path, DATA_OFFSET + 4000000);
    seen = (seen_t){0, 0, 0, 0};
    assert_status(kr_cache_verify(p.cache, see, &seen, NULL), KR_OK);
    assert_int_equal(seen.n_good, 2);
    assert_int_equal(seen.n_corrupt, 1);
    seen = (seen_t){0, 0, 0, 1};
    assert_status(kr_cache_verify(p.cache, see, &seen, NULL), KR_E_CANCELLED);
    assert_int_equal(seen.n, 1);
    assert_int_equal(access(path, F_OK), 0); /* nothing is changed */
    leave(&p);
}

TEST(image_index_of_other_sizes_is_refused) {
    uint8_t index[16 + 40 + 16] = {1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x20}; /* 2 MiB + 1: two blocks */
    const uint64_t data_bytes = (2u << 20) + 1;
    const uint8_t *hashes = NULL;
    memcpy(index + 16 + 32, index + 8, 8);
    assert_status(kri_image_index_check(index, sizeof(index), data_bytes, &hashes), KR_OK);
    assert_ptr_equal(hashes, index + 56);
    for (size_t n = 0; n < sizeof(index); n++)
        assert_status(kri_image_index_check(index, n, data_bytes, &hashes), KR_E_BAD_FORMAT);
    assert_status(kri_image_index_check(index, sizeof(index), 0, &hashes), KR_E_BAD_FORMAT);
    assert_status(kri_image_index_check(index, sizeof(index), data_bytes - 1, &hashes),
                  KR_E_BAD_FORMAT);
    static const size_t ats[] = {0, 7, 8, 15, 16 + 24, 16 + 31, 16 + 32, 16 + 39};
    for (size_t i = 0; i < sizeof(ats) / sizeof(ats[0]); i++) {
        index[ats[i]] ^= 0x81;
        assert_status(kri_image_index_check(index, sizeof(index), data_bytes, &hashes),
                      KR_E_BAD_FORMAT);
        index[ats[i]] ^= 0x81;
    }
}

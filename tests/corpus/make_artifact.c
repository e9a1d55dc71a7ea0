/* make_artifact.c: writes the seeds of fuzz_artifact into the folder given (tests/corpus/artifact):
 * files as the cache writes them for the keys the target knows, and damaged copies. Built and run
 * by hand when the file format changes: link with kri_model. */
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/artifact_cache.h"

static kr_status_t make(void *ctx, void **data, size_t *n_bytes, kr_error_t *error) {
    (void)error;
    *n_bytes = *(size_t *)ctx;
    *data = kri_calloc(*n_bytes + 1, 1, "seed");
    return *data ? KR_OK : KR_E_NOMEM;
}

static void write_seed(const char *dir, const char *name, const uint8_t *data, size_t n_bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, n_bytes, file) != n_bytes || fclose(file) != 0) exit(1);
}

int main(int argc, char **argv) {
    static const char *const keys[] = {"k", "seed key", "spm-merges/1 size=1 mtime=2"};
    char dir[] = "/tmp/kr-seeds-XXXXXX", name[64], command[64];
    kri_artifact_cache_t cache;
    if (argc != 2 || !mkdtemp(dir) || kri_artifact_cache_init(&cache, dir, 0) != KR_OK) return 1;
    for (size_t i = 0; i < 3; i++) {
        kri_artifact_t artifact;
        bool built;
        size_t n_payload = i * 50;
        if (kri_artifact_get(&cache, keys[i], make, &n_payload, &artifact, &built, NULL) != KR_OK)
            return 1;
        uint8_t *copy = malloc(artifact.map.size);
        if (!copy) return 1;
        memcpy(copy, artifact.map.data, artifact.map.size);
        snprintf(name, sizeof name, "ok_%zu", i);
        write_seed(argv[1], name, copy, artifact.map.size);
        copy[16 + i] ^= 1;
        snprintf(name, sizeof name, "bad_%zu", i);
        write_seed(argv[1], name, copy, artifact.map.size);
        free(copy);
        kri_artifact_close(&artifact);
    }
    write_seed(argv[1], "bad_short", (const uint8_t *)"KRARTIF", 8);
    kri_artifact_cache_deinit(&cache);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) != 0;
}

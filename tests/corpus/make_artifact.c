/* make_artifact.c: writes the seeds of fuzz_artifact into the folder given (tests/corpus/artifact):
 * files as the cache writes them for the keys the target knows, damaged copies, and bare indexes.
 * Built and run by hand when the file format changes: link with kri_model. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/artifact_cache.h"
#include "model/packed_image.h"

#define BLOCK ((uint64_t)2 << 20)

static void write_seed(const char *dir, const char *name, const uint8_t *data, size_t n_bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, n_bytes, file) != n_bytes || fclose(file) != 0) exit(1);
}

static void put_u64(uint8_t *at, uint64_t value) {
    for (int i = 0; i < 8; i++) at[i] = (uint8_t)(value >> (8 * i));
}

/* Two tensors over data_bytes, hashes of zero; returns the size. */
static size_t make_index(uint64_t data_bytes, uint8_t *index) {
    const size_t n_blocks = (size_t)((data_bytes + BLOCK - 1) / BLOCK);
    put_u64(index, 2);
    put_u64(index + 8, data_bytes);
    put_u64(index + 16 + 32, 64);
    put_u64(index + 56 + 24, 64);
    put_u64(index + 56 + 32, data_bytes - 64);
    return 96 + 8 * n_blocks;
}

int main(int argc, char **argv) {
    static const char *const keys[] = {"k", "seed key", "packed/1 layout=1 content=0"};
    static uint8_t index[256], data[4096 + 128];
    char dir[] = "/tmp/kr-seeds-XXXXXX", name[64], command[64];
    kri_artifact_cache_t cache;
    if (argc != 2 || !mkdtemp(dir) || kri_artifact_cache_init(&cache, dir, 0) != KR_OK) return 1;
    for (size_t i = 0; i < 3; i++) {
        kri_artifact_t artifact;
        const kri_artifact_content_t content = {index, NULL, make_index(i * BLOCK + 100, index), 0};
        const kri_artifact_pace_t pace = {NULL, NULL};
        if (kri_artifact_write(&cache, keys[i], &content, pace, NULL) != KR_OK ||
            kri_artifact_open(&cache, keys[i], &artifact) != KR_OK)
            return 1;
        memcpy(data, artifact.map.data, artifact.map.size);
        snprintf(name, sizeof name, "ok_%zu", i);
        write_seed(argv[1], name, data, artifact.map.size);
        data[16 + i] ^= 1;
        snprintf(name, sizeof name, "bad_%zu", i);
        write_seed(argv[1], name, data, artifact.map.size);
        snprintf(name, sizeof name, "index_%zu", i);
        write_seed(argv[1], name, index, content.index_bytes);
        kri_artifact_close(&artifact);
    }
    write_seed(argv[1], "bad_short", (const uint8_t *)"KRARTIF", 8);
    kri_artifact_cache_deinit(&cache);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) != 0;
}

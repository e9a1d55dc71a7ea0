/* replay.c: runs a fuzz target over files, so that any compiler can replay the corpus. Arguments
 * are files and folders (not recursive); each input is copied to a block of exactly its size, so
 * that a sanitizer sees every overrun. No input at all is a failure: a lost corpus must show. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static unsigned long n_files;

static int replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    long n = -1;
    if (file && fseek(file, 0, SEEK_END) == 0) n = ftell(file);
    if (!file || n < 0 || fseek(file, 0, SEEK_SET) != 0) {
        fprintf(stderr, "replay: cannot read %s\n", path);
        if (file) fclose(file);
        return 1;
    }
    uint8_t *data = malloc(n ? (size_t)n : 1);
    size_t n_read = data ? fread(data, 1, (size_t)n, file) : 0;
    fclose(file);
    if (!data || n_read != (size_t)n) {
        fprintf(stderr, "replay: cannot read %s\n", path);
        free(data);
        return 1;
    }
    fprintf(stderr, "replay: %s\n", path); /* before the call: the last line names the culprit */
    LLVMFuzzerTestOneInput(data, n_read);
    free(data);
    n_files++;
    return 0;
}

static int replay_folder(const char *path) {
    DIR *folder = opendir(path);
    struct dirent *entry;
    struct stat info;
    int failed = 0;
    if (!folder) {
        fprintf(stderr, "replay: cannot open %s\n", path);
        return 1;
    }
    while ((entry = readdir(folder))) {
        char inner[4096];
        int n = snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        if (n < 0 || (size_t)n >= sizeof inner || stat(inner, &info) != 0) failed = 1;
        else if (S_ISREG(info.st_mode)) failed |= replay_file(inner);
    }
    closedir(folder);
    return failed;
}

int main(int argc, char **argv) {
    int failed = 0;
    for (int i = 1; i < argc; i++) {
        struct stat info;
        if (stat(argv[i], &info) == 0 && S_ISDIR(info.st_mode)) failed |= replay_folder(argv[i]);
        else failed |= replay_file(argv[i]);
    }
    printf("replayed %lu inputs\n", n_files);
    return failed || n_files == 0;
}

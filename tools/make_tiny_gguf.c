/* make_tiny_gguf.c: writes a tiny random model of tests/tiny_model.h to a file.
 * usage: make_tiny_gguf PRESET OUT.gguf [TYPE [SEED]]   TYPE: f32 f16 bf16 q4_0 ... q6_k */
#include "tiny_model.h"

int main(int argc, char **argv) {
    static const struct { const char *name; uint32_t id; } types[] = {
        {"f32", 0},  {"f16", 1},  {"bf16", 30}, {"q4_0", 2},  {"q4_1", 3}, {"q5_0", 6},
        {"q5_1", 7}, {"q8_0", 8}, {"q4_k", 12}, {"q5_k", 13}, {"q6_k", 14}};
    const size_t n_types = sizeof types / sizeof types[0];
    tiny_config_t config = tiny_config(argc > 1 ? argv[1] : "");
    size_t type = 0;
    while (argc > 3 && type < n_types && strcmp(types[type].name, argv[3]) != 0) type++;
    if (argc < 3 || argc > 5 || !config.arch || type == n_types) {
        fprintf(stderr, "usage: make_tiny_gguf PRESET OUT.gguf [TYPE [SEED]]\n");
        return 2;
    }
    if (argc > 3) config.type = types[type].id;
    if (argc > 4) config.seed = strtoull(argv[4], NULL, 10);
    gguf_bytes_t file = tiny_model(&config);
    int failed = gguf_write(&file, argv[2]);
    if (failed) fprintf(stderr, "make_tiny_gguf: cannot write %s\n", argv[2]);
    else printf("%s: %zu bytes\n", argv[2], file.n);
    free(file.data);
    return failed ? 1 : 0;
}

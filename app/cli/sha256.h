/* sha256.h: SHA-256 (FIPS 180-4) for `kr models verify`; plain C, a few hundred MB/s. */
#ifndef CLI_SHA256_H
#define CLI_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct cli_sha256_s {
    uint32_t state[8];
    uint64_t n_bytes;
    uint8_t block[64];
} cli_sha256_t;

void cli_sha256_init(cli_sha256_t *hash);
void cli_sha256_update(cli_sha256_t *hash, const void *data, size_t n_bytes);
/* 64 lower-case hexadecimal digits and NUL. */
void cli_sha256_finish(cli_sha256_t *hash, char hex[65]);

#endif

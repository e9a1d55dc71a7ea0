/* pipe_echo.c: the other end of a bare ping-pong over pipes: a line of argv[1] bytes for each line
 * that comes, and nothing else. What a round trip costs before anybody reads what is in it. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BYTES_MAX 65536u

int main(int argc, char **argv) {
    static char in[BYTES_MAX], out[BYTES_MAX];
    const unsigned long n_bytes = argc > 1 ? strtoul(argv[1], NULL, 10) : 64;
    if (n_bytes < 1 || n_bytes > sizeof out) return 2;
    memset(out, 'x', sizeof out);
    out[n_bytes - 1] = '\n';
    for (;;) {
        const ssize_t n = read(STDIN_FILENO, in, sizeof in);
        if (n <= 0) return n < 0;
        for (ssize_t i = 0; i < n; i++) {
            if (in[i] != '\n') continue;
            size_t done = 0;
            while (done < n_bytes) {
                const ssize_t m = write(STDOUT_FILENO, out + done, n_bytes - done);
                if (m <= 0) return 1;
                done += (size_t)m;
            }
        }
    }
}

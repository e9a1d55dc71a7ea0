/* os_linux_event.c: a descriptor that poll and epoll of a host program can wait for (eventfd). */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/os.h"

kr_status_t kri_event_fd_create(int *fd) {
    const int created = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (created < 0) return errno == ENOMEM ? KR_E_NOMEM : KR_E_IO;
    *fd = created;
    return KR_OK;
}

/* The counter is 0 or 1, so that a write can neither block nor overflow. */
void kri_event_fd_set(int fd) {
    const uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {}
}

void kri_event_fd_clear(int fd) {
    uint64_t value;
    while (read(fd, &value, sizeof value) < 0 && errno == EINTR) {}
}

void kri_event_fd_destroy(int fd) {
    if (fd >= 0) (void)close(fd);
}

/* shm.c: see shm.h. */
#define _GNU_SOURCE /* memfd_create, O_TMPFILE, fallocate, seals */
#include "shm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER "/dev/shm"      /* where shm_open has its names */
#define PREFIX "kr."
#define MAGIC 0x4d53524bu      /* "KRSM" */
#define PF_EXITING 0x4u        /* of the kernel's flags of a task */

const char *rpc_dtype_name(rpc_dtype_t dtype) {
    switch (dtype) {
    case RPC_DTYPE_U8: return "u8";
    case RPC_DTYPE_I32: return "i32";
    case RPC_DTYPE_F32: return "f32";
    default: return NULL;
    }
}

uint32_t rpc_dtype_bytes(rpc_dtype_t dtype) {
    switch (dtype) {
    case RPC_DTYPE_U8: return 1;
    case RPC_DTYPE_I32:
    case RPC_DTYPE_F32: return 4;
    default: return 0;
    }
}

/* ---- headers --------------------------------------------------------------------------------- */

bool rpc_shm_head_is_equal(const rpc_shm_head_t *a, const rpc_shm_head_t *b) {
    return a->generation == b->generation && a->dtype == b->dtype && a->n_dims == b->n_dims &&
           a->dims[0] == b->dims[0] && a->dims[1] == b->dims[1] && a->n_bytes == b->n_bytes;
}

const char *rpc_shm_head_check(const rpc_shm_head_t *head) {
    if (head->generation == 0) return "generation 0";
    if (rpc_dtype_bytes(head->dtype) == 0) return "unknown element type";
    if (head->n_dims < 1 || head->n_dims > RPC_SHM_DIMS_MAX) return "not 1 or 2 dimensions";
    uint64_t n = rpc_dtype_bytes(head->dtype);
    for (uint32_t i = 0; i < RPC_SHM_DIMS_MAX; i++) {
        if (i >= head->n_dims && head->dims[i] != 0) return "a size beyond its dimensions";
        if (i >= head->n_dims) continue;
        if (head->dims[i] == 0) return "an empty dimension";
        if (head->dims[i] > RPC_SHM_BYTES_MAX / n) return "over 256 MiB";
        n *= head->dims[i];
    }
    return head->n_bytes == n ? NULL : "its size is not that of its shape";
}

static void put_u64(uint8_t *out, uint64_t value, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_u64(const uint8_t *in, uint32_t n) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < n; i++) value |= (uint64_t)in[i] << (8 * i);
    return value;
}

void rpc_shm_head_put(const rpc_shm_head_t *head, uint8_t out[RPC_SHM_HEADER_BYTES]) {
    memset(out, 0, RPC_SHM_HEADER_BYTES);
    put_u64(out, MAGIC, 4);
    put_u64(out + 4, RPC_SHM_VERSION, 4);
    put_u64(out + 8, head->generation, 8);
    put_u64(out + 16, head->dtype, 4);
    put_u64(out + 20, head->n_dims, 4);
    put_u64(out + 24, head->dims[0], 8);
    put_u64(out + 32, head->dims[1], 8);
    put_u64(out + 40, head->n_bytes, 8);
}

const char *rpc_shm_head_read(const uint8_t *bytes, size_t n_bytes, rpc_shm_head_t *head) {
    memset(head, 0, sizeof *head);
    if (n_bytes < RPC_SHM_HEADER_BYTES) return "no header";
    if (get_u64(bytes, 4) != MAGIC) return "no segment of this protocol";
    if (get_u64(bytes + 4, 4) != RPC_SHM_VERSION) return "another version";
    for (uint32_t i = 48; i < RPC_SHM_HEADER_BYTES; i++) {
        if (bytes[i] != 0) return "bytes behind the header's fields";
    }
    head->generation = get_u64(bytes + 8, 8);
    head->dtype = (rpc_dtype_t)get_u64(bytes + 16, 4);
    head->n_dims = (uint32_t)get_u64(bytes + 20, 4);
    head->dims[0] = get_u64(bytes + 24, 8);
    head->dims[1] = get_u64(bytes + 32, 8);
    head->n_bytes = get_u64(bytes + 40, 8);
    return rpc_shm_head_check(head);
}

/* ---- who makes them -------------------------------------------------------------------------- */

typedef struct owner_s {
    uint64_t space;            /* of process ids: the inode of the namespace */
    uint64_t pid, started;     /* ticks since boot: a number is used again some day */
} owner_t;

/* Of a living process. False: it is dead or dying. */
static bool read_started(const char *pid, uint64_t *started) {
    char path[64], text[1024];
    (void)snprintf(path, sizeof path, "/proc/%s/stat", pid);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const ssize_t n = read(fd, text, sizeof text - 1);
    (void)close(fd);
    if (n <= 0) return false;
    text[n] = '\0';
    char state = 'X';
    unsigned long flags = 0;
    unsigned long long ticks = 0;
    const char *rest = strrchr(text, ')'); /* behind its name, which may hold anything */
    if (rest == NULL || sscanf(rest + 1, " %c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %*u %*u %*d "
                               "%*d %*d %*d %*d %*d %llu", &state, &flags, &ticks) != 3) {
        return false;
    }
    *started = ticks;
    return state != 'Z' && state != 'X' && (flags & PF_EXITING) == 0;
}

static bool read_self(owner_t *owner) {
    char text[64] = "";
    unsigned long long space = 0;
    if (readlink("/proc/self/ns/pid", text, sizeof text - 1) <= 0) return false;
    if (sscanf(text, "pid:[%llu]", &space) != 1) return false;
    owner->space = space;
    owner->pid = (uint64_t)getpid();
    return read_started("self", &owner->started);
}

/* The name without its '/'. Only what make_name makes. */
static bool parse_name(const char *name, owner_t *owner) {
    unsigned long long space = 0, pid = 0, started = 0;
    int n_read = 0;
    char again[RPC_SHM_NAME_MAX];
    if (strlen(name) >= RPC_SHM_NAME_MAX - 1) return false;
    if (sscanf(name, PREFIX "%llx.%llx.%llx.%n", &space, &pid, &started, &n_read) != 3 ||
        n_read <= 0) return false;
    const char *random = name + n_read;
    if (strlen(random) != 32 || strspn(random, "0123456789abcdef") != 32) return false;
    /* Signs, spaces and zeros that sscanf takes are no part of a name. */
    (void)snprintf(again, sizeof again, PREFIX "%llx.%llx.%llx.%s", space, pid, started, random);
    *owner = (owner_t){.space = space, .pid = pid, .started = started};
    return strcmp(again, name) == 0;
}

static bool make_name(char *name, size_t cap) {
    owner_t self;
    uint64_t random[2];
    if (!read_self(&self)) return false;
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return false;
    (void)snprintf(name, cap, "/" PREFIX "%" PRIx64 ".%" PRIx64 ".%" PRIx64 ".%016" PRIx64
                   "%016" PRIx64, self.space, self.pid, self.started, random[0], random[1]);
    return true;
}

uint32_t rpc_shm_sweep(void) {
    owner_t self, owner;
    uint32_t n_swept = 0;
    if (!read_self(&self)) return 0; /* without /proc nobody can be told to be dead */
    DIR *folder = opendir(FOLDER);
    if (folder == NULL) return 0;
    for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        char pid[32];
        uint64_t started = 0;
        if (!parse_name(entry->d_name, &owner) || owner.space != self.space) continue;
        (void)snprintf(pid, sizeof pid, "%" PRIu64, owner.pid);
        if (read_started(pid, &started) && started == owner.started) continue;
        if (unlinkat(dirfd(folder), entry->d_name, 0) == 0) n_swept++;
    }
    (void)closedir(folder);
    return n_swept;
}

/* ---- making one ------------------------------------------------------------------------------ */

static kr_status_t status_of(int error) {
    switch (error) {
    case ENOSPC:
    case EFBIG: return KR_E_NOSPC;
    case ENOMEM:
    case EMFILE:
    case ENFILE: return KR_E_NOMEM;
    case EOPNOTSUPP:
    case EISDIR:
    case ENOENT:
    case EACCES:
    case EROFS:
    case ENOSYS: return KR_E_UNSUPPORTED;
    default: return KR_E_IO;
    }
}

kr_status_t rpc_shm_create(rpc_shm_kind_t kind, size_t n_bytes, rpc_shm_t *shm) {
    memset(shm, 0, sizeof *shm);
    shm->fd = -1;
    shm->kind = kind;
    if (n_bytes == 0 || n_bytes > RPC_SHM_BYTES_MAX) return KR_E_LIMIT;
    shm->fd = kind == RPC_SHM_MEMFD ? memfd_create("kr", MFD_CLOEXEC | MFD_ALLOW_SEALING)
                                    : open(FOLDER, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (shm->fd < 0) return status_of(errno);
    const size_t n_all = n_bytes + RPC_SHM_HEADER_BYTES;
    kr_status_t status = KR_OK;
    /* All of it now: a write to memory that is not there would be a fault. */
    if (fcntl(shm->fd, F_GET_SEALS) < 0) status = KR_E_UNSUPPORTED; /* no memory behind it */
    else if (fallocate(shm->fd, 0, 0, (off_t)n_all) != 0) status = status_of(errno);
    if (status == KR_OK) {
        void *map = mmap(NULL, n_all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, shm->fd,
                         0);
        if (map == MAP_FAILED) status = KR_E_NOMEM;
        else shm->data = (uint8_t *)map + RPC_SHM_HEADER_BYTES;
    }
    if (status == KR_OK) shm->n_bytes = n_bytes;
    else rpc_shm_deinit(shm);
    return status;
}

static void unmap(rpc_shm_t *shm) {
    if (shm->data == NULL) return;
    (void)munmap(shm->data - RPC_SHM_HEADER_BYTES, shm->n_bytes + RPC_SHM_HEADER_BYTES);
    shm->data = NULL;
}

kr_status_t rpc_shm_seal(rpc_shm_t *shm, const rpc_shm_head_t *head) {
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
    if (rpc_shm_head_check(head) != NULL || head->n_bytes > shm->n_bytes) return KR_E_INTERNAL;
    rpc_shm_head_put(head, shm->data - RPC_SHM_HEADER_BYTES);
    unmap(shm);
    if (ftruncate(shm->fd, (off_t)(head->n_bytes + RPC_SHM_HEADER_BYTES)) != 0) return KR_E_IO;
    if (shm->kind == RPC_SHM_MEMFD && fcntl(shm->fd, F_ADD_SEALS, seals) != 0) return KR_E_IO;
    return KR_OK;
}

kr_status_t rpc_shm_link(rpc_shm_t *shm) {
    char name[RPC_SHM_NAME_MAX], from[64], to[RPC_SHM_NAME_MAX + sizeof FOLDER];
    if (!make_name(name, sizeof name)) return KR_E_UNSUPPORTED;
    (void)snprintf(from, sizeof from, "/proc/self/fd/%d", shm->fd);
    (void)snprintf(to, sizeof to, FOLDER "%s", name);
    if (linkat(AT_FDCWD, from, AT_FDCWD, to, AT_SYMLINK_FOLLOW) != 0) return status_of(errno);
    memcpy(shm->name, name, sizeof shm->name);
    return KR_OK;
}

void rpc_shm_deinit(rpc_shm_t *shm) {
    unmap(shm);
    if (shm->fd >= 0) (void)close(shm->fd);
    shm->fd = -1;
}

/* ---- taking one ------------------------------------------------------------------------------ */

int rpc_shm_open(const char *name) {
    owner_t owner;
    struct stat info;
    if (name[0] != '/' || !parse_name(name + 1, &owner)) return -1;
    const int fd = shm_open(name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0); /* closed on exec */
    if (fd < 0) return -1;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_uid == geteuid()) return fd;
    (void)close(fd);
    return -1;
}

bool rpc_shm_is_there(const char *name) {
    char path[RPC_SHM_NAME_MAX + sizeof FOLDER];
    (void)snprintf(path, sizeof path, FOLDER "%s", name);
    return faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

void rpc_shm_unlink(const char *name) { (void)shm_unlink(name); }

static bool read_all(int fd, uint8_t *out, size_t n_bytes, size_t offset) {
    while (n_bytes > 0) {
        const ssize_t n = pread(fd, out, n_bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        out += n;
        offset += (size_t)n;
        n_bytes -= (size_t)n;
    }
    return true;
}

const char *rpc_shm_load_head(int fd, rpc_shm_head_t *head) {
    uint8_t bytes[RPC_SHM_HEADER_BYTES];
    struct stat info;
    memset(head, 0, sizeof *head);
    /* Only memory has seals: reading anything else might wait. */
    if (fcntl(fd, F_GET_SEALS) < 0 || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        return "no shared memory";
    }
    if (info.st_size < (off_t)sizeof bytes || !read_all(fd, bytes, sizeof bytes, 0)) {
        return "no header";
    }
    const char *why = rpc_shm_head_read(bytes, sizeof bytes, head);
    if (why != NULL) return why;
    if ((uint64_t)info.st_size != head->n_bytes + RPC_SHM_HEADER_BYTES) {
        return "its size is not what its header says";
    }
    return NULL;
}

bool rpc_shm_load(int fd, const rpc_shm_head_t *head, void *out) {
    return read_all(fd, out, (size_t)head->n_bytes, RPC_SHM_HEADER_BYTES);
}

/* ---- descriptors ----------------------------------------------------------------------------- */

typedef union control_u {
    char bytes[CMSG_SPACE(RPC_SHM_FDS_MAX * sizeof(int))];
    struct cmsghdr align;
} control_t;

ssize_t rpc_shm_send(int socket, const char *data, size_t n_bytes, const int *fds, size_t n_fds) {
    control_t control;
    const size_t fds_bytes = n_fds * sizeof fds[0];
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = n_bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = CMSG_SPACE(fds_bytes)};
    memset(&control, 0, sizeof control);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(fds_bytes);
    memcpy(CMSG_DATA(head), fds, fds_bytes);
    return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

ssize_t rpc_shm_receive(int socket, char *data, size_t cap, int *fds, size_t *n_fds) {
    control_t control;
    struct iovec part = {.iov_base = data, .iov_len = cap};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    *n_fds = 0;
    const ssize_t n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0) return n;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head != NULL;
         head = CMSG_NXTHDR(&message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
        const size_t n_come = (head->cmsg_len - CMSG_LEN(0)) / sizeof fds[0];
        memcpy(fds + *n_fds, CMSG_DATA(head), n_come * sizeof fds[0]);
        *n_fds += n_come;
    }
    return n;
}

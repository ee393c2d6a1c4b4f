/* Preloaded into the trained process: from the n-th writing call on files below a directory on, the disk is full; or that
 * one call fails. Built by disk.py; armed by fail_io_arm. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096];
static int error_number, for_ever;
static long first;
static long calls; /* counted with an atomic: tensorstore writes from several threads */

void fail_io_arm(const char *directory, long number, int error, int all_later_too) {
    strncpy(below, directory, sizeof below - 1);
    first = number, error_number = error, for_ever = all_later_too, calls = 0;
}

long fail_io_calls(void) { return calls; }

static int fails(const char *path) {
    size_t length = strlen(below);
    if (!length || !path || strncmp(path, below, length) || (path[length] && path[length] != '/')) return 0;
    long number = __atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST);
    if (first < 0 || number < first || (number > first && !for_ever)) return 0;
    errno = error_number;
    return 1;
}

static int fails_on(int descriptor) {
    char link[64], path[4096];
    if (!below[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int d, const void *b, size_t n) { return fails_on(d) ? -1 : REAL(write)(d, b, n); }
ssize_t pwrite(int d, const void *b, size_t n, off_t o) { return fails_on(d) ? -1 : REAL(pwrite)(d, b, n, o); }
ssize_t pwrite64(int d, const void *b, size_t n, off64_t o) { return fails_on(d) ? -1 : REAL(pwrite64)(d, b, n, o); }
ssize_t writev(int d, const struct iovec *v, int n) { return fails_on(d) ? -1 : REAL(writev)(d, v, n); }
int fsync(int d) { return fails_on(d) ? -1 : REAL(fsync)(d); }
int fdatasync(int d) { return fails_on(d) ? -1 : REAL(fdatasync)(d); }
int ftruncate64(int d, off64_t n) { return fails_on(d) ? -1 : REAL(ftruncate64)(d, n); }
int mkdir(const char *p, mode_t m) { return fails(p) ? -1 : REAL(mkdir)(p, m); }
int rename(const char *from, const char *to) { return fails(to) ? -1 : REAL(rename)(from, to); }

#define OPEN(name)                                                     \
    int name(const char *path, int flags, ...) {                       \
        va_list list;                                                  \
        va_start(list, flags);                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list);                                                  \
        if (flags & O_CREAT && fails(path)) return -1;                 \
        return REAL(name)(path, flags, mode);                          \
    }
OPEN(open)
OPEN(open64)

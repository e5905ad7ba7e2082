/* A library to preload: lets chosen system calls on chosen files fail, and sets the clocks that a process sees.
 *
 * Faults are armed from within the process (`fault_arm`); they hit only files whose path begins with the given prefix.
 * Clocks are set from outside: the environment variable CLOCK_FILE names a file of two doubles, seconds that are added
 * to the wall clock and to boot time. The monotonic clock stays as it is, as it does while a machine is suspended.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 0, SYNC, TRUNCATE, OPEN, READ, ALLOCATE, UNLINK };

static char prefix[512];
static int armed = -1, error_number, for_good;
static long at, seen;
static unsigned char watched[4096];

void fault_arm(const char *path, int call, long position, int number, int sticky) {
    strncpy(prefix, path, sizeof prefix - 1);
    armed = call; at = position; error_number = number; for_good = sticky; seen = 0;
}
long fault_seen(void) { return seen; }

static int hit(int call) {
    if (call != armed) return 0;
    seen++;
    if (seen != at && !(for_good && seen > at)) return 0;
    errno = error_number;
    return 1;
}
static int fails(int call, int fd) { return fd >= 0 && fd < 4096 && watched[fd] && hit(call); }
static int ours(const char *path) { return prefix[0] && path && !strncmp(path, prefix, strlen(prefix)); }
static int opened(int fd, int mine) { if (fd >= 0 && fd < 4096) watched[fd] = mine; return fd; }

#define REAL(result, name, ...) static result (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)

#define WITH_FD(call, result, name, declared, given, ...) \
    result name declared { REAL(result, name, __VA_ARGS__); return fails(call, fd) ? -1 : real given; }
WITH_FD(WRITE, ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), int, const void *, size_t)
WITH_FD(WRITE, ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), int, const void *, size_t, off_t)
WITH_FD(WRITE, ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), int, const void *, size_t, off64_t)
WITH_FD(READ, ssize_t, read, (int fd, void *b, size_t n), (fd, b, n), int, void *, size_t)
WITH_FD(READ, ssize_t, pread, (int fd, void *b, size_t n, off_t o), (fd, b, n, o), int, void *, size_t, off_t)
WITH_FD(READ, ssize_t, pread64, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o), int, void *, size_t, off64_t)
WITH_FD(SYNC, int, fsync, (int fd), (fd), int)
WITH_FD(SYNC, int, fdatasync, (int fd), (fd), int)
WITH_FD(TRUNCATE, int, ftruncate, (int fd, off_t o), (fd, o), int, off_t)
WITH_FD(TRUNCATE, int, ftruncate64, (int fd, off64_t o), (fd, o), int, off64_t)

int posix_fallocate(int fd, off_t o, off_t n) {
    REAL(int, posix_fallocate, int, off_t, off_t);
    return fails(ALLOCATE, fd) ? error_number : real(fd, o, n);
}
int posix_fallocate64(int fd, off64_t o, off64_t n) {
    REAL(int, posix_fallocate64, int, off64_t, off64_t);
    return fails(ALLOCATE, fd) ? error_number : real(fd, o, n);
}
int unlink(const char *path) {
    REAL(int, unlink, const char *);
    return ours(path) && hit(UNLINK) ? -1 : real(path);
}
int close(int fd) {
    REAL(int, close, int);
    if (fd >= 0 && fd < 4096) watched[fd] = 0;
    return real(fd);
}

#define MODE(last) int mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, int); va_end(rest); }
#define OPENING(name) int name(const char *path, int flags, ...) { MODE(flags) \
    REAL(int, name, const char *, int, ...); return ours(path) && hit(OPEN) ? -1 : opened(real(path, flags, mode), ours(path)); }
#define OPENING_AT(name) int name(int folder, const char *path, int flags, ...) { MODE(flags) \
    REAL(int, name, int, const char *, int, ...); return ours(path) && hit(OPEN) ? -1 : opened(real(folder, path, flags, mode), ours(path)); }
OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)

static volatile double *shift;

__attribute__((constructor)) static void find_clocks(void) {
    const char *name = getenv("CLOCK_FILE");
    int fd = name ? (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY) : -1;
    if (fd < 0) return;
    void *found = mmap(NULL, 2 * sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) shift = found;
    syscall(SYS_close, fd);
}
static void add(struct timespec *now, double seconds) {
    double whole = now->tv_nsec / 1e9 + seconds;
    long long floor = (long long)whole - (whole < (long long)whole);
    now->tv_sec += floor;
    now->tv_nsec = (long)((whole - floor) * 1e9);
    if (now->tv_nsec > 999999999) now->tv_nsec = 999999999;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int result = real(clock, now);
    if (!result && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) add(now, shift[0]);
    if (!result && shift && clock == CLOCK_BOOTTIME) add(now, shift[1]);
    return result;
}
int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    tv->tv_sec = now.tv_sec; tv->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

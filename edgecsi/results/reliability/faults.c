/* Makes one system call on files below a folder fail, or the process die in its place: preloaded by faults.py.
 *
 * faults_arm() says which call, counted from the first after it; faults_calls[] holds what each call so far was. Only the
 * process that arms it is affected, not the programs it starts. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { CALLS = 1 << 16, FDS = 1 << 16, KILL = -1 };

int faults_count;
char faults_calls[CALLS];

static char folder[PATH_MAX];
static pid_t armed;
static int fail_at = -1, fail_with;
static unsigned char watched[FDS];

__attribute__((constructor)) static void start(void) { unsetenv("LD_PRELOAD"); }

void faults_arm(const char *below, int at, int with) {
    snprintf(folder, sizeof folder, "%s", below);
    memset(watched, 0, sizeof watched);
    faults_count = 0, fail_at = at, fail_with = with, armed = getpid();
}

void faults_disarm(void) { armed = 0; }

/* Whether this call is the one that must fail. `letter` is what it is. */
static int hit(char letter) {
    if (armed != getpid()) return 0;
    int number = __atomic_fetch_add(&faults_count, 1, __ATOMIC_SEQ_CST);
    if (number < CALLS) faults_calls[number] = letter;
    if (number != fail_at) return 0;
    if (fail_with == KILL) kill(getpid(), SIGKILL);
    errno = fail_with;
    return 1;
}

static int below(int at, const char *path) {
    if (!armed || !path) return 0;
    if (path[0] == '/' || at == AT_FDCWD) return !strncmp(path, folder, strlen(folder));
    return at >= 0 && at < FDS && watched[at];
}

/* 1: read only, 2: may be written, so that closing it can fail. */
static int watch(int fd, int is, int written) {
    if (is && fd >= 0 && fd < FDS) watched[fd] = (unsigned char)(1 + written);
    return fd;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define IS_WATCHED(fd) (armed && (fd) >= 0 && (fd) < FDS && watched[fd])

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); } \
        int is = below(AT_FDCWD, path); \
        if (is && hit(flags & O_CREAT ? 'c' : 'o')) return -1; \
        return watch(real(path, flags, mode), is, (flags & O_ACCMODE) != O_RDONLY); \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); } \
        int is = below(at, path); \
        if (is && hit(flags & O_CREAT ? 'c' : 'o')) return -1; \
        return watch(real(at, path, flags, mode), is, (flags & O_ACCMODE) != O_RDONLY); \
    }
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(FILE *, name, const char *, const char *); \
        int is = below(AT_FDCWD, path); \
        if (is && hit(strchr(mode, 'r') ? 'o' : 'c')) return NULL; \
        FILE *file = real(path, mode); \
        if (file) watch(fileno(file), is, !strchr(mode, 'r')); \
        return file; \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

#define ON_FD(letter, result, name, declared, given) \
    result name declared { \
        REAL(result, name, ON_FD_TYPES_##name); \
        if (IS_WATCHED(fd) && hit(letter)) return -1; \
        return real given; \
    }
#define ON_FD_TYPES_read int, void *, size_t
#define ON_FD_TYPES_write int, const void *, size_t
#define ON_FD_TYPES_pread64 int, void *, size_t, off64_t
#define ON_FD_TYPES_pwrite64 int, const void *, size_t, off64_t
#define ON_FD_TYPES_fsync int
#define ON_FD_TYPES_fdatasync int
#define ON_FD_TYPES_flock int, int
#define ON_FD_TYPES_ftruncate64 int, off64_t
ON_FD('r', ssize_t, read, (int fd, void *to, size_t size), (fd, to, size))
ON_FD('w', ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size))
ON_FD('r', ssize_t, pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
ON_FD('w', ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at))
ON_FD('s', int, fsync, (int fd), (fd))
ON_FD('s', int, fdatasync, (int fd), (fd))
ON_FD('l', int, flock, (int fd, int how), (fd, how))
ON_FD('t', int, ftruncate64, (int fd, off64_t size), (fd, size))

int close(int fd) {
    REAL(int, close, int);
    int is = IS_WATCHED(fd) ? watched[fd] : 0;
    if (is) watched[fd] = 0;
    if (is == 2 && hit('x')) {
        real(fd); /* Linux closes it whatever it answers */
        errno = fail_with;
        return -1;
    }
    return real(fd);
}

#define ON_PATH(letter, name, declared, at, path, given) \
    int name declared { \
        REAL(int, name, ON_PATH_TYPES_##name); \
        if (below(at, path) && hit(letter)) return -1; \
        return real given; \
    }
#define ON_PATH_TYPES_mkdir const char *, mode_t
#define ON_PATH_TYPES_rename const char *, const char *
#define ON_PATH_TYPES_renameat int, const char *, int, const char *
#define ON_PATH_TYPES_renameat2 int, const char *, int, const char *, unsigned
#define ON_PATH_TYPES_unlink const char *
#define ON_PATH_TYPES_unlinkat int, const char *, int
#define ON_PATH_TYPES_rmdir const char *
ON_PATH('m', mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH('n', rename, (const char *from, const char *to), AT_FDCWD, to, (from, to))
ON_PATH('n', renameat, (int a, const char *from, int b, const char *to), b, to, (a, from, b, to))
ON_PATH('n', renameat2, (int a, const char *from, int b, const char *to, unsigned flags), b, to, (a, from, b, to, flags))
ON_PATH('u', unlink, (const char *path), AT_FDCWD, path, (path))
ON_PATH('u', unlinkat, (int at, const char *path, int flags), at, path, (at, path, flags))
ON_PATH('u', rmdir, (const char *path), AT_FDCWD, path, (path))

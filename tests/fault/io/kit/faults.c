/* Loaded with LD_PRELOAD into a process under test: makes chosen calls that change files below one folder fail, as
 * a full or broken disk would. It sits below Python and below SQLite alike, so that no write escapes it.
 *
 * CW_FAULTS names a file of one struct control, shared with the test, which arms it while the process runs.
 * CW_FAULTS_UNDER is the folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF = 0, ONCE = 1, FULL = 2 };

struct control {
    _Atomic int64_t seen;  /* calls so far */
    _Atomic int64_t at;    /* the call, counted from 1, with which failing begins */
    _Atomic int64_t hits;  /* calls that were made to fail */
    _Atomic int32_t mode;  /* OFF; ONCE: that call alone; FULL: from then on whatever needs space */
    _Atomic int32_t error; /* errno to give */
    char last[232];        /* the last call that failed, for people */
};

static struct control *control;
static const char *under;
static size_t under_length;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CW_FAULTS");
    under = getenv("CW_FAULTS_UNDER");
    if (!path || !under) return;
    under_length = strlen(under);
    int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) control = mapped;
}

static int ours(const char *path) {
    return control && path && !strncmp(path, under, under_length) && (!path[under_length] || path[under_length] == '/');
}

static int path_of(int fd, char *out, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, size - 1);
    if (length < 0) return 0;
    out[length] = 0;
    return 1;
}

/* The absolute form of a path below a directory's descriptor. */
static const char *below(int dir, const char *path, char *out, size_t size) {
    if (path[0] == '/' ) return path;
    char base[PATH_MAX];
    if (dir == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(dir, base, sizeof base)) return NULL;
    snprintf(out, size, "%s/%s", base, path);
    return out;
}

/* Whether this call is to fail; errno is then set. */
static int fails(const char *call, const char *path, int needs_space) {
    int64_t number = atomic_fetch_add(&control->seen, 1) + 1;
    int mode = control->mode;
    int hit = mode == ONCE ? number == control->at : mode == FULL && number >= control->at && needs_space;
    if (!hit) return 0;
    atomic_fetch_add(&control->hits, 1);
    snprintf(control->last, sizeof control->last, "%s %s", call, path);
    errno = control->error;
    return 1;
}

#define BY_PATH(call, path, space)                                      \
    do {                                                                \
        char made_[PATH_MAX * 2];                                       \
        const char *full_ = control ? below(AT_FDCWD, path, made_, sizeof made_) : NULL; \
        if (ours(full_) && fails(call, full_, space)) return -1;        \
    } while (0)

#define BY_DIR(call, dir, path, space)                                  \
    do {                                                                \
        char made_[PATH_MAX * 2];                                       \
        const char *full_ = control ? below(dir, path, made_, sizeof made_) : NULL; \
        if (ours(full_) && fails(call, full_, space)) return -1;        \
    } while (0)

#define BY_FD(call, fd, space)                                          \
    do {                                                                \
        char found_[PATH_MAX];                                          \
        if (control && path_of(fd, found_, sizeof found_) && ours(found_) && fails(call, found_, space)) \
            return -1;                                                  \
    } while (0)

/* A write that fails leaves half of its bytes behind. */
#define WRITING(call, fd, half)                                         \
    do {                                                                \
        char found_[PATH_MAX];                                          \
        if (control && path_of(fd, found_, sizeof found_) && ours(found_) && fails(call, found_, 1)) { \
            int error_ = errno;                                         \
            if (atomic_load(&control->hits) == 1) (void)!(half);        \
            errno = error_;                                             \
            return -1;                                                  \
        }                                                               \
    } while (0)

#define OPENING(name, path, flags)                                      \
    mode_t mode = 0;                                                    \
    if (flags & (O_CREAT | O_TMPFILE)) {                                \
        va_list list;                                                   \
        va_start(list, flags);                                          \
        mode = va_arg(list, mode_t);                                    \
        va_end(list);                                                   \
    }

int open(const char *path, int flags, ...) {
    OPENING(open, path, flags)
    if (flags & (O_CREAT | O_TRUNC)) BY_PATH("open", path, access(path, F_OK) != 0);
    return REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    OPENING(open64, path, flags)
    if (flags & (O_CREAT | O_TRUNC)) BY_PATH("open", path, access(path, F_OK) != 0);
    return REAL(open64)(path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...) {
    OPENING(openat, path, flags)
    if (flags & (O_CREAT | O_TRUNC)) BY_DIR("openat", dir, path, 1);
    return REAL(openat)(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...) {
    OPENING(openat64, path, flags)
    if (flags & (O_CREAT | O_TRUNC)) BY_DIR("openat", dir, path, 1);
    return REAL(openat64)(dir, path, flags, mode);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    WRITING("write", fd, REAL(write)(fd, bytes, count / 2));
    return REAL(write)(fd, bytes, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    WRITING("pwrite", fd, REAL(pwrite)(fd, bytes, count / 2, at));
    return REAL(pwrite)(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    WRITING("pwrite", fd, REAL(pwrite64)(fd, bytes, count / 2, at));
    return REAL(pwrite64)(fd, bytes, count, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    BY_FD("writev", fd, 1);
    return REAL(writev)(fd, parts, count);
}

int fsync(int fd) {
    BY_FD("fsync", fd, 0);
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    BY_FD("fdatasync", fd, 0);
    return REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t length) {
    BY_FD("ftruncate", fd, 1);
    return REAL(ftruncate)(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    BY_FD("ftruncate", fd, 1);
    return REAL(ftruncate64)(fd, length);
}

int fchmod(int fd, mode_t mode) {
    BY_FD("fchmod", fd, 0);
    return REAL(fchmod)(fd, mode);
}

int chmod(const char *path, mode_t mode) {
    BY_PATH("chmod", path, 0);
    return REAL(chmod)(path, mode);
}

int rename(const char *from, const char *to) {
    BY_PATH("rename", to, 1);
    return REAL(rename)(from, to);
}

int link(const char *from, const char *to) {
    BY_PATH("link", to, 1);
    return REAL(link)(from, to);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    BY_DIR("link", to_dir, to, 1);
    return REAL(linkat)(from_dir, from, to_dir, to, flags);
}

int unlink(const char *path) {
    BY_PATH("unlink", path, 0);
    return REAL(unlink)(path);
}

int unlinkat(int dir, const char *path, int flags) {
    BY_DIR("unlink", dir, path, 0);
    return REAL(unlinkat)(dir, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    BY_PATH("mkdir", path, access(path, F_OK) != 0);
    return REAL(mkdir)(path, mode);
}

int rmdir(const char *path) {
    BY_PATH("rmdir", path, 0);
    return REAL(rmdir)(path);
}

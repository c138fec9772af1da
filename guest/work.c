/* A file worker's streams and its cleaning up. */
#include "work.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "users.h"

enum { BUFFER = 64 << 10, RECORD_MAX = 16 << 10 };

static uint8_t buffer[BUFFER];
static size_t used;

static volatile sig_atomic_t temporary_set;
static int temporary_dir;
static char temporary_name[40];

bool write_all(int fd, const void *bytes, size_t length) {
    const uint8_t *p = bytes;
    while (length) {
        ssize_t put = write(fd, p, length);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        p += put;
        length -= (size_t)put;
    }
    return true;
}

static void clean_up(void) {
    if (temporary_set) unlinkat(temporary_dir, temporary_name, 0);
    temporary_set = 0;
}

static void on_cancel(int signum) {
    (void)signum;
    clean_up();
    _exit(1);
}

void work_fail_at(enum stage stage, int error, const char *message) {
    uint8_t head[8];
    clean_up();
    if (!message) message = strerror(error);
    set32(head, (uint32_t)error);
    set32(head + 4, (uint32_t)stage);
    if (write_all(2, head, sizeof head)) write_all(2, message, strlen(message));
    _exit(1);
}

void work_fail(int error, const char *message) { work_fail_at(STAGE_REQUEST, error, message); }

void work_flush(void) {
    if (!write_all(1, buffer, used)) {
        clean_up();
        _exit(1);
    }
    used = 0;
}

void work_put(const void *bytes, size_t length) {
    const uint8_t *p = bytes;
    while (length) {
        if (used == BUFFER) work_flush();
        size_t part = BUFFER - used < length ? BUFFER - used : length;
        memcpy(buffer + used, p, part);
        used += part;
        p += part;
        length -= part;
    }
}

uint64_t work_copy(int fd, uint64_t length) {
    uint64_t done = 0;
    bool by_splice = true;
    work_flush();
    while (done < length) {
        uint64_t left = length - done;
        ssize_t got;
        if (by_splice) {
            got = splice(fd, NULL, 1, NULL, left < (1 << 20) ? (size_t)left : 1 << 20, SPLICE_F_MOVE);
            if (got < 0 && (errno == EINVAL || errno == EAGAIN)) { /* /proc and such; gVisor into a full pipe */
                by_splice = false;
                continue;
            }
        } else {
            got = read(fd, buffer, left < BUFFER ? (size_t)left : BUFFER);
            if (got > 0) {
                used = (size_t)got;
                work_flush();
            }
        }
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) work_fail(errno, NULL);
        if (got == 0) break;
        done += (uint64_t)got;
    }
    return done;
}

void work_busy(void) {
    static time_t last;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (now.tv_sec == last) return;
    if (last) {
        work_put("\0\0\0\0", 4);
        work_flush();
    }
    last = now.tv_sec;
}

size_t work_get(void *to, size_t length) {
    size_t got = 0;
    while (got < length) {
        ssize_t n = read(0, (uint8_t *)to + got, length - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) work_fail(errno, NULL);
        if (n == 0) break;
        got += (size_t)n;
    }
    return got;
}

void work_temporary(int dir, const char *name) {
    temporary_set = 0;
    if (!name) return;
    temporary_dir = dir;
    snprintf(temporary_name, sizeof temporary_name, "%s", name);
    temporary_set = 1;
}

const char *work_temporary_name(void) { return temporary_name; }

int work_make_temporary(int dir) {
    uint64_t random;
    char name[40];
    struct sigaction action = {.sa_handler = on_cancel};
    sigaction(SIGTERM, &action, NULL);
    if (getrandom(&random, sizeof random, 0) != sizeof random) return -1;
    snprintf(name, sizeof name, ".runra-%016llx.tmp", (unsigned long long)random);
    work_temporary(dir, name); /* first: a cancellation may come right behind the open */
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) work_temporary(-1, NULL);
    return fd;
}

static uint64_t type_of(mode_t mode) {
    switch (mode & S_IFMT) {
    case S_IFDIR: return 1;
    case S_IFLNK: return 2;
    case S_IFIFO: return 3;
    case S_IFSOCK: return 4;
    case S_IFCHR: return 5;
    case S_IFBLK: return 6;
    default: return 0;
    }
}

void work_entry(int at, const char *relative, const char *name, const char *path, const struct stat *st) {
    static uint8_t record[RECORD_MAX];
    static char target[4096];
    struct fields f = {.at = record + 4, .room = sizeof record - 4};
    struct stat followed;
    bool folder = S_ISDIR(st->st_mode), link = S_ISLNK(st->st_mode);
    if (link && fstatat(at, relative, &followed, 0) == 0) folder = S_ISDIR(followed.st_mode);
    put_text(&f, T_NAME, name);
    put_number(&f, T_TYPE, type_of(st->st_mode));
    put_number(&f, T_IS_DIRECTORY, folder);
    put_number(&f, T_SIZE, (uint64_t)st->st_size);
    put_number(&f, T_MTIME_MS, (uint64_t)(st->st_mtim.tv_sec * 1000 + st->st_mtim.tv_nsec / 1000000));
    put_number(&f, T_MODE, st->st_mode & 07777);
    put_number(&f, T_UID, st->st_uid);
    put_number(&f, T_GID, st->st_gid);
    put_text(&f, T_OWNER, user_name(st->st_uid));
    put_text(&f, T_GROUP, group_name(st->st_gid));
    if (link) {
        ssize_t length = readlinkat(at, relative, target, sizeof target - 1);
        if (length >= 0) {
            target[length] = 0;
            put_text(&f, T_TARGET, target);
        }
    }
    put_text(&f, T_PATH, path); /* last: the only one that may not fit, deep in a tree */
    set32(record, (uint32_t)f.used);
    work_put(record, f.used + 4);
}

const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
    if (!folder) work_fail(ENOMEM, NULL);
    return folder;
}

int make_folders(const char *path) {
    struct stat st;
    if (mkdir(path, 0755) == 0) return 0;
    int error = errno;
    if (error == ENOENT && strcmp(path, "/") != 0) {
        char *above = folder_of(path);
        error = make_folders(above);
        free(above);
        if (!error && mkdir(path, 0755) < 0) error = errno;
    }
    if (error == EEXIST) error = stat(path, &st) < 0 ? errno : S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
    return error;
}

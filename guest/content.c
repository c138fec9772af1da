/* Reading and writing a file's content. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "work.h"

enum { CHUNK = 64 << 10, LINKS_MAX = 40 };

static void refuse_irregular(mode_t mode) {
    if (S_ISDIR(mode)) work_fail(EISDIR, NULL);
    if (!S_ISREG(mode)) work_fail(ENXIO, "not a regular file");
}

void do_stat(const char *path) {
    struct stat st;
    if (lstat(path, &st) < 0) work_fail(errno, NULL);
    work_entry(AT_FDCWD, path, base_name(path), path, &st);
}

void do_read(const char *path, uint64_t offset, uint64_t length) {
    struct stat st;
    /* looked at before it is opened: to open a pipe or a device is to act on it */
    if (stat(path, &st) < 0) work_fail(errno, NULL);
    refuse_irregular(st.st_mode);
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) work_fail(errno, NULL);
    refuse_irregular(st.st_mode);
    work_entry(AT_FDCWD, path, base_name(path), path, &st);
    if (offset > INT64_MAX) work_fail(EINVAL, "an offset out of range");
    if (offset && lseek(fd, (off_t)offset, SEEK_SET) < 0) work_fail(errno, NULL);
    work_copy(fd, length);
    close(fd);
}

/* Where a path leads when its last step is a link, and so on; the path itself when it is none. */
static char *resolve(const char *path) {
    char *at = strdup(path), target[4096];
    for (int i = 0; at && i < LINKS_MAX; i++) {
        ssize_t length = readlink(at, target, sizeof target - 1);
        if (length < 0) return at; /* no link, or not there: what comes next says */
        target[length] = 0;
        char *next = NULL;
        if (*target == '/') {
            next = strdup(target);
        } else {
            char *folder = folder_of(at);
            if (asprintf(&next, "%s/%s", folder, target) < 0) next = NULL;
            free(folder);
        }
        free(at);
        at = next;
    }
    work_fail(at ? ELOOP : ENOMEM, NULL);
}

/* A file that is mounted by itself (/etc/hosts, often) cannot be replaced: then its content is. */
static void overwrite(int dir, const char *path, mode_t mode) {
    char chunk[CHUNK];
    int from = openat(dir, work_temporary_name(), O_RDONLY | O_CLOEXEC);
    int to = open(path, O_WRONLY | O_TRUNC | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (from < 0 || to < 0) work_fail(errno, NULL);
    for (ssize_t got; (got = read(from, chunk, sizeof chunk)) != 0;)
        if (got < 0 || !write_all(to, chunk, (size_t)got)) work_fail(errno, NULL);
    if (fchmod(to, mode) < 0 && errno != EPERM) work_fail(errno, NULL);
    unlinkat(dir, work_temporary_name(), 0);
    close(from);
    close(to);
}

/* Give the new file the old one's owner, as an editor does. Without the right to, it is the writer's own. */
static void take_after(int fd, const struct stat *old, mode_t *mode) {
    struct stat st;
    *mode = old->st_mode & 07777;
    if (fstat(fd, &st) < 0) work_fail(errno, NULL);
    if (st.st_uid == old->st_uid && st.st_gid == old->st_gid) return;
    if (fchown(fd, old->st_uid, old->st_gid) < 0) *mode &= 0777; /* never set-id for somebody else */
}

static void put_in_place(int dir, const char *target, bool replaces, mode_t mode) {
    if (renameat(dir, work_temporary_name(), dir, base_name(target)) < 0) {
        if (errno != EBUSY || !replaces) work_fail(errno, NULL);
        overwrite(dir, target, mode);
    }
    work_temporary(-1, NULL);
}

void do_write(const char *path, const struct request *r) {
    static uint8_t chunk[CHUNK];
    uint64_t flags = r->number[T_FLAGS];
    char *target = resolve(path), *folder = folder_of(target);
    struct stat st, old;
    bool replaces = stat(target, &old) == 0;
    if (!replaces && errno != ENOENT) work_fail(errno, NULL);
    if (replaces) {
        refuse_irregular(old.st_mode);
        if (faccessat(AT_FDCWD, target, W_OK, AT_EACCESS) < 0) work_fail(errno, NULL);
    }
    if (flags & FLAG_PARENTS) {
        int error = make_folders(folder);
        if (error) work_fail(error, NULL);
    }
    int dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) work_fail(errno, NULL);
    int fd = work_make_temporary(dir);
    if (fd < 0) work_fail(errno, NULL);
    for (size_t got; (got = work_get(chunk, sizeof chunk)) > 0;)
        if (!write_all(fd, chunk, got)) work_fail(errno, NULL);
    mode_t mode = 0644;
    if (replaces) take_after(fd, &old, &mode);
    if (request_has(r, T_MODE)) mode = (mode_t)(r->number[T_MODE] & 07777);
    if (fchmod(fd, mode) < 0 || ((flags & FLAG_SYNC) && fsync(fd) < 0)) work_fail(errno, NULL);
    put_in_place(dir, target, replaces, mode);
    if (flags & FLAG_SYNC) {
        int readable = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (readable >= 0) fsync(readable); /* best effort: the folder may not be ours to read */
    }
    if (fstat(fd, &st) < 0) work_fail(errno, NULL);
    work_entry(AT_FDCWD, target, base_name(path), path, &st);
    if (close(fd) < 0) work_fail(errno, NULL);
}

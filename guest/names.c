/* Names rather than content: listing, making folders, moving, deleting. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "walk.h"
#include "work.h"

static int list_one(void *context, const struct visit *v) {
    const char *base = context;
    char *path = NULL;
    if (asprintf(&path, "%s/%s", strcmp(base, "/") ? base : "", v->path) < 0) return ENOMEM;
    work_entry(v->dir, v->name, v->name, path, &v->st);
    free(path);
    return 0;
}

void do_list(const char *path, uint64_t depth) {
    struct walk w = {.depth = depth ? (size_t)depth : 1, .skip_unreadable = true, .enter = list_one};
    w.context = (void *)(uintptr_t)path;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = fd < 0 ? errno : walk_tree(fd, &w);
    if (error) work_fail(error, NULL);
}

void do_mkdir(const char *path, bool recursive) {
    int error = recursive ? make_folders(path) : mkdir(path, 0755) < 0 ? errno : 0;
    if (error) work_fail(error, NULL);
}

static int delete_one(void *context, const struct visit *v) {
    (void)context;
    work_busy();
    if (S_ISDIR(v->st.st_mode) || unlinkat(v->dir, v->name, 0) == 0 || errno == ENOENT) return 0;
    return errno;
}

static int delete_folder(void *context, const struct visit *v) {
    (void)context;
    return unlinkat(v->dir, v->name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : errno;
}

void do_delete(const char *path, bool recursive) {
    struct stat st;
    if (lstat(path, &st) < 0) work_fail(errno, NULL);
    if (!S_ISDIR(st.st_mode)) {
        if (unlink(path) < 0) work_fail(errno, NULL);
        return;
    }
    if (!strcmp(path, "/")) work_fail(EBUSY, "the root folder cannot be deleted");
    if (recursive) {
        struct walk w = {.depth = SIZE_MAX, .enter = delete_one, .leave = delete_folder};
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int error = fd < 0 ? errno : walk_tree(fd, &w);
        if (error) work_fail(error, NULL);
    }
    if (rmdir(path) < 0) work_fail(errno, NULL);
}

/* Between file systems a move is a copy and a deletion; done for a file or a link, in one step for who looks on. */
static void move_far(const char *from, const char *to) {
    static uint8_t chunk[64 << 10];
    struct stat st;
    if (lstat(from, &st) < 0) work_fail(errno, NULL);
    if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode))
        work_fail(EXDEV, "on another file system (or in the image): copy it with cp -a, then delete it");
    char *folder = folder_of(to);
    int dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) work_fail(errno, NULL);
    int out = work_make_temporary(dir);
    if (out < 0) work_fail(errno, NULL);
    if (S_ISLNK(st.st_mode)) {
        ssize_t length = readlink(from, (char *)chunk, sizeof chunk - 1);
        if (length < 0) work_fail(errno, NULL);
        chunk[length] = 0;
        unlinkat(dir, work_temporary_name(), 0);
        if (symlinkat((char *)chunk, dir, work_temporary_name()) < 0) work_fail(errno, NULL);
    } else {
        int in = open(from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (in < 0) work_fail(errno, NULL);
        for (ssize_t got; (got = read(in, chunk, sizeof chunk)) != 0;) {
            if (got < 0 || !write_all(out, chunk, (size_t)got)) work_fail(errno, NULL);
            work_busy();
        }
        mode_t mode = st.st_mode & 07777;
        if (fchown(out, st.st_uid, st.st_gid) < 0) mode &= 0777;
        struct timespec times[] = {st.st_atim, st.st_mtim};
        if (fchmod(out, mode) < 0 || futimens(out, times) < 0) work_fail(errno, NULL);
        close(in);
    }
    if (close(out) < 0) work_fail(errno, NULL);
    if (renameat(dir, work_temporary_name(), dir, base_name(to)) < 0) work_fail(errno, NULL);
    work_temporary(-1, NULL);
    if (unlink(from) < 0) work_fail(errno, NULL);
}

void do_move(const char *from, const char *to) {
    if (rename(from, to) == 0) return;
    if (errno != EXDEV) work_fail(errno, NULL);
    move_far(from, to);
}

/* The walk: a stack of names, not of descriptors. A level's subfolders are noted while it is read and gone into after;
 * the way back up is "..", checked to be where we came from, since others may move folders meanwhile. */
#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FOLDER = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC };

struct text {
    char *at;
    size_t used, room;
};

struct level {
    dev_t device;
    ino_t inode;
    struct text subfolders; /* names, each closed by NUL */
    size_t next;            /* where the next one begins */
    size_t path_length;
};

struct state {
    const struct walk *walk;
    struct level *levels;
    size_t count, room;
    struct text path; /* of the current level */
};

static int append(struct text *t, const char *bytes, size_t length) {
    if (t->room - t->used < length) {
        size_t room = t->room ? t->room : 64;
        while (room - t->used < length) room *= 2;
        char *grown = realloc(t->at, room);
        if (!grown) return ENOMEM;
        t->at = grown;
        t->room = room;
    }
    memcpy(t->at + t->used, bytes, length);
    t->used += length;
    return 0;
}

/* Put a name behind the current path, NUL included; `used` is left behind the NUL. */
static int path_with(struct state *s, size_t length, const char *name) {
    s->path.used = length;
    int error = length ? append(&s->path, "/", 1) : 0;
    return error ? error : append(&s->path, name, strlen(name) + 1);
}

static int read_level(struct state *s, int fd) {
    struct level *level = &s->levels[s->count - 1];
    int copy = openat(fd, ".", FOLDER), error = 0;
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir) {
        error = errno;
        if (copy >= 0) close(copy);
        return error;
    }
    for (;;) {
        errno = 0;
        struct dirent *d = readdir(dir);
        if (!d) {
            error = errno;
            break;
        }
        if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")) continue;
        struct visit v = {.dir = fd, .name = d->d_name};
        if (fstatat(fd, v.name, &v.st, AT_SYMLINK_NOFOLLOW) < 0) {
            if (errno == ENOENT) continue; /* gone since */
            error = errno;
            break;
        }
        if ((error = path_with(s, level->path_length, v.name)) != 0) break;
        v.path = s->path.at;
        if ((error = s->walk->enter(s->walk->context, &v)) != 0) break;
        if (S_ISDIR(v.st.st_mode) && s->count < s->walk->depth)
            if ((error = append(&level->subfolders, v.name, strlen(v.name) + 1)) != 0) break;
    }
    closedir(dir);
    return error;
}

static int push(struct state *s, int fd, size_t path_length) {
    struct stat st;
    if (fstat(fd, &st) < 0) return errno;
    if (s->count == s->room) {
        size_t room = s->room ? s->room * 2 : 16;
        struct level *grown = realloc(s->levels, room * sizeof *grown);
        if (!grown) return ENOMEM;
        s->levels = grown;
        s->room = room;
    }
    s->levels[s->count++] = (struct level){.device = st.st_dev, .inode = st.st_ino, .path_length = path_length};
    return read_level(s, fd);
}

/* Back to the parent, and tell the visitor. */
static int pop(struct state *s, int *fd) {
    free(s->levels[--s->count].subfolders.at);
    if (!s->count) return 0;
    struct level *above = &s->levels[s->count - 1];
    struct stat st;
    int up = openat(*fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (up < 0) return errno;
    close(*fd);
    *fd = up;
    if (fstat(up, &st) < 0) return errno;
    if (st.st_dev != above->device || st.st_ino != above->inode) return ESTALE;
    if (!s->walk->leave) return 0;
    /* the subfolder just left is the one before `next` */
    size_t at = above->next - 1;
    while (at && above->subfolders.at[at - 1]) at--;
    const char *name = above->subfolders.at + at;
    int error = path_with(s, above->path_length, name);
    struct visit v = {.dir = up, .name = name, .path = s->path.at};
    return error ? error : s->walk->leave(s->walk->context, &v);
}

int walk_tree(int root, const struct walk *w) {
    struct state s = {.walk = w};
    int fd = openat(root, ".", FOLDER), error = fd < 0 ? errno : push(&s, fd, 0);
    while (!error && s.count) {
        struct level *level = &s.levels[s.count - 1];
        if (level->next >= level->subfolders.used) {
            error = pop(&s, &fd);
            continue;
        }
        const char *name = level->subfolders.at + level->next;
        level->next += strlen(name) + 1;
        int down = openat(fd, name, FOLDER);
        if (down < 0) {
            if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP || (w->skip_unreadable && errno == EACCES)) continue;
            error = errno;
            continue;
        }
        if ((error = path_with(&s, level->path_length, name)) != 0) {
            close(down);
            continue;
        }
        close(fd);
        fd = down;
        error = push(&s, fd, s.path.used - 1);
        if (error == EACCES && w->skip_unreadable) error = 0;
    }
    while (s.count) free(s.levels[--s.count].subfolders.at);
    free(s.levels);
    free(s.path.at);
    if (fd >= 0) close(fd);
    return error;
}

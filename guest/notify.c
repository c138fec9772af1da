/* Watching: inotify on a folder or a file, and on all folders below when asked. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "walk.h"
#include "work.h"

enum { WATCHES_MAX = 65536 };
enum change { READY, CREATED, MODIFIED, DELETED, MOVED };

#define MASK (IN_CREATE | IN_MODIFY | IN_DELETE | IN_DELETE_SELF | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF | \
              IN_EXCL_UNLINK)

/* Watch descriptors grow, so the table is in order by itself. A path of NULL: the watch is gone. */
static struct watched {
    int wd;
    char *path;
} *table;
static size_t count, room;
static int notify_fd;

static void tell(enum change change, const char *path) {
    static uint8_t record[16 << 10];
    struct fields f = {.at = record + 4, .room = sizeof record - 4};
    put_number(&f, T_TYPE, change);
    put_text(&f, T_PATH, path);
    set32(record, (uint32_t)f.used);
    work_put(record, f.used + 4);
}

static struct watched *find(int wd) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table[middle].wd < wd) low = middle + 1;
        else high = middle;
    }
    return low < count && table[low].wd == wd && table[low].path ? &table[low] : NULL;
}

static char *join(const char *folder, const char *name) {
    char *path = NULL;
    if (asprintf(&path, "%s/%s", strcmp(folder, "/") ? folder : "", name) < 0) work_fail(ENOMEM, NULL);
    return path;
}

/* Watch one path. 0, or the errno: ENOSPC is the kernel's bound of watches, not of the disk. */
static int watch_one(const char *path, uint32_t more) {
    int wd = inotify_add_watch(notify_fd, path, MASK | more);
    if (wd < 0) return errno == ENOSPC ? EUSERS : errno;
    struct watched *known = find(wd);
    if (known) { /* the same folder by another path: it was moved */
        free(known->path);
        known->path = strdup(path);
        return known->path ? 0 : ENOMEM;
    }
    if (count == WATCHES_MAX) return EUSERS;
    if (count == room) {
        size_t more_room = room ? room * 2 : 64;
        struct watched *grown = realloc(table, more_room * sizeof *grown);
        if (!grown) return ENOMEM;
        table = grown;
        room = more_room;
    }
    char *copy = strdup(path);
    if (!copy) return ENOMEM;
    table[count++] = (struct watched){wd, copy};
    return 0;
}

struct adding {
    const char *base;
    bool tell; /* what is found in a new folder came with it: nobody else reports it */
};

static int add_one(void *context, const struct visit *v) {
    const struct adding *a = context;
    char *path = join(a->base, v->path);
    int error = 0;
    if (a->tell) tell(CREATED, path);
    if (S_ISDIR(v->st.st_mode)) error = watch_one(path, IN_ONLYDIR | IN_DONT_FOLLOW);
    free(path);
    return error == ENOENT || error == ENOTDIR || error == EACCES ? 0 : error;
}

static void add_below(const char *path, bool report) {
    struct adding adding = {.base = path, .tell = report};
    struct walk w = {.depth = SIZE_MAX, .skip_unreadable = true, .enter = add_one, .context = &adding};
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int error = fd < 0 ? 0 : walk_tree(fd, &w);
    if (fd >= 0) close(fd);
    if (error && error != ENOENT && error != ESTALE) work_fail(error, NULL);
}

static void compact(void) {
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (table[i].path) table[kept++] = table[i];
    count = kept;
}

/* A folder left the tree: it and what is below are not watched any more. */
static void remove_below(const char *path) {
    size_t length = strlen(path);
    for (size_t i = 0; i < count; i++) {
        char *p = table[i].path;
        if (!p || strncmp(p, path, length) != 0 || (p[length] && p[length] != '/')) continue;
        inotify_rm_watch(notify_fd, table[i].wd);
        free(p);
        table[i].path = NULL;
    }
    compact();
}

static void forget(struct watched *w) {
    free(w->path);
    w->path = NULL;
    compact();
}

/* Report one event. False when what was watched is gone itself. */
static bool handle(const struct inotify_event *e, int root, bool recursive) {
    static char last[8192];
    if (e->mask & IN_Q_OVERFLOW) {
        work_flush();
        work_fail(EOVERFLOW, "too many changes at once: some were lost; look at the folder anew and watch again");
    }
    struct watched *w = find(e->wd);
    if (!w) return true;
    bool is_root = e->wd == root;
    if (e->mask & (IN_IGNORED | IN_DELETE_SELF | IN_MOVE_SELF)) {
        if (is_root) tell(e->mask & IN_MOVE_SELF ? MOVED : DELETED, w->path);
        else if (e->mask & IN_IGNORED) forget(w);
        return !is_root;
    }
    char *path = e->len && e->name[0] ? join(w->path, e->name) : strdup(w->path);
    if (!path) work_fail(ENOMEM, NULL);
    bool folder = e->mask & IN_ISDIR;
    if (e->mask & (IN_CREATE | IN_MOVED_TO)) {
        tell(CREATED, path);
        if (folder && recursive) {
            int error = watch_one(path, IN_ONLYDIR | IN_DONT_FOLLOW);
            if (error == EUSERS || error == ENOMEM) work_fail(error, NULL);
            if (!error) add_below(path, true);
        }
    } else if (e->mask & IN_DELETE) {
        tell(DELETED, path);
    } else if (e->mask & IN_MOVED_FROM) {
        tell(MOVED, path);
        if (folder && recursive) remove_below(path);
    } else if (e->mask & IN_MODIFY) {
        /* many writes in a row are one change */
        if (strcmp(last, path) != 0) tell(MODIFIED, path);
        snprintf(last, sizeof last, "%s", path);
        free(path);
        return true;
    }
    *last = 0;
    free(path);
    return true;
}

void do_watch(const char *path, bool recursive) {
    static char buffer[64 << 10] __attribute__((aligned(__alignof__(struct inotify_event))));
    notify_fd = inotify_init1(IN_CLOEXEC);
    if (notify_fd < 0) work_fail(errno == EMFILE ? EUSERS : errno, NULL);
    int error = watch_one(path, 0);
    if (error) work_fail(error, NULL);
    int root = table[0].wd;
    if (recursive) add_below(path, false);
    tell(READY, path);
    work_flush();
    for (;;) {
        ssize_t got = read(notify_fd, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) work_fail(errno, NULL);
        for (char *p = buffer; p < buffer + got;) {
            const struct inotify_event *e = (const struct inotify_event *)(void *)p;
            if (!handle(e, root, recursive)) return;
            p += sizeof *e + e->len;
        }
        work_flush();
    }
}

/* Process trees, read from /proc. */
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STOP_PASSES = 8 };
enum mark { UNKNOWN, INSIDE, OUTSIDE };

struct entry {
    pid_t pid, parent;
    enum mark mark;
    bool zombie;
};

struct table {
    struct entry *list;
    size_t count, room;
};

static int proc_fd = -1;

void tree_open(void) { proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC); }
int tree_proc_fd(void) { return proc_fd; }

static int by_pid(const void *a, const void *b) {
    pid_t x = ((const struct entry *)a)->pid, y = ((const struct entry *)b)->pid;
    return (x > y) - (x < y);
}

static struct entry *lookup(const struct table *t, pid_t pid) {
    struct entry key = {.pid = pid};
    return t->count ? bsearch(&key, t->list, t->count, sizeof *t->list, by_pid) : NULL;
}

/* Read one process's parent and state. False when it is gone. */
static bool read_stat(int proc, const char *name, struct entry *e) {
    char path[32], text[512];
    size_t length = strlen(name);
    if (length > 12) return false;
    memcpy(path, name, length);
    memcpy(path + length, "/stat", 6);
    int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return false;
    text[got] = 0;
    char *after = strrchr(text, ')'); /* the name before it may hold anything, even ") " */
    if (!after || after[1] != ' ' || !after[2] || after[3] != ' ') return false;
    e->zombie = after[2] == 'Z' || after[2] == 'X';
    e->parent = (pid_t)strtol(after + 4, NULL, 10);
    return true;
}

static void scan(struct table *t) {
    t->count = 0;
    /* an open of its own: the shared descriptor has one position for all who inherited it */
    int fd = openat(proc_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd >= 0) close(fd);
        return;
    }
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (d->d_name[0] < '1' || d->d_name[0] > '9') continue;
        if (t->count == t->room) {
            size_t room = t->room ? t->room * 2 : 64;
            struct entry *grown = realloc(t->list, room * sizeof *grown);
            if (!grown) break;
            t->list = grown;
            t->room = room;
        }
        struct entry *e = &t->list[t->count];
        *e = (struct entry){.pid = (pid_t)strtol(d->d_name, NULL, 10)};
        if (read_stat(dirfd(dir), d->d_name, e)) t->count++;
    }
    closedir(dir);
    if (t->count) qsort(t->list, t->count, sizeof *t->list, by_pid);
}

/* Decide for every entry whether it descends from `root`: walk up to the first known one, then mark the way. */
static void mark_all(struct table *t, pid_t root, const pid_t *skip, size_t skips) {
    for (size_t i = 0; i < skips; i++) {
        struct entry *e = lookup(t, skip[i]);
        if (e) e->mark = OUTSIDE;
    }
    for (size_t i = 0; i < t->count; i++) {
        enum mark mark = OUTSIDE;
        struct entry *e = &t->list[i];
        size_t steps = 0;
        for (; e && steps <= t->count; steps++) { /* bounded: pids reused while scanning could form a ring */
            if (e->mark != UNKNOWN) {
                mark = e->mark;
                break;
            }
            if (e->pid == root) break;
            if (e->parent == root) {
                mark = INSIDE;
                break;
            }
            e = lookup(t, e->parent);
        }
        for (e = &t->list[i]; e && e->mark == UNKNOWN && e->pid != root; e = lookup(t, e->parent))
            e->mark = mark;
    }
}

static size_t signal_marked(const struct table *t, int signum) {
    size_t hit = 0;
    for (size_t i = 0; i < t->count; i++) {
        if (t->list[i].mark != INSIDE || t->list[i].zombie) continue;
        hit++;
        if (signum) kill(t->list[i].pid, signum);
    }
    return hit;
}

size_t tree_signal(pid_t root, int signum, const pid_t *skip, size_t skips) {
    struct table t = {0};
    scan(&t);
    mark_all(&t, root, skip, skips);
    size_t hit = signal_marked(&t, signum);
    free(t.list);
    return hit;
}

size_t tree_kill(pid_t root, const pid_t *skip, size_t skips) {
    size_t before = 0;
    for (int pass = 0; pass < STOP_PASSES; pass++) { /* until a scan finds nobody new */
        size_t now = tree_signal(root, SIGSTOP, skip, skips);
        if (now <= before) break;
        before = now;
    }
    return tree_signal(root, SIGKILL, skip, skips);
}

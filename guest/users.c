/* Users and groups, read from the sandbox's own files without NSS. Runs in forked children only: the files are
 * the sandbox's, so whatever is wrong with them must not touch the agent. */
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_MAX_BYTES = 4 << 20, FIELDS = 7 };

/* A whole file as a string; NULL when it is missing or no regular file. */
static char *slurp(const char *path) {
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat st;
    if (fd < 0) return NULL;
    char *text = NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= FILE_MAX_BYTES) {
        size_t size = (size_t)st.st_size, used = 0;
        text = malloc(size + 1);
        while (text && used < size) {
            ssize_t got = read(fd, text + used, size - used);
            if (got <= 0) break;
            used += (size_t)got;
        }
        if (text) text[used] = 0;
    }
    close(fd);
    return text;
}

/* The next line of `*rest`, split at colons in place. The number of fields, -1 at the end. */
static int next_line(char **rest, char *field[FIELDS]) {
    if (!*rest || !**rest) return -1;
    char *line = *rest, *end = strchr(line, '\n');
    *rest = end ? end + 1 : NULL;
    if (end) *end = 0;
    int n = 0;
    for (char *p = line; n < FIELDS; n++) {
        field[n] = p;
        char *colon = strchr(p, ':');
        if (!colon) return n + 1;
        *colon = 0;
        p = colon + 1;
    }
    return n;
}

static bool number(const char *text, unsigned *out) {
    if (*text < '0' || *text > '9') return false;
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (*end || errno || value >= UINT32_MAX) return false; /* -1 means "leave as is" to the kernel */
    *out = (unsigned)value;
    return true;
}

static void copy(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from);
}

/* Fill in from the passwd entry with that name, or with that uid when `name` is NULL. */
static bool find_passwd(const char *name, uid_t uid, struct user *u) {
    char *text = slurp("/etc/passwd"), *rest = text, *f[FIELDS];
    bool found = false;
    for (int n; !found && (n = next_line(&rest, f)) >= 0;) {
        unsigned entry_uid, entry_gid;
        if (n < 6 || !number(f[2], &entry_uid) || !number(f[3], &entry_gid)) continue;
        if (name ? strcmp(f[0], name) != 0 : entry_uid != uid) continue;
        found = true;
        u->uid = entry_uid;
        u->gid = entry_gid;
        copy(u->name, sizeof u->name, f[0]);
        copy(u->home, sizeof u->home, f[5]);
        copy(u->shell, sizeof u->shell, n > 6 ? f[6] : "");
    }
    free(text);
    return found;
}

static bool find_group(const char *name, gid_t *gid) {
    char *text = slurp("/etc/group"), *rest = text, *f[FIELDS];
    bool found = false;
    for (int n; !found && (n = next_line(&rest, f)) >= 0;)
        found = n >= 3 && !strcmp(f[0], name) && number(f[2], gid);
    free(text);
    return found;
}

static bool is_member(char *members, const char *name) {
    for (char *one; (one = strsep(&members, ",")) != NULL;)
        if (!strcmp(one, name)) return true;
    return false;
}

static void find_groups(struct user *u) {
    u->groups[u->group_count++] = u->gid;
    if (!*u->name) return;
    char *text = slurp("/etc/group"), *rest = text, *f[FIELDS];
    for (int n; (n = next_line(&rest, f)) >= 0;) {
        unsigned gid;
        if (n < 4 || !number(f[2], &gid) || gid == u->gid || u->group_count >= MAX_GROUPS) continue;
        if (is_member(f[3], u->name)) u->groups[u->group_count++] = gid;
    }
    free(text);
}

int user_find(const char *spec, struct user *u) {
    char who[256];
    unsigned uid;
    memset(u, 0, sizeof *u);
    copy(who, sizeof who, spec ? spec : "");
    char *group = strchr(who, ':');
    if (group) *group++ = 0;
    if (!*who && group) return ENOENT;
    if (!*who) {
        u->uid = geteuid();
        u->gid = getegid();
        if (find_passwd(NULL, u->uid, u)) u->gid = getegid();
        else if (!u->uid) copy(u->name, sizeof u->name, "root"), copy(u->home, sizeof u->home, "/root");
    } else if (!find_passwd(who, 0, u)) {
        if (!number(who, &uid)) return ENOENT;
        if (!find_passwd(NULL, uid, u)) {
            if (!group && uid) return ENOENT; /* a uid nobody knows has no group either: it must be given */
            u->uid = uid;
        }
    }
    if (group) {
        unsigned gid;
        if (!number(group, &gid) && !find_group(group, &gid)) return ENOENT;
        u->gid = gid;
    }
    if (!*u->name && u->uid) snprintf(u->name, sizeof u->name, "%u", u->uid);
    if (!*u->home) copy(u->home, sizeof u->home, "/");
    if (!*u->shell) copy(u->shell, sizeof u->shell, "/bin/sh");
    find_groups(u);
    return 0;
}

int user_become(const struct user *u) {
    bool same = u->uid == geteuid() && u->gid == getegid();
    if (setgroups(u->group_count, u->groups) < 0) {
        /* a namespace with a single id forbids it; then only the user who is there already can be had */
        if (errno != EPERM || !same) return errno;
    }
    if (same) return 0;
    if (setresgid(u->gid, u->gid, u->gid) < 0 || setresuid(u->uid, u->uid, u->uid) < 0) return errno;
    return 0;
}

const char *user_name(uid_t uid) {
    static struct user u;
    static bool known;
    if (known && u.uid == uid) return u.name;
    if (!find_passwd(NULL, uid, &u)) snprintf(u.name, sizeof u.name, "%u", uid);
    u.uid = uid;
    known = true;
    return u.name;
}

const char *group_name(gid_t gid) {
    static char name[64];
    static gid_t of;
    if (*name && of == gid) return name;
    char *text = slurp("/etc/group"), *rest = text, *f[FIELDS];
    bool found = false;
    for (int n; !found && (n = next_line(&rest, f)) >= 0;) {
        unsigned entry;
        found = n >= 3 && number(f[2], &entry) && entry == gid;
    }
    if (found) copy(name, sizeof name, f[0]);
    else snprintf(name, sizeof name, "%u", gid);
    of = gid;
    free(text);
    return name;
}

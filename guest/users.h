/* Who a command runs as, by the sandbox's own /etc/passwd and /etc/group. */
#ifndef RUNRA_USERS_H
#define RUNRA_USERS_H

#include <sys/types.h>

enum { MAX_GROUPS = 256 };

struct user {
    uid_t uid;
    gid_t gid;
    gid_t groups[MAX_GROUPS];
    size_t group_count;
    char name[64], home[512], shell[256];
};

/* Look up a name, a uid, or user:group in names or numbers; "" is the agent's own user. 0 or ENOENT. */
int user_find(const char *spec, struct user *out);

/* Become that user for good. 0 or an errno. */
int user_become(const struct user *u);

/* The name of an id, or its digits. Cached; the result holds until the next call for the same kind. */
const char *user_name(uid_t uid);
const char *group_name(gid_t gid);

#endif

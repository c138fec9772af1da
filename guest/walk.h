/* Walking a folder tree of any depth, without following links and with one open descriptor. */
#ifndef RUNRA_WALK_H
#define RUNRA_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

struct visit {
    int dir;           /* open folder it is in */
    const char *name;
    const char *path;  /* from the root of the walk, no slash in front */
    struct stat st;    /* of the name itself; not filled in on leaving */
};

struct walk {
    size_t depth;         /* levels to go into; 1 is the root alone */
    bool skip_unreadable; /* leave out folders that may not be read, rather than fail */
    int (*enter)(void *context, const struct visit *v); /* every name; 0 or an errno that ends the walk */
    int (*leave)(void *context, const struct visit *v); /* a folder, after all in it; may be NULL */
    void *context;
};

/* Walk what is in the open folder `root`. 0 or an errno. */
int walk_tree(int root, const struct walk *w);

#endif

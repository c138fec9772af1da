/* Process trees: finding and signalling all descendants of a process. */
#ifndef RUNRA_TREE_H
#define RUNRA_TREE_H

#include <stddef.h>
#include <sys/types.h>

/* Keep /proc open from the start: what a sandbox mounts over it later does not matter then. */
void tree_open(void);
int tree_proc_fd(void);

/* Signal every living descendant of `root`, leaving out `skip` and what descends from it. How many there were. */
size_t tree_signal(pid_t root, int signum, const pid_t *skip, size_t skips);

/* One round of killing: stop all first so that none can fork away, then kill. How many there were. */
size_t tree_kill(pid_t root, const pid_t *skip, size_t skips);

#endif

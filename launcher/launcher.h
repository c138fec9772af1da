/* What the launcher's files share. */
#ifndef RUNRA_LAUNCHER_H
#define RUNRA_LAUNCHER_H

#include <stdbool.h>

#define WORDS_MAX 2048 /* 8 for each of 127 layers, and twice as many again for all else */
#define FDS_MAX 16
#define STAGE "/mnt" /* exists on every Linux (FHS 3.0, 3.12); hidden only in the sandbox's own mount namespace */

struct overlay {
    const char *target; /* where it is inside */
    const char *options;
};

/* Say what went wrong on the caller's error pipe, and end. */
_Noreturn void fail(const char *what, const char *value);

/* Turn this child into the sandbox's program; returns only on failure, having written why to descriptor 2. */
void stage_and_exec(char **words, const int *fds, int fd_count);

/* keeper.c: start ARGV in namespaces of its own (the network's may be there already), and stay as its keeper. `join`
 * brings the agent a socket when it has none, as it has from the start when it is `apart`. */
_Noreturn void keep_and_exec(const struct overlay *overlays, int count, char **argv, char **join, bool apart, int userns,
                             bool networked);

/* enter.c: run ARGV in the namespaces of another process, as their root, in a folder of ours (-1: in theirs); descriptors of both. */
_Noreturn void enter_and_exec(int process, int folder, char **argv);

/* network.c: move what a network namespace holds into a new one that the user namespace owns, and stay in that. */
void hand_over_network(int from, int userns);

#endif

/* What the launcher's two files share. */
#ifndef RUNRA_LAUNCHER_H
#define RUNRA_LAUNCHER_H

#include <stdbool.h>

#define WORDS_MAX 1024
#define FDS_MAX 16

/* Turn this child into the sandbox's program; returns only on failure, having written why to descriptor 2. */
void stage_and_exec(char **words, const int *fds, int fd_count);

#endif

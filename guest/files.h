/* File operations: each runs in a forked worker as the wanted user, and speaks over its stdio. */
#ifndef RUNRA_FILES_H
#define RUNRA_FILES_H

#include <stdbool.h>

#include "frames.h"

enum operation {
    OP_STAT = 1, OP_READ, OP_WRITE, OP_LIST, OP_MKDIR, OP_MOVE, OP_DELETE, OP_ARCHIVE_OUT, OP_ARCHIVE_IN, OP_WATCH,
};

enum { FLAG_RECURSIVE = 1, FLAG_PARENTS = 2, FLAG_SYNC = 4 };

bool files_known(int op);
bool files_reads_stdin(int op);

/* Be the worker; never returns. Success is exit code 0; a failure is 1, with the errno and a message on stderr. */
void files_main(const struct request *r, const int stdio[3]) __attribute__((noreturn));

#endif

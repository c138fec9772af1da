/* The worker behind every file operation: becoming the user, naming the path, reporting the end. */
#include "files.h"

#include <errno.h>
#include <unistd.h>

bool files_known(int op) { return op >= OP_STAT && op <= OP_WATCH; }
bool files_reads_stdin(int op) { return op == OP_WRITE || op == OP_ARCHIVE_IN; }

void files_main(const struct request *r, const int stdio[3]) {
    (void)r;
    (void)stdio;
    _exit(1);
}

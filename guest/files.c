/* The worker behind every file operation: becoming the user, naming the path, reporting the end. */
#include "files.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "shim.h"
#include "users.h"
#include "work.h"

bool files_known(int op) { return op >= OP_STAT && op <= OP_WATCH; }
bool files_reads_stdin(int op) { return op == OP_WRITE || op == OP_ARCHIVE_IN; }

/* A path from `cwd`, without empty and "." steps and without a slash at its end, which would follow a link. ".."
 * stays: only the kernel knows where a link's parent is. */
static char *absolute(const char *cwd, const char *path) {
    size_t room = strlen(path) + (cwd ? strlen(cwd) : 0) + 4;
    char *whole = malloc(room), *out = malloc(room);
    if (!whole || !out) work_fail(ENOMEM, NULL);
    *whole = 0;
    if (*path != '/') {
        strcat(whole, cwd ? cwd : "/");
        strcat(whole, "/");
    }
    strcat(whole, path);
    char *to = out, *rest = whole;
    for (char *step; (step = strsep(&rest, "/")) != NULL;) {
        if (!*step || !strcmp(step, ".")) continue;
        *to++ = '/';
        to = stpcpy(to, step);
    }
    if (to == out) *to++ = '/';
    *to = 0;
    free(whole);
    return out;
}

static void run(const struct request *r) {
    const char *given = request_text(r, T_PATH), *cwd = request_text(r, T_CWD), *target = request_text(r, T_TARGET);
    uint64_t flags = r->number[T_FLAGS];
    bool recursive = flags & FLAG_RECURSIVE;
    if (!*given || (target && !*target)) work_fail(ENOENT, "an empty path");
    char *path = absolute(cwd, given);
    switch ((enum operation)r->number[T_OP]) {
    case OP_STAT: do_stat(path); break;
    case OP_READ: do_read(path, r->number[T_OFFSET], request_has(r, T_LENGTH) ? r->number[T_LENGTH] : UINT64_MAX); break;
    case OP_WRITE: do_write(path, r); break;
    case OP_LIST: do_list(path, r->number[T_DEPTH]); break;
    case OP_MKDIR: do_mkdir(path, recursive); break;
    case OP_MOVE:
        if (!target) work_fail(EINVAL, "no target");
        do_move(path, absolute(cwd, target));
        break;
    case OP_DELETE: do_delete(path, recursive); break;
    case OP_ARCHIVE_OUT: do_archive_out(path); break;
    case OP_ARCHIVE_IN: do_archive_in(path); break;
    case OP_WATCH: do_watch(path, recursive); break;
    }
    free(path);
}

void files_main(const struct request *r, const int stdio[3]) {
    static struct user user;
    for (int i = 0; i < 3; i++)
        if (stdio[i] >= 0) dup2(stdio[i], i);
    close_range(3, INT_MAX, 0);
    exec_restore();
    signal(SIGPIPE, SIG_IGN);
    int error = user_find(request_text(r, T_USER), &user);
    if (!error) error = user_become(&user);
    if (error) work_fail_at(STAGE_USER, error, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* after the change of user, which clears it */
    run(r);
    work_flush();
    _exit(0);
}

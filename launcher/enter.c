/* Enter: run one of a wall's own tools among the processes of a sandbox that stands, as one of them.
 *
 * Whoever is in there may be hostile, so nothing of the host's comes along but the descriptors that were attached, and
 * from its first moment in there this process is nobody's to trace.
 */
#include "launcher.h"

#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

void enter_and_exec(int process, int folder, char **argv) {
    int kinds = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
    if (prctl(PR_SET_DUMPABLE, 0) < 0 || setgroups(0, NULL) < 0) fail("prepare", "process");
    if (setns(process, kinds) < 0) fail("enter", "namespaces");
    if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0) fail("become", "sandbox root");
    /* Numbers of processes are the sandbox's for children only. */
    pid_t tool = fork();
    if (tool < 0) fail("fork", argv[0]);
    if (tool == 0) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
            (folder < 0 ? chdir("/") : fchdir(folder)) < 0)
            fail("prepare", argv[0]);
        close_range(3, ~0U, 0);
        char *environment[] = {"PATH=/usr/bin:/bin", NULL};
        execve(argv[0], argv, environment);
        fail("exec", argv[0]);
    }
    int status = 0;
    while (waitpid(tool, &status, 0) != tool) {}
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

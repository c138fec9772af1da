/* The shim waits for its command and for all that descends from it, and passes on signals to the tree. */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tree.h"

enum { KILL_ROUNDS = 100, KILL_PAUSE_MS = 20 }; /* about two seconds */

static int control;
static pid_t group; /* the command's; 0 once it was reaped and its number may be another's */

static void tell(enum shim_kind kind, int32_t a, uint32_t b) {
    struct shim_message m = {.kind = (int32_t)kind, .a = a, .b = b};
    while (send(control, &m, sizeof m, MSG_NOSIGNAL) < 0 && errno == EINTR) {}
}

static int ascending(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* The shim must not hold the command's pipes, or they would never end. */
static void close_all_but(int *keep, size_t count) {
    unsigned from = 3;
    qsort(keep, count, sizeof *keep, ascending);
    for (size_t i = 0; i < count; i++) {
        if (keep[i] < 3) continue;
        unsigned fd = (unsigned)keep[i];
        if (fd > from) close_range(from, fd - 1, 0);
        from = fd + 1;
    }
    close_range(from, INT_MAX, 0);
}

/* Without a readable /proc at least the command's own process group can be had. */
static size_t signal_all(int signum) {
    size_t hit = signum == SIGKILL ? tree_kill(getpid(), NULL, 0) : tree_signal(getpid(), signum, NULL, 0);
    if (!hit && group > 0) hit = kill(-group, signum) == 0;
    return hit;
}

/* Take one message from the agent. False when the agent is gone. */
static bool take(bool *killing) {
    struct shim_message m;
    ssize_t got = recv(control, &m, sizeof m, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (got != sizeof m) return false;
    if (m.kind == SHIM_KILL) {
        *killing = true;
    } else if (m.kind == SHIM_SIGNAL) {
        tell(SHIM_SIGNALLED, signal_all(m.a) ? 0 : ESRCH, m.b);
        if (m.a == SIGKILL) *killing = true;
    }
    return true;
}

void shim_main(const struct shim_start *start) {
    control = start->control;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    /* vfork spares a copy of the page tables. The command's preparation then runs in this memory, which neither side
     * uses for anything else, and which nobody may trace: it is not dumpable. */
    pid_t command = vfork();
    if (command < 0) {
        tell(SHIM_FAILED, errno, STAGE_FORK);
        _exit(1);
    }
    if (command == 0) exec_main(start);
    group = command;
    prctl(PR_SET_NAME, "runra-shim");
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL); /* a "kill -TERM -1" inside is not meant for it */
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    int keep[] = {control, signals, tree_proc_fd()};
    close_all_but(keep, 3);

    bool ended = false, told = false, killing = false, agent = true;
    int status = 0;
    for (int rounds = 0;;) {
        int one;
        pid_t pid;
        while ((pid = waitpid(-1, &one, WNOHANG)) > 0)
            if (pid == command) {
                status = one;
                ended = true;
                group = 0;
            }
        bool none = pid < 0 && errno == ECHILD;
        if (ended && !told && (none || !killing)) {
            tell(SHIM_EXIT, status, 0);
            told = true;
        }
        if (none) _exit(0);
        if (killing) {
            signal_all(SIGKILL);
            if (++rounds >= KILL_ROUNDS) {
                if (!agent) _exit(1);
                killing = false; /* what is left cannot die now; the agent's own deadline takes over */
                rounds = 0;
            }
        }
        struct pollfd p[] = {{.fd = signals, .events = POLLIN}, {.fd = agent ? control : -1, .events = POLLIN}};
        /* without a signalfd (no descriptor left) children are looked for now and then */
        poll(p, 2, killing ? KILL_PAUSE_MS : signals < 0 ? 200 : -1);
        if (p[0].revents) {
            struct signalfd_siginfo info;
            while (read(signals, &info, sizeof info) > 0) {}
        }
        if (p[1].revents && !take(&killing)) {
            agent = false;
            killing = true;
        }
    }
}

/* runra-agent: process 1 of a sandbox. Runs what the host asks for over a socket it was handed, and outlives it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "conn.h"
#include "join.h"
#include "loop.h"
#include "proc.h"
#include "shim.h"
#include "tree.h"

static void die(const char *what) {
    dprintf(2, "runra-agent: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void on_children(struct watch *w, uint32_t events) {
    struct signalfd_siginfo info;
    (void)events;
    while (read(w->fd, &info, sizeof info) > 0) {}
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) proc_reaped(pid, status);
}

/* Where connections come from: a listening socket, or one over which somebody else hands them to us. */
static int given_fd(int argc, char **argv, bool *handed) {
    int fd = -1, accepts = 0, kind = 0;
    socklen_t size = sizeof accepts;
    char *end = NULL;
    *handed = argc >= 3 && !strcmp(argv[1], "--pass-fd");
    if (*handed || (argc >= 3 && !strcmp(argv[1], "--listen-fd"))) fd = (int)strtol(argv[2], &end, 10);
    bool fine = fd >= 0 && !*end && (argc == 3 || (argc == 5 && !strcmp(argv[3], "--max-commands")));
    if (fine && argc == 5) fine = proc_limit(strtol(argv[4], &end, 10)) && !*end;
    if (fine && *handed)
        fine = getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 && kind == SOCK_STREAM;
    else if (fine)
        fine = fd > 2 && getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &size) == 0 && accepts;
    if (!fine) {
        dprintf(2, "usage: runra-agent --listen-fd N [--max-commands M], a listening Unix socket, N above 2\n"
                   "       runra-agent --pass-fd N [--max-commands M], a Unix stream socket that passes connections\n");
        exit(2);
    }
    if (fd < 3) { /* standard input, say, where a wall can be given nothing else */
        int moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
        fd = moved;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

int main(int argc, char **argv) {
    static struct watch children;
    bool handed;
    if (argc == 2 && !strcmp(argv[1], "--sync")) { /* for the host, in walls that keep writes to themselves */
        sync();
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "--join")) return join_main(argv[2]); /* for the host as well */
    int fd = given_fd(argc, argv, &handed);
    for (int i = 0; i < 3; i++) /* so that no pipe ever lands on 0, 1 or 2 */
        if (fcntl(i, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0) die("/dev/null");
    close_range(3, (unsigned)fd - 1, 0);
    close_range((unsigned)fd + 1, INT_MAX, 0); /* not ~0u: to gVisor a descriptor is an int, and this would be -1 */
    prctl(PR_SET_DUMPABLE, 0);
    if (getpid() != 1 && prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) die("subreaper");
    if (chdir("/") < 0) die("/");
    umask(022);
    /* fixed thresholds: freed buffers go back to the kernel instead of teaching malloc to keep more */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    mallopt(M_TRIM_THRESHOLD, 256 << 10);
    mallopt(M_TOP_PAD, 16 << 10);

    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);
    /* Linux keeps signals without a handler from process 1; gVisor's kernel does not. Commands get the usual ones back. */
    for (int number = 1; getpid() == 1 && number < SIGRTMIN; number++)
        if (number != SIGCHLD) signal(number, SIG_IGN);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) die("signals");
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0 || loop_open() < 0) die("event loop");
    if (watch_open(&children, signals, EPOLLIN, on_children) < 0) die("signals");
    exec_prepare();
    tree_open();
    stdio_init();
    if (conn_listen(fd, handed) < 0) die("listening socket");
    loop_run(conn_flush);
}

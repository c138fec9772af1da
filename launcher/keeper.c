/* Keeper: process 1 of a pid namespace around a wall that is several processes (gVisor: its kernel, its file server).
 *
 * It makes the namespaces and mounts such a wall needs, all of them owned by the sandbox's user namespace, starts it,
 * and stays: whoever kills the keeper has killed all of the sandbox, and it ends by itself when the wall's own process
 * does. Connections to the sandbox's socket are accepted here and handed to the agent over a socket pair that is the
 * agent's standard input, because this wall cannot be given a listening socket. An agent that let go of that, to be
 * saved, is brought another with the next connection, by a program that the wall starts inside (`join`). The keeper
 * reads nothing that comes from the sandbox.
 *
 * Descriptors as laid out: 2 the wall's errors, 3 the report, 4 the listening socket, then the user namespace.
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REPORT_FD = 3, LISTEN_FD = 4 };

#define STATE STAGE "/state" /* what the wall keeps of itself; in memory, and gone with its mount namespace */
#define ROOT STAGE "/root"

/* Mount an overlay below ROOT. What lies there comes from an image: a link on the way is refused, not followed. */
static void mount_overlay(const char *target, const char *options) {
    int root = open(ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    const char *below = target + strspn(target, "/");
    int point = (int)syscall(SYS_openat2, root, *below ? below : ".", &how, sizeof how);
    if (root < 0 || point < 0) fail("open", target);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", point);
    if (mount("overlay", path, "overlay", MS_NOSUID | MS_NODEV, options) < 0) fail("overlay", target);
    close(point);
    close(root);
}

static void enter_namespaces(int userns, bool networked) {
    if (setns(userns, CLONE_NEWUSER) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
        fail("enter", "user namespace");
    close(userns);
    int kinds = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWPID;
    if (unshare(networked ? kinds : kinds | CLONE_NEWNET) < 0) fail("make", "namespaces");
}

static void make_mounts(const struct overlay *overlays, int count) {
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) fail("make private", "/");
    for (int i = 0; i < count; i++) mount_overlay(overlays[i].target, overlays[i].options);
    if (mount("state", STATE, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700,size=8m") < 0)
        fail("mount", STATE);
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0) fail("mount", "/proc");
    /* runsc of 2022 takes a network namespace in which rmem_default exists for the host's own, and refuses to use it;
     * on newer kernels it exists in all of them. */
    if (mount("none", "/proc/sys/net/core", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k") < 0)
        fail("cover", "/proc/sys/net/core");
}

/* Run a program of the wall's with this as its standard input; -1 for nothing new. */
static pid_t start(char **argv, int input) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (input >= 0 && dup2(input, STDIN_FILENO) < 0) fail("lay out", "descriptors");
    close_range(3, ~0U, 0);
    char *environment[] = {"PATH=/usr/bin:/bin", NULL};
    execve(argv[0], argv, environment);
    fail("exec", argv[0]);
}

/* The wall's starter is a child that ends when the wall stands; the wall itself is then ours to reap. */
static pid_t start_wall(char **argv, int agent_end) {
    pid_t starter = start(argv, agent_end);
    if (starter < 0) fail("fork", argv[0]);
    int status = 0;
    for (pid_t pid; (pid = waitpid(-1, &status, 0)) != starter;)
        if (pid < 0 && errno != EINTR) fail("wait for", argv[0]);
    if (status != 0) {
        errno = EIO;
        fail("start", argv[0]);
    }
    char text[16] = "";
    int fd = open(STATE "/pid", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0) fail("read", STATE "/pid");
    close(fd);
    return (pid_t)strtol(text, NULL, 10);
}

/* From here on the keeper only hands on descriptors: nothing else is left to it. */
static void drop_all(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_NAME, "runra-keeper");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(SYS_capset, &header, none) < 0)
        fail("drop", "capabilities");
}

/* Hand a connection to the agent. False when it holds the other end no more. */
static bool hand_over(int agent, int fd) {
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec byte = {.iov_base = "c", .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &byte, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *item = CMSG_FIRSTHDR(&message);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(item), &fd, sizeof fd);
    /* An agent that takes none of them must not hold us up: then the caller is hung up on. */
    ssize_t sent;
    while ((sent = sendmsg(agent, &message, MSG_NOSIGNAL | MSG_DONTWAIT)) < 0 && errno == EINTR) {}
    return sent >= 0 || errno == EAGAIN;
}

/* Bring the agent another socket. What is handed over before it has come waits in it, and is lost with it if it never
 * does: then the caller is hung up on, and the next one makes us try again. */
static int bring_another(char **join) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return -1;
    pid_t pid = start(join, pair[1]);
    close(pair[1]);
    if (pid > 0) return pair[0];
    close(pair[0]);
    return -1;
}

static void connect_agent(int *agent, char **join) {
    int fd = accept4(LISTEN_FD, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    if (*agent < 0 || !hand_over(*agent, fd)) {
        close(*agent);
        *agent = bring_another(join);
        if (*agent >= 0) hand_over(*agent, fd);
    }
    close(fd);
}

static _Noreturn void serve(pid_t wall, int agent, char **join, int signals) {
    for (;;) {
        struct pollfd ready[] = {{.fd = LISTEN_FD, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0 && errno != EINTR) _exit(1);
        if (ready[1].revents) {
            struct signalfd_siginfo info;
            while (read(signals, &info, sizeof info) > 0) {}
            for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
                if (pid == wall) _exit(0); /* and with process 1 everything else in here ends */
        }
        if (ready[0].revents) connect_agent(&agent, join);
    }
}

static _Noreturn void run_keeper(const struct overlay *overlays, int count, char **argv, char **join, bool apart,
                                 int ready) {
    int pair[2] = {-1, -1};
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigprocmask(SIG_BLOCK, &watched, NULL); /* before there is anybody whose end could be missed */
    make_mounts(overlays, count);
    if (!apart && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) fail("make", "socket pair");
    pid_t wall = start_wall(argv, pair[1]);
    if (!apart) close(pair[1]);
    int signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0 || fcntl(LISTEN_FD, F_SETFL, O_NONBLOCK) < 0) fail("watch", "the wall");
    drop_all();
    if (kill(wall, 0) < 0 || write(ready, "r", 1) != 1) fail("keep", "the wall");
    close(ready);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 4; fd++)
        if (dup2(null, fd) < 0) fail("lay out", "descriptors");
    serve(wall, pair[0], join, signals);
}

void keep_and_exec(const struct overlay *overlays, int count, char **argv, char **join, bool apart, int userns,
                   bool networked) {
    int ready[2];
    if (pipe2(ready, O_CLOEXEC) < 0) fail("pipe", "keeper");
    fcntl(REPORT_FD, F_SETFD, FD_CLOEXEC);
    enter_namespaces(userns, networked);
    pid_t keeper = fork();
    if (keeper < 0) fail("fork", "keeper");
    if (keeper == 0) {
        close(ready[0]);
        run_keeper(overlays, count, argv, join, apart, ready[1]);
    }
    close(ready[1]);
    char byte;
    if (read(ready[0], &byte, 1) != 1) _exit(126); /* it wrote the reason */
    dprintf(REPORT_FD, "{\"child-pid\": %d}\n", (int)keeper);
    _exit(0);
}

/* runra-launcher: the small process that starts sandboxes, so that the big Python server never forks.
 *
 * It reads requests from a SOCK_SEQPACKET socket (its standard input) and answers there. It keeps no state that
 * matters: when its server goes away it exits, and what it started lives on. See stage.c for what a spawn does.
 *
 *   request   spawn ID KEY VALUE… -- ARGV…   NUL-terminated words; descriptors come along as SCM_RIGHTS
 *             remove ID PATH                 delete a tree, whatever its depth, on one file system
 *   answer    spawned ID PID | failed ID ERRNO | exit PID STATUS      (STATUS as waitpid gives it)
 *
 * Every request is answered; one that cannot be taken, with `failed`.
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define REQUEST_MAX (256 * 1024)
#define ANSWER_MAX 128

static const int link_fd = STDIN_FILENO;

static void answer(const char *text) {
    /* SO_SNDTIMEO bounds this; a server that reads nothing for so long is as good as gone. */
    if (send(link_fd, text, strlen(text), MSG_NOSIGNAL) < 0) exit(0);
}

/* Child: everything inherited from the loop is reset before the real work. */
static void child_reset(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid(); /* a Ctrl-C at the server's terminal is not for the sandboxes */
}

static void run_remove(const char *path) {
    child_reset();
    /* Without root, folders that the sandbox closed to their owner must be opened before they can be emptied. */
    static const char script[] =
        "rm -rf --one-file-system -- \"$1\" 2>/dev/null && exit; "
        "chmod -R u+rwX -- \"$1\"; exec rm -rf --one-file-system -- \"$1\"";
    execlp("sh", "sh", "-c", script, "sh", path, (char *)NULL);
    _exit(127);
}

/* Cut a request, which ends with a NUL, into its words. Returns their count; beyond `limit` they are only counted. */
static int split(char *text, size_t length, char **words, int limit) {
    int count = 0;
    for (size_t at = 0; at < length; at += strlen(text + at) + 1, count++)
        if (count < limit) words[count] = text + at;
    words[count < limit ? count : limit] = NULL;
    return count;
}

/* Do what a request says, in a child. Returns its pid, or -1 with errno set. */
static pid_t begin(char **words, int count, const int *fds, int fd_count) {
    bool spawn = count > 2 && strcmp(words[0], "spawn") == 0;
    if (!spawn && !(count == 3 && strcmp(words[0], "remove") == 0)) {
        errno = EBADMSG;
        return -1;
    }
    pid_t pid = fork();
    if (pid != 0) return pid;
    if (!spawn) run_remove(words[2]);
    child_reset();
    stage_and_exec(words + 2, fds, fd_count);
    _exit(127); /* stage_and_exec wrote the reason to the caller's error pipe */
}

/* `whole` is false for a request of which something did not fit. */
static void handle(char *text, size_t length, bool whole, const int *fds, int fd_count) {
    static char *words[WORDS_MAX + 1];
    text[length] = '\0';
    int count = split(text, length, words, WORDS_MAX);
    pid_t pid = -1;
    if (!whole)
        errno = EMSGSIZE;
    else if (count > WORDS_MAX)
        errno = E2BIG;
    else
        pid = begin(words, count, fds, fd_count);
    char reply[ANSWER_MAX];
    snprintf(reply, sizeof reply, pid < 0 ? "failed %.40s %d" : "spawned %.40s %d", count > 1 ? words[1] : "-",
             pid < 0 ? errno : (int)pid);
    answer(reply);
}

static void receive(void) {
    static char text[REQUEST_MAX + 1]; /* and a NUL of ours */
    char control[CMSG_SPACE(sizeof(int) * FDS_MAX)];
    struct iovec part = {.iov_base = text, .iov_len = REQUEST_MAX};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(link_fd, &message, MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (got <= 0) exit(0);
    int fds[FDS_MAX];
    int fd_count = 0;
    for (struct cmsghdr *item = CMSG_FIRSTHDR(&message); item; item = CMSG_NXTHDR(&message, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
        size_t bytes = item->cmsg_len - CMSG_LEN(0);
        memcpy(fds, CMSG_DATA(item), bytes);
        fd_count = (int)(bytes / sizeof(int));
    }
    handle(text, (size_t)got, !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)), fds, fd_count);
    for (int i = 0; i < fd_count; i++) close(fds[i]);
}

static void reap(int signal_fd) {
    struct signalfd_siginfo info;
    if (read(signal_fd, &info, sizeof info) < 0) return;
    int status = 0;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        char reply[ANSWER_MAX];
        snprintf(reply, sizeof reply, "exit %d %d", (int)pid, status);
        answer(reply);
    }
}

int main(void) {
    close_range(3, ~0U, 0); /* whatever the server's parent left open is no business of a sandbox */
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    int signal_fd = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    struct timeval patience = {.tv_sec = 10};
    if (signal_fd < 0 || setsockopt(link_fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0) {
        perror("runra-launcher");
        return 1;
    }
    fcntl(link_fd, F_SETFD, FD_CLOEXEC);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* a killed wall's orphans are reaped here, not left to the machine's init */
    for (;;) {
        struct pollfd ready[] = {{.fd = link_fd, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0 && errno != EINTR) return 1;
        if (ready[1].revents) reap(signal_fd);
        if (ready[0].revents) receive();
    }
}

/* Starting processes: pipes or a terminal, then the fork. Whatever fails leaves nothing behind. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "files.h"
#include "proc.h"
#include "shim.h"

/* The six ends of a process's stdio: 0–2 its own, 3–5 the agent's; 6 and 7 the two ends of the control socket. */
struct ends {
    int fd[8];
};

static void close_range_of(struct ends *e, int from, int to) {
    for (int i = from; i <= to; i++) {
        if (e->fd[i] >= 0) close(e->fd[i]);
        e->fd[i] = -1;
    }
}

static int make_pipe(struct ends *e, int i) {
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) < 0) return -1;
    bool input = i == 0;
    e->fd[i] = pair[input ? 0 : 1];
    e->fd[3 + i] = pair[input ? 1 : 0];
    return fcntl(e->fd[3 + i], F_SETFL, O_NONBLOCK);
}

/* The terminal's other end. By ioctl, not by name: what /dev/pts shows is the sandbox's business. Only a kernel without
 * that (gVisor) is asked by name. */
static int open_peer(int master) {
    int fd = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0 || errno != ENOTTY) return fd;
    unsigned number;
    char path[32];
    if (ioctl(master, TIOCGPTN, &number) < 0) return -1;
    snprintf(path, sizeof path, "/dev/pts/%u", number);
    fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || isatty(fd)) return fd;
    close(fd);
    errno = ENXIO;
    return -1;
}

static int make_terminal(struct ends *e, const struct request *r) {
    struct winsize size = {.ws_row = (unsigned short)r->number[T_ROWS], .ws_col = (unsigned short)r->number[T_COLS]};
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK), unlock = 0;
    if (master < 0) return -1;
    e->fd[4] = master;
    if (ioctl(master, TIOCSPTLCK, &unlock) < 0 || ioctl(master, TIOCSWINSZ, &size) < 0) return -1;
    for (int i = 0; i < 3; i++) {
        e->fd[i] = i ? fcntl(e->fd[0], F_DUPFD_CLOEXEC, 3) : open_peer(master);
        if (e->fd[i] < 0) return -1;
    }
    e->fd[3] = fcntl(master, F_DUPFD_CLOEXEC, 3);
    return e->fd[3] < 0 ? -1 : 0;
}

/* Give the agent's ends to the process. On failure the ones not yet given stay in `e`. */
static int adopt(struct proc *p, struct ends *e) {
    struct {
        struct watch *watch;
        int end;
        uint32_t events;
        void (*ready)(struct watch *, uint32_t);
    } all[] = {
        {&p->in.watch, 3, 0, stdin_ready},
        {&p->out[0].watch, 4, EPOLLIN, output_ready},
        {&p->out[1].watch, 5, EPOLLIN, output_ready},
        {&p->control, 6, EPOLLIN, proc_on_control},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int *fd = &e->fd[all[i].end];
        if (*fd < 0) continue;
        if (watch_open(all[i].watch, *fd, all[i].events, all[i].ready) < 0) return -1;
        *fd = -1;
    }
    for (int i = 0; i < 2; i++) p->out[i].done = p->out[i].watch.fd < 0;
    return 0;
}

static int give_up(struct proc *p, struct ends *e, int error) {
    close_range_of(e, 0, 7);
    if (p) proc_free(p);
    return error;
}

int proc_start(uint32_t stream, const struct request *r, enum stage *stage) {
    struct ends e = {{-1, -1, -1, -1, -1, -1, -1, -1}};
    bool pty = request_has(r, T_ROWS);
    *stage = STAGE_LIMIT;
    if (proc_limit_reached()) return EAGAIN;
    struct proc *p = proc_new(r);
    *stage = STAGE_FORK;
    if (!p) return ENOMEM;
    p->pty = pty;
    bool fine = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, e.fd + 6) == 0;
    if (fine && pty) {
        fine = make_terminal(&e, r) == 0;
        if (!fine) *stage = STAGE_PTY;
    } else if (fine) {
        fine = make_pipe(&e, 1) == 0 && make_pipe(&e, 2) == 0;
        if (fine && r->number[T_STDIN]) fine = make_pipe(&e, 0) == 0;
    }
    if (!fine) return give_up(p, &e, errno);
    struct shim_start start = {.request = r, .stdio = {e.fd[0], e.fd[1], e.fd[2]}, .control = e.fd[7]};
    pid_t child = fork();
    if (child < 0) return give_up(p, &e, errno);
    if (child == 0) shim_main(&start);
    p->child = child;
    close_range_of(&e, 0, 2);
    close_range_of(&e, 7, 7);
    /* should the loop refuse, the closed control socket tells the shim to end its tree */
    if (adopt(p, &e) < 0) return give_up(p, &e, errno);
    proc_attach(p, stream, 0, r->number[T_WINDOW]);
    return 0;
}

int proc_start_work(uint32_t stream, const struct request *r, enum stage *stage) {
    struct ends e = {{-1, -1, -1, -1, -1, -1, -1, -1}};
    *stage = STAGE_LIMIT;
    if (proc_limit_reached()) return EAGAIN;
    struct proc *p = proc_new(r);
    *stage = STAGE_FORK;
    if (!p) return ENOMEM;
    p->work = true;
    bool fine = make_pipe(&e, 1) == 0 && make_pipe(&e, 2) == 0;
    if (fine && files_reads_stdin((int)r->number[T_OP])) fine = make_pipe(&e, 0) == 0;
    if (!fine) return give_up(p, &e, errno);
    int stdio[] = {e.fd[0], e.fd[1], e.fd[2]};
    pid_t child = fork();
    if (child < 0) return give_up(p, &e, errno);
    if (child == 0) files_main(r, stdio);
    close_range_of(&e, 0, 2);
    if (adopt(p, &e) < 0) return give_up(p, &e, errno); /* its pipes are closed: the worker ends by itself */
    p->child = child;
    p->pid = child;
    p->state = P_RUNNING;
    proc_attach(p, stream, 0, r->number[T_WINDOW]);
    return 0;
}

/* From a request to a running program: user, folder, environment, and the shell's own exit codes on failure. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"
#include "users.h"

enum {
    LONGEST_ARGUMENT = 131071, /* the kernel's MAX_ARG_STRLEN, less the NUL */
    SCRIPT_FD = 9,             /* one digit: dash knows no others in a redirection */
    OOM_HANDICAP = 100,        /* when memory runs out, the agent must not be the one to go */
};

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static struct rlimit files_limit;

void exec_prepare(void) {
    getrlimit(RLIMIT_NOFILE, &files_limit);
    struct rlimit most = {.rlim_cur = files_limit.rlim_max, .rlim_max = files_limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &most);
}

/* By system call: the C library leaves its own two signals (32 and 33) as they were inherited, and a parent like
 * make(1) hands them on as ignored. */
static void default_signals(void) {
    static const struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } usual;
    for (int number = 1; number <= 64; number++) syscall(SYS_rt_sigaction, number, &usual, NULL, sizeof usual.mask);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &usual.mask, NULL, sizeof usual.mask);
}

void exec_restore(void) {
    default_signals();
    setrlimit(RLIMIT_NOFILE, &files_limit);
    umask(022);
}

static void fail(const struct shim_start *start, int error, enum stage stage) {
    struct shim_message m = {.kind = SHIM_FAILED, .a = error, .b = (uint32_t)stage};
    send(start->control, &m, sizeof m, MSG_NOSIGNAL);
    _exit(1);
}

static void prefer_for_oom(void) {
    char text[16];
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t got = read(fd, text, sizeof text - 1);
    if (got > 0) {
        text[got] = 0;
        long score = strtol(text, NULL, 10) + OOM_HANDICAP;
        int length = snprintf(text, sizeof text, "%ld", score > 1000 ? 1000 : score);
        if (write(fd, text, (size_t)length) < 0) { /* not allowed here: nothing lost */
        }
    }
    close(fd);
}

static bool has(char *const *env, const char *name) {
    size_t length = strlen(name);
    for (; env && *env; env++)
        if (!strncmp(*env, name, length) && (*env)[length] == '=') return true;
    return false;
}

/* What the host sent, and the defaults it left open. NULL when out of memory. */
static char **environment(const struct request *r, const struct user *u, bool pty) {
    char **all = calloc(r->envc + 8, sizeof *all);
    if (!all) return NULL;
    size_t n = 0;
    for (; n < r->envc; n++) all[n] = (char *)(uintptr_t)r->env[n];
    const char *const defaults[][2] = {{"HOME", u->home}, {"USER", u->name}, {"LOGNAME", u->name}, {"SHELL", u->shell},
                                       {"PATH", DEFAULT_PATH}, {"TERM", pty ? "xterm-256color" : NULL}};
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++) {
        if (!defaults[i][1] || has(all, defaults[i][0])) continue;
        if (asprintf(&all[n], "%s=%s", defaults[i][0], defaults[i][1]) < 0) return NULL;
        n++;
    }
    return all;
}

/* Put a command too long for one argument into memory and return a short one that reads it. */
static const char *as_script(const char *command, size_t length) {
    static const char hide[] = "exec 9<&-;"; /* the program must not inherit the script */
    int fd = memfd_create("command", MFD_CLOEXEC);
    if (fd < 0) return NULL;
    const char *parts[] = {hide, command, "\n"};
    size_t sizes[] = {sizeof hide - 1, length, 1};
    for (int i = 0; i < 3; i++)
        for (size_t done = 0; done < sizes[i];) {
            ssize_t put = write(fd, parts[i] + done, sizes[i] - done);
            if (put <= 0) return NULL;
            done += (size_t)put;
        }
    if (fd == SCRIPT_FD ? fcntl(fd, F_SETFD, 0) < 0 : dup2(fd, SCRIPT_FD) < 0) return NULL;
    return ". /proc/self/fd/9";
}

static void complain(const char *what, const char *why) {
    char line[512];
    int length = snprintf(line, sizeof line, "runra: %.400s: %s\n", what, why);
    if (length > 0 && write(2, line, (size_t)length) < 0) { /* nobody listens: the exit code says it */
    }
}

static int code_of(int error) { return error == ENOENT || error == ENOTDIR ? 127 : 126; }

static void run_shell(const char *command) {
    static const char *const shells[] = {"/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "bash", "/bin/sh", "sh"};
    size_t length = strlen(command);
    if (length > LONGEST_ARGUMENT && !(command = as_script(command, length))) {
        complain("command", strerror(errno));
        _exit(126);
    }
    int error = ENOENT;
    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++) {
        const char *name = strrchr(shells[i], '/');
        execlp(shells[i], name ? name + 1 : shells[i], "-c", command, (char *)NULL);
        if (errno != ENOENT && errno != ENOTDIR) error = errno;
    }
    complain("no shell (bash, sh)", strerror(error));
    _exit(code_of(error));
}

static void run_program(const struct request *r) {
    char **argv = (char **)(uintptr_t)r->argv;
    if (!**argv) errno = ENOENT;
    else execvp(argv[0], argv);
    int error = errno;
    complain(argv[0], error == ENOENT && !strchr(argv[0], '/') ? "command not found" : strerror(error));
    _exit(code_of(error));
}

void exec_main(const struct shim_start *start) {
    const struct request *r = start->request;
    bool pty = request_has(r, T_ROWS);
    static struct user user;
    setsid();
    if (pty) ioctl(start->stdio[0], TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++) {
        int fd = start->stdio[i];
        if (fd < 0) fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (fd < 0 || dup2(fd, i) < 0) fail(start, errno, STAGE_FORK);
    }
    int error = user_find(request_text(r, T_USER), &user);
    if (error) fail(start, error, STAGE_USER);
    prefer_for_oom();
    if (user.uid != geteuid()) {
        /* /dev/stdout and the terminal must open for the user who got them */
        for (int i = 0; i < 3; i++)
            if (start->stdio[i] >= 0 && fchown(i, user.uid, (gid_t)-1) < 0) continue;
    }
    environ = environment(r, &user, pty);
    if (!environ) fail(start, ENOMEM, STAGE_FORK);
    if ((error = user_become(&user)) != 0) fail(start, error, STAGE_USER);
    const char *cwd = request_text(r, T_CWD);
    if (cwd && chdir(cwd) < 0) fail(start, errno, STAGE_CWD);
    exec_restore();
    struct shim_message m = {.kind = SHIM_READY, .a = getpid()};
    send(start->control, &m, sizeof m, MSG_NOSIGNAL);
    /* all is close-on-exec by making; this covers what a kernel or a parent may have left open */
    close_range(3, INT_MAX, CLOSE_RANGE_CLOEXEC);
    if (request_text(r, T_COMMAND)) run_shell(request_text(r, T_COMMAND));
    run_program(r);
    _exit(127);
}

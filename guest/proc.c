/* The table of processes: starting, ending, remembering, and who reads which. */
#include "proc.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "conn.h"
#include "shim.h"
#include "tree.h"

enum { HASH = 64, SWEEPS = 40, SWEEP_MS = 50 };

static TAILQ_HEAD(proc_list_head, proc) all = TAILQ_HEAD_INITIALIZER(all); /* finished ones at the end, in the order they ended */
static struct proc *by_stream[HASH];

struct proc *proc_new(const struct request *r) {
    struct proc *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    const char *title = request_text(r, T_TITLE), *tag = request_text(r, T_TAG);
    p->title = strndup(title ? title : "", TITLE_MAX);
    p->tag = strndup(tag ? tag : "", TAG_MAX);
    p->control.fd = p->in.watch.fd = p->out[0].watch.fd = p->out[1].watch.fd = -1;
    p->out[0].proc = p->out[1].proc = p;
    p->timeout_ms = r->number[T_TIMEOUT_MS];
    p->started_wall = wall_ms();
    p->started_at = now_ms();
    TAILQ_INSERT_HEAD(&all, p, all);
    if (p->title && p->tag) return p;
    proc_free(p);
    return NULL;
}

static void unhash(struct proc *p) {
    struct proc **at = &by_stream[p->stream % HASH];
    while (*at && *at != p) at = &(*at)->same_hash;
    if (*at) *at = p->same_hash;
    p->stream = 0;
}

void proc_free(struct proc *p) {
    if (p->stream) unhash(p);
    proc_unready(p);
    timer_stop(&p->timer);
    watch_close(&p->control);
    watch_close(&p->out[0].watch);
    watch_close(&p->out[1].watch);
    watch_close(&p->in.watch);
    free(p->in.data);
    buffer_free(&p->buffer);
    free(p->title);
    free(p->tag);
    TAILQ_REMOVE(&all, p, all);
    free(p);
}

struct proc *proc_by_stream(uint32_t stream) {
    struct proc *p = by_stream[stream % HASH];
    while (p && p->stream != stream) p = p->same_hash;
    return p;
}

struct proc *proc_by_pid(uint64_t pid) {
    struct proc *p;
    TAILQ_FOREACH(p, &all, all)
        if (!p->work && p->pid > 0 && (uint64_t)p->pid == pid) return p;
    return NULL;
}

struct proc *proc_by_tag(const char *tag) {
    struct proc *p;
    TAILQ_FOREACH(p, &all, all)
        if (!p->work && p->state != P_FAILED && !strcmp(p->tag, tag)) return p;
    return NULL;
}

static bool over(const struct proc *p) { return p->state == P_FINISHED && p->control.fd < 0; }

static size_t live_max = LIVE_MAX;

bool proc_limit(long most) {
    if (most < 1 || most > LIVE_MAX) return false;
    live_max = (size_t)most;
    return true;
}

const char *proc_limit_words(void) {
    static char words[64];
    snprintf(words, sizeof words, "%zu commands and file operations run at once, its most", live_max);
    return words;
}

bool proc_limit_reached(void) {
    size_t live = 0;
    struct proc *p;
    TAILQ_FOREACH(p, &all, all) live += !over(p);
    return live >= live_max;
}

/* Forget what is beyond the bounds, oldest first. */
static void forget_old(void) {
    size_t count = 0, bytes = 0;
    struct proc *p, *older;
    for (p = TAILQ_LAST(&all, proc_list_head); p; p = older) {
        older = TAILQ_PREV(p, proc_list_head, all);
        if (p->state != P_FINISHED) continue;
        bytes += p->buffer.size;
        count += over(p);
        if (p->stream) continue;
        if (over(p) && count > REMEMBERED_MAX) proc_free(p);
        else if (bytes > REMEMBERED_BYTES) buffer_free(&p->buffer);
    }
}

/* --- readers --- */

static void tell_started(struct proc *p) {
    uint8_t room[2048];
    struct fields f = {.at = room, .room = sizeof room};
    put_number(&f, T_PID, (uint64_t)p->pid);
    put_number(&f, T_STARTED_AT, (uint64_t)p->started_wall);
    put_number(&f, T_REUSED, p->reused);
    put_number(&f, T_OFFSET, p->sent);
    if (p->in.watch.fd >= 0 && !p->in.ending) put_number(&f, T_WINDOW, p->in.credit);
    put_text(&f, T_TITLE, p->title);
    conn_send(A_STARTED, p->stream, room, f.used);
}

void proc_attach(struct proc *p, uint32_t stream, uint64_t offset, uint64_t window) {
    if (p->stream) {
        uint32_t old = p->stream;
        unhash(p);
        conn_error(old, EBUSY, STAGE_TAKEN, "another reader took over");
    }
    p->stream = stream;
    p->same_hash = by_stream[stream % HASH];
    by_stream[stream % HASH] = p;
    if (offset < p->buffer.start) offset = p->buffer.start;
    if (offset > p->buffer.end) offset = p->buffer.end;
    p->sent = p->acked = offset;
    p->limit = offset + window;
    p->in.credit = STDIN_WINDOW - (uint32_t)(p->in.used - p->in.at);
    p->in.owed = 0;
    if (p->state != P_STARTING) tell_started(p);
    proc_mark_ready(p);
}

static void overdue_work(struct timer *t) {
    struct proc *p = OWNER(t, struct proc, timer);
    if (p->child) kill(p->child, SIGKILL);
}

/* Stop file work. Its handler removes what it left half done; stdin stays open so that it cannot see an end. */
static void cancel(struct proc *p) {
    if (p->cancelled) return;
    p->cancelled = true;
    if (!p->child) {
        proc_free(p);
        return;
    }
    kill(p->child, SIGTERM);
    kill(p->child, SIGCONT);
    timer_start(&p->timer, CANCEL_MS, overdue_work);
}

void proc_detach(struct proc *p) {
    if (p->stream) unhash(p);
    proc_unready(p);
    if (p->work) {
        cancel(p);
        return;
    }
    output_resume(p);
    forget_old();
}

void proc_readers_gone(void) {
    for (size_t i = 0; i < HASH; i++)
        while (by_stream[i]) {
            struct proc *p = by_stream[i];
            unhash(p);
            proc_unready(p);
            if (p->work) cancel(p);
            else output_resume(p);
        }
    forget_old();
}

/* --- ends --- */

void proc_settle(struct proc *p) {
    if (p->state != P_DRAINING || !p->out[0].done || !p->out[1].done) return;
    p->state = P_FINISHED;
    timer_stop(&p->timer);
    TAILQ_REMOVE(&all, p, all);
    TAILQ_INSERT_TAIL(&all, p, all);
    buffer_shrink(&p->buffer);
    output_resume(p); /* from here on its pipes are only emptied */
    if (p->stream) proc_mark_ready(p);
    else forget_old();
}

static void ended(struct proc *p, int status) {
    if (p->state != P_RUNNING) return;
    p->state = P_DRAINING;
    p->ended_wall = wall_ms();
    p->duration = now_ms() - p->started_at;
    p->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    p->code = p->signal ? 128 + p->signal : WEXITSTATUS(status);
    p->timed_out = p->timed_out && p->signal == SIGKILL;
    timer_stop(&p->timer);
    stdin_close(p);
    output_end(p);
}

static void overdue(struct timer *t) {
    struct proc *p = OWNER(t, struct proc, timer);
    if (p->child) kill(p->child, SIGKILL); /* its tree falls to the agent, which sweeps it up */
}

static int tell_shim(struct proc *p, const struct shim_message *m) {
    if (p->child) kill(p->child, SIGCONT); /* a "kill -STOP -1" inside may have stopped it */
    return send(p->control.fd, m, sizeof *m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? errno : 0;
}

static void timeout(struct timer *t) {
    struct proc *p = OWNER(t, struct proc, timer);
    struct shim_message m = {.kind = SHIM_KILL};
    p->timed_out = true;
    tell_shim(p, &m);
    timer_start(&p->timer, OVERDUE_MS, overdue);
}

static void running(struct proc *p, pid_t pid) {
    if (p->state != P_STARTING || pid <= 0) return;
    struct proc *other = proc_by_pid((uint64_t)pid);
    if (other) other->pid = 0; /* the kernel gave the number out again */
    p->pid = pid;
    p->state = P_RUNNING;
    if (p->timeout_ms) timer_start(&p->timer, (int64_t)p->timeout_ms, timeout);
    if (p->stream) tell_started(p);
}

static void failed(struct proc *p, int error, enum stage stage) {
    if (p->state != P_STARTING) return;
    p->state = P_FAILED;
    if (!p->stream) return;
    uint32_t stream = p->stream;
    unhash(p);
    proc_unready(p);
    conn_error(stream, error, stage, strerror(error));
}

void proc_on_control(struct watch *w, uint32_t events) {
    struct proc *p = OWNER(w, struct proc, control);
    (void)events;
    for (;;) {
        struct shim_message m;
        ssize_t got = recv(w->fd, &m, sizeof m, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got != sizeof m) break;
        if (m.kind == SHIM_READY) running(p, m.a);
        else if (m.kind == SHIM_FAILED) failed(p, m.a, (enum stage)m.b);
        else if (m.kind == SHIM_EXIT) ended(p, m.a);
        else if (m.kind == SHIM_SIGNALLED && m.a) conn_error(m.b, m.a, STAGE_NO_PROCESS, "no process left");
        else if (m.kind == SHIM_SIGNALLED) conn_send(A_DONE, m.b, NULL, 0);
    }
    watch_close(w); /* the shim is gone, and with it the tree */
    failed(p, EIO, STAGE_FORK);
    ended(p, SIGKILL);
    if (p->state == P_FAILED) proc_free(p);
    else if (p->state == P_FINISHED) forget_old();
}

/* --- orphans of a shim that was killed from inside --- */

static struct timer sweeping;
static int sweeps_left;

static void sweep(struct timer *t) {
    static pid_t own[LIVE_MAX + 1];
    size_t n = 0;
    struct proc *p;
    TAILQ_FOREACH(p, &all, all)
        if (p->child && n < LIVE_MAX) own[n++] = p->child;
    if (tree_kill(getpid(), own, n) && --sweeps_left > 0) timer_start(t, SWEEP_MS, sweep);
}

void proc_reaped(pid_t child, int status) {
    struct proc *p;
    TAILQ_FOREACH(p, &all, all)
        if (p->child == child) break;
    if (!p) return;
    p->child = 0;
    if (p->work) {
        if (p->cancelled) proc_free(p);
        else ended(p, status);
    } else if (!WIFEXITED(status)) {
        sweeps_left = SWEEPS;
        timer_start(&sweeping, 0, sweep);
    }
}

/* --- questions --- */

static void put_exit(struct fields *f, const struct proc *p) {
    put_number(f, T_CODE, (uint64_t)p->code);
    put_number(f, T_SIGNAL, (uint64_t)p->signal);
    put_number(f, T_TIMED_OUT, p->timed_out);
    put_number(f, T_DURATION_MS, (uint64_t)p->duration);
    put_number(f, T_ENDED_AT, (uint64_t)p->ended_wall);
}

void proc_tell_exit(struct proc *p) {
    uint8_t room[128];
    struct fields f = {.at = room, .room = sizeof room};
    put_exit(&f, p);
    conn_send(A_EXIT, p->stream, room, f.used);
    unhash(p);
    if (p->work) proc_free(p);
    else forget_old();
}

void proc_list(uint32_t stream) {
    struct proc *p;
    TAILQ_FOREACH(p, &all, all) {
        if (p->work || !p->pid || p->state == P_STARTING || p->state == P_FAILED) continue;
        uint8_t room[2048];
        struct fields f = {.at = room, .room = sizeof room};
        put_number(&f, T_PID, (uint64_t)p->pid);
        put_number(&f, T_STARTED_AT, (uint64_t)p->started_wall);
        put_text(&f, T_TITLE, p->title);
        put_text(&f, T_TAG, p->tag);
        if (p->state == P_FINISHED || p->state == P_DRAINING) put_exit(&f, p);
        conn_send(A_STATUS, stream, room, f.used);
    }
    conn_send(A_DONE, stream, NULL, 0);
}

int proc_signal(struct proc *p, int signum, uint32_t stream) {
    struct shim_message m = {.kind = SHIM_SIGNAL, .a = signum, .b = stream};
    return p->control.fd < 0 ? ESRCH : tell_shim(p, &m);
}

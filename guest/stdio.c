/* Between pipes and buffers: reading output under back-pressure, and feeding stdin within its window. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "conn.h"
#include "proc.h"

static TAILQ_HEAD(ready_head, proc) ready = TAILQ_HEAD_INITIALIZER(ready);
static int null_fd = -1;

void stdio_init(void) { null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC); }

/* --- output, towards the host --- */

void proc_mark_ready(struct proc *p) {
    if (p->is_ready || !p->stream || p->state == P_STARTING) return;
    p->is_ready = true;
    TAILQ_INSERT_TAIL(&ready, p, ready);
}

void proc_unready(struct proc *p) {
    if (p->is_ready) TAILQ_REMOVE(&ready, p, ready);
    p->is_ready = false;
}

struct proc *proc_ready(void) { return TAILQ_FIRST(&ready); }

bool proc_has_output(const struct proc *p) { return p->sent < p->buffer.end && p->sent < p->limit; }

void proc_idle(struct proc *p) {
    proc_unready(p);
    if (p->state == P_FINISHED && p->sent >= p->buffer.end) proc_tell_exit(p);
}

size_t proc_next_output(const struct proc *p, size_t max, int *stream, struct iovec part[2]) {
    uint64_t allowed = p->limit - p->sent;
    return buffer_peek(&p->buffer, p->sent, allowed < max ? (size_t)allowed : max, stream, part);
}

void proc_output_sent(struct proc *p, size_t length) {
    p->sent += length;
    TAILQ_REMOVE(&ready, p, ready); /* the others first */
    TAILQ_INSERT_TAIL(&ready, p, ready);
}

void output_credit(struct proc *p, uint32_t bytes) {
    p->limit += bytes;
    p->acked = bytes < p->sent - p->acked ? p->acked + bytes : p->sent;
    output_resume(p);
    proc_mark_ready(p);
}

/* --- output, from the command --- */

static bool to_the_end(const struct proc *p) { return p->work || p->pty; }

/* Empty a pipe nobody listens to any more, so that a background child never blocks and never gets SIGPIPE. */
static bool dump(struct output *o) {
    char scrap[4096];
    ssize_t got = splice(o->watch.fd, NULL, null_fd, NULL, 1 << 20, SPLICE_F_NONBLOCK);
    if (got < 0 && errno != EAGAIN) got = read(o->watch.fd, scrap, sizeof scrap);
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

/* Read once. False when there is nothing to read now. */
static bool fill(struct output *o) {
    struct proc *p = o->proc;
    bool counted = p->state == P_DRAINING && !to_the_end(p);
    ssize_t got = buffer_fill(&p->buffer, o->watch.fd, o == &p->out[1], counted ? o->drain : BUFFER_MAX,
                              p->stream ? p->acked : p->buffer.end);
    if (got < 0 && errno == ENOMEM) {
        char scrap[4096];
        got = read(o->watch.fd, scrap, counted && o->drain < sizeof scrap ? o->drain : sizeof scrap);
        if (got > 0) buffer_skip(&p->buffer, (size_t)got);
    }
    if (got > 0) {
        proc_mark_ready(p);
        if (counted && (o->drain -= (size_t)got) == 0) o->done = true;
        return true;
    }
    if (got < 0 && errno == EINTR) return true;
    if (got < 0 && errno == ENOBUFS) watch_set(&o->watch, 0);
    else if (got < 0 && errno == EAGAIN) o->done |= counted;
    else {
        watch_close(&o->watch);
        o->done = true;
    }
    return false;
}

void output_ready(struct watch *w, uint32_t events) {
    struct output *o = OWNER(w, struct output, watch);
    (void)events;
    if (o->done) {
        if (!dump(o)) watch_close(w);
        return;
    }
    fill(o);
    if (o->done) proc_settle(o->proc);
}

void output_resume(struct proc *p) {
    for (int i = 0; i < 2; i++)
        if (p->out[i].watch.fd >= 0) watch_set(&p->out[i].watch, EPOLLIN);
}

static void grace_over(struct timer *t) {
    struct proc *p = OWNER(t, struct proc, timer);
    p->out[0].done = p->out[1].done = true;
    proc_settle(p);
}

void output_end(struct proc *p) {
    for (int i = 0; i < 2; i++) {
        struct output *o = &p->out[i];
        int left = 0;
        if (o->watch.fd < 0) o->done = true;
        else if (!to_the_end(p)) {
            if (ioctl(o->watch.fd, FIONREAD, &left) < 0 || left <= 0) o->done = true;
            o->drain = left > 0 ? (size_t)left : 0;
        }
        while (!o->done && o->watch.fd >= 0 && fill(o)) {}
    }
    /* a terminal hangs up when its leader ends, but its last output comes through a kernel thread */
    if (p->pty && !p->out[0].done) timer_start(&p->timer, TERMINAL_GRACE_MS, grace_over);
    proc_settle(p);
}

/* --- stdin --- */

void stdin_close(struct proc *p) {
    if (p->in.watch.fd < 0) return;
    watch_close(&p->in.watch);
    free(p->in.data);
    p->in.data = NULL;
    p->in.at = p->in.used = 0;
    if (p->stream && !p->in.ending && !p->work) conn_send(A_STDIN_CLOSED, p->stream, NULL, 0);
}

/* Count bytes that left the window, and open it again in steps rather than for each write. */
static void grant(struct proc *p, size_t bytes) {
    p->in.owed += (uint32_t)bytes;
    if (p->in.owed < STDIN_WINDOW / 4 || !p->stream) return;
    uint8_t payload[4];
    set32(payload, p->in.owed);
    p->in.credit += p->in.owed;
    p->in.owed = 0;
    conn_send(A_CREDIT, p->stream, payload, sizeof payload);
}

/* Write to the command. The bytes taken; -1 when it does not listen any more. */
static ssize_t feed(struct proc *p, const uint8_t *data, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t put = write(p->in.watch.fd, data + done, length - done);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0 && errno == EAGAIN) break;
        if (put < 0) return -1;
        done += (size_t)put;
    }
    return (ssize_t)done;
}

static bool queue(struct proc *p, const uint8_t *data, size_t length) {
    size_t held = p->in.used - p->in.at;
    uint8_t *fresh = malloc(held + length);
    if (!fresh) return false;
    if (held) memcpy(fresh, p->in.data + p->in.at, held);
    memcpy(fresh + held, data, length);
    free(p->in.data);
    p->in.data = fresh;
    p->in.at = 0;
    p->in.used = held + length;
    watch_set(&p->in.watch, EPOLLOUT);
    return true;
}

/* Take bytes for stdin, whatever the window says. */
static void take(struct proc *p, const uint8_t *data, size_t length) {
    ssize_t put = p->in.data ? 0 : feed(p, data, length);
    if (put > 0) grant(p, (size_t)put);
    if (put < 0 || ((size_t)put < length && !queue(p, data + put, length - (size_t)put))) stdin_close(p);
}

bool stdin_data(struct proc *p, const uint8_t *data, size_t length) {
    if (length > p->in.credit) return false;
    p->in.credit -= (uint32_t)length;
    if (p->in.watch.fd < 0 || p->in.ending) grant(p, length); /* file work that failed early: let the host finish */
    else take(p, data, length);
    return true;
}

void stdin_end(struct proc *p) {
    if (p->in.watch.fd < 0 || p->in.ending) return;
    if (p->pty) { /* a terminal has no end: the line discipline makes one of this character */
        static const uint8_t end_of_file = 4;
        take(p, &end_of_file, 1);
        return;
    }
    p->in.ending = true;
    if (!p->in.data) stdin_close(p);
}

void stdin_ready(struct watch *w, uint32_t events) {
    struct proc *p = OWNER(w, struct proc, in.watch);
    (void)events;
    ssize_t put = p->in.data ? feed(p, p->in.data + p->in.at, p->in.used - p->in.at) : 0;
    if (put < 0) {
        stdin_close(p);
        return;
    }
    p->in.at += (size_t)put;
    if (p->in.at == p->in.used) {
        free(p->in.data);
        p->in.data = NULL;
        p->in.at = p->in.used = 0;
        watch_set(w, 0);
    }
    grant(p, (size_t)put);
    if (!p->in.data && p->in.ending) stdin_close(p);
}

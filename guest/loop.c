/* The event loop. An agent with nothing to do sleeps without a timeout and costs no wake-up at all. */
#include "loop.h"

#include <errno.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 32,
    TICK_MS = 500,    /* while timers run: the longest sleep, so that frozen time shows as a long one */
    FROZEN_MS = 1000, /* a sleep longer than asked by this much was spent in the freezer */
};

static int epoll_fd = -1;
static struct epoll_event batch[BATCH];
static int batch_at, batch_count;
static struct watch *watches;
static struct timer *timers;
static int64_t next_due; /* never later than the earliest timer */

static int64_t clock_ms(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int64_t now_ms(void) { return clock_ms(CLOCK_MONOTONIC); }
int64_t wall_ms(void) { return clock_ms(CLOCK_REALTIME); }

int loop_open(void) {
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return epoll_fd < 0 ? -1 : 0;
}

/* A paused watch stays in the set, edge-triggered for nothing: a hang-up shows at most once, and to resume needs no
 * memory, so it cannot fail. */
static uint32_t kernel_events(uint32_t events) { return events ? events : (uint32_t)EPOLLET; }

int watch_open(struct watch *w, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t)) {
    struct epoll_event e = {.events = kernel_events(events), .data = {.ptr = w}};
    w->fd = -1;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0) return -1;
    *w = (struct watch){.fd = fd, .events = events, .ready = ready, .next = watches, .prev = &watches};
    if (watches) watches->prev = &w->next;
    watches = w;
    return 0;
}

int loop_renew(void) {
    int old = epoll_fd;
    if (loop_open() < 0) return -1;
    for (struct watch *w = watches; w; w = w->next) {
        struct epoll_event e = {.events = kernel_events(w->events), .data = {.ptr = w}};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, w->fd, &e) < 0) return -1;
    }
    close(old);
    return 0;
}

void watch_set(struct watch *w, uint32_t events) {
    if (w->fd < 0 || w->events == events) return;
    struct epoll_event e = {.events = kernel_events(events), .data = {.ptr = w}};
    w->events = events;
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, w->fd, &e);
}

void watch_close(struct watch *w) {
    if (w->fd < 0) return;
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
    close(w->fd);
    w->fd = -1;
    *w->prev = w->next;
    if (w->next) w->next->prev = w->prev;
    /* an event of this batch may still name it, and its memory may be gone by then */
    for (int i = batch_at + 1; i < batch_count; i++)
        if (batch[i].data.ptr == w) batch[i].data.ptr = NULL;
}

void timer_stop(struct timer *t) {
    if (!t->prev) return;
    *t->prev = t->next;
    if (t->next) t->next->prev = t->prev;
    t->prev = NULL;
}

void timer_start(struct timer *t, int64_t in_ms, void (*fire)(struct timer *)) {
    timer_stop(t);
    t->at = now_ms() + in_ms;
    t->fire = fire;
    if (!timers || t->at < next_due) next_due = t->at;
    t->next = timers;
    t->prev = &timers;
    if (timers) timers->prev = &t->next;
    timers = t;
}

static int64_t seen; /* the clock when last looked at */

/* Look at the clock. More than `allowed` since the last look, by a second or so, was spent in the freezer: a timeout
 * counts time the sandbox runs, so all timers move. */
static int64_t look(int64_t allowed) {
    int64_t now = now_ms(), surplus = now - seen - allowed;
    if (surplus > FROZEN_MS) {
        for (struct timer *t = timers; t; t = t->next) t->at += surplus;
        next_due += surplus;
    }
    seen = now;
    return now;
}

static void fire_due(int64_t now) {
    if (!timers || now < next_due) return;
    for (;;) { /* one at a time: a timer may stop or start others */
        struct timer *due = NULL;
        next_due = INT64_MAX;
        for (struct timer *t = timers; t; t = t->next) {
            if (t->at <= now) due = t;
            else if (t->at < next_due) next_due = t->at;
        }
        if (!due) return;
        timer_stop(due);
        due->fire(due);
    }
}

void loop_run(void (*after_each)(void)) {
    seen = now_ms();
    for (;;) {
        int wait = -1;
        if (timers) {
            int64_t due = next_due - look(0);
            wait = due < 0 ? 0 : due < TICK_MS ? (int)due : TICK_MS;
        }
        batch_count = epoll_wait(epoll_fd, batch, BATCH, wait);
        look(wait < 0 ? INT32_MAX : wait);
        for (batch_at = 0; batch_at < batch_count; batch_at++) {
            struct watch *w = batch[batch_at].data.ptr;
            if (w && w->events) w->ready(w, batch[batch_at].events);
        }
        batch_count = 0;
        if (timers) fire_due(look(0));
        after_each();
    }
}

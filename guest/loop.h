/* The event loop: descriptors, timers, and one clock that leaves out frozen time. */
#ifndef RUNRA_LOOP_H
#define RUNRA_LOOP_H

#include <stdint.h>
#include <sys/epoll.h>

struct watch {
    int fd; /* -1: none */
    uint32_t events; /* 0: paused */
    void (*ready)(struct watch *, uint32_t events);
    struct watch *next, **prev;
};

struct timer {
    struct timer *next, **prev; /* prev NULL: not running */
    int64_t at;
    void (*fire)(struct timer *);
};

#define OWNER(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

int loop_open(void);
/* Have the kernel wait for the same anew. What gVisor (2024) brings back from a file forgets nothing it waited for: closed
 * since then or not, it shows again when that copy is copied. -1 when the kernel refuses. */
int loop_renew(void);
void loop_run(void (*after_each)(void)) __attribute__((noreturn));

/* Watch `fd`. -1 with errno when the kernel refuses; then nothing is watched and `fd` stays the caller's. */
int watch_open(struct watch *w, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t));
/* Change what is waited for; 0 pauses. Cannot fail. */
void watch_set(struct watch *w, uint32_t events);
/* Stop watching and close the descriptor. */
void watch_close(struct watch *w);

void timer_start(struct timer *t, int64_t in_ms, void (*fire)(struct timer *));
void timer_stop(struct timer *t);

int64_t now_ms(void);  /* monotonic */
int64_t wall_ms(void); /* Unix time */

#endif

/* Processes the host asked for: commands and file work, their pipes, buffers and ends. */
#ifndef RUNRA_PROC_H
#define RUNRA_PROC_H

#include <stdbool.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "buffer.h"
#include "frames.h"
#include "loop.h"

enum {
    LIVE_MAX = 1024,
    REMEMBERED_MAX = 64,
    REMEMBERED_BYTES = 4 << 20,
    STDIN_WINDOW = 256 << 10,
    OVERDUE_MS = 3000,     /* a shim that has not killed its tree by then is killed itself */
    CANCEL_MS = 2000,      /* the same for file work */
    TERMINAL_GRACE_MS = 300,
    TITLE_MAX = 1024,
    TAG_MAX = 256,
};

enum proc_state {
    P_STARTING, /* forked; the command has not said that it will run */
    P_RUNNING,
    P_DRAINING, /* ended; some of its output is still in the pipes */
    P_FINISHED, /* exit and output complete; kept for re-attach. Its background children may live on */
    P_FAILED,   /* never ran; waits for its shim to go */
};

struct output {
    struct watch watch;
    struct proc *proc;
    bool done;    /* all that counts as the process's output was read */
    size_t drain; /* while draining: bytes that were in the pipe at the end */
};

struct proc {
    TAILQ_ENTRY(proc) all;
    TAILQ_ENTRY(proc) ready;
    struct proc *same_hash;
    enum proc_state state;
    bool work;          /* file work: no shim, ends with its stream */
    bool pty, is_ready, cancelled, timed_out, reused;
    pid_t pid;          /* the command's */
    pid_t child;        /* the agent's own child: the shim, or the worker; 0 once reaped */
    uint32_t stream;    /* who reads; 0: nobody */
    struct watch control;
    struct output out[2];
    struct buffer buffer;
    uint64_t sent, acked, limit; /* offsets: written, consumed, allowed */
    struct {
        struct watch watch;
        uint8_t *data;
        size_t at, used;
        uint32_t credit, owed;
        bool ending;
    } in;
    struct timer timer;
    uint64_t timeout_ms;
    int64_t started_wall, started_at, ended_wall, duration;
    int code, signal;
    char *title, *tag;
};

/* spawn.c. 0, or an errno with its stage. */
int proc_start(uint32_t stream, const struct request *r, enum stage *stage);
int proc_start_work(uint32_t stream, const struct request *r, enum stage *stage);

/* proc.c */
struct proc *proc_new(const struct request *r);
void proc_free(struct proc *p);
struct proc *proc_by_stream(uint32_t stream);
struct proc *proc_by_pid(uint64_t pid);
struct proc *proc_by_tag(const char *tag);
void proc_attach(struct proc *p, uint32_t stream, uint64_t offset, uint64_t window);
void proc_detach(struct proc *p);
void proc_readers_gone(void);
void proc_on_control(struct watch *w, uint32_t events);
void proc_reaped(pid_t child, int status);
void proc_settle(struct proc *p);
void proc_list(uint32_t stream);
void proc_tell_exit(struct proc *p); /* and end its stream; frees file work */
int proc_signal(struct proc *p, int signum, uint32_t stream);
bool proc_limit(long most); /* how many may run at once; false: more than can be kept */
bool proc_limit_reached(void);
const char *proc_limit_words(void);

/* stdio.c */
void output_ready(struct watch *w, uint32_t events);
void output_resume(struct proc *p);
void output_end(struct proc *p); /* the process has ended: read what is left, but wait for nothing */
void output_credit(struct proc *p, uint32_t bytes);
void stdin_ready(struct watch *w, uint32_t events);
bool stdin_data(struct proc *p, const uint8_t *data, size_t length); /* false: more than it was allowed */
void stdin_end(struct proc *p);
void stdin_close(struct proc *p);
void proc_mark_ready(struct proc *p);
struct proc *proc_ready(void);
bool proc_has_output(const struct proc *p);
void proc_unready(struct proc *p);
void proc_idle(struct proc *p); /* it has nothing to send now; a finished one has said all, so tell its exit */
size_t proc_next_output(const struct proc *p, size_t max, int *stream, struct iovec part[2]);
void proc_output_sent(struct proc *p, size_t length);
void stdio_init(void);

#endif

/* The shim: a small process between the agent and each command, so that the command's whole tree stays in reach. */
#ifndef RUNRA_SHIM_H
#define RUNRA_SHIM_H

#include <stdint.h>
#include <sys/types.h>

#include "frames.h"

enum shim_kind {
    SHIM_READY = 1,  /* to the agent: a is the command's pid */
    SHIM_FAILED,     /* to the agent: a is the errno, b the stage */
    SHIM_EXIT,       /* to the agent: a is the wait status */
    SHIM_SIGNALLED,  /* to the agent: b of the request, a is 0 or an errno */
    SHIM_SIGNAL,     /* to the shim: a is the signal, b comes back */
    SHIM_KILL,       /* to the shim: the whole tree, until none is left; the exit is told after that */
};

struct shim_message {
    int32_t kind, a;
    uint32_t b;
};

struct shim_start {
    const struct request *request;
    int stdio[3]; /* stdin -1: /dev/null */
    int control;  /* the shim's end, SOCK_SEQPACKET */
};

/* Be the shim. Called in the forked child; never returns. */
void shim_main(const struct shim_start *start) __attribute__((noreturn));

/* Be the command, in the shim's child; never returns. */
void exec_main(const struct shim_start *start) __attribute__((noreturn));

/* Undo what the agent set for itself (signals, limits); in any forked child that works for a user. */
void exec_restore(void);
/* Keep what exec_restore brings back. Once, at the agent's start. */
void exec_prepare(void);

#endif

/* The one connection to the host: the newest wins, and everything lives on without it. */
#ifndef RUNRA_CONN_H
#define RUNRA_CONN_H

#include <stdbool.h>

#include "frames.h"

struct proc;

/* Take connections from a listening socket, or, `hands`, from one over which they are handed to us. */
int conn_listen(int fd, bool hands);
bool conn_open(void);
/* Queue a frame; dropped when there is no connection. */
void conn_send(enum frame_type type, uint32_t stream, const void *payload, size_t length);
void conn_error(uint32_t stream, int error, enum stage stage, const char *message);
/* Write what is queued, then output of processes in turn, until the socket is full. */
void conn_flush(void);
/* Once all that is queued has left, DONE for `stream` last, let go of the connection and of where connections come from,
 * and keep the session for the host that comes back. 0, or why it cannot be. */
int conn_part(uint32_t stream);

/* requests.c: act on a frame. False when no honest host would send it. */
bool request_handle(const struct frame *frame, const uint8_t *payload);
/* The greeting: false when it is none, or of another version. `resume`: the host goes on where it parted. */
bool request_hello(const struct frame *frame, const uint8_t *payload, bool *resume);

#endif

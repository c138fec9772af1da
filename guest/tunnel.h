/* Connections the host opens to TCP ports on the sandbox's own loopback: bytes both ways, under credit. */
#ifndef RUNRA_TUNNEL_H
#define RUNRA_TUNNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct tunnel;

/* Connect to `port`; STARTED or ERROR follows on the stream. 0, or an errno. */
int tunnel_open(uint32_t stream, uint64_t port, uint64_t window);
struct tunnel *tunnel_by_stream(uint32_t stream);
void tunnel_free(struct tunnel *t);
void tunnels_free(void); /* all: their host has gone */

/* From the host. */
bool tunnel_data(struct tunnel *t, const uint8_t *data, size_t length); /* false: more than it was allowed */
void tunnel_end(struct tunnel *t);
void tunnel_credit(struct tunnel *t, uint32_t bytes);

/* To the host: conn.c takes from those that are ready, straight from their sockets into its queue. */
struct tunnel *tunnel_ready(void);
uint32_t tunnel_stream(const struct tunnel *t);
uint64_t tunnel_sent(const struct tunnel *t);
size_t tunnel_most(const struct tunnel *t);
ssize_t tunnel_read(struct tunnel *t, uint8_t *to, size_t most); /* as recv(2) returns */
void tunnel_was_read(struct tunnel *t, ssize_t got, int error, size_t most); /* may end and free it */
void tunnels_hold(void); /* those still ready wait for the connection, not for their sockets */

#endif

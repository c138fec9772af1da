/* Tunnels: dialling the sandbox's own loopback, and bytes between its sockets and the host's streams. What comes from
 * inside is never held here: it is read when the host may be sent it. What comes from the host is held to its window. */
#include "tunnel.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "frames.h"
#include "loop.h"

enum {
    HASH = 256,
    TUNNELS_MAX = 1024,
    FEW = 64,               /* so many have the large window, the rest the small one: 76 MiB at most for all */
    WINDOW_FEW = 256 << 10,
    WINDOW_MANY = 64 << 10,
    ROOM = 16 << 10,        /* what waits for a socket mostly fits; a whole window is taken only when it does not */
    CONNECT_MS = 5000,
    PORT_MIN = 1024,
    PORT_MAX = 65535,
};

struct tunnel {
    struct tunnel *same_hash;
    TAILQ_ENTRY(tunnel) ready;
    struct watch watch;
    struct timer timer;  /* until it is connected */
    uint32_t stream;
    in_port_t port;      /* network order */
    int family, error;   /* being tried; the first one's errno */
    bool connecting, is_ready;
    bool said_end;       /* inside has ended its side, and the host knows */
    bool heard_end;      /* the host has ended its side */
    bool unread;         /* inside takes no bytes any more */
    bool reset;          /* it broke rather than ended */
    uint64_t sent, limit; /* offsets: written to the host, allowed by it */
    uint8_t *data;       /* from the host, until the socket takes it */
    size_t at, used, room;
    uint32_t window, allowed, owed;
};

static TAILQ_HEAD(ready_head, tunnel) ready = TAILQ_HEAD_INITIALIZER(ready);
static struct tunnel *by_stream[HASH];
static size_t count;

struct tunnel *tunnel_by_stream(uint32_t stream) {
    struct tunnel *t = by_stream[stream % HASH];
    while (t && t->stream != stream) t = t->same_hash;
    return t;
}

static void unready(struct tunnel *t) {
    if (t->is_ready) TAILQ_REMOVE(&ready, t, ready);
    t->is_ready = false;
}

void tunnel_free(struct tunnel *t) {
    struct tunnel **at = &by_stream[t->stream % HASH];
    while (*at && *at != t) at = &(*at)->same_hash;
    if (*at) *at = t->same_hash;
    count--;
    unready(t);
    timer_stop(&t->timer);
    watch_close(&t->watch);
    free(t->data);
    free(t);
}

void tunnels_free(void) {
    for (size_t i = 0; i < HASH; i++)
        while (by_stream[i]) tunnel_free(by_stream[i]);
}

static void fail(struct tunnel *t, int error) {
    conn_error(t->stream, error, STAGE_CONNECT, strerror(error));
    tunnel_free(t);
}

static void rearm(struct tunnel *t) {
    uint32_t events = t->connecting || t->data ? (uint32_t)EPOLLOUT : 0;
    if (!t->connecting && !t->is_ready && !t->said_end && t->sent < t->limit) events |= EPOLLIN;
    watch_set(&t->watch, events);
}

/* Both sides have ended, and all was passed on: then so does the stream. */
static bool over(struct tunnel *t) {
    if (!t->said_end || (!t->heard_end && !t->unread) || t->data) return false;
    conn_send(A_DONE, t->stream, NULL, 0);
    tunnel_free(t);
    return true;
}

/* --- from the host --- */

static void grant(struct tunnel *t, size_t bytes) {
    t->owed += (uint32_t)bytes;
    if (t->owed < t->window / 4) return;
    uint8_t payload[4];
    set32(payload, t->owed);
    t->allowed += t->owed;
    t->owed = 0;
    conn_send(A_CREDIT, t->stream, payload, sizeof payload);
}

static void drop_data(struct tunnel *t) {
    free(t->data);
    t->data = NULL;
    t->at = t->used = t->room = 0;
}

/* Nothing inside reads any more; what it wrote before is still passed on. */
static void not_read(struct tunnel *t, int error) {
    t->unread = true;
    t->reset = error != EPIPE;
    drop_data(t);
    if (!t->heard_end) conn_send(A_STDIN_CLOSED, t->stream, NULL, 0);
}

/* Write to the socket. The bytes it took; -1 with errno when it never will. */
static ssize_t feed(struct tunnel *t, const uint8_t *data, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t put = send(t->watch.fd, data + done, length - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0 && errno == EAGAIN) break;
        if (put < 0) return -1;
        done += (size_t)put;
    }
    return (ssize_t)done;
}

static bool keep(struct tunnel *t, const uint8_t *data, size_t length) {
    if (t->used + length > t->room) {
        t->used -= t->at;
        if (t->at) memmove(t->data, t->data + t->at, t->used);
        t->at = 0;
    }
    if (t->used + length > t->room) { /* held, allowed and owed bytes together are one window */
        size_t room = t->used + length <= ROOM ? ROOM : t->window;
        uint8_t *grown = realloc(t->data, room);
        if (!grown) return false;
        t->data = grown;
        t->room = room;
    }
    memcpy(t->data + t->used, data, length);
    t->used += length;
    return true;
}

bool tunnel_data(struct tunnel *t, const uint8_t *data, size_t length) {
    if (length > t->allowed || t->heard_end) return false;
    t->allowed -= (uint32_t)length;
    ssize_t put = t->unread ? (ssize_t)length : t->data || t->connecting ? 0 : feed(t, data, length);
    if (put < 0) {
        not_read(t, errno);
        put = (ssize_t)length;
    }
    grant(t, (size_t)put);
    if ((size_t)put < length && !keep(t, data + put, length - (size_t)put)) not_read(t, ENOMEM);
    if (!over(t)) rearm(t);
    return true;
}

void tunnel_end(struct tunnel *t) {
    if (t->heard_end) return;
    t->heard_end = true;
    if (!t->data && !t->unread && !t->connecting) shutdown(t->watch.fd, SHUT_WR);
    if (!over(t)) rearm(t);
}

/* Write what waits. */
static void drain(struct tunnel *t) {
    ssize_t put = feed(t, t->data + t->at, t->used - t->at);
    if (put < 0) {
        not_read(t, errno);
        return;
    }
    t->at += (size_t)put;
    if (t->at == t->used) {
        drop_data(t);
        if (t->heard_end) shutdown(t->watch.fd, SHUT_WR);
    }
    grant(t, (size_t)put);
}

void tunnel_credit(struct tunnel *t, uint32_t bytes) {
    t->limit += bytes;
    rearm(t);
}

/* --- to the host --- */

struct tunnel *tunnel_ready(void) { return TAILQ_FIRST(&ready); }
uint32_t tunnel_stream(const struct tunnel *t) { return t->stream; }
uint64_t tunnel_sent(const struct tunnel *t) { return t->sent; }

size_t tunnel_most(const struct tunnel *t) {
    uint64_t left = t->limit - t->sent;
    return left < MAX_DATA ? (size_t)left : MAX_DATA;
}

ssize_t tunnel_read(struct tunnel *t, uint8_t *to, size_t most) {
    ssize_t got;
    do got = recv(t->watch.fd, to, most, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    return got;
}

void tunnel_was_read(struct tunnel *t, ssize_t got, int error, size_t most) {
    if (got < 0 && error != EAGAIN) {
        fail(t, error);
        return;
    }
    if (got > 0) t->sent += (uint64_t)got;
    if (got == (ssize_t)most && t->sent < t->limit) { /* there is more: after the others */
        TAILQ_REMOVE(&ready, t, ready);
        TAILQ_INSERT_TAIL(&ready, t, ready);
        return;
    }
    unready(t);
    if (got == 0) {
        if (t->reset) { /* a send has taken the error away; an end would be a lie */
            fail(t, ECONNRESET);
            return;
        }
        t->said_end = true;
        conn_send(A_EOF, t->stream, NULL, 0);
        if (over(t)) return;
    }
    rearm(t);
}

void tunnels_hold(void) {
    struct tunnel *t;
    TAILQ_FOREACH(t, &ready, ready) rearm(t);
}

/* --- connecting --- */

/* A connection to itself: without a listener the kernel may choose the very port that is dialled as its own. */
static bool to_itself(int fd) {
    struct sockaddr_storage here, there;
    socklen_t here_size = sizeof here, there_size = sizeof there;
    memset(&here, 0, sizeof here);
    memset(&there, 0, sizeof there);
    return !getsockname(fd, (struct sockaddr *)&here, &here_size) &&
           !getpeername(fd, (struct sockaddr *)&there, &there_size) && here_size == there_size &&
           !memcmp(&here, &there, here_size);
}

static void on_ready(struct watch *w, uint32_t events);

/* Begin to connect to the loopback address of t->family. 0 or an errno. */
static int dial(struct tunnel *t) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = t->port, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = t->port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    const struct sockaddr *to = t->family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    int one = 1, fd = socket(t->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return errno;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if ((connect(fd, to, t->family == AF_INET ? sizeof v4 : sizeof v6) < 0 && errno != EINPROGRESS) ||
        watch_open(&t->watch, fd, EPOLLOUT, on_ready) < 0) {
        int error = errno;
        close(fd);
        return error;
    }
    return 0;
}

/* The address before it did not answer: try the next, or give up with what the first one said. */
static void dial_next(struct tunnel *t, int error) {
    watch_close(&t->watch);
    if (!t->error) t->error = error;
    while (t->family == AF_INET) {
        t->family = AF_INET6;
        if (!dial(t)) return;
    }
    fail(t, t->error);
}

static void connected(struct tunnel *t) {
    uint8_t room[64];
    struct fields f = {.at = room, .room = sizeof room};
    t->connecting = false;
    timer_stop(&t->timer);
    put_number(&f, T_OFFSET, 0);
    put_number(&f, T_WINDOW, t->window);
    conn_send(A_STARTED, t->stream, room, f.used);
    if (t->data) drain(t);
    else if (t->heard_end) shutdown(t->watch.fd, SHUT_WR);
    rearm(t);
}

static void on_ready(struct watch *w, uint32_t events) {
    struct tunnel *t = OWNER(w, struct tunnel, watch);
    if (t->connecting) {
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(w->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) error = errno;
        if (!error && to_itself(w->fd)) error = ECONNREFUSED;
        if (error) dial_next(t, error);
        else connected(t);
        return;
    }
    bool broken = events & (EPOLLERR | EPOLLHUP);
    if (t->data && (broken || events & EPOLLOUT)) drain(t);
    if ((broken || events & EPOLLIN) && !t->is_ready && !t->said_end && t->sent < t->limit) {
        t->is_ready = true;
        TAILQ_INSERT_TAIL(&ready, t, ready);
        return; /* what it waits for next is known when it has been read */
    }
    if (!over(t)) rearm(t);
}

static void late(struct timer *timer) { fail(OWNER(timer, struct tunnel, timer), ETIMEDOUT); }

int tunnel_open(uint32_t stream, uint64_t port, uint64_t window) {
    if (port < PORT_MIN || port > PORT_MAX) return EINVAL;
    if (count >= TUNNELS_MAX) return EMFILE;
    struct tunnel *t = calloc(1, sizeof *t);
    if (!t) return ENOMEM;
    t->watch.fd = -1;
    t->stream = stream;
    t->port = htons((uint16_t)port);
    t->family = AF_INET;
    t->limit = window;
    t->connecting = true;
    t->window = t->allowed = count < FEW ? WINDOW_FEW : WINDOW_MANY;
    t->same_hash = by_stream[stream % HASH];
    by_stream[stream % HASH] = t;
    count++;
    timer_start(&t->timer, CONNECT_MS, late);
    int error = dial(t);
    if (error) dial_next(t, error);
    return 0;
}

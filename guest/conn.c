/* The connection: accepting, reading frames, and writing without ever blocking. */
#include "conn.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "join.h"
#include "loop.h"
#include "proc.h"
#include "tunnel.h"

enum {
    IN_SMALL = 4 << 10,      /* a longer frame gets memory of its own while it arrives */
    OUT_ENOUGH = 256 << 10,  /* answers waiting: beyond it no request is read */
    OUT_COPY = 8 << 10,      /* output this short is queued, so that it leaves in one write with its neighbours */
    READS_A_TURN = 16,
    LISTEN_PAUSE_MS = 50,
    OUTPUT_HEAD = FRAME_HEADER + 8,
    TUNNEL_TURN = 32,        /* pieces of tunnels sent before anything else gets its turn */
};

static struct {
    struct watch watch;
    bool greeted, blocked;
    bool parting; /* nothing new is sent: what is queued leaves, and then the connection is let go of */
    bool parted;  /* it is, and the session waits for its host */
    uint8_t in[IN_SMALL];
    size_t in_used;
    uint8_t *big; /* the one frame too long for `in` */
    size_t big_used, big_size;
    uint8_t *out;
    size_t out_at, out_used, out_room;
} c = {.watch = {.fd = -1}};

static struct watch listener = {.fd = -1};
static struct watch joining = {.fd = -1};
static bool handed; /* connections are not accepted but received */

bool conn_open(void) { return c.watch.fd >= 0 || c.parted; }

/* Let go of the connection; what is queued stays. */
static void disconnect(void) {
    watch_close(&c.watch);
    free(c.big);
    c.big = NULL;
    c.in_used = c.big_used = 0;
    if (c.parting && joining.fd >= 0) close(joining.fd), joining.fd = -1;
    c.greeted = c.blocked = c.parting = false;
}

static void end_session(void) {
    free(c.out);
    c.out = NULL;
    c.out_at = c.out_used = c.out_room = 0;
    c.parted = false;
    proc_readers_gone();
    tunnels_free();
}

static void drop(void) {
    disconnect();
    end_session();
}

/* Room for `length` more bytes at the end of the queue; NULL drops the connection. */
static uint8_t *out_room(size_t length) {
    if (c.out_at && (c.out_at == c.out_used || c.out_room - c.out_used < length)) {
        memmove(c.out, c.out + c.out_at, c.out_used - c.out_at);
        c.out_used -= c.out_at;
        c.out_at = 0;
    }
    if (c.out_room - c.out_used < length) {
        size_t room = c.out_room ? c.out_room : 1024;
        while (room - c.out_used < length) room *= 2;
        uint8_t *grown = realloc(c.out, room);
        if (!grown) return NULL;
        c.out = grown;
        c.out_room = room;
    }
    uint8_t *at = c.out + c.out_used;
    c.out_used += length;
    return at;
}

void conn_send(enum frame_type type, uint32_t stream, const void *payload, size_t length) {
    if (!conn_open()) return;
    uint8_t *at = out_room(FRAME_HEADER + length);
    if (!at) { /* an answer cannot be left out: without memory for it the connection ends */
        shutdown(c.watch.fd, SHUT_RDWR);
        return;
    }
    frame_encode(at, (uint32_t)length, type, 0, stream);
    if (length) memcpy(at + FRAME_HEADER, payload, length);
}

void conn_error(uint32_t stream, int error, enum stage stage, const char *message) {
    uint8_t room[512];
    struct fields f = {.at = room, .room = sizeof room};
    put_number(&f, T_ERRNO, (uint64_t)error);
    put_number(&f, T_STAGE, stage);
    put_text(&f, T_MESSAGE, message);
    conn_send(A_ERROR, stream, room, f.used);
}

/* Write the queue. False when the socket is full or gone. */
static bool flush_queue(void) {
    while (c.out_at < c.out_used) {
        ssize_t put = send(c.watch.fd, c.out + c.out_at, c.out_used - c.out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) {
            if (errno == EAGAIN) c.blocked = true;
            else drop();
            return false;
        }
        c.out_at += (size_t)put;
    }
    c.out_at = c.out_used = 0;
    if (c.out_room > OUT_ENOUGH) {
        free(c.out);
        c.out = NULL;
        c.out_room = 0;
    }
    return true;
}

/* Send one piece of a process's output. False when the socket is full or gone. */
static bool flush_output(struct proc *p) {
    struct iovec v[3];
    int stream;
    size_t length = proc_next_output(p, MAX_DATA, &stream, v + 1);
    uint8_t head[OUTPUT_HEAD];
    frame_encode(head, (uint32_t)(length + 8), A_OUTPUT, (uint8_t)stream, p->stream);
    set64(head + FRAME_HEADER, p->sent);
    v[0] = (struct iovec){head, sizeof head};
    size_t put = 0, whole = length + sizeof head;
    if (length > OUT_COPY && !flush_queue()) return false;
    if (length > OUT_COPY) {
        struct msghdr m = {.msg_iov = v, .msg_iovlen = v[2].iov_len ? 3 : 2};
        ssize_t done = sendmsg(c.watch.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done < 0) {
            if (errno == EAGAIN || errno == EINTR) c.blocked = errno == EAGAIN;
            else drop();
            return false;
        }
        put = (size_t)done;
    }
    if (put < whole) { /* what the socket left goes to the queue: the process's buffer may move on */
        uint8_t *at = out_room(whole - put);
        if (!at) {
            drop();
            return false;
        }
        for (int i = 0; i < 3; i++) {
            if (put >= v[i].iov_len) {
                put -= v[i].iov_len;
                continue;
            }
            memcpy(at, (uint8_t *)v[i].iov_base + put, v[i].iov_len - put);
            at += v[i].iov_len - put;
            put = 0;
        }
    }
    proc_output_sent(p, length);
    return true;
}

/* Read what one tunnel has, straight into the queue. False when the connection is gone. */
static bool flush_tunnel(struct tunnel *t) {
    size_t most = tunnel_most(t);
    uint8_t *at = out_room(OUTPUT_HEAD + most);
    if (!at) {
        drop();
        return false;
    }
    ssize_t got = tunnel_read(t, at + OUTPUT_HEAD, most);
    int error = errno;
    c.out_used -= got > 0 ? most - (size_t)got : OUTPUT_HEAD + most;
    if (got > 0) {
        frame_encode(at, (uint32_t)got + 8, A_OUTPUT, 0, tunnel_stream(t));
        set64(at + FRAME_HEADER, tunnel_sent(t));
    }
    tunnel_was_read(t, got, error, most);
    return true;
}

/* Output of processes and tunnels in turn. */
static void flush_streams(void) {
    int pieces = 0;
    for (;;) {
        struct proc *p = proc_ready();
        struct tunnel *t = pieces < TUNNEL_TURN ? tunnel_ready() : NULL;
        if (!p && !t) return;
        if (c.out_used - c.out_at >= MAX_DATA && !flush_queue()) return;
        if (p && !proc_has_output(p)) proc_idle(p);
        else if (p && !flush_output(p)) return;
        pieces++;
        if (t && !flush_tunnel(t)) return;
    }
}

static void on_join(struct watch *w, uint32_t events);

/* The last byte has left. */
static void part(void) {
    int fd = joining.fd; /* bound when the host asked, watched from now on */
    joining.fd = -1;
    watch_close(&listener); /* before the host sees that we part: whoever is handed to us from then on is told */
    disconnect();
    c.parted = true;
    if (watch_open(&joining, fd, EPOLLIN, on_join) < 0) exit(1); /* nobody could ever come again */
}

int conn_part(uint32_t stream) {
    if (!handed) return EOPNOTSUPP;
    joining.fd = join_open();
    if (joining.fd < 0) return errno;
    conn_send(A_DONE, stream, NULL, 0);
    c.parting = true;
    return 0;
}

void conn_flush(void) {
    if (c.watch.fd < 0) return;
    if (!c.blocked && c.greeted) {
        if (!c.parting) flush_streams();
        if (conn_open() && !c.blocked && flush_queue() && c.parting) part();
    }
    if (c.watch.fd < 0) return;
    tunnels_hold();
    uint32_t want = c.out_used - c.out_at < OUT_ENOUGH ? (uint32_t)EPOLLIN : 0;
    if (c.blocked || tunnel_ready()) want |= EPOLLOUT;
    watch_set(&c.watch, want);
}

/* Our greeting goes first, whatever is queued, and to a host of another version before it is cut off. A socket that
 * carried nothing yet has room for it. */
static bool greet(void) {
    uint8_t room[64];
    struct fields out = {.at = room + FRAME_HEADER, .room = sizeof room - FRAME_HEADER};
    put_number(&out, T_VERSION, PROTOCOL_VERSION);
    put_number(&out, T_PID, (uint64_t)getpid());
    put_number(&out, T_RESUME, 1); /* it knows PART; those of before it do not say so */
    frame_encode(room, (uint32_t)out.used, A_HELLO, 0, 0);
    size_t whole = FRAME_HEADER + out.used;
    return send(c.watch.fd, room, whole, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)whole;
}

static bool dispatch(const uint8_t *at, const struct frame *f) {
    const uint8_t *payload = at + FRAME_HEADER;
    if (c.parting) return false; /* who parts has said its last */
    if (c.greeted) return request_handle(f, payload);
    bool resume = false;
    c.greeted = request_hello(f, payload, &resume);
    if (resume && !c.parted) return false; /* nothing to go on with */
    if (f->type != F_HELLO || !greet()) return false;
    if (!resume) end_session();
    c.parted = false;
    return c.greeted;
}

/* Act on every whole frame in `in`. False when the connection must end. */
static bool parse(void) {
    size_t at = 0;
    while (c.in_used - at >= FRAME_HEADER) {
        struct frame f;
        if (!frame_decode(c.in + at, &f)) return false;
        size_t whole = FRAME_HEADER + (size_t)f.length;
        if (whole > IN_SMALL) {
            c.big = malloc(whole);
            if (!c.big) return false;
            c.big_size = whole;
            c.big_used = c.in_used - at < whole ? c.in_used - at : whole;
            memcpy(c.big, c.in + at, c.big_used);
            c.in_used = 0;
            return true;
        }
        if (c.in_used - at < whole) break;
        if (!dispatch(c.in + at, &f)) return false;
        at += whole;
    }
    memmove(c.in, c.in + at, c.in_used - at);
    c.in_used -= at;
    return true;
}

static bool parse_big(void) {
    struct frame f;
    bool fine = frame_decode(c.big, &f) && dispatch(c.big, &f);
    free(c.big);
    c.big = NULL;
    return fine;
}

static void on_readable(struct watch *w, uint32_t events) {
    if (events & EPOLLOUT) c.blocked = false;
    if (!(events & ~(uint32_t)EPOLLOUT)) return;
    for (int i = 0; i < READS_A_TURN; i++) {
        size_t room = c.big ? c.big_size - c.big_used : IN_SMALL - c.in_used;
        ssize_t got = recv(w->fd, c.big ? c.big + c.big_used : c.in + c.in_used, room, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        bool fine = got > 0;
        if (fine && c.big) {
            c.big_used += (size_t)got;
            if (c.big_used == c.big_size) fine = parse_big();
        } else if (fine) {
            c.in_used += (size_t)got;
            fine = parse();
        }
        if (!fine) {
            drop();
            return;
        }
        if ((size_t)got < room || c.out_used - c.out_at >= OUT_ENOUGH) return;
    }
}

static struct timer listening_again;

static void listen_again(struct timer *t) {
    (void)t;
    watch_set(&listener, EPOLLIN);
}

/* The next connection that was handed to us. Who hands them is the host's: when it is gone nobody can come any more. */
static int receive(int from) {
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) return -1;
    if (got == 0) exit(0);
    struct cmsghdr *item = CMSG_FIRSTHDR(&message);
    errno = EMFILE; /* what is lost on the way is lost for want of a descriptor */
    if (!item || item->cmsg_type != SCM_RIGHTS || item->cmsg_len != CMSG_LEN(sizeof(int))) return -1;
    int fd;
    memcpy(&fd, CMSG_DATA(item), sizeof fd);
    return fd;
}

static void on_connect(struct watch *w, uint32_t events) {
    (void)events;
    int fd = handed ? receive(w->fd) : accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)) return;
    if (c.parted) disconnect();
    else drop();
    if (fd < 0) { /* no descriptor left, say: the old connection has just freed one. Not at once, lest this spins */
        watch_set(w, 0);
        timer_start(&listening_again, LISTEN_PAUSE_MS, listen_again);
        return;
    }
    if (watch_open(&c.watch, fd, EPOLLIN, on_readable) < 0) close(fd);
}

static void on_joined(struct watch *w, uint32_t events) {
    (void)events;
    int fd = join_receive(w->fd);
    watch_close(w);
    if (fd >= 0) fd = watch_open(&listener, fd, EPOLLIN, on_connect);
    else if ((fd = join_open()) >= 0) fd = watch_open(w, fd, EPOLLIN, on_join);
    if (fd < 0 || loop_renew() < 0) exit(1);
}

/* One at a time: the name is free for the next as soon as it is needed. */
static void on_join(struct watch *w, uint32_t events) {
    (void)events;
    int fd = join_accept(w->fd);
    if (fd < 0) return;
    watch_close(w);
    if (watch_open(w, fd, EPOLLIN, on_joined) < 0) exit(1);
}

int conn_listen(int fd, bool hands) {
    handed = hands;
    return watch_open(&listener, fd, EPOLLIN, on_connect);
}

/* runra-relay: a port of the sandbox's own loopback that leads to a Unix socket of the machine whose runtime started it.
 *
 *   /folder/of/its/own/relay PORT        PORT 0: any free one
 *
 * It speaks lines.h on stdin and stdout, and needs no network. It removes its file and folder at once, and ends when its
 * stdin does, when it is told to, or when nothing came for SILENCE_S: a runtime that died leaves nothing behind. All it
 * keeps is bounded: connections, the bytes each may have under way in both directions, and the output not yet arrived. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "lines.h"

#define CONNECTIONS 256
#define WINDOW (256u * 1024)       /* bytes of a connection under way in one direction */
#define GRANT (WINDOW / 4)         /* credit is given back in pieces of this size */
#define OUT_BYTES (256u * 1024)    /* lines that stdout has not taken yet */
#define RESERVED (48u * 1024)      /* of those, for everything but data */
#define UNHEARD (640u * 1024)      /* output the runtime has not said it has: less than any provider keeps for it */
#ifndef SILENCE_S
#define SILENCE_S 45
#endif
#define LINE_SMALL 64u

struct connection {
    int fd; /* -1: free */
    uint64_t id;
    uint32_t credit;  /* bytes the runtime lets us send */
    uint32_t owed;    /* bytes written to the client whose credit was not given back */
    uint8_t *pending; /* bytes the client has not taken: a ring of WINDOW bytes, made when there are some */
    uint32_t first, held;
    bool ended;  /* the client sends no more */
    bool told;   /* and the runtime knows */
    bool finish; /* the runtime sends no more */
    bool shut;   /* and the client knows */
    bool broken; /* to be reset, and the runtime told */
};

static struct connection all[CONNECTIONS];
static unsigned count, turn;
static uint64_t last_id, last_seq;
static uint8_t out[OUT_BYTES];
static size_t out_first, out_held;
static uint64_t said, heard; /* bytes of output made, and arrived */
static bool answer;          /* a sign of life is owed */
static uint8_t in[LINE_MAX_BYTES * 2];
static size_t in_held;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text - 1, format, arguments);
    va_end(arguments);
    if (size > 0) {
        size_t length = (size_t)size < sizeof text - 1 ? (size_t)size : sizeof text - 2;
        text[length] = '\n';
        if (write(STDERR_FILENO, text, length + 1) < 0) _exit(3);
    }
    _exit(2);
}

/* --- output ------------------------------------------------------------------------------------------------------ */

static size_t room(void) {
    return OUT_BYTES - out_first - out_held;
}

static void put(const void *data, size_t size) {
    memcpy(out + out_first + out_held, data, size);
    out_held += size;
    said += size;
}

static void put_line(char op, uint64_t id, uint64_t number) {
    char text[LINE_SMALL];
    int size = number ? snprintf(text, sizeof text, "%c %llu %llu\n", op, (unsigned long long)id, (unsigned long long)number)
                      : snprintf(text, sizeof text, "%c %llu \n", op, (unsigned long long)id);
    put(text, (size_t)size);
}

static void flush(void) {
    while (out_held) {
        ssize_t done = write(STDOUT_FILENO, out + out_first, out_held);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && errno == EAGAIN) break;
        if (done < 0) _exit(0); /* nobody reads any more */
        out_first += (size_t)done;
        out_held -= (size_t)done;
    }
    if (out_first && (!out_held || out_first > OUT_BYTES / 2)) {
        memmove(out, out + out_first, out_held);
        out_first = 0;
    }
}

/* Bytes of data that may be read for the next line; 0: none now. */
static size_t may_say(void) {
    size_t left = room(), unheard = (size_t)(said - heard);
    if (left < RESERVED + LINE_SMALL || unheard + LINE_SMALL >= UNHEARD) return 0;
    left -= RESERVED + LINE_SMALL;
    if (left > UNHEARD - unheard - LINE_SMALL) left = UNHEARD - unheard - LINE_SMALL;
    left = left / 4 * 3;
    return left < DATA_MAX ? left : DATA_MAX;
}

/* --- connections ------------------------------------------------------------------------------------------------- */

static void let_go(struct connection *c) {
    close(c->fd);
    free(c->pending);
    *c = (struct connection){.fd = -1};
    count--;
}

static void reset(struct connection *c) {
    struct linger at_once = {.l_onoff = 1};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    let_go(c);
}

static void accept_one(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            poll(NULL, 0, 50); /* the sandbox has no more of them: those waiting wait on */
            return;
        }
        fail("accepting a connection: %s", strerror(errno));
    }
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct connection *c = all;
    while (c->fd >= 0) c++;
    *c = (struct connection){.fd = fd, .id = ++last_id, .credit = WINDOW};
    count++;
    put_line('o', c->id, 0);
}

static void read_from(struct connection *c) {
    static uint8_t data[DATA_MAX];
    size_t most = may_say();
    if (most > c->credit) most = c->credit;
    if (!most) return;
    ssize_t size = read(c->fd, data, most);
    if (size < 0) {
        c->broken = c->broken || (errno != EAGAIN && errno != EINTR);
    } else if (!size) {
        c->ended = true;
    } else {
        char head[LINE_SMALL];
        int length = snprintf(head, sizeof head, "d %llu ", (unsigned long long)c->id);
        put(head, (size_t)length);
        size_t made = base64_encode(out + out_first + out_held, data, (size_t)size);
        out_held += made;
        said += made;
        put("\n", 1);
        c->credit -= (uint32_t)size;
    }
}

/* Send what the client takes now; how much that was. */
static size_t send_to(struct connection *c, const uint8_t *data, size_t size) {
    ssize_t done = send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0) {
        c->broken = c->broken || (errno != EAGAIN && errno != EINTR);
        return 0;
    }
    c->owed += (uint32_t)done;
    return (size_t)done;
}

static void write_to(struct connection *c) {
    while (c->held && !c->broken) {
        uint32_t piece = c->held < WINDOW - c->first ? c->held : WINDOW - c->first;
        size_t done = send_to(c, c->pending + c->first, piece);
        if (!done) break;
        c->first = (c->first + (uint32_t)done) % WINDOW;
        c->held -= (uint32_t)done;
    }
    if (!c->held && c->finish && !c->shut) {
        c->shut = true;
        if (shutdown(c->fd, SHUT_WR) < 0) c->broken = true;
    }
}

static void keep(struct connection *c, const uint8_t *data, size_t size) {
    if (!c->pending && !(c->pending = malloc(WINDOW))) {
        c->broken = true; /* the sandbox has no memory left: this connection ends, the others go on */
        return;
    }
    for (size_t i = 0; i < size;) {
        uint32_t at = (c->first + c->held) % WINDOW;
        size_t piece = size - i < WINDOW - at ? size - i : WINDOW - at;
        memcpy(c->pending + at, data + i, piece);
        c->held += (uint32_t)piece;
        i += piece;
    }
}

/* Say what is due on a connection, as far as there is room; what is over goes. */
static void tell(struct connection *c) {
    if (room() < 3 * LINE_SMALL) return;
    if (c->broken) {
        put_line('r', c->id, 0);
        reset(c);
        return;
    }
    if (c->owed >= GRANT) {
        put_line('c', c->id, c->owed);
        c->owed = 0;
    }
    if (c->ended && !c->told) {
        put_line('e', c->id, 0);
        c->told = true;
    }
    if (c->told && c->shut) let_go(c);
}

/* --- what the runtime says ---------------------------------------------------------------------------------------- */

static void obey(struct line *line) {
    if (line->op == 'q') {
        flush();
        _exit(0);
    }
    if (line->op == 'p') answer = true;
    if (line->op == 'a') {
        if (line->number < heard || line->number > said) fail("the runtime has heard %llu of %llu bytes",
            (unsigned long long)line->number, (unsigned long long)said);
        heard = line->number;
    }
    if (!line->id) return;
    if (line->id > last_id) fail("the runtime speaks of a connection that never was");
    struct connection *c = all;
    while (c < all + CONNECTIONS && (c->fd < 0 || c->id != line->id)) c++;
    if (c == all + CONNECTIONS || c->broken) return; /* it has ended here, and the runtime does not know yet */
    switch (line->op) {
        case 'd':
            if (c->finish || c->held + c->owed + line->size > WINDOW) fail("the runtime sends more than it may");
            {
                size_t done = c->held ? 0 : send_to(c, line->data, line->size);
                if (done < line->size && !c->broken) keep(c, line->data + done, line->size - done);
            }
            break;
        case 'e':
            c->finish = true;
            write_to(c);
            break;
        case 'c':
            if (line->number > WINDOW - c->credit) fail("the runtime gives more credit than there is");
            c->credit += (uint32_t)line->number;
            break;
        default: reset(c);
    }
}

/* Returns whether there may be more. */
static bool listen_to_runtime(void) {
    ssize_t got = read(STDIN_FILENO, in + in_held, sizeof in - in_held);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (got <= 0) _exit(0);
    in_held += (size_t)got;
    uint8_t *at = in, *end;
    while ((end = memchr(at, '\n', (size_t)(in + in_held - at)))) {
        struct line line;
        switch (line_parse(at, (size_t)(end - at), &line)) {
            case LINE_WRONG: fail("the runtime said what is no line of the protocol");
            case LINE_FINE:
                if (line.seq == last_seq + 1) {
                    last_seq++;
                    obey(&line);
                } else if (line.seq > last_seq) {
                    fail("a line of the runtime's was lost after %llu", (unsigned long long)last_seq);
                }
                break;
            case LINE_TORN: break;
        }
        at = end + 1;
    }
    in_held = (size_t)(in + in_held - at);
    memmove(in, at, in_held);
    if (in_held > LINE_MAX_BYTES) fail("the runtime said a line that has no end");
    return true;
}

/* --- life -------------------------------------------------------------------------------------------------------- */

static int opened(const char *port, uint16_t *chosen) {
    char *end;
    unsigned long number = strtoul(port, &end, 10);
    if (*end || end == port || number > 65535) fail("no port: %.20s", port);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0
        || bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, CONNECTIONS) < 0
        || getsockname(fd, (struct sockaddr *)&at, &size) < 0)
        fail("listening on 127.0.0.1:%lu: %s", number, strerror(errno));
    *chosen = ntohs(at.sin_port);
    return fd;
}

/* The file that runs is needed no longer, nor is its folder: whatever happens now, nothing is left of them. */
static void vanish(char *path) {
    char *slash = strrchr(path, '/');
    if (*path != '/' || slash == path) return;
    unlink(path);
    *slash = 0;
    rmdir(path);
    *slash = '/';
}

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
    if (argc != 2) fail("use: relay PORT");
    vanish(argv[0]);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < CONNECTIONS; i++) all[i].fd = -1;
    uint16_t port;
    int listener = opened(argv[1], &port);
    for (int fd = STDIN_FILENO; fd <= STDOUT_FILENO; fd++) {
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) fail("stdin or stdout: %s", strerror(errno));
    }
    char first[LINE_SMALL];
    put(first, (size_t)snprintf(first, sizeof first, "runra-relay 1 %u\n", port));

    int64_t silent_ms = 0, before = now_ms();
    for (;;) {
        if (answer && room() >= LINE_SMALL) {
            put_line('p', 0, last_seq);
            answer = false;
        }
        for (int i = 0; i < CONNECTIONS; i++)
            if (all[i].fd >= 0) tell(&all[i]);
        flush();
        struct pollfd wait[CONNECTIONS + 3];
        struct connection *of[CONNECTIONS + 3];
        nfds_t n = 3;
        wait[0] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
        wait[1] = (struct pollfd){.fd = out_held ? STDOUT_FILENO : -1, .events = POLLOUT};
        wait[2] = (struct pollfd){.fd = count < CONNECTIONS && room() > RESERVED ? listener : -1, .events = POLLIN};
        bool may = may_say() > 0;
        turn = (turn + 1) % CONNECTIONS; /* another one is first each time */
        for (unsigned i = 0; i < CONNECTIONS; i++) {
            struct connection *c = &all[(turn + i) % CONNECTIONS];
            if (c->fd < 0 || c->broken) continue;
            short events = (short)((may && c->credit && !c->ended ? POLLIN : 0) | (c->held ? POLLOUT : 0));
            if (!events) continue; /* one that has ended on both sides would wake us forever */
            of[n] = c;
            wait[n++] = (struct pollfd){.fd = c->fd, .events = events};
        }
        int ready = poll(wait, n, 1000);
        if (ready < 0 && errno != EINTR) fail("poll: %s", strerror(errno));
        /* A sandbox that was frozen has not waited: a round counts two seconds at most. */
        int64_t now = now_ms(), passed = now - before < 2000 ? now - before : 2000;
        before = now;
        silent_ms = ready > 0 && wait[0].revents ? 0 : silent_ms + passed;
        if (silent_ms > SILENCE_S * 1000) fail("nothing came from the runtime for %d s", SILENCE_S);
        if (ready <= 0) continue;
        /* Before the runtime is heard, which may end connections whose place others then take. */
        for (nfds_t i = 3; i < n; i++) {
            if (wait[i].revents & POLLOUT) write_to(of[i]);
            if (wait[i].revents & (POLLIN | POLLHUP | POLLERR) && !of[i]->ended) read_from(of[i]);
            if (wait[i].revents & POLLERR) of[i]->broken = true;
        }
        if (wait[2].revents) accept_one(listener);
        if (wait[0].revents)
            for (int i = 0; i < 16 && listen_to_runtime(); i++) continue;
    }
}

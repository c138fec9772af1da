/* What the host may ask for. A request that is merely wrong gets an ERROR; a lie about the protocol ends it. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "conn.h"
#include "files.h"
#include "proc.h"
#include "tunnel.h"

bool request_hello(const struct frame *f, const uint8_t *payload, bool *resume) {
    struct request r;
    if (f->type != F_HELLO) return false;
    int error = request_parse(payload, f->length, &r);
    request_free(&r); /* only its numbers matter */
    *resume = r.number[T_RESUME] != 0;
    return !error && r.number[T_VERSION] == PROTOCOL_VERSION;
}

static bool number_fits(const struct request *r, enum field tag, uint64_t most) { return r->number[tag] <= most; }

static bool start(uint32_t stream, const struct request *r) {
    bool command = request_text(r, T_COMMAND) != NULL;
    if (command == (r->argc > 0) || !number_fits(r, T_TIMEOUT_MS, INT32_MAX) || !number_fits(r, T_ROWS, UINT16_MAX) ||
        !number_fits(r, T_COLS, UINT16_MAX))
        return false;
    const char *tag = request_text(r, T_TAG);
    struct proc *same = tag && *tag ? proc_by_tag(tag) : NULL;
    if (same) {
        same->reused = true;
        proc_attach(same, stream, r->number[T_OFFSET], r->number[T_WINDOW]);
        return true;
    }
    enum stage stage;
    int error = proc_start(stream, r, &stage);
    if (error) conn_error(stream, error, stage, stage == STAGE_LIMIT ? proc_limit_words() : strerror(error));
    return true;
}

static bool attach(uint32_t stream, const struct request *r) {
    struct proc *p = proc_by_pid(r->number[T_PID]);
    if (!p || p->state == P_STARTING) conn_error(stream, ESRCH, STAGE_NO_PROCESS, "no such process");
    else proc_attach(p, stream, r->number[T_OFFSET], r->number[T_WINDOW]);
    return true;
}

static bool signal_tree(uint32_t stream, const struct request *r) {
    if (r->number[T_SIGNAL] < 1 || r->number[T_SIGNAL] > (uint64_t)SIGRTMAX) {
        conn_error(stream, EINVAL, STAGE_REQUEST, "no such signal");
        return true;
    }
    struct proc *p = proc_by_pid(r->number[T_PID]);
    int error = p ? proc_signal(p, (int)r->number[T_SIGNAL], stream) : ESRCH;
    if (error) conn_error(stream, error, STAGE_NO_PROCESS, "no such process");
    return true;
}

static bool work(uint32_t stream, const struct request *r) {
    enum stage stage;
    if (!files_known((int)r->number[T_OP]) || !request_text(r, T_PATH)) return false;
    int error = proc_start_work(stream, r, &stage);
    if (error) conn_error(stream, error, stage, stage == STAGE_LIMIT ? proc_limit_words() : strerror(error));
    return true;
}

static void resize(struct proc *p, const uint8_t *payload) {
    struct winsize size = {.ws_row = (unsigned short)(payload[0] | payload[1] << 8),
                           .ws_col = (unsigned short)(payload[2] | payload[3] << 8)};
    if (p->pty && p->out[0].watch.fd >= 0) ioctl(p->out[0].watch.fd, TIOCSWINSZ, &size);
}

static bool about_tunnel(struct tunnel *t, const struct frame *f, const uint8_t *payload) {
    if (f->type == F_DATA) return tunnel_data(t, payload, f->length);
    if (f->type == F_EOF) tunnel_end(t);
    else if (f->type == F_CREDIT) tunnel_credit(t, get32(payload));
    return true;
}

static bool connect_port(uint32_t stream, const struct request *r) {
    int error = tunnel_open(stream, r->number[T_PORT], r->number[T_WINDOW]);
    if (error) conn_error(stream, error, error == EINVAL ? STAGE_REQUEST : STAGE_LIMIT, strerror(error));
    return true;
}

/* Frames about a stream that runs. One that has just ended here is still open over there: such frames mean nothing. */
static bool about_stream(const struct frame *f, const uint8_t *payload) {
    struct proc *p = proc_by_stream(f->stream);
    struct tunnel *t = p ? NULL : tunnel_by_stream(f->stream);
    if (f->type == F_DETACH) {
        if (p) proc_detach(p);
        if (t) tunnel_free(t);
        conn_send(A_CLOSED, f->stream, NULL, 0);
        return true;
    }
    if (t) return about_tunnel(t, f, payload);
    if (!p) return true;
    if (f->type == F_DATA) return stdin_data(p, payload, f->length);
    if (f->type == F_EOF) stdin_end(p);
    else if (f->type == F_CREDIT) output_credit(p, get32(payload));
    else resize(p, payload);
    return true;
}

bool request_handle(const struct frame *f, const uint8_t *payload) {
    struct request r;
    if (f->type == F_HELLO || (f->type != F_PING && !f->stream)) return false;
    if (f->type == F_PING) {
        conn_send(A_PONG, f->stream, NULL, 0);
        return true;
    }
    if (f->type == F_PART) {
        int error = conn_part(f->stream);
        if (error) conn_error(f->stream, error, STAGE_PART, strerror(error));
        return true;
    }
    if (f->type >= F_DATA && f->type <= F_DETACH) return about_stream(f, payload);
    if (f->type == F_LIST) {
        proc_list(f->stream);
        return true;
    }
    int error = request_parse(payload, f->length, &r);
    bool fine = !error && !proc_by_stream(f->stream) && !tunnel_by_stream(f->stream);
    if (fine && f->type == F_EXEC) fine = start(f->stream, &r);
    else if (fine && f->type == F_ATTACH) fine = attach(f->stream, &r);
    else if (fine && f->type == F_SIGNAL) fine = signal_tree(f->stream, &r);
    else if (fine && f->type == F_CONNECT) fine = connect_port(f->stream, &r);
    else if (fine) fine = work(f->stream, &r);
    request_free(&r);
    if (error == ENOMEM) {
        conn_error(f->stream, ENOMEM, STAGE_FORK, "out of memory");
        return true;
    }
    return fine;
}

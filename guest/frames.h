/* The wire format: frame headers and request fields. Pure: reads memory, never a descriptor. */
#ifndef RUNRA_FRAMES_H
#define RUNRA_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PROTOCOL_VERSION = 1,
    FRAME_HEADER = 12,
    MAX_REQUEST = 4 << 20,    /* an EXEC: a command of 1 MiB and its environment */
    MAX_DATA = 64 << 10,      /* DATA, FILE, OUTPUT (plus its offset) */
    MAX_SMALL = 4 << 10,      /* every other request */
    MAX_STRINGS = 16 << 10,   /* arguments, and again environment variables */
};

enum frame_type {
    /* host to agent */
    F_HELLO = 1, F_PING, F_EXEC, F_ATTACH, F_LIST, F_SIGNAL, F_FILE, F_DATA, F_EOF, F_CREDIT, F_RESIZE, F_DETACH,
    F_CONNECT, F_PART,
    /* agent to host */
    A_HELLO = 65, A_PONG, A_STARTED, A_OUTPUT, A_EXIT, A_ERROR, A_CREDIT, A_STDIN_CLOSED, A_STATUS, A_DONE, A_CLOSED,
    A_EOF,
};

enum field {
    /* integers, 8 bytes */
    T_VERSION = 1, T_PID, T_OFFSET, T_WINDOW, T_TIMEOUT_MS, T_STDIN, T_ROWS, T_COLS, T_SIGNAL, T_OP, T_LENGTH,
    T_MODE, T_FLAGS, T_DEPTH, T_STARTED_AT, T_REUSED, T_CODE, T_TIMED_OUT, T_DURATION_MS, T_ENDED_AT, T_ERRNO,
    T_STAGE, T_TYPE, T_SIZE, T_MTIME_MS, T_UID, T_GID, T_IS_DIRECTORY, T_PORT, T_RESUME,
    /* strings, their closing NUL included */
    T_COMMAND = 32, T_ARG, T_ENV, T_CWD, T_USER, T_TAG, T_TITLE, T_PATH, T_TARGET, T_MESSAGE, T_NAME, T_OWNER,
    T_GROUP,
};
#define T_LAST_NUMBER T_RESUME
#define T_LAST_TEXT T_GROUP

/* What an ERROR is about. */
enum stage {
    STAGE_REQUEST = 1, STAGE_LIMIT, STAGE_FORK, STAGE_USER, STAGE_CWD, STAGE_PTY, STAGE_NO_PROCESS, STAGE_TAKEN,
    STAGE_CONNECT, STAGE_PART,
};

struct frame {
    uint32_t length;
    uint8_t type;
    uint8_t flags;
    uint32_t stream;
};

/* A request's fields; strings point into the payload it was parsed from. */
struct request {
    uint64_t number[32];    /* by tag; zero when absent */
    const char *text[16];   /* by tag minus 32; NULL when absent */
    const char **argv;      /* closed by NULL */
    const char **env;
    size_t argc, envc;
    uint32_t seen;          /* bit per integer tag */
};

/* Decode a header. False: unknown type, reserved bits, or a payload too large for its type. */
bool frame_decode(const uint8_t header[FRAME_HEADER], struct frame *out);
void frame_encode(uint8_t header[FRAME_HEADER], uint32_t length, enum frame_type type, uint8_t flags, uint32_t stream);

/* Parse fields. 0, or an errno: EPROTO for what no honest host sends, ENOMEM. Free with request_free either way. */
int request_parse(const uint8_t *payload, size_t length, struct request *out);
void request_free(struct request *r);

static inline bool request_has(const struct request *r, enum field tag) { return (r->seen >> tag) & 1u; }
static inline const char *request_text(const struct request *r, enum field tag) { return r->text[tag - 32]; }

/* A writer of fields into a caller's buffer; what does not fit sets `full` and is left out. */
struct fields {
    uint8_t *at;
    size_t used, room;
    bool full;
};

void put_number(struct fields *f, enum field tag, uint64_t value);
void put_bytes(struct fields *f, enum field tag, const void *bytes, size_t length);
void put_text(struct fields *f, enum field tag, const char *text);

static inline uint32_t get32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline void set32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (8 * i));
}
static inline void set64(uint8_t *p, uint64_t v) {
    for (int i = 0; i < 8; i++) p[i] = (uint8_t)(v >> (8 * i));
}

#endif

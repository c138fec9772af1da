/* The wire format: header checks, and the fields of requests and answers. */
#include "frames.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint32_t largest(uint8_t type) {
    switch (type) {
    case F_EXEC: return MAX_REQUEST;
    case F_FILE:
    case F_DATA: return MAX_DATA;
    case F_CREDIT:
    case F_RESIZE: return 4;
    case F_PING:
    case F_LIST:
    case F_PART:
    case F_EOF:
    case F_DETACH: return 0;
    default: return MAX_SMALL;
    }
}

bool frame_decode(const uint8_t h[FRAME_HEADER], struct frame *out) {
    out->length = get32(h);
    out->type = h[4];
    out->flags = h[5];
    out->stream = get32(h + 8);
    if (out->type < F_HELLO || out->type > F_PART || out->flags || h[6] || h[7]) return false;
    if ((out->type == F_CREDIT || out->type == F_RESIZE) && out->length != 4) return false;
    return out->length <= largest(out->type);
}

void frame_encode(uint8_t h[FRAME_HEADER], uint32_t length, enum frame_type type, uint8_t flags, uint32_t stream) {
    set32(h, length);
    h[4] = (uint8_t)type;
    h[5] = flags;
    h[6] = h[7] = 0;
    set32(h + 8, stream);
}

/* Append to an array that doubles and always stays closed by NULL. */
static int push(const char ***list, size_t *count, const char *text) {
    if (*count >= MAX_STRINGS) return EPROTO;
    if ((*count & (*count + 1)) == 0) { /* 0, 1, 3, 7 …: full */
        const char **grown = realloc(*list, (*count * 2 + 2) * sizeof *grown);
        if (!grown) return ENOMEM;
        *list = grown;
    }
    (*list)[(*count)++] = text;
    (*list)[*count] = NULL;
    return 0;
}

int request_parse(const uint8_t *p, size_t length, struct request *r) {
    memset(r, 0, sizeof *r);
    while (length) {
        if (length < 5) return EPROTO;
        uint8_t tag = p[0];
        uint32_t size = get32(p + 1);
        p += 5;
        length -= 5;
        if (size > length) return EPROTO;
        if (tag >= T_VERSION && tag <= T_LAST_NUMBER) {
            if (size != 8 || ((r->seen >> tag) & 1u)) return EPROTO;
            r->seen |= 1u << tag;
            r->number[tag] = (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32;
        } else if (tag >= T_COMMAND && tag <= T_LAST_TEXT) {
            /* exactly one NUL, at the end: then the payload itself serves as C strings */
            if (!size || memchr(p, 0, size) != p + size - 1) return EPROTO;
            const char *text = (const char *)p;
            int bad = 0;
            if (tag == T_ARG) bad = push(&r->argv, &r->argc, text);
            else if (tag == T_ENV) bad = push(&r->env, &r->envc, text);
            else if (r->text[tag - 32]) bad = EPROTO;
            else r->text[tag - 32] = text;
            if (bad) return bad;
        } else {
            return EPROTO;
        }
        p += size;
        length -= size;
    }
    return 0;
}

void request_free(struct request *r) {
    free(r->argv);
    free(r->env);
    r->argv = r->env = NULL;
}

static uint8_t *put(struct fields *f, enum field tag, size_t length) {
    if (f->full || length > UINT32_MAX || f->room - f->used < length + 5) {
        f->full = true;
        return NULL;
    }
    uint8_t *at = f->at + f->used;
    at[0] = (uint8_t)tag;
    set32(at + 1, (uint32_t)length);
    f->used += length + 5;
    return at + 5;
}

void put_number(struct fields *f, enum field tag, uint64_t value) {
    uint8_t *at = put(f, tag, 8);
    if (at) set64(at, value);
}

void put_bytes(struct fields *f, enum field tag, const void *bytes, size_t length) {
    uint8_t *at = put(f, tag, length);
    if (at) memcpy(at, bytes, length);
}

void put_text(struct fields *f, enum field tag, const char *text) { put_bytes(f, tag, text, strlen(text) + 1); }

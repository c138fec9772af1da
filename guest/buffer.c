/* The bounded output buffer: a ring of bytes and a ring of stream changes, both grown as needed. */
#include "buffer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static size_t total; /* bytes held by all buffers */

static size_t at(const struct buffer *b, uint64_t offset) { return (size_t)(offset & (b->size - 1)); }
static uint64_t segment(const struct buffer *b, uint32_t i) {
    return b->segments[(b->seg_first + i) & (b->seg_size - 1)];
}

/* The one or two runs of memory that hold `length` bytes from `offset`. */
static int runs(const struct buffer *b, uint64_t offset, size_t length, struct iovec v[2]) {
    size_t first = at(b, offset), straight = b->size - first;
    v[0] = (struct iovec){b->data + first, length < straight ? length : straight};
    v[1] = (struct iovec){b->data, length - v[0].iov_len};
    return v[1].iov_len ? 2 : 1;
}

static int resize(struct buffer *b, size_t size) {
    uint8_t *fresh = malloc(size);
    if (!fresh) return -1;
    if (b->end > b->start) {
        struct iovec v[2];
        int n = runs(b, b->start, (size_t)(b->end - b->start), v);
        uint64_t offset = b->start;
        for (int i = 0; i < n; i++) {
            size_t done = 0;
            while (done < v[i].iov_len) {
                size_t to = (size_t)(offset & (size - 1)), part = v[i].iov_len - done;
                if (part > size - to) part = size - to;
                memcpy(fresh + to, (uint8_t *)v[i].iov_base + done, part);
                done += part;
                offset += part;
            }
        }
    }
    free(b->data);
    total += size - b->size;
    b->data = fresh;
    b->size = size;
    return 0;
}

static void drop_until(struct buffer *b, uint64_t offset) {
    b->start = offset;
    while (b->seg_count && (segment(b, 0) >> 1) <= offset) {
        b->seg_first = (b->seg_first + 1) & (b->seg_size - 1);
        b->seg_count--;
    }
}

/* Room for one more segment. */
static int segment_room(struct buffer *b, uint64_t keep) {
    if (b->seg_count < b->seg_size) return 0;
    if (b->seg_size >= SEGMENTS_MAX) {
        uint64_t oldest = segment(b, 0) >> 1;
        if (oldest > keep) return -1;
        drop_until(b, oldest);
        return 0;
    }
    uint32_t size = b->seg_size ? b->seg_size * 4 : 4;
    uint64_t *fresh = malloc(size * sizeof *fresh);
    if (!fresh) return -1;
    for (uint32_t i = 0; i < b->seg_count; i++) fresh[i] = segment(b, i);
    free(b->segments);
    b->segments = fresh;
    b->seg_size = size;
    b->seg_first = 0;
    return 0;
}

ssize_t buffer_fill(struct buffer *b, int fd, int stream, size_t max, uint64_t keep) {
    size_t used = (size_t)(b->end - b->start);
    if (!b->size && resize(b, BUFFER_MIN) < 0) {
        errno = ENOMEM;
        return -1;
    }
    while (b->size < BUFFER_MAX && b->size - used < b->size / 2 && total + b->size * 3 <= BUFFERS_TOTAL)
        if (resize(b, b->size * 4) < 0) break;
    size_t wanted = b->size / 2 < BUFFER_SPARE ? b->size / 2 : BUFFER_SPARE;
    if (b->size - used < wanted && keep > b->start) {
        uint64_t spare = wanted - (b->size - used), droppable = keep - b->start;
        drop_until(b, b->start + (spare < droppable ? spare : droppable));
        used = (size_t)(b->end - b->start);
    }
    size_t room = b->size - used;
    int same = b->seg_count && (int)(segment(b, b->seg_count - 1) & 1) == stream;
    if (!room || (!same && segment_room(b, keep) < 0)) {
        errno = ENOBUFS;
        return -1;
    }
    struct iovec v[2];
    int n = runs(b, b->end, room < max ? room : max, v);
    ssize_t got = readv(fd, v, n);
    if (got <= 0) return got;
    b->end += (uint64_t)got;
    if (!same) b->seg_count++;
    b->segments[(b->seg_first + b->seg_count - 1) & (b->seg_size - 1)] = b->end << 1 | (uint64_t)stream;
    return got;
}

size_t buffer_peek(const struct buffer *b, uint64_t offset, size_t max, int *stream, struct iovec v[2]) {
    if (offset < b->start || offset >= b->end) return 0;
    uint32_t low = 0, high = b->seg_count - 1; /* the first segment that ends behind `offset` */
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if ((segment(b, middle) >> 1) > offset) high = middle;
        else low = middle + 1;
    }
    uint64_t found = segment(b, low), length = (found >> 1) - offset;
    *stream = (int)(found & 1);
    if (length > max) length = max;
    runs(b, offset, (size_t)length, v);
    return (size_t)length;
}

void buffer_skip(struct buffer *b, size_t count) {
    b->end += count;
    drop_until(b, b->end);
}

void buffer_shrink(struct buffer *b) {
    size_t used = (size_t)(b->end - b->start), size = 64;
    if (!used) {
        buffer_free(b);
        return;
    }
    while (size < used) size *= 2;
    if (size < b->size) resize(b, size);
}

void buffer_free(struct buffer *b) {
    total -= b->size;
    free(b->data);
    free(b->segments);
    *b = (struct buffer){.start = b->end, .end = b->end};
}

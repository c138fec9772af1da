/* The bounded buffer of one process's output: stdout and stderr in the order they came, by one offset. */
#ifndef RUNRA_BUFFER_H
#define RUNRA_BUFFER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum {
    BUFFER_MAX = 1 << 20,      /* bytes a process */
    BUFFER_MIN = 4 << 10,
    BUFFER_SPARE = 64 << 10,   /* room made for each read once the buffer has its full size */
    SEGMENTS_MAX = 4096,       /* changes between stdout and stderr */
    BUFFERS_TOTAL = 64 << 20,  /* of all processes: beyond it buffers stop growing */
};

struct buffer {
    uint8_t *data;     /* a byte lives at its offset modulo size */
    size_t size;       /* a power of two, or 0 */
    uint64_t start, end;
    uint64_t *segments; /* ring; each is (end offset << 1 | stream) */
    uint32_t seg_size, seg_first, seg_count;
};

/* Read once from `fd`, at most `max` bytes. Bytes before `keep` may be dropped for it. As read(2) returns; -1 with
 * ENOBUFS when there is no room, with ENOMEM when there is no memory for any. */
ssize_t buffer_fill(struct buffer *b, int fd, int stream, size_t max, uint64_t keep);

/* The bytes from `offset` on that are of one stream, at most `max`: their count, 0 when there are none. */
size_t buffer_peek(const struct buffer *b, uint64_t offset, size_t max, int *stream, struct iovec part[2]);

void buffer_skip(struct buffer *b, size_t count); /* count bytes that no buffer could take */
void buffer_shrink(struct buffer *b);             /* give back what an ended process does not need */
void buffer_free(struct buffer *b);               /* drop the bytes; offsets stay */

#endif

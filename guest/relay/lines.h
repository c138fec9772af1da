/* The lines a relay and its runtime speak: ASCII, so that they survive whatever carries a process's output as text.
 *
 *   to the relay    SEQ OP ID ARG;\n     SEQ counts the lines from 1. A line that came twice is skipped, one that was torn
 *                                        (no ';') ignored: the runtime says everything again that it is not sure of.
 *   to the runtime  OP ID ARG\n          after the first line, "runra-relay 1 PORT".
 *
 *   o   a connection was accepted (to the runtime only)      d   data, base64
 *   e   the sender has no more data                          r   the connection is no more
 *   c   ARG more bytes may be sent on it                     p   a sign of life, ID 0; answered with one that says in
 *                                                                ARG up to which SEQ lines have been taken
 *   a   ARG bytes of output have arrived in all; ID 0        q   end; ID 0 (both to the relay only)
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most bytes in one line of data, and of a line. */
#define DATA_MAX (24u * 1024)
#define LINE_MAX_BYTES (DATA_MAX / 3 * 4 + 64)

enum parsed { LINE_FINE, LINE_TORN, LINE_WRONG };

struct line {
    uint64_t seq;
    char op;
    uint64_t id;
    uint64_t number; /* c, a */
    uint8_t *data;   /* d: decoded in place, inside the line */
    size_t size;
};

/* Read one line, without its end. What is said in it is overwritten. */
enum parsed line_parse(uint8_t *text, size_t size, struct line *out);

/* Write `size` bytes as base64 at `out`, which has room for four thirds of them, rounded up. Returns how many were written. */
size_t base64_encode(uint8_t *out, const uint8_t *data, size_t size);

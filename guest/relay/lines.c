/* Reads the lines a runtime sends, strictly, and writes base64. */
#include "lines.h"

/* No number is as large: ids and counts of bytes stay far below it. */
#define DIGITS_MAX 15

static bool number(const uint8_t **at, const uint8_t *end, uint64_t *out) {
    const uint8_t *from = *at;
    uint64_t value = 0;
    while (*at < end && **at >= '0' && **at <= '9') {
        if (*at - from == DIGITS_MAX) return false;
        value = value * 10 + (uint64_t)(**at - '0');
        ++*at;
    }
    *out = value;
    return *at > from && (*from != '0' || *at == from + 1);
}

static bool space(const uint8_t **at, const uint8_t *end) {
    return *at < end && *(*at)++ == ' ';
}

static int sextet(uint8_t c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decode over the text itself. */
static bool decode(uint8_t *text, size_t size, size_t *out) {
    if (size % 4 || !size) return false;
    size_t pad = text[size - 1] != '=' ? 0 : text[size - 2] != '=' ? 1 : 2, made = 0;
    for (size_t at = 0; at < size; at += 4) {
        bool last = at + 4 == size;
        uint32_t bits = 0;
        for (size_t i = 0; i < 4; i++) {
            int value = last && i >= 4 - pad ? 0 : sextet(text[at + i]);
            if (value < 0) return false;
            bits = bits << 6 | (uint32_t)value;
        }
        text[made++] = (uint8_t)(bits >> 16);
        if (!last || pad < 2) text[made++] = (uint8_t)(bits >> 8);
        if (!last || pad < 1) text[made++] = (uint8_t)bits;
    }
    *out = made;
    return made <= DATA_MAX;
}

enum parsed line_parse(uint8_t *text, size_t size, struct line *out) {
    *out = (struct line){0};
    if (!size || text[size - 1] != ';') return LINE_TORN;
    const uint8_t *at = text, *end = text + size - 1;
    if (!number(&at, end, &out->seq) || !space(&at, end) || at == end) return LINE_WRONG;
    out->op = (char)*at++;
    if (!space(&at, end) || !number(&at, end, &out->id) || !space(&at, end)) return LINE_WRONG;
    bool of_connection = out->op == 'd' || out->op == 'e' || out->op == 'r' || out->op == 'c';
    if (of_connection != (out->id > 0)) return LINE_WRONG;
    switch (out->op) {
        case 'd':
            out->data = text + (at - text);
            return decode(out->data, (size_t)(end - at), &out->size) ? LINE_FINE : LINE_WRONG;
        case 'c':
        case 'a': return number(&at, end, &out->number) && at == end ? LINE_FINE : LINE_WRONG;
        case 'e':
        case 'r':
        case 'p':
        case 'q': return at == end ? LINE_FINE : LINE_WRONG;
        default: return LINE_WRONG;
    }
}

size_t base64_encode(uint8_t *out, const uint8_t *data, size_t size) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t *at = out;
    size_t i = 0;
    for (; i + 3 <= size; i += 3) {
        uint32_t bits = (uint32_t)data[i] << 16 | (uint32_t)data[i + 1] << 8 | data[i + 2];
        *at++ = (uint8_t)letters[bits >> 18];
        *at++ = (uint8_t)letters[bits >> 12 & 63];
        *at++ = (uint8_t)letters[bits >> 6 & 63];
        *at++ = (uint8_t)letters[bits & 63];
    }
    if (i < size) {
        uint32_t bits = (uint32_t)data[i] << 16 | (i + 1 < size ? (uint32_t)data[i + 1] << 8 : 0);
        *at++ = (uint8_t)letters[bits >> 18];
        *at++ = (uint8_t)letters[bits >> 12 & 63];
        *at++ = (uint8_t)(i + 1 < size ? letters[bits >> 6 & 63] : '=');
        *at++ = '=';
    }
    return (size_t)(at - out);
}

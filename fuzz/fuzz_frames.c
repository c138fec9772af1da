/* libFuzzer target: what the agent's frame and field parsers do with any bytes. Built and run by fuzz/run.sh. */
#include <stdlib.h>
#include <string.h>

#include "../guest/frames.h"

static void check(bool fine) {
    if (!fine) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct frame f;
    if (size >= FRAME_HEADER && frame_decode(data, &f)) {
        uint8_t again[FRAME_HEADER];
        frame_encode(again, f.length, (enum frame_type)f.type, f.flags, f.stream);
        check(!memcmp(again, data, FRAME_HEADER)); /* what was accepted is what an encoder would have said */
        check(f.length <= MAX_REQUEST);
        data += FRAME_HEADER;
        size -= FRAME_HEADER;
    }
    /* a copy of its exact size: a read beyond its end is then seen */
    uint8_t *payload = malloc(size ? size : 1);
    if (!payload) return 0;
    if (size) memcpy(payload, data, size);
    struct request r;
    if (request_parse(payload, size, &r) == 0) {
        uint8_t *room = malloc(size ? size : 1);
        struct fields out = {.at = room, .room = size};
        for (int tag = T_VERSION; tag <= T_LAST_NUMBER; tag++)
            if (request_has(&r, (enum field)tag)) put_number(&out, (enum field)tag, r.number[tag]);
        for (int tag = T_COMMAND; tag <= T_LAST_TEXT; tag++)
            if (request_text(&r, (enum field)tag)) put_text(&out, (enum field)tag, request_text(&r, (enum field)tag));
        for (size_t i = 0; i < r.argc; i++) put_text(&out, T_ARG, r.argv[i]);
        for (size_t i = 0; i < r.envc; i++) put_text(&out, T_ENV, r.env[i]);
        check(!out.full && out.used == size); /* nothing lost, nothing made up */
        check(!r.argv || !r.argv[r.argc]);
        check(!r.env || !r.env[r.envc]);
        free(room);
    }
    request_free(&r);
    free(payload);
    return 0;
}

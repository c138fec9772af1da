/* libFuzzer target: what the relay's parser of lines does with any bytes. Built and run by fuzz/run.sh. */
#include <stdlib.h>
#include <string.h>

#include "../guest/relay/lines.h"

static void check(bool fine) {
    if (!fine) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* a copy of its exact size: a read or write beyond its end is then seen */
    uint8_t *text = malloc(size ? size : 1);
    if (!text) return 0;
    if (size) memcpy(text, data, size);
    struct line line;
    if (line_parse(text, size, &line) == LINE_FINE) {
        check((line.op == 'd') == (line.size > 0) && line.size <= DATA_MAX);
        if (line.op == 'd') {
            uint8_t *again = malloc((line.size + 2) / 3 * 4);
            if (again) {
                size_t made = base64_encode(again, line.data, line.size);
                size_t from = size - 1 - made; /* what was said, up to bits that decode to nothing */
                check(made < size && !memcmp(again, data + from, made - 4));
            }
            free(again);
        }
    }
    free(text);
    return 0;
}

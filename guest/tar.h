/* The layout of a tar header (POSIX ustar), shared by writing and reading archives. */
#ifndef RUNRA_TAR_H
#define RUNRA_TAR_H

#include <stddef.h>

enum { TAR_BLOCK = 512 };

struct tar_header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[6], version[2],
        owner[32], group[32], major[8], minor[8], prefix[155], unused[12];
};

static inline unsigned tar_checksum(const struct tar_header *h) {
    const unsigned char *p = (const unsigned char *)h;
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof *h; i++)
        sum += i >= offsetof(struct tar_header, checksum) && i < offsetof(struct tar_header, type) ? ' ' : p[i];
    return sum;
}

#endif

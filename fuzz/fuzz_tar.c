/* libFuzzer target: a hostile archive unpacked by the agent's reader into a folder of tmpfs; nothing may appear beside it.
 *
 * The reader ends its process when an archive is bad. Here that is a jump back; its descriptors are closed by number,
 * and its memory comes from a list that is freed with them. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../guest/work.h"

enum { ENTRIES_MOST = 3 }; /* ".", ".." and the folder itself */

static struct piece {
    struct piece *next;
    char bytes[];
} *pieces;

static void *piece_malloc(size_t size) {
    struct piece *p = malloc(sizeof *p + size);
    if (!p) return NULL;
    p->next = pieces;
    pieces = p;
    return p->bytes;
}

static char *piece_strndup(const char *text, size_t most) {
    size_t length = strnlen(text, most);
    char *copy = piece_malloc(length + 1);
    if (!copy) return NULL;
    memcpy(copy, text, length);
    copy[length] = 0;
    return copy;
}

static void piece_free(void *at) {
    for (struct piece **p = &pieces; at && *p; p = &(*p)->next)
        if ((*p)->bytes == at) {
            struct piece *gone = *p;
            *p = gone->next;
            free(gone);
            return;
        }
    if (at) abort(); /* freed twice, or never had */
}

#define malloc piece_malloc
#define strndup piece_strndup
#define free piece_free
#include "../guest/tar_in.c"
#undef malloc
#undef strndup
#undef free

static jmp_buf end;
static const uint8_t *input;
static size_t left;
static char base[] = "/dev/shm/runra-fuzz-XXXXXX";

/* What tar_in.c needs of work.c, over memory. */
void work_fail(int error, const char *message) {
    (void)message;
    if (!error) abort();
    longjmp(end, 1);
}

size_t work_get(void *to, size_t length) {
    size_t part = length < left ? length : left;
    memcpy(to, input, part);
    input += part;
    left -= part;
    return part;
}

bool write_all(int fd, const void *bytes, size_t length) { return write(fd, bytes, length) == (ssize_t)length; }

int make_folders(const char *path) { return mkdir(path, 0755) < 0 ? 17 : 0; }

static void empty(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) return;
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")) continue;
        if (unlinkat(fd, d->d_name, 0) < 0) {
            empty(fd, d->d_name);
            unlinkat(fd, d->d_name, AT_REMOVEDIR);
        }
    }
    closedir(dir);
}

static void remove_base(void) {
    empty(AT_FDCWD, base);
    rmdir(base);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    if (!mkdtemp(base)) abort();
    atexit(remove_base);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char folder[64];
    snprintf(folder, sizeof folder, "%s/in", base);
    input = data;
    left = size;
    int first = dup(0); /* descriptors are given out from here on; the reader's are all of them */
    if (!setjmp(end)) do_archive_in(folder);
    close_range((unsigned)first, ~0u, 0);
    while (pieces) {
        struct piece *next = pieces->next;
        free(pieces);
        pieces = next;
    }
    DIR *dir = opendir(base);
    int entries = 0;
    while (dir && readdir(dir)) entries++;
    if (entries > ENTRIES_MOST) abort(); /* something was made outside the folder */
    if (dir) closedir(dir);
    empty(AT_FDCWD, folder);
    rmdir(folder);
    return 0;
}

/* Archives out: a file or a folder's content as a tar stream, pax records where ustar is too narrow. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tar.h"
#include "users.h"
#include "walk.h"
#include "work.h"

static const char zeros[TAR_BLOCK];

static void pad(uint64_t length) { work_put(zeros, (TAR_BLOCK - length % TAR_BLOCK) % TAR_BLOCK); }

/* An octal field, closed by NUL. What does not fit is 0 here and right in a pax record. */
static bool octal(char *field, size_t size, uint64_t value) {
    bool fits = value >> (3 * (size - 1)) == 0;
    if (!fits) value = 0;
    field[size - 1] = 0;
    for (size_t i = size - 1; i-- > 0; value >>= 3) field[i] = (char)('0' + (value & 7));
    return fits;
}

static void put_header(struct tar_header *h) {
    memcpy(h->magic, "ustar", 6);
    memcpy(h->version, "00", 2);
    octal(h->checksum, 7, tar_checksum(h));
    h->checksum[7] = ' ';
    work_put(h, sizeof *h);
}

/* "LENGTH KEY=VALUE\n", where LENGTH counts itself. */
static void pax_record(char **text, size_t *used, const char *key, const char *value) {
    size_t body = strlen(key) + strlen(value) + 3, length = body + 1;
    char digits[24];
    while (body + (size_t)snprintf(digits, sizeof digits, "%zu", length) != length)
        length = body + strlen(digits);
    char *grown = realloc(*text, *used + length + 1);
    if (!grown) work_fail(ENOMEM, NULL);
    *text = grown;
    *used += (size_t)snprintf(grown + *used, length + 1, "%zu %s=%s\n", length, key, value);
}

static void put_number_record(char **text, size_t *used, const char *key, uint64_t value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    pax_record(text, used, key, digits);
}

static void put_name(char *field, size_t size, const char *name, char **pax, size_t *used, const char *key) {
    size_t length = strlen(name);
    if (length > size) pax_record(pax, used, key, name);
    memcpy(field, name, length < size ? length : size);
}

static void put_member(const char *name, const char *link, char type, uint64_t size, const struct stat *st) {
    struct tar_header h = {0};
    char *pax = NULL;
    size_t used = 0;
    put_name(h.name, sizeof h.name, name, &pax, &used, "path");
    if (link) put_name(h.link, sizeof h.link, link, &pax, &used, "linkpath");
    octal(h.mode, sizeof h.mode, st->st_mode & 07777);
    if (!octal(h.uid, sizeof h.uid, st->st_uid)) put_number_record(&pax, &used, "uid", st->st_uid);
    if (!octal(h.gid, sizeof h.gid, st->st_gid)) put_number_record(&pax, &used, "gid", st->st_gid);
    if (!octal(h.size, sizeof h.size, size)) put_number_record(&pax, &used, "size", size);
    octal(h.mtime, sizeof h.mtime, st->st_mtime > 0 ? (uint64_t)st->st_mtime : 0);
    snprintf(h.owner, sizeof h.owner, "%s", user_name(st->st_uid));
    snprintf(h.group, sizeof h.group, "%s", group_name(st->st_gid));
    h.type = type;
    if (pax) {
        struct tar_header x = {.name = "pax", .type = 'x'};
        octal(x.mode, sizeof x.mode, 0644);
        octal(x.size, sizeof x.size, used);
        octal(x.uid, sizeof x.uid, 0);
        octal(x.gid, sizeof x.gid, 0);
        octal(x.mtime, sizeof x.mtime, 0);
        put_header(&x);
        work_put(pax, used);
        pad(used);
        free(pax);
    }
    put_header(&h);
}

static int put_file(int dir, const char *name, const char *shown) {
    struct stat st;
    int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? 0 : errno;
    if (fstat(fd, &st) < 0) return errno;
    if (S_ISREG(st.st_mode)) {
        uint64_t size = (uint64_t)st.st_size;
        put_member(shown, NULL, '0', size, &st);
        /* the header has promised a size: a file that grows is cut there, one that shrinks is filled up */
        for (uint64_t done = work_copy(fd, size); done < size;) {
            size_t part = size - done < sizeof zeros ? (size_t)(size - done) : sizeof zeros;
            work_put(zeros, part);
            done += part;
        }
        pad(size);
    }
    close(fd);
    return 0;
}

static int put_any(void *context, const struct visit *v) {
    (void)context;
    if (S_ISREG(v->st.st_mode)) return put_file(v->dir, v->name, v->path);
    if (S_ISDIR(v->st.st_mode)) {
        char *name = NULL;
        if (asprintf(&name, "%s/", v->path) < 0) return ENOMEM;
        put_member(name, NULL, '5', 0, &v->st);
        free(name);
    } else if (S_ISLNK(v->st.st_mode)) {
        char target[4096];
        ssize_t length = readlinkat(v->dir, v->name, target, sizeof target - 1);
        if (length < 0) return errno == ENOENT ? 0 : errno;
        target[length] = 0;
        put_member(v->path, target, '2', 0, &v->st);
    }
    return 0; /* pipes, sockets and devices have no content to carry */
}

void do_archive_out(const char *path) {
    struct stat st;
    int error = 0;
    if (stat(path, &st) < 0) work_fail(errno, NULL);
    if (S_ISDIR(st.st_mode)) {
        struct walk w = {.depth = SIZE_MAX, .enter = put_any};
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        error = fd < 0 ? errno : walk_tree(fd, &w);
    } else if (S_ISREG(st.st_mode)) {
        char *real = realpath(path, NULL);
        error = real ? put_file(AT_FDCWD, real, base_name(path)) : errno;
        free(real);
    } else {
        error = ENXIO;
    }
    if (error) work_fail(error, error == ENXIO ? "neither a regular file nor a folder" : NULL);
    work_put(zeros, TAR_BLOCK);
    work_put(zeros, TAR_BLOCK);
}

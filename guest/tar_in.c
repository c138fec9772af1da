/* Archives in: a hostile tar stream unpacked into a folder. No name leads out of it, no link is written through. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tar.h"
#include "work.h"

enum { EXTRA_MAX = 64 << 10, NAME_BOUND = 4096, CHUNK = 64 << 10 };

/* What the next member is, put together from its header and the records before it. */
struct member {
    char *path, *link;  /* from pax or GNU records; NULL: as in the header */
    uint64_t size;
    int64_t mtime;
    bool has_size;
};

static void bad(const char *why) { work_fail(EBADMSG, why); }

static void skip(uint64_t length) {
    static uint8_t scrap[CHUNK];
    while (length) {
        size_t part = length < sizeof scrap ? (size_t)length : sizeof scrap;
        if (work_get(scrap, part) != part) bad("the archive is cut off");
        length -= part;
    }
}

static uint64_t padding(uint64_t length) { return (TAR_BLOCK - length % TAR_BLOCK) % TAR_BLOCK; }

/* An octal number, or a binary one marked by the top bit. */
static uint64_t number(const char *field, size_t size) {
    uint64_t value = 0;
    if (field[0] & 0x80) {
        for (size_t i = 0; i < size; i++) {
            unsigned char byte = (unsigned char)field[i];
            if (i == 0) byte &= 0x7f;
            if (value >> 55) bad("a number out of range");
            value = value << 8 | byte;
        }
        return value;
    }
    size_t i = 0;
    while (i < size && field[i] == ' ') i++;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) value = value << 3 | (uint64_t)(field[i] - '0');
    if (i < size && field[i] && field[i] != ' ') bad("a number that is none");
    return value;
}

/* The content of a record about the next member. */
static char *record(uint64_t size) {
    if (size > EXTRA_MAX) bad("a header record too long");
    char *text = malloc((size_t)size + 1);
    if (!text) work_fail(ENOMEM, NULL);
    if (work_get(text, (size_t)size) != size) bad("the archive is cut off");
    text[size] = 0;
    skip(padding(size));
    return text;
}

static void replace(char **at, const char *text, size_t length) {
    if (memchr(text, 0, length) || length >= NAME_BOUND) bad("a name with a NUL or too long");
    free(*at);
    *at = strndup(text, length);
    if (!*at) work_fail(ENOMEM, NULL);
}

static uint64_t decimal(const char *text, size_t length) {
    uint64_t value = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9' || value > INT64_MAX / 10 - 10) bad("a number that is none");
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    return value;
}

static void pax(const char *text, size_t size, struct member *m) {
    while (size) {
        char *end;
        unsigned long length = *text >= '1' && *text <= '9' ? strtoul(text, &end, 10) : 0;
        if (!length || length > size || *end != ' ' || text[length - 1] != '\n') bad("a malformed pax record");
        const char *key = end + 1, *stop = text + length - 1;
        const char *equals = key < stop ? memchr(key, '=', (size_t)(stop - key)) : NULL;
        if (!equals) bad("a malformed pax record");
        size_t name = (size_t)(equals - key), rest = (size_t)(stop - equals - 1);
        if (name == 4 && !memcmp(key, "path", 4)) replace(&m->path, equals + 1, rest);
        else if (name == 8 && !memcmp(key, "linkpath", 8)) replace(&m->link, equals + 1, rest);
        else if (name == 4 && !memcmp(key, "size", 4)) m->size = decimal(equals + 1, rest), m->has_size = true;
        else if (name > 10 && !memcmp(key, "GNU.sparse", 10)) bad("sparse members are not supported");
        text += length;
        size -= length;
    }
}

/* The open folder that the last step of `path` is in, and that step; made on the way when `make`. Every step is opened
 * by itself and must be a real folder, so that no link, whoever made it, leads elsewhere. */
static int folder_in(int root, const char *path, bool make, char last[256]) {
    int at = dup(root);
    if (*path == '/') work_fail(EBADMSG, "an absolute name in the archive");
    *last = 0;
    while (*path) {
        size_t length = strcspn(path, "/");
        const char *rest = path + length + strspn(path + length, "/");
        if (length > 255) work_fail(ENAMETOOLONG, NULL);
        if (length == 2 && path[0] == '.' && path[1] == '.') bad("a name with '..' in the archive");
        if (length && !(length == 1 && *path == '.')) {
            if (*last) {
                if (make && mkdirat(at, last, 0755) < 0 && errno != EEXIST) work_fail(errno, NULL);
                int next = openat(at, last, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
                if (next < 0) work_fail(errno, NULL);
                close(at);
                at = next;
            }
            memcpy(last, path, length);
            last[length] = 0;
        }
        path = rest;
    }
    if (at < 0) work_fail(errno, NULL);
    return at;
}

static void make_way(int dir, const char *name) {
    if (unlinkat(dir, name, 0) < 0 && errno != ENOENT) work_fail(errno == EPERM ? EISDIR : errno, NULL);
}

static void put_file(int dir, const char *name, uint64_t size, mode_t mode, int64_t mtime) {
    static uint8_t chunk[CHUNK];
    make_way(dir, name);
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) work_fail(errno, NULL);
    for (uint64_t left = size; left;) {
        size_t part = left < sizeof chunk ? (size_t)left : sizeof chunk;
        if (work_get(chunk, part) != part) bad("the archive is cut off");
        if (!write_all(fd, chunk, part)) work_fail(errno, NULL);
        left -= part;
    }
    skip(padding(size));
    struct timespec times[] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = mtime}};
    /* no set-id bits: whoever owned the file over there, here it is the unpacker's */
    if (fchmod(fd, mode & 01777) < 0 || futimens(fd, times) < 0 || close(fd) < 0) work_fail(errno, NULL);
}

static void put_folder(int dir, const char *name, mode_t mode) {
    if (!*name) return; /* the root itself */
    struct stat st;
    if (mkdirat(dir, name, 0755) < 0) {
        if (errno != EEXIST) work_fail(errno, NULL);
        if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) work_fail(errno, NULL);
        if (!S_ISDIR(st.st_mode)) work_fail(ENOTDIR, NULL);
    }
    /* kept writable for its maker: what follows in the archive goes in there */
    if (fchmodat(dir, name, (mode & 01777) | 0300, 0) < 0) work_fail(errno, NULL);
}

/* Append a header field, which has a NUL only when it is shorter than its room. */
static void add_field(char *to, const char *field, size_t size) {
    size_t length = strnlen(field, size), at = strlen(to);
    memcpy(to + at, field, length);
    to[at + length] = 0;
}

static void unpack(int root, const struct tar_header *h, struct member *m) {
    char header_name[sizeof h->prefix + sizeof h->name + 2] = "", header_link[sizeof h->link + 1] = "";
    char name[256], target_name[256];
    bool ustar = !memcmp(h->magic, "ustar\0", 6);
    if (ustar && h->prefix[0]) {
        add_field(header_name, h->prefix, sizeof h->prefix);
        strcat(header_name, "/");
    }
    add_field(header_name, h->name, sizeof h->name);
    add_field(header_link, h->link, sizeof h->link);
    const char *path = m->path ? m->path : header_name, *link = m->link ? m->link : header_link;
    size_t length = strlen(path);
    char type = h->type;
    if (!length) bad("a member without a name");
    if ((!type || type == '0') && path[length - 1] == '/') type = '5';
    mode_t mode = (mode_t)(number(h->mode, sizeof h->mode) & 07777);
    int dir = folder_in(root, path, true, name);
    bool file = !type || type == '0' || type == '7';
    if (!*name && type != '5') bad("a member without a name");
    if (file) {
        put_file(dir, name, m->size, mode, m->mtime);
    } else if (type == '5') {
        put_folder(dir, name, mode);
    } else if (type == '2') {
        if (!*link) bad("a link to nowhere");
        make_way(dir, name);
        if (symlinkat(link, dir, name) < 0) work_fail(errno, NULL);
    } else if (type == '1') {
        int from = folder_in(root, link, false, target_name);
        if (!*target_name) bad("a link to nowhere");
        make_way(dir, name);
        if (linkat(from, target_name, dir, name, 0) < 0) work_fail(errno, NULL);
        close(from);
    } else {
        bad(type >= '3' && type <= '6' ? "devices and pipes are not unpacked" : "a kind of member not supported");
    }
    if (!file) skip(m->size + padding(m->size));
    close(dir);
}

static bool is_zero(const struct tar_header *h) {
    const char *p = (const char *)h;
    for (size_t i = 0; i < sizeof *h; i++)
        if (p[i]) return false;
    return true;
}

void do_archive_in(const char *path) {
    struct tar_header h;
    struct member m = {0};
    int error = make_folders(path);
    if (error) work_fail(error, NULL);
    int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) work_fail(errno, NULL);
    for (bool any = false;; any = true) {
        size_t got = work_get(&h, sizeof h);
        if (!got && any) break; /* no end mark, as some writers leave it */
        if (got != sizeof h) bad(any ? "the archive is cut off" : "not a tar archive");
        if (is_zero(&h)) break;
        if (number(h.checksum, sizeof h.checksum) != tar_checksum(&h)) bad("not a tar archive, or damaged");
        uint64_t size = number(h.size, sizeof h.size);
        if (size > INT64_MAX) bad("a number out of range");
        if (h.type == 'x' || h.type == 'g' || h.type == 'L' || h.type == 'K') {
            char *text = record(size);
            if (h.type == 'x') pax(text, (size_t)size, &m);
            else if (h.type == 'L') replace(&m.path, text, strlen(text));
            else if (h.type == 'K') replace(&m.link, text, strlen(text));
            free(text);
            continue;
        }
        if (!m.has_size) m.size = size;
        m.mtime = h.mtime[0] & 0x80 ? 0 : (int64_t)number(h.mtime, sizeof h.mtime); /* binary: before 1970 */
        unpack(root, &h, &m);
        free(m.path);
        free(m.link);
        m = (struct member){0};
    }
    static uint8_t rest[CHUNK];
    while (work_get(rest, sizeof rest)) {} /* padding behind the end mark, so that the sender can finish */
}

/* What a file worker needs: its streams, its failure, and cleaning up what it left half done. */
#ifndef RUNRA_WORK_H
#define RUNRA_WORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "files.h"

/* End in failure. `message` NULL: the errno's own. */
void work_fail(int error, const char *message) __attribute__((noreturn));
void work_fail_at(enum stage stage, int error, const char *message) __attribute__((noreturn));

/* Stdout, buffered. A write that fails ends the worker: nobody listens. */
void work_put(const void *bytes, size_t length);
void work_flush(void);
/* Copy from a file to stdout, at most `length` bytes, without a detour through the buffer. The bytes copied. */
uint64_t work_copy(int fd, uint64_t length);
/* Now and then, in work that says nothing for long: an empty record, so that the host knows it goes on. */
void work_busy(void);

/* Stdin: as many of `length` bytes as there are before its end. */
size_t work_get(void *to, size_t length);

/* Name a temporary file to remove on failure or cancellation; NULL when it is in place. */
void work_temporary(int dir, const char *name);
/* Make one beside the target; opens it for writing and names it. -1 with errno. */
int work_make_temporary(int dir);
const char *work_temporary_name(void);

/* One record: what there is to say of a file. `name` and `path` as shown; `at`/`relative` find it for the rest. */
void work_entry(int at, const char *relative, const char *name, const char *path, const struct stat *st);

const char *base_name(const char *path);
/* The folder of a path without trailing slashes: a new string. */
char *folder_of(const char *path);
/* Make a folder and what is missing above it. 0 or an errno. */
int make_folders(const char *path);
bool write_all(int fd, const void *bytes, size_t length);

/* The operations: each ends in work_fail, or returns when done. */
void do_stat(const char *path);
void do_read(const char *path, uint64_t offset, uint64_t length);
void do_write(const char *path, const struct request *r);
void do_list(const char *path, uint64_t depth);
void do_mkdir(const char *path, bool recursive);
void do_move(const char *from, const char *to);
void do_delete(const char *path, bool recursive);
void do_archive_out(const char *path);
void do_archive_in(const char *path);
void do_watch(const char *path, bool recursive);

#endif

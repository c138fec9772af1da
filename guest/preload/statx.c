/* Preloaded into programs under gVisor builds that refuse AT_NO_AUTOMOUNT, a flag that means nothing there but that ls
 * and stat of coreutils 8.32 and later always set: without this, both fail with EINVAL. It is built without a C library
 * of its own, so that it works with the one the program has. */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_NO_AUTOMOUNT
#define AT_NO_AUTOMOUNT 0x800
#endif

int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict about) {
    return (int)syscall(SYS_statx, folder, path, flags & ~AT_NO_AUTOMOUNT, mask, about);
}

int fstatat(int folder, const char *restrict path, struct stat *restrict about, int flags) {
    return (int)syscall(SYS_newfstatat, folder, path, about, flags & ~AT_NO_AUTOMOUNT);
}

/* The same call under the name it has with 64-bit offsets. */
int fstatat64(int folder, const char *restrict path, struct stat64 *restrict about, int flags) {
    return (int)syscall(SYS_newfstatat, folder, path, about, flags & ~AT_NO_AUTOMOUNT);
}

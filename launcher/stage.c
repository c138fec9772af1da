/* Stage: what happens between fork and exec of a sandbox's wall (bwrap, or runsc below a keeper).
 *
 * Options, as KEY VALUE… words before "--":
 *   nested N                 before ids: how many user namespaces a user may make inside; none without this
 *   ids BASE COUNT           run as uid/gid BASE; make a user namespace that maps 0…COUNT-1 to BASE…
 *   own                      without root: make a user namespace of our own id alone, in which we may mount; what runs
 *                            in there has no more rights than we have
 *   mount idmap|plain SOURCE NAME    show SOURCE at STAGE/NAME, owners shifted into the namespace or as they are;
 *                            idmap-ro, plain-ro: and read-only, which nothing inside can lift
 *   cgroup FILE              enter the cgroup with this cgroup.procs
 *   netns                    enter the network namespace that is the last attached descriptor; with keep, move what is
 *                            in it to one that the user namespace owns
 *   files N                  how many descriptors a process may have
 *   keep                     ARGV is started by a keeper (keeper.c), in namespaces that it makes; after another "--" is
 *                            what brings the agent a socket when it has none: from the start, with
 *   apart                    as the agent of a wall that comes back from a file
 *   enter                    run ARGV in the namespaces of the process that is the last attached descriptor, in the
 *                            folder that is the one before, the fourth, if there is one
 *   overlay TARGET OPTIONS   with keep: mount an overlay at TARGET below STAGE/root
 *
 * Attached descriptors become 0, 1, 2, 3… (that of `netns` is left out); with `ids` the user namespace follows as the
 * next number. Everything the wall needs is reachable below STAGE in a mount namespace of its own, so neither the data
 * folder nor the installation must be open to the sandbox's uid, and the mounts vanish with the sandbox however it
 * ends. A network namespace is ours, not the sandbox's: its root cannot change addresses, routes or rules there.
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOUNTS_MAX 160 /* an image may have 127 layers */
#define MEMLOCK_BYTES (8 << 20) /* memory a sandbox may keep from being reclaimed: the kernel's own default */
#define FILES_USUAL 65536 /* descriptors a process has without asking for more */
#define FILES_MAX (1 << 20)
#define FIRST_SPARE 64 /* where descriptors are parked while 0… are being laid out */

struct mount_request {
    const char *name;
    int tree;
    bool folder;
};

static int error_fd = STDERR_FILENO;

void fail(const char *what, const char *value) {
    dprintf(error_fd, "runra-launcher: %s %s: %s\n", what, value, strerror(errno));
    _exit(126);
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) fail("write", path);
    close(fd);
}

/* A user namespace owned by BASE, so that the wall, running as BASE, may enter it and owns all in it. */
static int make_userns(unsigned base, unsigned count, const char *nested) {
    int ready[2], mapped[2];
    if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(mapped, O_CLOEXEC) < 0) fail("pipe", "userns");
    pid_t holder = fork();
    if (holder < 0) fail("fork", "userns");
    if (holder == 0) {
        char outcome = 0;
        if (setresgid(base, base, base) < 0 || setresuid(base, base, base) < 0 || unshare(CLONE_NEWUSER) < 0)
            outcome = (char)errno;
        close(mapped[1]);
        if (write(ready[1], &outcome, 1) != 1 || read(mapped[0], &outcome, 1) != 1) _exit(0);
        /* No user namespaces for what runs inside this one: most kernel holes of recent years start with one. */
        int limit_fd = open("/proc/sys/user/max_user_namespaces", O_WRONLY | O_CLOEXEC);
        outcome = limit_fd < 0 || write(limit_fd, nested, strlen(nested)) < 1 ? (char)errno : 0;
        /* Until the pipe ends, and so no longer than the one who asked: a death signal would not outlast setresuid. */
        if (write(ready[1], &outcome, 1) == 1 && read(mapped[0], &outcome, 1) != 0) _exit(1);
        _exit(0);
    }
    char outcome = 0;
    close(ready[1]);
    close(mapped[0]);
    if (read(ready[0], &outcome, 1) != 1) outcome = EIO;
    int fd = -1;
    if (outcome == 0) {
        char path[64], map[64];
        snprintf(map, sizeof map, "0 %u %u\n", base, count);
        snprintf(path, sizeof path, "/proc/%d/uid_map", (int)holder);
        write_file(path, map);
        snprintf(path, sizeof path, "/proc/%d/gid_map", (int)holder);
        write_file(path, map);
        snprintf(path, sizeof path, "/proc/%d/ns/user", (int)holder);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (write(mapped[1], &outcome, 1) != 1 || read(ready[0], &outcome, 1) != 1) outcome = EIO;
        if (outcome) {
            close(fd);
            fd = -1;
        }
    }
    close(ready[0]);
    close(mapped[1]);
    int saved = outcome ? outcome : errno;
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
    errno = saved;
    if (fd < 0) fail("make", "user namespace");
    return fd;
}

static void enter_own_namespace(void) {
    char map[64];
    unsigned uid = geteuid(), gid = getegid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) fail("make", "user namespace");
    write_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "%u %u 1\n", uid, uid);
    write_file("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "%u %u 1\n", gid, gid);
    write_file("/proc/self/gid_map", map);
}

static bool known_kind(const char *kind) {
    static const char *const kinds[] = {"idmap", "plain", "idmap-ro", "plain-ro"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kind, kinds[i]) == 0) return true;
    return false;
}

static int open_source(const char *source, const char *kind, int userns, bool *folder) {
    bool idmap = strncmp(kind, "idmap", 5) == 0;
    int tree = (int)syscall(SYS_open_tree, AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0) fail("open", source);
    struct stat about;
    if (fstat(tree, &about) < 0) fail("stat", source);
    *folder = S_ISDIR(about.st_mode);
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    if (strcmp(kind + 5, "-ro") == 0) attributes.attr_set |= MOUNT_ATTR_RDONLY;
    if (idmap) {
        attributes.attr_set |= MOUNT_ATTR_IDMAP;
        attributes.userns_fd = (__u64)userns;
    }
    if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0)
        fail(idmap ? "id-map" : "restrict", source);
    return tree;
}

/* Make STAGE/NAME as a mount point of the right kind, parents included. */
static void make_point(const char *path, bool folder) {
    char buffer[256];
    snprintf(buffer, sizeof buffer, "%s", path);
    for (char *slash = strchr(buffer + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(buffer, 0755) < 0 && errno != EEXIST) fail("mkdir", buffer);
        *slash = '/';
    }
    if (folder) {
        if (mkdir(buffer, 0755) < 0) fail("mkdir", buffer);
        return;
    }
    int fd = open(buffer, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    if (fd < 0) fail("create", buffer);
    close(fd);
}

static void attach_mounts(const struct mount_request *mounts, int count) {
    if (mount("stage", STAGE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m") < 0) fail("mount", STAGE);
    for (int i = 0; i < count; i++) {
        char path[256];
        snprintf(path, sizeof path, STAGE "/%s", mounts[i].name);
        make_point(path, mounts[i].folder);
        if (syscall(SYS_move_mount, mounts[i].tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
            fail("attach", path);
        close(mounts[i].tree);
    }
}

/* Lay the attached descriptors out as 0, 1, 2…, the user namespace after them, and close all others. */
static void lay_out(const int *fds, int fd_count, int userns) {
    int parked[FDS_MAX + 1];
    int count = 0;
    for (int i = 0; i < fd_count; i++) parked[count++] = fcntl(fds[i], F_DUPFD, FIRST_SPARE);
    if (userns >= 0) parked[count++] = fcntl(userns, F_DUPFD, FIRST_SPARE);
    for (int i = 0; i < count; i++)
        if (parked[i] < 0 || dup2(parked[i], i) < 0) fail("lay out", "descriptors");
    close_range((unsigned)count, ~0U, 0);
}

static void limit(__rlimit_resource_t resource, rlim_t soft, rlim_t hard) {
    struct rlimit value = {.rlim_cur = soft, .rlim_max = hard};
    /* Without privileges the hard limit may already be lower: then it stays, which is no less strict. */
    if (setrlimit(resource, &value) < 0 && getrlimit(resource, &value) == 0 && soft < value.rlim_max) {
        value.rlim_cur = soft;
        setrlimit(resource, &value);
    }
}

/* Cut a list of words at its "--"; what follows, or NULL. */
static char **after_dashes(char **words) {
    for (; *words; words++)
        if (strcmp(*words, "--") == 0) {
            *words = NULL;
            return words + 1;
        }
    return NULL;
}

void stage_and_exec(char **words, const int *fds, int fd_count) {
    if (fd_count > 2) error_fd = fds[2];
    unsigned base = 0, count = 0;
    char **argv = after_dashes(words);
    errno = EINVAL;
    if (argv == NULL || argv[0] == NULL) fail("read", "request");

    static struct mount_request mounts[MOUNTS_MAX];
    static struct overlay overlays[MOUNTS_MAX];
    int mount_count = 0, overlay_count = 0;
    int userns = -1;
    bool keep = false, apart = false, enter = false;
    int netns = -1;
    const char *nested = "0";
    rlim_t files = FILES_MAX;
    for (char **word = words; *word;) {
        if (strcmp(word[0], "ids") == 0 && word[1] && word[2]) {
            base = (unsigned)strtoul(word[1], NULL, 10);
            count = (unsigned)strtoul(word[2], NULL, 10);
            userns = make_userns(base, count, nested);
            if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
                fail("make", "mount namespace");
            word += 3;
        } else if (strcmp(word[0], "own") == 0) {
            enter_own_namespace();
            word += 1;
        } else if (strcmp(word[0], "mount") == 0 && word[1] && known_kind(word[1]) && word[2] && word[3] &&
                   mount_count < MOUNTS_MAX) {
            struct mount_request *request = &mounts[mount_count++];
            request->name = word[3];
            request->tree = open_source(word[2], word[1], userns, &request->folder);
            word += 4;
        } else if (strcmp(word[0], "cgroup") == 0 && word[1]) {
            write_file(word[1], "0");
            word += 2;
        } else if (strcmp(word[0], "netns") == 0 && fd_count > 3) {
            netns = fds[--fd_count];
            word += 1;
        } else if (strcmp(word[0], "nested") == 0 && word[1]) {
            nested = word[1];
            word += 2;
        } else if (strcmp(word[0], "files") == 0 && word[1]) {
            files = strtoul(word[1], NULL, 10);
            word += 2;
        } else if (strcmp(word[0], "keep") == 0) {
            keep = true;
            word += 1;
        } else if (strcmp(word[0], "apart") == 0) {
            apart = true;
            word += 1;
        } else if (strcmp(word[0], "enter") == 0 && fd_count > 3) {
            enter = true;
            word += 1;
        } else if (strcmp(word[0], "overlay") == 0 && word[1] && word[2] && overlay_count < MOUNTS_MAX) {
            overlays[overlay_count++] = (struct overlay){.target = word[1], .options = word[2]};
            word += 3;
        } else {
            errno = EINVAL;
            fail("read", word[0]);
        }
    }
    if (netns >= 0 && keep && userns >= 0)
        hand_over_network(netns, userns);
    else if (netns >= 0 && setns(netns, CLONE_NEWNET) < 0)
        fail("enter", "network namespace");
    if (mount_count) attach_mounts(mounts, mount_count);
    if (keep) {
        make_point(STAGE "/root", true);
        make_point(STAGE "/state", true);
    }
    lay_out(fds, fd_count, userns);
    error_fd = STDERR_FILENO;
    limit(RLIMIT_CORE, 0, 0);
    limit(RLIMIT_NOFILE, files < FILES_USUAL ? files : FILES_USUAL, files);
    limit(RLIMIT_MEMLOCK, MEMLOCK_BYTES, MEMLOCK_BYTES);
    if (chdir("/") < 0) fail("chdir", "/");
    umask(022);
    if (userns >= 0) {
        /* A sandbox is a better victim than its host's services when the whole machine runs out of memory. */
        write_file("/proc/self/oom_score_adj", "200");
        if (setgroups(0, NULL) < 0 || setresgid(base, base, base) < 0 || setresuid(base, base, base) < 0)
            fail("become", "sandbox uid");
    }
    if (enter) {
        write_file("/proc/self/oom_score_adj", "200");
        enter_and_exec(fd_count - 1, fd_count > 4 ? fd_count - 2 : -1, argv);
    }
    char **join = keep ? after_dashes(argv) : NULL;
    if (keep) keep_and_exec(overlays, overlay_count, argv, join, apart, fd_count, netns >= 0);
    char *environment[] = {"PATH=/usr/bin:/bin", NULL};
    execve(argv[0], argv, environment);
    fail("exec", argv[0]);
}

/* Handing the agent another socket of the host's, after it had to let go of the one it had. */
#include "join.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* In the abstract namespace, where no file of the sandbox's can be in the way. Whoever is root inside may take the name
 * first, or bring a socket: it can do no more to the agent so than the host could, and to its own sandbox only. */
static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "\0runra-agent"};
enum { ADDRESS = offsetof(struct sockaddr_un, sun_path) + sizeof "\0runra-agent" - 1 };

int join_open(void) {
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    if (fd < 0) return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0 ||
        bind(fd, (const struct sockaddr *)&address, ADDRESS) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int join_receive(int from) {
    char byte, control[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct ucred sender = {.uid = (uid_t)-1};
    int fd = -1, kind = 0;
    socklen_t size = sizeof kind;
    if (recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0) return -1;
    for (struct cmsghdr *item = CMSG_FIRSTHDR(&message); item; item = CMSG_NXTHDR(&message, item)) {
        if (item->cmsg_level != SOL_SOCKET) continue;
        if (item->cmsg_type == SCM_CREDENTIALS) memcpy(&sender, CMSG_DATA(item), sizeof sender);
        if (item->cmsg_type == SCM_RIGHTS && fd < 0) memcpy(&fd, CMSG_DATA(item), sizeof fd);
    }
    if (fd >= 0 && sender.uid == 0 && getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 && kind == SOCK_STREAM &&
        fcntl(fd, F_SETFL, O_NONBLOCK) == 0)
        return fd;
    if (fd >= 0) close(fd);
    return -1;
}

int join_main(const char *name) {
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), brought = STDIN_FILENO;
    char control[CMSG_SPACE(sizeof brought)] = {0};
    struct iovec byte = {.iov_base = "j", .iov_len = 1};
    struct msghdr message = {.msg_name = (void *)&address, .msg_namelen = ADDRESS, .msg_iov = &byte, .msg_iovlen = 1,
                             .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *item = CMSG_FIRSTHDR(&message);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof brought);
    memcpy(CMSG_DATA(item), &brought, sizeof brought);
    if (sethostname(name, strlen(name)) < 0 || fd < 0 || sendmsg(fd, &message, 0) < 0) {
        dprintf(2, "runra-agent: join: %s\n", strerror(errno));
        return 1;
    }
    return 0;
}

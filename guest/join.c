/* Handing the agent another socket of the host's, after it had to let go of the one it had. */
#include "join.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
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
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (bind(fd, (const struct sockaddr *)&address, ADDRESS) < 0 || listen(fd, 8) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int join_accept(int from) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    int fd = accept4(from, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return -1;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0) return fd;
    close(fd);
    return -1;
}

int join_receive(int from) {
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int fd, kind = 0;
    socklen_t size = sizeof kind;
    if (recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0) return -1;
    struct cmsghdr *item = CMSG_FIRSTHDR(&message);
    if (!item || item->cmsg_type != SCM_RIGHTS || item->cmsg_len < CMSG_LEN(sizeof fd)) return -1;
    memcpy(&fd, CMSG_DATA(item), sizeof fd);
    for (size_t at = CMSG_LEN(sizeof fd); at + sizeof fd <= item->cmsg_len; at += sizeof fd) { /* room for two, aligned */
        int more;
        memcpy(&more, (uint8_t *)item + at, sizeof more);
        close(more);
    }
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 && kind == SOCK_STREAM &&
        fcntl(fd, F_SETFL, O_NONBLOCK) == 0)
        return fd;
    close(fd);
    return -1;
}

int join_main(const char *name) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), brought = STDIN_FILENO;
    char control[CMSG_SPACE(sizeof brought)] = {0};
    struct iovec byte = {.iov_base = "j", .iov_len = 1};
    struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *item = CMSG_FIRSTHDR(&message);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof brought);
    memcpy(CMSG_DATA(item), &brought, sizeof brought);
    if (sethostname(name, strlen(name)) < 0 || fd < 0 || connect(fd, (const struct sockaddr *)&address, ADDRESS) < 0 ||
        sendmsg(fd, &message, 0) < 0) {
        dprintf(2, "runra-agent: join: %s\n", strerror(errno));
        return 1;
    }
    return 0;
}

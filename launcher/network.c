/* Network: hands what is in a ready network namespace (a veth's end, its address and routes) over to one that belongs
 * to the sandbox's user namespace, because gVisor opens packet sockets there without being root here. The kernel's own
 * answers about the old namespace are the requests to the new one: they have the same form (rtnetlink(7)).
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KEPT_MAX = 16 << 10, ANSWER_MAX = 32 << 10, LOOPBACK = 1 };

static struct {
    _Alignas(struct nlmsghdr) char bytes[KEPT_MAX];
    size_t used;
} kept; /* messages to say again in the new namespace */

static int open_netlink(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct timeval patience = {.tv_sec = 5};
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0) fail("open", "netlink");
    return fd;
}

static void keep_message(struct nlmsghdr *message) {
    size_t whole = NLMSG_ALIGN(message->nlmsg_len);
    errno = ENOBUFS;
    if (kept.used + whole > KEPT_MAX) fail("keep", "addresses and routes");
    message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    message->nlmsg_pid = 0;
    /* Its state is no part of a request: that of a veth whose other end has only just come up is still "linkdown". */
    if (message->nlmsg_type == RTM_NEWROUTE) ((struct rtmsg *)NLMSG_DATA(message))->rtm_flags &= RTNH_F_ONLINK;
    memcpy(kept.bytes + kept.used, message, message->nlmsg_len);
    kept.used += whole;
}

/* Routes that the kernel makes by itself come with their address. */
static bool wanted(const struct nlmsghdr *message) {
    if (message->nlmsg_type == RTM_NEWADDR)
        return ((const struct ifaddrmsg *)NLMSG_DATA(message))->ifa_index != LOOPBACK;
    const struct rtmsg *route = NLMSG_DATA(message);
    return route->rtm_table == RT_TABLE_MAIN && route->rtm_protocol != RTPROT_KERNEL;
}

/* Send one request and read its answers; those of type `keep` are kept; `link` gets the one link. */
static void ask(int fd, struct nlmsghdr *request, int keep, int *link) {
    static _Alignas(struct nlmsghdr) char answer[ANSWER_MAX];
    request->nlmsg_seq = 1;
    if (send(fd, request, request->nlmsg_len, 0) < 0) fail("ask", "netlink");
    for (;;) {
        ssize_t got = recv(fd, answer, sizeof answer, 0);
        if (got < 0) fail("hear from", "netlink");
        int left = (int)got;
        for (struct nlmsghdr *m = (struct nlmsghdr *)answer; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
            if (m->nlmsg_type == NLMSG_DONE) return;
            if (m->nlmsg_type == NLMSG_ERROR) {
                errno = -((const struct nlmsgerr *)NLMSG_DATA(m))->error;
                if (errno) fail("ask", "netlink");
                return;
            }
            if (m->nlmsg_type == RTM_NEWLINK && link) {
                const struct ifinfomsg *about = NLMSG_DATA(m);
                if (about->ifi_index != LOOPBACK && !(about->ifi_flags & IFF_LOOPBACK)) *link = about->ifi_index;
            } else if (m->nlmsg_type == keep && wanted(m)) {
                keep_message(m);
            }
        }
    }
}

static void dump(int fd, int type, int keep, int *link) {
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } request = {.head = {.nlmsg_len = sizeof request, .nlmsg_type = (__u16)type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
                 .body = {.rtgen_family = AF_INET}};
    ask(fd, &request.head, keep, link);
}

static void move_link(int fd, int link, int namespace) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
        struct rtattr where;
        int fd;
    } request = {.head = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_NEWLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
                 .body = {.ifi_index = link},
                 .where = {.rta_len = RTA_LENGTH(sizeof namespace), .rta_type = IFLA_NET_NS_FD},
                 .fd = namespace};
    ask(fd, &request.head, -1, NULL);
}

static void bring_up(int fd, int link) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } request = {.head = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_NEWLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
                 .body = {.ifi_index = link, .ifi_flags = IFF_UP, .ifi_change = IFF_UP}};
    ask(fd, &request.head, -1, NULL);
}

/* A network namespace owned by a user namespace; a child makes it there. */
static int make_owned(int userns) {
    int ready[2], held[2];
    char path[64], byte;
    if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(held, O_CLOEXEC) < 0) fail("pipe", "network namespace");
    pid_t holder = fork();
    if (holder < 0) fail("fork", "network namespace");
    if (holder == 0) {
        close(held[1]);
        if (setns(userns, CLONE_NEWUSER) < 0 || unshare(CLONE_NEWNET) < 0) _exit(1);
        /* Until the pipe ends, and so no longer than the one who asked: a death signal would not outlast setns. */
        if (write(ready[1], "r", 1) == 1 && read(held[0], &byte, 1) != 0) _exit(1);
        _exit(0);
    }
    close(ready[1]);
    close(held[0]);
    snprintf(path, sizeof path, "/proc/%d/ns/net", (int)holder);
    errno = EPERM;
    int fd = read(ready[0], &byte, 1) == 1 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    int saved = errno;
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
    close(ready[0]);
    close(held[1]);
    errno = saved;
    if (fd < 0) fail("make", "network namespace");
    return fd;
}

/* Addresses and routes on the link come first: a gateway must be reachable before anything goes through it. */
static void say_again(int fd, bool through_gateways) {
    size_t length;
    for (size_t at = 0; at < kept.used; at += length) {
        struct nlmsghdr *message = (struct nlmsghdr *)(kept.bytes + at);
        length = NLMSG_ALIGN(message->nlmsg_len);
        bool route = message->nlmsg_type == RTM_NEWROUTE;
        bool gateway = route && ((const struct rtmsg *)NLMSG_DATA(message))->rtm_scope < RT_SCOPE_LINK;
        if (gateway == through_gateways) ask(fd, message, -1, NULL);
    }
}

void hand_over_network(int from, int userns) {
    int link = 0, to = make_owned(userns);
    if (setns(from, CLONE_NEWNET) < 0) fail("enter", "network namespace");
    int fd = open_netlink();
    dump(fd, RTM_GETADDR, RTM_NEWADDR, NULL);
    dump(fd, RTM_GETROUTE, RTM_NEWROUTE, NULL);
    dump(fd, RTM_GETLINK, -1, &link);
    errno = ENODEV;
    if (link == 0) fail("find", "the sandbox's interface");
    move_link(fd, link, to); /* its number stays: nothing but a loopback is there */
    close(fd);
    if (setns(to, CLONE_NEWNET) < 0) fail("enter", "network namespace");
    fd = open_netlink();
    bring_up(fd, LOOPBACK);
    bring_up(fd, link);
    say_again(fd, false);
    say_again(fd, true);
    close(fd);
    close(to);
}

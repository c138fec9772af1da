"""The system calls a sandbox may make: one readable list, compiled with libseccomp into the filter bwrap loads.

Three answers: a call in ALLOWED works; one in REFUSED is there but not for a sandbox (EPERM); any other, calls newer
than this list included, looks like a kernel without it (ENOSYS), which libraries know how to live with.

The list is what a container's programs use, less what recent kernel holes went through: rare socket families (Copy
Fail CVE-2026-31431, Dirty Frag CVE-2026-43284), new user namespaces, io_uring, bpf, perf, keyrings, userfaultfd.
"""

from __future__ import annotations

import errno
import functools
import socket
import struct
import tempfile
from typing import Final

from runra.errors import RunraError

try:
    import pyseccomp
except (OSError, RuntimeError):  # the C library is missing; `program` names the cure
    pyseccomp = None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ALLOWED: Final = _names(
    """
    accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
    clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod
    fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list
    get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid
    getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch ioctl io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioprio_get ioprio_set
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd
    msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_getfd
    pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv
    preadv2 prlimit64 process_madvise process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64
    pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
    semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid
    setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt
    setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice
    stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
    timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
    tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid waitpid
    write writev chroot
    """
)

REFUSED: Final = _names(
    """
    acct add_key bpf clock_settime create_module delete_module fanotify_init finit_module fsconfig fsmount fsopen
    fspick get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl
    kcmp kexec_file_load kexec_load keyctl listmount lookup_dcookie lsm_set_self_attr mbind migrate_pages mount
    mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open
    pivot_root query_module quotactl quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node
    setdomainname sethostname setns settimeofday stime swapoff swapon syslog umount umount2 unshare userfaultfd
    uselib ustat vhangup vm86 vm86old
    """
)

#: Numbers of calls that libseccomp on older systems cannot name; the same on every architecture since 424.
_NEWER: Final = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_set_self_attr": 460, "mseal": 462,
    "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467,
}  # fmt: skip

#: unix, inet, inet6; netlink only to ask about routes and addresses (NETLINK_ROUTE).
_FAMILIES: Final = (1, 2, 10)
_NETLINK: Final = 16
#: clone flags that make namespaces: time, mount, cgroup, uts, ipc, user, pid, net.
_CLONE_NAMESPACES: Final = 0x7E02_0080
#: personality(2): Linux, the same on 32 bit, without address randomisation, and the question what it is.
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFF_FFFF)
_SOCK_TYPE_MASK: Final = 0xF
_SOCK_RAW, _SOCK_PACKET = 3, 10

#: Calls refused for one argument's sake: name, which argument, the bits looked at, the value of those bits.
_REFUSED_ARGUMENTS: Final = (
    ("ioctl", 1, 0xFFFF_FFFF, 0x5423),  # TIOCSETD loads a line discipline's module by number, for anybody
    ("ioctl", 1, 0xFFFF_FFFF, 0x5412),  # TIOCSTI types into a terminal for whoever reads it next
    ("ioctl", 1, 0xFFFF_FFFF, 0x541C),  # TIOCLINUX does the same on a console
    ("mmap", 3, 0x4_0000, 0x4_0000),  # MAP_HUGETLB: the pool is the host's, and no memory limit covers it
    ("memfd_create", 1, 0x4, 0x4),  # MFD_HUGETLB
    ("shmget", 2, 0o4000, 0o4000),  # SHM_HUGETLB
)
#: What btrfs is told (ioctl type 0x94), of which a sandbox may share extents: FICLONE, FICLONERANGE, FIDEDUPERANGE. A
#: volume is a subvolume with a quota: one made inside it has none, and one turned read-only cannot be deleted.
_IOCTL_TYPE, _BTRFS = 0xFF00, 0x9400
_SHARING: Final = (0x4004_9409, 0x4020_940D, 0xC018_9436)
#: What an inet socket may speak: socket(2) loads the module of any other (SCTP, DCCP, MPTCP, L2TP…) for anybody.
_PROTOCOLS: Final = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)


def _add(rules: pyseccomp.SyscallFilter, action: int, name: str) -> None:
    """Add a rule for a call by name; one that neither this architecture nor libseccomp knows is left out."""
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    if number < 0 and name in _NEWER:
        number = _NEWER[name]
    if number >= 0:
        rules.add_rule(action, number)


def _add_sockets(rules: pyseccomp.SyscallFilter) -> None:
    """Who may open which socket; what is not there answers as on a kernel built without it."""
    no_family, no_protocol = pyseccomp.ERRNO(errno.EAFNOSUPPORT), pyseccomp.ERRNO(errno.EPROTONOSUPPORT)
    for family in range(_NETLINK):
        same = pyseccomp.Arg(0, pyseccomp.EQ, family)
        if family not in _FAMILIES:
            rules.add_rule(no_family, "socket", same)
            continue
        for kind in range(_SOCK_TYPE_MASK + 1):
            raw = kind in (_SOCK_RAW, _SOCK_PACKET)
            typed = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, _SOCK_TYPE_MASK, kind)
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM) if raw else pyseccomp.ALLOW, "socket", same, typed)
    rules.add_rule(no_family, "socket", pyseccomp.Arg(0, pyseccomp.GT, _NETLINK))
    netlink = pyseccomp.Arg(0, pyseccomp.EQ, _NETLINK)
    rules.add_rule(pyseccomp.ALLOW, "socket", netlink, pyseccomp.Arg(2, pyseccomp.EQ, 0))
    rules.add_rule(no_protocol, "socket", netlink, pyseccomp.Arg(2, pyseccomp.GT, 0))
    # socketpair(2) makes two sockets, and loads their module, before it asks whether the family knows pairs.
    rules.add_rule(pyseccomp.ALLOW, "socketpair", pyseccomp.Arg(0, pyseccomp.EQ, socket.AF_UNIX))
    rules.add_rule(no_family, "socketpair", pyseccomp.Arg(0, pyseccomp.NE, socket.AF_UNIX))


#: Classic BPF: load a word of the call's data, mask it, compare, answer (<linux/bpf_common.h>).
_LOAD, _MASK, _EQUAL, _ANSWER = 0x20, 0x54, 0x15, 0x06
_ERRNO: Final = 0x0005_0000


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    """Load an argument's lower half, all that the kernel looks at where an `int` is meant (CVE-2019-10063)."""
    return _step(_LOAD, 16 + 8 * index)


def _refuse_arguments() -> bytes:
    """The front of the filter: calls refused for what they carry. It only ever refuses; all else falls through.

    By hand, since an allow-list of libseccomp's cannot say "any value but these" of an argument's lower half.
    """
    front = b""
    for name, index, mask, value in _REFUSED_ARGUMENTS:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        front += _step(_LOAD, 0) + _step(_EQUAL, number, 0, 4)
        front += _argument(index) + _step(_MASK, mask) + _step(_EQUAL, value, 0, 1)
        front += _step(_ANSWER, _ERRNO | errno.EPERM)
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "ioctl")
    front += _step(_LOAD, 0) + _step(_EQUAL, number, 0, 4 + len(_SHARING)) + _argument(1)
    for left, request in zip(range(len(_SHARING) + 2, 2, -1), _SHARING, strict=True):
        front += _step(_EQUAL, request, left, 0)
    front += _step(_MASK, _IOCTL_TYPE) + _step(_EQUAL, _BTRFS, 0, 1) + _step(_ANSWER, _ERRNO | errno.ENOTTY)
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "socket")
    front += _step(_LOAD, 0) + _step(_EQUAL, number, 0, 5 + len(_PROTOCOLS))
    front += _argument(0) + _step(_EQUAL, socket.AF_INET, 1, 0) + _step(_EQUAL, socket.AF_INET6, 0, 2 + len(_PROTOCOLS))
    front += _argument(2)
    for left, protocol in zip(range(len(_PROTOCOLS), 0, -1), _PROTOCOLS, strict=True):
        front += _step(_EQUAL, protocol, left, 0)
    return front + _step(_ANSWER, _ERRNO | errno.EPROTONOSUPPORT)


@functools.cache
def program() -> bytes:
    """The compiled filter. Raises INVALID_CONFIG with the cure when libseccomp is missing."""
    if pyseccomp is None:
        raise RunraError("INVALID_CONFIG", "no libseccomp: apt-get install libseccomp2")
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for name in ALLOWED:
        _add(rules, pyseccomp.ALLOW, name)
    for name in REFUSED:
        _add(rules, refuse, name)
    _add_sockets(rules)
    # clone3 hides its flags from a filter: ENOSYS makes libraries fall back to clone.
    rules.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_NAMESPACES, 0))
    for persona in _PERSONALITIES:
        rules.add_rule(pyseccomp.ALLOW, "personality", pyseccomp.Arg(0, pyseccomp.EQ, persona))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return _refuse_arguments() + file.read()

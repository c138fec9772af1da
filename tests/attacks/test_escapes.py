"""Known ways out of containers, tried by root in a real sandbox; the oracle is the host and the sandbox next door.

What test_walls.py asks of single calls and files, this asks of whole attacks: something is put in place, and then the
server is made to act on it (a second command, a file call, a crash).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node import Sandbox
from runra.node.agent.types import ExecSpec
from runra.node.record import process_start
from tests.attacks.test_walls import SYSCALL
from tests.hosting import Host, both_walls, bubblewrap_only, until

#: Runs steps one by one and prints those that worked: `attempt("what", function)`.
ATTEMPT = """
import ctypes, os, signal, socket, struct, sys
def attempt(what, function):
    try: print(what, "->", function())
    except OSError as error: print(what, "refused", error.errno, file=sys.stderr)
def put(path, text="evil"):
    with open(path, "w") as file: file.write(text)
    return "wrote"
"""


async def attack(host: Host, sandbox: Sandbox, program: str) -> list[str]:
    """Run a program inside; the lines it printed, each of them something that worked."""
    async with sandbox.use() as agent:
        async with asyncio.timeout(30):
            process = await agent.exec(ExecSpec(argv=("python3", "-c", ATTEMPT + program), env=sandbox.env))
            chunks = [chunk async for chunk in process.output()]
            exit = await process.wait()
    told = b"".join(chunk.data for chunk in chunks if chunk.stream == "stderr").decode()
    assert exit.code == 0, told
    return b"".join(chunk.data for chunk in chunks if chunk.stream == "stdout").decode().splitlines()


def host_state() -> dict[str, object]:
    """What an escape by /dev or /proc would have changed on this machine."""
    devices = {}
    for name in ("null", "zero", "full", "random", "urandom", "tty", "console"):
        about = Path("/dev", name).lstat()
        devices[name] = (about.st_mode, about.st_rdev, about.st_uid, about.st_gid)
    switches = {
        name: Path("/proc/sys", name).read_text()
        for name in ("kernel/core_pattern", "kernel/modprobe", "kernel/panic", "vm/overcommit_memory")
        if Path("/proc/sys", name).exists()
    }
    return {"devices": devices, "switches": switches, "host name": os.uname().nodename}


@bubblewrap_only("/dev is gVisor's own and a root inside may change it; it leads to nothing outside")
async def test_devices_swapped_before_the_next_command(host: Host) -> None:
    """CVE-2025-31133, CVE-2026-41579: /dev/null made a link to a kernel switch, which the next start then opens."""
    before = host_state()
    sandbox = await host.create()
    program = """
for name in ("null", "zero", "tty", "stdin", "stdout", "ptmx", "pts", "shm", "fd", "console"):
    path = f"/dev/{name}"
    attempt(f"unlink {path}", lambda: os.unlink(path))
    attempt(f"rename {path}", lambda: os.rename(path, path + ".old"))
    attempt(f"over {path}", lambda: os.rename("/etc/hostname", path))
attempt("new", lambda: os.symlink("/proc/sys/kernel/core_pattern", "/dev/new"))
attempt("chmod", lambda: os.chmod("/dev/null", 0o777))
attempt("chown", lambda: os.chown("/dev/null", 0, 0))
attempt("rename /dev", lambda: os.rename("/dev", "/dev.old"))
attempt("rename /proc", lambda: os.rename("/proc", "/proc.old"))
libc = ctypes.CDLL(None, use_errno=True)
def mount(*arguments):
    if libc.mount(*arguments) < 0: raise OSError(ctypes.get_errno(), "mount")
attempt("bind", lambda: mount(b"/etc", b"/dev", None, 4096, None))
attempt("tmpfs", lambda: mount(b"t", b"/dev", b"tmpfs", 0, None))
attempt("remount", lambda: mount(None, b"/dev", None, 32, None))
"""
    assert await attack(host, sandbox, program) == []
    # The next command's stdin is the real thing, and a full /dev/null takes what is written to it.
    output, _ = await host.run(
        sandbox, "stat -Lc '%F %t %T' /proc/self/fd/0 /dev/null; echo x > /dev/null && echo fine"
    )
    assert output.splitlines() == ["character special file 1 3"] * 2 + ["fine"]
    assert host_state() == before


@both_walls
async def test_there_is_no_console_and_no_terminal_of_the_host(host: Host) -> None:
    """CVE-2025-52565 (/dev/console), and keys pushed into a terminal (TIOCSTI) that somebody outside reads."""
    one, two = await host.create(), await host.create()
    async with one.use() as agent:
        shell = await agent.exec(ExecSpec(command="sleep 20", env=one.env, pty=(24, 80)))
        program = """
import fcntl
def push(path):
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(fd, 0x5412, b"x")
    return "pushed"
print("terminals", sorted(os.listdir("/dev/pts")))
for path in ("/dev/tty", "/dev/console", "/dev/tty0", "/dev/tty1", "/dev/ttyS0", "/dev/vcs", "/dev/hvc0"):
    attempt(path, lambda: os.open(path, os.O_RDWR | os.O_NOCTTY))
for path in ("/dev/pts/0", "/dev/pts/1", "/dev/ptmx"):
    attempt(path, lambda: push(path))
"""
        assert await attack(host, one, program) == ["terminals ['0', 'ptmx']"]
        assert await attack(host, two, program) == ["terminals ['ptmx']"]
        await agent.signal(shell.pid, signal.SIGKILL)
    fields = Path(f"/proc/{one.record.pid}/stat").read_text().rpartition(")")[2].split()
    assert fields[4] == "0", "process 1 has a controlling terminal"


@bubblewrap_only("gVisor's terminals have no line disciplines to choose: another error")
async def test_line_disciplines_cannot_be_chosen(host: Host) -> None:
    """TIOCSETD loads kernel modules by number for anybody (n_gsm, n_hdlc, slip…: CVE-2023-6546 and its kin)."""
    sandbox = await host.create()
    program = """
import fcntl
master, slave = os.openpty()
for high in (0, 1 << 32):  # the kernel looks at the lower half only (CVE-2019-10063)
    for number in range(32):
        libc = ctypes.CDLL(None, use_errno=True)
        value = ctypes.c_int(number)
        libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
        answer = libc.ioctl(slave, high | 0x5423, ctypes.byref(value))
        print(answer, ctypes.get_errno())
print(struct.unpack("i", fcntl.ioctl(slave, 0x5424, b"    "))[0])
"""
    lines = await attack(host, sandbox, program)
    assert lines == ["-1 1"] * 64 + ["0"]


@both_walls
async def test_protocols_cannot_load_modules(host: Host) -> None:
    """socket(2) loads a protocol's module for whoever asks: SCTP, DCCP, MPTCP, L2TP… stay unreachable."""
    sandbox = await host.create()
    program = """
for family in (socket.AF_INET, socket.AF_INET6):
    for kind in (1, 2, 4, 5, 6):
        for protocol in range(264):
            attempt(f"{protocol} of kind {kind}", lambda: socket.socket(family, kind, protocol).close())
"""
    opened = {line.split(" ->")[0] for line in await attack(host, sandbox, program)}
    ordinary = {"0 of kind 1", "6 of kind 1", "0 of kind 2", "17 of kind 2"}
    assert opened <= ordinary | {"1 of kind 2", "58 of kind 2"}, "more than TCP, UDP and echo requests"
    assert opened >= ordinary


@bubblewrap_only("/proc is gVisor's own, and mounts inside change nothing outside")
async def test_procfs_cannot_be_redirected(host: Host) -> None:
    """CVE-2025-52881: what the server writes to /proc/self/attr, it must never write to a place of the sandbox's."""
    before = host_state()
    sandbox = await host.create()
    program = """
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags=0):
    if libc.mount(source, target, kind, flags, None) < 0: raise OSError(ctypes.get_errno(), "mount")
os.makedirs("/tmp/fake/self/attr"); put("/tmp/fake/self/attr/exec", "")
for target in (b"/proc", b"/proc/self", b"/proc/self/attr", b"/proc/thread-self", b"/proc/1/attr", b"/proc/sys"):
    attempt(f"bind {target}", lambda: mount(b"/tmp/fake/self/attr", target, None, 4096))
    attempt(f"tmpfs {target}", lambda: mount(b"t", target, b"tmpfs"))
attempt("proc again", lambda: mount(b"proc", b"/tmp/fake", b"proc"))
for path in ("/proc/self", "/proc/self/attr", "/proc/sys", "/proc/keys", "/proc/kallsyms"):
    attempt(f"rename {path}", lambda: os.rename(path, path + "x"))
    attempt(f"unlink {path}", lambda: os.unlink(path))
    attempt(f"link {path}", lambda: os.symlink("/tmp/fake", path))
"""
    assert await attack(host, sandbox, program) == []
    output, _ = await host.run(
        sandbox, "stat -fLc %T /proc/self/attr /proc/self/fd /proc/sys/kernel; cat /proc/keys 2>&- | wc -c"
    )
    assert output.split() == ["proc"] * 3 + ["0"]
    assert host_state() == before


@both_walls
async def test_a_forged_lower_layer_shows_nothing(host: Host, tmp_path: Path) -> None:
    """The overlay keeps its notes in attributes of files: one written from inside would lead it to host folders."""
    secret = tmp_path / "secret"
    secret.write_text("host")
    sandbox = await host.create()
    program = f"""
os.mkdir("/workspace/d")
for name in ("redirect", "opaque", "metacopy", "origin", "upper", "impure"):
    for value in (b"y", b"/../../../../../../..{tmp_path}"):
        attempt("trusted", lambda: os.setxattr("/workspace/d", f"trusted.overlay.{{name}}", value))
        try: os.setxattr("/workspace/d", f"user.overlay.{{name}}", value)
        except OSError: pass  # since Linux 6.7 it is kept as an overlay's own, inside this one
attempt("device 0/0", lambda: os.mknod("/workspace/whiteout", 0o020000, 0))
for path in ("/oldroot", "/newroot", "/proc/self/root/oldroot", "/mnt/box", "/mnt/lower0.0"):
    attempt(path, lambda: os.listdir(path))
"""
    lines = await attack(host, sandbox, program)
    assert [line for line in lines if not line.startswith("device 0/0")] == []
    output, _ = await host.run(sandbox, "ls -A /workspace/d")
    assert output == ""
    [upper] = host.node.settings.data_dir.glob(f"sandboxes/{sandbox.id}/upper0/workspace/d")
    notes = {name for name in os.listxattr(upper) if name.startswith("user.overlay.")}
    assert all(name.startswith("user.overlay.overlay.") for name in notes), notes


@both_walls
async def test_no_hostile_cwd_leads_out(host: Host, tmp_path: Path) -> None:
    """CVE-2024-21626: /proc/self/fd/N as the working folder, before and after the server's own descriptors close."""
    marker = tmp_path / "marker"
    marker.write_text("out in the open")
    sandbox = await host.create()
    look = f"cat ./../../../../../../../../..{marker} 2>/dev/null; ls -A . >/dev/null 2>&1; pwd -P; readlink /proc/self/cwd"
    links = " ".join(f"ln -s /proc/self/fd/{number} /workspace/fd{number};" for number in range(12))
    await host.run(sandbox, f"{links} ln -s /proc/1/root /workspace/root; ln -s /proc/1/cwd /workspace/cwd")
    places = [f"/proc/{who}/fd/{number}" for who in ("self", "1") for number in range(12)]
    places += [f"/workspace/fd{number}" for number in range(12)]
    places += [f"/proc/{who}/{name}" for who in ("1", "self", "thread-self") for name in ("cwd", "root")]
    places += ["/workspace/root", "/workspace/cwd", "/proc/self/task/1/cwd", "/oldroot", "relative/../.."]
    started = 0
    async with sandbox.use() as agent:
        for place in places:
            spec = ExecSpec(command=look, cwd=place, env=sandbox.env, timeout_ms=5000)
            try:
                async with asyncio.timeout(10), await agent.exec(spec) as process:
                    output = b"".join([chunk.data async for chunk in process.output()]).decode()
            except RunraError as error:
                if error.details.get("reason") != "bad_cwd":
                    raise
                continue
            started += 1
            assert "open" not in output, place
            assert str(host.node.settings.data_dir) not in output, place
            assert "oldroot" not in output, place
            assert "(unreachable)" not in output, place
            with pytest.raises(RunraError):
                await agent.files.stat(f"../../../../../../../../..{marker}", cwd=place)
    assert started, "some of these are ordinary folders of the sandbox"


@bubblewrap_only("gVisor keeps no attributes of files to attack with")
async def test_capabilities_of_files_give_nothing_inside_and_outside(host: Host) -> None:
    """A program with all capabilities and set-id bits, written inside, run inside by nobody and outside by a user."""
    sandbox = await host.create()
    program = """
import shutil
shutil.copy("/usr/bin/sleep", "/workspace/tool")
caps = struct.pack("<5I", 0x02000000, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
os.setxattr("/workspace/tool", "security.capability", caps)
os.chmod("/workspace/tool", 0o6755)
print("set")
"""
    assert await attack(host, sandbox, program) == ["set"]
    async with sandbox.use() as agent:
        process = await agent.exec(ExecSpec(argv=("/workspace/tool", "20"), env=sandbox.env, user="nobody"))
        inner = await agent.exec(ExecSpec(command="cat /proc/[0-9]*/status", env=sandbox.env))
        text = b"".join([chunk.data async for chunk in inner.output()]).decode()
        process.detach()
    [mine] = [part for part in text.split("Name:\t") if part.startswith("tool\n")]
    fields = dict(line.split(":", 1) for line in mine.splitlines() if ":" in line)
    assert {fields[f"Cap{kind}"].strip() for kind in ("Eff", "Prm", "Amb")} == {"0" * 16}
    assert set(fields["Uid"].split()) == {"65534"}
    [upper] = host.node.settings.data_dir.glob(f"sandboxes/{sandbox.id}/upper*/workspace/tool")
    assert upper.lstat().st_mode & stat.S_ISUID, "the bit is on the disk: nobody on the host may get at it"
    if os.geteuid() == 0:
        with pytest.raises(PermissionError):
            subprocess.run([upper, "0"], user=61_234, group=61_234, extra_groups=[], check=False, timeout=10)
        flags = os.statvfs(upper).f_flag
        own_disk = os.path.ismount(host.node.settings.sandboxes_dir)
        assert not own_disk or (flags & os.ST_NOSUID and flags & os.ST_NODEV), "the sandboxes' disk carries no set-ids"


@both_walls
async def test_no_namespace_can_be_entered(host: Host) -> None:
    sandbox = await host.create()
    before = {kind: os.readlink(f"/proc/{sandbox.record.pid}/ns/{kind}") for kind in ("user", "mnt", "net", "pid")}
    program = """
libc = ctypes.CDLL(None, use_errno=True)
def check(answer, fd=None):
    if fd is not None: os.close(fd)
    if answer < 0: raise OSError(ctypes.get_errno(), "refused")
    return "worked"
pid = os.fork() or os.execvp("sleep", ["sleep", "20"])
for who in (1, pid, os.getpid(), os.getppid()):
    for kind in ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup", "time"):
        def enter():
            fd = os.open(f"/proc/{who}/ns/{kind}", os.O_RDONLY)
            return check(libc.setns(fd, 0), fd)
        attempt(f"setns {who} {kind}", enter)
    def enter_all():
        fd = os.pidfd_open(who)
        return check(libc.setns(fd, 0x7E020000), fd)
    attempt(f"setns by pidfd {who}", enter_all)
attempt("chroot out", lambda: [os.mkdir("/tmp/c"), os.chroot("/tmp/c"), os.chdir("../../../.."), os.chroot("."), os.listdir("/oldroot")])
os.kill(pid, 9)
"""
    assert await attack(host, sandbox, program) == []
    output, exit = await host.run(sandbox, "nsenter -t 1 -m -p true 2>&1")
    assert exit.code, output
    after = {kind: os.readlink(f"/proc/{sandbox.record.pid}/ns/{kind}") for kind in before}
    assert after == before


@bubblewrap_only("a root inside can end process 1 (attacks/test_gvisor.py)")
async def test_every_signal_to_process_1_and_to_all(host: Host) -> None:
    sandbox = await host.create()
    pid, born = sandbox.record.pid, sandbox.record.pid_started
    program = (
        SYSCALL
        + """
import platform
tgkill, queue = (234, 129) if platform.machine() == "x86_64" else (131, 138)
info = (ctypes.c_char * 128)()
fd = os.pidfd_open(1)
for number in range(1, 65):
    os.kill(1, number)
    call(tgkill, 1, 1, number)
    struct.pack_into("iii", info, 0, number, 0, -1)
    call(queue, 1, number, info)
    call(424, fd, number, 0, 0)
print("done")
"""
    )
    assert await attack(host, sandbox, program) == ["done"]
    assert process_start(pid) == born
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "SR"
    async with sandbox.use() as agent:
        waiting = [await agent.exec(ExecSpec(command="sleep 60", env=sandbox.env)) for _ in range(3)]
        # kill -1: everything but process 1 and the killer, shims and file workers included.
        for number in ("KILL", "TERM", "HUP", "SEGV", "USR1", "CHLD", "CONT"):
            await host.run(sandbox, f"kill -{number} -1")
        async with asyncio.timeout(10):
            exits = [await process.wait() for process in waiting]
        assert [exit.signal for exit in exits] == ["SIGKILL"] * 3
    output, _ = await host.run(sandbox, "echo alive")
    assert output == "alive\n"
    assert process_start(pid) == born


@bubblewrap_only("it looks at the states of processes on the host")
async def test_everything_stopped_from_inside_can_still_be_ended(host: Host) -> None:
    """kill -STOP -1 stops the shims as well: a stop is no way to keep a command from being killed."""
    sandbox = await host.create()
    async with sandbox.use() as agent:
        waiting = await agent.exec(ExecSpec(command="sleep 61; true", env=sandbox.env))
        killer = await agent.exec(ExecSpec(command="kill -STOP -1", env=sandbox.env))

        def states() -> str:
            """One letter for each process but process 1 and its wall, as the kernel shows it; T is stopped."""
            found = ""
            for pid in sandbox.cgroup.join_files[0].read_text().split():
                with contextlib.suppress(OSError):
                    text = Path(f"/proc/{pid}/stat").read_text()
                    found += "" if "bwrap" in text or pid == str(sandbox.record.pid) else text.rpartition(")")[2][1]
            return found

        # The killer may have gone by then, or be a zombie below its stopped shim.
        await until(lambda: states().count("T") >= 3 and set(states()) <= {"T", "Z"})
        async with asyncio.timeout(15):
            assert (await host.run(sandbox, "echo alive"))[0] == "alive\n"
            await agent.signal(waiting.pid, signal.SIGKILL)
            assert (await waiting.wait()).signal == "SIGKILL"
            with contextlib.suppress(RunraError):  # its command has ended, only its shim stood still
                await agent.signal(killer.pid, signal.SIGKILL)
            assert (await killer.wait()).signal in (None, "SIGKILL")
        await until(lambda: states() == "")
    started = time.monotonic()
    await sandbox.terminate()
    assert time.monotonic() - started < 5


@both_walls
async def test_neighbours_share_no_ipc(host: Host) -> None:
    """SysV segments, semaphores and queues, POSIX queues and /dev/shm: not with a neighbour, not with the host."""
    one, two = await host.create(), await host.create()
    key = 0x52554E00 + os.getpid() % 251
    common = f"""
libc = ctypes.CDLL(None, use_errno=True)
def check(answer):
    if answer < 0: raise OSError(ctypes.get_errno(), "no")
    return "there"
KEY = {key}
def look(flags):
    attempt("shm", lambda: check(libc.shmget(KEY, 4096, flags | 0o666)))
    attempt("sem", lambda: check(libc.semget(KEY, 1, flags | 0o666)))
    attempt("msg", lambda: check(libc.msgget(KEY, flags | 0o666)))
    attempt("mq", lambda: check(libc.mq_open(b"/runra-test", os.O_RDWR | (os.O_CREAT if flags else 0), 0o666, None)))
    attempt("file", lambda: os.close(os.open("/dev/shm/runra-test", os.O_RDWR | (os.O_CREAT if flags else 0))))
"""
    there = ["shm -> there", "sem -> there", "msg -> there", "mq -> there", "file -> None"]
    libc = ctypes.CDLL(None, use_errno=True)
    ours = libc.shmget(key + 1, 4096, 0o1666)
    assert ours >= 0
    try:
        assert await attack(host, one, common + "look(0o1000)") == there
        assert await attack(host, one, common + "look(0)") == there
        assert await attack(host, two, common + "look(0)\nKEY += 1\nlook(0)") == []
        # The kernel prints keys as signed decimals in these tables.
        for table in ("shm", "sem", "msg"):
            keys = {line.split()[0] for line in Path("/proc/sysvipc", table).read_text().splitlines()[1:]}
            assert str(key) not in keys, table
        assert not Path("/dev/shm/runra-test").exists()
    finally:
        libc.shmctl(ours, 0, None)


@both_walls
async def test_the_hosts_abstract_sockets_are_out_of_reach(host: Host) -> None:
    """CVE-2020-15257: containerd's shim listened on an abstract socket, and host-network containers reached it."""
    name = f"runra-host-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket() as tcp:
        listening.bind(f"\0{name}")
        listening.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        port = tcp.getsockname()[1]
        sandbox = await host.create()
        program = f"""
names = open("/proc/net/unix").read()
print("seen") if {name!r} in names else None
attempt("unix", lambda: socket.socket(socket.AF_UNIX).connect("\\0" + {name!r}))
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {port}), 2).close())
attempt("link", lambda: os.stat("/proc/1/net/unix").st_size > 0 and {name!r} in open("/proc/1/net/unix").read() or os.stat("/none"))
"""
        assert await attack(host, sandbox, program) == []


@bubblewrap_only("/sys is gVisor's own and shows other files")
async def test_cgroups_cannot_be_left(host: Host) -> None:
    """CVE-2022-0492 (release_agent), cgroupfs mounted or handed in, and a fork into another group."""
    sandbox = await host.create(resources={"cpu": 1, "memoryMb": 128})
    program = """
libc = ctypes.CDLL(None, use_errno=True)
def mount(kind, options=None):
    os.makedirs("/tmp/cg", exist_ok=True)
    if libc.mount(b"none", b"/tmp/cg", kind, 0, options) < 0: raise OSError(ctypes.get_errno(), "mount")
    return "mounted"
for options in (None, b"memory", b"rdma", b"pids", b"none,name=x", b"all", b"release_agent=/tmp/evil"):
    attempt("v1", lambda: mount(b"cgroup", options))
attempt("v2", lambda: mount(b"cgroup2"))
for folder, folders, files in os.walk("/sys"): print("in /sys:", folder, folders, files) if files else None
for name in ("cgroup.procs", "tasks", "release_agent", "notify_on_release"):
    for root in ("/sys/fs/cgroup", "/proc/1/root/sys/fs/cgroup", "/sys/fs/cgroup/memory"):
        attempt(name, lambda: put(f"{root}/{name}", str(os.getpid())))
for line in open("/proc/self/cgroup"):
    if not line.strip().endswith(":/"): print("own group shows", line)
"""
    assert await attack(host, sandbox, program) == []
    async with sandbox.use() as agent:
        process = await agent.exec(ExecSpec(command="setsid sleep 30 & sleep 30", env=sandbox.env))
        for path in sandbox.cgroup.join_files:
            await until(lambda path=path: len(path.read_text().split()) >= 4)  # type: ignore[misc]
        await agent.signal(process.pid, signal.SIGKILL)


async def test_the_agents_program_cannot_be_overwritten(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2019-5736: the program the server runs in every sandbox, reached through /proc/PID/exe or by its path."""
    wall = host.node._isolations["bubblewrap"]
    program_file = tmp_path / "agent"
    shutil.copy(wall._agent, program_file)  # type: ignore[attr-defined]
    program_file.chmod(0o777)  # as careless as an installation can be
    tmp_path.chmod(0o755)
    monkeypatch.setattr(wall, "_agent", program_file)
    sandbox = await host.create()

    def fingerprint() -> tuple[str, int, int, int, list[str]]:
        about = program_file.stat()
        digest = hashlib.sha256(program_file.read_bytes()).hexdigest()
        return digest, about.st_mode, about.st_uid, about.st_mtime_ns, sorted(os.listxattr(program_file))

    before = fingerprint()
    program = """
import glob, shutil, threading, time
AGENT = "/run/runra/agent"
def overwrite(path):
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        attempt(f"open {path} {flags}", lambda: os.write(os.open(path, flags), b"evil"))
def reopen(path):
    fd = os.open(path, os.O_PATH)
    return os.write(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY), b"evil")
if os.path.exists(AGENT):
    overwrite(AGENT)
    attempt("O_PATH", lambda: reopen(AGENT))
    attempt("chmod", lambda: os.chmod(AGENT, 0o777))
    attempt("chown", lambda: os.chown(AGENT, 0, 0))
    attempt("times", lambda: os.utime(AGENT, (1, 1)))
    attempt("xattr", lambda: os.setxattr(AGENT, "user.evil", b"1"))
    attempt("unlink", lambda: os.unlink(AGENT))
    attempt("truncate", lambda: os.truncate(AGENT, 0))
    attempt("replace", lambda: os.rename("/etc/hostname", AGENT))
    attempt("aside", lambda: os.rename("/run/runra/agent", "/run/other"))
# the server forks its program for every command and file call: catch one before it has become something else
def hunt():
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for path in glob.glob("/proc/[0-9]*/exe"):
            try: target = os.readlink(path)
            except OSError: continue
            if "runra" in target:
                try:
                    fd = os.open(path, os.O_WRONLY)
                    print("opened", os.write(fd, b"evil"))
                except OSError: pass
                try: print("reopened", reopen(path))
                except OSError: pass
threads = [threading.Thread(target=hunt) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""

    async def busy() -> None:
        async with sandbox.use() as agent:
            while True:
                await host.run(sandbox, "true")
                await agent.files.stat("/etc/hostname")

    work = asyncio.create_task(busy())
    try:
        assert await attack(host, sandbox, program) == []
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    assert fingerprint() == before
    output, _ = await host.run(await host.create(), "echo unharmed")
    assert output == "unharmed\n"


@bubblewrap_only("/dev is gVisor's own: a file written there is no clock")
async def test_the_clock_is_the_hosts(host: Host) -> None:
    sandbox = await host.create()
    offset = time.time() - time.monotonic()
    program = """
import time
for clock in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11):
    attempt(f"clock {clock}", lambda: time.clock_settime(clock, 1_000_000_000))
libc = ctypes.CDLL(None, use_errno=True)
def check(answer):
    if answer < 0: raise OSError(ctypes.get_errno(), "refused")
    return "worked"
moment = (ctypes.c_long * 2)(1_000_000_000, 0)
attempt("settimeofday", lambda: check(libc.settimeofday(moment, None)))
zone = (ctypes.c_int * 2)(60, 0)
attempt("zone", lambda: check(libc.settimeofday(None, zone)))
adjust = (ctypes.c_char * 512)()
struct.pack_into("I", adjust, 0, 0x2001)
attempt("adjtimex", lambda: check(libc.adjtimex(adjust)))
attempt("clock_adjtime", lambda: check(libc.clock_adjtime(0, adjust)))
for path in ("/dev/rtc", "/dev/rtc0", "/proc/self/timens_offsets"):
    attempt(path, lambda: put(path, "monotonic 100 0"))
"""
    assert await attack(host, sandbox, program) == []
    assert abs(time.time() - time.monotonic() - offset) < 5


@both_walls
async def test_crashes_leave_no_core(host: Host) -> None:
    """A core is written by the kernel with its own rights, wherever core_pattern says."""
    before = host_state()
    sandbox = await host.create()
    program = """
import resource
print("limit", resource.getrlimit(resource.RLIMIT_CORE))
def raise_limit(): resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
try: raise_limit(); print("raised")
except ValueError: pass
os.chdir("/workspace")
for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT, signal.SIGILL):
    pid = os.fork()
    if not pid:
        os.kill(os.getpid(), number)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    print("crashed", os.WIFSIGNALED(status), os.WCOREDUMP(status))
print(os.listdir("/workspace"))
"""
    assert await attack(host, sandbox, program) == ["limit (0, 0)"] + ["crashed True False"] * 4 + ["[]"]
    limits = Path(f"/proc/{sandbox.record.pid}/limits").read_text()
    assert [line.split()[-3:-1] for line in limits.splitlines() if "core" in line] == [["0", "0"]]
    assert host_state() == before


@bubblewrap_only("gVisor says yes to huge and locked pages, and its memory is bounded as a whole")
async def test_pinned_and_huge_memory_is_bounded(host: Host) -> None:
    """Locked pages cannot be reclaimed, and huge ones come out of a pool that no memory limit covers."""
    sandbox = await host.create(resources={"cpu": 1, "memoryMb": 128})
    program = """
import mmap, resource
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
def huge(flags):
    if libc.mmap(None, 2 << 20, 3, 0x22 | 0x40000 | flags, -1, 0) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "no")
def check(answer):
    if answer < 0: raise OSError(ctypes.get_errno(), "no")
def told(what, function):
    try: function(); print(what, "worked")
    except OSError as error: print(what, error.errno)
told("mmap", lambda: huge(0))
told("mmap of 2 MB", lambda: huge(21 << 26))
told("memfd", lambda: os.close(os.memfd_create("x", 4)))
told("shmget", lambda: check(libc.shmget(0, 2 << 20, 0o5600)))
try:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 30, 1 << 30)); print("raised")
except ValueError: pass
area = mmap.mmap(-1, 64 << 20)
told("mlock", lambda: check(libc.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area))), ctypes.c_size_t(64 << 20))))
told("mlockall", lambda: check(libc.mlockall(7)))
"""
    lines = await attack(host, sandbox, program)
    # EPERM, not ENOMEM: refused here, whether this machine's pool has pages or not.
    assert lines[:4] == ["mmap 1", "mmap of 2 MB 1", "memfd 1", "shmget 1"]
    assert lines[4:] == ["mlock 12", "mlockall 12"]

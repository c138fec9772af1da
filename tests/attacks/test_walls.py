"""Attacks from inside a real sandbox; the oracle is what the host shows afterwards.

Each program is what a hostile tenant would run as root inside. A pass means the kernel said no, and that nothing
outside changed. Cases name the hole they come from.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.hosting import Host, both_walls, bubblewrap_only

#: A program that tries a call by number and prints the errno it got (0: it worked).
SYSCALL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return 0 if result >= 0 else ctypes.get_errno()
"""

#: x86-64 and aarch64 numbers of calls a sandbox must not have.
FORBIDDEN = {
    "x86_64": {
        "mount": 165, "umount2": 166, "pivot_root": 155, "setns": 308, "unshare": 272, "bpf": 321, "perf_event_open": 298,
        "keyctl": 250, "add_key": 248, "request_key": 249, "userfaultfd": 323, "io_uring_setup": 425, "kexec_load": 246,
        "init_module": 175, "finit_module": 313, "open_by_handle_at": 304, "fsopen": 430, "open_tree": 428,
        "move_mount": 429, "mount_setattr": 442, "reboot": 169, "swapon": 167, "syslog": 103, "acct": 163, "iopl": 172,
    },
    "aarch64": {
        "mount": 40, "umount2": 39, "pivot_root": 41, "setns": 268, "unshare": 97, "bpf": 280, "perf_event_open": 241,
        "keyctl": 219, "add_key": 217, "request_key": 218, "userfaultfd": 282, "io_uring_setup": 425, "kexec_load": 104,
        "init_module": 105, "finit_module": 273, "open_by_handle_at": 265, "fsopen": 430, "open_tree": 428,
        "move_mount": 429, "mount_setattr": 442, "reboot": 142, "swapon": 224, "syslog": 116, "acct": 89,
    },
}  # fmt: skip


async def python(host: Host, program: str) -> str:
    sandbox = await host.create()
    output, _ = await host.run(sandbox, f"cat > /tmp/attack.py <<'END'\n{program}\nEND\npython3 /tmp/attack.py 2>&1")
    return output


@bubblewrap_only("it reads the answers of our system-call filter; gVisor's kernel answers itself, and makes nothing outside")
async def test_forbidden_calls_are_refused(host: Host) -> None:
    calls = FORBIDDEN[os.uname().machine]
    program = SYSCALL + f"for name, number in {calls!r}.items(): print(name, call(number, 0, 0, 0, 0, 0))"
    answers = dict(line.split() for line in (await python(host, program)).splitlines())
    assert answers.keys() == calls.keys()
    assert {name for name, number in answers.items() if number not in ("1", "38")} == set()


@bubblewrap_only("it reads the answers of our system-call filter; gVisor's kernel answers itself, and makes nothing outside")
async def test_no_namespace_by_clone_or_clone3(host: Host) -> None:
    """No user namespace means no fresh set of capabilities: the door of most local kernel holes."""
    program = SYSCALL + (
        "import platform\n"
        "clone = 56 if platform.machine() == 'x86_64' else 220\n"
        "for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x04000000, 0x08000000, 0x02000000, 0x80):\n"
        "    print(hex(flag), call(clone, flag | 17, 0, 0, 0, 0))\n"
        "arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)\n"
        "print('clone3', call(435, ctypes.byref(arguments), 88))\n"
    )
    for line in (await python(host, program)).splitlines():
        assert line.split()[1] in ("1", "38"), line


@bubblewrap_only("it reads the answers of our system-call filter; gVisor's kernel answers itself, and makes nothing outside")
async def test_rare_socket_families_are_not_there(host: Host) -> None:
    """CVE-2026-31431 (AF_ALG), CVE-2026-43284 and -43500 (xfrm, rxrpc), vsock, packet and raw sockets."""
    program = (
        "import socket\n"
        "for family in range(0, 50):\n"
        "    for kind in (1, 2, 3, 5, 10):\n"
        "        try: socket.socket(family, kind, 0).close()\n"
        "        except OSError: continue\n"
        "        print(family, kind)\n"
        "for protocol in range(1, 30):\n"
        "    try: socket.socket(16, 3, protocol).close()\n"
        "    except OSError: continue\n"
        "    print('netlink', protocol)\n"
        # A pair of an unknown family is refused as unknown: any other error comes from a kernel that made the sockets.
        "for family in range(2, 50):\n"
        "    for protocol in (0, 9, 12, 132):\n"
        "        try: socket.socketpair(family, 2, protocol)\n"
        "        except OSError as error:\n"
        "            if error.errno == 97: continue\n"
        "        print('pair', family)\n"
        "socket.socketpair(1, 1)\n"
        "print('pair 1')\n"
    )
    opened = {tuple(line.split()) for line in (await python(host, program)).splitlines()}
    usual = {("1", kind) for kind in "1235"} | {(family, kind) for family in ("2", "10") for kind in "12"}
    assert opened <= usual | {("16", "2"), ("16", "3"), ("pair", "1")}
    assert {("2", "1"), ("pair", "1")} <= opened


@both_walls
async def test_kernel_switches_cannot_be_written(host: Host) -> None:
    """core_pattern, modprobe, uevent_helper, release_agent, sysrq: each runs a program as root on the host."""
    paths = [
        *(
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sysrq-trigger",
            "/proc/sys/vm/drop_caches",
        ),
        *(
            "/sys/kernel/uevent_helper",
            "/sys/fs/cgroup/release_agent",
            "/proc/sys/kernel/hostname",
            "/proc/1/oom_score_adj",
        ),
        *("/proc/sys/fs/binfmt_misc/register", "/proc/sys/user/max_user_namespaces", "/proc/1/mem", "/proc/kcore"),
    ]
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    program = (
        f"for path in {paths!r}:\n"
        "    try:\n"
        "        with open(path, 'w') as file: file.write('|/tmp/evil')\n"
        "        print('wrote', path)\n"
        "    except OSError: pass\n"
    )
    output = await python(host, program)
    # What is masked is /dev/null: writing to it goes nowhere. /sys is an empty folder of the sandbox's own.
    assert {line.split()[1] for line in output.splitlines()} <= {"/proc/kcore"}
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


@both_walls
async def test_no_descriptor_and_no_folder_leads_out(host: Host) -> None:
    """CVE-2024-21626: a leaked descriptor or working folder of the host."""
    program = (
        "import os\n"
        "print(sorted(os.listdir('/proc/self/fd')), os.getcwd(), os.readlink('/proc/self/root'))\n"
        "for pid in os.listdir('/proc'):\n"
        "    if pid.isdigit():\n"
        "        for name in ('cwd', 'root', 'exe'):\n"
        "            try: print(pid, name, os.readlink(f'/proc/{pid}/{name}'))\n"
        "            except OSError as error: print(pid, name, error.strerror)\n"
        "        try: print(pid, [os.readlink(f'/proc/{pid}/fd/{fd}') for fd in os.listdir(f'/proc/{pid}/fd')])\n"
        "        except OSError as error: print(pid, error.strerror)\n"
    )
    output = await python(host, program)
    assert str(Path(__file__).parents[2]) not in output
    assert str(host.node.settings.data_dir) not in output
    assert "oldroot" not in output
    # Process 1 shows nothing of itself: neither its descriptors nor its program.
    assert "1 exe Permission denied" in output
    assert output.splitlines()[0].startswith("['0', '1', '2', '3']")


@bubblewrap_only("a root inside can end process 1 (attacks/test_gvisor.py)")
async def test_process_1_cannot_be_killed_traced_or_read(host: Host) -> None:
    program = SYSCALL + (
        "import platform, signal\n"
        "ptrace = 101 if platform.machine() == 'x86_64' else 117\n"
        "print('attach', call(ptrace, 16, 1, 0, 0), 'seize', call(ptrace, 0x4206, 1, 0, 0))\n"
        "for number in (1, 2, 3, 9, 11, 15, 19, 20):\n"
        "    os.kill(1, number)\n"
        "try: open('/proc/1/mem', 'rb'); print('read')\n"
        "except OSError: print('closed')\n"
        "pid = os.pidfd_open(1)\n"
        "print('getfd', call(438, pid, 3, 0))\n"
    )
    sandbox = await host.create()
    output, _ = await host.run(sandbox, f"cat > /tmp/a.py <<'END'\n{program}\nEND\npython3 /tmp/a.py 2>&1")
    words = output.split()
    assert words[:4] == ["attach", "1", "seize", "1"], output
    assert "closed" in words
    assert words[-2:] == ["getfd", "1"]
    alive, _ = await host.run(sandbox, "echo alive")
    assert alive == "alive\n"


@both_walls
async def test_set_user_id_programs_give_nothing(host: Host) -> None:
    """no_new_privs: a set-uid root program, host's or own, does not make a user root again."""
    sandbox = await host.create()
    script = (
        "cp $(command -v id) /tmp/id && chown root /tmp/id && chmod 4755 /tmp/id && "
        "setcap cap_setuid+ep /tmp/id 2>/dev/null; ls -l /tmp/id | cut -c4"
    )
    output, _ = await host.run(sandbox, script)
    assert output.strip() == "s"
    output, _ = await host.run(sandbox, "/tmp/id -u", user="nobody")
    assert output.strip() == "65534"
    output, _ = await host.run(sandbox, "grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status", user="nobody")
    assert {line.split()[1] for line in output.splitlines()} == {"0000000000000000"}


@both_walls
async def test_device_nodes_do_not_open(host: Host) -> None:
    """mknod of the disk, memory and kmsg: refused, or a node the kernel will not open."""
    sandbox = await host.create()
    output, _ = await host.run(
        sandbox,
        "for d in 'b 8 0 sda' 'b 254 0 vda' 'c 1 1 mem' 'c 1 11 kmsg' 'c 10 229 fuse' 'c 1 3 null'; do set -- $d; "
        "mknod /tmp/$4 $1 $2 $3 2>/dev/null && cat /tmp/$4 >/dev/null 2>&1 && echo opened $4; done; echo end",
    )
    assert output == "end\n"


@both_walls
async def test_neighbours_and_host_are_invisible(host: Host) -> None:
    one, two = await host.create(), await host.create()
    script = (
        "import socket, os, time\n"
        "listening = socket.socket(socket.AF_UNIX); listening.bind('\\0runra-neighbour'); listening.listen()\n"
        "tcp = socket.socket(); tcp.bind(('127.0.0.1', 8123)); tcp.listen()\n"
        "open('/dev/shm/neighbour', 'w').write('x'); open('/tmp/neighbour', 'w').write('x')\n"
        "time.sleep(30)\n"
    )
    async with one.use() as agent:
        from runra.node.agent.types import ExecSpec

        server = await agent.exec(ExecSpec(argv=("python3", "-c", script), env=one.env))
        server.detach()
        program = (
            "import socket, os\n"
            "def reach(family, address):\n"
            "    try: socket.socket(family).connect(address); return 'reached'\n"
            "    except OSError: return 'no'\n"
            "print(reach(socket.AF_UNIX, '\\0runra-neighbour'), reach(socket.AF_INET, ('127.0.0.1', 8123)))\n"
            "print(os.listdir('/dev/shm'), os.path.exists('/tmp/neighbour'))\n"
            "print(len([p for p in os.listdir('/proc') if p.isdigit()]))\n"
            "for address in ('169.254.169.254', '10.0.0.1', '192.168.0.1'): print(reach(socket.AF_INET, (address, 80)))\n"
        )
        output, _ = await host.run(two, f"cat > /tmp/a.py <<'END'\n{program}\nEND\npython3 /tmp/a.py 2>&1")
    lines = output.splitlines()
    assert lines[0] == "no no"
    assert lines[1] == "[] False"
    assert int(lines[2]) < 8
    assert lines[3:] == ["no"] * 3


@both_walls
async def test_the_hosts_own_secrets_are_not_there(host: Host) -> None:
    sandbox = await host.create()
    output, _ = await host.run(
        sandbox,
        "cat /etc/shadow /etc/ssh/* /root/.ssh/* /var/run/docker.sock 2>&1; ls -A /root /home /etc/ssh 2>&1; env; "
        "cat /proc/1/environ | tr '\\0' '\\n'",
    )
    shadow = [line.split(":") for line in Path("/etc/shadow").read_text().splitlines()]
    for name, secret, *_ in shadow:
        if len(secret) > 3:
            assert secret not in output, name
    for name, value in os.environ.items():
        if ("KEY" in name or "TOKEN" in name or "SECRET" in name) and len(value) >= 8:  # "1" is in every output
            assert value not in output, name
    own = subprocess.run(["cat", "/etc/machine-id"], capture_output=True, text=True, check=False).stdout.strip()
    inside, _ = await host.run(sandbox, "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname")
    assert not own or own not in inside
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() not in inside
    assert os.uname().nodename not in inside.split()  # a random name may well hold a short one

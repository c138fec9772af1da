"""Running programs: exit codes, environment, user, folder, tags, limits."""

# What fails may fail at any of several steps, all of them right.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
import os
import pwd
import resource
import shutil
import signal
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.agent.link import AgentLink
from runra.node.agent.types import ExecSpec

from .harness import SANITIZED, Agent, children, finish, run, until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")


async def test_output_and_exit(link: AgentLink) -> None:
    out, err, end = await run(link, "echo out; echo err >&2; exit 3")
    assert (out, err, end.code, end.signal, end.timed_out) == (b"out\n", b"err\n", 3, None, False)
    assert end.duration_ms >= 0
    assert end.ended_at_ms > 1_600_000_000_000


async def test_argv_is_not_touched_by_a_shell(link: AgentLink) -> None:
    out, _, _ = await run(link, ["printf", "%s|", "a b", "$HOME", "*", ""])
    assert out == b"a b|$HOME|*||"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["no-such-program"], 127, b"command not found"),
        (["/no/such/program"], 127, b"No such file"),
        (["/etc/passwd"], 126, b"Permission denied"),
        (["/"], 126, b"ermission denied"),
        (["sh", "-c", "exit 200"], 200, b""),
        ([""], 127, b"command not found"),
    ],
)
async def test_exit_codes_are_a_shells(link: AgentLink, argv: list[str], code: int, message: bytes) -> None:
    _, err, end = await run(link, argv)
    assert end.code == code
    assert message in err


async def test_killed_by_a_signal(link: AgentLink) -> None:
    _, _, end = await run(link, ["sh", "-c", "kill -SEGV $$"])
    assert (end.code, end.signal) == (139, "SIGSEGV")


async def test_environment_is_what_was_sent_and_defaults(link: AgentLink) -> None:
    out, _, _ = await run(link, ["env"], env={"A": "1", "HOME": "/somewhere", "EMPTY": "", "Ü": "ß=;"})
    lines = set(out.decode().splitlines())
    me = pwd.getpwuid(os.geteuid())
    assert {"A=1", "HOME=/somewhere", "EMPTY=", "Ü=ß=;", f"USER={me.pw_name}", f"LOGNAME={me.pw_name}"} <= lines
    assert {line.split("=")[0] for line in lines} == {"A", "HOME", "EMPTY", "Ü", "USER", "LOGNAME", "PATH", "SHELL"}


async def test_folder(link: AgentLink, agent: Agent) -> None:
    out, _, _ = await run(link, ["pwd"], cwd=str(agent.home))
    assert out.decode().strip() == str(agent.home)
    with pytest.raises(RunraError) as caught:
        await run(link, ["pwd"], cwd="/not/there")
    assert caught.value.code == "INVALID_REQUEST"
    assert caught.value.details["reason"] == "bad_cwd"
    assert caught.value.details["errno"] == "ENOENT"
    with pytest.raises(RunraError) as caught:
        await run(link, ["pwd"], cwd="/etc/passwd")
    assert caught.value.details["errno"] == "ENOTDIR"


@as_root
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("nobody", "65534 65534"),
        ("65534", "65534 65534"),
        ("65534:7", "65534 7"),
        ("1234:5678", "1234 5678"),
        ("", "0 0"),
    ],
)
async def test_user(link: AgentLink, user: str, expected: str) -> None:
    out, err, _ = await run(link, "echo $(id -u) $(id -g); echo x > /dev/stderr", user=user)
    assert out.decode().strip() == expected
    assert err == b"x\n"


@pytest.mark.parametrize("user", ["nobody-here", "54321", ":", "root:no-such-group", "-1", "4294967295:1"])
async def test_unknown_user(link: AgentLink, user: str) -> None:
    with pytest.raises(RunraError) as caught:
        await run(link, ["id"], user=user)
    assert (caught.value.code, caught.value.details["reason"]) == ("INVALID_REQUEST", "unknown_user")


@pytest.mark.parametrize("size", [131_071, 131_072, 1_000_000, 1 << 20])
async def test_long_commands(link: AgentLink, size: int) -> None:
    tail = "\nls /proc/$$/fd | wc -l; echo ${#x} $0; exit 7"
    head = "x=$(cat <<'E'\n"
    end = "\nE\n)"
    fill = size - len(head) - len(end) - len(tail)
    out, err, exited = await run(link, head + "y" * fill + end + tail)
    descriptors, length, name = out.split()
    assert (int(length), name, exited.code, err) == (fill, b"bash", 7, b"")
    assert int(descriptors) <= 6  # the script's descriptor is not passed on


async def test_too_long_and_nul_are_refused_before_sending(link: AgentLink) -> None:
    for spec in (
        ExecSpec(command="x" * (5 << 20)),
        ExecSpec(command="a\0b"),
        ExecSpec(argv=("a", "b\0")),
        ExecSpec(command="true", env={"A": "\0"}),
        ExecSpec(command="true", argv=("true",)),
        ExecSpec(),
    ):
        with pytest.raises(RunraError) as caught:
            await link.exec(spec)
        assert caught.value.code == "INVALID_REQUEST"
    await link.ping()


async def test_a_clean_start(link: AgentLink) -> None:
    """No descriptor, signal mask, ignored signal or limit of the agent's gets to a command."""
    out, _, _ = await run(link, ["ls", "/proc/self/fd"])
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is ls's own
    out, _, _ = await run(link, ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"])
    assert {line.split()[1] for line in out.splitlines()} == {b"0" * 16}
    out, _, _ = await run(link, "ulimit -n; umask")
    assert out.split() == [str(os.popen("ulimit -n").read().strip()).encode(), b"0022"]
    out, _, _ = await run(link, "ps -o sid= -o pid= -p $$ | xargs")
    session, pid = out.split()
    assert session == pid


async def test_tag_starts_once(link: AgentLink, agent: Agent) -> None:
    spec = ExecSpec(command=f"echo x >> {agent.home}/runs; sleep 0.2; echo done", tag="once")
    first = await link.exec(spec)
    second = await link.exec(spec)
    assert (first.reused, second.reused, second.pid) == (False, True, first.pid)
    out, _, end = await finish(second)
    assert (out, end.code) == (b"done\n", 0)
    with pytest.raises(RunraError, match="took over"):
        await first.wait()
    third = await link.exec(spec)  # ended, but remembered
    assert third.reused
    assert (await finish(third))[0] == b"done\n"
    assert (agent.home / "runs").read_text() == "x\n"


async def test_processes_are_listed(link: AgentLink) -> None:
    running = await link.exec(ExecSpec(command="sleep 30", tag="mine"))
    await run(link, ["sh", "-c", "exit 4"])
    found = await link.processes()
    assert [(p.command, p.tag, p.exit and p.exit.code) for p in found] == [
        ("sleep 30", "mine", None),
        ("sh -c 'exit 4'", "", 4),
    ]
    assert found[0].pid == running.pid
    await link.signal(running.pid, signal.SIGKILL)
    assert (await running.wait()).signal == "SIGKILL"


async def test_ended_processes_are_forgotten_beyond_64(link: AgentLink) -> None:
    for _ in range(70):
        await run(link, ["true"])
    async with asyncio.timeout(10):  # the last one goes once the agent has seen that nobody reads it any more
        while len(await link.processes()) != 64:
            await asyncio.sleep(0.01)


async def test_two_hundred_at_once(link: AgentLink, agent: Agent) -> None:
    async def one(number: int) -> None:
        out, _, end = await run(link, f"echo {number}; exit {number % 100}")
        assert (out, end.code) == (f"{number}\n".encode(), number % 100)

    await asyncio.gather(*(one(n) for n in range(200)))
    await until(lambda: not list(children(agent.pid)))
    assert agent.descriptors() < 20


async def test_bound_of_live_processes(link: AgentLink, agent: Agent) -> None:
    """1024 commands wait for their stdin; one more is refused, and all end when told to."""
    if SANITIZED:
        pytest.skip("too much memory for that many sanitized shims")
    spec = ExecSpec(argv=("sleep", "60"))
    processes = []
    for _ in range(32):
        processes += await asyncio.gather(*(link.exec(spec) for _ in range(32)))
    assert len(await link.processes()) == 1024
    with pytest.raises(RunraError) as caught:
        await link.exec(spec)
    assert (caught.value.code, caught.value.details["reason"]) == ("RESOURCE_EXHAUSTED", "process_limit")
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        assert (await process.wait()).signal == "SIGKILL"
    await until(lambda: not list(children(agent.pid)), 20)
    assert agent.descriptors() < 20


async def test_no_descriptors_left_is_an_error_and_nothing_is_lost(link: AgentLink, agent: Agent) -> None:
    before = agent.descriptors()
    hard = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)[1]
    for spare in range(8):
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (before + spare, hard))
        for terminal in (None, (24, 80)):
            with pytest.raises(RunraError) as caught:
                await link.exec(ExecSpec(argv=("true",), stdin=True, pty=terminal))
                await link.exec(ExecSpec(argv=("sleep", "0.5"), stdin=True))
            assert caught.value.code == "RESOURCE_EXHAUSTED"
            assert caught.value.details["reason"] == "too_many_open_files"
        await until(lambda: agent.descriptors() == before)
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert (await run(link, ["true"]))[2].code == 0


@as_root
async def test_no_process_left_is_an_error(binary: Path, home: Path) -> None:
    """The limit on processes of a plain user; root is exempt from it. Here by a number few machines use."""
    uid = 61_000 + os.getpid() % 1000
    home.chmod(0o755)
    copy = Path(shutil.copy2(binary, home / "agent"))  # where another user can run it
    prefix = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "prlimit", "--nproc=6")
    agent = Agent(copy, home, prefix)
    try:
        link = await agent.connect()
        processes = []
        with pytest.raises(RunraError) as caught:
            for _ in range(6):
                processes.append(await link.exec(ExecSpec(argv=("sleep", "60"))))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert caught.value.details["reason"] == "process_limit"
        for process in processes:
            await link.signal(process.pid, signal.SIGKILL)
            await process.wait()
        await until(lambda: not list(children(agent.pid)))
        assert (await run(link, ["true"]))[2].code == 0
        await link.close()
    finally:
        agent.stop()

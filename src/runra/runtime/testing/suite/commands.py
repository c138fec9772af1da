"""Commands: their output and end, terminals, processes in the background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from runra.errors import RunraError
from runra.events import Event
from runra.runtime.sandbox import Sandbox
from runra.runtime.testing.bench import Bench, refused


def test_output_and_exit_code(bench: Bench, sandbox: Sandbox) -> None:
    result = bench.run(sandbox.exec("echo out; echo err >&2; exit 3"))
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert result.duration_ms >= 0
    assert bench.run(sandbox.exec("no-such-command-here")).exit_code == 127
    assert bench.run(sandbox.exec("kill -9 $$")).exit_code == 137


def test_a_list_goes_through_no_shell(bench: Bench, sandbox: Sandbox) -> None:
    assert bench.run(sandbox.exec(["echo", "$HOME", "a  b", "*", "'", ";", ""])).stdout == "$HOME a  b * ' ; \n"


def test_directory_and_environment(bench: Bench, sandbox: Sandbox) -> None:
    result = bench.run(sandbox.exec('pwd; echo "$A"', cwd="/tmp", env={"A": "b c\nd=ü"}))
    assert result.stdout == "/tmp\nb c\nd=ü\n"
    own = bench.create(env={"OF_ALL": "x y"})
    assert bench.run(own.exec('echo "$OF_ALL"; pwd')).stdout == f"x y\n{own.workdir}\n"
    bench.run(own.terminate())


def test_much_output_and_strange_bytes(bench: Bench, sandbox: Sandbox) -> None:
    result = bench.run(sandbox.exec("head -c 3000000 /dev/zero | tr '\\0' x"))
    assert len(result.stdout) == 3_000_000
    assert bench.run(sandbox.exec("i=0; while [ $i -lt 3000 ]; do printf 'ü'; i=$((i+1)); done")).stdout == "ü" * 3000
    assert bench.run(sandbox.exec(r"printf 'a\377b'")).stdout == "a\ufffdb"


def test_many_at_once(bench: Bench, sandbox: Sandbox) -> None:
    async def all() -> list[str]:
        return [one.stdout for one in await asyncio.gather(*(sandbox.exec(f"echo {n}") for n in range(8)))]

    assert bench.run(all()) == [f"{n}\n" for n in range(8)]


def test_a_timeout_kills_and_keeps_what_came(bench: Bench, sandbox: Sandbox) -> None:
    began = time.monotonic()
    command = "echo before; (sleep 2.5; touch /tmp/survived) & sleep 100"
    error = refused(lambda: bench.run(sandbox.exec(command, timeout_ms=1000)))
    assert error.code == "EXECUTION_TIMEOUT"
    assert error.details["stdout"] == "before\n"
    assert time.monotonic() - began < 30
    bench.run(asyncio.sleep(3))
    assert not bench.run(sandbox.files.exists("/tmp/survived"))


def test_a_cancelled_command_is_ended(bench: Bench, sandbox: Sandbox) -> None:
    async def interrupted() -> float:
        task = asyncio.create_task(sandbox.exec("touch /tmp/began; (sleep 2; touch /tmp/went-on) & sleep 50"))
        async with asyncio.timeout(20):
            while not await sandbox.files.exists("/tmp/began"):
                await asyncio.sleep(0.05)
        began = time.monotonic()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return time.monotonic() - began

    assert bench.run(interrupted()) < 15
    bench.run(asyncio.sleep(2.5))
    assert not bench.run(sandbox.files.exists("/tmp/went-on"))
    assert bench.run(sandbox.exec("echo well")).stdout == "well\n"


def test_streaming(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("streaming")
    seen: list[tuple[str, str, float]] = []
    began = time.monotonic()
    result = bench.run(
        sandbox.exec(
            "echo one; echo two >&2; sleep 1; printf three",
            on_stdout=lambda line: seen.append(("out", line, time.monotonic() - began)),
            on_stderr=lambda line: seen.append(("err", line, time.monotonic() - began)),
        )
    )
    assert sorted((stream, line) for stream, line, _ in seen) == [("err", "two"), ("out", "one"), ("out", "three")]
    assert result.stdout == "one\nthree"
    first, last = min(at for *_, at in seen), max(at for *_, at in seen)
    assert last - first > 0.8, "the first line came only with the last"


def test_output_is_told_to_who_asks_for_it(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("streaming")
    pieces: list[Event] = []

    async def ask() -> Callable[[], None]:
        return bench.runra.on("exec.streamed", pieces.append)

    off = bench.run(ask())

    def told(stream: str, command: str) -> str:
        mine = [one.data for one in pieces if one.data["command"] == command and one.data["stream"] == stream]
        return "".join(data["data"] for data in sorted(mine, key=lambda data: data["offset"]))

    command = "echo one; echo two >&2; sleep 0.3; printf ü"
    bench.run(sandbox.exec(command))
    bench.until(lambda: (told("stdout", command), told("stderr", command)) == ("one\nü", "two\n"))
    if "background" in bench.can:

        async def left() -> int:
            process = await sandbox.exec("echo in the background", background=True)
            await process.wait()
            return process.pid

        pid = bench.run(left())
        bench.until(lambda: told("stdout", "echo in the background") == "in the background\n")
        assert pieces[-1].data["pid"] == pid

    async def unheard() -> None:
        off()
        await sandbox.exec("echo unheard")

    asked = len(pieces)
    bench.run(unheard())
    bench.until(lambda: "exec.completed" in bench.of(sandbox))
    assert len(pieces) == asked
    assert "exec.streamed" not in bench.of(sandbox), "it comes only to who names it"


def test_another_user(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("user")
    own = bench.run(sandbox.exec("id -u")).stdout.strip()
    listed = bench.run(sandbox.exec("cut -d: -f1,3 /etc/passwd", check=True)).stdout.split()
    others = [line.split(":") for line in listed if line.split(":")[1] not in ("0", own)]
    if not others:
        pytest.skip("the image has no other user")
    name, number = others[0]
    assert bench.run(sandbox.exec("id -u", user=name)).stdout.strip() == number
    assert bench.run(sandbox.exec("touch /etc/not-mine", user=name)).exit_code != 0
    assert bench.run(sandbox.exec("id -u")).stdout.strip() == own


def test_a_terminal(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("pty")

    async def talk() -> None:
        async with await sandbox.terminal(cols=100, rows=30, cwd="/tmp") as terminal:
            shown = b""

            async def until(text: str, timeout_ms: int = 20_000) -> None:
                nonlocal shown
                while text.encode() not in shown:
                    piece = await terminal.recv(timeout_ms)
                    assert piece is not None, shown
                    shown += piece
                shown = shown.partition(text.encode())[2]

            await terminal.send("stty size; echo $((6*7))-$TERM-$PWD\n")
            await until("30 100")
            await until("42-xterm-256color-/tmp")
            await terminal.resize(40, 120)
            await terminal.send(b"stty size; printf '\\303\\274\\n'\n")
            await until("40 120")
            await until("ü")
            with pytest.raises(RunraError) as caught:
                await until("what never comes", 1000)
            assert (caught.value.code, caught.value.details["reason"]) == ("NETWORK_ERROR", "timeout")
            assert terminal.exit is None
            await terminal.send("exit 3\n")
            assert (await terminal.wait(20_000)).exit_code == 3
            assert await terminal.recv() is None

    bench.run(talk())

    async def command() -> tuple[bytes, int | None]:
        async with await sandbox.terminal(command="test -t 0 && echo on a terminal; exit 5") as terminal:
            shown = b"".join([piece async for piece in terminal])
            assert terminal.exit is not None
            return shown, terminal.exit.exit_code

    shown, code = bench.run(command())
    assert b"on a terminal" in shown
    assert code == 5
    assert refused(lambda: bench.run(sandbox.terminal(cols=0))).code == "INVALID_REQUEST"


def test_stdin(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("stdin")
    assert bench.run(sandbox.exec("cat", stdin="text ü\n")).stdout == "text ü\n"
    assert bench.run(sandbox.exec("wc -c", stdin="x" * 300_000)).stdout.strip() == "300000"
    assert bench.run(sandbox.exec("exit 4", stdin="x" * 300_000)).exit_code == 4  # it need not read it


def test_a_process_in_the_background(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("background", "stdin")
    last = '[ "$line" = end ] && break'

    async def talk() -> tuple[str, int | None]:
        process = await sandbox.exec(f"while read line; do {last}; echo got $line; done; exit 5", background=True)
        assert process.pid > 0
        await process.send_stdin("a\n")
        await process.send_stdin(b"b\nend\n")
        output = b"".join([chunk.data async for chunk in process.output()])
        return output.decode(), (await process.wait()).exit_code

    assert bench.run(talk()) == ("got a\ngot b\n", 5)


def test_the_stdin_of_a_background_process_ends(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("background", "stdin", "stdin_end")

    async def count() -> str:
        process = await sandbox.exec("wc -c", background=True)
        await process.send_stdin("x" * 100_000)
        await process.close_stdin()
        return (await process.wait()).stdout.strip()

    assert bench.run(count()) == "100000"


def test_a_background_process_is_killed(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("background")

    async def kill() -> int | None:
        process = await sandbox.exec("sleep 500", background=True)
        await process.kill()
        result = await process.wait()
        await process.kill()  # killing what has ended is fine
        return result.exit_code

    assert bench.run(kill()) == 137


def test_a_background_process_needs_no_reader(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("background")

    async def unread() -> Any:
        process = await sandbox.exec("head -c 3000000 /dev/zero | tr '\\0' x; exit 6", background=True)
        return await process.wait()

    assert bench.run(unread()).exit_code == 6

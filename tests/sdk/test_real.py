"""The main job against a real server with real sandboxes, in both forms."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import io
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from runra import CommandFailed, RunraError
from tests.sdk.conftest import RealServer


async def test_the_first_screen(runra: Any) -> None:
    lines: list[str] = []
    async with await runra.sandboxes.create(image="host", metadata={"a": "b"}, env={"E": "1"}) as sandbox:
        assert (sandbox.state, sandbox.image, sandbox.metadata, sandbox.env) == (
            "running",
            "host",
            {"a": "b"},
            {"E": "1"},
        )
        ended = await sandbox.exec("python3 -c 'print(6*7)'", on_stdout=lines.append)
        assert (lines, ended.stdout, ended.exit_code) == (["42"], "42\n", 0)
        await sandbox.files.write("/workspace/a.txt", "hi")
        assert await sandbox.files.read("a.txt") == "hi"
    assert sandbox.state == "terminated"
    assert sandbox.termination_reason == "user"
    again = await runra.sandboxes.get(sandbox.id)
    assert again.state == "terminated"
    with pytest.raises(RunraError) as caught:
        await again.exec("true")
    assert caught.value.code == "INVALID_STATE"


async def test_life(runra: Any, sandbox: Any) -> None:
    await sandbox.update(timeout_ms=600_000, metadata={"k": sandbox.id})
    assert (sandbox.timeout_ms, sandbox.metadata) == (600_000, {"k": sandbox.id})
    found = await runra.sandboxes.list(metadata={"k": sandbox.id})
    assert [item.id for item in found] == [sandbox.id]
    await sandbox.pause()
    await sandbox.pause()
    assert sandbox.state == "paused"
    assert sandbox.paused_at is not None
    with pytest.raises(RunraError) as caught:
        await sandbox.exec("true")
    assert caught.value.code == "INVALID_STATE"
    assert (await runra.sandboxes.resume(sandbox.id)).state == "running"
    assert sandbox.state == "paused", "what this object last heard"
    assert (await sandbox.refresh()).state == "running"
    with pytest.raises(RunraError, match="cpu") as caught:
        await runra.sandboxes.create(image="host", resources={"cpu": 3})
    assert caught.value.code == "INVALID_REQUEST"


async def test_exec(sandbox: Any) -> None:
    ended = await sandbox.exec("cat; echo $K $PWD >&2; exit 3", stdin="in", env={"K": "v"}, cwd="/tmp")
    assert (ended.stdout, ended.stderr, ended.exit_code, ended.signal) == ("in", "v /tmp\n", 3, None)
    assert (await sandbox.exec(["printf", "%s|", "a b", "$x"])).stdout == "a b|$x|"
    with pytest.raises(CommandFailed, match="exit code 127"):
        await sandbox.exec("no-such-command", check=True)
    with pytest.raises(RunraError) as caught:
        await sandbox.exec("echo part; sleep 30", timeout_ms=300)
    assert (caught.value.code, caught.value.details["stdout"]) == ("EXECUTION_TIMEOUT", "part\n")
    with pytest.raises(RunraError) as caught:
        await sandbox.exec("true " + "x" * (1 << 20))
    assert caught.value.code == "COMMAND_TOO_LONG"
    killed = await sandbox.exec("kill -9 $$")
    assert (killed.exit_code, killed.signal) == (137, "SIGKILL")


async def test_lines_come_as_they_are_written(sandbox: Any, form: str) -> None:
    seen: list[tuple[str, str]] = []
    first = threading.Event()

    def took(name: str) -> Any:
        def line(text: str) -> None:
            seen.append((name, text))
            first.set()

        async def later(text: str) -> None:
            await asyncio.sleep(0)
            line(text)

        return later if form == "async" and name == "err" else line

    command = r"echo é; while [ ! -e go ]; do sleep 0.01; done; printf '\377\n' >&2; printf 'last\r\nopen'"
    task = asyncio.ensure_future(sandbox.exec(command, on_stdout=took("out"), on_stderr=took("err")))
    while not first.is_set():
        await asyncio.sleep(0.01)
    assert seen == [("out", "é")]
    await sandbox.files.write("go", "")
    ended = await task
    assert sorted(seen[1:]) == [("err", "\ufffd"), ("out", "last"), ("out", "open")]
    assert ended.stdout == "é\nlast\r\nopen"


async def test_much_output_is_bounded_and_says_so(sandbox: Any) -> None:
    count = 0

    def line(_: str) -> None:
        nonlocal count
        count += 1

    ended = await sandbox.exec("yes 0123456 | head -n 1300000", on_stdout=line)
    assert (count, len(ended.stdout), ended.truncated) == (1_300_000, 8 << 20, True)


async def test_processes(sandbox: Any) -> None:
    process = await sandbox.exec("while read x; do echo got $x; done; echo over >&2; exit 5", background=True)
    await process.send_stdin("a\n")
    await process.send_stdin(b"b\n")
    assert (await process.info()).state == "running"
    with pytest.raises(RunraError, match="runs on") as caught:
        await process.wait(200)
    assert caught.value.details["reason"] == "timeout"
    await process.close_stdin()
    ended = await process.wait(10_000)
    assert (ended.stdout, ended.stderr, ended.exit_code) == ("got a\ngot b\n", "over\n", 5)
    assert process.result is ended
    assert process.pid in [info.pid for info in await sandbox.processes.list()]
    same = await sandbox.processes.get(process.pid)
    chunks = [chunk async for chunk in same.logs()]
    assert b"".join(chunk.data for chunk in chunks if chunk.stream == "stdout") == b"got a\ngot b\n"
    assert "".join([chunk.text async for chunk in same.logs(offset=6)]) == "got b\nover\n"
    await process.kill()
    with pytest.raises(RunraError) as caught:
        await sandbox.processes.get(999_999)
    assert caught.value.details["reason"] == "no_such_process"


async def test_signals(sandbox: Any) -> None:
    process = await sandbox.exec(
        "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.05; done", background=True
    )
    async for chunk in process.logs():
        assert chunk.text == "ready\n"
        break
    await process.signal("SIGTERM")
    assert (await process.wait(10_000)).exit_code == 9
    process = await sandbox.exec(["sleep", "100"], background=True)
    await process.kill()
    assert (await process.wait(10_000)).signal == "SIGKILL"


async def test_terminal(sandbox: Any) -> None:
    terminal = await sandbox.terminal(100, 30, cwd="/tmp")
    async with terminal:
        await terminal.resize(40, 120)
        await terminal.send("stty size; tty; pwd\n")
        shown = b""
        while b"/tmp\r\n" not in shown:
            shown += await terminal.recv(10_000)
        assert b"40 120\r\n" in shown
        assert b"/dev/pts/" in shown
        await terminal.send("sleep 60 & echo $((40+2))\n")
    again = await sandbox.terminal(pid=terminal.pid, offset=terminal.offset)
    async with again:
        shown = b""
        while b"42\r\n" not in shown:
            shown += await again.recv(10_000)
        assert b"40 120" not in shown, "only what was new"
        await again.send(b"exit 7\n")
        assert (await again.wait(10_000)).exit_code == 7
        assert await again.recv(1000) is None
    with pytest.raises(RunraError):
        await again.send("x")
    with pytest.raises(RunraError) as caught:
        await sandbox.terminal(pid=999_999)
    assert caught.value.code == "INVALID_REQUEST"


async def test_handlers_hear_what_anyone_does(runra: Any, sandbox: Any) -> None:
    heard: list[Any] = []
    for name in ("paused", "resumed", "terminated"):
        sandbox.on(name, heard.append)
    await sandbox.pause()
    await runra.sandboxes.resume(sandbox.id)
    while len(heard) < 2:
        await asyncio.sleep(0.01)
    assert heard[0].runtime_duration_ms >= 0
    assert heard[0].reason == "user"
    assert heard[1].paused_duration_ms >= 0
    async with sandbox:
        pass
    assert (heard[2].reason, heard[2].sandbox_id) == ("user", sandbox.id)
    assert heard[2].total_runtime_ms >= heard[0].runtime_duration_ms


async def test_a_start_that_lies_behind_is_told_once(sandbox: Any) -> None:
    """`create` returns when it runs: nobody could have listened before."""
    heard: list[Any] = []
    sandbox.on("paused", heard.append)
    sandbox.on("started", heard.append)
    async with asyncio.timeout(5):
        while not heard:
            await asyncio.sleep(0.01)
    assert (heard[0].sandbox_id, heard[0].timestamp) == (sandbox.id, sandbox.started_at)
    await sandbox.pause()
    await sandbox.resume()
    async with asyncio.timeout(5):
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    assert [type(event).__name__ for event in heard] == ["StartedEvent", "PausedEvent"]


async def test_events(runra: Any, sandbox: Any) -> None:
    async with runra.events(after="evt_0") as stream:
        async for event in stream:
            if event.sandbox_id == sandbox.id and event.type == "sandbox.started":
                break
    kinds = []
    await sandbox.exec("true")
    async for later in sandbox.events(after=event.id):
        kinds.append(later.type)
        if later.type == "exec.completed":
            break
    assert kinds == ["exec.started", "exec.completed"]


async def test_files(sandbox: Any) -> None:
    files = sandbox.files
    assert (await files.write("d/e/new.txt", "é", mode=0o640)).size_bytes == 2
    assert (await files.stat("d/e/new.txt")).mode == "0640"
    assert await files.read("/workspace/d/e/new.txt", format="bytes") == "é".encode()
    assert [entry.name for entry in await files.list("d")] == ["e"]
    assert (await files.list("d"))[0].is_directory
    assert not await files.exists("d/nope")
    assert not await files.exists("d/e/new.txt/below")
    await files.mkdir("x/y", recursive=True)
    await files.move("d/e/new.txt", "x/y/z")
    assert await files.exists("x/y/z")
    with pytest.raises(RunraError) as caught:
        await files.delete("x")
    assert caught.value.details["reason"] == "not_empty"
    await files.delete("x", recursive=True)
    with pytest.raises(RunraError) as caught:
        await files.read("x/y/z")
    assert (caught.value.code, caught.value.details["reason"]) == ("INVALID_REQUEST", "not_found")
    await files.write("bin", bytes(range(256)))
    with pytest.raises(RunraError, match="format='bytes'"):
        await files.read("bin")
    assert await files.read("bin", format="bytes", offset=250) == bytes(range(250, 256))
    assert await files.read("bin", format="bytes", offset=10, length=2) == b"\x0a\x0b"
    assert await files.read("bin", format="bytes", offset=256) == b""
    assert await files.read("bin", format="bytes", length=0) == b""
    await files.write("empty", b"")
    assert await files.read("empty") == ""
    for strange in ("", "a\0b", 3):
        with pytest.raises(RunraError) as caught:
            await files.read(strange)
        assert caught.value.code == "INVALID_REQUEST"


async def test_content_of_any_kind(sandbox: Any, form: str, tmp_path: Path) -> None:
    files, piece = sandbox.files, os.urandom(1 << 20)

    def generated() -> Any:
        for _ in range(3):
            yield piece

    async def generated_async() -> Any:
        for _ in range(3):
            yield piece

    (tmp_path / "f").write_bytes(piece * 3)
    with (tmp_path / "f").open("rb") as opened:
        kinds = [piece * 3, bytearray(piece * 3), io.BytesIO(piece * 3), generated(), [piece] * 3, opened]
        kinds += [generated_async()] if form == "async" else []
        for content in kinds:
            assert (await files.write("f", content)).size_bytes == 3 << 20
            assert await files.read("f", format="bytes") == piece * 3
            await files.delete("f")
    await files.write("t", io.StringIO("text"))
    assert await files.read("t") == "text"
    with pytest.raises(RunraError, match="content"):
        await files.write("t", 3)

    def broken() -> Any:
        yield piece
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await files.write("t", broken())
    assert await files.read("t") == "text", "whole or not at all"


async def test_big_files_in_constant_memory(sandbox: Any, tmp_path: Path) -> None:
    size = 120 << 20
    await sandbox.exec(f"head -c {size} /dev/zero > big", check=True)
    peak = _peak()
    done: list[tuple[int, int | None]] = []
    await sandbox.files.download("big", tmp_path / "big", progress=lambda *it: done.append(it))
    assert (tmp_path / "big").stat().st_size == size
    assert done[-1] == (size, size)
    done.clear()
    await sandbox.files.upload(tmp_path / "big", "again", progress=lambda *it: done.append(it))
    assert done[-1] == (size, size)
    assert (await sandbox.files.stat("again")).size_bytes == size
    total = 0
    async with await sandbox.files.read("again", format="stream") as stream:
        assert stream.size == size
        async for chunk in stream:
            total += len(chunk)
    assert total == size
    assert _peak() - peak < 40 << 10
    await sandbox.files.delete("big")


def _peak() -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


async def test_folders_both_ways(sandbox: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "run").write_text("#!/bin/sh\necho ran\n")
    (source / "d" / "run").chmod(0o755)
    (source / "link").symlink_to("d/run")
    sent = await sandbox.files.upload(source, "project")
    assert (sent.files, sent.skipped) == (2, ())
    assert (await sandbox.exec("./project/link")).stdout == "ran\n"
    await sandbox.exec(
        "ln -s /etc/passwd project/out; mkfifo project/pipe; echo new > project/d/new; ln -s .. project/up"
    )
    got = await sandbox.files.download("project", tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").rglob("*")) == ["d", "link", "new", "run"]
    assert sorted(item.split(":")[0] for item in got.skipped) == ["out", "up"]
    assert os.access(tmp_path / "back" / "d" / "run", os.X_OK)
    await sandbox.files.download("project", tmp_path)
    assert (tmp_path / "project").is_dir(), "in a folder, under its own name"
    with pytest.raises(RunraError, match="exists"):
        await sandbox.files.download("project", tmp_path)
    await sandbox.files.download("project/d/new", tmp_path)
    assert (tmp_path / "new").read_text() == "new\n"
    with pytest.raises(RunraError, match="no folder"):
        await sandbox.files.download("project", tmp_path / "not" / "there")
    with pytest.raises(RunraError, match="there is no"):
        await sandbox.files.upload(tmp_path / "nope", "x")
    with pytest.raises(RunraError, match="would be replaced"):
        await sandbox.files.download("project/d/new", "/dev/null")
    assert not list(tmp_path.glob(".*")), "no temporary file stays"


async def test_watch(sandbox: Any) -> None:
    await sandbox.files.mkdir("w/deep", recursive=True)
    events = sandbox.files.watch("w", recursive=True)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.3)
    await sandbox.exec("echo > w/deep/a; mv w/deep/a w/deep/b; rm w/deep/b")
    seen = [await asyncio.wait_for(waiting, 10)]
    while seen[-1].type != "deleted":
        seen.append(await asyncio.wait_for(anext(events), 10))
    await events.aclose()
    assert seen[0].path == "/workspace/w/deep/a"
    assert seen[0].type == "created"
    with pytest.raises(RunraError):
        await anext(sandbox.files.watch("nope"))


async def test_keys_and_organizations(runra: Any, connect: Any) -> None:
    made = await runra.organizations.create("others")
    assert made.id in [item.id for item in await runra.organizations.list()]
    key = await runra.api_keys.create("theirs", profile="sandbox-user", organization_id=made.id)
    others = connect(api_key=key.key, api_url=runra.api_url)
    assert [box async for box in others.sandboxes.iter()] == []
    with pytest.raises(RunraError) as caught:
        await others.api_keys.list()
    assert caught.value.code == "FORBIDDEN"
    assert key.id in [item.id for item in await runra.api_keys.list()]
    await runra.api_keys.revoke(key.id)
    with pytest.raises(RunraError) as caught:
        await others.sandboxes.list()
    assert caught.value.code == "UNAUTHORIZED"
    with pytest.raises(RunraError, match="exactly one"):
        await runra.api_keys.create("both", scopes=["sandbox:*"], profile="full")


async def test_a_server_killed_in_mid_stream_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command runs on in its sandbox; the next server takes it up, and this call with it."""
    server = RealServer(tmp_path_factory.mktemp("killed"))
    server.start()
    try:
        monkeypatch.setenv("RUNRA_CONFIG_PATH", str(server.config))
        async with await connect().sandboxes.create(image="host") as sandbox:
            lines: list[str] = []
            # One process: three hundred of them take gVisor on a busy machine a minute.
            command = "python3 -uc 'import time\nfor i in range(1, 301): print(i); time.sleep(0.01)'"
            task = asyncio.ensure_future(sandbox.exec(command, on_stdout=lines.append))
            while len(lines) < 20:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            await asyncio.to_thread(server.start)
            ended = await task
            assert not ended.truncated, lines
            assert lines == [str(n) for n in range(1, 301)]
            assert ended.exit_code == 0
    finally:
        await asyncio.to_thread(server.stop)


async def test_an_interrupted_create_leaves_nothing(runra: Any, form: str) -> None:
    if form == "sync":
        pytest.skip("a thread cannot be cancelled; Ctrl-C is tried in test_interrupt")
    mark = {"mark": os.urandom(8).hex()}
    task = asyncio.ensure_future(runra.sandboxes.create(image="host", metadata=mark))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while True:
        found = await runra.sandboxes.list(metadata=mark)
        if found.data and found[0].state == "terminated":
            break
        await asyncio.sleep(0.02)


async def test_many_at_once(runra: Any) -> None:
    async def one(n: int) -> str:
        async with await runra.sandboxes.create(image="host") as sandbox:
            return str((await sandbox.exec(f"echo {n}")).stdout)

    assert await asyncio.gather(*[one(n) for n in range(10)]) == [f"{n}\n" for n in range(10)]


async def test_closing_frees_everything(runra: Any, connect: Any, real: RealServer, form: str) -> None:
    async def everything() -> None:
        client = connect()
        async with await client.sandboxes.create(image="host") as sandbox:
            sandbox.on("paused", print)
            await sandbox.exec("echo a", on_stdout=lambda _: None)
            await sandbox.files.write("f", "x" * 1000)
            await sandbox.files.read("f", format="stream")  # left open
            await sandbox.terminal()  # left open
            events = client.events()
            reading = asyncio.ensure_future(anext(aiter(events)))
            await sandbox.pause()
            await reading
            await sandbox.resume()
            logs = (await sandbox.exec("echo b; sleep 60", background=True)).logs()
            await anext(logs)  # left open
            await client.close() if form == "async" else None
            if form == "async":
                await runra.sandboxes.terminate(sandbox.id)
                return
        await client.close()

    async def attempt() -> None:
        with contextlib.suppress(RunraError):  # leaving the block with a closed client
            await everything()

    await attempt()
    gc.collect()
    before = _open()
    for _ in range(3):
        await attempt()
    gc.collect()
    await asyncio.sleep(0.1)
    assert _open() - before <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("runra-")]


def _open() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_ports(runra: Any, sandbox: Any) -> None:
    server = await sandbox.exec("python3 -m http.server 8000 --bind 127.0.0.1", background=True)
    await sandbox.exec("until (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.1; done")
    public = await sandbox.expose_port(8000)
    assert (public.port, public.private, public.token) == (8000, False, None)
    assert public.url.startswith(f"http://8000-{sandbox.id.removeprefix('sb_')}.localhost:")

    async def status(url: str, **headers: str) -> int:
        where = runra.api_url.partition("://")[2]
        name, _, path = url.partition("://")[2].partition("/")

        def ask() -> int:
            connection = http.client.HTTPConnection(where, timeout=10)
            with contextlib.closing(connection):
                connection.request("GET", f"/{path}", headers={"Host": name, **headers})
                return connection.getresponse().status

        return await asyncio.to_thread(ask)

    assert await status(public.url) == 200
    await sandbox.close_port(8000)
    await sandbox.close_port(8000)
    assert await status(public.url) == 404
    private = await sandbox.expose_port(8000, private=True)
    assert await status(private.url) == 401
    assert await status(private.url, **{"X-Runra-Preview-Token": private.token}) == 200
    link = await sandbox.sign_url(8000, expires_in_ms=60_000)
    assert await status(link.url) == 303
    await sandbox.revoke_urls(8000)
    assert await status(link.url) == 401
    assert [(one.port, one.private) for one in await sandbox.get_ports()] == [(8000, True)]
    with pytest.raises(RunraError, match="1024") as caught:
        await sandbox.expose_port(80)
    assert caught.value.code == "INVALID_REQUEST"
    await server.kill()

"""A stdin that is held open, in both forms, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runra import AsyncRunra
from runra.errors import RunraError
from tests.hosting import until
from tests.sdk.conftest import Connect, RealServer
from tests.sdk.proxy import Proxy, proxied

pytestmark = pytest.mark.usefixtures("real")


@pytest.fixture
async def proxy(real: RealServer) -> AsyncIterator[Proxy]:
    async with proxied(real.port) as proxy:
        yield proxy


@pytest.fixture
async def far(real: RealServer, proxy: Proxy, connect: Connect, sandbox: Any) -> Any:
    """The sandbox by way of the proxy, for a client that gives up soon."""
    key = json.loads(real.config.read_text())["apiKey"]
    return await connect(api_key=key, api_url=proxy.url, timeout_ms=3000).sandboxes.get(sandbox.id)


def stdins(proxy: Proxy) -> list[str]:
    return [line.rpartition("/")[2] for line in proxy.requests if "/stdin" in line]


async def heard(sandbox: Any, name: str, size: int) -> None:
    """Wait until a file inside has so many bytes."""

    async def enough() -> bool:
        return await sandbox.files.exists(name) and (await sandbox.files.stat(name)).size_bytes >= size

    await until(enough)


async def test_many_writes_go_out_on_one_request_and_leaving_ends_it(far: Any, proxy: Proxy) -> None:
    process = await far.exec("sha256sum; echo over", background=True)
    async with process.open_stdin() as stdin:
        for n in range(300):
            await stdin.write(f"{n}\n" if n % 2 else b"%d\n" % n)
        await stdin.write(b"")
        await stdin.write(bytes(1 << 20))
        assert stdin.pid == process.pid
    ended = await process.wait(10_000)
    expected = await far.exec("{ seq 0 299; head -c 1048576 /dev/zero; } | sha256sum; echo over")
    assert ended.stdout == expected.stdout
    assert stdins(proxy) == ["stdin", "stdin?close=true"]
    await stdin.close()
    await stdin.wait_closed(1000)
    with pytest.raises(RunraError) as caught:
        await stdin.write("more")
    assert (caught.value.code, caught.value.status) == ("INVALID_STATE", 0)


async def test_each_write_arrives_at_once_and_writers_do_not_mix(far: Any) -> None:
    process = await far.exec("tee copy", background=True)
    async with process.open_stdin() as stdin:
        await stdin.write("a\n")
        await heard(far, "copy", 2)
        await asyncio.gather(*(stdin.write(f"{n}" * 50_000 + "\n") for n in range(10)))
    lines = (await process.wait(10_000)).stdout.splitlines()
    assert sorted(lines[1:]) == [f"{n}" * 50_000 for n in range(10)]


async def test_a_block_may_leave_the_stdin_open(far: Any, proxy: Proxy) -> None:
    process = await far.exec("cat", background=True)
    async with process.open_stdin(close=False) as stdin:
        await stdin.write("first\n")
    async with process.open_stdin(close=False):
        pass
    await process.send_stdin("second\n")
    await process.close_stdin()
    assert (await process.wait(10_000)).stdout == "first\nsecond\n"
    assert stdins(proxy) == ["stdin", "stdin", "stdin?close=true"]


async def test_an_exception_ends_nothing(far: Any, proxy: Proxy) -> None:
    process = await far.exec("tee copy", background=True)

    async def fail() -> None:
        async with process.open_stdin() as stdin:
            await stdin.write("whole\n")
            await heard(far, "copy", 6)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert stdins(proxy) == ["stdin"]
    assert (await process.info()).state == "running"
    await process.send_stdin("then\n")
    await process.close_stdin()
    assert (await process.wait(10_000)).stdout == "whole\nthen\n"


async def test_a_pause_ends_the_request_and_the_next_write_begins_another(
    far: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in ("_async", "_sync"):
        monkeypatch.setattr(f"runra.sdk.{form}.stdin._IDLE_S", 0.2)
    process = await far.exec("tee copy", background=True)
    async with process.open_stdin() as stdin:
        for n in range(3):
            await stdin.write("x")
            await heard(far, "copy", n + 1)
            await asyncio.sleep(0.5)
    assert (await process.wait(10_000)).stdout == "xxx"
    assert stdins(proxy) == ["stdin"] * 3 + ["stdin?close=true"]


async def test_who_writes_faster_than_it_is_read_waits(far: Any) -> None:
    process = await far.exec("while [ ! -e go ]; do sleep 0.05; done; wc -c", background=True)
    piece, written = bytes(1 << 20), 0

    async def fill() -> None:
        nonlocal written
        while written < 64:
            await stdin.write(piece)
            written += 1

    async with process.open_stdin() as stdin:
        with pytest.raises(RunraError, match="nothing of this was written") as caught:
            await fill()
        assert (caught.value.code, caught.value.details["reason"]) == ("NETWORK_ERROR", "timeout")
        assert 0 < written < 32, "what waits is bounded"
        await far.files.write("go", "")
        await stdin.write(piece)  # it goes on
    assert (await process.wait(10_000)).stdout.strip() == str((written + 1) << 20)


async def test_what_is_not_read_is_given_up_at_the_end(far: Any) -> None:
    process = await far.exec(["sleep", "60"], background=True)
    stdin = process.open_stdin()
    await stdin.write(bytes(16 << 20))
    with pytest.raises(RunraError, match="did not read all of its stdin") as caught:
        await stdin.close()
    assert caught.value.details["reason"] == "timeout"
    assert (await process.info()).state == "running"
    await process.kill()


async def test_a_command_that_ends_ends_its_stdin(far: Any) -> None:
    process = await far.exec("read x; echo $x", background=True)
    async with process.open_stdin() as stdin:
        await stdin.write("all of it\n")
        ended = await process.wait(10_000)
    assert ended.stdout == "all of it\n"  # and nothing was lost: no error

    process = await far.exec("read x; exec <&-; sleep 60", background=True)
    stdin = process.open_stdin()

    async def go_on() -> None:
        async with asyncio.timeout(20), stdin:
            while True:
                await stdin.write(b"more\n" * 1000)
                await asyncio.sleep(0.01)

    with pytest.raises(RunraError) as caught:
        await go_on()
    assert (caught.value.code, caught.value.status) == ("INVALID_STATE", 409)
    with pytest.raises(RunraError, match=caught.value.message):
        await stdin.wait_closed()
    await process.kill()
    # What was sent on that connection spoiled it for no other call.
    assert (await far.exec("echo fine")).stdout == "fine\n"


async def test_a_process_that_is_not_there(far: Any) -> None:
    process = await far.exec("true", background=True)
    getattr(process, "_target", process).pid = 999_999
    with pytest.raises(RunraError) as caught:
        async with process.open_stdin() as stdin:
            await stdin.write("x")
    assert caught.value.details["reason"] == "no_such_process"


async def test_a_broken_connection_is_said_to_be(far: Any, proxy: Proxy) -> None:
    process = await far.exec("tee copy", background=True)
    stdin = process.open_stdin()
    await stdin.write("x")
    await heard(far, "copy", 1)
    over = asyncio.ensure_future(stdin.wait_closed(20_000))
    await asyncio.sleep(0.01)
    assert not over.done()
    proxy.cut()
    # A blocking client has no eyes for what happens between two writes.
    while not over.done():
        await asyncio.sleep(0.05)
        try:
            await stdin.write("y")
        except RunraError:
            break
    with pytest.raises(RunraError) as caught:
        await over
    assert (caught.value.code, caught.value.details["reason"]) == ("NETWORK_ERROR", "closed")
    with pytest.raises(RunraError, match="broke"):
        await stdin.close()
    assert (await process.info()).state == "running"
    await process.kill()


async def test_a_server_that_stops(real: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(real.config))
    async with AsyncRunra() as client, await client.sandboxes.create(image="host") as sandbox:
        process = await sandbox.exec("cat > copy", background=True)
        stdin = process.open_stdin(close=False)
        await stdin.write("x")
        await heard(sandbox, "copy", 1)
        log = real.home / "server.log"
        before = log.stat().st_size
        await asyncio.to_thread(real.stop)
        assert b"shutdown exceeded" not in log.read_bytes()[before:], "what is open for ever is waited for in vain"
        await asyncio.to_thread(real.start)
        with pytest.raises(RunraError, match="the server is stopping") as caught:
            await stdin.write("y")
        assert caught.value.retryable
        async with process.open_stdin() as stdin:
            await stdin.write("z")
        assert (await process.wait(10_000)).exit_code == 0
        assert await sandbox.files.read("copy") == "xz"


async def test_a_client_that_closes_cuts_it_off(real: RealServer, connect: Connect, sandbox: Any) -> None:
    key = json.loads(real.config.read_text())["apiKey"]
    client = connect(api_key=key, api_url=f"http://127.0.0.1:{real.port}")
    process = await (await client.sandboxes.get(sandbox.id)).exec("tee copy", background=True)
    stuck = await (await client.sandboxes.get(sandbox.id)).exec(["sleep", "60"], background=True)
    stdin, deaf = process.open_stdin(), stuck.open_stdin()
    await stdin.write("x")
    await deaf.write(bytes(16 << 20))
    await heard(sandbox, "copy", 1)
    async with asyncio.timeout(10):
        await client.close()
    with pytest.raises(RunraError, match="closed here"):
        await stdin.write("y")
    for one in (process, stuck):
        same = await sandbox.processes.get(one.pid)
        assert (await same.info()).state == "running"
        await same.kill()


async def test_what_is_no_data_is_refused(sandbox: Any) -> None:
    process = await sandbox.exec("cat", background=True)
    async with process.open_stdin() as stdin:
        with pytest.raises(RunraError, match="must be str or bytes"):
            await stdin.write(7)

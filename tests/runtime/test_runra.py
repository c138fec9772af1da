"""The runtime on a real server: sandboxes, runs, their events, and what is left when it goes away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from runra.contract.network import Egress, Network
from runra.runtime import AgentRun, Event, Runra, RunraError
from tests.hosting import until
from tests.runtime.conftest import Make, alive
from tests.sdk.conftest import RealServer

pytestmark = pytest.mark.timeout(60)


def custom(run: Any) -> dict[str, Any]:
    return {"provider": "custom", "config": {"run": run}}


async def test_a_sandbox_with_its_events_each_once_and_in_order(make: Make) -> None:
    runra = make()
    events: list[Event] = []
    runra.on("*", events.append)
    sandbox = await runra.create_sandbox(metadata={"team": "a"}, timeout_ms=60_000)
    assert (sandbox.state, sandbox.image, sandbox.metadata) == ("running", "host", {"team": "a"})
    lines: list[str] = []
    result = await sandbox.exec("echo out; echo err >&2; exit 3", on_stdout=lines.append)
    assert (result.stdout, result.stderr, result.exit_code, lines) == ("out\n", "err\n", 3, ["out"])
    await sandbox.files.write("a.txt", "hello")
    assert await sandbox.files.read("a.txt") == "hello"
    assert await sandbox.files.read("a.txt", format="bytes") == b"hello"
    assert [entry.name for entry in await sandbox.files.list()] == ["a.txt"]
    await sandbox.files.delete("a.txt")
    assert await sandbox.files.exists("/etc/passwd")
    await sandbox.pause()
    await sandbox.resume()
    await sandbox.terminate()
    await until(lambda: bool(events) and events[-1].type == "sandbox.terminated")
    assert [event.type for event in events] == [
        "sandbox.created", "sandbox.started", "exec.started", "exec.completed", "file.created", "file.read", "file.read",
        "file.deleted", "sandbox.paused", "sandbox.resumed", "sandbox.terminated",
    ]  # fmt: skip
    assert len({event.id for event in events}) == len(events)
    assert {event.sandbox_id for event in events} == {sandbox.id}
    assert all(event.run_id.startswith("run_") and len(event.trace_id) == 32 for event in events)
    assert events[3].data["exitCode"] == 3


async def test_a_listener_that_comes_later_misses_nothing_from_then_on(make: Make) -> None:
    runra = make()
    async with await runra.create_sandbox() as sandbox:
        await sandbox.exec("true")
        events: list[Event] = []
        runra.on("exec.*", events.append)
        await sandbox.exec("echo now")
        await until(lambda: len(events) == 2)
        assert [event.data["command"] for event in events] == ["echo now", "echo now"]
        ended = asyncio.Event()
        sandbox.on("terminated", lambda event: ended.set())
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_process_in_the_background(make: Make) -> None:
    async with await make().create_sandbox() as sandbox:
        process = await sandbox.exec("read line; echo got $line; sleep 1000", background=True)
        await process.send_stdin("it\n")
        async for chunk in process.output():
            assert chunk.text == "got it\n"
            break
        await process.kill()
        assert (await process.wait()).signal == "SIGKILL"


async def test_what_the_provider_cannot_do_is_refused_before_anything_starts(make: Make, real: RealServer) -> None:
    runra = make()
    async with await runra.create_sandbox() as sandbox:
        with pytest.raises(RunraError, match=r"'runra-sandbox' cannot.*ports") as caught:
            await sandbox.expose_port(3000) if "ports" not in runra.provider.capabilities else pytest.skip("has ports")
        assert caught.value.code == "INVALID_CONFIG"
        with pytest.raises(RunraError) as caught:
            await sandbox.exec("true", background=True, check=True)
        assert caught.value.details["field"] == "background"


async def test_get_and_list(make: Make) -> None:
    runra = make()
    async with await runra.create_sandbox(metadata={"mark": "get-and-list"}) as sandbox:
        found = await make().get_sandbox(sandbox.id)
        assert found is not None
        assert (await found.exec("echo hi")).stdout == "hi\n"
        listed = await runra.list_sandboxes(metadata={"mark": "get-and-list"})
        assert [one.id for one in listed] == [sandbox.id]
    assert await runra.get_sandbox("sb_0000000000000000") is None


async def test_a_run_in_a_sandbox_of_its_own(make: Make, real: RealServer) -> None:
    seen: list[AgentRun] = []

    async def agent(run: AgentRun) -> str:
        seen.append(run)
        run.emit("agent.message", {"text": "working"})
        done = await run.sandbox.exec("cat", stdin=run.prompt)
        return done.stdout.upper()

    runra = make(agent=custom(agent))
    events: list[Event] = []
    runra.on("*", events.append)
    result = await runra.start("hello", sandbox_options={"metadata": {"a": "b"}})
    assert (result.success, result.summary, result.error) == (True, "HELLO", None)
    assert result.run_id == seen[0].run.id
    assert result.total_duration_ms > 0
    assert seen[0].sandbox.id not in alive(real)
    await until(lambda: any(event.type == "sandbox.terminated" for event in events))
    assert {event.run_id for event in events} == {result.run_id}
    assert len({event.trace_id for event in events}) == 1
    assert [event.type for event in events if event.type.startswith("agent")] == ["agent.message"]


async def test_runs_at_once_in_one_sandbox_keep_their_events_apart(make: Make) -> None:
    async def agent(run: AgentRun) -> str:
        await run.sandbox.exec(f"echo {run.prompt}")
        await run.sandbox.files.write(f"/tmp/{run.prompt}", "x")
        return ""

    runra = make(agent=custom(agent))
    events: list[Event] = []
    async with await runra.create_sandbox() as sandbox:
        runra.on("*", events.append)
        results = await asyncio.gather(*(runra.start(name, sandbox_id=sandbox.id) for name in ("one", "two", "three")))
        assert (await sandbox.refresh()).state == "running"
    await until(lambda: any(event.type == "sandbox.terminated" for event in events))
    for name, result in zip(("one", "two", "three"), results, strict=True):
        of_run = [event for event in events if event.run_id == result.run_id]
        assert [event.type for event in of_run] == ["exec.started", "exec.completed", "file.created"]
        assert of_run[0].data["command"] == f"echo {name}"


async def test_a_stream_of_a_run(make: Make) -> None:
    async def agent(run: AgentRun) -> str:
        run.emit("agent.thinking", {"text": "hm"})
        return "done"

    async with make(agent=custom(agent)).stream("go") as run:
        with pytest.raises(RunraError, match="has not ended"):
            _ = run.result
        types = [event.type async for event in run]
    assert run.result.summary == "done"
    assert types[0] == "sandbox.created"
    assert "agent.thinking" in types
    assert types[-1] == "sandbox.terminated"


async def test_a_stream_left_early_ends_its_run(make: Make, real: RealServer) -> None:
    async def agent(run: AgentRun) -> None:
        await run.sandbox.exec("sleep 1000", timeout_ms=100_000)

    before = set(alive(real))
    async with make(agent=custom(agent)).stream("go") as run:
        async for event in run:
            if event.type == "exec.started":
                break
    assert set(alive(real)) == before


async def test_an_agent_that_fails_is_a_result(make: Make, real: RealServer) -> None:
    def agent(run: AgentRun) -> None:
        raise ValueError("no idea")

    before = set(alive(real))
    result = await make(agent=custom(agent)).start("x")
    assert (result.success, result.error) == (False, "no idea")
    assert set(alive(real)) == before


async def test_a_run_has_a_deadline(make: Make, real: RealServer) -> None:
    async def agent(run: AgentRun) -> None:
        await run.sandbox.exec("sleep 1000", timeout_ms=100_000)

    before = set(alive(real))
    result = await make(agent=custom(agent)).start("x", timeout_ms=500)
    assert not result.success
    assert "500 ms" in (result.error or "")
    assert set(alive(real)) == before


@pytest.mark.parametrize("after_ms", [0, 3, 10, 30, 100])
async def test_a_cancelled_create_leaves_no_sandbox(make: Make, real: RealServer, after_ms: int) -> None:
    before = set(alive(real))
    runra = make()
    task = asyncio.create_task(runra.create_sandbox())
    await asyncio.sleep(after_ms / 1000)
    task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    if not isinstance(outcome, asyncio.CancelledError):  # it was quicker than the cancellation
        await outcome.terminate()  # type: ignore[union-attr]
    await until(lambda: set(alive(real)) == before)


@pytest.mark.parametrize("when", ["sandbox.created", "exec.started"])
async def test_a_cancelled_start_leaves_no_sandbox(make: Make, real: RealServer, when: str) -> None:
    async def agent(run: AgentRun) -> None:
        await run.sandbox.exec("sleep 1000", timeout_ms=100_000)

    before = set(alive(real))
    runra = make(agent=custom(agent))
    reached = asyncio.Event()
    runra.on(when, lambda event: reached.set())
    task = asyncio.create_task(runra.start("x"))
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(alive(real)) == before


async def test_dispose_ends_what_is_its_own_and_leaves_the_rest(make: Make, real: RealServer) -> None:
    other = make()
    kept = await other.create_sandbox()
    other.keep_sandbox(kept)
    runra = make()
    events: list[Event] = []
    runra.on("sandbox.terminated", events.append)
    mine = [(await runra.create_sandbox()).id for _ in range(3)]
    assert await runra.get_sandbox(kept.id) is not None
    await runra.dispose()
    assert not set(mine) & set(alive(real))
    assert sorted(event.sandbox_id for event in events) == sorted(mine)
    assert kept.id in alive(real)
    with pytest.raises(RunraError) as caught:
        await runra.create_sandbox()
    assert caught.value.code == "INVALID_STATE"
    await kept.terminate()


async def test_dispose_ends_runs_under_way(make: Make, real: RealServer) -> None:
    async def agent(run: AgentRun) -> None:
        await run.sandbox.exec("sleep 1000", timeout_ms=100_000)

    before = set(alive(real))
    runra = make(agent=custom(agent))
    reached = asyncio.Event()
    runra.on("exec.started", lambda event: reached.set())
    task = asyncio.create_task(runra.start("x"))
    await asyncio.wait_for(reached.wait(), 10)
    await runra.dispose()
    with pytest.raises(RunraError) as caught:
        await task
    assert caught.value.code == "INVALID_STATE"
    assert set(alive(real)) == before


async def test_nothing_hangs_without_a_server() -> None:
    runra = Runra(
        sandbox={"apiUrl": "http://127.0.0.1:9", "apiKey": "rra_test_0123456789abcdef", "config": {"maxRetries": 0}}
    )
    began = time.monotonic()
    with pytest.raises(RunraError) as caught:
        await runra.create_sandbox(image="host")
    assert caught.value.code == "NETWORK_ERROR"
    await runra.dispose()
    assert time.monotonic() - began < 5


async def test_secrets_of_the_environment_reach_no_exporter(make: Make) -> None:
    runra = make(observability={"provider": "jsonl", "path": "told.jsonl"})
    sandbox = await runra.create_sandbox(env={"DB_PASSWORD": "of-the-sandbox-1", "PLAIN": "not-a-secret-1"})
    await sandbox.exec("echo of-the-sandbox-1 not-a-secret-1")
    await sandbox.exec("echo of-the-command-1", env={"MY_TOKEN": "of-the-command-1"})
    process = await sandbox.exec("echo of-the-process-1", env={"API_KEY": "of-the-process-1"}, background=True)
    await process.wait()
    found = await runra.get_sandbox(sandbox.id)
    assert found is not None
    await runra.dispose()
    told = Path("told.jsonl").read_text()
    assert "not-a-secret-1" in told
    assert told.count("echo [redacted]") >= 3
    for secret in ("of-the-sandbox-1", "of-the-command-1", "of-the-process-1"):
        assert secret not in told


async def test_what_the_server_can_do_is_declared(make: Make) -> None:
    runra = make()
    assert {"network_change", "secrets", "volumes", "snapshots"} <= runra.provider.capabilities.abilities
    async with await runra.create_sandbox() as sandbox:
        await sandbox.set_network(Network(egress=Egress(default="deny")))
        assert (await sandbox.refresh()).handle.network["egress"]["default"] == "deny"

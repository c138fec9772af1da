"""Sandboxes are made, found and ended, and each of that is told once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from runra.runtime.sandbox import Sandbox
from runra.runtime.testing.bench import Bench, refused


def test_a_sandbox_is_made_found_and_ended(bench: Bench) -> None:
    sandbox = bench.create()
    assert sandbox.state == "running"
    assert sandbox.image == bench.image
    assert sandbox.handle.created_at.endswith("Z")
    found = bench.run(bench.runra.get_sandbox(sandbox.id))
    assert found is not None
    assert (found.id, found.state) == (sandbox.id, "running")
    assert sandbox.id in bench.alive()
    bench.run(sandbox.terminate())
    bench.run(sandbox.terminate())  # ending what has ended is fine
    assert sandbox.id not in bench.alive()
    gone = bench.run(bench.runra.get_sandbox(sandbox.id))
    assert gone is None or gone.state == "terminated"
    assert refused(lambda: bench.run(sandbox.exec("true"))).code in ("SANDBOX_NOT_FOUND", "INVALID_STATE")


@pytest.mark.parametrize("id", ["sb_0000000000000000", "no-such-thing", "../../etc", "a b", "x" * 300])
def test_an_id_there_is_none_of(bench: Bench, id: str) -> None:
    assert bench.run(bench.runra.get_sandbox(id)) is None
    assert refused(lambda: bench.run(bench.runra.provider.execute(id, "true"))).code == "SANDBOX_NOT_FOUND"


def test_a_cancelled_create_leaves_nothing(bench: Bench) -> None:
    before = bench.alive()

    async def interrupted(after: float) -> None:
        task = asyncio.create_task(bench.runra.create_sandbox(image=bench.image))
        await asyncio.sleep(after)
        task.cancel()
        for outcome in await asyncio.gather(task, return_exceptions=True):
            if isinstance(outcome, Sandbox):
                await outcome.terminate()

    for after in (0.0, 0.005, 0.05, 0.2):
        bench.run(interrupted(after))
    deadline = time.monotonic() + 15
    while bench.alive() != before:
        assert time.monotonic() < deadline, f"left behind: {bench.alive() - before}"


def test_an_image_there_is_none_of(bench: Bench) -> None:
    before = bench.alive()
    error = refused(lambda: bench.run(bench.runra.create_sandbox(image="127.0.0.1:1/runra/no-such-image")))
    # A registry that should know, and cannot be reached, is not the caller's mistake.
    assert error.code in ("INVALID_REQUEST", "INTERNAL_ERROR", "NETWORK_ERROR"), error
    assert bench.alive() == before


def test_another_caller_takes_it_up(bench: Bench) -> None:
    options: Any = {"metadata": {"mark": "kept"}} if "metadata" in bench.can else {}
    first = bench.another()
    sandbox = bench.run(first.create_sandbox(image=bench.image, **options))
    first.keep_sandbox(sandbox)
    bench.run(sandbox.files.write("kept.txt", "still here"))
    bench.run(first.dispose())
    bench.run(first.dispose())  # twice is fine
    second = bench.another()
    found = bench.run(second.get_sandbox(sandbox.id))
    assert found is not None
    assert bench.run(found.files.read("kept.txt")) == "still here"
    assert found.metadata == options.get("metadata", {})
    bench.run(found.terminate())
    bench.run(second.dispose())


def test_dispose_ends_what_was_made(bench: Bench) -> None:
    runra = bench.another()
    sandbox = bench.run(runra.create_sandbox(image=bench.image))
    bench.run(runra.dispose())
    assert sandbox.id not in bench.alive()


def test_events_come_once_and_in_order(bench: Bench) -> None:
    sandbox = bench.create()
    bench.run(sandbox.exec("exit 2"))
    bench.run(sandbox.files.write("/tmp/e", "x"))
    bench.run(sandbox.files.delete("/tmp/e"))
    bench.run(sandbox.terminate())
    bench.until(lambda: "sandbox.terminated" in bench.of(sandbox))
    assert bench.of(sandbox) == [
        "sandbox.created",
        "sandbox.started",
        "exec.started",
        "exec.completed",
        "file.created",
        "file.deleted",
        "sandbox.terminated",
    ]
    events = [event for event in bench.events if event.sandbox_id == sandbox.id]
    assert all(event.run_id and event.trace_id for event in events)
    assert events[3].data["exitCode"] == 2
    assert events[-1].data["reason"] == "user"

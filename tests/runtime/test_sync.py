"""The blocking form: the same surface, used as a program without an event loop does."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runra.runtime import AgentRun, Runra, RunraError, Sandbox, SyncRunra, SyncSandbox
from tests.runtime.conftest import alive
from tests.sdk.conftest import RealServer

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(real: RealServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(real.config))
    monkeypatch.setenv("RUNRA_DEFAULT_IMAGE", "host")
    before = {thread.name for thread in threading.enumerate()}
    yield
    assert not {thread.name for thread in threading.enumerate()} - before & {"runra-runtime"}


def test_it_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_blocking.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("one", "other"), [(Runra, SyncRunra), (Sandbox, SyncSandbox)])
def test_both_forms_have_one_surface(one: type, other: type) -> None:
    def surface(of: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(of) if not name.startswith("_")}

    assert surface(one) == surface(other)


def test_a_day_with_it(here: None, real: RealServer) -> None:
    events: list[str] = []
    with SyncRunra() as runra:
        runra.on("*", lambda event: events.append(event.type))
        with runra.create_sandbox(metadata={"a": "sync"}) as sandbox:
            lines: list[str] = []
            assert sandbox.exec("echo hi", on_stdout=lines.append).stdout == "hi\n"
            sandbox.files.write("a", b"\x00\xff")
            assert sandbox.files.read("a", format="bytes") == b"\x00\xff"
            process = sandbox.exec("read line; echo got $line", background=True)
            process.send_stdin("it\n")
            assert [chunk.text for chunk in process.output()] == ["got it\n"]
            assert process.wait().exit_code == 0
            (listed,) = runra.list_sandboxes(metadata={"a": "sync"}, state="running")
            assert isinstance(listed, SyncSandbox)
            assert listed.exec("echo same").stdout == "same\n"
            with pytest.raises(RunraError) as caught:
                sandbox.files.read("no")
            assert caught.value.details["reason"] == "not_found"
            left = sandbox.id
        assert runra.get_sandbox("sb_0000000000000000") is None
    assert lines == ["hi"]
    assert events[:2] == ["sandbox.created", "sandbox.started"]
    assert events[-1] == "sandbox.terminated"
    assert left not in alive(real)
    runra.dispose()
    with pytest.raises(RunraError, match="disposed"):
        runra.create_sandbox()


def test_a_run_and_its_stream(here: None) -> None:
    async def agent(run: AgentRun) -> str:
        run.emit("agent.thinking", {"text": "…"})
        return (await run.sandbox.exec("cat", stdin=run.prompt)).stdout

    with SyncRunra(agent={"provider": "custom", "config": {"run": agent}}) as runra:
        assert runra.start("hello").summary == "hello"
        with runra.stream("again") as run:
            types = [event.type for event in run]
        assert run.result.summary == "again"
        assert "agent.thinking" in types


def test_a_call_from_within_is_refused_rather_than_hang(here: None) -> None:
    outcome: list[Any] = []
    with SyncRunra() as runra, runra.create_sandbox() as sandbox:

        def handler(event: Any) -> None:
            try:
                sandbox.exec("true")
            except RunraError as error:
                outcome.append(error.code)

        runra.on("exec.completed", handler)
        sandbox.exec("true")
        deadline = time.monotonic() + 5
        while not outcome:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert outcome == ["INVALID_STATE"]


def test_ctrl_c_ends_the_wait_and_the_sandbox(here: None, real: RealServer) -> None:
    program = (
        "from runra.runtime import SyncRunra\n"
        "with SyncRunra() as runra, runra.create_sandbox() as sandbox:\n"
        "    print(sandbox.id, flush=True)\n"
        "    sandbox.exec('sleep 100', timeout_ms=200000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    sandbox_id = process.stdout.readline().strip()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert "KeyboardInterrupt" in errors
    assert sandbox_id
    assert sandbox_id not in alive(real)

"""What goes wrong at a CubeSandbox, one fault at a time, and what is kept for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from runra.runtime import Runra, RunraError
from runra.runtime.sandbox import Sandbox
from tests.runtime.fakes.cube_service import CubeService

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def cube() -> Iterator[CubeService]:
    service = CubeService()
    service.keys = {"master-secret-token"}
    yield service
    service.close()


def runtime(cube: CubeService, state: Path, **config: Any) -> Runra:
    given = {"masterUrl": cube.url, "proxyUrl": cube.url, "masterToken": "master-secret-token", "stateDir": str(state)}
    return Runra(sandbox={"provider": "cubesandbox", "config": {**given, **config}})


@pytest.fixture
async def runra(cube: CubeService, tmp_path: Path) -> AsyncIterator[Runra]:
    async with runtime(cube, tmp_path / "notes", pauseTimeoutMs=2000) as runra:
        yield runra


@pytest.fixture
async def sandbox(runra: Runra) -> Sandbox:
    return await runra.create_sandbox(image="tpl-1", metadata={"a": "b"})


def code_of(outcome: Any) -> str:
    assert isinstance(outcome, RunraError), outcome
    return outcome.code


async def failing(work: Any) -> RunraError:
    with pytest.raises(RunraError) as caught:
        await work
    return caught.value


async def test_its_own_timer_is_off_and_metadata_outlives_a_pause(
    cube: CubeService, runra: Runra, sandbox: Sandbox
) -> None:
    assert cube.sandboxes[sandbox.id].timeout_s == -1
    await sandbox.pause()
    assert cube.sandboxes[sandbox.id].metadata == {}
    assert (await sandbox.refresh()).metadata == {"a": "b"}
    assert [one.id for one in await runra.list_sandboxes(metadata={"a": "b"})] == [sandbox.id]


async def test_the_policy_is_put_again_after_a_resume(cube: CubeService, runra: Runra) -> None:
    sandbox = await runra.create_sandbox(image="tpl-1", network={"egress": {"allow": ["api.example.com"]}})
    wanted = {"allowOut": ["api.example.com"], "denyOut": ["0.0.0.0/0"]}
    assert cube.sandboxes[sandbox.id].asked["network"] == wanted
    await sandbox.pause()
    await sandbox.resume()
    assert cube.networks == [(sandbox.id, wanted)]
    assert cube.sandboxes[sandbox.id].timeout_s == -1


async def test_a_resumed_one_has_its_policy_before_anything_else(cube: CubeService, runra: Runra) -> None:
    sandbox = await runra.create_sandbox(image="tpl-1", network={"egress": {"allow": ["api.example.com"]}})
    await sandbox.pause()
    cube.network_fails = 2  # busy: asked again
    cube.calls.clear()
    await sandbox.resume()
    assert len(cube.networks) == 1
    paths = [path.rpartition("/")[2] for _, path in cube.calls if not path.endswith(sandbox.id)]
    assert paths[:4] == ["connect", "network", "network", "network"]


async def test_one_whose_policy_is_refused_is_paused_again(cube: CubeService, runra: Runra) -> None:
    sandbox = await runra.create_sandbox(image="tpl-1", network={"egress": {"allow": ["api.example.com"]}})
    await sandbox.pause()
    cube.network_fails, cube.network_status = 1, 400
    assert (await failing(sandbox.resume())).code == "INVALID_REQUEST"
    assert cube.sandboxes[sandbox.id].state == "paused"
    await sandbox.resume()
    assert (await sandbox.exec("echo on")).stdout == "on\n"


async def test_one_that_cannot_be_paused_again_ends_with_its_time(cube: CubeService, runra: Runra) -> None:
    sandbox = await runra.create_sandbox(image="tpl-1", network={"egress": {"allow": ["api.example.com"]}}, timeout_ms=4000)
    await sandbox.pause()
    cube.network_fails, cube.network_status, cube.never_paused = 1, 400, True
    await failing(sandbox.resume())
    cube.sandboxes[sandbox.id].state = "running"
    deadline = time.monotonic() + 20
    while sandbox.id in cube.sandboxes:
        assert time.monotonic() < deadline, "nobody ended it"
        await asyncio.sleep(0.05)


async def test_a_create_is_noted_before_its_own_timer_is_off(cube: CubeService, runra: Runra, tmp_path: Path) -> None:
    noted: list[int] = []
    cube.on_timeout = lambda: noted.append(len(list(tmp_path.rglob("*.json"))))
    await runra.create_sandbox(image="tpl-1")
    assert noted == [1]


async def test_ending_while_it_is_being_paused(cube: CubeService, runra: Runra, sandbox: Sandbox) -> None:
    cube.pause_s = 0.6
    pausing = asyncio.create_task(sandbox.pause())
    await asyncio.sleep(0.2)
    await sandbox.terminate()
    assert sandbox.id not in cube.sandboxes
    await asyncio.gather(pausing, return_exceptions=True)


async def test_a_pause_that_never_comes(cube: CubeService, sandbox: Sandbox) -> None:
    cube.never_paused = True
    began = time.monotonic()
    error = await failing(sandbox.pause())
    assert (error.code, error.details["state"]) == ("INTERNAL_ERROR", "pausing")
    assert time.monotonic() - began < 6
    cube.sandboxes[sandbox.id].state = "running"


async def test_not_known_for_a_moment_after_a_resume(cube: CubeService, sandbox: Sandbox) -> None:
    await sandbox.pause()
    await sandbox.resume()
    cube.unknown_after_resume = 3
    assert (await sandbox.refresh()).state == "running"
    assert cube.unknown_after_resume == 0


async def test_a_stale_proxy_after_a_resume(cube: CubeService, sandbox: Sandbox) -> None:
    await sandbox.files.write("/tmp/a", "x")
    await sandbox.pause()
    cube.faults.proxy_504 = 3
    await sandbox.resume()
    assert (await sandbox.exec("echo on")).stdout == "on\n"
    cube.faults.proxy_504 = 2
    assert await sandbox.files.read("/tmp/a") == "x"


async def test_a_command_is_not_run_again_behind_a_stale_proxy(cube: CubeService, sandbox: Sandbox) -> None:
    cube.faults.proxy_504 = 1
    error = await failing(sandbox.exec("echo once >> /tmp/ran"))
    assert (error.code, error.details["status"]) == ("NETWORK_ERROR", 504)
    assert not await sandbox.files.exists("/tmp/ran")


async def test_a_frame_that_breaks_off(cube: CubeService, sandbox: Sandbox) -> None:
    cube.faults.truncate_frame = True
    error = await failing(sandbox.exec("echo x"))
    assert error.code == "NETWORK_ERROR"
    assert "broke before its end" in error.message


async def test_a_last_frame_with_an_error(cube: CubeService, sandbox: Sandbox) -> None:
    cube.faults.end_error = "resource_exhausted"
    assert (await failing(sandbox.exec("true"))).code == "RESOURCE_EXHAUSTED"


async def test_a_missing_exit_code(cube: CubeService, sandbox: Sandbox) -> None:
    cube.faults.no_exit_code = True
    assert (await sandbox.exec("exit 7")).exit_code == 7
    assert (await sandbox.exec("true")).exit_code == 0
    result = await sandbox.exec(["/bin/bash", "-c", "kill -9 $$"])
    assert (result.exit_code, result.signal) in ((137, "SIGKILL"), (137, None))


async def test_a_missing_template_hides_in_a_500(cube: CubeService, runra: Runra) -> None:
    cube.hidden_404 = True
    error = await failing(runra.create_sandbox(image="nothing"))
    assert (error.code, error.details["field"]) == ("INVALID_REQUEST", "image")
    assert not cube.sandboxes


async def test_an_old_agent_takes_files_as_a_form(cube: CubeService, sandbox: Sandbox) -> None:
    cube.octet_refused = True
    await sandbox.files.write("/tmp/form", b"\x00\xff")
    assert await sandbox.files.read("/tmp/form", format="bytes") == b"\x00\xff"


async def test_a_metadata_key_that_opens_its_host_is_refused(cube: CubeService, runra: Runra) -> None:
    error = await failing(runra.create_sandbox(image="tpl-1", metadata={"host-mount": "/"}))
    assert code_of(error) == "INVALID_REQUEST"
    assert ("POST", "/sandboxes") not in cube.calls


async def test_one_killed_behind_our_back(cube: CubeService, sandbox: Sandbox) -> None:
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(cube.drop(cube.sandboxes[sandbox.id]), cube._loop))
    assert (await failing(sandbox.exec("true"))).code == "SANDBOX_NOT_FOUND"
    assert sandbox.state == "terminated"


async def test_a_wrong_token(cube: CubeService, tmp_path: Path) -> None:
    async with runtime(cube, tmp_path, masterToken="another-token") as wrong:
        error = await failing(wrong.create_sandbox(image="tpl-1"))
    assert error.code == "UNAUTHORIZED"
    assert "another-token" not in f"{error} {error.details}"


async def test_times_and_metadata_are_taken_up_after_a_restart(cube: CubeService, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    first = runtime(cube, notes)
    sandbox = await first.create_sandbox(image="tpl-1", metadata={"a": "b"}, timeout_ms=1500, env={"A": "1"})
    first.keep_sandbox(sandbox)
    await first.dispose()
    assert sandbox.id in cube.sandboxes
    second = runtime(cube, notes)
    found = await second.get_sandbox(sandbox.id)
    assert found is not None
    assert (found.metadata, found.env) == ({"a": "b"}, {"A": "1"})
    deadline = time.monotonic() + 15
    while sandbox.id in cube.sandboxes or list(notes.rglob("*.json")):
        assert time.monotonic() < deadline, "nobody ended it"
        await asyncio.sleep(0.05)
    await second.dispose()


async def test_another_process_counts_no_pause_of_ours(cube: CubeService, runra: Runra, tmp_path: Path) -> None:
    """Both watch its time; what one of them pauses and resumes the other must not count."""
    sandbox = await runra.create_sandbox(image="tpl-1", timeout_ms=3000)
    async with runtime(cube, tmp_path / "notes") as other:
        assert await other.get_sandbox(sandbox.id) is not None
        began = time.monotonic()
        await sandbox.pause()
        await asyncio.sleep(2.0)
        await sandbox.resume()
        while sandbox.id in cube.sandboxes:
            assert time.monotonic() - began < 20, "nobody ended it"
            await asyncio.sleep(0.02)
        assert time.monotonic() - began > 4.0, "its pause was counted"


async def test_another_process_pauses_nothing_that_works(cube: CubeService, runra: Runra, tmp_path: Path) -> None:
    sandbox = await runra.create_sandbox(image="tpl-1", idle_timeout_ms=700)
    async with runtime(cube, tmp_path / "notes") as other:
        theirs = await other.get_sandbox(sandbox.id)
        assert theirs is not None
        working = asyncio.create_task(sandbox.exec("sleep 3; echo done"))
        assert (await theirs.exec("echo theirs")).stdout == "theirs\n"
        assert (await working).stdout == "done\n"
        assert ("POST", f"/sandboxes/{sandbox.id}/pause") not in cube.calls
        deadline = time.monotonic() + 15
        while cube.sandboxes[sandbox.id].state != "paused":
            assert time.monotonic() < deadline, "nobody pauses it once it is idle"
            await asyncio.sleep(0.05)
        for one in (theirs, sandbox):  # whoever paused it, both know
            assert (await failing(one.exec("true"))).code == "INVALID_STATE"


async def test_notes_are_for_their_owner_alone(
    cube: CubeService, runra: Runra, sandbox: Sandbox, tmp_path: Path
) -> None:
    (note,) = (tmp_path / "notes").rglob("*.json")
    assert note.stat().st_mode & 0o077 == 0
    assert json.loads(note.read_text())["metadata"] == {"a": "b"}

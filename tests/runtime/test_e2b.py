"""E2B's failures as Runra's errors, and what its API is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from runra.runtime import Runra, RunraError
from runra.runtime.sandbox import Sandbox
from tests.runtime.fakes.e2b_service import E2BService

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def service() -> Iterator[E2BService]:
    service = E2BService()
    service.keys = {"e2b_secret_key"}
    yield service
    service.close()


def runtime(service: E2BService, key: str = "e2b_secret_key") -> Runra:
    config = {"sandboxUrl": service.url, "timeoutMs": 5000}
    return Runra(sandbox={"provider": "e2b", "apiKey": key, "apiUrl": service.url, "config": config})


@pytest.fixture
async def runra(service: E2BService) -> AsyncIterator[Runra]:
    async with runtime(service) as runra:
        yield runra


@pytest.fixture
async def sandbox(runra: Runra) -> Sandbox:
    return await runra.create_sandbox(image="base")


async def failing(work: Any) -> RunraError:
    with pytest.raises(RunraError) as caught:
        await work
    return caught.value


async def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    async with Runra(sandbox="e2b") as runra:
        error = await failing(runra.create_sandbox(image="base"))
    assert (error.code, error.details["field"]) == ("INVALID_CONFIG", "apiKey")


async def test_a_wrong_key(service: E2BService) -> None:
    async with runtime(service, "e2b_wrong_key_00") as runra:
        error = await failing(runra.create_sandbox(image="base"))
    assert error.code == "UNAUTHORIZED"
    assert "e2b_wrong_key_00" not in f"{error} {error.details}"


async def test_no_room(service: E2BService, runra: Runra) -> None:
    service.faults.proxy_504 = 1  # its API says 503 once, and not to try again
    error = await failing(runra.create_sandbox(image="base"))
    assert (error.code, error.retryable) == ("RESOURCE_EXHAUSTED", True)


async def test_nobody_there() -> None:
    config = {"sandboxUrl": "http://127.0.0.1:9", "timeoutMs": 2000}
    async with Runra(
        sandbox={"provider": "e2b", "apiKey": "k", "apiUrl": "http://127.0.0.1:9", "config": config}
    ) as runra:
        assert (await failing(runra.create_sandbox(image="base"))).code == "NETWORK_ERROR"


async def test_what_is_asked(service: E2BService, runra: Runra) -> None:
    sandbox = await runra.create_sandbox(
        image="base",
        timeout_ms=90_500,
        env={"A": "1"},
        metadata={"m": "n"},
        network={"egress": {"allow": ["api.example.com"]}},
    )
    asked = service.sandboxes[sandbox.id].asked
    assert (asked["templateID"], asked["timeout"], asked["envVars"]) == ("base", 91, {"A": "1"})
    assert asked["network"]["allowOut"] == ["api.example.com"]
    assert asked["network"]["denyOut"] == ["0.0.0.0/0"]
    assert sandbox.metadata == {"m": "n"}  # our own notes among it are not shown


async def test_a_working_folder(runra: Runra) -> None:
    async with await runra.create_sandbox(image="base", workdir="/home/user/work") as sandbox:
        await sandbox.files.write("a.txt", "x")
        assert (await sandbox.exec("pwd; cat a.txt")).stdout == "/home/user/work\nx"


async def test_a_stream_that_breaks(service: E2BService, sandbox: Sandbox) -> None:
    service.faults.drop_stream = True
    error = await failing(sandbox.exec("echo x"))
    assert error.code == "NETWORK_ERROR"
    service.faults.drop_stream = False
    assert (await sandbox.exec("echo x")).stdout == "x\n"


async def test_one_killed_behind_our_back(service: E2BService, sandbox: Sandbox) -> None:
    running = asyncio.create_task(sandbox.exec("sleep 100"))
    await asyncio.sleep(0.5)
    await asyncio.wrap_future(
        asyncio.run_coroutine_threadsafe(service.drop(service.sandboxes[sandbox.id]), service._loop)
    )
    (outcome,) = await asyncio.gather(running, return_exceptions=True)
    assert isinstance(outcome, RunraError | Exception) or outcome.exit_code != 0
    assert (await failing(sandbox.exec("true"))).code == "SANDBOX_NOT_FOUND"
    assert sandbox.state == "terminated"


async def test_a_full_folder_is_not_deleted_by_mistake(sandbox: Sandbox) -> None:
    await sandbox.files.write("/tmp/full/a", "x")
    error = await failing(sandbox.files.delete("/tmp/full"))
    assert error.details["reason"] == "not_empty"
    assert await sandbox.files.exists("/tmp/full/a")


async def test_one_paused_while_another_process_meets_it_lives_on(service: E2BService, sandbox: Sandbox) -> None:
    kept = service.sandboxes[sandbox.id]
    left = kept.ends - time.time()
    async with runtime(service) as other:
        theirs = await other.get_sandbox(sandbox.id)
        assert theirs is not None
        service.paused_before_connect = True
        assert (await theirs.exec("echo on")).stdout == "on\n"
        assert left - 10 < kept.ends - time.time() <= left, "it has another time left than before"

"""What a container may not do, and what becomes of it when its caller goes away."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runra.runtime import Event, Runra, RunraError
from runra.runtime.sandbox import Sandbox
from tests.providers.conftest import docker_url
from tests.providers.engine import IMAGE

__all__ = ["docker_url"]
pytestmark = pytest.mark.timeout(120)


def runtime(url: str, state: Path, **config: Any) -> Runra:
    return Runra(
        sandbox={"provider": "docker", "config": {"url": url, "pull": "never", "stateDir": str(state), **config}}
    )


@pytest.fixture
async def runra(docker_url: str, tmp_path: Path) -> AsyncIterator[Runra]:
    async with runtime(docker_url, tmp_path) as runra:
        yield runra


def shown(url: str, sandbox: Sandbox) -> dict[str, Any]:
    done = subprocess.run(
        ["docker", "-H", url, "inspect", f"runra-{sandbox.id}"], capture_output=True, check=True, timeout=20
    )
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


async def test_its_walls(docker_url: str, runra: Runra) -> None:
    async with await runra.create_sandbox(image=IMAGE, resources={"cpu": 2, "memory_mb": 256}) as sandbox:
        host = shown(docker_url, sandbox)["HostConfig"]
        assert host["Memory"] == host["MemorySwap"] == 256 << 20
        assert (host["NanoCpus"], host["PidsLimit"], host["Privileged"]) == (2_000_000_000, 1024, False)
        assert not host["Binds"]
        status = (await sandbox.exec("cat /proc/self/status")).stdout
        assert "NoNewPrivs:\t1" in status
        assert "CapBnd:\t00000000000000fb" in status  # none beyond those of the list
        assert (await sandbox.exec("ls /sys/class/net")).stdout.split() == ["lo"]
        assert (await sandbox.exec("mknod /tmp/d b 7 0 || mount -t tmpfs x /tmp")).exit_code != 0
        bomb = await sandbox.exec("head -c 600m /dev/zero | tail -c 500m | wc -c", timeout_ms=60_000)
        assert bomb.stdout.strip() != str(500 << 20), "the memory limit does not hold"


async def test_a_network_must_be_named(runra: Runra) -> None:
    with pytest.raises(RunraError) as caught:
        await runra.create_sandbox(image=IMAGE, network={"egress": {"default": "allow"}})
    assert (caught.value.code, caught.value.details["field"]) == ("INVALID_CONFIG", "sandbox.config.network")


async def test_containers_of_others_are_out_of_reach(docker_url: str, runra: Runra, tmp_path: Path) -> None:
    async with runtime(docker_url, tmp_path / "other", namespace="other") as other:
        theirs = await other.create_sandbox(image=IMAGE)
        assert await runra.get_sandbox(theirs.id) is None
        for call in (runra.provider.execute(theirs.id, "true"), runra.provider.pause(theirs.id)):
            with pytest.raises(RunraError) as caught:
                await call
            assert caught.value.code == "SANDBOX_NOT_FOUND"
        await runra.provider.terminate(theirs.id)
        assert (await theirs.exec("echo alive")).stdout == "alive\n"


async def test_a_link_leads_nowhere(runra: Runra) -> None:
    """File work happens inside: what a link names is a path of the sandbox, never of the engine's host."""
    async with await runra.create_sandbox(image=IMAGE) as sandbox:
        await sandbox.exec("ln -s /etc/hostname /tmp/link; ln -s /no/such /tmp/dangling")
        assert await sandbox.files.read("/tmp/link") == "sandbox\n"
        with pytest.raises(RunraError):
            await sandbox.files.read("/tmp/dangling")


async def test_neither_unread_stdin_nor_a_leftover_holds_a_command(runra: Runra) -> None:
    """The engine's stream of an exec may outlive the command; its result must not wait for that."""
    async with await runra.create_sandbox(image=IMAGE) as sandbox:
        began = time.monotonic()
        result = await sandbox.exec("echo out; sleep 45 & exit 3")
        assert (result.stdout, result.exit_code) == ("out\n", 3)
        unread = await asyncio.gather(*(sandbox.exec("exit 4", stdin="x" * 300_000) for _ in range(8)))
        assert {one.exit_code for one in unread} == {4}
        assert time.monotonic() - began < 40


async def test_a_closed_terminal_leaves_nothing(runra: Runra) -> None:
    async with await runra.create_sandbox(image=IMAGE) as sandbox:
        terminal = await sandbox.terminal(command="sleep 4321")
        assert "sleep 4321" in (await sandbox.exec(["ps", "-o", "args"])).stdout
        await terminal.close()
        await terminal.close()
        assert await terminal.recv() is None
        assert "sleep 4321" not in (await sandbox.exec(["ps", "-o", "args"])).stdout


async def test_a_restart_of_the_caller(docker_url: str, tmp_path: Path) -> None:
    """Its time goes on where it was: 3 s in all, however often the caller changes, and none of it while paused."""
    first = runtime(docker_url, tmp_path)
    sandbox = await first.create_sandbox(image=IMAGE, timeout_ms=3000, metadata={"a": "b"})
    first.keep_sandbox(sandbox)
    await sandbox.pause()
    await first.dispose()
    await asyncio.sleep(3.5)
    async with runtime(docker_url, tmp_path) as second:
        events: list[Event] = []
        second.on("sandbox.*", events.append)
        found = await second.get_sandbox(sandbox.id)
        assert found is not None
        assert (found.state, found.metadata) == ("paused", {"a": "b"})
        await found.resume()
        assert (await found.exec("echo back")).stdout == "back\n"
        deadline = time.monotonic() + 20
        while not any(event.type == "sandbox.terminated" for event in events):
            assert time.monotonic() < deadline, [event.type for event in events]
            await asyncio.sleep(0.05)
        assert events[-1].data["reason"] == "timeout"
        assert await second.get_sandbox(sandbox.id) is None
    assert not list(tmp_path.rglob("*.json"))


async def test_an_image_without_a_shell_leaves_no_container(docker_url: str, runra: Runra) -> None:
    empty = b"\0" * 10240
    subprocess.run(
        ["docker", "-H", docker_url, "import", "-", "runra-empty"],
        input=empty,
        check=True,
        timeout=30,
        capture_output=True,
    )
    with pytest.raises(RunraError, match="/bin/sh"):
        await runra.create_sandbox(image="runra-empty")
    left = subprocess.run(["docker", "-H", docker_url, "ps", "-aq"], capture_output=True, check=True, timeout=30)
    assert left.stdout == b""


async def test_labels_of_an_image_make_no_sandbox(docker_url: str, tmp_path: Path) -> None:
    """Whoever makes an image may give it our labels; its containers are not ours, and harm no listing."""

    def docker(*words: str, **given: Any) -> None:
        subprocess.run(["docker", "-H", docker_url, *words], check=True, timeout=30, capture_output=True, **given)

    changes = ["--change", "LABEL dev.runra=default", "--change", "LABEL dev.runra.id=sb_0123456789abcdef"]
    docker("import", *changes, "-", "runra-labelled", input=b"\0" * 10240)
    docker("create", "--name", "labelled", "runra-labelled", "/x")
    try:
        async with runtime(docker_url, tmp_path) as runra:
            assert await runra.list_sandboxes() == []
    finally:
        docker("rm", "labelled")


async def test_no_engine(tmp_path: Path) -> None:
    async with runtime(f"unix://{tmp_path}/nobody", tmp_path) as runra:
        with pytest.raises(RunraError) as caught:
            await runra.create_sandbox(image=IMAGE)
    assert caught.value.code == "NETWORK_ERROR"
    assert "nobody" in caught.value.message

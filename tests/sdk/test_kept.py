"""Snapshots, forks and volumes through the SDK, in both forms, on real sandboxes."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from runra import RunraError
from runra.contract import VolumeMount
from tests.hosting import bubblewrap_only, need_saving_wall


async def test_snapshots_and_forks(runra: Any, sandbox: Any) -> None:
    name = f"base-{uuid.uuid4().hex[:8]}"
    await sandbox.files.write("f", "kept")
    taken = await sandbox.snapshot(name)
    assert (taken.name, taken.sandbox_id) == (name, sandbox.id)
    unnamed = await sandbox.snapshot()
    assert {name, None} <= {one.name for one in await runra.snapshots.list()}
    with pytest.raises(RunraError, match="choose another name") as refused:
        await sandbox.snapshot(name)
    assert refused.value.code == "INVALID_STATE"
    await sandbox.files.write("f", "later")
    for image in (f"snapshot:{name}", f"snapshot:{unnamed.id}"):
        async with await runra.sandboxes.create(image=image) as copy:
            assert await copy.files.read("f") == "kept"
    assert (await runra.snapshots.get(name)).id == taken.id
    for reference in (name, unnamed.id):
        await runra.snapshots.delete(reference)
        with pytest.raises(RunraError) as gone:
            await runra.snapshots.get(reference)
        assert gone.value.status == 404
    forks = await sandbox.fork(2)
    assert len({one.id for one in forks} | {sandbox.id}) == 3
    for fork in forks:
        async with fork:
            assert fork.state == "running"
            assert await fork.files.read("f") == "later"


async def test_forks_with_processes(runra: Any) -> None:
    need_saving_wall()
    count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    async with await runra.sandboxes.create(image="host", isolation="gvisor") as source:
        process = await source.exec(count, background=True)
        async for chunk in process.logs():
            if b"5\n" in chunk.data:
                break
        (copy,) = await source.fork(processes=True)
        async with copy:
            (same,) = [one for one in await copy.processes.list() if one.pid == process.pid]
            assert same.state == "running"
            seen = b""
            async for chunk in (await copy.processes.get(process.pid)).logs():
                seen += chunk.data
                if len(seen.split()) > 20:
                    break
            assert seen.split()[:20] == [str(number).encode() for number in range(1, 21)]
            await (await copy.processes.get(process.pid)).kill()
        assert (await process.info()).state == "running"


@bubblewrap_only("it says no")
async def test_no_processes_behind_a_wall_that_cannot_save_them(sandbox: Any) -> None:
    with pytest.raises(RunraError) as refused:
        await sandbox.fork(processes=True)
    assert (refused.value.code, refused.value.details["field"]) == ("INVALID_CONFIG", "processes")


async def test_volumes(runra: Any) -> None:
    name = f"data-{uuid.uuid4().hex[:8]}"
    made = await runra.volumes.create(name, size_mb=64, access="many-writers")
    assert (made.name, made.size_mb, made.access) == (name, 64, "many-writers")
    async with await runra.sandboxes.create(image="host", volumes=[{"name": name, "path": "/data"}]) as one:
        await one.files.write("/data/f", "kept")
        assert one.volumes[0]["path"] == "/data"
        with pytest.raises(RunraError, match="is used by"):
            await runra.volumes.delete(name)
    mount = VolumeMount(name=name, path="/d", read_only=True)
    async with await runra.sandboxes.create(image="host", volumes=[mount]) as two:
        assert await two.files.read("/d/f") == "kept"
        with pytest.raises(RunraError):
            await two.files.write("/d/f", "no")
        assert (await runra.volumes.get(name)).used_by == [{"sandboxId": two.id, "readOnly": True}]
    assert name in {one.name for one in await runra.volumes.list()}
    await runra.volumes.delete(made.id)
    with pytest.raises(RunraError, match="no volume"):
        await runra.volumes.delete(name)
    with pytest.raises(RunraError, match="no id or name"):
        await runra.volumes.get("..")
    with pytest.raises(RunraError, match="which the sandbox needs"):
        await runra.sandboxes.create(image="host", volumes=[{"name": name, "path": "/usr"}])

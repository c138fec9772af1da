"""Snapshots and forks of real sandboxes: what they keep, what they do not, and that nobody is hurt by them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from runra.contract import VolumeCreate
from runra.contract.sandboxes import SandboxConfig
from runra.errors import RunraError
from runra.ids import new_id
from runra.node import Sandbox
from runra.node.disk import PlainDisk
from runra.node.isolation.staging import Stage
from tests.hosting import NOTHING, Host, both_walls, bubblewrap_only, hosted, need_wall, start_host, stop_host, until

#: Files of every kind, changes to those of the image, and what hides some of them.
CHANGES = """
    cd /workspace; echo one > file; chmod 4755 file; touch -d 2001-02-03 file; ln file hard; ln -s file soft; mkdir -m 1770 sticky; chown 1000:100 sticky
    truncate -s 5M sparse; printf 'a\\nb' > "odd
name"; rm -rf /var/cache; rm /usr/bin/env; rm -rf /home/user; mkdir /home/user; echo new > /home/user/only
    echo changed > /etc/timezone; mv /etc/skel /etc/moved
"""
LOOK = """
    cd /workspace; cat soft; stat -c '%n %a %u %g %h %s %Y %F' file hard soft sticky sparse odd*; test file -ef hard && echo same
    ls /var; ls /usr/bin/env; ls -A /home/user; cat /etc/timezone; ls -A /etc/moved /etc/skel; stat -c %b sparse
"""


async def snapshot(host: Host, sandbox: Sandbox, name: str | None = None) -> str:
    return (await host.node.snapshot(sandbox.id, new_id("snap"), name)).id


async def output(host: Host, sandbox: Sandbox, command: str) -> str:
    return (await host.run(sandbox, f"exec 2>&1; {command}"))[0]


@both_walls
async def test_a_snapshot_keeps_the_files(host: Host) -> None:
    source = await host.create(env={"SECRET": "of the source"}, workdir="/workspace/w")
    await output(host, source, CHANGES + "echo gone > /run/r; echo gone > /dev/shm/s")
    before = await output(host, source, LOOK)
    kept = await snapshot(host, source, "base")
    await output(host, source, "rm -rf /workspace/*; echo later > /workspace/later; touch /var/later")
    for image in ("snapshot:base", f"snapshot:{kept}"):
        copy = await host.create(image=image, workdir="/workspace/w")
        assert await output(host, copy, LOOK) == before
        said = await output(host, copy, "ls -A /run/r /dev/shm/s /workspace/later; echo $SECRET.")
        assert said.count("No such file") == 3
        assert said.endswith("\n.\n"), "the environment of a create may hold secrets: it stays with its sandbox"
    assert await output(host, source, "cat /workspace/later") == "later\n"


@both_walls
async def test_the_copy_is_somebody_else(host: Host) -> None:
    source = await host.create()
    await output(host, source, "echo 'planted' > /etc/machine-id; echo 127.0.0.1 evil >> /etc/hosts")
    await snapshot(host, source, "base")
    copies = [await host.create(image="snapshot:base") for _ in range(2)]
    copies += await host.node.fork(source.id, [new_id("sb"), new_id("sb")])
    asked = "hostname; cat /etc/hostname /etc/machine-id; cat /proc/sys/kernel/random/boot_id; cat /etc/hosts"
    told = [(await output(host, one, asked)).splitlines() for one in copies]
    for number, sandbox in enumerate(copies):
        name = sandbox.id.removeprefix("sb_")
        assert told[number][:2] == [name, name]
        assert name in told[number][4]
        assert "evil" not in "".join(told[number])
        assert len(told[number][2]) == 32
    for line in range(3):  # and the boot id, where the wall shows one
        assert len({one[line] for one in told}) == len(copies)
    shown = [one[3] for one in told if "-" in one[3]]
    assert len(set(shown)) == len(shown)


async def test_a_chain_of_snapshots_grows_no_deeper(host: Host) -> None:
    sandbox = await host.create()
    layers, sizes, parent = sandbox.record.root.layers, [], ""
    for number in range(12):
        await output(
            host,
            sandbox,
            f"echo {number} > /workspace/{number}; head -c 1M /dev/urandom > /workspace/data{number}; rm -f /workspace/{number - 5}",
        )
        info = await host.node.snapshot(sandbox.id, new_id("snap"), f"s{number}")
        sizes.append(info.size_bytes)
        await sandbox.terminate()
        if parent:
            host.node.snapshots.delete(parent)
        parent = info.id
        sandbox = await host.create(image=f"snapshot:{info.id}")
        assert sandbox.record.root.layers == layers
    assert (await output(host, sandbox, "cd /workspace; ls -d ? ?? | wc -l; cat 11")) == "5\n11\n"
    assert (await output(host, sandbox, "cat /workspace/data* | wc -c")).strip() == str(12 << 20)
    # What was inherited counts for the size, whoever wrote it.
    assert sizes == sorted(sizes)
    assert 12 << 20 <= sizes[-1] < 14 << 20


async def test_it_is_one_moment_and_the_source_goes_on(host: Host) -> None:
    source = await host.create()
    async with source.use() as agent:
        from runra.node.agent.types import ExecSpec

        loop = "cd /workspace; i=0; while :; do i=$((i+1)); echo $i > a; echo $i > b; echo $i >> log; done"
        (await agent.exec(ExecSpec(command=loop, env=source.env))).detach()
    await until(lambda: (source.folder / "upper0/workspace/log").exists())
    taken = []
    for _ in range(5):
        taken.append(await snapshot(host, source))
        before = await output(host, source, "wc -l < /workspace/log")
        await until(lambda before=before: _moved(host, source, before))
    for one in taken:
        copy = await host.create(image=f"snapshot:{one}")
        a, b, log, last = (
            await output(
                host,
                copy,
                "cd /workspace; cat a | tr -d '\n'; echo; cat b | tr -d '\n'; echo; wc -l < log; tail -1 log",
            )
        ).split("\n")[:4]
        assert log == last
        for written in (a, b):  # the shell empties a file before it writes it
            assert not written or int(written) - int(last) in (0, 1)
        assert not a or not b or int(a) - int(b) in (0, 1)


async def _moved(host: Host, sandbox: Sandbox, before: str) -> bool:
    return await output(host, sandbox, "wc -l < /workspace/log") != before


@bubblewrap_only("a sandbox paused behind gVisor still holds what was written last, and is refused")
async def test_states_in_which_it_can_be_taken(host: Host) -> None:
    source = await host.create()
    await output(host, source, "echo x > /workspace/f; mkfifo -m 640 /workspace/pipe")
    await source.pause()
    await snapshot(host, source, "paused")
    forked = await host.node.fork(source.id, [new_id("sb")])
    assert source.info().state == "paused"
    assert forked[0].info().state == "running"
    assert (
        await output(
            host, await host.create(image="snapshot:paused"), "cat /workspace/f; stat -c '%a %F' /workspace/pipe"
        )
        == "x\n640 fifo\n"
    )
    await source.terminate()
    for call in (host.node.snapshot(source.id, new_id("snap"), None), host.node.fork(source.id, [new_id("sb")])):
        with pytest.raises(RunraError) as refused:
            await call
        assert refused.value.code == "SANDBOX_NOT_FOUND"  # the server knows it as terminated
    with pytest.raises(RunraError) as refused:
        async with source.still():
            pass
    assert refused.value.code == "INVALID_STATE"


async def test_a_snapshot_lives_apart_from_its_sandboxes(tmp_path: Path) -> None:
    host = await start_host(tmp_path / "data")
    try:
        source = await host.create()
        await output(host, source, "echo kept > /workspace/f")
        kept = await snapshot(host, source, "base")
        await source.terminate()
        child = await host.create(image="snapshot:base")
        await host.node.close()
        host = await start_host(tmp_path / "data")
        another = await host.create(image="snapshot:base")
        host.node.snapshots.delete(kept)
        await host.node.settled()
        assert list((tmp_path / "data/sandboxes/.snapshots").iterdir()) == []
        for sandbox in (host.node.sandboxes[child.id], another):
            assert await output(host, sandbox, "cat /workspace/f") == "kept\n"
        with pytest.raises(RunraError, match="no snapshot 'base'"):
            await host.create(image="snapshot:base")
        host.node.snapshots.delete(kept)  # twice is fine
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)


async def test_another_organization_has_no_such_snapshot(host: Host) -> None:
    kept = await snapshot(host, await host.create(), "base")
    told = set()
    for reference, organization in (("base", "org_other"), (kept, "org_other"), ("never", "org_test")):
        with pytest.raises(RunraError) as refused:
            await host.node.create(new_id("sb"), SandboxConfig(image=f"snapshot:{reference}"), organization)
        told.add((refused.value.code, refused.value.status, refused.value.message.replace(reference, "?")))
    assert len(told) == 1
    assert len(host.node.sandboxes) == 1


@pytest.mark.parametrize("wall", ["bubblewrap", "gvisor"])
async def test_links_in_a_snapshot_lead_nowhere_on_the_host(host: Host, tmp_path: Path, wall: str) -> None:
    """What writes into the copied layers from outside must not follow what hostile code left in them."""
    victim = tmp_path / "victim"
    for name in ("etc", "tmp"):
        (victim / name).mkdir(parents=True)
    for name in ("hostname", "hosts", "machine-id"):
        (victim / "etc" / name).write_text("mine")
    plants = {
        "a link to a folder": f"mv /etc /etc2; ln -s {victim}/etc /etc; rm -rf /tmp; ln -s {victim}/tmp /tmp",
        "links to files": f"for f in hostname hosts machine-id; do rm /etc/$f; ln -s {victim}/etc/$f /etc/$f; done",
        "folders for files": "for f in hostname hosts machine-id; do rm /etc/$f; mkdir -p /etc/$f/x; done",
        "pipes": "for f in hostname hosts machine-id; do rm /etc/$f; mkfifo /etc/$f; done; rm -rf /tmp; mkfifo /tmp",
        "nothing": "rm -rf /etc /tmp",
        "a file": "rm -rf /etc; echo > /etc",
    }
    for plant in plants.values():
        source = await host.create()
        await output(host, source, plant)
        kept = await snapshot(host, source)
        await source.terminate()
        try:
            copy = await host.create(image=f"snapshot:{kept}", isolation=need_wall(wall))
        except RunraError as error:  # a wall may refuse such a root; the host is what matters
            assert error.code == "INTERNAL_ERROR"  # noqa: PT017
        else:
            await copy.terminate()
        host.node.snapshots.delete(kept)
    assert {path.name: path.read_text() for path in (victim / "etc").iterdir()} == dict.fromkeys(
        ("hostname", "hosts", "machine-id"), "mine"
    )
    assert list((victim / "tmp").iterdir()) == []


@both_walls
async def test_limits_are_the_copys_own(host: Host) -> None:
    source = await host.create(resources={"diskMb": 64})
    await output(host, source, "head -c 50M /dev/urandom > /workspace/f")
    await snapshot(host, source, "base")
    copy = await host.create(image="snapshot:base", resources={"diskMb": 32})
    assert (await output(host, copy, "head -c 20M /dev/urandom > /workspace/g && echo fits")) == "fits\n"
    assert "quota" in await output(host, copy, "head -c 50M /dev/urandom > /workspace/h")
    assert (await copy.metrics())["diskBytes"] >= 70 << 20
    assert "quota" in await output(host, source, "head -c 50M /dev/urandom > /workspace/i")


@both_walls
async def test_forks_are_all_or_none(host: Host) -> None:
    source = await host.create(env={"A": "b"}, metadata={"k": "v"})
    await output(host, source, "echo x > /workspace/f; sleep 1000 & echo $!")
    forks = await host.node.fork(source.id, [new_id("sb") for _ in range(4)])
    for fork in forks:
        assert (await output(host, fork, "cat /workspace/f; echo $A; pgrep sleep | wc -l")) == "x\nb\n0\n"
        assert fork.config == source.config.model_copy(update={"isolation": source.record.isolation})
    assert await output(host, source, "pgrep -c sleep") == "1\n"
    object.__setattr__(host.node.settings, "max_sandboxes", 7)
    before = set(host.node.sandboxes)
    with pytest.raises(RunraError) as refused:
        await host.node.fork(source.id, [new_id("sb") for _ in range(4)])
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert set(host.node.sandboxes) == before
    await host.node.settled()
    assert list((host.node.settings.sandboxes_dir / ".snapshots").iterdir()) == []


@both_walls
async def test_a_cancelled_fork_leaves_nothing(host: Host) -> None:
    source = await host.create()
    for delay in (0.0, 0.004, 0.01, 0.02, 0.05):
        done, pending = await asyncio.wait(
            {asyncio.create_task(host.node.fork(source.id, [new_id("sb") for _ in range(3)]))}, timeout=delay
        )
        for task in pending:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for sandbox in [one for task in done for one in task.result()]:
            await sandbox.terminate()
        await until(lambda: set(host.node.sandboxes) == {source.id})
        await host.node.settled()
        assert not list((host.node.settings.sandboxes_dir / ".snapshots").glob("*"))
        assert await output(host, source, "echo fine") == "fine\n"


async def test_a_snapshot_given_up_while_it_freezes_leaves_nothing_frozen(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await host.create()
    frozen = asyncio.Event()
    original = source._freeze

    async def slow() -> None:
        await original()
        frozen.set()
        await asyncio.sleep(30)

    with monkeypatch.context() as patched:
        patched.setattr(source, "_freeze", slow)
        taking = asyncio.create_task(host.node.snapshot(source.id, new_id("snap"), None))
        await asyncio.wait_for(frozen.wait(), 10)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
    assert not host.node.snapshots.ids
    assert await output(host, source, "echo fine") == "fine\n"


async def test_a_volume_with_one_writer_is_not_forked_along(host: Host) -> None:
    await host.node.volumes.make(new_id("vol"), "org_test", VolumeCreate(name="one"))
    await host.node.volumes.make(new_id("vol"), "org_test", VolumeCreate(name="many", access="many-writers"))
    source = await host.create(volumes=[{"name": "many", "path": "/many"}])
    await output(host, source, "echo shared > /many/f")
    fork = (await host.node.fork(source.id, [new_id("sb")]))[0]
    assert await output(host, fork, "cat /many/f") == "shared\n"
    # A snapshot has no volumes in it, only the empty folder they were shown at.
    await snapshot(host, source, "base")
    assert await output(host, await host.create(image="snapshot:base"), "ls -A /many") == ""
    source = await host.create(volumes=[{"name": "one", "path": "/one"}])
    with pytest.raises(RunraError, match="one writer"):
        await host.node.fork(source.id, [new_id("sb")])


async def test_without_a_file_system_that_shares(tmp_path: Path) -> None:
    host = await start_host(tmp_path / "data", disk="none", allow_unenforced=frozenset({"disk"}))
    try:
        assert isinstance(host.node._disk, PlainDisk)
        source = await host.create()
        await output(
            host,
            source,
            CHANGES + "head -c 3M /dev/urandom > /workspace/r; rm /workspace/sparse; truncate -s 5M /workspace/sparse",
        )
        before = await output(host, source, LOOK + "; md5sum r")
        info = await host.node.snapshot(source.id, new_id("snap"), "base")
        assert 3 << 20 <= info.size_bytes < 5 << 20
        copies = [await host.create(image="snapshot:base"), *(await host.node.fork(source.id, [new_id("sb")]))]
        for copy in copies:
            assert await output(host, copy, LOOK + "; md5sum r") == before
            assert (await output(host, copy, "cat /etc/hostname")).strip() == copy.id.removeprefix("sb_")
        await host.node.volumes.make(new_id("vol"), "org_test", VolumeCreate(name="data"))
        sandbox = await host.create(volumes=[{"name": "data", "path": "/data"}])
        assert await output(host, sandbox, "echo x > /data/f; stat -c %u /data/f") == "0\n"
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)


async def test_hard_links_where_ids_are_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of several names, as a whiteout is one, changes its owner once."""
    can = Stage._can_idmap

    async def not_of_sandboxes(self: Stage, source: Path, first_id: int, key: Path | None = None) -> bool:
        return key != host.node.settings.sandboxes_dir and await can(self, source, first_id, key=key)

    monkeypatch.setattr(Stage, "_can_idmap", not_of_sandboxes)
    async with hosted(tmp_path / "data", disk="none", allow_unenforced=frozenset({"disk"})) as host:
        source = await host.create()
        await output(host, source, "cd /workspace; echo x > a; ln a b; chown 7:8 a; chmod 4755 a; rm /etc/issue /etc/host.conf")
        await snapshot(host, source, "base")
        for copy in (await host.create(image="snapshot:base"), *(await host.node.fork(source.id, [new_id("sb")]))):
            text = await output(host, copy, "cd /workspace; stat -c '%n %u %g %a %h' a b; ls /etc/issue /etc/host.conf 2>&1 | wc -l")
            assert text == "a 7 8 4755 2\nb 7 8 4755 2\n2\n"


async def test_a_copy_that_the_disk_has_no_room_for_is_not_begun(tmp_path: Path) -> None:
    """Without quotas a sandbox may hold more than is left: a snapshot of it must not fill the disk for everybody."""
    about = os.statvfs(tmp_path)
    settings: dict[str, Any] = {"disk": "none", "allow_unenforced": frozenset({"disk"})}
    host = await start_host(tmp_path / "data", min_free_mb=(about.f_bavail * about.f_frsize) * 2 >> 20, **settings)
    try:
        source = await host.create()
        with pytest.raises(RunraError) as refused:
            await snapshot(host, source, "base")
        assert refused.value.code == "RESOURCE_EXHAUSTED"
        assert not host.node.snapshots.ids
        assert await output(host, source, "echo fine") == "fine\n"
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)


async def test_a_full_disk_is_told_and_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    source = await host.create()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("runra.node.disk._snapshot", full)
        with pytest.raises(RunraError) as refused:
            await snapshot(host, source, "base")
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert not host.node.snapshots.ids
    assert await output(host, source, "echo fine") == "fine\n"

"""Watching for changes."""

# What fails may fail at any of several steps, all of them right.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.node.agent.files import Watch
from runra.node.agent.link import AgentLink

from .harness import Agent, children, until


@pytest.fixture
def place(home: Path) -> Path:
    folder = home / "work"
    folder.mkdir()
    return folder


async def events(watch: Watch, place: Path, count: int) -> list[tuple[str, str]]:
    found = []
    async with asyncio.timeout(5):
        while len(found) < count:
            event = await anext(watch)
            found.append((event.type, event.path.removeprefix(f"{place}/")))
    return found


async def test_changes_in_a_folder(link: AgentLink, place: Path) -> None:
    async with link.files.watch(str(place)) as watch:
        await watch.ready()
        (place / "a").write_text("1")
        assert await events(watch, place, 2) == [("created", "a"), ("modified", "a")]
        (place / "a").rename(place / "b")
        assert await events(watch, place, 2) == [("moved", "a"), ("created", "b")]
        (place / "b").unlink()
        (place / "d").mkdir()
        (place / "d/unseen").touch()
        (place / "z").touch()
        assert await events(watch, place, 3) == [("deleted", "b"), ("created", "d"), ("created", "z")]


async def test_recursive(link: AgentLink, place: Path) -> None:
    (place / "old/sub").mkdir(parents=True)
    (place / "aside").symlink_to("/tmp")
    async with link.files.watch(".", recursive=True, cwd=str(place)) as watch:
        await watch.ready()
        (place / "old/sub/f").touch()
        assert await events(watch, place, 1) == [("created", "old/sub/f")]
        (place / "new/deep").mkdir(parents=True)
        found = await events(watch, place, 2)
        assert ("created", "new") in found
        assert ("created", "new/deep") in found
        await asyncio.sleep(0.05)
        (place / "new/deep/f").touch()
        while ("created", "new/deep/f") not in found:  # one found while looking may be told twice
            found += await events(watch, place, 1)
        (place / "new").rename(place / "renamed")
        found = []
        while ("created", "renamed/deep/f") not in found:
            found += await events(watch, place, 1)
        assert ("moved", "new") in found
        (place / "renamed/deep/f").write_text("x")
        while ("modified", "renamed/deep/f") not in found:
            found += await events(watch, place, 1)
        (place / "renamed/deep/f").unlink()
        (place / "renamed/deep").rmdir()
        assert await events(watch, place, 2) == [("deleted", "renamed/deep/f"), ("deleted", "renamed/deep")]


async def test_one_file_and_its_end(link: AgentLink, place: Path) -> None:
    (place / "f").touch()
    watch = link.files.watch(f"{place}/f")
    await watch.ready()
    (place / "f").write_text("x")
    assert await events(watch, place, 1) == [("modified", "f")]
    (place / "f").unlink()
    assert await events(watch, place, 1) == [("deleted", "f")]
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_missing(link: AgentLink, place: Path) -> None:
    with pytest.raises(RunraError) as caught:
        await anext(link.files.watch(f"{place}/none"))
    assert caught.value.details["reason"] == "not_found"


async def test_overflow_is_told(link: AgentLink, place: Path, agent: Agent) -> None:
    bound = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if bound > 100_000:
        pytest.skip("the kernel's queue is too long to fill here")
    async with link.files.watch(str(place)) as watch:
        await watch.ready()
        with pytest.raises(RunraError) as caught:
            for round in range(200):  # until window, buffers, pipe and the kernel's queue are full
                for number in range(2000):
                    os.close(os.open(place / f"{round}-{number}-{'x' * 200}", os.O_CREAT | os.O_WRONLY))
                    os.unlink(place / f"{round}-{number}-{'x' * 200}")
                if round >= bound // 4000 + 4:
                    while True:
                        await anext(watch)
        assert caught.value.details["reason"] == "watch_overflow"


async def test_many_events_without_loss(link: AgentLink, place: Path) -> None:
    async with link.files.watch(str(place)) as watch:
        await watch.ready()
        for number in range(3000):
            os.close(os.open(place / str(number), os.O_CREAT | os.O_WRONLY))
        found = await events(watch, place, 3000)
        assert found == [("created", str(number)) for number in range(3000)]


async def test_closing_ends_the_worker(link: AgentLink, place: Path, agent: Agent) -> None:
    watch = link.files.watch(str(place))
    await watch.ready()
    assert len(list(children(agent.pid))) == 1
    await watch.aclose()
    await watch.aclose()
    await until(lambda: not list(children(agent.pid)))

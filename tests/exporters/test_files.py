"""The exporters `console` and `jsonl`."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runra.runtime.exporters import pipeline
from tests.exporters.making import event
from tests.hosting import until


async def through(shape: dict[str, Any], *events: Any) -> Any:
    it = pipeline(shape)
    await it.start()
    for item in events:
        it.offer(item)
    assert await it.close(10), it.stats
    return it


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


# --- console -------------------------------------------------------------------------------------------------------


async def test_json_lines_on_stderr_are_whole_envelopes(capsys: pytest.CaptureFixture[str]) -> None:
    sent = [event(run_id="run_1"), event("sandbox.started", {})]
    await through({"provider": "console", "format": "json"}, *sent)
    out, err = capsys.readouterr()
    assert out == ""
    told = [json.loads(line) for line in err.splitlines()]
    assert [one["id"] for one in told] == [one.id for one in sent]
    assert set(told[0]) == {"id", "timestamp", "type", "sandboxId", "runId", "traceId", "data"}


async def test_pretty_lines_tell_the_point_and_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "echo \x1b[2J\x1b]0;owned\x07\r\n\u202e[bold]x[/bold] " + "y" * 5_000
    await through(
        {"provider": "console", "stream": "stdout"},
        event("exec.completed", {"command": hostile, "exitCode": 3, "durationMs": 12}),
        event("file.created", {"path": "/workspace/a.py", "sizeBytes": 9}),
    )
    out, _ = capsys.readouterr()
    first, second = out.splitlines()
    assert not set(out) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "[bold]x[/bold]" in first
    assert len(first) < 300
    assert "/workspace/a.py" in second
    assert "sizeBytes=9" in second


async def test_a_terminal_that_takes_nothing_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, True)
    full = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", full)
    it = pipeline({"provider": "console", "format": "json", "batchSize": 1000})
    await it.start()
    for _ in range(3_000):
        it.offer(event("agent.message", {"text": "x" * 200}))
    await it.flush(0.3)
    assert it.stats["console"].exported < 3_000
    threading.Thread(target=lambda: os.fdopen(reader, "rb").read(), daemon=True).start()
    assert await it.close(10)
    assert it.stats["console"].exported == 3_000
    monkeypatch.undo()
    full.close()


# --- jsonl ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", ["never", "batch"])
async def test_lines_are_appended_in_a_private_file(tmp_path: Path, fsync: str) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    sent = [event(data={"command": "naïve\n日本"}) for _ in range(5)]
    await through({"provider": "jsonl", "path": str(path), "fsync": fsync}, *sent[:3])
    await through({"provider": "jsonl", "path": str(path), "fsync": fsync}, *sent[3:])
    assert [line["id"] for line in lines(path)] == [one.id for one in sent]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("packed", [True, False])
async def test_rotation_keeps_every_event_and_only_so_many_files(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "e.jsonl"
    sent = [event() for _ in range(60)]
    shape = {"provider": "jsonl", "path": str(path), "maxBytes": 2_000, "keep": 3, "gzip": packed, "batchSize": 5}
    await through(shape, *sent)
    ending = ".gz" if packed else ""
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["e.jsonl", f"e.jsonl.1{ending}", f"e.jsonl.2{ending}", f"e.jsonl.3{ending}"]
    order = [tmp_path / f"e.jsonl.{n}{ending}" for n in (3, 2, 1)] + [path]
    kept = [line["id"] for one in order for line in lines(one)]
    assert kept == [one.id for one in sent[-len(kept) :]]
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in tmp_path.iterdir())
    assert path.stat().st_size <= 2_000


async def test_rotation_with_none_kept(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    await through(
        {"provider": "jsonl", "path": str(path), "maxBytes": 1_000, "keep": 0, "batchSize": 2},
        *(event() for _ in range(20)),
    )
    assert [one.name for one in tmp_path.iterdir()] == ["e.jsonl"]


async def test_half_a_line_of_a_program_that_died_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"id":"evt_half')
    sent = event()
    await through({"provider": "jsonl", "path": str(path)}, sent)
    half, whole = path.read_text().splitlines()
    assert half == '{"id":"evt_half'
    assert json.loads(whole)["id"] == sent.id


async def test_a_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    it = pipeline({"provider": "jsonl", "path": str(path), "flushIntervalMs": 0})
    await it.start()
    it.offer(event())
    assert await it.flush()
    path.unlink()
    sent = event()
    it.offer(sent)
    assert await it.close(5)
    assert [line["id"] for line in lines(path)] == [sent.id]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs: needs root")
async def test_a_full_disk_leaves_no_half_line_and_is_tried_again(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True, timeout=10)
    try:
        path, ballast = tmp_path / "e.jsonl", tmp_path / "ballast"
        it = pipeline({"provider": "jsonl", "path": str(path), "flushIntervalMs": 0, "batchSize": 100})
        await it.start()
        it.offer(event())
        assert await it.flush()
        ballast.write_bytes(b"x" * 52 * 1024)
        sent = [event(data={"command": "y" * 300}) for _ in range(60)]
        for one in sent:
            it.offer(one)
        await until(lambda: it.stats["jsonl"].retries > 0)
        assert path.read_bytes().endswith(b"\n")
        ballast.unlink()
        assert await it.close(20), it.stats
        assert [line["id"] for line in lines(path)][1:] == [one.id for one in sent]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True, timeout=10)


async def test_a_folder_that_is_none_is_told_not_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    it = pipeline({"provider": "jsonl", "path": str(tmp_path / "file" / "e.jsonl"), "flushIntervalMs": 0})
    await it.start()
    it.offer(event())
    await until(lambda: it.stats["jsonl"].failure != "")
    assert not await it.close(0.2)
    assert it.stats["jsonl"].dropped == 1

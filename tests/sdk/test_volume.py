"""Much of everything through the whole way, client to command and back: memory stays where it was on each side."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runra import Runra
from tests.sdk.conftest import RealServer

GB = 1 << 30
#: How much a process may grow while gigabytes pass through it, in MB.
GROWTH = 96


def peak_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def agents() -> list[int]:
    """Every process 1 of a sandbox on this machine, its shims and workers included."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_text().strip() in ("agent", "runra-shim"):
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def steady(server: RealServer) -> Iterator[None]:
    """Neither the server, nor this process, nor any agent grows beyond the bound meanwhile."""
    assert server.process is not None
    watched = [server.process.pid, os.getpid()]
    for pid in watched:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from here
    before = {pid: peak_mb(pid) for pid in watched}
    yield
    grown = {pid: peak_mb(pid) - before[pid] for pid in watched}
    assert max(grown.values()) < GROWTH, grown
    for pid in agents():
        with contextlib.suppress(OSError):
            assert peak_mb(pid) < 16


@pytest.fixture
def box(real: RealServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(real.config))
    with Runra() as client, client.sandboxes.create(image="host", timeout_ms=600_000) as sandbox:
        yield sandbox


@pytest.mark.timeout(300)
def test_a_gigabyte_of_output_to_a_slow_reader(real: RealServer, box: object) -> None:
    lines = length = 0

    def count(line: str) -> None:
        nonlocal lines, length
        if lines % 250_000 == 0:
            time.sleep(0.5)  # the command has to wait for us, nobody may hoard meanwhile
        lines += 1
        length += len(line) + 1

    with steady(real):
        result = box.exec("yes $(printf %01000d 7) | head -c 1G", on_stdout=count, timeout_ms=300_000)  # type: ignore[attr-defined]
    assert result.exit_code == 0
    assert result.truncated, "what is kept is bounded"
    assert length - 1 <= GB <= length  # the last line has no end


@pytest.mark.timeout(300)
def test_a_line_of_a_gigabyte(real: RealServer, box: object) -> None:
    length = longest = 0

    def count(line: str) -> None:
        nonlocal length, longest
        length += len(line)
        longest = max(longest, len(line))

    with steady(real):
        result = box.exec("yes 0123456789abcde | tr -d '\\n' | head -c 1G", on_stdout=count, timeout_ms=300_000)  # type: ignore[attr-defined]
    assert result.exit_code == 0
    assert length == GB
    assert longest <= 1 << 20


@pytest.mark.timeout(300)
def test_a_file_of_two_gigabytes_both_ways(real: RealServer, box: object) -> None:
    block = os.urandom(1 << 20)
    sent, received = hashlib.blake2b(), hashlib.blake2b()

    def content() -> Iterator[bytes]:
        for number in range(2048):
            part = number.to_bytes(8) + block[8:]
            sent.update(part)
            yield part

    with steady(real):
        entry = box.files.write("/workspace/big", content())  # type: ignore[attr-defined]
        assert entry.size_bytes == 2 * GB
        for part in box.files.read("/workspace/big", format="stream"):  # type: ignore[attr-defined]
            received.update(part)
    assert received.digest() == sent.digest()

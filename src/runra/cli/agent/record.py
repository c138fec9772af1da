"""A run as a file: its events as JSON lines, and its result as the last one. What `--json` prints is the same."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from pydantic import ValidationError

from runra.errors import RunraError
from runra.events import Event
from runra.runtime.types import AgentResult

#: Longest line that is read, in bytes; an agent's may hold an image.
_LINE: Final = 64 << 20


class Recorder:
    """Writes a run as it goes, readable for its owner alone. `close` on every path."""

    def __init__(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RunraError("INVALID_REQUEST", f"--record: cannot write {path}: {error.strerror}") from None
        self._file: IO[str] = os.fdopen(fd, "w", encoding="utf-8", buffering=1)

    def event(self, event: Event) -> None:
        self._write(event.model_dump(mode="json", by_alias=True))

    def result(self, result: AgentResult) -> None:
        self._write({"result": result.to_wire()})

    def close(self) -> None:
        self._file.close()

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(f"{json.dumps(value, separators=(',', ':'))}\n")


class Recording:
    """Reads what was recorded, or the file of the exporter `jsonl`. `skipped` counts lines that are neither: other
    events of a later version, half a line after a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.skipped = 0

    def runs(self) -> dict[str, AgentResult | None]:
        """The runs of agents in it, in order, with their results."""
        found: dict[str, AgentResult | None] = {}
        for one in self._lines():
            if isinstance(one, AgentResult):
                found[one.run_id] = one
            elif one.run_id and one.type.startswith(("agent.", "cost.")):
                found.setdefault(one.run_id)
        return found

    def events(self, run_id: str) -> Iterator[Event]:
        """A run's events, in order."""
        for one in self._lines():
            if isinstance(one, Event) and one.run_id == run_id:
                yield one

    def _lines(self) -> Iterator[Event | AgentResult]:
        self.skipped = 0
        try:
            with contextlib.closing(self._open()) as file:
                while line := file.readline(_LINE):
                    one = _read(line)
                    if one is not None:
                        yield one
                    elif line.strip():
                        self.skipped += 1
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RunraError("INVALID_REQUEST", f"cannot read {self._path}: {reason}") from None

    def _open(self) -> BinaryIO:
        if self._path.suffix == ".gz":
            return cast(BinaryIO, gzip.open(self._path))
        return open(self._path, "rb")


def _read(line: bytes) -> Event | AgentResult | None:
    try:
        value = json.loads(line)
        if isinstance(value, dict) and set(value) == {"result"}:
            return AgentResult.model_validate(value["result"])
        return Event.model_validate(value)
    except (ValueError, RecursionError, ValidationError):
        return None

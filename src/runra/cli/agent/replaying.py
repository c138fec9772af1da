"""`runra agent replay`: a run watched again from its events."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from runra.cli.output import harmless, json_line, say

if TYPE_CHECKING:
    from runra.events import Event

#: Longest wait between two events, in seconds, whatever their times say.
_LONGEST_S: Final = 3600.0


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Of `runra agent run --record` or --json, or of the exporter jsonl.")
    ],
    speed: Annotated[
        float, typer.Option("--speed", min=0, help="1: as it was; 10: ten times faster; 0: all at once.")
    ] = 1.0,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Which, where the file has several.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="The diff as well, where the run kept one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a JSON line.")] = False,
) -> None:
    """Watch a run again, from its events."""
    from runra.cli.agent.record import Recording
    from runra.cli.agent.screens import screen
    from runra.cli.agent.summary import coloured, replayed, summary

    recording = Recording(file)
    runs = recording.runs()
    chosen = _chosen(list(runs), run, file)
    result, pace = runs[chosen], _Pace(speed)
    shown = screen(f"run {harmless(chosen)}", as_json=as_json, hint="replay, Ctrl-C ends", now=lambda: pace.elapsed_s)
    with shown:
        for event in pace.paced(recording.events(chosen)):
            shown.event(event)
    if as_json:
        if result is not None:
            json_line({"result": result.to_wire()})
    else:
        shown.lines(summary(result, "", kept=False) if result is not None else replayed(shown.view))
        if diff and result is not None and result.diff:
            shown.lines(coloured(result.diff))
    if recording.skipped:
        say(f"{recording.skipped} lines of {file} are no events this version knows, and were left out")


def _chosen(runs: list[str], wanted: str | None, file: Path) -> str:
    if not runs:
        raise typer.BadParameter(f"{file} has no run of an agent", param_hint="FILE")
    known = ", ".join(map(harmless, runs[:20]))
    if wanted is not None and wanted not in runs:
        raise typer.BadParameter(f"{file} has no run {wanted!r}; it has {known}", param_hint="--run")
    if wanted is None and len(runs) > 1:
        raise typer.BadParameter(f"{file} has {len(runs)} runs; give one of {known}", param_hint="--run")
    return wanted or runs[0]


class _Pace:
    """Gives events when they happened, `speed` times faster."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._first: datetime | None = None
        self._latest: datetime | None = None
        self._at = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """How far into the run it is."""
        if self._first is None or self._latest is None:
            return 0.0
        since = (time.monotonic() - self._at) * self._speed
        return (self._latest - self._first).total_seconds() + since

    def paced(self, events: Iterable[Event]) -> Iterator[Event]:
        from runra.cli.agent.view import moment

        for event in events:
            when = moment(event.timestamp)
            if when is not None:
                if self._latest is not None and self._speed:
                    wait = (when - self._latest).total_seconds() / self._speed
                    time.sleep(min(max(0.0, self._at + wait - time.monotonic()), _LONGEST_S))
                self._first, self._latest, self._at = self._first or when, when, time.monotonic()
            yield event

"""Where a run is shown: a terminal with a line that ticks, plain lines in a pipe, JSON for programs."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runra.cli.agent.view import Line, View, clock, money, tokens
from runra.cli.output import is_terminal, json_line

if TYPE_CHECKING:
    from rich.text import Text

    from runra.events import Event


class Plain:
    """A line after the other, without colours."""

    def __init__(self) -> None:
        self.view = View()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def event(self, event: Event) -> None:
        self.lines(self.view.show(event))

    def lines(self, lines: Sequence[Line]) -> None:
        for line in lines:
            print(line.text, flush=True)

    async def ask(self, question: str) -> bool:
        return await answered(question)


class Json(Plain):
    """Each event as one JSON line."""

    def event(self, event: Event) -> None:
        self.view.show(event)
        json_line(event.model_dump(mode="json", by_alias=True))

    def lines(self, lines: Sequence[Line]) -> None:
        return


class Live:
    """Colours, and a status line below that ticks. `now` gives the seconds that the run has taken."""

    def __init__(self, title: str, hint: str, now: Callable[[], float] | None = None) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self.view = View()
        self._title, self._hint = title, hint
        began = time.monotonic()
        self._now = now or (lambda: time.monotonic() - began)
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._live = RichLive(
            get_renderable=self._status, console=self._console, refresh_per_second=4, transient=True, screen=False
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        self.lines(self.view.show(event))

    def lines(self, lines: Sequence[Line]) -> None:
        from rich.text import Text

        for line in lines:
            self._console.print(Text(line.text, style=line.style), soft_wrap=True)

    async def ask(self, question: str) -> bool:
        self._live.stop()
        try:
            return await answered(question)
        finally:
            self._live.start(refresh=True)

    def _status(self) -> Text:
        from rich.text import Text

        view = self.view
        parts = [self._title, f"turn {view.turns}" if view.turns else "", clock(self._now())]
        if view.calls:
            parts[2:2] = [f"{tokens(view.tokens_in)} in, {tokens(view.tokens_out)} out", money(view.cost)]
        figures = " · ".join(part for part in parts if part)
        return Text.assemble((figures, "bold"), (f" · {self._hint}" if self._hint else "", "dim"), no_wrap=True)


def screen(title: str, *, as_json: bool, hint: str = "", now: Callable[[], float] | None = None) -> Plain | Live:
    """What fits where stdout leads."""
    if as_json:
        return Json()
    return Live(title, hint, now) if is_terminal(sys.stdout) else Plain()


async def answered(question: str) -> bool:
    """Yes or no, from the terminal on stdin. Not by a thread that reads: nothing could end it."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(0, readable.set)
    try:
        await readable.wait()
        return os.read(0, 4096).strip().lower() in (b"y", b"yes")
    finally:
        loop.remove_reader(0)

"""The exporter `console`: events as lines for people, or as JSON lines, on stderr or stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, Literal, TextIO

from pydantic import Field

from runra.errors import RunraError
from runra.event_catalogue import Level, level_of
from runra.events import Event
from runra.runtime.exporters.delivery import Delivery
from runra.runtime.exporters.worker import Worker

_STYLES: Final[Mapping[Level, str]] = {"debug": "dim", "info": "", "warn": "yellow", "error": "bold red"}
#: What of an event's data is shown first, without its name.
_MAIN: Final = ("command", "path", "text", "name", "message", "host", "port", "image", "model")
_WIDEST: Final = 160


class ConsoleConfig(Delivery):
    """`format`: pretty or json. `stream`: stderr leaves the program's own output alone. Every option of `Delivery`."""

    format: Literal["pretty", "json"] = "pretty"
    stream: Literal["stderr", "stdout"] = "stderr"
    flush_interval_ms: int = Field(50, ge=0, le=3_600_000)


class ConsoleExporter:
    """Writes in a thread: a terminal that was stopped with Ctrl-S stops nothing else."""

    name = "console"
    Config = ConsoleConfig

    def __init__(self, config: ConsoleConfig) -> None:
        if config.format == "pretty" and find_spec("rich") is None:
            raise RunraError(
                "INVALID_CONFIG",
                "exporter 'console' needs the package rich: pip install 'runra[cli]', or give format 'json'",
                details={"provider": "console", "missing": "rich"},
            )
        self._config = config
        self._worker = Worker("console")

    async def start(self) -> None:
        if self._config.format == "pretty":
            await self._worker.run(_rich)

    async def export(self, events: Sequence[Event]) -> None:
        # The stream is looked up each time: whoever redirects sys.stderr gets the events as well.
        stream: TextIO = getattr(sys, self._config.stream)
        await self._worker.run(_pretty if self._config.format == "pretty" else _json, stream, events)

    async def close(self) -> None:
        self._worker.stop()


def _rich() -> None:
    """Rich takes a tenth of a second to import: not on the event loop."""
    import rich.console
    import rich.text  # noqa: F401


def _json(stream: TextIO, events: Sequence[Event]) -> None:
    stream.write("".join(f"{event.model_dump_json(by_alias=True)}\n" for event in events))
    stream.flush()


def _pretty(stream: TextIO, events: Sequence[Event]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, soft_wrap=True, highlight=False, markup=False, emoji=False)
    for event in events:
        level = level_of(event.type, event.data)
        console.print(
            Text.assemble(
                (event.timestamp[11:23], "dim"),
                " ",
                (f"{event.type:<18}", _STYLES[level] or "cyan"),
                " ",
                (event.sandbox_id, "dim"),
                " ",
                (_told(event.data), _STYLES[level]),
            )
        )
    stream.flush()


def _told(data: Mapping[str, Any]) -> str:
    """An event's data on one line. What comes from a sandbox must not steer the terminal: no control characters."""
    main = [str(data[name]) for name in _MAIN if data.get(name) not in (None, "")]
    rest = [f"{name}={value}" for name, value in data.items() if name not in _MAIN and value not in (None, "", False)]
    line = " ".join(" ".join([*main, *rest])[: 4 * _WIDEST].split())
    line = "".join(character if character.isprintable() else "\ufffd" for character in line)
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"

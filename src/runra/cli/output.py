"""How commands speak: tables and colours on a terminal, plain columns in a pipe, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, Any, Final

from runra.errors import RunraError

_STATES: Final = {
    "running": "green",
    "ok": "green",
    "creating": "cyan",
    "paused": "yellow",
    "limited": "yellow",
    "terminated": "dim",
    "missing": "red",
}
#: What to do about an error, where its own message cannot know that this is the command line.
_CURES: Final = {
    "UNAUTHORIZED": "set RUNRA_API_KEY; on the server's machine ~/.runra/config.json holds a key",
    "FORBIDDEN": "use a key with that scope: `runra key create NAME --scope SCOPE` makes one",
    "SANDBOX_NOT_FOUND": "`runra ps --all` lists yours",
    "RATE_LIMITED": "wait a moment and try again",
    "RESOURCE_EXHAUSTED": "end what you no longer need (`runra ps`, `runra rm ID`), then try again",
}


def is_terminal(stream: IO[Any]) -> bool:
    """Whether a person is looking: then colours and tables are welcome."""
    return stream.isatty()


def say(text: str) -> None:
    """A remark to the person, on stderr: stdout is for what was asked for."""
    print(text, file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """Text from anywhere as it may be shown: nothing in it steers a terminal or turns its writing around."""
    text = text.replace("\t", "    ")
    return text if text.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in text)


def complain(error: RunraError) -> None:
    """An error: one line with code and message, then its cure."""
    lines = [harmless(line) for line in str(error).split("\n")]
    # What never reached a server was found here, by the SDK, which names its cure itself.
    cure = _CURES.get(error.code) if error.request_id else None
    if error.code == "INVALID_STATE" and error.details.get("state") == "paused":
        cure = f"`runra resume {error.details.get('sandboxId', 'ID')}`"
    if cure:
        lines.append(f"  → {cure}")
    if error.request_id and error.status >= 500:
        lines.append(f"  the server's log has it under {error.request_id}")
    if is_terminal(sys.stderr):
        lines[0] = f"\x1b[31m{lines[0]}\x1b[0m"
    say("\n".join(lines))


def show_json(value: Any) -> None:
    """One JSON document on stdout; `value` is plain data as it goes over the wire."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def show_line(value: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own, for streams."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def json_line(value: Mapping[str, Any]) -> None:
    """As `show_line`, in ASCII: what strangers have written steers no terminal, and no half character breaks it."""
    print(json.dumps(value, separators=(",", ":")), flush=True)


def show_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under titles. In a pipe: columns parted by two spaces or more, no colours, nothing cut off."""
    if is_terminal(sys.stdout):
        _show_rich(titles, rows)
        return
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _show_rich(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for number, title in enumerate(titles):
        # The first column is what one copies: it is never cut or broken.
        table.add_column(title, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STATES.get(cell, "")) for cell in row))
    Console().print(table)


def age(timestamp: str | datetime | None) -> str:
    """How long ago, in the largest unit that is not zero: 5s, 12m, 3h, 2d."""
    if timestamp is None:
        return ""
    then = datetime.fromisoformat(timestamp) if isinstance(timestamp, str) else timestamp
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def size(count: int) -> str:
    """A number of bytes for people: 512 B, 1.5 KB, 2.0 GB."""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")

"""What a person sees of a run: events as lines, and the figures that tick below them. Pure: no terminal, no clock."""

from __future__ import annotations

import json
import re
import shlex
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from runra.cli.output import harmless

if TYPE_CHECKING:
    from runra.events import Event

#: How much of a thought and of a tool's result is shown, in lines.
_THOUGHT: Final = 12
_RESULT: Final = 5
_GIST: Final = 160
#: Longest line of an agent's that is shown, in characters; what is longer is cut.
_LINE: Final = 2_000
#: Calls that wait for their result.
_OPEN: Final = 1_000
_SHELL: Final = re.compile(r"(/usr)?(/bin/)?(ba|z)?sh -l?c ")
#: What of a tool's input says most, the first that is there.
_TELLING: Final = ("command", "cmd", "file_path", "filePath", "path", "pattern", "url", "query", "description")


@dataclass(frozen=True)
class Line:
    """One line; `style` is Rich's, and text is never its markup."""

    text: str
    style: str = ""


class View:
    """Feed it a run's events in order: `show` gives the lines of each; the figures are those so far."""

    def __init__(self) -> None:
        self.turns = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.cost: float | None = 0.0
        self.cost_known = False
        self.calls = 0
        self.sandbox_id = ""
        self.run_id = ""
        self.failure = ""
        self.began: datetime | None = None
        self.latest: datetime | None = None
        self._open: OrderedDict[str, datetime | None] = OrderedDict()

    @property
    def elapsed_s(self) -> float:
        """From the first event to the latest."""
        return (self.latest - self.began).total_seconds() if self.began and self.latest else 0.0

    def show(self, event: Event) -> list[Line]:
        self.latest = moment(event.timestamp) or self.latest
        self.began = self.began or self.latest
        self.sandbox_id = event.sandbox_id or self.sandbox_id
        self.run_id = event.run_id or self.run_id
        data, indent = event.data, "  " if event.data.get("parentId") else ""
        match event.type:
            case "agent.thinking":
                return _block(_text(data.get("text")), "dim italic", f"{indent}· ", f"{indent}  ", _THOUGHT)
            case "agent.message":
                return _block(_text(data.get("text")), "", indent, indent, None)
            case "agent.tool_call":
                return self._called(data, indent)
            case "agent.tool_result":
                return self._answered(data, indent)
            case "agent.error":
                return self._failed(data)
            case "cost.llm":
                return self._counted(data)
            case "cost.total":
                self._cost(data.get("amount"))
            case "sandbox.started":
                return [Line(f"sandbox {harmless(event.sandbox_id)}", "dim")]
            case "sandbox.terminated" if data.get("reason") not in (None, "user"):
                return [Line(f"the sandbox ended: {_one_line(data.get('reason'))}", "yellow")]
            case "sandbox.error" | "exec.error":
                return [Line(f"! {_one_line(data.get('message'))}", "yellow")]
            case "network.egress" if data.get("allowed") is False:
                place = f"{_one_line(data.get('host') or data.get('address'))}:{_one_line(data.get('port'))}"
                return [Line(f"! no way to {place}: {_one_line(data.get('reason') or 'denied')}", "yellow")]
        return []

    def _called(self, data: Mapping[str, Any], indent: str) -> list[Line]:
        self._open[_text(data.get("id"))] = self.latest
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        name = _one_line(data.get("tool") or data.get("name"))
        return [Line(f"{indent}● {name}  {gist(data.get('input'))}".rstrip(), "cyan")]

    def _answered(self, data: Mapping[str, Any], indent: str) -> list[Line]:
        failed = data.get("isError") is True
        lines = _block(_text(data.get("output")), "red" if failed else "dim", f"{indent}  ", f"{indent}  ", _RESULT)
        took, since = _number(data.get("durationMs")), self._open.pop(_text(data.get("id")), None)
        if took is None and since is not None and self.latest is not None:
            took = (self.latest - since).total_seconds() * 1000
        facts = [f"exit {data['exitCode']}"] if isinstance(data.get("exitCode"), int) else []
        facts += ["failed"] if failed and not facts else []
        facts += [] if took is None else [f"{took / 1000:.1f} s"]
        return [*lines, Line(f"{indent}  ⎿ {' · '.join(facts)}", "red" if failed else "dim")] if facts else lines

    def _failed(self, data: Mapping[str, Any]) -> list[Line]:
        message, fatal = _one_line(data.get("message")), data.get("fatal") is not False
        if fatal and message == self.failure:
            return []  # the agent has said so itself already
        if fatal:
            self.failure = message
        return [Line(f"{'error' if fatal else 'warning'}: {message}", "bold red" if fatal else "yellow")]

    def _counted(self, data: Mapping[str, Any]) -> list[Line]:
        self.calls += 1
        self.turns += data.get("turn") is not False
        self.tokens_in += sum(_count(data.get(f"{kind}Tokens")) for kind in ("input", "cacheRead", "cacheWrite"))
        self.tokens_out += _count(data.get("outputTokens"))
        if not data.get("error"):
            self._cost(data.get("totalCost") if data.get("cost") is not None else None)
        return [Line(f"! the model: {_one_line(data['error'])}", "yellow")] if data.get("error") else []

    def _cost(self, amount: Any) -> None:
        self.cost_known = True
        self.cost = _number(amount)


def gist(value: Any) -> str:
    """A tool's input on one line."""
    if isinstance(value, Mapping):
        told = next((value[name] for name in _TELLING if value.get(name) not in (None, "")), None)
        if isinstance(told, list):
            told = " ".join(map(str, told))
        if told is not None and value.get("pattern") not in (None, "", told):
            told = f"{value['pattern']} in {told}"
        value = told if told is not None else json.dumps(dict(value), default=str) if value else ""
    line = _one_line(_unwrapped(_text(value)))
    return line if len(line) <= _GIST else f"{line[: _GIST - 1]}…"


def _unwrapped(command: str) -> str:
    """What a shell is told to run, where the command is that shell: codex has all of its own so."""
    if not _SHELL.match(command):
        return command
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    return words[2] if len(words) == 3 else command


def money(amount: float | None) -> str:
    """US dollars, small ones with all the figures that count."""
    if amount is None:
        return "unknown"
    return f"${amount:.2f}" if amount == 0 or amount >= 1 else f"${amount:.4f}"


def tokens(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.1f}k" if count < 10_000_000 else f"{count / 1e6:.1f}M"


def clock(seconds: float) -> str:
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def moment(timestamp: str) -> datetime | None:
    """An event's time; None for one that is none."""
    try:
        found = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return found if found.tzinfo else None


def _block(text: str, style: str, first: str, others: str, most: int | None) -> list[Line]:
    lines = [line.rstrip() for line in text[: 1 << 20].strip("\r\n").split("\n")]
    if lines == [""]:
        return []
    left_out = 0 if most is None else max(0, len(lines) - most)
    shown = lines[: len(lines) - left_out]
    found = [Line((first if not at else others) + harmless(line[:_LINE]), style) for at, line in enumerate(shown)]
    if left_out:
        found.append(Line(f"{others}… {left_out} more lines" if left_out > 1 else f"{others}… 1 more line", "dim"))
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)


def _one_line(value: Any) -> str:
    return harmless(" ".join(_text(value)[:_LINE].split()))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int) and 0 <= value < 1 << 50 else 0

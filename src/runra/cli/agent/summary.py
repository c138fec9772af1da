"""The end of a run as a table: how it went, what it cost, what it changed, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from runra.cli.agent.view import Line, View, clock, money
from runra.cli.output import harmless

if TYPE_CHECKING:
    from runra.runtime.types import AgentResult, Usage

_FILES: Final = 10
_COUNTED: Final = {"gateway": "counted by the gateway", "agent": "as the agent says", "none": "nobody counted it"}


def summary(result: AgentResult, agent: str, *, kept: bool) -> list[Line]:
    """Rows `name  value`. `kept`: the sandbox is still there."""
    rows: list[tuple[str, str, str]] = []

    def row(name: str, value: str, style: str = "") -> None:
        rows.append((name, harmless(value), style))

    if result.success:
        row("result", "success", "green")
    else:
        failure = result.failure
        row("result", f"failed ({failure.kind})" if failure else "failed", "bold red")
        row("error", " ".join((result.error or "").split()), "red")
        for line in failure.stderr[-5:] if failure else []:
            row("", line, "dim")
    row("turns", str(result.total_turns))
    row("time", clock(result.total_duration_ms / 1000))
    paid = result.cost_source != "none" or result.total_cost
    row("cost", f"{money(result.total_cost)}, {_COUNTED[result.cost_source]}" if paid else "no model was paid for")
    for at, told in enumerate(_tokens(result)):
        row("tokens" if at == 0 else "", told)
    for kind in ("created", "modified", "deleted"):
        names: list[str] = getattr(result.files, kind, [])
        for at, name in enumerate(names[:_FILES]):
            row(kind if at == 0 else "", name)
        if len(names) > _FILES:
            row("", f"… {len(names) - _FILES} more", "dim")
    for warning in result.warnings:
        row("warning", " ".join(warning.split()), "yellow")
    row("run", result.run_id)
    if result.session_id:
        row("session", result.session_id)
    if kept:
        row("sandbox", result.sandbox_id)
    lines = [Line(""), *(Line(f"{name:<9} {value}".rstrip(), style) for name, value, style in rows)]
    if kept and result.session_id:
        words = ["runra", "agent", "run", "…", "--agent", agent, "--sandbox", result.sandbox_id]
        go_on = " ".join(word if word == "…" else shlex.quote(word) for word in words)
        lines.append(Line(f"go on:    {go_on} --session {harmless(shlex.quote(result.session_id))}", "dim"))
    return lines


def replayed(view: View) -> list[Line]:
    """What is known at the end of events without a result."""
    row = ("result", f"failed: {view.failure}") if view.failure else ("result", "not in this file")
    rows = [row, ("turns", str(view.turns)), ("time", clock(view.elapsed_s))]
    if view.cost_known:
        rows.append(("cost", money(view.cost)))
    return [Line(""), *(Line(f"{name:<9} {value}") for name, value in rows)]


def coloured(diff: str) -> list[Line]:
    """A unified diff, each line in its colour."""
    return [Line(harmless(line), _colour(line)) for line in diff.split("\n")[: -1 if diff.endswith("\n") else None]]


def _colour(line: str) -> str:
    if line.startswith(("---", "+++")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan", "\\": "dim"}.get(line[:1], "")


def _tokens(result: AgentResult) -> Iterator[str]:
    """Tokens by kind, a line for each model."""
    by_model: dict[str, Usage] = result.usage_by_model or ({"": result.usage} if result.usage.total else {})
    for model, usage in list(by_model.items())[:_FILES]:
        told = f"{usage.input_tokens} in, {usage.cache_read_tokens} from cache, {usage.cache_write_tokens} to cache, "
        told += f"{usage.output_tokens} out"
        if usage.reasoning_tokens:
            told += f" ({usage.reasoning_tokens} of them reasoning)"
        yield f"{told}  {model}".rstrip()

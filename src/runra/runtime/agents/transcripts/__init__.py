"""What agent CLIs print, line by line, as events and a verdict. Pure: no process, no clock.

Neither an exit code nor the word «success» can be believed; each agent has rules of its own for what it means to have
succeeded (measured on the real ones, see the fixtures of `tests/agents/`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from runra.runtime.agents.transcripts.claude_code import ClaudeCode
from runra.runtime.agents.transcripts.codex import Codex
from runra.runtime.agents.transcripts.opencode import OpenCode
from runra.runtime.agents.transcripts.types import AgentEvent, Verdict


class Transcript(Protocol):
    """The reader of one run. What it does not know it passes over: new versions add lines and fields."""

    @property
    def ended(self) -> bool:
        """Whether it has said how it ended; its process has nothing more to do."""
        ...

    def feed(self, line: str) -> list[AgentEvent]: ...

    def verdict(self, exit_code: int | None) -> Verdict:
        """How the run ended; `exit_code` None when the process had to be killed."""
        ...


TRANSCRIPTS: Final[dict[str, Callable[[], Transcript]]] = {
    "claude-code": ClaudeCode,
    "codex": Codex,
    "opencode": OpenCode,
}

__all__ = ["TRANSCRIPTS", "AgentEvent", "ClaudeCode", "Codex", "OpenCode", "Transcript", "Verdict"]

"""The coding agents with a command line of their own: claude-code, codex, opencode."""

from __future__ import annotations

from runra.runtime.agents.cli.adapter import CliAgent
from runra.runtime.agents.cli.claude_code import CLAUDE_CODE
from runra.runtime.agents.cli.codex import CODEX
from runra.runtime.agents.cli.opencode import OPENCODE


def claude_code() -> CliAgent:
    return CliAgent(CLAUDE_CODE)


def codex() -> CliAgent:
    return CliAgent(CODEX)


def opencode() -> CliAgent:
    return CliAgent(OPENCODE)

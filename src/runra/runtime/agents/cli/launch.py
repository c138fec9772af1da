"""What a coding agent's command line is started with: made by one pure function for each agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runra.runtime.agents.options import Ability, AgentOptions
from runra.runtime.agents.transcripts import Transcript
from runra.runtime.llms.types import Format

if TYPE_CHECKING:
    from runra.runtime.agents.mcp import ToolServer
    from runra.runtime.llms import Target

_ELSEWHERE: Final = (
    "The work is in a Linux sandbox on another machine, and your tools bash, read, write, edit, glob and grep work "
    "there: their paths and programs are the sandbox's. The folder you were started in is empty, and no part of it."
)
_PLAN: Final = " You can only read now: change nothing, and end with a plan of what has to be done, step by step."


@dataclass(frozen=True)
class Asked:
    """What one turn is to be started with. `folder` is the run's own, outside the workdir; `url` and `token` lead to
    the model gateway; `session_id` is empty for a new conversation. The prompt is not here: it comes on stdin, where no
    process list shows it and no limit of a command line cuts it."""

    options: AgentOptions
    target: Target
    url: str
    token: str = field(repr=False)
    folder: str = ""
    session_id: str = ""
    #: Its hands, where it runs on the caller's machine and has none of its own.
    tools: ToolServer | None = None

    @property
    def system_prompt(self) -> str | None:
        """What is added to the agent's own, and where its hands are when not where it is."""
        options = self.options
        if self.tools is None:
            return options.system_prompt
        words = _ELSEWHERE + (_PLAN if options.permission_mode == "plan" else "")
        return f"{words}\n\n{options.system_prompt}" if options.system_prompt else words

    @property
    def model(self) -> str:
        """The model's name as the agent is told it."""
        return self.target.model


@dataclass(frozen=True)
class Launch:
    """A program to start: `files` are written below the run's folder before, by relative name."""

    argv: list[str]
    env: dict[str, str] = field(repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Cli:
    """A coding agent with a command line. `speaks`: the format it asks its model in. `provider`: where its models come
    from when the runtime was given none; empty where it has no home of its own."""

    id: str
    program: str
    speaks: Format
    provider: str
    transcript: Callable[[], Transcript]
    launch: Callable[[Asked], Launch]
    abilities: frozenset[Ability]

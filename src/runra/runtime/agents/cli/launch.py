"""What a coding agent's command line is started with: made by one pure function for each agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runra.runtime.agents.options import Ability, AgentOptions
from runra.runtime.agents.transcripts import Transcript
from runra.runtime.llms.types import Format

if TYPE_CHECKING:
    from runra.runtime.llms import Target


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

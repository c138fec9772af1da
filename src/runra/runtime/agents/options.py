"""The options every agent shares (spec 1, Runtime), checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar, get_args

from pydantic import Field, ValidationError

from runra.contract import AbsolutePath, Env, Request
from runra.errors import RunraError
from runra.sdk.types import refused

#: The tools of the contract. What an agent calls its own is mapped to these names.
ToolName = Literal["bash", "read", "write", "edit", "glob", "grep"]
TOOLS: Final[tuple[ToolName, ...]] = get_args(ToolName)
_READING: Final = frozenset[ToolName](("read", "glob", "grep"))

#: What an agent can do beyond working on one prompt. `docs/agents.md` and `runra agents` show who can what.
Ability = Literal[
    "resume", "messages", "max_turns", "max_cost", "allowed_tools", "plan", "prompt", "system_prompt", "host"
]
MEANING: Final[Mapping[Ability, str]] = {
    "resume": "going on with an earlier conversation (session_id)",
    "messages": "further messages while it works (send_message)",
    "max_turns": "a bound on its turns",
    "max_cost": "a budget",
    "allowed_tools": "some tools only",
    "plan": "permissionMode plan: it reads and proposes, and changes nothing",
    "prompt": "permissionMode prompt: each use of a tool is asked for",
    "system_prompt": "a system prompt of yours",
    "host": "placement host: the agent on your machine, its hands in the sandbox",
}
#: Those of our own tool loop.
LOOP_ABILITIES: Final[frozenset[Ability]] = frozenset(
    {"resume", "messages", "max_turns", "max_cost", "allowed_tools", "plan", "prompt", "system_prompt"}
)


class AgentOptions(Request):
    """`model`: instead of the one in `llm`. `max_turns`: calls of the model that offer tools. `max_cost`: US dollars,
    for the whole run. `workdir`: the sandbox's own when unset. `env`: for the agent's process.

    Deadlines in ms: `setup_timeout_ms` until the agent has been started, `silence_timeout_ms` without a word of it (a
    tool at work is silent too), `timeout_ms` for the whole run, unbounded when None.
    """

    model: str | None = Field(None, min_length=1)
    max_turns: int = Field(50, ge=1)
    max_cost: float | None = Field(None, gt=0)
    allowed_tools: list[ToolName] = Field(default_factory=lambda: list(TOOLS))
    permission_mode: Literal["auto-approve", "prompt", "plan"] = "auto-approve"
    workdir: AbsolutePath | None = None
    system_prompt: str | None = None
    placement: Literal["sandbox", "host"] = "sandbox"
    env: Env = Field(default_factory=dict)
    setup_timeout_ms: int = Field(120_000, gt=0)
    silence_timeout_ms: int = Field(900_000, gt=0)
    timeout_ms: int | None = Field(None, gt=0)

    @property
    def given_tools(self) -> list[ToolName]:
        """The tools it is given: those allowed, and of these a plan gets what only reads."""
        plan = self.permission_mode == "plan"
        return [tool for tool in TOOLS if tool in self.allowed_tools and (not plan or tool in _READING)]


#: Asked before a tool is used (`permissionMode` prompt): the tool's name and its input; the answer says whether.
Permit = Callable[[str, Any], Any]

Options = TypeVar("Options", bound=AgentOptions)


def checked_options(
    kind: type[Options], agent: str, config: Mapping[str, Any], abilities: frozenset[Ability]
) -> Options:
    """An agent's configuration as its model. Raises INVALID_CONFIG for what is malformed, and for what is asked for and
    the agent cannot hold: nothing is silently left out."""
    try:
        options = kind.model_validate(dict(config))
    except ValidationError as error:
        problem = refused(error)
        raise RunraError("INVALID_CONFIG", f"agent.config: {problem.message}", details=problem.details) from None
    wanted: dict[Ability, bool] = {
        "allowed_tools": set(options.allowed_tools) != set(TOOLS),
        "plan": options.permission_mode == "plan",
        "prompt": options.permission_mode == "prompt",
        "system_prompt": options.system_prompt is not None,
        "host": options.placement == "host",
        "max_cost": options.max_cost is not None,
        "max_turns": "max_turns" in options.model_fields_set,
    }
    for ability, asked in wanted.items():
        if asked and ability not in abilities:
            raise RunraError(
                "INVALID_CONFIG",
                f"agent.config: the agent {agent!r} has not {MEANING[ability]}; leave it out, or choose another agent",
                details={"agent": agent, "ability": ability},
            )
    return options

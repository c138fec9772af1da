"""The agent `custom` as any command that prints text or JSON lines, in the sandbox."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from runra.errors import RunraError
from runra.runtime.agents.cli.model import target_for
from runra.runtime.agents.cli.reading import InSandbox, Reading, Started, read
from runra.runtime.agents.deadlines import setting_up
from runra.runtime.agents.options import Ability, AgentOptions, checked_options
from runra.runtime.agents.printed import Gathered, Printed, Shape
from runra.runtime.agents.results import failed, spent
from runra.runtime.gateway import RunLimits
from runra.runtime.tasks import to_end
from runra.runtime.types import AgentResult

if TYPE_CHECKING:
    from runra.runtime.model_access import Door
    from runra.runtime.run import AgentRun

_PROMPT: Final = "{prompt}"
_CLEAN_S: Final = 15.0
#: With a model, what it may cost and how often it is called can be held.
_WITH_MODEL: Final[frozenset[Ability]] = frozenset({"max_cost", "max_turns"})
# The prompt comes from a file: an open stdin would keep many a command waiting for its end.
_START: Final = 'exec "$@" < "$0"'


class CommandOptions(AgentOptions):
    """`command`: a list as it stands, or a text for the shell. `{prompt}` in it is the prompt, which else is on stdin.
    `format`: `text`, `jsonl`, or `auto`, which takes each line for what it is (see `printed.Printed`). `with_model`
    comes of `model`: true."""

    command: list[str] | str = Field(min_length=1)
    format: Shape = "auto"


class CommandAgent:
    """One run of a command: `initialize`, `start`, and meanwhile `stop`."""

    id = "custom"
    tracks_files = True

    def __init__(self) -> None:
        self._options = CommandOptions(command="true")
        self._with_model = False
        self._stopped = asyncio.Event()

    @property
    def workdir(self) -> str | None:
        return self._options.workdir

    async def initialize(self, config: Mapping[str, Any]) -> None:
        """Raises INVALID_CONFIG for a command that cannot be, and for options no command can hold."""
        given = dict(config)
        asked = given.get("model")
        if isinstance(asked, bool):
            del given["model"]
        self._with_model = bool(asked)
        abilities = _WITH_MODEL if self._with_model else frozenset[Ability]()
        self._options = checked_options(CommandOptions, "custom (command)", given, abilities)
        command = self._options.command
        if isinstance(command, str) and re.search(r"""["'`]\{prompt\}|\{prompt\}["'`]""", command):
            raise RunraError(
                "INVALID_CONFIG",
                "agent.config.command: write {prompt} without quotes; it is one argument whatever is in it",
                details={"field": "agent.config.command"},
            )

    async def start(self, run: AgentRun) -> AgentResult:
        options, door = self._options, None
        try:
            async with asyncio.timeout(None if options.timeout_ms is None else options.timeout_ms / 1000) as limit:
                async with AsyncExitStack() as stack:
                    async with setting_up("the command", options.setup_timeout_ms):
                        door = await self._model(run, stack)
                        started = await self._started(run, stack, door)
                    printed, gathered = (
                        Printed(options.format),
                        Gathered(lambda event: run.emit(event.type, event.data)),
                    )
                    try:
                        reading = await read(
                            started,
                            printed,
                            gathered,
                            silence_s=options.silence_timeout_ms / 1000,
                            stopped=self._stopped,
                            lost=None if door is None else door.lost,
                        )
                    finally:
                        gathered.flush()
        except TimeoutError:
            if not limit.expired():
                raise
            return failed("timeout", f"the command worked longer than timeout_ms {options.timeout_ms}", door)
        return self._result(printed, reading, door)

    async def stop(self) -> None:
        self._stopped.set()

    async def dispose(self) -> None:
        return None

    async def _model(self, run: AgentRun, stack: AsyncExitStack) -> Door | None:
        if not self._with_model:
            return None
        options = self._options
        target = target_for("custom", run.llm, options.model, "")
        limits = RunLimits(max_cost=options.max_cost, max_turns=options.max_turns)
        return await stack.enter_async_context(run.open_model(target, limits))

    async def _started(self, run: AgentRun, stack: AsyncExitStack, door: Door | None) -> Started:
        options = self._options
        argv, on_stdin = words(options.command, run.prompt)
        if on_stdin:
            file = f"/var/tmp/.runra-prompt-{secrets.token_hex(8)}"  # noqa: S108 - in the sandbox, unguessable
            stack.push_async_callback(_clean, run, file)
            await run.sandbox.files.write(file, run.prompt)
        else:
            file = "/dev/null"
        process = await run.sandbox.exec(
            ["sh", "-c", _START, file, *argv],
            background=True,
            cwd=options.workdir,
            env={**options.env, **(model_env(door) if door is not None else {})},
        )
        return InSandbox(process)

    def _result(self, printed: Printed, reading: Reading, door: Door | None) -> AgentResult:
        verdict = printed.verdict(reading.exit_code)
        kind, error = verdict.kind, verdict.error
        match reading.ended:
            case "silence":
                kind = "silence"
                error = f"the command said nothing for silence_timeout_ms {self._options.silence_timeout_ms}"
            case "stopped":
                kind, error = "stopped", "the command was stopped"
            case "lost":
                kind, error = "unavailable", f"the command lost its way to the model: {reading.why}"
            case _ if error is not None and reading.oom:
                kind, error = "oom", "the command was killed: the sandbox's memory was full; give it more memory_mb"
            case _ if error is not None and reading.exit_code in (126, 127) and reading.stderr:
                kind, error = "setup", f"the command could not be started: {reading.stderr[-1]}"
        told = {"summary": verdict.summary, "session_id": verdict.session_id}
        if error is None:
            return spent(door).model_copy(update={"success": True, **told})
        return failed(kind, error, door, list(reading.stderr)).model_copy(update=told)


def words(command: list[str] | str, prompt: str) -> tuple[list[str], bool]:
    """The arguments of a command, and whether its prompt is on stdin. It never becomes part of a shell's text."""
    if isinstance(command, list):
        return [word.replace(_PROMPT, prompt) for word in command], not any(_PROMPT in word for word in command)
    script = command.replace(_PROMPT, '"$1"')
    if script == command:
        return ["sh", "-c", command], True
    return ["sh", "-c", script, "sh", prompt], False


def model_env(door: Door) -> dict[str, str]:
    """Where the model is, under the names the makers' own libraries read."""
    return {
        "OPENAI_BASE_URL": f"{door.url}/v1",
        "OPENAI_API_KEY": door.token,
        "ANTHROPIC_BASE_URL": door.url,
        "ANTHROPIC_API_KEY": door.token,
        "RUNRA_MODEL": door.target.model,
    }


async def _clean(run: AgentRun, file: str) -> None:
    async def remove() -> None:
        await run.sandbox.exec(["rm", "-f", "--", file], timeout_ms=10_000)

    try:
        await to_end(remove(), _CLEAN_S)
    except (RunraError, TimeoutError):
        return  # the sandbox is gone or stuck, and the file with it; the run's result says so

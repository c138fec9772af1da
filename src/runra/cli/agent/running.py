"""`runra agent run`: a coding agent at work on a prompt, live in the terminal."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from runra.cli.agent.fetching import check_target, fetch
from runra.cli.agent.record import Recorder
from runra.cli.agent.screens import Live, Plain, screen
from runra.cli.agent.summary import coloured, summary
from runra.cli.agent.view import Line, gist
from runra.cli.output import complain, harmless, is_terminal, json_line, say, size
from runra.cli.words import milliseconds
from runra.errors import RunraError

if TYPE_CHECKING:
    from runra.runtime import AgentResult, Runra, Sandbox
    from runra.runtime.stream import RunStream

_ASKED: Final = 200
#: Errors that say the command was wrong, not the run.
_BAD_USE: Final = frozenset(("INVALID_CONFIG", "INVALID_REQUEST", "SANDBOX_NOT_FOUND"))
_SIGNALS: Final = {signal.SIGINT: 130, signal.SIGTERM: 143}

Permission = Literal["auto-approve", "prompt", "plan"]


@dataclass(frozen=True)
class Asked:
    """What the command line asked for, beyond the runtime's own options."""

    prompt: str
    agent: str
    options: dict[str, Any]
    image: str | None = None
    sandbox: str | None = None
    session: str | None = None
    keep: bool = False
    diff: bool = False
    out: Path | None = None
    timeout_ms: int | None = None
    record: Path | None = None
    as_json: bool = False


@dataclass
class _Stop:
    """Ctrl-C: the first stops the run, with a result; the second cancels it."""

    code: int = 0
    run: RunStream | None = None
    task: asyncio.Task[Any] | None = None
    _stopping: set[asyncio.Task[None]] = field(default_factory=set)

    def hit(self, number: int) -> None:
        first, self.code = self.code == 0, self.code or _SIGNALS[signal.Signals(number)]
        if first and self.run is not None:
            task = asyncio.ensure_future(self._stop(self.run))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
        elif self.task is not None:
            self.task.cancel()

    async def _stop(self, run: RunStream) -> None:
        try:
            await run.stop()
        except RunraError:  # one that cannot be stopped with a result
            if self.task is not None:
                self.task.cancel()


def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What it shall do; - reads stdin.")],
    agent: Annotated[
        str | None, typer.Option("--agent", help="Which: `runra agents`. [default: the configuration's]")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Which model. [default: the configuration's]")] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", metavar="PROVIDER", help="Who runs it: anthropic, openai, vllm, …")
    ] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", metavar="URL", help="Where the model is.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Of a new sandbox. [default: agents/AGENT]")] = None,
    sandbox: Annotated[
        str | None, typer.Option("--sandbox", metavar="ID", help="In this sandbox, which stays. [default: a new one]")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Go on with a conversation that --sandbox has.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the new sandbox there.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print what was changed in text files.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Copy what it made and changed into this new folder.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", metavar="USD", help="Most it may spend.")] = None,
    max_turns: Annotated[int | None, typer.Option("--max-turns", min=1, help="Most turns. [default: 50]")] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="90s, 30m, 2h. [default: none]")
    ] = None,
    placement: Annotated[
        Literal["sandbox", "host"] | None,
        typer.Option("--placement", help="host: the agent here, its hands in the sandbox."),
    ] = None,
    permission: Annotated[
        Permission | None,
        typer.Option("--permission", help="prompt: each use of a tool is asked for; plan: nothing is changed."),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", help="Where it works. [default: /workspace]")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Keep the run, for `runra agent replay`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Each event as a JSON line, the result as the last.")] = False,
) -> None:
    """Let a coding agent work on a prompt, and watch it.

    What is not said here comes from the runtime's configuration (`runra config show`), the model's key always does.
    Ctrl-C stops the agent, with a result; a second one ends everything. Exits with 0 when the agent succeeded, 1 when
    it failed, 130 after Ctrl-C.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise typer.BadParameter("is empty", param_hint="PROMPT")
    if sandbox is not None and image is not None:
        raise typer.BadParameter("--sandbox is there already; leave --image out", param_hint="--image")
    if session is not None and sandbox is None:
        raise typer.BadParameter("a conversation lives in its sandbox: give --sandbox as well", param_hint="--session")
    if permission == "prompt" and not is_terminal(sys.stdin):
        raise typer.BadParameter("nobody is at a terminal to be asked", param_hint="--permission")
    config: dict[str, Any] = {"maxCost": max_cost, "maxTurns": max_turns, "placement": placement}
    config |= {"permissionMode": permission, "workdir": workdir}
    given = {key: value for key, value in config.items() if value is not None}
    limit = milliseconds(timeout, "--timeout") if timeout else None
    try:
        options = _options(agent, given, llm, model, base_url)
        name = options["agent"]["provider"]
        asked = Asked(prompt, name, options, image, sandbox, session, keep, diff, out, limit, record, as_json)
        code = asyncio.run(_main(asked))
    except RunraError as error:
        if error.code not in _BAD_USE:
            raise
        complain(error)
        code = 2
    raise typer.Exit(code)


def _options(
    agent: str | None, config: dict[str, Any], llm: str | None, model: str | None, base_url: str | None
) -> dict[str, Any]:
    """The runtime's options that the command line gives, to go over those of environment and files."""
    from runra.runtime.config import resolve

    known = resolve().options
    name = agent or (known.agent.provider if known.agent else None)
    if name is None:
        raise typer.BadParameter("name one; `runra agents` lists them", param_hint="--agent")
    provider = llm or (known.llm.provider if known.llm else None)
    if base_url is not None and provider is None:
        raise typer.BadParameter("say whose it is: --llm custom, vllm, …", param_hint="--base-url")
    options: dict[str, Any] = {"agent": {"provider": name, "config": config}}
    if provider is not None and (llm or model or base_url):
        wanted = {key: value for key, value in (("model", model), ("baseUrl", base_url)) if value is not None}
        options["llm"] = {"provider": provider, "config": wanted}
    elif model is not None:
        config["model"] = model
    return options


async def _main(asked: Asked) -> int:
    from runra.runtime import Runra

    stop = _Stop(task=asyncio.current_task())
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.hit, number)
    recorder = None
    try:
        if asked.out is not None:
            check_target(asked.out)
        hint = "Ctrl-C stops"
        shown = screen(asked.agent, as_json=asked.as_json, hint=hint)
        if asked.options["agent"]["config"].get("permissionMode") == "prompt":
            asked.options["agent"]["config"]["permit"] = _permit(shown)
        async with Runra(asked.options) as runra:
            if runra.config.options.log_level is None:
                # The screen tells what went wrong; without a level asked for, the log would tell it again in between.
                logging.getLogger("runra").addHandler(logging.NullHandler())
            if asked.record is not None:
                recorder = Recorder(asked.record)
            result = await _run(runra, asked, shown, recorder, stop)
    except asyncio.CancelledError:
        if not stop.code:
            raise
        say("stopped: the run was cancelled")
        return stop.code
    finally:
        if recorder is not None:
            recorder.close()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    return stop.code or (0 if result.success else 1)


async def _run(runra: Runra, asked: Asked, shown: Plain | Live, recorder: Recorder | None, stop: _Stop) -> AgentResult:
    async with _sandbox(runra, asked, shown) as sandbox:
        options = {"image": asked.image} if asked.image is not None and sandbox is None else None
        stream = runra.stream(
            asked.prompt,
            sandbox_id=sandbox.id if sandbox is not None else None,
            sandbox_options=options,
            session_id=asked.session,
            # An agent that is a function of the caller's has its files compared only for a diff.
            diff=asked.diff or asked.out is not None or None,
            timeout_ms=asked.timeout_ms,
        )
        with shown:
            async with stream as run:
                stop.run = run
                async for event in run:
                    shown.event(event)
                    if recorder is not None:
                        recorder.event(event)
                result = run.result
            stop.run = None
        if not asked.diff:
            result = result.model_copy(update={"diff": None})
        if recorder is not None:
            recorder.result(result)
        if not asked.as_json:
            _tell(result, asked, shown, kept=sandbox is not None and (asked.keep or asked.sandbox is not None))
        if sandbox is not None and asked.out is not None:
            await _fetch(runra, sandbox, asked, result)
    if asked.as_json:
        json_line({"result": result.to_wire()})
    return result


def _tell(result: AgentResult, asked: Asked, shown: Plain | Live, *, kept: bool) -> None:
    if result.diff:
        shown.lines([Line(""), *coloured(result.diff)])
    shown.lines(summary(result, asked.agent, kept=kept))


async def _fetch(runra: Runra, sandbox: Sandbox, asked: Asked, result: AgentResult) -> None:
    assert asked.out is not None, "the caller looks"
    if result.files is None:
        say(f"--out: nothing was copied into {asked.out}: what the agent changed is not known")
        return
    chosen = runra.config.options.agent
    workdir = str((chosen.config.get("workdir") if chosen else None) or sandbox.workdir)
    done = await fetch(sandbox, workdir, result.files, asked.out)
    for reason in done.skipped:
        say(f"left out: {harmless(reason)}")
    say(f"{done.files} file{'' if done.files == 1 else 's'}, {size(done.bytes)} → {asked.out}")


@asynccontextmanager
async def _sandbox(runra: Runra, asked: Asked, shown: Plain | Live) -> AsyncIterator[Sandbox | None]:
    """The sandbox that outlives the run: one that was named, or a new one where it is kept or looked at afterwards.
    None where the run has one of its own."""
    if asked.sandbox is not None:
        found = await runra.get_sandbox(asked.sandbox)
        if found is None or found.state == "terminated":
            raise RunraError("SANDBOX_NOT_FOUND", f"there is no sandbox {asked.sandbox!r}; leave --sandbox out")
        if found.state == "paused":
            await found.resume()
        yield found
        return
    if not asked.keep and asked.out is None:
        yield None
        return
    made = await _made(runra, asked)
    if asked.keep:
        runra.keep_sandbox(made)
        say(f"sandbox {made.id}")
        yield made
        return
    async with made:
        yield made


async def _made(runra: Runra, asked: Asked) -> Sandbox:
    from runra.runtime.registry import AGENTS
    from runra.runtime.settling import for_a_run

    given = {"image": asked.image} if asked.image is not None else None
    lifetimes = "timeout" in runra.provider.capabilities
    agent = AGENTS.create(asked.agent)
    return await runra.create_sandbox(
        for_a_run(runra.config.values, given, agent, asked.timeout_ms, lifetimes=lifetimes)
    )


def _permit(shown: Plain | Live) -> Callable[[str, Any], Any]:
    """Asks the person at the terminal, one question at a time; the run goes on meanwhile."""
    turn = asyncio.Lock()

    async def permit(tool: str, input: Any) -> bool:
        async with turn:
            return await shown.ask(f"{harmless(tool)[:_ASKED]}  {gist(input)}")

    return permit

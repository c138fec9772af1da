"""A run of `runra agent run`, from its sandbox to what is shown, recorded and brought home of it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runra.cli.agent.fetching import check_target, fetch
from runra.cli.agent.record import Recorder
from runra.cli.agent.screens import Live, Plain, screen
from runra.cli.agent.summary import coloured, summary
from runra.cli.agent.view import Line, gist
from runra.cli.output import harmless, json_line, say, size
from runra.errors import RunraError

if TYPE_CHECKING:
    from runra.runtime import AgentResult, Runra, Sandbox
    from runra.runtime.stream import RunStream

_ASKED: Final = 200
_SIGNALS: Final = {signal.SIGINT: 130, signal.SIGTERM: 143}


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


async def main(asked: Asked) -> int:
    """Run it; the exit code."""
    from runra.runtime import Runra
    from runra.runtime.registry import AGENTS

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
        config = asked.options["agent"]["config"]
        if config.get("permissionMode") == "prompt" and "prompt" in getattr(
            AGENTS.create(asked.agent), "abilities", ()
        ):
            config["on_permission"] = _permit(shown)  # others refuse the mode by its name
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

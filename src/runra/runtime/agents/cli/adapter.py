"""A coding agent's own command line, at work in a sandbox: started, read, judged, and gone without a trace."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from runra.errors import RunraError
from runra.runtime.agents.cli.launch import Asked, Cli, Launch
from runra.runtime.agents.cli.model import target_for
from runra.runtime.agents.cli.reading import GRACE_S, InSandbox, Reading, Started, read
from runra.runtime.agents.options import AgentOptions, checked_options
from runra.runtime.agents.results import failed, spent
from runra.runtime.agents.transcripts import Verdict
from runra.runtime.gateway import RunLimits
from runra.runtime.tasks import to_end
from runra.runtime.types import AgentResult

if TYPE_CHECKING:
    from runra.runtime.model_access import Door
    from runra.runtime.run import AgentRun

#: How many messages may wait for an agent.
_MESSAGES: Final = 100
_CLEAN_S: Final = 15.0
# The prompt is a file on stdin: no process list shows it, and codex and opencode wait for an open stdin for ever.
_START: Final = 'exec "$@" < "$0"'


class CliAgent:
    """One run of a command line: `initialize`, `start`, and meanwhile `send_message` and `stop`."""

    tracks_files = True

    def __init__(self, cli: Cli) -> None:
        self.id = cli.id
        self.abilities = cli.abilities
        #: The image a run's sandbox is of where none is named.
        self.image = f"agents/{cli.id}"
        self._cli = cli
        self._options = AgentOptions()
        self._messages: deque[str] = deque()
        self._stopped = asyncio.Event()
        self._closed = False

    @property
    def workdir(self) -> str | None:
        return self._options.workdir

    async def initialize(self, config: Mapping[str, Any]) -> None:
        self._options = checked_options(AgentOptions, self.id, config, self.abilities)

    async def start(self, run: AgentRun) -> AgentResult:
        options = self._options
        async with asyncio.timeout(None if options.timeout_ms is None else options.timeout_ms / 1000) as limit:
            door: Door | None = None
            try:
                async with AsyncExitStack() as stack:
                    async with self._setting_up():
                        target = target_for(self.id, run.llm, options.model, self._cli.provider)
                        limits = RunLimits(max_cost=options.max_cost, max_turns=options.max_turns)
                        folder = await self._prepare(run)
                        stack.push_async_callback(self._clean, run, folder)
                        door = await stack.enter_async_context(run.open_model(target, limits))
                    verdict, reading = await self._converse(run, door, folder)
            except TimeoutError:
                if not limit.expired():
                    raise
                return failed("timeout", f"{self.id} worked longer than timeout_ms {options.timeout_ms}", door)
            finally:
                self._closed = True
        return self._result(verdict, reading, door)

    async def send_message(self, message: str) -> None:
        if self._closed:
            raise RunraError("INVALID_STATE", "the agent has ended; go on with its session_id", status=0)
        if len(self._messages) >= _MESSAGES:
            raise RunraError("RESOURCE_EXHAUSTED", f"{_MESSAGES} messages wait for the agent already")
        self._messages.append(message)

    async def stop(self) -> None:
        self._stopped.set()

    async def dispose(self) -> None:
        self._closed = True

    # --- one run -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _setting_up(self) -> AsyncIterator[None]:
        limit = asyncio.timeout(self._options.setup_timeout_ms / 1000)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise RunraError(
                "EXECUTION_TIMEOUT",
                f"{self.id} was not started within setup_timeout_ms {self._options.setup_timeout_ms}",
                details={"kind": "setup"},
            ) from None

    async def _prepare(self, run: AgentRun) -> str:
        """A private folder in the sandbox, once the agent is known to be there."""
        folder = f"/var/tmp/.runra-agent-{secrets.token_hex(8)}"  # noqa: S108 - in the sandbox, unguessable, 0700
        script = 'command -v -- "$1" >/dev/null || exit 127; umask 077 && mkdir -p -- "$2"'
        done = await run.sandbox.exec(["sh", "-c", script, "sh", self._cli.program, folder])
        if done.exit_code == 127:
            raise RunraError(
                "INVALID_CONFIG",
                f"{self.id} is not in the image {run.sandbox.image!r} (no program {self._cli.program!r}): make one "
                f"with `runra image build agents/{self.id}` and use image='agents/{self.id}'",
                details={"kind": "setup", "program": self._cli.program, "image": run.sandbox.image},
            )
        if done.exit_code != 0:
            raise RunraError(
                "INVALID_STATE", f"{folder} could not be made: {done.stderr[-500:]}", details={"kind": "setup"}
            )
        return folder

    async def _converse(self, run: AgentRun, door: Door, folder: str) -> tuple[Verdict, Reading]:
        """The prompt, then each message that came meanwhile, as turns of one conversation."""
        prompt, session = run.prompt, run.session_id
        while True:
            transcript = self._cli.transcript()
            launch = self._cli.launch(Asked(self._options, door.target, door.url, door.token, folder, session))
            async with self._setting_up():
                started = await self._started(run, launch, folder, prompt)
            reading = await read(
                started,
                transcript,
                lambda event: run.emit(event.type, event.data),
                silence_s=self._options.silence_timeout_ms / 1000,
                stopped=self._stopped,
                lost=door.lost,
            )
            # One that had said how it ended and would not leave counts as having left.
            verdict = transcript.verdict(0 if reading.ended == "grace" else reading.exit_code)
            if not verdict.success or reading.ended not in ("itself", "grace") or not self._messages:
                return verdict, reading
            prompt, session = self._messages.popleft(), verdict.session_id

    async def _started(self, run: AgentRun, launch: Launch, folder: str, prompt: str) -> Started:
        for name, content in {**launch.files, "prompt": prompt}.items():
            await run.sandbox.files.write(f"{folder}/{name}", content)
        process = await run.sandbox.exec(
            ["sh", "-c", _START, f"{folder}/prompt", *launch.argv],
            background=True,
            cwd=self._options.workdir,
            env={**self._options.env, **launch.env},
        )
        return InSandbox(process)

    async def _clean(self, run: AgentRun, folder: str) -> None:
        try:
            await to_end(_remove(run, folder), _CLEAN_S)
        except (RunraError, TimeoutError):
            return  # the sandbox is gone or stuck, and the folder with it; the run's result says so

    def _result(self, verdict: Verdict, reading: Reading, door: Door) -> AgentResult:
        options, stderr = self._options, list(reading.stderr)
        warnings = list(verdict.warnings)
        if reading.ended == "grace":
            warnings.append(f"{self.id} had to be ended {GRACE_S:g} s after its last event")
        kind, error = verdict.kind, verdict.error
        match reading.ended:
            case "silence":
                kind, error = "silence", f"{self.id} said nothing for silence_timeout_ms {options.silence_timeout_ms}"
            case "stopped":
                kind, error = "stopped", f"{self.id} was stopped"
            case "lost":
                kind, error = "unavailable", f"{self.id} lost its way to the model: {reading.why}"
            case _ if reading.oom and not verdict.success:
                kind, error = "oom", f"{self.id} was killed: the sandbox's memory was full; give it more memory_mb"
        common = spent(door, warnings)
        if error is None:
            return common.model_copy(
                update={"success": True, "summary": verdict.summary, "session_id": verdict.session_id}
            )
        return failed(kind, error, door, stderr, warnings).model_copy(
            update={"summary": verdict.summary, "session_id": verdict.session_id}
        )


async def _remove(run: AgentRun, folder: str) -> None:
    await run.sandbox.exec(["rm", "-rf", "--", folder], timeout_ms=10_000)

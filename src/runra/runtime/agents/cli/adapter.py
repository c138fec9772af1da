"""A coding agent's own command line, at work in a sandbox: started, read, judged, and gone without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any

from runra.errors import RunraError
from runra.runtime.agents.cli.launch import Asked, Cli
from runra.runtime.agents.cli.model import target_for
from runra.runtime.agents.cli.place import Place, in_sandbox
from runra.runtime.agents.cli.reading import GRACE_S, Reading, read
from runra.runtime.agents.conversing import Conversing
from runra.runtime.agents.deadlines import setting_up
from runra.runtime.agents.options import AgentOptions, checked_options
from runra.runtime.agents.results import failed, spent
from runra.runtime.agents.transcripts import Verdict
from runra.runtime.gateway import RunLimits
from runra.runtime.llms.failures import kind_of
from runra.runtime.types import AgentResult

if TYPE_CHECKING:
    from runra.runtime.model_access import Door
    from runra.runtime.run import AgentRun


class CliAgent(Conversing):
    """One run of a command line: `initialize`, `start`, and meanwhile `send_message` and `stop`."""

    tracks_files = True

    def __init__(self, cli: Cli) -> None:
        super().__init__()
        self.id = cli.id
        self.abilities = cli.abilities
        #: The image a run's sandbox is of where none is named.
        self.image = f"agents/{cli.id}"
        self._cli = cli
        self._options = AgentOptions()

    @property
    def workdir(self) -> str | None:
        return self._options.workdir

    async def initialize(self, config: Mapping[str, Any]) -> None:
        abilities = self.abilities
        if config.get("placement") == "host":
            abilities |= {"allowed_tools", "plan", "system_prompt"}  # its tools are ours there
        self._options = checked_options(AgentOptions, self.id, config, abilities)
        if self._options.placement == "host":
            self.image = ""  # any will do: the agent is not in it

    async def start(self, run: AgentRun) -> AgentResult:
        options = self._options
        async with asyncio.timeout(None if options.timeout_ms is None else options.timeout_ms / 1000) as limit:
            door: Door | None = None
            try:
                async with AsyncExitStack() as stack:
                    async with setting_up(self.id, self._options.setup_timeout_ms):
                        target = target_for(self.id, run.llm, options.model, self._cli.provider)
                        limits = RunLimits(max_cost=options.max_cost, max_turns=options.max_turns)
                        place = await stack.enter_async_context(self._place(run))
                        door = await stack.enter_async_context(run.open_model(target, limits, where=place.where))
                    verdict, reading = await self._converse(run, door, place)
            except TimeoutError:
                if not limit.expired():
                    raise
                return failed("timeout", f"{self.id} worked longer than timeout_ms {options.timeout_ms}", door)
            except RunraError as error:
                if door is None:
                    raise
                return failed(kind_of(error) or "failed", error.message, door)  # what it has cost until then stays
            finally:
                self.ended()
        return self._result(verdict, reading, door, place)

    # --- one run -------------------------------------------------------------------------------------------------

    def _place(self, run: AgentRun) -> AbstractAsyncContextManager[Place]:
        if self._options.placement == "sandbox":
            return in_sandbox(run, self._cli, self._options)
        from runra.runtime.agents.cli.host import on_host

        return on_host(run, self._cli, self._options)

    async def _converse(self, run: AgentRun, door: Door, place: Place) -> tuple[Verdict, Reading]:
        """The prompt, then each message that came meanwhile, as turns of one conversation."""
        prompt, session = run.prompt, run.session_id
        while True:
            transcript = self._cli.transcript()
            asked = Asked(self._options, door.target, door.url, door.token, place.folder, session, place.tools)
            launch = self._cli.launch(asked)
            async with setting_up(self.id, self._options.setup_timeout_ms):
                started = await place.start(launch, prompt)
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
            if not verdict.success or reading.ended not in ("itself", "grace"):
                return verdict, reading
            message = self.next_message()
            if message is None:
                return verdict, reading
            prompt, session = message, verdict.session_id

    def _result(self, verdict: Verdict, reading: Reading, door: Door, place: Place) -> AgentResult:
        options, stderr = self._options, list(reading.stderr)
        warnings = [*place.warnings, *verdict.warnings]
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

"""Any ACP agent at work in a sandbox: a session, its turns, and how they ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from runra.errors import RunraError
from runra.runtime.agents.acp.known import Known, known
from runra.runtime.agents.acp.peer import AUTH_REQUIRED, Gone, RpcError
from runra.runtime.agents.acp.session import Session, words_of
from runra.runtime.agents.acp.updates import read_usage
from runra.runtime.agents.cli.launch import Asked
from runra.runtime.agents.cli.model import target_for
from runra.runtime.agents.conversing import Conversing
from runra.runtime.agents.deadlines import setting_up
from runra.runtime.agents.options import Ability, AgentOptions, Permit, checked_options
from runra.runtime.agents.results import failed, spent
from runra.runtime.agents.transcripts.types import kind_of
from runra.runtime.gateway import RunLimits
from runra.runtime.tasks import to_end
from runra.runtime.types import AgentResult, Usage

if TYPE_CHECKING:
    from runra.events import Event, EventType
    from runra.runtime.model_access import Door
    from runra.runtime.run import AgentRun

#: How long an agent may take to end a turn it was asked to end, in seconds, before it is killed.
_STOP_S: Final = 3.0
#: The same when the caller has gone away.
_CANCEL_S: Final = 0.4
#: What a turn may end with other than well: the kind of failure, and what it means.
_STOPS: Final[Mapping[str, tuple[str, str]]] = {
    "max_tokens": ("failed", "the model's answer reached its largest length"),
    "max_turn_requests": ("turns", "the agent has used all its turns"),
    "refusal": ("refused", "the model refused to go on"),
    "cancelled": ("stopped", "the agent was stopped"),
}


class AcpOptions(AgentOptions):
    """`acp`: the agent's command. `on_permission`: asked before it uses a tool (`permissionMode` prompt), within
    `permission_timeout_ms`; no answer is a no."""

    acp: list[str] = Field(min_length=1)
    on_permission: Permit | None = None
    permission_timeout_ms: int = Field(300_000, gt=0)


class AcpAgent(Conversing):
    """One run of an ACP agent: `initialize`, `start`, and meanwhile `send_message` and `stop`."""

    id = "custom"
    tracks_files = True
    abilities: frozenset[Ability] = frozenset({"resume", "messages", "max_turns", "max_cost", "plan", "prompt"})

    def __init__(self) -> None:
        super().__init__()
        self._options = AcpOptions(acp=["agent"])
        self._known: Known = known([])
        #: What the gateway said of the model's last answer to the agent itself; empty for a good one.
        self._model_failure = ""

    @property
    def workdir(self) -> str | None:
        return self._options.workdir

    async def initialize(self, config: Mapping[str, Any]) -> None:
        """Raises INVALID_CONFIG for what is malformed or what ACP has no way to ask for."""
        options = checked_options(AcpOptions, "custom (acp)", config, self.abilities)
        if options.permission_mode == "prompt" and options.on_permission is None:
            raise RunraError(
                "INVALID_CONFIG",
                "agent.config.on_permission: permissionMode prompt needs a function (tool, input) -> bool",
                details={"field": "agent.config.on_permission"},
            )
        self._options, self._known = options, known(options.acp)

    async def start(self, run: AgentRun) -> AgentResult:
        options, door = self._options, None
        session: Session | None = None
        try:
            async with asyncio.timeout(None if options.timeout_ms is None else options.timeout_ms / 1000) as limit:
                async with AsyncExitStack() as stack:
                    async with setting_up(options.acp[0], options.setup_timeout_ms):
                        door = await self._model(run, stack)
                        session = await self._session(run, stack, door)
                        mode = options.permission_mode
                        await session.open(
                            options.workdir or run.sandbox.workdir,
                            run.session_id,
                            self._known.modes.get(mode, ()),
                            must=mode == "plan",
                        )
                    return await self._converse(run, session, door)
        except TimeoutError:
            if not limit.expired():
                raise
            kind, error = "timeout", f"{options.acp[0]} worked longer than timeout_ms {options.timeout_ms}"
        except Gone as gone:
            kind, error = gone.kind, gone.message
        except RpcError as rpc:
            kind, error = _told(rpc, session)
        except RunraError as wrong:
            if session is None or wrong.details.get("kind") != "setup":
                raise
            kind, error = "setup", wrong.message
        finally:
            self.ended()
        return self._result(kind, error, session, door)

    # --- one run -------------------------------------------------------------------------------------------------

    async def _model(self, run: AgentRun, stack: AsyncExitStack) -> Door | None:
        """A way to the model, unless none is configured: then the agent has its own, by `env` or its files."""
        options = self._options
        if run.llm is None and options.model is None:
            return None
        target = target_for("custom", run.llm, options.model, "")
        limits = RunLimits(max_cost=options.max_cost, max_turns=options.max_turns)

        def overheard(type: EventType, data: dict[str, Any]) -> Event:
            if type == "cost.llm" and data.get("turn"):
                failed_now = data.get("status") in ("failed", "stopped")
                self._model_failure = str(data.get("error") or "unavailable") if failed_now else ""
            return run.emit(type, data)

        return await stack.enter_async_context(replace(run, emit=overheard).open_model(target, limits))

    async def _session(self, run: AgentRun, stack: AsyncExitStack, door: Door | None) -> Session:
        options = self._options
        env = {} if door is None else self._known.env(Asked(options, door.target, door.url, door.token))
        process = await run.sandbox.exec(options.acp, background=True, cwd=options.workdir, env={**options.env, **env})
        session = Session(process, run.sandbox, options, lambda event: run.emit(event.type, event.data))
        stack.push_async_callback(session.close)
        return session

    async def _converse(self, run: AgentRun, session: Session, door: Door | None) -> AgentResult:
        """The prompt, then each message that came meanwhile, as turns of one session."""
        prompt, used = run.prompt, Usage()
        while True:
            answer = await self._turn(session, prompt, door)
            used = _sum(used, read_usage(answer.get("usage")))
            reason = answer.get("stopReason")
            if reason != "end_turn":
                kind, error = _STOPS.get(str(reason), ("failed", f"the turn ended with {str(reason)[:100]!r}"))
                return self._result(kind, error, session, door, used)
            if self._model_failure:  # agents that say «done» all the same are known
                error = f"the model failed ({self._model_failure}), and the agent ended its turn with: "
                error += session.updates.summary[:1000] or "nothing"
                return self._result(self._model_failure, error, session, door, used)
            message = self.next_message()
            if message is None:
                return self._result("", None, session, door, used)
            prompt = message

    async def _turn(self, session: Session, prompt: str, door: Door | None) -> dict[str, Any]:
        options = self._options
        silence_s = options.silence_timeout_ms / 1000
        turn = asyncio.create_task(session.prompt(prompt), name="runra-acp-turn")
        stop = asyncio.create_task(self._stopped.wait())
        watched: set[asyncio.Future[Any]] = {turn, stop}
        lost = None if door is None else door.lost
        if lost is not None:
            watched.add(lost)
        try:
            while not turn.done():
                heard = time.monotonic() if session.serving.asking else session.process.heard
                left = heard + silence_s - time.monotonic()
                if left <= 0:
                    words = f"{options.acp[0]} said nothing for silence_timeout_ms {options.silence_timeout_ms}"
                    raise Gone("silence", words)
                await asyncio.wait(watched, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if stop.done() and not turn.done():
                    await session.cancel(turn, _STOP_S)
                    raise Gone("stopped", "the agent was stopped")
                if lost is not None and lost.done() and not turn.done():
                    raise Gone("unavailable", f"{options.acp[0]} lost its way to the model: {lost.result()}")
            return turn.result()
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                await to_end(session.cancel(turn, _CANCEL_S), _CANCEL_S + 1)
            raise
        finally:
            stop.cancel()
            turn.cancel()
            await asyncio.wait({turn})
            if not turn.cancelled():
                turn.exception()  # taken note of: the run has ended otherwise

    def _result(
        self, kind: str, error: str | None, session: Session | None, door: Door | None, used: Usage | None = None
    ) -> AgentResult:
        stderr = [] if session is None else list(session.process.stderr)
        if error is None:
            result = spent(door).model_copy(update={"success": True})
        else:
            result = failed(kind, error, door, stderr)
        if session is None:
            return result
        told: dict[str, Any] = {"summary": session.updates.summary, "session_id": session.id}
        if door is None:
            told["usage"] = used or Usage()
            if session.updates.cost is not None:
                told |= {"total_cost": session.updates.cost, "cost_source": "agent"}
        return result.model_copy(update=told)


def _told(error: RpcError, session: Session | None) -> tuple[str, str]:
    words = words_of(error)
    if error.code != AUTH_REQUIRED:
        return kind_of(words), words
    ways = f" by one of: {session.login}" if session is not None and session.login else ""
    return "auth", (
        f"the agent wants a login{ways} ({words}). Configure llm, so that it gets its model through the gateway, "
        "or give it a key by agent.config.env"
    )


def _sum(one: Usage, other: Usage) -> Usage:
    names = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
    return Usage(**{name: getattr(one, name) + getattr(other, name) for name in names})

"""The runtime: makes sandboxes at any provider, runs agents in them, and tells what happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from runra.contract import SandboxConfig as Config
from runra.errors import RunraError
from runra.runtime.bus import Handler
from runra.runtime.capabilities import needs_of_create, needs_of_list, require
from runra.runtime.config import Resolved, resolve
from runra.runtime.controls import RunControls
from runra.runtime.registry import AGENTS, EXPORTERS, LLMS, SANDBOX_PROVIDERS
from runra.runtime.run import AgentRun
from runra.runtime.sandbox import TERMINATE_S, Sandbox
from runra.runtime.sandboxes.base import BaseProvider, full
from runra.runtime.session import Session
from runra.runtime.settling import exporters, for_a_run, start_params, with_defaults
from runra.runtime.stream import RunStream
from runra.runtime.tasks import Tasks, gathered, to_end
from runra.runtime.types import AgentResult, StartParams
from runra.runtime.work import work_on
from runra.sdk.types import ListOptions, SandboxConfig, checked, merged
from runra.tracing import Run, current_run

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runra.events import Event, EventType
    from runra.runtime.model_access import ModelAccess
    from runra.runtime.options import RunraOptions
    from runra.runtime.providers import AgentAdapter, Exporter, LLMProvider, SandboxProvider
    from runra.sdk.types import SandboxOptions

_log = logging.getLogger("runra.runtime")

#: What `dispose` takes at most, in ms, when nothing else is said.
DISPOSE_MS: Final = 30_000
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


class Runra:
    """An agent, a model and exporters around a sandbox of any provider (seed, `@runra/runtime`).

    Options as one model or dict, or by name; what is not given comes from the environment and the configuration files
    (`runra.runtime.config.resolve` has the order). `sandbox`, `agent`, `llm` and `observability` also take a provider's
    name alone. Use it in an `async with` block, or call `dispose`: sandboxes made here end with it.

    Raises INVALID_CONFIG for options that cannot be; nothing is connected before the first call.
    """

    def __init__(
        self,
        options: RunraOptions | Mapping[str, Any] | None = None,
        *,
        sandbox: Mapping[str, Any] | str | None = None,
        agent: Mapping[str, Any] | str | None = None,
        llm: Mapping[str, Any] | str | None = None,
        observability: Mapping[str, Any] | str | None = None,
        config_file: str | Path | None = None,
    ) -> None:
        by_name = {"sandbox": sandbox, "agent": agent, "llm": llm, "observability": observability}
        self._resolved = resolve(merged(options, by_name, "Runra"), config_file=config_file)
        chosen = self._resolved.options
        self._session = Session(full(SANDBOX_PROVIDERS.create(chosen.sandbox.provider)))
        self._make_agent = AGENTS.factory(chosen.agent.provider) if chosen.agent is not None else None
        self._make_llm = LLMS.factory(chosen.llm.provider) if chosen.llm is not None else None
        self._pipeline = exporters(self._resolved)
        if self._pipeline is not None:
            self._session.redactor = self._pipeline.redactor
        if chosen.log_level is not None:
            logging.getLogger("runra").setLevel(_LEVELS[chosen.log_level])
        self._llm: LLMProvider | None = None
        self._access: ModelAccess | None = None
        self._tasks = Tasks()
        self._opening: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def config(self) -> Resolved:
        """The options in force, and where each came from."""
        return self._resolved

    @property
    def provider(self) -> BaseProvider:
        """The sandbox provider; its `capabilities` say what it can do."""
        return self._session.provider

    @property
    def events_dropped(self) -> int:
        """How many events handlers have lost by being too slow."""
        return self._session.bus.dropped

    # --- sandboxes -----------------------------------------------------------------------------------------------

    async def create_sandbox(
        self, config: SandboxConfig | Config | Mapping[str, Any] | None = None, **options: Unpack[SandboxOptions]
    ) -> Sandbox:
        """Create a sandbox; it is running when this returns, and ends with `dispose` unless it was ended before or
        `keep_sandbox` let it go. What is left unset comes from `sandbox.defaults`, then from the provider.

        Raises INVALID_CONFIG naming provider and ability for what the provider cannot do, before anything starts;
        INVALID_REQUEST for a bad option; RESOURCE_EXHAUSTED. Cancelled, it leaves no sandbox behind.
        """
        return await self._tasks.run(self._create(config, options), "runra-create", undo=Sandbox.terminate)

    async def _create(self, config: Any, options: Mapping[str, Any]) -> Sandbox:
        provider = self._session.provider
        wanted = with_defaults(self._resolved.values, merged(config, options, "create_sandbox"))
        require(provider.id, provider.capabilities, needs_of_create(wanted))
        await self._open()
        secrets = wanted.network.secrets if wanted.network is not None else []
        self._session.hide(wanted.env, *(secret.value.get_secret_value() for secret in secrets))
        handle = await provider.create(wanted)
        sandbox = Sandbox(self._session, handle)
        self._session.owned[handle.id] = sandbox.terminate
        self._session.tell("sandbox.created", handle.id, {"image": handle.image})
        self._session.tell("sandbox.started", handle.id, {})
        self._session.follow(handle.id, from_start=True)
        # So that what an agent says comes after the beginning of its sandbox.
        try:
            await self._session.ready(handle.id)
        except BaseException:
            await sandbox.terminate()
            raise
        return sandbox

    async def get_sandbox(self, id: str) -> Sandbox | None:
        """The sandbox with this id, None when there is none. It does not end with `dispose` unless it was made here."""
        await self._open()
        try:
            handle = await self._session.provider.get(id)
        except RunraError as error:
            if error.code == "SANDBOX_NOT_FOUND":
                return None
            raise
        self._session.hide(handle.env)
        if handle.state != "terminated":
            self._session.follow(handle.id, from_start=False)
            await self._session.ready(handle.id)
        return Sandbox(self._session, handle)

    async def list_sandboxes(
        self, options: ListOptions | Mapping[str, Any] | None = None, **filters: Any
    ) -> list[Sandbox]:
        """The provider's sandboxes, by `state`, `image`, `metadata`: all, or a page by `limit` and `offset`."""
        chosen = checked(ListOptions, merged(options, filters, "list_sandboxes"))
        provider = self._session.provider
        require(provider.id, provider.capabilities, needs_of_list(chosen))
        await self._open()
        return [Sandbox(self._session, handle) for handle in await provider.list(chosen)]

    def keep_sandbox(self, sandbox: Sandbox) -> None:
        """Let a sandbox live on after `dispose`."""
        self._session.owned.pop(sandbox.id, None)

    # --- agents --------------------------------------------------------------------------------------------------

    async def start(
        self,
        prompt: str | StartParams | Mapping[str, Any],
        *,
        sandbox_id: str | None = None,
        sandbox_options: SandboxConfig | Mapping[str, Any] | None = None,
        session_id: str | None = None,
        diff: bool | None = None,
        timeout_ms: int | None = None,
    ) -> AgentResult:
        """Let the agent work on a prompt until it is done: in the sandbox `sandbox_id`, or in a new one of
        `sandbox_options`, which ends with the run; unless said otherwise it is of the agent's own image and lives for
        5 minutes longer than `timeout_ms`, or for an hour.

        `session_id` goes on with an earlier run's conversation in the same sandbox. `diff` keeps what was changed in
        text files as one unified diff. An agent that fails is a result with `success` False, its `error` and `failure`.
        `timeout_ms` ends the run likewise; there is none when unset. Cancelled, the agent is stopped and a sandbox made
        for it is ended. Raises INVALID_CONFIG when no agent is configured or it cannot do what is asked, and whatever
        making the sandbox raises.
        """
        params = start_params(prompt, sandbox_id, sandbox_options, session_id, diff)
        return await self._start(params, Run(), self._controls(), timeout_ms)

    def stream(
        self,
        prompt: str | StartParams | Mapping[str, Any],
        *,
        sandbox_id: str | None = None,
        sandbox_options: SandboxConfig | Mapping[str, Any] | None = None,
        session_id: str | None = None,
        diff: bool | None = None,
        timeout_ms: int | None = None,
    ) -> RunStream:
        """As `start`, with the run's events as they come: `async with runra.stream(…) as run: async for event in run`;
        then `run.result`. `run.send_message` says more to the agent, `run.stop` ends its work. Leaving the block early
        cancels the run."""
        params = start_params(prompt, sandbox_id, sandbox_options, session_id, diff)
        run, controls = Run(), self._controls()
        return RunStream(self._session, run, controls, lambda: self._start(params, run, controls, timeout_ms))

    def _controls(self) -> RunControls:
        return RunControls(None if self._make_agent is None else self._make_agent())

    async def _start(self, params: StartParams, run: Run, controls: RunControls, timeout_ms: int | None) -> AgentResult:
        chosen, agent = self._resolved.options.agent, controls.agent
        if chosen is None or agent is None:
            raise RunraError(
                "INVALID_CONFIG",
                "no agent is configured: give agent={'provider': …} to Runra, or set it in runra.config.json",
                details={"field": "agent"},
            )
        config = chosen.config

        async def work() -> AgentResult:
            current_run.set(run)  # in this task's own context
            began = time.monotonic()
            try:
                await agent.initialize(config)
                async with self._sandbox_for(params, agent, timeout_ms) as sandbox:
                    result = await work_on(agent, self._run_of(params, run, sandbox), timeout_ms, diff=params.diff)
            finally:
                controls.detach()
                await to_end(agent.dispose(), TERMINATE_S)
            took = result.total_duration_ms or int((time.monotonic() - began) * 1000)
            return result.model_copy(update={"run_id": run.id, "total_duration_ms": took})

        return await self._tasks.run(work(), f"runra-run {run.id}")

    def _run_of(self, params: StartParams, run: Run, sandbox: Sandbox) -> AgentRun:
        def emit(type: EventType, data: dict[str, Any]) -> Event:
            return self._session.emit(type, sandbox.id, data, run)

        if self._access is None:
            # Here rather than above: programs that only use sandboxes load no gateway.
            from runra.runtime.model_access import ModelAccess

            self._access = ModelAccess()
        return AgentRun(run, params.prompt, sandbox, self._llm, emit, params.session_id or "", self._access)

    @asynccontextmanager
    async def _sandbox_for(
        self, params: StartParams, agent: AgentAdapter, timeout_ms: int | None
    ) -> AsyncGenerator[Sandbox, None]:
        if params.sandbox_id is None:
            lifetimes = "timeout" in self.provider.capabilities
            given = params.sandbox_options
            options = for_a_run(self._resolved.values, given, agent, timeout_ms, lifetimes=lifetimes)
            async with await self._create(options, {}) as sandbox:
                yield sandbox
            return
        found = await self.get_sandbox(params.sandbox_id)
        if found is None:
            raise RunraError(
                "SANDBOX_NOT_FOUND",
                f"no sandbox {params.sandbox_id!r} at {self.provider.id!r}; leave sandbox_id out for a new one",
                details={"sandboxId": params.sandbox_id},
            )
        yield found

    # --- events and the end --------------------------------------------------------------------------------------

    def on(self, event: str, handler: Handler) -> Callable[[], None]:
        """Call `handler`, sync or async, with each event of a type (`exec.completed`), a topic (`sandbox.*`) or all
        (`*`), in order, apart from the run. Returns a function that takes it off again. Raises INVALID_REQUEST for an
        event there is none of."""
        return self._session.on(event, handler)

    async def dispose(self, timeout_ms: int = DISPOSE_MS) -> None:
        """End the runs and the sandboxes made here, hand the last events to handlers and exporters, and free
        everything, within `timeout_ms`. What could not be ended by then is named in the log."""
        if self._closed:
            return
        self._closed = True
        try:
            await to_end(self._dispose(time.monotonic() + timeout_ms / 1000), timeout_ms / 1000 + 5.0)
        except TimeoutError:
            _log.error("disposing took longer than %d ms; what was left is given up", timeout_ms)

    async def _dispose(self, deadline: float) -> None:
        def left() -> float:
            return max(0.5, deadline - time.monotonic())

        await self._tasks.close(left())
        ends = {id: asyncio.create_task(end()) for id, end in self._session.owned.items()}
        if ends:
            await asyncio.wait(ends.values(), timeout=left())
        for id, end in ends.items():
            if not end.done() or end.cancelled() or end.exception() is not None:
                _log.error("sandbox %s could not be ended and may still run: end it by its id", id)
            end.cancel()
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening}, timeout=1.0)
        await self._session.close(min(left(), 10.0))
        await gathered(*self._parts(left))

    def _parts(self, left: Callable[[], float]) -> list[Callable[[], Awaitable[None]]]:
        async def bounded(work: Awaitable[Any]) -> None:
            async with asyncio.timeout(left()):
                await work

        opening, llm, pipeline, access = self._opening, self._llm, self._pipeline, self._access
        parts: list[Callable[[], Awaitable[None]]] = []
        if pipeline is not None:
            parts.append(lambda: bounded(pipeline.close(left())))
        if access is not None:
            parts.append(lambda: bounded(access.close()))
        if llm is not None:
            parts.append(lambda: bounded(llm.dispose()))
        if opening is not None and opening.done() and not opening.cancelled() and opening.exception() is None:
            parts.append(lambda: bounded(self._session.provider.dispose()))
        return parts

    async def _open(self) -> None:
        """Connect, once, with the first call that needs it. One that failed is tried again by the next call."""
        if self._closed:
            raise RunraError("INVALID_STATE", "this Runra was disposed of; make another one", status=0)
        if self._opening is None or (
            self._opening.done() and (self._opening.cancelled() or self._opening.exception() is not None)
        ):
            self._opening = asyncio.ensure_future(self._connect())
        # Several calls may wait for it; one that is cancelled must not take it away from the others.
        await asyncio.shield(self._opening)

    async def _connect(self) -> None:
        chosen = self._resolved.options
        given = dict(chosen.sandbox.config)
        if chosen.sandbox.api_key is not None:
            given["apiKey"] = chosen.sandbox.api_key
        if chosen.sandbox.api_url is not None:
            given["apiUrl"] = chosen.sandbox.api_url
        provider = self._session.provider
        await provider.initialize(given)
        try:
            await self._connect_others()
        except BaseException:
            await provider.dispose()
            raise

    async def _connect_others(self) -> None:
        chosen = self._resolved.options
        if self._make_llm is not None and chosen.llm is not None and self._llm is None:
            llm = self._make_llm()
            await llm.initialize(chosen.llm.config)
            self._llm = llm
        if self._pipeline is not None:
            await self._pipeline.start()
            self._session.bus.attach(self._pipeline.offer, self._pipeline.named)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.dispose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} sandboxes of {self._session.provider.id!r}>"

    # --- providers of one's own ----------------------------------------------------------------------------------

    @staticmethod
    def register_sandbox_provider(id: str, factory: Callable[[], SandboxProvider]) -> None:
        """Know a sandbox provider by `id`, in this process, from now on. A class is a factory."""
        SANDBOX_PROVIDERS.register(id, factory)

    @staticmethod
    def register_agent_adapter(id: str, factory: Callable[[], AgentAdapter]) -> None:
        """Know an agent by `id`."""
        AGENTS.register(id, factory)

    @staticmethod
    def register_llm_provider(id: str, factory: Callable[[], LLMProvider]) -> None:
        """Know a model provider by `id`."""
        LLMS.register(id, factory)

    @staticmethod
    def register_observability_exporter(id: str, factory: Callable[..., Exporter]) -> None:
        """Know an exporter by `id`."""
        EXPORTERS.register(id, factory)

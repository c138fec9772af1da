"""The agent `custom` without a program of the caller's: a model that is asked, uses tools, and is asked again."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from runra.errors import RunraError
from runra.ids import new_id
from runra.runtime.agents.conversing import Conversing
from runra.runtime.agents.hands import SandboxTools, Tool, ToolFailed, ToolOutput, own_tools
from runra.runtime.agents.hands.tool import MAX_OUTPUT
from runra.runtime.agents.loop.conversation import Conversation, window_of
from runra.runtime.agents.loop.metered import Metered
from runra.runtime.agents.options import LOOP_ABILITIES, AgentOptions, checked_options
from runra.runtime.agents.results import failed, spent
from runra.runtime.agents.transcripts.types import AgentEvent, answered, called, said
from runra.runtime.llms import types as llm
from runra.runtime.llms.failures import kind_of
from runra.runtime.sandboxes import shell
from runra.runtime.tasks import to_end
from runra.runtime.types import AgentResult

if TYPE_CHECKING:
    from runra.runtime.run import AgentRun

#: How many calls of tools are at work at once.
_AT_ONCE: Final = 8
#: How often in a row a model may find the conversation too long.
_SHORTENINGS: Final = 4
_SAVE_S: Final = 5.0

_PROMPT: Final = (
    "You work in a Linux sandbox, through the tools you are given. Your folder is {workdir}. Look before you change "
    "anything, call tools side by side where one does not need the other's result, and check your work. Nobody answers "
    "questions meanwhile: decide, and go on until the task is done. Then say in a few words what you did."
)
_PLAN: Final = (
    "\n\nYou can only read now. Change nothing: find out what has to be done, and end with a plan, step by step, that "
    "names the files."
)


class LoopOptions(AgentOptions):
    """`tools`: further tools of the caller's (see `own_tools`). `on_permission(tool, input)`: asked before each use of
    a tool (permissionMode prompt), async or sync (then in a thread). `context_tokens`: the model's window, else as it
    is known, else 128,000. `max_output_tokens`, `temperature`: the model's own when unset."""

    tools: list[Any] = Field(default_factory=list)
    on_permission: Any = None
    context_tokens: int | None = Field(None, ge=1000)
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)


class _Ended(Exception):
    """The work was ended from here: its kind of failure, and why."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class LoopAgent(Conversing):
    """One run of our tool loop: `initialize`, `start`, and meanwhile `send_message` and `stop`."""

    id = "custom"
    abilities = LOOP_ABILITIES
    tracks_files = True

    def __init__(self) -> None:
        super().__init__()
        self._options = LoopOptions()
        self._last = time.monotonic()

    @property
    def workdir(self) -> str | None:
        return self._options.workdir

    async def initialize(self, config: Mapping[str, Any]) -> None:
        self._options = options = checked_options(LoopOptions, self.id, config, LOOP_ABILITIES)
        own_tools(options.tools)
        if options.permission_mode == "prompt" and not callable(options.on_permission):
            raise RunraError(
                "INVALID_CONFIG",
                "agent.config: permissionMode prompt needs on_permission, a function of (tool, input) to say whether",
                details={"field": "agent.config.onPermission"},
            )

    async def start(self, run: AgentRun) -> AgentResult:
        options = self._options
        model = Metered(run, options.model, options.max_cost, options.max_turns, self.heard)
        work = _Work(self, run, options, model)
        try:
            async with asyncio.timeout(None if options.timeout_ms is None else options.timeout_ms / 1000) as limit:
                return await self._done(work)
        except TimeoutError:
            if not limit.expired():
                raise
            return work.failed("timeout", f"the agent worked longer than timeout_ms {options.timeout_ms}")
        finally:
            self.ended()

    def heard(self) -> None:
        self._last = time.monotonic()

    async def _done(self, work: _Work) -> AgentResult:
        try:
            try:
                await self._race(work.set_up(), self._options.setup_timeout_ms, "setup")
                summary = await self._race(work.work(), self._options.silence_timeout_ms, "silence")
            finally:
                await work.close()
        except _Ended as ended:
            return work.failed(ended.kind, str(ended))
        except RunraError as error:
            return work.failed(kind_of(error) or "failed", error.message)
        return work.result(summary)

    async def _race(self, work: Coroutine[Any, Any, str], silence_ms: int, kind: str) -> str:
        """The work, until it is stopped or nothing was heard for too long; then it is cancelled, and waited for."""
        self.heard()
        task = asyncio.create_task(work, name="runra-agent-loop")
        stop = asyncio.create_task(self._stopped.wait())
        try:
            while not task.done():
                left = self._last + silence_ms / 1000 - time.monotonic()
                if left <= 0:
                    what = "silence_timeout_ms" if kind == "silence" else "setup_timeout_ms"
                    raise _Ended(kind, f"nothing happened for {what} {silence_ms}")
                await asyncio.wait({task, stop}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if stop.done() and not task.done():
                    raise _Ended("stopped", "the agent was stopped")
            return task.result()
        finally:
            stop.cancel()
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # seen: what ended the run says more


class _Work:
    """What one run has under way."""

    def __init__(self, agent: LoopAgent, run: AgentRun, options: LoopOptions, model: Metered) -> None:
        self._agent = agent
        self._run = run
        self._options = options
        self._model = model
        self._session = run.session_id or new_id("ses")
        self._home = ""
        self._conversation: Conversation | None = None
        self._permits = asyncio.Lock()
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._warnings: list[str] = []
        plan = options.permission_mode == "plan"
        window = options.context_tokens
        # One result may fill a quarter of a small window, at four characters a token.
        limit = MAX_OUTPUT if window is None else min(MAX_OUTPUT, max(1000, window))
        self._hands = SandboxTools(run.sandbox, workdir=options.workdir, env=options.env, limit=limit)
        # What tools of the caller's do is not known: none in a plan.
        own: list[Tool] = [] if plan else own_tools(options.tools, run)
        self._tools = {tool.name: tool for tool in [*self._hands.offered(options.given_tools), *own]}
        prompt = _PROMPT.format(workdir=self._hands.workdir) + (_PLAN if plan else "")
        self._prompt = f"{prompt}\n\n{options.system_prompt}" if options.system_prompt else prompt
        self._offered = [
            llm.Tool(name=tool.name, description=tool.description, input_schema=tool.input_schema)
            for tool in self._tools.values()
        ]

    async def set_up(self) -> str:
        """The conversation, an earlier one where a session is given, and a sandbox that is ready for it."""
        await self._model.ready()
        script = shell.argv('printf "%s" "${HOME:-/root}"')
        done = await self._run.sandbox.exec(script, cwd=self._options.workdir, check=True)
        self._home = done.stdout if done.stdout.startswith("/") and done.stdout != "/" else "/root"
        earlier: Sequence[llm.Message] = ()
        if self._run.session_id:
            earlier = await Conversation.load(self._run.sandbox, self._home, self._session)
        overhead = len(self._prompt) + sum(len(tool.model_dump_json()) for tool in self._offered)
        window = self._options.context_tokens or window_of(self._model.target)
        self._conversation = Conversation(window, overhead, earlier)
        return ""

    async def work(self) -> str:
        """Ask, use tools, ask again; the last words."""
        talk = self._conversation
        assert talk is not None
        talk.say(self._run.prompt)
        while True:
            while (message := self._agent.next_message()) is not None:
                talk.say(message)
            response = await self._asked(talk)
            talk.heard(response)
            for block in response.blocks:
                if isinstance(block, llm.ThinkingBlock):
                    self._tell(*said("agent.thinking", block.text))
                elif isinstance(block, llm.TextBlock):
                    self._tell(*said("agent.message", block.text))
            calls = [block for block in response.blocks if isinstance(block, llm.ToolUseBlock)]
            if calls:
                talk.results(await self._use(calls))
            elif (message := self._agent.next_message()) is not None:
                talk.say(message)
            else:
                if response.stop_reason == "max_tokens":
                    self._warnings.append("the last answer was cut at the model's longest output")
                self._agent.ended()
                return response.content.strip()

    async def close(self) -> None:
        """Keep the conversation, and leave nothing else behind."""
        await self._hands.close()
        if self._conversation is None or not self._conversation.messages:
            return
        try:
            await to_end(self._conversation.save(self._run.sandbox, self._home, self._session), _SAVE_S)
        except (RunraError, TimeoutError) as error:
            self._warnings.append(f"the conversation was not kept: {str(error) or 'it took too long'}")
            self._session = ""

    # --- the model ------------------------------------------------------------------------------------------------

    async def _asked(self, talk: Conversation) -> llm.LLMResponse:
        talk.fit()
        for attempt in range(_SHORTENINGS):
            request = llm.LLMRequest(
                messages=list(talk.messages),
                tools=self._offered,
                system_prompt=self._prompt,
                temperature=self._options.temperature,
                max_tokens=self._options.max_output_tokens,
            )
            try:
                return await self._model.ask(request)
            except RunraError as error:
                last = attempt == _SHORTENINGS - 1
                if kind_of(error) != "context_too_long" or last or not talk.too_long():
                    raise
        raise AssertionError("the last attempt returns or raises")

    # --- tools ----------------------------------------------------------------------------------------------------

    async def _use(self, calls: Sequence[llm.ToolUseBlock]) -> list[llm.ToolResultBlock]:
        """All of them side by side; what came of them in their order."""
        for call in calls:
            self._tell(called(call.id, call.name, call.input))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(call)) for call in calls]
        except* RunraError as errors:  # the sandbox's own trouble; the others were cancelled
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, call: llm.ToolUseBlock) -> llm.ToolResultBlock:
        async with self._at_once:
            output = await self._output(call)
        self._tell(answered(call.id, call.name, output.text, failed=output.is_error, exit_code=output.exit_code))
        # A command's exit code is in its text, and no failure of the tool.
        return llm.ToolResultBlock(
            id=call.id, content=output.text, is_error=output.is_error and output.exit_code is None
        )

    async def _output(self, call: llm.ToolUseBlock) -> ToolOutput:
        tool = self._tools.get(call.name)
        if tool is None:
            names = ", ".join(self._tools) or "none at all"
            return ToolOutput(f"There is no tool {call.name[:80]!r}; there is {names}.", is_error=True)
        if self._options.permission_mode == "prompt" and not await self._permitted(call):
            return ToolOutput("The user did not allow this call. Go another way, or stop.", is_error=True)
        try:
            return await tool.call(call.input)
        except ToolFailed as error:
            return ToolOutput(str(error), is_error=True)

    async def _permitted(self, call: llm.ToolUseBlock) -> bool:
        ask = self._options.on_permission
        async with self._permits:  # one question after the other: somebody may have to read them
            if inspect.iscoroutinefunction(ask):
                answer = await ask(call.name, call.input)
            else:
                answer = await asyncio.to_thread(ask, call.name, call.input)
                if inspect.isawaitable(answer):
                    answer = await answer
        return answer is True

    def _tell(self, *events: AgentEvent) -> None:
        for event in events:
            self._agent.heard()
            self._run.emit(event.type, event.data)

    # --- results --------------------------------------------------------------------------------------------------

    def result(self, summary: str) -> AgentResult:
        update = {"success": True, "summary": summary, "session_id": self._session}
        return spent(self._model.door, self._noted()).model_copy(update=update)

    def failed(self, kind: str, why: str) -> AgentResult:
        made = failed(kind, why, self._model.door, warnings=self._noted())
        return made.model_copy(update={"session_id": self._session if self._conversation is not None else ""})

    def _noted(self) -> list[str]:
        shortened = self._conversation.shortened if self._conversation is not None else 0
        if not shortened:
            return self._warnings
        return [*self._warnings, f"the conversation was shortened {shortened} times to fit the model's window"]

"""Running commands: the answer collected, streamed or left behind; and the events that tell of each."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import posixpath
import shlex
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from runra.contract import MAX_COMMAND_BYTES, ExecRequest, ExecutionResult
from runra.errors import RunraError
from runra.events import EventLog, EventType
from runra.node.agent.types import AgentLost, ExecSpec, Exit, ProcessStatus
from runra.server.faults import bad_request
from runra.server.follow import Collector, Ended, Followed, Listener, Stream
from runra.server.measure import Measures
from runra.server.nodeport import AgentLink, AgentProcess, Sandbox

_log = logging.getLogger("runra.server")

#: How much longer than a command's own timeout we wait for the agent to say that it ended.
_MARGIN_S: Final = 30.0
_TICK_S: Final = 5.0
#: How long a sandbox whose agent has gone may take to be called terminated.
_ENDING_S: Final = 1.0
#: How much of a command an event carries.
_TOLD: Final = 1000
#: How many idempotency keys of executes, and how many processes killed by the OOM killer, are kept in mind.
_REMEMBERED: Final = 10_000

#: Adds the listeners to a command that has just started.
Begin = Callable[[Followed], Awaitable[object]]
#: What a terminal runs when the caller names nothing: the sandbox's best shell.
SHELL: Final = "if command -v bash >/dev/null; then exec bash; else exec sh; fi"


def check_length(request: ExecRequest) -> None:
    """COMMAND_TOO_LONG beyond 1 MiB of UTF-8, for `argv` in total."""
    if request.command is not None:
        size = len(request.command.encode()) if len(request.command) > MAX_COMMAND_BYTES // 4 else 0
    else:
        size = sum(len(word.encode()) for word in request.argv or ())
    if size > MAX_COMMAND_BYTES:
        raise RunraError(
            "COMMAND_TOO_LONG",
            f"the command has {size} bytes, at most {MAX_COMMAND_BYTES} are possible; "
            "write it to a file with PUT …/files and run that",
            details={"bytes": size, "maximum": MAX_COMMAND_BYTES},
        )


def spec_of(sandbox: Sandbox, request: ExecRequest, tag: str) -> ExecSpec:
    """The request as the agent wants it: absolute folder, whole environment, the timeout that really applies."""
    config = sandbox.config
    limited = not request.background or "timeout_ms" in request.model_fields_set
    return ExecSpec(
        command=request.command,
        argv=tuple(request.argv or ()),
        cwd=posixpath.join(config.workdir, request.cwd) if request.cwd else config.workdir,
        env={**sandbox.env, **request.env} if request.env else sandbox.env,
        user=request.user or "",
        timeout_ms=request.timeout_ms if limited else None,
        stdin=request.stdin is not None or request.background,
        tag=tag,
    )


class Tale:
    """What is told of one command: that it started, and once how it ended. A retry that only attached tells nothing."""

    def __init__(self, home: Executions, sandbox: Sandbox, process: AgentProcess, command: str, *, ours: bool) -> None:
        self._home = home
        self._sandbox = sandbox
        self._pid = process.pid
        self._command = command
        self._ours = ours
        self._oom_before = sandbox.oom_kills()

    def start(self) -> None:
        if self._ours:
            self._home.publish("exec.started", self._sandbox, {"command": self._command, "pid": self._pid})

    def end(self, exit: Exit) -> Ended:
        oom = self._home.was_oom(self._sandbox.id, self._pid)
        if self._ours and not exit.timed_out and (exit.signal == "SIGKILL" or exit.code == 137):
            oom = self._sandbox.oom_kills() > self._oom_before
        result = ExecutionResult(
            stdout="", stderr="", exit_code=exit.code, duration_ms=exit.duration_ms, signal=exit.signal, oom=oom
        )
        if self._ours:
            if oom:
                self._home.note_oom(self._sandbox.id, self._pid)
            self._home.measures.executions["timed_out" if exit.timed_out else "exited"] += 1
            self._home.publish(
                "exec.timed_out" if exit.timed_out else "exec.completed",
                self._sandbox,
                {
                    "command": self._command,
                    "pid": self._pid,
                    "exitCode": exit.code,
                    "signal": exit.signal,
                    "durationMs": exit.duration_ms,
                    "oom": oom,
                },
            )
        return Ended(result, exit.timed_out)

    def fail(self, error: RunraError) -> None:
        if self._ours:
            self._home.failed(self._sandbox, self._command, error, self._pid)


class Executions:
    """Every command this server started and has not yet seen end."""

    def __init__(self, events: EventLog, measures: Measures, collect_bytes: int) -> None:
        self.measures = measures
        self._events = events
        self._collect_bytes = collect_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self._followed: dict[tuple[str, int], Followed] = {}
        # By idempotency tag, from before the command starts: two calls at once must not both ask the agent.
        self._tagged: dict[tuple[str, str], asyncio.Future[Followed]] = {}
        # Processes somebody is about to attach to.
        self._finding: dict[tuple[str, int], asyncio.Future[Followed]] = {}
        self._bodies: OrderedDict[str, str] = OrderedDict()
        # Tags of commands that did start: one the agent has forgotten since must not start again.
        self._begun: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._ooms: OrderedDict[tuple[str, int], None] = OrderedDict()

    async def close(self) -> None:
        """Let go of the commands; they run on in their sandboxes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what is remembered and told --------------------------------------------------------------------------

    def publish(self, type: EventType, sandbox: Sandbox, data: dict[str, Any]) -> None:
        self._events.publish(type, sandbox.id, data, organization_id=sandbox.organization_id)

    def failed(self, sandbox: Sandbox, told: str, error: RunraError, pid: int | None = None) -> None:
        self.measures.executions["error"] += 1
        data = {"command": told, "code": error.code, "message": error.message}
        self.publish("exec.error", sandbox, data if pid is None else {**data, "pid": pid})

    def note_oom(self, sandbox_id: str, pid: int) -> None:
        self._ooms[sandbox_id, pid] = None
        if len(self._ooms) > _REMEMBERED:
            self._ooms.popitem(last=False)

    def was_oom(self, sandbox_id: str, pid: int) -> bool:
        return (sandbox_id, pid) in self._ooms

    def tag(self, key_id: str, sandbox: Sandbox, idempotency_key: str | None, request: ExecRequest) -> str:
        """The agent's tag for a retried execute: it attaches to the process of the first call instead of running
        the command again. The same key with another body is an error, as far back as this server remembers."""
        if idempotency_key is None:
            return ""
        # Hashed: the agent takes short tags only.
        tag = hashlib.sha256(f"{key_id}:{idempotency_key}".encode()).hexdigest()[:40]
        place = f"{sandbox.id}:{tag}"
        body = hashlib.sha256(request.model_dump_json(exclude={"background"}).encode()).hexdigest()
        if self._bodies.setdefault(place, body) != body:
            raise bad_request(
                "Idempotency-Key", "was used with another body in this sandbox; use a new key", idempotency_key
            )
        self._bodies.move_to_end(place)
        if len(self._bodies) > _REMEMBERED:
            self._bodies.popitem(last=False)
        return tag

    # --- running ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(self, sandbox: Sandbox, link: AgentLink, process: AgentProcess) -> AsyncIterator[Followed]:
        """The process as one that listeners find; let go at the end, alive or not."""
        followed = Followed(link, process)
        place = sandbox.id, process.pid
        self._followed[place] = followed
        try:
            yield followed
        finally:
            if self._followed.get(place) is followed:
                del self._followed[place]
            # Not `process`: a listener may have made the reader swap it.
            followed.process.detach()

    async def _under_way(self, sandbox: Sandbox, tag: str, listener: Listener | None) -> Followed | None:
        """The command of an earlier call with this tag, while it runs, and the listener added to it. None means: the
        tag is now the caller's to start, and `_run` settles it."""
        if not tag:
            return None
        place = sandbox.id, tag
        while (first := self._tagged.get(place)) is not None:
            followed = await asyncio.shield(first)
            if not followed.done and (listener is None or await followed.listen(listener)):
                return followed
            # It ends this very moment: once its owner has let go, the agent remembers it.
            await asyncio.sleep(0.005)
        self._claim(place)
        return None

    def _claim(self, place: tuple[str, str]) -> asyncio.Future[Followed]:
        claimed: asyncio.Future[Followed] = asyncio.get_running_loop().create_future()
        # Whether anybody waits or not, a failure is reported by the call that started the command.
        claimed.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._tagged[place] = claimed
        return claimed

    async def _run(self, sandbox: Sandbox, spec: ExecSpec, stdin: str | None, begin: Begin) -> Ended:
        """Start the command and read it to its end; `begin` adds the listeners once it has started."""
        if not spec.tag:
            return await self._run_once(sandbox, spec, stdin, begin)
        place = sandbox.id, spec.tag
        claimed = self._tagged[place]

        async def settle(followed: Followed) -> None:
            claimed.set_result(followed)
            await begin(followed)

        try:
            with _reported(claimed, again=True):
                return await self._run_once(sandbox, spec, stdin, settle)
        finally:
            del self._tagged[place]

    async def _run_once(self, sandbox: Sandbox, spec: ExecSpec, stdin: str | None, begin: Begin) -> Ended:
        command = (spec.command if spec.command is not None else shlex.join(spec.argv))[:_TOLD]
        async with sandbox.use() as link:
            try:
                await self._refuse_forgotten(sandbox, link, spec.tag)
                process = await link.exec(spec)
                self._note_begun(sandbox, spec.tag)
            except RunraError as error:
                self.failed(sandbox, command, error)
                raise await lost(sandbox, error) from error
            # A process that runs already has somebody who tells of it; one that outlived a server was adopted.
            tale = Tale(self, sandbox, process, command, ours=not process.reused)
            async with self._held(sandbox, link, process) as followed:
                tale.start()
                feeder = None
                if stdin is not None and not process.reused:
                    # Beside the output: a command may fill our pipe before it has read all of its own.
                    feeder = asyncio.get_running_loop().create_task(_feed(followed, stdin))
                try:
                    await begin(followed)
                    async with _deadline(sandbox, spec.timeout_ms):
                        return await followed.drive(tale.end)
                except RunraError as error:
                    tale.fail(error)
                    raise await lost(sandbox, error) from error
                finally:
                    if feeder is not None:
                        feeder.cancel()
                        await asyncio.gather(feeder, return_exceptions=True)

    def _note_begun(self, sandbox: Sandbox, tag: str) -> None:
        if tag:
            self._begun[sandbox.id, tag] = None
            if len(self._begun) > _REMEMBERED:
                self._begun.popitem(last=False)

    async def _refuse_forgotten(self, sandbox: Sandbox, link: AgentLink, tag: str) -> None:
        """A retry never runs a command twice: INVALID_STATE when it ran and the sandbox kept its end no longer (it
        keeps the latest 64)."""
        if (sandbox.id, tag) in self._begun and not any(status.tag == tag for status in await link.processes()):
            raise RunraError(
                "INVALID_STATE",
                "the command of this Idempotency-Key has run, and its result is no longer kept; "
                "use a new key to run it again",
                details={"reason": "result_forgotten"},
            )

    async def collect(self, sandbox: Sandbox, request: ExecRequest, tag: str) -> ExecutionResult:
        """Run to the end and answer in one piece. EXECUTION_TIMEOUT carries what came until then."""
        collector = Collector(self._collect_bytes)
        spec = spec_of(sandbox, request, tag)
        running = await self._under_way(sandbox, tag, collector)
        if running is not None:
            ended = await self._join(running, collector)
        else:
            ended = await self._run(sandbox, spec, request.stdin, lambda it: it.listen(collector))
        # A copy: a retry may be answering with the same end.
        collected = collector.collected
        result = ended.result.model_copy(
            update={
                "stdout": collected.text("stdout"),
                "stderr": collected.text("stderr"),
                "truncated": collected.truncated,
            }
        )
        if ended.timed_out:
            raise timeout_error(request.timeout_ms, result)
        return result

    async def _join(self, running: Followed, collector: Collector) -> Ended:
        """A retry while the first call's command runs: it hears it from the beginning."""
        try:
            how = await collector.wait()
        finally:
            running.leave(collector)
        if isinstance(how, RunraError):
            raise how
        return how

    @asynccontextmanager
    async def stream(self, sandbox: Sandbox, request: ExecRequest, tag: str) -> AsyncIterator[tuple[int, Stream]]:
        """Run for a streaming client: the process's id and its output. The command outlives the client."""
        spec = spec_of(sandbox, request, tag)
        # Closed on every path, also when the client goes before the command has started: a stream that is open and
        # unread would hold the command up.
        with contextlib.closing(Stream()) as stream:
            running = await self._under_way(sandbox, tag, stream)
            if running is None:
                running = await self._start(sandbox, spec, request.stdin, lambda it: it.listen(stream))
            yield running.pid, stream

    async def background(self, sandbox: Sandbox, request: ExecRequest, tag: str) -> AgentProcess:
        """Run for nobody in particular; its output is read and dropped here, the agent keeps the latest of it."""
        spec = spec_of(sandbox, request, tag)
        running = await self._under_way(sandbox, tag, None)
        if running is None:
            running = await self._start(sandbox, spec, request.stdin, _nobody)
        return running.process

    @asynccontextmanager
    async def terminal(self, sandbox: Sandbox, spec: ExecSpec) -> AsyncIterator[tuple[Followed, Stream]]:
        """A terminal for a client; its command outlives the client."""
        with contextlib.closing(Stream()) as stream:
            followed = await self._start(sandbox, spec, None, lambda it: it.listen(stream))
            try:
                yield followed, stream
            finally:
                followed.leave(stream)

    @asynccontextmanager
    async def attached(self, sandbox: Sandbox, pid: int, offset: int) -> AsyncIterator[tuple[Followed, Stream]]:
        """Listen to a process from an offset on, whether this server started it, adopted it, or it has ended."""
        with contextlib.closing(Stream(offset)) as stream:
            followed = await self._find(sandbox, pid, offset, stream)
            try:
                yield followed, stream
            finally:
                followed.leave(stream)

    async def find(self, sandbox: Sandbox, pid: int) -> Followed:
        """The process, to write to its stdin."""
        return await self._find(sandbox, pid, 0, None)

    async def _find(self, sandbox: Sandbox, pid: int, offset: int, stream: Stream | None) -> Followed:
        place = sandbox.id, pid
        while True:
            followed = self._followed.get(place)
            if followed is not None and not followed.done and (stream is None or await followed.listen(stream)):
                return followed
            # Two calls at once must not both attach: the second would take the output from the first.
            first = self._finding.get(place)
            # One that is done has not been forgotten yet; to await it would not let go of the loop, now or ever.
            if first is None or first.done():
                break
            await asyncio.shield(first)
        found: asyncio.Future[Followed] = asyncio.get_running_loop().create_future()
        self._look_for(place, found)
        self._spawn(self._follow(sandbox, pid, offset, stream, found))
        return await asyncio.shield(found)

    def _look_for(self, place: tuple[str, int], found: asyncio.Future[Followed]) -> None:
        self._finding[place] = found

        def forget(done: asyncio.Future[Followed]) -> None:
            if self._finding.get(place) is done:  # and not another's, that began since
                del self._finding[place]
            if not done.cancelled():
                done.exception()  # whoever waits has it; nobody may be waiting

        found.add_done_callback(forget)

    async def _follow(
        self, sandbox: Sandbox, pid: int, offset: int, stream: Stream | None, found: asyncio.Future[Followed]
    ) -> None:
        """Read a process that nobody here reads: it has ended, or was started in another life of this server."""
        with _reported(found):
            async with sandbox.use() as link:
                process = await link.attach(pid, offset=offset)
                async with self._held(sandbox, link, process) as followed:
                    if stream is not None:
                        await followed.listen(stream)
                    found.set_result(followed)
                    await followed.drive(Tale(self, sandbox, process, process.command[:_TOLD], ours=False).end)

    async def _start(self, sandbox: Sandbox, spec: ExecSpec, stdin: str | None, begin: Begin) -> Followed:
        """Run beside the call that asked, so that its client may go; returns once the command has started."""
        found: asyncio.Future[Followed] = asyncio.get_running_loop().create_future()

        async def started(followed: Followed) -> None:
            await begin(followed)
            found.set_result(followed)

        async def run() -> None:
            with _reported(found):
                await self._run(sandbox, spec, stdin, started)

        self._spawn(run())
        return await asyncio.shield(found)

    async def adopt(self, sandbox: Sandbox) -> None:
        """After a restart: see the commands that outlived the last server to their ends. When this returns, a retry of
        any of them finds it under way."""
        try:
            async with sandbox.use() as link:
                alive = [status for status in await link.processes() if status.exit is None]
        except RunraError as error:
            _log.warning("sandbox %s: its commands are not followed: %s", sandbox.id, error)
            return
        for status in alive:
            claimed = self._claim((sandbox.id, status.tag)) if status.tag else None
            found: asyncio.Future[Followed] = asyncio.get_running_loop().create_future()
            self._look_for((sandbox.id, status.pid), found)
            self._spawn(self._see_out(sandbox, status, claimed, found))

    async def _see_out(
        self,
        sandbox: Sandbox,
        status: ProcessStatus,
        claimed: asyncio.Future[Followed] | None,
        found: asyncio.Future[Followed],
    ) -> None:
        try:
            with _reported(claimed), _reported(found, again=True):
                async with sandbox.use() as link:
                    process = await link.attach(status.pid)
                    async with self._held(sandbox, link, process) as followed:
                        found.set_result(followed)
                        if claimed is not None:
                            claimed.set_result(followed)
                        await followed.drive(Tale(self, sandbox, process, status.command[:_TOLD], ours=True).end)
        finally:
            if claimed is not None:
                del self._tagged[sandbox.id, status.tag]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a command could not be followed", exc_info=error)


async def _nobody(_: Followed) -> None:
    """Begin without a listener."""


@contextmanager
def _reported(waiting: asyncio.Future[Followed] | None, *, again: bool = False) -> Iterator[None]:
    """Give a failure before the start to whoever waits (later ones have reached the listeners); `again` raises a
    RunraError here as well."""
    try:
        yield
    except RunraError as error:
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
        if again:
            raise
    except BaseException:
        if waiting is not None and not waiting.done():
            waiting.set_exception(
                RunraError("INTERNAL_ERROR", "the server stopped, or failed, before the command began", retryable=True)
            )
        raise


def timeout_error(timeout_ms: int | None, result: ExecutionResult) -> RunraError:
    return RunraError(
        "EXECUTION_TIMEOUT",
        f"the command ran longer than timeoutMs {timeout_ms} and was killed with all it started; "
        "raise timeoutMs (at most 300000), or run it with background: true",
        details={
            "timeoutMs": timeout_ms,
            "durationMs": result.duration_ms,
            "stdout": result.stdout,
            "stderr": result.stderr,
            "truncated": result.truncated,
        },
    )


async def lost(sandbox: Sandbox, error: RunraError) -> RunraError:
    """A connection that ended because the sandbox did is no failure of ours: say what became of the sandbox."""
    if not isinstance(error, AgentLost):
        return error
    # A sandbox that ends loses its agent a moment before it is called terminated.
    deadline = asyncio.get_running_loop().time() + _ENDING_S
    while (info := sandbox.info()).state != "terminated":
        if asyncio.get_running_loop().time() > deadline:
            return error
        await asyncio.sleep(0.01)
    return RunraError(
        "INVALID_STATE",
        f"sandbox {info.id} was terminated (reason {info.termination_reason}) before this call ended",
        details={"sandboxId": info.id, "state": info.state, "terminationReason": info.termination_reason},
    )


async def _feed(followed: Followed, text: str) -> None:
    try:
        await followed.write(text.encode())
        await followed.close_stdin()
    except RunraError as error:
        # A command may end, or close its stdin, before it has read everything: its own business, as in a shell.
        _log.debug("process %d did not take all of its stdin: %s", followed.pid, error)


@asynccontextmanager
async def _deadline(sandbox: Sandbox, timeout_ms: int | None) -> AsyncIterator[None]:
    """Our own limit, should the agent never say that a command ended. Like the command's, it stands still while
    the sandbox is paused. A command without a timeout has none: its stream has heartbeats instead."""
    if timeout_ms is None:
        yield
        return
    loop = asyncio.get_running_loop()
    left = timeout_ms / 1000 + _MARGIN_S
    timer: asyncio.TimerHandle | None = None

    def tick() -> None:
        nonlocal left, timer
        if sandbox.info().state != "paused":
            left -= _TICK_S
        if left <= 0:
            limit.reschedule(loop.time())
        else:
            timer = loop.call_later(_TICK_S, tick)

    timer = loop.call_later(_TICK_S, tick)
    try:
        async with asyncio.timeout(None) as limit:
            yield
    except TimeoutError:
        raise AgentLost(
            f"the sandbox did not say how the command ended {_MARGIN_S:.0f} s after its timeout; "
            "it may be stuck: see GET …/processes, or terminate it"
        ) from None
    finally:
        timer.cancel()

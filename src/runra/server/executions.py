"""Running commands: the answer collected, streamed or left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from runra.contract import ExecRequest, ExecutionResult
from runra.errors import RunraError
from runra.events import EventLog
from runra.node.agent.types import ExecSpec, ProcessStatus
from runra.server.commands import spec_of, timeout_error
from runra.server.follow import Collector, Ended, Followed, Listener, Stream
from runra.server.measure import Measures
from runra.server.nodeport import AgentLink, AgentProcess, Sandbox
from runra.server.patience import deadline, lost
from runra.server.tags import Tags
from runra.server.telling import TOLD, Tale, Teller

_log = logging.getLogger("runra.server")

#: Adds the listeners to a command that has just started.
Begin = Callable[[Followed], Awaitable[object]]


class Executions:
    """Every command this server started and has not yet seen end."""

    def __init__(self, events: EventLog, measures: Measures, collect_bytes: int) -> None:
        self.teller = Teller(events, measures)
        self.tags = Tags()
        self._collect_bytes = collect_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self._followed: dict[tuple[str, int], Followed] = {}
        # By idempotency tag, from before the command starts: two calls at once must not both ask the agent.
        self._tagged: dict[tuple[str, str], asyncio.Future[Followed]] = {}
        # Processes somebody is about to attach to.
        self._finding: dict[tuple[str, int], asyncio.Future[Followed]] = {}

    async def close(self) -> None:
        """Let go of the commands; they run on in their sandboxes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- running ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(
        self, sandbox: Sandbox, link: AgentLink, process: AgentProcess, tale: Tale | None = None
    ) -> AsyncIterator[Followed]:
        """The process as one that listeners find, and the tale of it; let go at the end, alive or not."""
        followed = Followed(link, process, tale.witness() if tale is not None else None)
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
        command = (spec.command if spec.command is not None else shlex.join(spec.argv))[:TOLD]
        async with sandbox.use() as link:
            try:
                await self.tags.refuse_forgotten(sandbox, link, spec.tag)
                process = await link.exec(spec)
                self.tags.note_begun(sandbox, spec.tag)
            except RunraError as error:
                self.teller.failed(sandbox, command, error)
                raise await lost(sandbox, error) from error
            # A process that runs already has somebody who tells of it; one that outlived a server was adopted.
            tale = Tale(self.teller, sandbox, process, command, ours=not process.reused)
            async with self._held(sandbox, link, process, tale) as followed:
                tale.start()
                feeder = None
                if stdin is not None and not process.reused:
                    # Beside the output: a command may fill our pipe before it has read all of its own.
                    feeder = asyncio.get_running_loop().create_task(_feed(followed, stdin))
                try:
                    await begin(followed)
                    async with deadline(sandbox, spec.timeout_ms):
                        return await followed.drive(tale.end)
                except RunraError as error:
                    tale.fail(error)
                    raise await lost(sandbox, error) from error
                finally:
                    if feeder is not None:
                        feeder.cancel()
                        await asyncio.gather(feeder, return_exceptions=True)

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
                    await followed.drive(Tale(self.teller, sandbox, process, process.command[:TOLD], ours=False).end)

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
                    tale = Tale(self.teller, sandbox, process, status.command[:TOLD], ours=True)
                    async with self._held(sandbox, link, process, tale) as followed:
                        found.set_result(followed)
                        if claimed is not None:
                            claimed.set_result(followed)
                        await followed.drive(tale.end)
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


async def _feed(followed: Followed, text: str) -> None:
    try:
        await followed.write(text.encode())
        await followed.close_stdin()
    except RunraError as error:
        # A command may end, or close its stdin, before it has read everything: its own business, as in a shell.
        _log.debug("process %d did not take all of its stdin: %s", followed.pid, error)

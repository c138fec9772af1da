"""The base of providers whose back end has no timers of ours: lifetime, idle time and auto-resume are kept here."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from runra.errors import RunraError
from runra.runtime.sandboxes.base import BaseProvider
from runra.runtime.sandboxes.ledger import Ledger
from runra.runtime.sandboxes.lifetimes import Life, Lifetimes
from runra.runtime.sandboxes.running import Attached, Running
from runra.runtime.sandboxes.terminals import AttachedTerminal, Resize
from runra.runtime.tasks import to_end
from runra.runtime.types import ExecuteOptions

_log = logging.getLogger("runra.runtime")

#: What resuming may take at most, in seconds: a busy back end is asked again for a minute.
_WAKE_S: Final = 180.0


class TimedProvider(BaseProvider):
    """Pauses what is idle, ends what has run its time, and resumes what wants that when it is used.

    The back end's own verbs are `_freeze`, `_thaw` and `_destroy`; `_is_paused` asks it, and `_found` finds a sandbox
    this process has not met yet, raising SANDBOX_NOT_FOUND.
    """

    reports_life = True

    @abstractmethod
    async def _freeze(self, id: str) -> None: ...

    @abstractmethod
    async def _thaw(self, id: str) -> None: ...

    async def _thawed(self, life: Life) -> None:
        """What must hold again for one that runs again. When it fails, it is paused again."""

    @abstractmethod
    async def _destroy(self, id: str) -> None:
        """End it, and forget it in `_lifetimes`; one that is gone is fine."""

    @abstractmethod
    async def _is_paused(self, id: str) -> bool: ...

    @abstractmethod
    async def _found(self, id: str) -> Life: ...

    def _watch(self, ledger: Ledger) -> None:
        """Begin; before anything else."""
        self._ledger = ledger
        self._lifetimes = Lifetimes(ledger, self._time_over, self._idle)
        self._background: set[Running] = set()
        self._terminals: set[AttachedTerminal] = set()

    async def _unwatch(self) -> None:
        for terminal in list(self._terminals):
            await terminal.close()
        for running in list(self._background):
            await running.abandon()
        await self._lifetimes.close()

    async def pause(self, id: str) -> None:
        life = await self._met(id)
        async with life.turn:
            await self._stop(life, "user")

    async def resume(self, id: str) -> None:
        life = await self._met(id)
        if not life.paused and await self._is_paused(id):  # by another process
            life.stop_clock()
        await self._wake(life)

    async def _end(self, life: Life, reason: str) -> None:
        ran = life.total_ms()
        await self._destroy(life.id)
        self.report("sandbox.terminated", life.id, {"reason": reason, "totalRuntimeMs": ran})

    async def _met(self, id: str) -> Life:
        life = self._lifetimes.get(id)
        if life is None:
            return await self._found(id)
        self._lifetimes.sync(life)
        return life

    async def _stop(self, life: Life, reason: str) -> None:
        await self._freeze(life.id)
        if not life.paused:
            life.stop_clock()
            self._lifetimes.note(life)
            self.report("sandbox.paused", life.id, {"runtimeDurationMs": life.total_ms(), "reason": reason})

    async def _wake(self, life: Life) -> None:
        # To the end, even when the caller is cancelled: nothing may run without its clock and its policy.
        await to_end(self._woken(life), _WAKE_S)

    async def _woken(self, life: Life) -> None:
        async with life.turn:
            if not life.paused:
                return
            await self._thaw(life.id)
            paused_ms = int((time.monotonic() - life.since) * 1000)
            life.start_clock()
            self._lifetimes.note(life)
            try:
                await self._thawed(life)
            except BaseException:
                await self._refreeze(life)
                raise
            self.report("sandbox.resumed", life.id, {"pausedDurationMs": paused_ms})

    async def _refreeze(self, life: Life) -> None:
        try:
            await self._freeze(life.id)
        except RunraError as error:  # its clock runs: it ends with its time
            _log.warning("sandbox %s: resuming failed, and pausing it again: %s", life.id, error)
            return
        life.stop_clock()
        self._lifetimes.note(life)

    async def _idle(self, life: Life) -> None:
        async with life.turn:
            # Whoever begins to use it waits for this turn, see `_use`.
            if life.idle_left() != 0:
                return
            async with self._lifetimes.unused(life) as unused:
                if unused:
                    await self._stop(life, "idle")

    async def _time_over(self, life: Life) -> None:
        try:
            paused = await self._is_paused(life.id)
        except RunraError as error:
            if error.code != "SANDBOX_NOT_FOUND":
                raise
            self._lifetimes.remove(life.id)
            return
        self._lifetimes.sync(life)
        if paused:  # by another process
            if not life.paused:
                life.stop_clock()
            return
        if life.paused:  # noted as such, and resumed by somebody who notes nothing
            life.start_clock()
        if life.lifetime_left() != 0:  # another process paused it for a while
            return
        await self._end(life, "timeout")

    @asynccontextmanager
    async def _active(self, id: str) -> AsyncIterator[None]:
        """What happens inside needs a running sandbox, and is activity."""
        life = await self._use(id)
        try:
            yield
        finally:
            self._lifetimes.release(life)

    async def _use(self, id: str) -> Life:
        """Hold a sandbox that runs, or is resumed for it; the caller releases it."""
        life = await self._met(id)
        self._lifetimes.hold(life)
        try:
            await self._lifetimes.shared(life)
            async with life.turn:  # a pause under way is over, and none for being idle can begin any more
                paused = life.paused
            if paused and life.auto_resume:
                await self._wake(life)
            elif paused:
                if await self._is_paused(id):
                    raise RunraError(
                        "INVALID_STATE",
                        f"sandbox {id} is paused: resume it first, or create it with auto_resume",
                        details={"sandboxId": id, "state": "paused"},
                    )
                life.start_clock()  # resumed by another process
        except BaseException:
            self._lifetimes.release(life)
            raise
        return life

    async def _in_background(
        self, id: str, attach: Callable[[], Awaitable[Attached]], options: ExecuteOptions
    ) -> Running:
        """A process that keeps its sandbox from being idle for as long as it runs."""
        life = await self._use(id)
        try:
            attached = await attach()
        except BaseException:
            self._lifetimes.release(life)
            raise

        def ended() -> None:
            self._lifetimes.release(life)
            self._background.discard(running)

        running = Running(attached, options, ended)
        self._background.add(running)
        if options.stdin is not None:
            await running.send_stdin(options.stdin.encode() if isinstance(options.stdin, str) else options.stdin)
            await running.close_stdin()
        return running

    async def _in_terminal(self, id: str, attach: Callable[[], Awaitable[tuple[Attached, Resize]]]) -> AttachedTerminal:
        """A terminal that keeps its sandbox from being idle until it is closed."""
        life = await self._use(id)
        try:
            attached, resize = await attach()
        except BaseException:
            self._lifetimes.release(life)
            raise

        def ended() -> None:
            self._lifetimes.release(life)
            self._terminals.discard(terminal)

        terminal = AttachedTerminal(attached, resize, ended)
        self._terminals.add(terminal)
        return terminal

"""One command at E2B: what its handle calls back with, as a stream one can read."""

from __future__ import annotations

import asyncio
import shlex
from typing import Any, Final

from e2b import AsyncSandbox, CommandExitException, PtySize

from runra.errors import RunraError
from runra.ids import new_id
from runra.runtime.sandboxes import shell
from runra.runtime.sandboxes.e2b_errors import is_gone, mapped
from runra.runtime.sandboxes.envd import ended_as
from runra.runtime.sandboxes.terminals import TerminalOptions
from runra.runtime.types import ExecuteOptions
from runra.sdk.output import Stream

#: Pieces that wait for the reader; then E2B's stream waits, and with it the command.
_WAITING: Final = 64


class E2BExec:
    """A started command."""

    def __init__(self, sandbox: AsyncSandbox, options: ExecuteOptions, tag: str) -> None:
        self.pid = 0
        self._sandbox = sandbox
        self._options = options
        self._tag = tag
        self._queue: asyncio.Queue[tuple[Stream, bytes] | None] = asyncio.Queue(_WAITING)
        self._handle: Any = None
        self._waiting: asyncio.Task[Any] | None = None

    @classmethod
    async def start(cls, sandbox: AsyncSandbox, command: str, options: ExecuteOptions, *, stdin: bool) -> E2BExec:
        """Start a command. Raises what E2B's SDK raises."""
        tag = new_id("exec")
        it = cls(sandbox, options, tag)

        async def out(text: str) -> None:
            await it._queue.put(("stdout", text.encode(errors="surrogatepass")))

        async def err(text: str) -> None:
            await it._queue.put(("stderr", text.encode(errors="surrogatepass")))

        it._handle = await sandbox.commands.run(
            command,
            background=True,
            envs={**options.env, shell.TAG: tag},
            user=options.user,
            cwd=options.cwd,
            on_stdout=out,
            on_stderr=err,
            stdin=stdin,
            timeout=0,  # ours, so that what it started is killed as well
            retain_output=False,
        )
        it._watch()
        return it

    @classmethod
    async def open(cls, sandbox: AsyncSandbox, options: TerminalOptions) -> E2BTerminal:
        """Start a terminal: E2B's login shell, into which a command is typed. Raises what E2B's SDK raises."""
        it = E2BTerminal(sandbox, options.execute(), "")

        async def shown(data: bytes) -> None:
            await it._queue.put(("stdout", bytes(data)))

        it._handle = await sandbox.pty.create(
            PtySize(rows=options.rows, cols=options.cols),
            shown,
            user=options.user,
            cwd=options.cwd,
            envs=dict(it._options.env),
            timeout=0,
        )
        it._watch()
        if options.command is not None:
            await it.write(f"exec {shlex.join(['/bin/bash', '-c', options.command])}\n".encode())
        return it

    def _watch(self) -> None:
        self.pid = self._handle.pid
        self._waiting = asyncio.create_task(self._wait(), name=f"runra-e2b {self.pid}")
        self._waiting.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _wait(self) -> tuple[int | None, str | None]:
        try:
            result = await self._handle.wait()
            return ended_as(result.exit_code, result.error)
        except CommandExitException as ended:
            return ended_as(ended.exit_code, ended.error)
        finally:
            await self._queue.put(None)

    async def read(self) -> tuple[Stream, bytes] | None:
        piece = await self._queue.get()
        if piece is None:
            await self.exit()
        return piece

    async def exit(self) -> tuple[int | None, str | None]:
        assert self._waiting is not None, "start makes it"
        try:
            return await asyncio.shield(self._waiting)
        except RunraError:
            raise
        except Exception as error:  # E2B's SDK raises bare ones, too; each is mapped
            if is_gone(error):
                raise
            raise RunraError(
                "NETWORK_ERROR",
                f"e2b: the command's stream broke before its end ({str(error)[:300]}); it may run on",
                details={"reason": "closed", "sent": True, "cause": type(error).__name__},
                retryable=False,
            ) from error

    async def write(self, data: bytes) -> None:
        try:
            await self._handle.send_stdin(data)
        except Exception as error:
            raise self._stdin(error) from error

    async def close_stdin(self) -> None:
        try:
            await self._handle.close_stdin()
        except Exception as error:
            raise self._stdin(error) from error

    def _stdin(self, error: Exception) -> RunraError:
        if self._waiting is not None and self._waiting.done():
            return RunraError("INVALID_STATE", "the command's stdin is closed", details={"reason": "stdin_closed"})
        return mapped(error, "writing to stdin", self._sandbox.sandbox_id)

    async def kill(self) -> None:
        command = shlex.join(shell.argv(shell.KILL, f"{shell.TAG}={self._tag}"))
        try:
            await self._sandbox.commands.run(command, user=self._options.user, timeout=10)
        except CommandExitException:
            await self._handle.kill()  # its first process at least
        except Exception as error:
            if not is_gone(error):
                raise mapped(error, "killing a command", self._sandbox.sandbox_id) from error

    async def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        await self._handle.disconnect()


class E2BTerminal(E2BExec):
    """A terminal there."""

    async def write(self, data: bytes) -> None:
        try:
            await self._sandbox.pty.send_stdin(self.pid, data)
        except Exception as error:
            raise self._stdin(error) from error

    async def resize(self, rows: int, cols: int) -> None:
        try:
            await self._sandbox.pty.resize(self.pid, PtySize(rows=rows, cols=cols))
        except Exception as error:
            raise mapped(error, "resizing a terminal", self._sandbox.sandbox_id) from error

    async def kill(self) -> None:
        try:
            await self._handle.kill()  # its shell: what runs in the terminal hangs up with it
        except Exception as error:
            if not is_gone(error):
                raise mapped(error, "ending a terminal", self._sandbox.sandbox_id) from error

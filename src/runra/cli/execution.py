"""Commands that run something and pass its output on as it comes: run, exec, logs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from runra.cli import lifecycle, network
from runra.cli.output import is_terminal, say
from runra.cli.words import pairs, uploads
from runra.errors import RunraError

if TYPE_CHECKING:
    from runra import Process

_CHUNK: Final = 64 << 10
#: The exit code of a command that its time limit ended, as timeout(1) has it.
_TIMED_OUT: Final = 124

Id = Annotated[str, typer.Argument(metavar="ID", help="A running sandbox.")]
Command = Annotated[
    list[str], typer.Argument(metavar="COMMAND...", help="One word runs in a shell; several run as they stand.")
]
Workdir = Annotated[str | None, typer.Option("--workdir", "-w", help="Where it starts. [default: the sandbox's]")]
User = Annotated[str | None, typer.Option("--user", "-u", help="A name, a uid or uid:gid. [default: root]")]


def run(
    command: Command,
    image: lifecycle.Image = "host",
    cpu: lifecycle.Cpu = None,
    memory_mb: lifecycle.MemoryMb = None,
    timeout_ms: lifecycle.Lifetime = None,
    env: lifecycle.Env = None,
    workdir: lifecycle.Workdir = None,
    user: User = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", metavar="LOCAL:REMOTE", help="Put a file or folder in first; again for each."),
    ] = None,
    isolation: lifecycle.Isolation = None,
    allow: network.Allow = None,
    egress: network.Default = None,
    secret: network.Secrets = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox there; its id goes to stderr.")] = False,
) -> None:
    """Run a command in a sandbox of its own, then end it. Exits with the command's code.

    Its stdout and stderr come as they are made, a piped stdin goes in. Ctrl-C interrupts the command, a second one
    ends everything at once.
    """
    from runra import Runra

    given = lifecycle.config(image, cpu, memory_mb, env, workdir, timeout_ms, isolation)
    if wanted := network.policy(allow, egress, secret):
        given["network"] = wanted
    files = uploads(file or [])
    with _sigterm_ends(), Runra() as client:
        sandbox = client.sandboxes.create(**given)
        try:
            for local, remote in files:
                sandbox.files.upload(local, remote)
            code = _follow(sandbox.exec(_words(command), background=True, user=user))
        finally:
            if keep:
                say(sandbox.id)
            else:
                sandbox.terminate()
    raise typer.Exit(code)


def execute(
    sandbox_id: Id,
    command: Command,
    env: lifecycle.Env = None,
    workdir: Workdir = None,
    user: User = None,
    timeout_ms: Annotated[
        int | None, typer.Option("--timeout-ms", help="Kill it and all it started after so long, in ms.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print its process id and leave it running.")] = False,
) -> None:
    """Run a command in a sandbox; exits with the command's code. Options go before ID: the rest is the command's.

    A piped stdin goes in. Ctrl-C interrupts the command; a second one leaves it to itself.
    """
    from runra import Runra

    with Runra() as client:
        process = client.sandboxes.get(sandbox_id).exec(
            _words(command),
            background=True,
            cwd=workdir,
            user=user,
            timeout_ms=timeout_ms,
            env=pairs(env, "--env") if env else None,
        )
        if detach:
            print(process.pid)
            return
        code = _follow(process)
    raise typer.Exit(code)


def logs(
    sandbox_id: Id,
    pid: Annotated[int, typer.Argument(metavar="PID", help="A process of it, as `runra exec --detach` printed it.")],
) -> None:
    """Print what a process has written, as far back as the sandbox keeps it, and go on until it ends."""
    from runra import Runra

    with Runra() as client:
        _Output(client.sandboxes.get(sandbox_id).processes.get(pid)).pass_on()


def _words(command: Sequence[str]) -> str | Sequence[str]:
    return command[0] if len(command) == 1 else command


class _Output:
    """A process's output on its way to ours, byte for byte; `offset` is how far it has come."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.offset = 0

    def pass_on(self) -> None:
        """Until the process ends. Raises EXECUTION_TIMEOUT when its time limit ended it."""
        for chunk in self._process.logs(self.offset):
            if chunk.offset > self.offset:
                say(f"runra: {chunk.offset - self.offset} bytes of output are missing: it came faster than it was read")
            stream = sys.stdout if chunk.stream == "stdout" else sys.stderr
            stream.buffer.write(chunk.data)
            stream.buffer.flush()
            self.offset = chunk.offset + len(chunk.data)


def _follow(process: Process) -> int:
    """Our stdin in, its output out, until it ends; its exit code."""
    threading.Thread(target=_feed, args=(process,), name="stdin", daemon=True).start()
    output = _Output(process)
    try:
        try:
            output.pass_on()
        except KeyboardInterrupt:
            process.signal("SIGINT")
            # The next Ctrl-C is for us.
            output.pass_on()
    except RunraError as error:
        if error.code == "EXECUTION_TIMEOUT":
            say("runra: it ran longer than --timeout-ms and was killed with all it started")
        elif error.details.get("terminationReason") == "timeout":
            say("runra: its sandbox had run as long as it may and was ended; --timeout-ms gives it longer")
        else:
            raise
        return _TIMED_OUT
    ended = process.info()
    if ended.oom:
        say("runra: it was killed because the sandbox's memory was used up; --memory-mb gives more")
    return 255 if ended.exit_code is None else ended.exit_code


def _feed(process: Process) -> None:
    """What is piped into us goes into it. At a terminal nothing does: its stdin is at its end."""
    try:
        if not is_terminal(sys.stdin):
            # Not sys.stdin's own reader: its lock would be held when the interpreter ends and this still waits.
            while data := os.read(0, _CHUNK):
                process.send_stdin(data)
        process.close_stdin()
    except (RunraError, OSError):
        # It ended, or closed its stdin, before it had read everything: its own business, as in a shell. Whatever
        # else may have failed, the one who reads its output meets as well.
        return


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """SIGTERM leaves by way of every `finally`, so that no sandbox of ours is left behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

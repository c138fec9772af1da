"""`runra shell`: a real terminal in a sandbox."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from runra.cli.execution import Id, User, Workdir
from runra.cli.output import is_terminal, say
from runra.errors import RunraError

if TYPE_CHECKING:
    from runra.cli.tty import Keyboard


def shell(
    sandbox_id: Id,
    command: Annotated[
        str | None, typer.Option("--command", "-c", help="What runs in it. [default: the sandbox's best shell]")
    ] = None,
    workdir: Workdir = None,
    user: User = None,
    pid: Annotated[int | None, typer.Option("--pid", help="Go back to a terminal that still runs.")] = None,
) -> None:
    """Open a terminal in a sandbox; exits with the code of what ran in it.

    Every key goes to the sandbox, Ctrl-C too. When the connection is lost, what runs in it runs on: --pid goes back.
    """
    from runra import Runra
    from runra.cli.tty import Keyboard, raw_mode, window

    if not is_terminal(sys.stdin) or not is_terminal(sys.stdout):
        raise typer.BadParameter("this is no terminal; `runra exec ID COMMAND` needs none", param_hint="shell")
    rows, cols = window()
    with Runra() as client, ExitStack() as stack:
        sandbox = client.sandboxes.get(sandbox_id)
        remote = stack.enter_context(sandbox.terminal(cols, rows, command=command, cwd=workdir, user=user, pid=pid))
        lost: RunraError | None = None
        with raw_mode():
            keyboard = Keyboard(remote.send, remote.resize)
            hands = threading.Thread(target=_type, args=(keyboard,), name="keyboard", daemon=True)
            hands.start()
            try:
                for data in remote:
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
            except RunraError as error:
                lost = error
            finally:
                keyboard.stop()
                hands.join(timeout=5)
                keyboard.close()
        if lost is not None:
            if lost.code == "NETWORK_ERROR" and remote.pid is not None:
                say(f"the connection was lost; it runs on: runra shell {sandbox_id} --pid {remote.pid}")
            raise lost
        code = remote.exit.exit_code if remote.exit is not None else None
    raise typer.Exit(255 if code is None else code)


def _type(keyboard: Keyboard) -> None:
    try:
        keyboard.run()
    except (RunraError, OSError):
        # The connection has gone; the one who reads from it says so.
        return

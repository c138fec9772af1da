"""A Unix socket of this machine at a port of a sandbox's own loopback, whatever network the sandbox has."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runra.errors import RunraError
from runra.runtime.capabilities import require
from runra.runtime.relay_channel import Channel
from runra.runtime.tasks import to_end

if TYPE_CHECKING:
    from runra.runtime.process import Process
    from runra.runtime.sandbox import Sandbox

_log = logging.getLogger("runra.runtime")

RELAY: Final = Path(__file__).parent / "bin" / "runra-relay"
#: How long the relay may take to start, and to end by itself before it is killed, in seconds.
START_S: Final = 30.0
END_S: Final = 5.0
_PLACES: Final = '"${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm "$HOME"'
#: Makes a folder of ours alone where programs may be run, and prints its path. `$1` is its name, which nobody guesses.
_FOLDER: Final = f"""
umask 077
for d in {_PLACES}; do
  f=$d/$1; mkdir "$f" 2>/dev/null || continue
  echo '#!/bin/sh' > "$f/relay" && chmod 700 "$f/relay" && "$f/relay" && cd "$f" && pwd -P && exit 0
  rm -rf "$f"
done; exit 1
"""
_REMOVE: Final = f'for d in {_PLACES}; do rm -rf "$d/$1"; done'
_RUN: Final = 'chmod 700 "$0" && exec "$0" 0'


@dataclass(frozen=True)
class Forward:
    """What is reachable from inside."""

    port: int
    #: The error that ended it, once the relay inside has ended or was lost; cancelled when the block is left before.
    lost: asyncio.Future[RunraError] = field(repr=False)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, as programs inside reach it."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def forwarded(sandbox: Sandbox, target: Path) -> AsyncIterator[Forward]:
    """Make the Unix socket `target` of this machine reachable at a port of the sandbox's own loopback while the block
    lasts. Each connection inside becomes one to the socket; the sandbox needs no network for it.

    A small program of ours (the relay) runs in the sandbox meanwhile and speaks over its stdin and stdout. When it ends
    before the block does, `lost` says why, and connections inside are refused from then on. Every process of the
    sandbox can reach the port, so what listens at `target` must know its clients.

    Raises INVALID_CONFIG when the provider has no processes in the background with a stdin, or when this installation
    has no relay; INTERNAL_ERROR when the sandbox cannot run it.
    """
    wanted = "a way to a socket of this machine"
    provider = sandbox._session.provider
    require(provider.id, provider.capabilities, [("background", wanted), ("stdin", wanted)])
    program = _program()
    process = await _started(sandbox, program)
    # Where a provider can hold a stdin open, a write costs no request of its own.
    channel = Channel(process, target, getattr(process._inner, "hold_stdin", None))
    lost: asyncio.Future[RunraError] = asyncio.get_running_loop().create_future()
    work = asyncio.create_task(_run(channel, lost), name=f"runra-forward {sandbox.id}")
    try:
        yield Forward(await _port(channel, lost), lost)
    finally:
        await to_end(_end(process, channel, work, lost), END_S * 4)


def _program() -> bytes:
    try:
        return RELAY.read_bytes()
    except FileNotFoundError:
        raise RunraError(
            "INVALID_CONFIG",
            "this installation of runra has no relay, which gives a sandbox its way to this machine: it is compiled "
            "on Linux with a C compiler (apt-get install gcc libc6-dev), then reinstall runra[runtime]",
            details={"path": str(RELAY)},
        ) from None


async def _started(sandbox: Sandbox, program: bytes) -> Process:
    name = f"runra-{secrets.token_hex(8)}"
    try:
        made = await sandbox.exec(["/bin/sh", "-c", _FOLDER, "sh", name], timeout_ms=int(START_S * 1000))
        folder = made.stdout.strip()
        if made.exit_code != 0 or not folder.startswith("/"):
            raise RunraError(
                "INTERNAL_ERROR",
                f"the sandbox has no folder in which a program may be put and run (tried {_PLACES}); make one of them "
                f"writable: {made.stderr.strip()[-300:]}",
                details={"reason": "no_folder"},
                retryable=False,
            )
        await sandbox.files.write(f"{folder}/relay", program)
        return await sandbox.exec(["/bin/sh", "-c", _RUN, f"{folder}/relay"], background=True)
    except BaseException:
        await to_end(_removed(sandbox, name), END_S * 2)
        raise


async def _removed(sandbox: Sandbox, name: str) -> None:
    try:
        await sandbox.exec(["/bin/sh", "-c", _REMOVE, "sh", name], timeout_ms=int(END_S * 1000))
    except RunraError as error:
        _log.debug("sandbox %s: the folder %s may be left in it: %s", sandbox.id, name, error)


async def _run(channel: Channel, lost: asyncio.Future[RunraError]) -> None:
    try:
        await channel.run()
    except RunraError as error:
        lost.set_result(error)


async def _port(channel: Channel, lost: asyncio.Future[RunraError]) -> int:
    first: set[asyncio.Future[Any]] = {channel.port, lost}
    await asyncio.wait(first, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
    if channel.port.done():
        return channel.port.result()
    error = lost.result() if lost.done() else None
    raise RunraError(
        "INTERNAL_ERROR",
        "the relay did not start in the sandbox"
        + (f": {error.message}" if error else f" within {START_S:.0f} s")
        + "; it needs a Linux of this machine's architecture",
        details={"reason": "relay_start", **(error.details if error else {})},
        retryable=False,
    )


async def _end(process: Process, channel: Channel, work: asyncio.Task[None], lost: asyncio.Future[RunraError]) -> None:
    was_lost = lost.done()
    lost.cancel()
    work.cancel()
    await asyncio.wait({work})
    try:
        async with asyncio.timeout(END_S):
            if not was_lost:
                await channel.quit()
                await process.wait()
                return
    except (RunraError, TimeoutError) as error:
        _log.debug("the relay did not end when it was told to: %s", error)
    try:
        async with asyncio.timeout(END_S):
            await process.kill()
            await process.wait()
    except RunraError as error:
        if error.code not in ("SANDBOX_NOT_FOUND", "INVALID_STATE"):  # then nothing runs in it
            _log.warning("the relay in a sandbox may run on for 45 s: %s", error)
    except TimeoutError:
        _log.warning("the relay in a sandbox may run on for 45 s: it could not be killed in time")

"""The bandwidth of a sandbox's previews: what is beyond it waits, in each direction for all connections together."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Final

from runra.errors import RunraError
from runra.server.nodeport import Tunnel

#: Seconds' worth of bytes that pass at once after a rest: as much as the kernel lets through on the way out.
_BURST_S: Final = 1.25
#: Bytes a connection takes before the next one has its turn; more at rates where so few would cost too many turns.
_LEAST_PIECE: Final = 16 << 10
_TURNS_PER_SECOND: Final = 64


class Pace:
    """One direction, `rate` bytes a second. Turns are taken in the order of asking."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._paid_until = 0.0
        self.piece = max(_LEAST_PIECE, rate // _TURNS_PER_SECOND)

    def take(self, size: int) -> float:
        """Ask for `size` bytes to pass; returns the seconds they have to wait."""
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now - _BURST_S) + size / self._rate
        return max(0.0, self._paid_until - now)

    @property
    def rested(self) -> bool:
        """Whether a new one would let as much through."""
        return time.monotonic() - self._paid_until >= _BURST_S


class Paces:
    """The two paces of one sandbox, and how many of its connections go by them."""

    def __init__(self, rate: int) -> None:
        self.inward, self.outward = Pace(rate), Pace(rate)
        self.used = 0

    @property
    def idle(self) -> bool:
        """Whether forgetting them gives nothing away: a connection each second would have its burst each second."""
        return not self.used and self.inward.rested and self.outward.rested


class Bandwidth:
    """Of each sandbox with open previews: `mbit` Mbit/s each way."""

    def __init__(self, mbit: int) -> None:
        self._rate = mbit * 125_000
        self._paces: dict[str, Paces] = {}

    def paced(self, tunnel: Tunnel, sandbox_id: str, said: int) -> PacedTunnel:
        """The tunnel within its sandbox's bandwidth, while it is entered; `said` bytes have gone in already."""
        if sandbox_id not in self._paces:
            self._paces = {name: paces for name, paces in self._paces.items() if not paces.idle}
            self._paces[sandbox_id] = Paces(self._rate)
        paces = self._paces[sandbox_id]
        paces.inward.take(said)
        return PacedTunnel(tunnel, paces)


class PacedTunnel:
    """A tunnel whose bytes wait their turn. Ended or aborted, it waits no more."""

    def __init__(self, tunnel: Tunnel, paces: Paces) -> None:
        self._tunnel = tunnel
        self._paces = paces
        #: What has come out, and has not had its turn.
        self._rest = b""
        self._over = asyncio.Event()

    @property
    def written_at(self) -> float:
        return self._tunnel.written_at

    async def read(self, timeout: float | None = None) -> bytes:
        data = self._rest or await self._tunnel.read(timeout)
        outward = self._paces.outward
        self._rest, data = data[outward.piece :], data[: outward.piece]
        await self._turn(outward, len(data))
        if self._over.is_set():
            return await self._tunnel.read(timeout)  # says why
        return data

    async def write(self, data: bytes, timeout: float | None = None) -> None:
        inward = self._paces.inward
        for start in range(0, len(data), inward.piece):
            part = data[start : start + inward.piece]
            await self._turn(inward, len(part))
            await self._tunnel.write(part, timeout)

    async def _turn(self, pace: Pace, size: int) -> None:
        if size and (wait := pace.take(size)) > 0:
            try:
                async with asyncio.timeout(wait):
                    await self._over.wait()
            except TimeoutError:
                pass

    def end_write(self) -> None:
        self._tunnel.end_write()

    def abort(self, why: RunraError) -> None:
        self._tunnel.abort(why)
        self._over.set()

    def close(self) -> None:
        self._tunnel.close()
        self._over.set()

    async def __aenter__(self) -> PacedTunnel:
        self._paces.used += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._paces.used -= 1
        self.close()

"""Small shapes of the API that only routes need: process states, signals, times."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from typing import Final

from runra.contract import ProcessInfo
from runra.node.agent.types import ProcessStatus
from runra.server.faults import bad_request

_REAL_TIME: Final = {f"SIGRTMIN+{n}": signal.SIGRTMIN + n for n in range(1, signal.SIGRTMAX - signal.SIGRTMIN + 1)}


def iso(ms: int) -> str:
    """Unix milliseconds as the API writes times. A sandbox may say anything of its clock; the answer stays in range."""
    bounded = min(max(ms, 0), 253_402_300_799_000)
    return datetime.fromtimestamp(bounded / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def process_info(status: ProcessStatus, *, oom: bool) -> ProcessInfo:
    end = status.exit
    return ProcessInfo(
        pid=status.pid,
        command=status.command,
        state="running" if end is None else "exited",
        exit_code=None if end is None else end.code,
        signal=None if end is None else end.signal,
        oom=oom,
        started_at=iso(status.started_at_ms),
        ended_at=None if end is None else iso(end.ended_at_ms),
    )


def signal_number(name: str) -> int:
    """SIGTERM is 15; a name Linux does not know is INVALID_REQUEST."""
    if name in _REAL_TIME:
        return _REAL_TIME[name]
    try:
        return int(signal.Signals[name])
    except KeyError:
        names = ", ".join(sorted(member.name for member in signal.Signals))
        raise bad_request("signal", f"is no signal; use one of {names}", name) from None

"""How envd, the agent in sandboxes of E2B and CubeSandbox, tells of a command's end."""

from __future__ import annotations

import re
import signal
from typing import Final

_SIGNAL: Final = re.compile(r"signal(?::\s*|\s+)([A-Za-z0-9 ]+)")
#: Go's names of signals that are not simply theirs without SIG.
_NAMES: Final = {
    "killed": "SIGKILL",
    "terminated": "SIGTERM",
    "interrupt": "SIGINT",
    "hangup": "SIGHUP",
    "aborted": "SIGABRT",
    "segmentation fault": "SIGSEGV",
    "quit": "SIGQUIT",
    "broken pipe": "SIGPIPE",
    "user defined signal 1": "SIGUSR1",
}


def ended_as(code: int | None, status: str | None) -> tuple[int | None, str | None]:
    """Exit code and signal as a shell shows them, from what envd says: -1 and «signal: killed», or «exit status 3»."""
    text = (status or "").strip()
    match = _SIGNAL.search(text)
    if match is not None:
        told = match[1].strip().lower()
        try:
            number = signal.Signals(int(told)) if told.isdigit() else signal.Signals[_NAMES.get(told, told.upper())]
        except (KeyError, ValueError):
            return code, None
        return 128 + number, number.name
    if code in (None, 0) and (match := re.search(r"exit status (\d+)", text)) is not None:
        return int(match[1]), None
    return code, None

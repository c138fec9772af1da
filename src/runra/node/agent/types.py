"""What the host asks of the agent in a sandbox, and what it hears back: plain values, no wire details."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from runra.errors import RunraError


class AgentLost(RunraError):
    """The agent's connection ended or missed its deadline; what was asked may or may not have happened."""

    def __init__(self, message: str) -> None:
        super().__init__("INTERNAL_ERROR", message, retryable=False)


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """One program to run. Exactly one of `command` (bash, else sh) and `argv` is given.

    `cwd` is absolute. `user` is a name, a uid or `uid:gid` as the sandbox's own /etc/passwd knows it; empty is
    root. `timeout_ms` counts time the sandbox runs, not time it is paused; at its end the process tree is killed.
    `stdin` keeps a pipe open for `write_stdin`; otherwise stdin is /dev/null. `pty` is (rows, cols). A `tag` that
    a live or remembered process already carries attaches to that process and starts nothing (idempotency).
    """

    command: str | None = None
    argv: tuple[str, ...] = ()
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    timeout_ms: int | None = None
    stdin: bool = False
    pty: tuple[int, int] | None = None
    tag: str = ""


class Output(NamedTuple):
    """A piece of output. `offset` is where `data` begins in the process's stdout and stderr taken together."""

    stream: Literal["stdout", "stderr"]
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: `code` as a shell shows it, `signal` by name (SIGKILL…) when one killed it."""

    code: int
    signal: str | None
    timed_out: bool
    duration_ms: int
    ended_at_ms: int


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A process the agent remembers. `exit` is None while it runs; times are Unix milliseconds."""

    pid: int
    command: str
    started_at_ms: int
    exit: Exit | None
    tag: str

"""Running programs, and what came of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from runra.contract.base import EXEC_TIMEOUT_MS, Env, PathText, Request, Text, Wire, no_nul


class ExecRequest(Request):
    """Run a program: `command` through bash (else sh), or `argv` as it stands. Exactly one of them."""

    command: Text | None = Field(None, min_length=1)
    argv: list[Text] | None = Field(None, min_length=1, max_length=10_000)
    cwd: PathText | None = None
    env: Env = Field(default_factory=dict)
    timeout_ms: Annotated[int, EXEC_TIMEOUT_MS] = Field(60_000, description="kills the whole process tree, in ms")
    stdin: str | None = None
    user: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(no_nul)] | None = None
    #: Answer 202 with a process id at once. Such a process has no timeout unless `timeoutMs` is given, and its
    #: stdin stays open for `POST …/processes/{pid}/stdin`.
    background: bool = False

    @model_validator(mode="after")
    def _one_program(self) -> ExecRequest:
        if (self.command is None) == (self.argv is None):
            raise ValueError("give exactly one of 'command' and 'argv'")
        return self


class ExecutionResult(Wire):
    """How a command ended. `exit_code` as a shell shows it (126, 127, 128+n); `signal` names what killed it."""

    stdout: str
    stderr: str
    exit_code: int | None
    duration_ms: int
    signal: str | None = None
    oom: bool = False
    truncated: bool = False


class ProcessStarted(Wire):
    pid: int
    started_at: str


class ProcessInfo(Wire):
    pid: int
    command: str
    state: Literal["running", "exited"]
    exit_code: int | None = None
    signal: str | None = None
    oom: bool = False
    started_at: str
    ended_at: str | None = None


class SignalRequest(Request):
    signal: str = Field(pattern=r"^SIG[A-Z0-9+]{2,12}$", examples=["SIGTERM"])

"""What is told of commands: events and counters, each command once; and which of them the OOM killer ended."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from runra.contract import ExecutionResult
from runra.errors import RunraError
from runra.events import EventLog, EventType
from runra.node.agent.types import AgentLost, Exit, Output
from runra.server.follow import Ended, Listener
from runra.server.measure import Measures
from runra.server.nodeport import AgentProcess, Sandbox
from runra.streamed import Streamed

#: How much of a command an event carries.
TOLD: Final = 1000
#: How many processes killed by the OOM killer are kept in mind.
_REMEMBERED: Final = 10_000


class Teller:
    """Publishes for all commands."""

    def __init__(self, events: EventLog, measures: Measures) -> None:
        self.measures = measures
        self._events = events
        self._ooms: OrderedDict[tuple[str, int], None] = OrderedDict()

    def publish(self, type: EventType, sandbox: Sandbox, data: dict[str, Any]) -> None:
        self._events.publish(type, sandbox.id, data, organization_id=sandbox.organization_id)

    def output_asked(self) -> bool:
        return self._events.asked("exec.streamed")

    def output(self, sandbox: Sandbox, data: dict[str, Any]) -> None:
        """Not kept: it would push everything else out of the log."""
        self._events.publish("exec.streamed", sandbox.id, data, organization_id=sandbox.organization_id, kept=False)

    def failed(self, sandbox: Sandbox, told: str, error: RunraError, pid: int | None = None) -> None:
        self.measures.executions["error"] += 1
        data = {"command": told, "code": error.code, "message": error.message}
        self.publish("exec.error", sandbox, data if pid is None else {**data, "pid": pid})

    def note_oom(self, sandbox_id: str, pid: int) -> None:
        self._ooms[sandbox_id, pid] = None
        if len(self._ooms) > _REMEMBERED:
            self._ooms.popitem(last=False)

    def was_oom(self, sandbox_id: str, pid: int) -> bool:
        return (sandbox_id, pid) in self._ooms


class Tale:
    """What is told of one command: that it started, and once how it ended. A retry that only attached tells nothing."""

    def __init__(self, home: Teller, sandbox: Sandbox, process: AgentProcess, command: str, *, ours: bool) -> None:
        self._home = home
        self._sandbox = sandbox
        self._pid = process.pid
        self._command = command
        self._ours = ours
        self._oom_before = sandbox.oom_kills()
        self._streamed = Streamed(self._output, home.output_asked) if ours else None

    def witness(self) -> Listener | None:
        """Who hears the output and tells of it; None for a retry."""
        return _Witness(self._streamed) if self._streamed is not None else None

    def _output(self, data: dict[str, Any]) -> None:
        self._home.output(self._sandbox, {"command": self._command, "pid": self._pid, **data})

    def start(self) -> None:
        if self._ours:
            self._home.publish("exec.started", self._sandbox, {"command": self._command, "pid": self._pid})

    def end(self, exit: Exit) -> Ended:
        """Raises AgentLost for an end that is not to be believed, because memory ran out and the sandbox ends."""
        if self._sandbox.memory_gone():
            raise AgentLost("the sandbox's memory ran out")
        if self._streamed is not None:
            self._streamed.end()  # before its end is told
        oom = self._home.was_oom(self._sandbox.id, self._pid)
        if self._ours and not exit.timed_out and (exit.signal == "SIGKILL" or exit.code == 137):
            oom = self._sandbox.oom_kills() > self._oom_before
        result = ExecutionResult(
            stdout="", stderr="", exit_code=exit.code, duration_ms=exit.duration_ms, signal=exit.signal, oom=oom
        )
        if self._ours:
            if oom:
                self._home.note_oom(self._sandbox.id, self._pid)
            self._home.measures.executions["timed_out" if exit.timed_out else "exited"] += 1
            self._home.publish(
                "exec.timed_out" if exit.timed_out else "exec.completed",
                self._sandbox,
                {
                    "command": self._command,
                    "pid": self._pid,
                    "exitCode": exit.code,
                    "signal": exit.signal,
                    "durationMs": exit.duration_ms,
                    "oom": oom,
                },
            )
        return Ended(result, exit.timed_out)

    def fail(self, error: RunraError) -> None:
        if self._ours:
            self._home.failed(self._sandbox, self._command, error, self._pid)


class _Witness(Listener):
    """Tells of a command's output as it passes. Once for all listeners, however often the reader goes back."""

    def __init__(self, streamed: Streamed) -> None:
        super().__init__()
        self._streamed = streamed

    async def offer(self, output: Output) -> None:
        fresh = self.fresh(output)
        if fresh is not None:
            self.position = fresh.offset + len(fresh.data)
            self._streamed.add(fresh.stream, fresh.data, fresh.offset)

    def end(self, how: Ended | RunraError) -> None:
        self._streamed.end()

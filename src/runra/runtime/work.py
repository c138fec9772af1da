"""An agent at work on one prompt: what it may end with, what it changed, and what is told of that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from runra.errors import RunraError
from runra.runtime.changes import Changes
from runra.runtime.tasks import to_end
from runra.runtime.types import AgentResult, Failure

if TYPE_CHECKING:
    from runra.runtime.providers import AgentAdapter
    from runra.runtime.run import AgentRun

_log = logging.getLogger("runra.runtime")

#: How long a look at the sandbox after the run may take, in seconds.
_LOOK_S: Final = 30.0


async def work_on(agent: AgentAdapter, run: AgentRun, timeout_ms: int | None, *, diff: bool = False) -> AgentResult:
    """How the agent's work ended. Its failure is a result, told as `agent.error`; a cancellation is raised.

    A sandbox that broke outranks what the agent says of itself. Files are compared for agents that say so
    (`tracks_files`).
    """
    # An agent of its own process in the sandbox changes files there; what a function of the caller's does, it knows.
    tracked = bool(getattr(agent, "tracks_files", False)) or diff
    async with _compared(run, getattr(agent, "workdir", None), tracked, diff) as changes:
        result = await _worked(agent, run, timeout_ms)
        broken = await _broken(run, result)
        if broken is not None:
            result = result.model_copy(
                update={"success": False, "error": broken, "failure": Failure(kind="sandbox", message=broken)}
            )
        elif changes is not None:
            result = await _with_changes(result, changes, diff)
    if not result.success:
        error = result.error or "the agent failed without words"
        kind = result.failure.kind if result.failure is not None else "failed"
        run.emit("agent.error", {"message": error, "kind": kind, "fatal": True})
        failure = result.failure or Failure(kind="failed", message=error)
        result = result.model_copy(update={"error": error, "failure": failure})
    if result.cost_source != "none":
        run.emit("cost.total", {"amount": result.total_cost, "currency": "USD"})
    return result.model_copy(update={"sandbox_id": run.sandbox.id})


async def _worked(agent: AgentAdapter, run: AgentRun, timeout_ms: int | None) -> AgentResult:
    limit = asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000)
    try:
        async with limit:
            return await agent.start(run)
    except Exception as error:  # noqa: BLE001 - an agent's failure is the run's result, and logged whole
        if isinstance(error, TimeoutError) and limit.expired():
            return _failed("timeout", f"the run took longer than {timeout_ms} ms and was stopped")
        _log.warning("run %s: the agent failed", run.run.id, exc_info=True)
        return _failed(*_kind(error), retryable=isinstance(error, RunraError) and error.retryable)


def _failed(kind: str, message: str, *, retryable: bool = False) -> AgentResult:
    failure = Failure(kind=kind, message=message, retryable=retryable)
    return AgentResult(success=False, summary="", error=message, failure=failure)


def _kind(error: Exception) -> tuple[str, str]:
    message = str(error) or type(error).__name__
    if isinstance(error, RunraError):
        return str(error.details.get("kind") or "failed"), error.message
    return "failed", message


async def _broken(run: AgentRun, result: AgentResult) -> str | None:
    """What is wrong with the sandbox, if anything: an agent whose sandbox has gone may well call itself done."""
    try:
        async with asyncio.timeout(_LOOK_S):
            sandbox = await run.sandbox.refresh()
            if sandbox.state == "running" and not result.success:
                # One that is just ending still says that it runs, but takes no commands any more.
                await run.sandbox.exec(["true"])
    except TimeoutError:
        return f"the sandbox {run.sandbox.id} did not answer within {_LOOK_S:g} s"
    except RunraError as error:
        return f"the sandbox {run.sandbox.id} is lost: {error.message}"
    if sandbox.state in ("running", "paused"):
        return None
    reason = sandbox.handle.termination_reason
    return f"the sandbox {run.sandbox.id} ended under the agent" + (f": {reason}" if reason else "")


@asynccontextmanager
async def _compared(run: AgentRun, workdir: str | None, tracked: bool, diff: bool) -> AsyncIterator[Changes | None]:
    if not tracked:
        yield None
        return
    changes = Changes(run.sandbox, workdir or run.sandbox.workdir)
    try:
        await changes.begin(keep=diff)
    except RunraError as error:
        _log.warning("run %s: its files are not compared: %s", run.run.id, error)
        yield None
        return
    try:
        yield changes
    finally:
        try:
            await to_end(changes.close(), _LOOK_S)
        except (RunraError, TimeoutError) as error:
            _log.debug("run %s: the copy to compare with was not removed: %s", run.run.id, error)


async def _with_changes(result: AgentResult, changes: Changes, diff: bool) -> AgentResult:
    try:
        files = await changes.end()
        text = await changes.diff(files) if diff else None
    except RunraError as error:
        return result.model_copy(update={"warnings": [*result.warnings, f"files were not compared: {error.message}"]})
    return result.model_copy(update={"files": files, "diff": text, "warnings": [*result.warnings, *changes.warnings]})

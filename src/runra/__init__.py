"""Runra: sandboxes for AI agents. This package gives the SDK's names, each loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from runra.contract import ExecutionResult as ExecutionResult
    from runra.contract import FileEntry as FileEntry
    from runra.contract import Port as Port
    from runra.errors import RunraError as RunraError
    from runra.sdk._async.client import AsyncRunra as AsyncRunra
    from runra.sdk._async.files import AsyncFiles as AsyncFiles
    from runra.sdk._async.processes import AsyncProcess as AsyncProcess
    from runra.sdk._async.sandbox import AsyncSandbox as AsyncSandbox
    from runra.sdk._async.stdin import AsyncStdin as AsyncStdin
    from runra.sdk._async.terminal import AsyncTerminal as AsyncTerminal
    from runra.sdk._sync.client import Runra as Runra
    from runra.sdk._sync.files import Files as Files
    from runra.sdk._sync.processes import Process as Process
    from runra.sdk._sync.sandbox import Sandbox as Sandbox
    from runra.sdk._sync.stdin import Stdin as Stdin
    from runra.sdk._sync.terminal import Terminal as Terminal
    from runra.sdk.failures import CommandFailed as CommandFailed
    from runra.sdk.gaps import EventGap as EventGap
    from runra.sdk.output import OutputChunk as OutputChunk
    from runra.sdk.types import ExecOptions as ExecOptions
    from runra.sdk.types import ListOptions as ListOptions
    from runra.sdk.types import SandboxConfig as SandboxConfig
    from runra.sdk.types import SandboxList as SandboxList

#: Where each name lives. Pydantic and the HTTP client cost more to import than everything else here together.
_HOMES: Final = {
    "AsyncFiles": "runra.sdk._async.files",
    "AsyncProcess": "runra.sdk._async.processes",
    "AsyncRunra": "runra.sdk._async.client",
    "AsyncSandbox": "runra.sdk._async.sandbox",
    "AsyncStdin": "runra.sdk._async.stdin",
    "AsyncTerminal": "runra.sdk._async.terminal",
    "CommandFailed": "runra.sdk.failures",
    "EventGap": "runra.sdk.gaps",
    "ExecOptions": "runra.sdk.types",
    "ExecutionResult": "runra.contract",
    "FileEntry": "runra.contract",
    "Files": "runra.sdk._sync.files",
    "ListOptions": "runra.sdk.types",
    "OutputChunk": "runra.sdk.output",
    "Port": "runra.contract",
    "Process": "runra.sdk._sync.processes",
    "Runra": "runra.sdk._sync.client",
    "RunraError": "runra.errors",
    "Sandbox": "runra.sdk._sync.sandbox",
    "SandboxConfig": "runra.sdk.types",
    "SandboxList": "runra.sdk.types",
    "Stdin": "runra.sdk._sync.stdin",
    "Terminal": "runra.sdk._sync.terminal",
}

__all__ = [
    "AsyncFiles",
    "AsyncProcess",
    "AsyncRunra",
    "AsyncSandbox",
    "AsyncStdin",
    "AsyncTerminal",
    "CommandFailed",
    "EventGap",
    "ExecOptions",
    "ExecutionResult",
    "FileEntry",
    "Files",
    "ListOptions",
    "OutputChunk",
    "Port",
    "Process",
    "Runra",
    "RunraError",
    "Sandbox",
    "SandboxConfig",
    "SandboxList",
    "Stdin",
    "Terminal",
]


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'runra' has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

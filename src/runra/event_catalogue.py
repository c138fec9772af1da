"""What each type of event means: a sentence, its level, and the fields of its `data`. `docs/observability.md` is made
from this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from runra.events import Event, EventType

Level = Literal["debug", "info", "warn", "error"]
LEVELS: Final[Mapping[Level, int]] = {"debug": 0, "info": 1, "warn": 2, "error": 3}


@dataclass(frozen=True)
class Kind:
    """One type of event. `fields` names what `data` may hold; a field that does not apply is left out or null."""

    meaning: str
    level: Level = "info"
    fields: Mapping[str, str] = field(default_factory=dict)


_COMMAND: Final = {"command": "what runs, as given", "pid": "process id inside the sandbox"}
_FAILURE: Final = {"code": "error code", "message": "what went wrong, and what to do"}
_PATH: Final = {"path": "absolute, or from the sandbox's workdir"}
_IMAGE: Final = {"reference": "which image"}
_PULL: Final = {**_IMAGE, "pullId": "which pull, as its answer said"}
_CALL: Final = {"id": "pairs a call with its result", "name": "the tool"}
_MONEY: Final = {"amount": "cost so far", "currency": "USD unless configured"}

CATALOGUE: Final[Mapping[EventType, Kind]] = {
    "sandbox.created": Kind("A sandbox was asked for.", fields={"image": "its image"}),
    "sandbox.started": Kind("It runs and takes commands."),
    "sandbox.paused": Kind(
        "It was paused: frozen, its files and processes kept.",
        fields={"runtimeDurationMs": "time running until now", "reason": "user or idle"},
    ),
    "sandbox.resumed": Kind("It runs on.", fields={"pausedDurationMs": "how long it was paused"}),
    "sandbox.terminated": Kind(
        "It is gone for good. A warning unless the reason is user or timeout.",
        fields={"reason": "user, timeout, oom, disk, node_lost, image, error", "totalRuntimeMs": "time it ran in all"},
    ),
    "sandbox.error": Kind("Something failed in keeping it.", "error", _FAILURE),
    "exec.started": Kind("A command began.", fields=_COMMAND),
    "exec.completed": Kind(
        "A command ended, with whatever exit code. A warning when it ran out of memory.",
        fields={
            **_COMMAND,
            "exitCode": "as a shell shows it",
            "signal": "what killed it",
            "durationMs": "how long it ran",
            "oom": "killed for memory",
        },
    ),
    "exec.streamed": Kind(
        "A piece of a command's output, at most 16 KiB. Only who asks for this type by name gets it.",
        "debug",
        {
            **_COMMAND,
            "stream": "stdout or stderr",
            "data": "the text",
            "encoding": "base64 where the data is that, of what is no UTF-8",
            "offset": "where it begins in both streams taken together, in bytes",
            "untoldBytes": "how much before it was left out, beyond 64 KiB a second",
        },
    ),
    "exec.error": Kind("A command could not be run, or was lost.", "error", {**_COMMAND, **_FAILURE}),
    "exec.timed_out": Kind(
        "A command overran its timeout and was killed.", "warn", {**_COMMAND, "durationMs": "how long it ran"}
    ),
    "file.created": Kind("A file or folder was made.", fields={**_PATH, "sizeBytes": "its size"}),
    "file.modified": Kind("A file was replaced.", fields={**_PATH, "sizeBytes": "its new size"}),
    "file.read": Kind("A file was read.", "debug", {**_PATH, "sizeBytes": "its size"}),
    "file.deleted": Kind("A file or folder was deleted or moved away.", fields={**_PATH, "movedTo": "its new path"}),
    "file.error": Kind("A file operation failed.", "error", {**_PATH, "operation": "which", "code": "error code"}),
    "port.exposed": Kind(
        "A port got a URL.",
        fields={"port": "the port", "url": "where it is reached", "private": "whether it wants a token"},
    ),
    "port.closed": Kind("A port's URL is gone.", fields={"port": "the port"}),
    "network.egress": Kind(
        "A connection out of a sandbox. A warning when it was denied.",
        fields={
            "host": "where to, as far as it was named",
            "address": "its address",
            "port": "its port",
            "protocol": "tcp or udp",
            "allowed": "false when denied",
            "state": "opened, closed or refused",
            "reason": "why it was refused",
            "bytesSent": "out of the sandbox, when it closed",
            "bytesReceived": "into it",
            "durationMs": "how long it was open",
            "untold": "how many such events were left out before this one",
        },
    ),
    "resource.cpu": Kind("CPU used.", "debug", {"cpuMs": "CPU time so far", "limitCores": "its ceiling"}),
    "resource.memory": Kind("Memory in use.", "debug", {"memoryBytes": "now", "limitBytes": "its ceiling"}),
    "resource.disk": Kind("Disk in use.", "debug", {"diskBytes": "now", "limitBytes": "its ceiling"}),
    "image.progress": Kind(
        "An image comes.",
        "debug",
        {**_PULL, "doneBytes": "so far", "totalBytes": "of all", "layersDone": "whole ones", "layers": "of all"},
    ),
    "image.ready": Kind(
        "An image can be used.",
        fields={**_PULL, "digest": "its digest", "sizeBytes": "its size", "durationMs": "how long it took"},
    ),
    "image.error": Kind("An image did not come.", "error", {**_PULL, **_FAILURE, "retryable": "whether to try again"}),
    "image.deleted": Kind("An image was deleted.", fields=_IMAGE),
    "agent.thinking": Kind("The agent thinks; a turn of the model began.", "debug", {"text": "as far as it is told"}),
    "agent.tool_call": Kind("The agent calls a tool.", fields={**_CALL, "input": "its arguments"}),
    "agent.tool_result": Kind(
        "What the tool gave. A warning when it failed.",
        fields={**_CALL, "output": "the result", "isError": "whether it failed", "durationMs": "how long it took"},
    ),
    "agent.message": Kind("The agent says something.", fields={"text": "what"}),
    "agent.error": Kind(
        "Something went wrong for the agent; the run has failed where it is fatal.",
        "error",
        {
            "message": "what happened",
            "kind": "of a failed run: `auth`, `budget`, `sandbox`, `timeout` and so on",
            "fatal": "whether that is the end",
        },
    ),
    "cost.runtime": Kind("Cost of the sandbox's running time.", "debug", _MONEY),
    "cost.llm": Kind(
        "A call of the model: its tokens and cost. A warning when it failed.",
        fields={
            "provider": "who runs the model",
            "model": "its name",
            "inputTokens": "tokens read, without those of the cache",
            "cacheReadTokens": "tokens read from the cache",
            "cacheWriteTokens": "tokens written to it",
            "outputTokens": "tokens written, those of reasoning among them",
            "reasoningTokens": "tokens of reasoning",
            "cost": "of this call; null where the price is not known",
            "currency": "of the cost",
            "totalCost": "of the run so far",
            "error": "why it failed",
            "turn": "false for a call beside the agent's own work",
            "durationMs": "how long the call took",
        },
    ),
    "cost.storage": Kind("Cost of what is kept while paused.", "debug", _MONEY),
    "cost.total": Kind("All costs of a run together.", fields=_MONEY),
}

_ORDINARY_ENDS: Final = (None, "user", "timeout")


def level_of(type: EventType, data: Mapping[str, Any]) -> Level:
    """The level of an event: its type's, raised to `warn` where its data tells of trouble."""
    trouble = (
        (type == "exec.completed" and data.get("oom") is True)
        or (type == "agent.tool_result" and data.get("isError") is True)
        or (type == "network.egress" and data.get("allowed") is False)
        or (type == "cost.llm" and bool(data.get("error")))
        or (type == "sandbox.terminated" and data.get("reason") not in _ORDINARY_ENDS)
    )
    kind = CATALOGUE.get(type)
    return "warn" if trouble else kind.level if kind is not None else "info"


def at_least(event: Event, least: Level) -> bool:
    """Whether an event's level reaches `least`."""
    return LEVELS[level_of(event.type, event.data)] >= LEVELS[least]

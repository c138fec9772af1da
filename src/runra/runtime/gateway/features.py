"""What an agent needs of a model that this model, reached through the gateway, has not: known before a run starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from runra.runtime.gateway.runs import RunLimits
from runra.runtime.llms.targets import Target
from runra.runtime.llms.types import Format

#: What survives a translation between any two formats.
TRANSLATED: Final = frozenset(
    {
        "text",
        "images",
        "tools",
        "parallel_tools",
        "freeform_tools",
        "tool_choice",
        "thinking",
        "json_schema",
        "stop_sequences",
        "system_prompt",
        "streaming",
        "count_tokens",
    }
)
#: What the provider does on its own side: passed through where the formats are alike and the run allows it.
SERVER_TOOLS: Final = frozenset(
    {"web_search", "web_fetch", "code_execution", "file_search", "image_generation", "mcp", "url_images", "files"}
)
#: What the provider keeps between calls: never, since a run must not see what another left.
STORED: Final = frozenset({"stored_conversations", "background"})
#: Other things a format has that only a model speaking it has as well.
NATIVE: Final = frozenset({"documents", "citations", "logprobs", "audio", "grammar"})


def unsupported(format: Format, target: Target, features: Iterable[str], limits: RunLimits | None = None) -> list[str]:
    """Which of these features an agent that speaks `format` will not have with this target, sorted; empty is good.

    A name that is none of the above counts as unsupported: what nobody knows, nobody translates.
    """
    allowed = set(TRANSLATED)
    if not target.images:
        allowed -= {"images"}
    if format in target.paths:
        allowed |= NATIVE
        if (limits or RunLimits()).server_tools == "allow":
            allowed |= SERVER_TOOLS
    return sorted(set(features) - allowed)

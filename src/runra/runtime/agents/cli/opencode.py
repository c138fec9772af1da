"""opencode: `opencode run --format json`."""

from __future__ import annotations

import json
from typing import Any, Final

from runra.runtime.agents.cli.launch import Asked, Cli, Launch
from runra.runtime.agents.options import TOOLS, ToolName
from runra.runtime.agents.transcripts import OpenCode

_NAMES: Final[dict[ToolName, tuple[str, ...]]] = {
    "bash": ("bash",),
    "read": ("read", "list"),
    "write": ("write",),
    "edit": ("edit", "patch", "multiedit"),
    "glob": ("glob",),
    "grep": ("grep",),
}
#: The variable the configuration takes the token from.
KEY: Final = "RUNRA_MODEL_TOKEN"
QUIET: Final = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
}
#: What is said of a model's size where opencode cannot know it, in tokens.
_CONTEXT: Final = 128_000
_OUTPUT: Final = 16_384


def configuration(asked: Asked) -> dict[str, Any]:
    """A provider that leads to the gateway, for the model and for what opencode would ask a smaller one."""
    output = min(_OUTPUT, asked.target.max_output_tokens or _OUTPUT)
    model = {
        "name": asked.model,
        "tool_call": True,
        "reasoning": True,
        "limit": {"context": _CONTEXT, "output": output},
    }
    if asked.target.images:
        model |= {"attachment": True, "modalities": {"input": ["text", "image"], "output": ["text"]}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{asked.url}/v1", "apiKey": f"{{env:{KEY}}}"},
        "models": {"model": model},
    }
    config: dict[str, Any] = {
        "autoupdate": False,
        "share": "disabled",
        "model": "runra/model",
        "small_model": "runra/model",
        "provider": {"runra": provider},
    }
    allowed = asked.options.given_tools
    if asked.tools is not None:
        # None of its own: neither offered nor, by whatever name they are called, allowed.
        config["tools"] = {"*": False, "runra_*": True}
        config["permission"] = {"*": "deny", "runra_*": "allow"}
        headers = {"Authorization": f"Bearer {asked.tools.token}"}
        server = {"type": "remote", "url": asked.tools.url, "headers": headers, "oauth": False, "timeout": 330_000}
        config["mcp"] = {"runra": server}
    elif len(allowed) < len(TOOLS):
        config["tools"] = {"*": False, **{name: True for tool in allowed for name in _NAMES[tool]}}
    if asked.system_prompt is not None:
        config["instructions"] = [f"{asked.folder}/instructions.md"]
    return config


def launch(asked: Asked) -> Launch:
    argv = ["opencode", "run", "--format", "json", "--auto", "--thinking", "--title", "runra"]
    if asked.session_id:
        argv += ["--session", asked.session_id]
    files = {"opencode.json": json.dumps(configuration(asked))}
    if asked.system_prompt is not None:
        files["instructions.md"] = asked.system_prompt
    env = {**QUIET, KEY: asked.token, "OPENCODE_CONFIG": f"{asked.folder}/opencode.json"}
    return Launch(argv, env, files)


OPENCODE: Final = Cli(
    id="opencode",
    program="opencode",
    speaks="chat",
    provider="",
    transcript=OpenCode,
    launch=launch,
    abilities=frozenset(
        {"resume", "messages", "max_turns", "max_cost", "allowed_tools", "plan", "system_prompt", "host"}
    ),
)

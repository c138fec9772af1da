"""What the ACP agents we know need to reach their model through our gateway, and how their modes are called."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from runra.runtime.agents.cli.claude_code import CLAUDE_CODE
from runra.runtime.agents.cli.codex import KEY as CODEX_KEY
from runra.runtime.agents.cli.launch import Asked
from runra.runtime.agents.cli.opencode import KEY as OPENCODE_KEY
from runra.runtime.agents.cli.opencode import QUIET, configuration


@dataclass(frozen=True)
class Known:
    """`programs`: names in its command that mean it. `env`: the variables that lead to the model. `modes`: its own mode
    for each permission mode, where it is not to be left as it is; the names are tried in order."""

    programs: tuple[str, ...]
    env: Callable[[Asked], dict[str, str]]
    modes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"plan": ("plan",)})
    install: str = ""


def _generic(asked: Asked) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": f"{asked.url}/v1",
        "OPENAI_API_KEY": asked.token,
        "ANTHROPIC_BASE_URL": asked.url,
        "ANTHROPIC_API_KEY": asked.token,
        "RUNRA_MODEL": asked.model,
    }


def _claude(asked: Asked) -> dict[str, str]:
    return CLAUDE_CODE.launch(asked).env


def _codex(asked: Asked) -> dict[str, str]:
    provider = {
        "name": "runra",
        "base_url": f"{asked.url}/v1",
        "env_key": CODEX_KEY,
        "wire_api": "responses",
        "request_max_retries": 1,
        "stream_max_retries": 2,
    }
    config: dict[str, Any] = {
        "model": asked.model,
        "model_provider": "runra",
        "model_providers": {"runra": provider},
        "analytics": {"enabled": False},
        "check_for_update_on_startup": False,
    }
    return {"CODEX_CONFIG": json.dumps(config), "MODEL_PROVIDER": "runra", "NO_BROWSER": "1", CODEX_KEY: asked.token}


def _opencode(asked: Asked) -> dict[str, str]:
    config = configuration(asked)
    if asked.options.permission_mode == "prompt":
        config["permission"] = {"edit": "ask", "bash": "ask", "webfetch": "ask"}
    return {**QUIET, OPENCODE_KEY: asked.token, "OPENCODE_CONFIG_CONTENT": json.dumps(config)}


_ANY: Final = Known(programs=(), env=_generic)
_KNOWN: Final = (
    Known(
        programs=("claude-agent-acp", "claude-code-acp"),
        env=_claude,
        modes={"auto-approve": ("bypassPermissions",), "plan": ("plan",)},
        install="npm install -g @agentclientprotocol/claude-agent-acp",
    ),
    Known(
        programs=("codex-acp",),
        env=_codex,
        # Codex's own wall does not stand inside a sandbox, where every command behind it would fail; its plan mode has
        # no name among its modes, and reading only is the nearest to it.
        modes={"auto-approve": ("agent-full-access",), "prompt": ("read-only",), "plan": ("read-only",)},
        install="npm install -g @agentclientprotocol/codex-acp",
    ),
    Known(programs=("opencode",), env=_opencode, install="npm install -g opencode-ai"),
)


def known(command: Sequence[str]) -> Known:
    """The agent a command starts, by its words; the generic one for any other."""
    names = {posixpath.basename(word).partition("@")[0] for word in command}
    return next((one for one in _KNOWN if names.intersection(one.programs)), _ANY)

"""claude-code: `claude -p --output-format stream-json`."""

from __future__ import annotations

import json
from typing import Final

from runra.runtime.agents.cli.launch import Asked, Cli, Launch
from runra.runtime.agents.options import TOOLS, ToolName
from runra.runtime.agents.transcripts import ClaudeCode

_NAMES: Final[dict[ToolName, tuple[str, ...]]] = {
    "bash": ("Bash", "BashOutput", "KillShell"),
    "read": ("Read",),
    "write": ("Write",),
    "edit": ("Edit", "NotebookEdit"),
    "glob": ("Glob",),
    "grep": ("Grep",),
}
#: Every name a model may be asked for under, so that none of its side calls goes to another one.
_MODELS: Final = (
    "ANTHROPIC_MODEL",
    "ANTHROPIC_SMALL_FAST_MODEL",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL",
    "ANTHROPIC_DEFAULT_SONNET_MODEL",
    "ANTHROPIC_DEFAULT_OPUS_MODEL",
    "CLAUDE_CODE_SUBAGENT_MODEL",
)
QUIET: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "IS_SANDBOX": "1",  # without it the flag that skips permissions is refused to root
    "CLAUDE_CODE_MAX_RETRIES": "2",  # the gateway has retried already; left alone it tries a 401 ten times
}


def launch(asked: Asked) -> Launch:
    options, tools = asked.options, asked.tools
    argv = ["claude", "-p", "--output-format", "stream-json", "--verbose", "--model", asked.model]
    argv += ["--max-turns", str(options.max_turns)]
    files: dict[str, str] = {}
    if tools is not None:
        # None of its own, and no settings, skills or servers of anybody; what is not allowed here is denied.
        argv += ["--tools", "", "--allowedTools", "mcp__runra", "--permission-mode", "dontAsk", "--setting-sources", ""]
        argv += ["--disable-slash-commands", "--strict-mcp-config", "--mcp-config", f"{asked.folder}/mcp.json"]
        server = {"type": "http", "url": tools.url, "headers": {"Authorization": f"Bearer {tools.token}"}}
        files["mcp.json"] = json.dumps({"mcpServers": {"runra": server}})
    elif options.permission_mode == "plan":
        argv += ["--permission-mode", "plan"]
    else:
        argv += ["--dangerously-skip-permissions"]
    if tools is None and len(options.given_tools) < len(TOOLS):
        argv += ["--tools", ",".join(name for tool in options.given_tools for name in _NAMES[tool])]
    if asked.system_prompt is not None:
        argv += ["--append-system-prompt", asked.system_prompt]
    if asked.session_id:
        argv += ["--resume", asked.session_id]
    env = {**QUIET, **dict.fromkeys(_MODELS, asked.model)}
    return Launch(argv, {**env, "ANTHROPIC_BASE_URL": asked.url, "ANTHROPIC_API_KEY": asked.token}, files)


CLAUDE_CODE: Final = Cli(
    id="claude-code",
    program="claude",
    speaks="messages",
    provider="anthropic",
    transcript=ClaudeCode,
    launch=launch,
    abilities=frozenset(
        {"resume", "messages", "max_turns", "max_cost", "allowed_tools", "plan", "system_prompt", "host"}
    ),
)

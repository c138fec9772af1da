"""codex: `codex exec --json`."""

from __future__ import annotations

import json
from typing import Final

from runra.runtime.agents.cli.launch import Asked, Cli, Launch
from runra.runtime.agents.transcripts import Codex

#: The variable codex reads the token from.
KEY: Final = "RUNRA_MODEL_TOKEN"
#: The same for its hands on the caller's machine.
TOOLS_KEY: Final = "RUNRA_TOOLS_TOKEN"
#: What turns off every tool of its own, found by asking the real one what it offers.
_NO_TOOLS: Final = ('web_search="disabled"', "include_apply_patch_tool=false")
_FEATURES: Final = (
    "shell_tool",
    "unified_exec",
    "multi_agent",
    "view_image",
    "goals",
    "image_generation",
    "tool_search",
)
#: A call of ours may take as long as a command may; nobody is asked.
_HANDS: Final = 'tool_timeout_sec=330,default_tools_approval_mode="approve"'
_QUIET: Final = ("analytics.enabled=false", "check_for_update_on_startup=false")


def settings(asked: Asked) -> list[str]:
    """The configuration that leads to the gateway and keeps codex quiet, as `-c` words."""
    provider = (
        f'model_providers.runra={{name="runra",base_url="{asked.url}/v1",env_key="{KEY}",wire_api="responses",'
        # Left alone it repeats a failing call 30 times; the gateway has retried already.
        "request_max_retries=1,stream_max_retries=2}"
    )
    words = ["model_provider=runra", provider, *_QUIET]
    if asked.system_prompt is not None:
        words.append(f"developer_instructions={json.dumps(asked.system_prompt)}")  # a TOML string as well
    if asked.tools is not None:
        words += [
            *_NO_TOOLS,
            f'mcp_servers.runra={{url="{asked.tools.url}",bearer_token_env_var="{TOOLS_KEY}",{_HANDS}}}',
        ]
    return [part for word in words for part in ("-c", word)]


def launch(asked: Asked) -> Launch:
    argv = ["codex", "exec", "--json", "--skip-git-repo-check"]
    if asked.tools is None:
        argv += ["--dangerously-bypass-approvals-and-sandbox"]
    else:
        argv += ["--sandbox", "read-only", "-c", 'approval_policy="never"']
        argv += [part for feature in _FEATURES for part in ("--disable", feature)]
    argv += ["-m", asked.model, *settings(asked), "--disable", "apps", "--disable", "plugins"]
    if asked.session_id:
        argv += ["resume", asked.session_id]
    env = {KEY: asked.token}
    if asked.tools is not None:
        env[TOOLS_KEY] = asked.tools.token
    return Launch([*argv, "-"], env)  # "-": the prompt is on stdin


CODEX: Final = Cli(
    id="codex",
    program="codex",
    speaks="responses",
    provider="openai",
    transcript=Codex,
    launch=launch,
    # It has one tool, its shell, so neither some tools nor a plan without any could be held.
    abilities=frozenset({"resume", "messages", "max_turns", "max_cost", "system_prompt", "host"}),
)

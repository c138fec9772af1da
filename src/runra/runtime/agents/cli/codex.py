"""codex: `codex exec --json`."""

from __future__ import annotations

import json
from typing import Final

from runra.runtime.agents.cli.launch import Asked, Cli, Launch
from runra.runtime.agents.transcripts import Codex

#: The variable codex reads the token from.
KEY: Final = "RUNRA_MODEL_TOKEN"
_QUIET: Final = ("analytics.enabled=false", "check_for_update_on_startup=false")


def settings(asked: Asked) -> list[str]:
    """The configuration that leads to the gateway and keeps codex quiet, as `-c` words."""
    provider = (
        f'model_providers.runra={{name="runra",base_url="{asked.url}/v1",env_key="{KEY}",wire_api="responses",'
        # Left alone it repeats a failing call 30 times; the gateway has retried already.
        "request_max_retries=1,stream_max_retries=2}"
    )
    words = ["model_provider=runra", provider, *_QUIET]
    if asked.options.system_prompt is not None:
        words.append(f"developer_instructions={json.dumps(asked.options.system_prompt)}")  # a TOML string as well
    return [part for word in words for part in ("-c", word)]


def launch(asked: Asked) -> Launch:
    argv = ["codex", "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    argv += ["-m", asked.model, *settings(asked), "--disable", "apps", "--disable", "plugins"]
    if asked.session_id:
        argv += ["resume", asked.session_id]
    return Launch([*argv, "-"], {KEY: asked.token})  # "-": the prompt is on stdin


CODEX: Final = Cli(
    id="codex",
    program="codex",
    speaks="responses",
    provider="openai",
    transcript=Codex,
    launch=launch,
    # It has one tool, its shell, so neither some tools nor a plan without any could be held.
    abilities=frozenset({"resume", "messages", "max_turns", "max_cost", "system_prompt"}),
)

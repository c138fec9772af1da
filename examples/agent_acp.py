"""An agent that speaks ACP, here opencode, at work in a sandbox; a person permits each of its tools.

    python examples/agent_acp.py [IMAGE]

Needs a server (`runra serve`), an image with opencode (`runra image build agents/opencode`), and OPENAI_API_KEY.
"""

import asyncio
import sys
from typing import Any

from runra.runtime import Runra


async def ask(tool: str, given: Any) -> bool:
    answer = await asyncio.to_thread(input, f"May it use {tool} with {given}? [y/n] ")
    return answer.strip().lower().startswith("y")


async def main(image: str) -> None:
    config = {"acp": ["opencode", "acp"], "permissionMode": "prompt", "on_permission": ask}
    llm = {"provider": "openai", "config": {"model": "gpt-5.2"}}
    async with Runra(agent={"provider": "custom", "config": config}, llm=llm) as runra:
        runra.on("agent.message", lambda event: print(event.data["text"]))
        result = await runra.start("write a haiku to haiku.txt", sandbox_options={"image": image})
        print(result.success, result.summary or result.error, result.total_cost, result.files)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "agents/opencode"))

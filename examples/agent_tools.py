"""An agent of our own tool loop, with a tool of yours beside its six.

    RUNRA_LLM=vllm RUNRA_MODEL=qwen3 python examples/agent_tools.py "count the files in /etc"

RUNRA_LLM: openai, anthropic, gemini, openrouter, ollama, vllm or custom, with the key in the provider's own variable;
RUNRA_LLM_URL: where its server is, if not at its usual place. A Runra server must be running (`runra serve`).
"""

import asyncio
import os
import sys

from runra.runtime import AgentRun, Event, Runra


async def count_files(run: AgentRun, folder: str) -> int:
    """How many files and folders there are in a folder of the sandbox."""
    return len(await run.sandbox.files.list(folder))


def show(event: Event) -> None:
    data = event.data
    if event.type == "agent.message":
        print(data["text"])
    elif event.type == "agent.tool_call":
        print(f"> {data['tool']} {data['input']}")
    elif event.type == "agent.tool_result":
        print(f"  {data['output'][:200]}")


async def main(prompt: str) -> None:
    model = {"model": os.environ.get("RUNRA_MODEL", "claude-sonnet-4-5")}
    if "RUNRA_LLM_URL" in os.environ:
        model["baseUrl"] = os.environ["RUNRA_LLM_URL"]
    llm = {"provider": os.environ.get("RUNRA_LLM", "anthropic"), "config": model}
    agent = {"provider": "custom", "config": {"tools": [count_files], "maxTurns": 20}}
    async with Runra(agent=agent, llm=llm) as runra:
        runra.on("agent.*", show)
        result = await runra.start(prompt, sandbox_options={"image": "host"})
    print(f"{'done' if result.success else result.error}: {result.total_turns} turns, {result.total_cost} US dollars")
    sys.exit(not result.success)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "How many files are there in /etc?"))

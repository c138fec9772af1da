"""An agent of one's own, a run, and its events as they come. Needs a server: `runra serve`.

python examples/runtime_agent.py
"""

from __future__ import annotations

import asyncio

from runra.runtime import AgentRun, Runra


async def agent(run: AgentRun) -> str:
    """Works in the sandbox, and says so."""
    run.emit("agent.message", {"text": "counting the files of /usr/bin"})
    done = await run.sandbox.exec("ls /usr/bin | wc -l")
    return f"{run.prompt} {done.stdout.strip()}"


async def main() -> None:
    async with (
        Runra(agent={"provider": "custom", "config": {"run": agent}}) as runra,
        runra.stream("How many programs are there?", sandbox_options={"image": "host"}) as run,
    ):
        async for event in run:
            print(f"{event.type:<20} {event.data}")
    print(run.result.summary)


asyncio.run(main())

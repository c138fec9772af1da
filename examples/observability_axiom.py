"""Events to the dataset runra-events of Axiom. Set AXIOM_TOKEN (and AXIOM_URL for
another address than api.axiom.co). Start a server first: `runra serve`."""

import asyncio
import os
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {
    "provider": "axiom",
    "dataset": "runra-events",
    "url": os.environ.get("AXIOM_URL", "https://api.axiom.co"),
    "onError": lambda error: print("axiom:", error),
}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())

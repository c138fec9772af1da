"""A trace of the run to Langfuse. Set LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and LANGFUSE_HOST.

Start a server first: `runra serve`.
"""

import asyncio
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {"provider": "langfuse", "environment": "development"}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())

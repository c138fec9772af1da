"""Events as lines on the terminal, beside what the program itself prints. Start a server first: `runra serve`."""

import asyncio
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {"provider": "console", "format": "pretty", "filter": {"minLevel": "info"}}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())

"""Signed batches to a URL of yours, here WEBHOOK_URL; the receiver checks them with `runra.webhooks.verify`.

Start a server first: `runra serve`.
"""

import asyncio
import os
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {
    "provider": "webhook",
    "url": os.environ.get("WEBHOOK_URL", "http://127.0.0.1:8080/events"),
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",  # your own: runra.webhooks.new_secret()
}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())

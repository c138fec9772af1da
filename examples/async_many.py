"""Ten sandboxes at once with the async client."""

import asyncio
import time

from runra import AsyncRunra


async def work(client: AsyncRunra, number: int) -> str:
    async with await client.sandboxes.create(image="host", metadata={"number": str(number)}) as sandbox:
        result = await sandbox.exec(["python3", "-c", f"print({number} ** 10)"])
        return result.stdout.strip()


async def main() -> None:
    async with AsyncRunra() as client:
        began = time.perf_counter()
        results = await asyncio.gather(*[work(client, number) for number in range(10)])
        for number, result in enumerate(results):
            print(f"{number} ** 10 = {result}")
        print(f"ten sandboxes in {time.perf_counter() - began:.2f} s")


asyncio.run(main())

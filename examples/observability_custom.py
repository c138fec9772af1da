"""Events to a function of your own, and to a class of the document's interface. Start a server first: `runra serve`."""

import asyncio
from collections import Counter
from typing import Any

from runra.runtime import Event, Runra

COUNTED: Counter[str] = Counter()


async def count(events: list[Event]) -> None:
    """Runs on the event loop; a plain `def` would run in a thread."""
    COUNTED.update(event.type for event in events)


class Slowest:
    """Remembers the command that took longest."""

    id = "slowest"

    def initialize(self, config: dict[str, Any]) -> None:
        self.least_ms = config["leastMs"]
        self.slowest = ("", 0)

    def export(self, events: list[Event]) -> None:
        for event in events:
            if event.data["durationMs"] >= max(self.least_ms, self.slowest[1]):
                self.slowest = (event.data["command"], event.data["durationMs"])

    def dispose(self) -> None:
        print("slowest:", *self.slowest, "ms")


OBSERVABILITY: dict[str, Any] = {
    "exporters": [
        {"provider": "custom", "config": {"exporter": count}},
        {
            "provider": "custom",
            "config": {"exporter": Slowest, "config": {"leastMs": 1}},
            "filter": {"types": ["exec.completed"]},
        },
    ]
}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        for seconds in (0.1, 0.3):
            await sandbox.exec(f"sleep {seconds}")
        await sandbox.terminate()
    print(dict(COUNTED))


asyncio.run(main())

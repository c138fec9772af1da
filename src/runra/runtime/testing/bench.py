"""What the conformance suite stands on: a runtime on the provider under test, and one sandbox for many tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from runra.errors import RunraError
from runra.events import Event
from runra.runtime import Runra
from runra.runtime.capabilities import Ability, Capabilities
from runra.runtime.registry import SANDBOX_PROVIDERS
from runra.runtime.sandbox import Sandbox

T = TypeVar("T")

#: What no step may take longer than, in seconds.
STEP_S = 60.0
_ID = "under-test"


class Bench:
    """A runtime on the provider under test, driven from plain tests: one event loop for all of them."""

    def __init__(self, factory: Callable[[], Any], config: dict[str, Any], image: str) -> None:
        self._factory, self._config = factory, config
        self.image = image
        self.runner = asyncio.Runner()
        self.runra = self.another()
        self.can: Capabilities = self.runra.provider.capabilities
        self.events: list[Event] = []
        self.runra.on("*", self.events.append)

    def another(self) -> Runra:
        """A further runtime on the same provider, as after a restart."""
        SANDBOX_PROVIDERS.register(_ID, self._factory)
        try:
            return Runra(sandbox={"provider": _ID, "config": self._config})
        finally:
            SANDBOX_PROVIDERS.unregister(_ID)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(STEP_S):
                return await work

        return self.runner.run(bounded())

    def needs(self, *abilities: Ability) -> None:
        for ability in abilities:
            if ability not in self.can:
                pytest.skip(f"the provider does not declare {ability}")

    def create(self, **options: Any) -> Sandbox:
        return self.run(self.runra.create_sandbox(image=self.image, **options))

    def of(self, sandbox: Sandbox) -> list[str]:
        return [event.type for event in self.events if event.sandbox_id == sandbox.id]

    def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        async def wait() -> None:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.02)

        self.run(wait())

    def alive(self) -> set[str]:
        return {one.id for one in self.run(self.runra.list_sandboxes()) if one.state != "terminated"}


@pytest.fixture(scope="module")
def bench(runra_provider: tuple[Any, dict[str, Any], str]) -> Iterator[Bench]:
    made = Bench(*runra_provider)
    try:
        yield made
    finally:
        made.run(made.runra.dispose())
        made.runner.close()


@pytest.fixture(scope="module")
def sandbox(bench: Bench) -> Iterator[Sandbox]:
    """One for all tests that leave it as it was."""
    made = bench.create()
    try:
        yield made
    finally:
        bench.run(made.terminate())


def refused(work: Callable[[], Any]) -> RunraError:
    with pytest.raises(RunraError) as caught:
        work()
    return caught.value

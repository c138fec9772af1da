"""The bus: order, patterns, bounds, and handlers that are slow, broken or gone."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from runra.errors import RunraError
from runra.events import Event, EventIds, EventType, now_iso
from runra.runtime.bus import Bus

_ids = EventIds()


def event(type: EventType, run_id: str = "run_1") -> Event:
    return Event(id=_ids.next(), timestamp=now_iso(), type=type, sandbox_id="sb_x", run_id=run_id)


async def test_each_gets_what_it_asked_for_in_order() -> None:
    bus = Bus()
    seen: dict[str, list[str]] = {"exec.completed": [], "sandbox.*": [], "*": []}
    for pattern, into in seen.items():
        bus.on(pattern, lambda it, into=into: into.append(it.type))
    types: list[EventType] = ["sandbox.created", "exec.started", "exec.completed", "sandbox.paused"]
    for type in types:
        bus.publish(event(type))
    assert await bus.drain(5)
    assert seen == {
        "exec.completed": ["exec.completed"],
        "sandbox.*": ["sandbox.created", "sandbox.paused"],
        "*": types,
    }


async def test_async_handlers_run_one_after_another() -> None:
    bus, seen = Bus(), []

    async def handler(it: Event) -> None:
        await asyncio.sleep(0.001 if len(seen) % 2 else 0)
        seen.append(it.id)

    bus.on("*", handler)
    sent = [event("exec.started") for _ in range(50)]
    for one in sent:
        bus.publish(one)
    await bus.drain(5)
    assert seen == [one.id for one in sent]


async def test_a_broken_handler_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    bus, seen = Bus(), []

    def broken(it: Event) -> None:
        seen.append(it.type)
        raise ValueError("mine")

    bus.on("*", broken)
    bus.attach(broken)
    with caplog.at_level(logging.ERROR):
        bus.publish(event("exec.started"))
        bus.publish(event("exec.completed"))
        await bus.drain(5)
    assert sorted(seen) == ["exec.completed", "exec.completed", "exec.started", "exec.started"]
    assert "mine" in caplog.text


async def test_a_slow_handler_delays_nobody_and_its_drops_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    bus, quick, slow, gate = Bus(bound=10), [], [], asyncio.Event()

    async def waits(it: Event) -> None:
        await gate.wait()
        slow.append(it.id)

    bus.on("*", waits)
    bus.on("*", lambda it: quick.append(it.id))
    sent = []
    for _ in range(100):
        sent.append(event("exec.started"))
        bus.publish(sent[-1])
        await asyncio.sleep(0)
    assert quick == [one.id for one in sent]
    gate.set()
    assert await bus.drain(5)
    assert slow == [one.id for one in (sent[0], *sent[-10:])]
    assert bus.dropped == 89
    assert caplog.text.count("too slow") == 1


async def test_off_stops_at_once() -> None:
    bus, seen = Bus(), []
    off = bus.on("*", seen.append)
    bus.publish(event("exec.started"))
    off()
    off()
    bus.publish(event("exec.started"))
    await bus.drain(5)
    assert not seen
    assert bus.idle


async def test_close_does_not_wait_for_ever_even_for_a_handler_that_will_not_die() -> None:
    bus = Bus()

    async def stubborn(it: Event) -> None:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                continue

    bus.on("*", stubborn)
    bus.publish(event("exec.started"))
    await asyncio.sleep(0)
    began = time.monotonic()
    await bus.close(0.2)
    assert time.monotonic() - began < 2
    await asyncio.sleep(2)


async def test_a_handler_may_publish_and_close() -> None:
    bus, seen = Bus(), []

    async def chain(it: Event) -> None:
        seen.append(it.type)
        if it.type == "exec.started":
            bus.publish(event("exec.completed"))
        else:
            await bus.drain(1)

    bus.on("*", chain)
    bus.publish(event("exec.started"))
    assert await bus.drain(5)
    assert seen == ["exec.started", "exec.completed"]


@pytest.mark.parametrize("pattern", ["", "exec", "exec.start", "exec.*.x", "sandbx.*", "**"])
def test_a_pattern_that_never_matches_is_refused(pattern: str) -> None:
    with pytest.raises(RunraError) as caught:
        Bus().on(pattern, print)
    assert caught.value.code == "INVALID_REQUEST"

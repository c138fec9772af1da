"""The pipeline: what it delivers, what it drops, and that nobody waits for anybody else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runra.errors import RunraError
from runra.runtime.exporters import Delivery, Pipeline, Redactor, Route
from runra.runtime.options import ExporterFilter
from tests.exporters.making import Recorder, event, failing, never
from tests.hosting import until

QUICK = Delivery(flush_interval_ms=5)


@asynccontextmanager
async def running(*routes: Route, close_s: float = 5.0) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(routes)
    await pipeline.start()
    try:
        yield pipeline
    finally:
        await pipeline.close(close_s)


async def test_every_exporter_gets_every_event_in_order() -> None:
    one, two = Recorder("one"), Recorder("two")
    events = [event() for _ in range(1_000)]
    async with running(Route(one, delivery=QUICK), Route(two, delivery=QUICK)) as pipeline:
        for item in events:
            pipeline.offer(item)
        assert await pipeline.flush()
        assert one.ids == two.ids == [item.id for item in events]
        assert max(len(batch) for batch in one.batches) <= 100
        assert pipeline.stats["one"].exported == 1_000
    assert (one.started, one.closed) == (1, 1)


async def test_a_batch_waits_for_its_size_or_its_interval() -> None:
    by_size, by_time = Recorder("size"), Recorder("time")
    async with running(
        Route(by_size, delivery=Delivery(batch_size=3, flush_interval_ms=60_000)),
        Route(by_time, delivery=Delivery(batch_size=100, flush_interval_ms=150)),
    ) as pipeline:
        begun = time.monotonic()
        for _ in range(7):
            pipeline.offer(event())
        await until(lambda: len(by_size.batches) == 2)
        assert [len(batch) for batch in by_size.batches] == [3, 3]
        assert by_time.batches == []
        await until(lambda: len(by_time.batches) == 1)
        assert time.monotonic() - begun >= 0.14
        assert len(by_time.batches[0]) == 7
        assert pipeline.stats["size"].waiting == 1  # its interval is a minute
    assert [len(batch) for batch in by_size.batches] == [3, 3, 1]  # the end flushes


async def test_the_oldest_are_dropped_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "runra.exporters")
    stuck = asyncio.Event()
    told: list[RunraError] = []

    async def behave(attempt: int) -> None:
        await stuck.wait()

    slow = Recorder("slow", behave)
    options = Delivery(queue_size=50, batch_size=10, flush_interval_ms=0, on_error=told.append)
    async with running(Route(slow, delivery=options)) as pipeline:
        events = [event() for _ in range(500)]
        pipeline.offer(events[0])
        await until(lambda: slow.attempts == 1)
        for item in events[1:]:
            pipeline.offer(item)
        stats = pipeline.stats["slow"]
        assert (stats.waiting, stats.dropped) == (50, 449)
        stuck.set()
        assert await pipeline.flush()
        assert slow.ids == [item.id for item in (events[0], *events[-50:])]
        assert stats.offered == stats.exported + stats.dropped
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
    assert "quicker than they are taken" in warnings[0]
    assert "lost 449" in warnings[1]
    assert [error.code for error in told] == ["RESOURCE_EXHAUSTED"]


async def test_a_steadily_slow_exporter_is_told_of_once_not_with_each_batch(caplog: pytest.LogCaptureFixture) -> None:
    async def behave(attempt: int) -> None:
        await asyncio.sleep(0.005)

    slow = Recorder("slow", behave)
    async with running(Route(slow, delivery=Delivery(queue_size=20, batch_size=5, flush_interval_ms=0))) as pipeline:
        while len(slow.batches) < 20:
            for _ in range(20):
                pipeline.offer(event())
            await asyncio.sleep(0.002)
        begun = [record for record in caplog.records if "quicker" in record.message]
        assert len(begun) == 1


async def test_the_bytes_that_wait_are_bounded() -> None:
    stuck = Recorder("stuck", never)
    options = Delivery(queue_kb=64, batch_size=1, flush_interval_ms=0, timeout_ms=60_000)
    async with running(Route(stuck, delivery=options), close_s=0.05) as pipeline:
        pipeline.offer(event())
        await until(lambda: stuck.attempts == 1)
        for _ in range(100):
            pipeline.offer(event(data={"output": "x" * 10_000}))
        assert pipeline.stats["stuck"].waiting <= 6


async def test_a_dead_back_end_slows_nobody() -> None:
    dead, well = Recorder("dead", never), Recorder("well")
    async with running(Route(dead, delivery=QUICK), Route(well, delivery=QUICK), close_s=0.1) as pipeline:
        begun = time.perf_counter()
        for _ in range(5_000):
            pipeline.offer(event())
        assert (time.perf_counter() - begun) / 5_000 < 0.001  # microseconds, on a machine that others use, too
        await until(lambda: len(well.ids) == 5_000)
        assert not await pipeline.flush(0.05)
        closing = time.monotonic()
        assert not await pipeline.close(0.2)
        assert time.monotonic() - closing < 2.0
        assert pipeline.stats["dead"].dropped == 5_000
        assert well.closed == dead.closed == 1


async def test_retries_until_it_works_with_the_same_batch() -> None:
    flaky = Recorder("flaky", failing(3))
    async with running(Route(flaky, delivery=QUICK)) as pipeline:
        sent = event()
        pipeline.offer(sent)
        assert await pipeline.flush()
        assert (flaky.attempts, flaky.ids) == (4, [sent.id])
        assert pipeline.stats["flaky"].retries == 3
        assert pipeline.stats["flaky"].dropped == 0


async def test_the_back_end_says_when_to_come_again() -> None:
    patient = Recorder("patient", failing(1, retry_after_ms=300))
    async with running(Route(patient, delivery=QUICK)) as pipeline:
        begun = time.monotonic()
        pipeline.offer(event())
        assert await pipeline.flush()
        assert time.monotonic() - begun >= 0.3


async def test_what_cannot_work_is_not_tried_again_and_the_next_batch_has_its_chance() -> None:
    async def behave(attempt: int) -> None:
        if attempt == 1:
            raise KeyError("a bug")

    buggy = Recorder("buggy", behave)
    async with running(Route(buggy, delivery=QUICK)) as pipeline:
        pipeline.offer(event())
        assert await pipeline.flush()
        assert pipeline.stats["buggy"].dropped == 1
        assert "KeyError" in pipeline.stats["buggy"].failure
        pipeline.offer(event())
        assert await pipeline.flush()
        assert pipeline.stats["buggy"].exported == 1


async def test_a_batch_is_given_up_in_the_end() -> None:
    down = Recorder("down", failing())
    async with running(Route(down, delivery=Delivery(flush_interval_ms=0, give_up_ms=350))) as pipeline:
        pipeline.offer(event())
        await until(lambda: pipeline.stats["down"].dropped == 1)
        assert down.attempts > 1


async def test_an_attempt_has_a_deadline_and_is_tried_again() -> None:
    async def behave(attempt: int) -> None:
        if attempt == 1:
            await asyncio.Event().wait()

    hangs = Recorder("hangs", behave)
    async with running(Route(hangs, delivery=Delivery(flush_interval_ms=0, timeout_ms=50))) as pipeline:
        pipeline.offer(event())
        assert await pipeline.flush(5)
        assert hangs.attempts == 2
        assert pipeline.stats["hangs"].failure == ""


async def test_a_batch_taken_in_part_counts_what_was_not() -> None:
    async def behave(attempt: int) -> None:
        raise RunraError("INVALID_REQUEST", "two of them are no good", details={"failed": 2}, retryable=False)

    part = Recorder("part", behave)
    async with running(Route(part, delivery=QUICK)) as pipeline:
        for _ in range(5):
            pipeline.offer(event())
        assert await pipeline.flush()
        assert (pipeline.stats["part"].exported, pipeline.stats["part"].dropped) == (3, 2)


async def test_a_cancellation_of_the_exporters_own_is_a_failure_not_the_end() -> None:
    async def behave(attempt: int) -> None:
        if attempt == 1:
            raise asyncio.CancelledError

    odd = Recorder("odd", behave)
    async with running(Route(odd, delivery=QUICK)) as pipeline:
        pipeline.offer(event())
        assert await pipeline.flush()
        pipeline.offer(event())
        assert await pipeline.flush()
        assert pipeline.stats["odd"].exported == 1


async def test_a_start_that_fails_is_tried_again_while_events_wait() -> None:
    class Late(Recorder):
        async def start(self) -> None:
            await super().start()
            if self.started < 3:
                raise ConnectionRefusedError("not yet")

    late = Late("late")
    async with running(Route(late, delivery=QUICK)) as pipeline:
        sent = [event() for _ in range(3)]
        for item in sent:
            pipeline.offer(item)
        await until(lambda: len(late.ids) == 3)
        assert late.started == 3
        assert late.ids == [item.id for item in sent]


async def test_a_start_that_cannot_work_loses_what_waits_and_holds_up_no_end() -> None:
    class Never(Recorder):
        async def start(self) -> None:
            raise RunraError("INVALID_CONFIG", "no such database", retryable=False)

    broken = Never("broken")
    pipeline = Pipeline([Route(broken, delivery=QUICK)])
    await pipeline.start()
    pipeline.offer(event())
    await until(lambda: pipeline.stats["broken"].dropped == 1)
    begun = time.monotonic()
    assert not await pipeline.close(5)
    assert time.monotonic() - begun < 2
    assert broken.closed == 1  # a half-made connection must go as well


async def test_the_end_cuts_a_back_off_short() -> None:
    flaky = Recorder("flaky", failing(1, retry_after_ms=60_000))
    pipeline = Pipeline([Route(flaky, delivery=QUICK)])
    await pipeline.start()
    pipeline.offer(event())
    await until(lambda: flaky.attempts == 1)
    begun = time.monotonic()
    assert await pipeline.close(10)
    assert time.monotonic() - begun < 5
    assert len(flaky.ids) == 1


async def test_an_exporter_that_ignores_its_cancellation_holds_up_no_end() -> None:
    async def behave(attempt: int) -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if stubborn.done():
                    raise

    stubborn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    pipeline = Pipeline([Route(Recorder("stubborn", behave), delivery=QUICK)])
    await pipeline.start()
    pipeline.offer(event())
    await asyncio.sleep(0.05)
    begun = time.monotonic()
    try:
        assert not await pipeline.close(0.1)
        assert time.monotonic() - begun < 5
        assert pipeline.stats["stubborn"].dropped == 1
    finally:
        stubborn.set_result(None)


async def test_filters_by_type_level_and_condition() -> None:
    kinds = [
        event("sandbox.started", {}),
        event("sandbox.terminated", {"reason": "oom"}),
        event("exec.completed"),
        event("exec.completed", {"exitCode": 137, "oom": True}),
        event("file.read", {"path": "/x"}),
        event("exec.error", {"message": "no"}),
    ]

    async def taken(**filter: Any) -> list[int]:
        recorder = Recorder()
        async with running(Route(recorder, ExporterFilter(**filter), QUICK)) as pipeline:
            for item in kinds:
                pipeline.offer(item)
            assert await pipeline.flush()
            stats = pipeline.stats["recorder"]
            assert (stats.offered, stats.dropped) == (len(recorder.ids), 0)
        return [next(n for n, item in enumerate(kinds) if item.id == id) for id in recorder.ids]

    assert await taken() == [0, 1, 2, 3, 4, 5]
    assert await taken(types=["sandbox.*"]) == [0, 1]
    assert await taken(types=["sandbox.started", "exec.*"]) == [0, 2, 3, 5]
    assert await taken(types=["*"]) == [0, 1, 2, 3, 4, 5]
    assert await taken(min_level="info") == [0, 1, 2, 3, 5]
    assert await taken(min_level="warn") == [1, 3, 5]
    assert await taken(min_level="error") == [5]
    assert await taken(condition=lambda it: it.data.get("exitCode") == 0) == [2]
    assert await taken(types=["exec.*"], min_level="warn", condition=lambda it: it.type == "exec.error") == [5]


async def test_a_condition_that_fails_keeps_the_event_back() -> None:
    recorder = Recorder()
    route = Route(recorder, ExporterFilter(condition=lambda it: it.data["exitCode"] == 0), QUICK)
    async with running(route) as pipeline:
        pipeline.offer(event("sandbox.started", {}))
        pipeline.offer(event())
        assert await pipeline.flush()
        assert len(recorder.ids) == 1
        assert pipeline.stats["recorder"].dropped == 1


@pytest.mark.parametrize("kind", ["plain", "coroutine", "raises"])
async def test_on_error_is_told_once_for_a_stretch(kind: str) -> None:
    told: list[str] = []

    def plain(error: RunraError) -> None:
        told.append(error.message)
        if kind == "raises":
            raise ValueError("the handler's own")

    async def coroutine(error: RunraError) -> None:
        told.append(error.message)

    handler: Callable[[RunraError], Any] = coroutine if kind == "coroutine" else plain
    flaky = Recorder("flaky", failing(5))
    async with running(Route(flaky, delivery=Delivery(flush_interval_ms=0, on_error=handler))) as pipeline:
        pipeline.offer(event())
        assert await pipeline.flush()
        assert flaky.attempts == 6
        await until(lambda: bool(told))
    assert told == ["it is down"]


async def test_offer_never_raises_and_nothing_is_taken_after_the_end() -> None:
    class Hostile(dict[str, Any]):
        def items(self) -> Any:
            raise OSError("no")

    recorder = Recorder()
    pipeline = Pipeline([Route(recorder, delivery=QUICK)])
    await pipeline.start()
    bad = event()
    object.__setattr__(bad, "data", Hostile())
    pipeline.offer(bad)
    pipeline.offer(event())
    assert await pipeline.close(5)
    pipeline.offer(event())
    assert len(recorder.ids) == 1
    assert pipeline.stats["recorder"].dropped == 1
    assert await pipeline.close(5)  # once more is fine
    assert recorder.closed == 1


async def test_secrets_do_not_reach_an_exporter() -> None:
    recorder = Recorder()
    pipeline = Pipeline([Route(recorder, delivery=QUICK)], Redactor(["hunter2hunter2"]))
    await pipeline.start()
    pipeline.offer(event("agent.message", {"text": "it is hunter2hunter2", "apiKey": "abc"}))
    pipeline.redactor.add("later-secret")
    pipeline.offer(event("agent.message", {"text": "now later-secret, too"}))
    await pipeline.close(5)
    told = [item.data for batch in recorder.batches for item in batch]
    assert told == [{"text": "it is [redacted]", "apiKey": "[redacted]"}, {"text": "now [redacted], too"}]


async def test_two_of_a_name_are_told_apart() -> None:
    async with running(Route(Recorder("jsonl"), delivery=QUICK), Route(Recorder("jsonl"), delivery=QUICK)) as pipeline:
        assert list(pipeline.stats) == ["jsonl", "jsonl#2"]


async def test_without_exporters_everything_is_fine() -> None:
    async with running() as pipeline:
        pipeline.offer(event())
        assert await pipeline.flush()

"""Benchmarks of the exporters: events a second, cost added to a command, memory under a dead back end.

    python benchmarks/exporters.py [--events 20000] [--rounds 300]

A command runs in a sandbox of a server that is started for it. Back ends run in this process (HTTP, OTLP) or beside it (PostgreSQL, where Debian's package is installed), so the figures
hold what the back end costs, too. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import io
import logging
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from rich.console import Console
from rich.table import Table

from runra.events import Event
from runra.runtime import Runra
from runra.runtime.exporters import Delivery, Pipeline, Route, build

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.run import server
from tests.exporters.backends import otlp_grpc, otlp_http
from tests.exporters.making import event
from tests.postgres import cluster


def some(count: int) -> list[Event]:
    """Commands as they come: one in four has a longer text."""
    return [
        event(
            "exec.completed" if number % 2 else "exec.started",
            {
                "command": "pytest -q tests " + "x" * (500 if number % 4 == 0 else 0),
                "pid": number // 2,
                "exitCode": 0,
                "durationMs": 12,
            },
            at_ms=number,
            run_id="run_0123456789abcdef",
        )
        for number in range(count)
    ]


async def rate(shape: dict[str, Any], events: Sequence[Event]) -> tuple[float, float]:
    """Events a second from the first offer to the last delivery, and microseconds an offer takes."""
    shape = {**shape, "config": {**shape["config"], "queueSize": 1_000_000, "queueKb": 4_000_000, "flushIntervalMs": 0}}
    pipeline = Pipeline(build({"exporters": [shape]}))
    await pipeline.start()
    begun = time.perf_counter()
    for item in events:
        pipeline.offer(item)
    offered = time.perf_counter() - begun
    assert await pipeline.flush(60), pipeline.stats
    took = time.perf_counter() - begun
    assert await pipeline.close(60)
    (stats,) = pipeline.stats.values()
    assert stats.exported == len(events), stats
    return len(events) / took, offered / len(events) * 1e6


@contextlib.asynccontextmanager
async def sink() -> AsyncIterator[str]:
    """An HTTP server that takes everything."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"failed": 0})

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def throughput(table: Table, count: int, folder: Path) -> None:
    events = some(count)

    async def row(name: str, provider: str, **config: Any) -> None:
        per_second, offer = await rate({"provider": provider, "config": config}, events)
        table.add_row("events a second", name, f"{per_second:,.0f}", f"an offer takes {offer:.1f} µs")

    async def nothing(batch: list[Event]) -> None:
        return None

    await row("custom, does nothing", "custom", exporter=nothing)
    with contextlib.redirect_stderr(io.StringIO()):
        await row("console, json", "console", format="json")
        await row("console, pretty", "console")
    await row("jsonl", "jsonl", path=str(folder / "plain.jsonl"))
    await row("jsonl, fsync, rotated, gzip", "jsonl", path=str(folder / "sync.jsonl"), fsync="batch", maxBytes=1 << 20)
    await row("prometheus", "prometheus", port=None)
    async with sink() as url:
        await row("axiom, batches of 100", "axiom", token="t" * 20, url=url)
        await row("axiom, batches of 1000", "axiom", token="t" * 20, url=url, batchSize=1000)
        await row("webhook", "webhook", url=url, secret="s" * 20)
    async with otlp_http() as receiver:
        await row("otel, http/protobuf", "otel", endpoint=receiver.url)
        await row("otel, http/protobuf, traces alone", "otel", endpoint=receiver.url, signals=["traces"])
    async with otlp_grpc() as receiver:
        await row("otel, grpc", "otel", endpoint=receiver.url, protocol="grpc")
    try:
        with cluster() as socket:
            url = f"postgresql://runra@/postgres?host={socket}"
            await row("postgres, batches of 100", "postgres", url=url, table="one")
            await row("postgres, batches of 1000", "postgres", url=url, table="two", batchSize=1000)
            await row(
                "postgres, a partition a day", "postgres", url=url, table="three", batchSize=1000, partitionByDay=True
            )
    except BaseException as error:
        if type(error).__name__ != "Skipped":
            raise
        table.add_row("events a second", "postgres", "-", "PostgreSQL is not installed")


def several(number: int, folder: Path, **filter: Any) -> dict[str, Any]:
    """That many exporters: files, and metrics as the fifth."""
    kinds: list[dict[str, Any]] = [
        {"provider": "jsonl", "config": {"path": str(folder / f"added{number}-{one}.jsonl")}} for one in range(4)
    ]
    kinds.append({"provider": "prometheus", "config": {"port": None}})
    return {"exporters": [{**kind, **filter} for kind in kinds[:number]]}


async def added(table: Table, folder: Path, url: str, key: str, rounds: int) -> None:
    """What exporters add to a command in a real sandbox of a server of its own, through the runtime."""
    async with contextlib.AsyncExitStack() as stack:

        async def sandbox(observability: dict[str, Any]) -> Any:
            asked = {"provider": "runra-sandbox", "apiUrl": url, "apiKey": key}
            runra = await stack.enter_async_context(Runra(sandbox=asked, observability=observability))
            return await runra.create_sandbox(image="host", timeout_ms=3_600_000)

        # What commands print has to be asked for by its name.
        printed = {"filter": {"types": ["exec.started", "exec.completed", "exec.streamed"]}}
        kinds = {f"{number} exporters": await sandbox(several(number, folder)) for number in (0, 1, 5)}
        kinds["1 exporter, of what is printed too"] = await sandbox(several(1, folder / "printed", **printed))
        for command, what in ((["true"], "exec of true, ms"), (["echo", "line"], "exec of echo, ms")):
            samples: dict[str, list[float]] = {name: [] for name in kinds}
            for number in range(rounds + 10):  # in turn, so that what else the machine does falls on all alike
                for name, one in kinds.items():
                    begun = time.perf_counter()
                    await one.exec(command)
                    if number >= 10:
                        samples[name].append((time.perf_counter() - begun) * 1000)
            for name, found in samples.items():
                ordered = sorted(found)
                note = f"p95 {ordered[int(0.95 * len(ordered))]:.2f}"
                table.add_row(what, name, f"{statistics.median(ordered):.2f}", note)
        megabytes = 100
        command = ["head", "-c", str(megabytes << 20), "/dev/zero"]
        rates: dict[str, list[float]] = {name: [] for name in ("0 exporters", "1 exporter, of what is printed too")}
        for _ in range(3):
            for name, rate_of in rates.items():
                begun = time.perf_counter()
                process = await kinds[name].exec(command, background=True)
                got = 0
                async for chunk in process.output():
                    got += len(chunk.data)
                assert got == megabytes << 20, got
                rate_of.append(megabytes / (time.perf_counter() - begun))
        for name, found in rates.items():
            table.add_row("100 MB of stdout, MB/s", name, f"{statistics.median(found):.0f}", "")


async def dead(table: Table) -> None:
    """A back end that never answers, and events without end: what waits is bounded."""

    class Dead:
        name = "dead"

        async def start(self) -> None:
            return None

        async def export(self, events: Sequence[Event]) -> None:
            await asyncio.Event().wait()

        async def close(self) -> None:
            return None

    for what, text in (("short events", 20), ("events of 16 kB", 16_000)):
        gc.collect()
        tracemalloc.start()
        pipeline = Pipeline([Route(Dead(), delivery=Delivery())])
        await pipeline.start()
        offers: list[float] = []
        for number in range(30_000):
            item = event("agent.message", {"text": f"{number:08d}" * (text // 8)})
            begun = time.perf_counter()
            pipeline.offer(item)
            offers.append((time.perf_counter() - begun) * 1e6)
            if number % 1000 == 0:
                await asyncio.sleep(0)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        held -= 30_000 * 32  # the list of times itself
        stats = pipeline.stats["dead"]
        note = f"{stats.waiting:,} wait, {stats.dropped:,} dropped"
        table.add_row("memory, MB", f"30,000 {what}", f"{held / 1e6:.1f}", note)
        await pipeline.close(0.1)


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=20_000)
    arguments.add_argument("--rounds", type=int, default=300, help="commands of each kind")
    chosen = arguments.parse_args()
    count = chosen.events
    logging.getLogger("runra.exporters").setLevel(logging.ERROR)
    table = Table("what", "how", "figure", "note")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "printed").mkdir()
        await throughput(table, count, Path(folder))
        with server(Path(folder)) as (url, key, _):
            await added(table, Path(folder), url, key, chosen.rounds)
        await dead(table)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    asyncio.run(main())

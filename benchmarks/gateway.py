"""Benchmark: what the model gateway adds to a call, and how much it carries. `python benchmarks/gateway.py [--json]`.

Model, gateway and client are processes of their own; the model's first byte comes at once, so what is left is the gateway.
Direct calls and calls through it alternate. Figures are ms unless the row says otherwise; `p10` is what it takes when the
machine is not busy with something else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from typing import Any

import aiohttp

from runra.runtime.gateway import Gateway, GatewayServer, RunLimits
from runra.runtime.llms import resolve

#: As large as what claude-code sends in its first turn.
LARGE = 76_000
PIECES = 200


def events(format: str) -> list[bytes]:
    """A streamed answer of PIECES pieces."""

    def sse(value: dict[str, Any]) -> bytes:
        name = f"event: {value['type']}\n" if "type" in value else ""
        return f"{name}data: {json.dumps(value)}\n\n".encode()

    if format == "chat":

        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            return sse(
                {
                    "id": "c",
                    "object": "chat.completion.chunk",
                    "model": "m",
                    "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
                }
            )

        usage = {"prompt_tokens": 9, "completion_tokens": 9}
        return [
            chunk({"role": "assistant"}),
            *(chunk({"content": "some words "}) for _ in range(PIECES)),
            chunk({}, "stop"),
            sse({"choices": [], "usage": usage}),
            b"data: [DONE]\n\n",
        ]
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 9, "output_tokens": 1},
    }
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "some words "}}
    return [
        sse({"type": "message_start", "message": message}),
        sse({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        *(sse(delta) for _ in range(PIECES)),
        sse({"type": "content_block_stop", "index": 0}),
        sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}),
        sse({"type": "message_stop"}),
    ]


def model(pipe: Connection) -> None:
    """A model that costs nothing: raw sockets, the answer ready beforehand."""
    answers = {}
    for format in ("chat", "messages"):
        first, *rest = (f"{len(one):x}\r\n".encode() + one + b"\r\n" for one in events(format))
        answers[format] = first, b"".join(rest) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(request.split(b"content-length:")[1].split(b"\r\n")[0]))
                first, rest = answers["chat" if b"/chat/" in request.split(b"\r\n")[0] else "messages"]
                writer.write(head + first)
                await asyncio.sleep(0.02)  # as a model does: the first event comes alone
                writer.write(rest)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    _serve(pipe, lambda: asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20))


def gateway(pipe: Connection, model_url: str) -> None:
    async def start() -> list[str]:
        here = Gateway()
        server = GatewayServer(here)
        url = await server.start()
        tokens = []
        for format in ("messages", "chat"):
            target = resolve(
                "custom", {"model": "m", "baseUrl": model_url + "/v1", "apiKey": "sk-bench-key", "format": format}
            )
            tokens.append(
                (
                    await here.admit(
                        format,
                        target,
                        emit=lambda *_: None,
                        limits=RunLimits(calls_per_minute=1 << 20, concurrent=1 << 10),
                    )
                ).token
            )
        return [url, *tokens]

    _serve(pipe, start)


def _serve(pipe: Connection, start: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    async def main() -> None:
        started = await start()
        pipe.send(started.sockets[0].getsockname()[1] if isinstance(started, asyncio.Server) else started)
        await asyncio.Event().wait()

    asyncio.run(main())


async def first_byte(session: aiohttp.ClientSession, url: str, body: bytes, key: str) -> float:
    began = time.perf_counter()
    async with session.post(url + "/v1/messages", data=body, headers={"x-api-key": key}) as response:
        assert response.status == 200, await response.text()
        await response.content.readany()
        took = time.perf_counter() - began
        await response.read()
    return took * 1000


async def carried(session: aiohttp.ClientSession, url: str, body: bytes, key: str, at_once: int) -> float:
    """Events a second, so many streams at once."""
    began = time.perf_counter()
    await asyncio.gather(*(first_byte(session, url, body, key) for _ in range(at_once * 2)))
    return at_once * 2 * PIECES / (time.perf_counter() - began)


async def measure(model_url: str, url: str, same: str, other: str, rounds: int) -> list[dict[str, Any]]:
    rows = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
        for name, size in (("small request", 100), ("a coding agent's request, 76 kB", LARGE)):
            body = json.dumps(
                {"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "x" * size}]}
            ).encode()
            ways = {"direct": (model_url, "k"), "passed on": (url, same), "translated to Chat": (url, other)}
            samples: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(rounds + 5):
                for way, (where, key) in ways.items():
                    took = await first_byte(session, where, body, key)
                    if turn >= 5:
                        samples[way].append(took)
            base = statistics.median(samples["direct"])
            least = sorted(samples["direct"])[rounds // 10]
            for way, taken in samples.items():
                taken.sort()
                rows.append(
                    {
                        "what": f"first byte, {name}, {way}",
                        "p10": taken[rounds // 10],
                        "p50": taken[len(taken) // 2],
                        "p95": taken[int(len(taken) * 0.95)],
                        "added": statistics.median(taken) - base,
                        "addedLeast": taken[rounds // 10] - least,
                    }
                )
        small = json.dumps(
            {"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "x"}]}
        ).encode()
        for way, (where, key) in ways.items():
            rows.append(
                {"what": f"50 streams at once, {way}, events/s", "p50": await carried(session, where, small, key, 50)}
            )
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", action="store_true")
    options.add_argument("--rounds", type=int, default=100)
    chosen = options.parse_args()
    spawn = multiprocessing.get_context("spawn")
    started: list[Any] = []
    try:
        ours, theirs = spawn.Pipe()
        started.append(spawn.Process(target=model, args=(theirs,), daemon=True))
        started[-1].start()
        model_url = f"http://127.0.0.1:{ours.recv()}"
        ours, theirs = spawn.Pipe()
        started.append(spawn.Process(target=gateway, args=(theirs, model_url), daemon=True))
        started[-1].start()
        url, same, other = ours.recv()
        rows = asyncio.run(measure(model_url, url, same, other, chosen.rounds))
    finally:
        for process in started:
            process.terminate()
            process.join(5)
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        more = (
            f"   p95 {row['p95']:8.2f}   added {row['added']:6.2f} (p10 {row['addedLeast']:5.2f})"
            if "p95" in row
            else ""
        )
        print(f"{row['what']:60} {row['p50']:10.2f}{more}")


if __name__ == "__main__":
    main()

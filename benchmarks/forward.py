"""Benchmark: what the way from a sandbox to a socket of this machine costs. `python benchmarks/forward.py [--json]`.

A server of its own, a sandbox without a network, and an HTTP server at a Unix socket that answers at once, in a process of its
own, as the gateway's first byte would come. The client is inside. Figures are ms and MB/s; `p10` is what a request takes when
the machine is not busy with something else. The same client and server, on this machine and over loopback TCP, are the base.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.sdk.conftest import RealServer

from runra.runtime import Runra
from runra.runtime.forward import forwarded

#: Runs inside: a request of so many bytes, on a fresh connection each or on one; then the two directions.
CLIENT = """
import json, socket, sys, time
port, rounds, size = map(int, sys.argv[1:])
def connect():
    s = socket.create_connection(("127.0.0.1", port), 60); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); return s
def post(s, path, body, answer):
    s.sendall(b"POST %s HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: %d\\r\\n\\r\\n" % (path, len(body)) + body)
    got = len(s.recv(1 << 18)); first = time.perf_counter()
    while got < answer: got += len(s.recv(1 << 18))
    return first
def figures(taken):
    taken = sorted(taken[5:]); n = len(taken)
    return {"p10": taken[n // 10], "p50": taken[n // 2], "p95": taken[int(n * .95)]}
rows = {}
for name, body in (("small", b"x" * 100), ("76 kB", b"x" * 76_000)):
    for fresh in (False, True):
        s, taken = connect(), []
        for _ in range(rounds + 5):
            began = time.perf_counter()
            if fresh: s.close(); s = connect()
            taken.append((post(s, b"/small", body, 40) - began) * 1000)
        rows["first byte, request " + name + (", new connection" if fresh else ", open connection")] = figures(taken)
s = connect()
began = time.perf_counter(); post(s, b"/large", b"x", size); rows["download, MB/s"] = {"p50": size / 1e6 / (time.perf_counter() - began)}
began = time.perf_counter(); post(s, b"/small", bytes(size), 40); rows["upload, MB/s"] = {"p50": size / 1e6 / (time.perf_counter() - began)}
print(json.dumps(rows))
"""


def serve(at: str, ready: Any) -> None:
    """Answers a small request at once, `/large` with as much as was asked for."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                left = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                while left:
                    left -= len(await reader.read(left))
                body = bytes(SIZE) if b"/large" in head.split(b"\r\n")[0] else b"ok"
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        unix = await asyncio.start_unix_server(one, at, limit=1 << 18)
        tcp = await asyncio.start_server(one, "127.0.0.1", 0, limit=1 << 18)
        async with unix, tcp:
            ready.send(tcp.sockets[0].getsockname()[1])
            await asyncio.Event().wait()

    asyncio.run(main())


SIZE = 64 << 20


async def measure(home: Path, tcp: int, rounds: int) -> list[dict[str, Any]]:
    async with Runra() as runra:
        denied = {"egress": {"default": "deny"}}
        async with await runra.create_sandbox(image="host", network=denied) as sandbox:
            began = time.perf_counter()
            async with forwarded(sandbox, home / "s") as forward:
                started = time.perf_counter() - began
                words = ["python3", "-c", CLIENT]
                done = await sandbox.exec(
                    [*words, str(forward.port), str(rounds), str(SIZE)], timeout_ms=300_000, check=True
                )
                ended = time.perf_counter()
            ended = time.perf_counter() - ended
    base = await asyncio.create_subprocess_exec(
        *words, str(tcp), str(rounds), str(SIZE), stdout=asyncio.subprocess.PIPE
    )
    direct = json.loads((await base.communicate())[0])
    rows: list[dict[str, Any]] = [
        {"what": "start of a forward", "p50": started * 1000},
        {"what": "end of a forward", "p50": ended * 1000},
    ]
    for what, found in json.loads(done.stdout).items():
        row = {"what": what, **found, "direct": direct[what]["p50"]}
        if "p95" in row:
            row |= {"added": row["p50"] - row["direct"], "addedLeast": row["p10"] - direct[what]["p10"]}
        rows.append(row)
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", action="store_true")
    options.add_argument("--rounds", type=int, default=200)
    chosen = options.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="rb-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        ours, theirs = spawn.Pipe()
        serving = spawn.Process(target=serve, args=(str(home / "s"), theirs), daemon=True)
        serving.start()
        server = RealServer(home)
        try:
            tcp = ours.recv()
            server.start()
            os.environ["RUNRA_CONFIG_PATH"] = str(server.config)
            rows = asyncio.run(measure(home, tcp, chosen.rounds))
        finally:
            serving.terminate()
            serving.join(5)
            if server.process is not None:
                server.stop()
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        more = (
            f"   p10 {row['p10']:7.2f}   p95 {row['p95']:7.2f}   added {row['added']:6.2f} (p10 {row['addedLeast']:5.2f})"
            if "p95" in row
            else ""
        )
        print(
            f"{row['what']:50} {row['p50']:9.2f}{more}" + (f"   direct {row['direct']:.2f}" if "direct" in row else "")
        )


if __name__ == "__main__":
    main()

"""Waiting: for a descriptor on the event loop (callers bound that with `asyncio.timeout`), and for what cannot be left
half done."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(fd)


async def writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_writer(fd)


async def read_all(fd: int, timeout: float, limit: int = 65_536) -> bytes:
    """Everything up to the end of a pipe, at most `limit` bytes, within `timeout` seconds (else TimeoutError)."""
    os.set_blocking(fd, False)
    found = b""
    async with asyncio.timeout(timeout):
        while len(found) < limit:
            try:
                part = os.read(fd, limit)
            except BlockingIOError:
                await readable(fd)
                continue
            if not part:
                break
            found += part
    return found


async def to_its_end(work: Awaitable[T]) -> T:
    """Await what cannot be interrupted. A cancelled caller waits for its end: then there is something it can clean
    away, and nothing appears behind its back."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # nobody hears of it any more
        raise

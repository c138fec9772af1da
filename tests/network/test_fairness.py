"""What one sandbox takes of what all sandboxes share: questions to the operator's name servers, and the host's table of
connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import dns.message
import pytest

from runra.node.network import upstream as upstreams
from runra.node.network.guest import Guest
from runra.node.network.policy import OPEN
from runra.node.network.resolver import Resolver
from runra.node.network.upstream import NoAnswer, Upstream


def _guest(number: int) -> Guest:
    return Guest(
        f"sb_{number}", "org_test", f"rn{number}", f"10.192.0.{number}", number, number,
        policy=OPEN, secrets={}, opened=(), organization_opened=(), publish=lambda *_: None,
    )  # fmt: skip


def _drain(silent: socket.socket) -> list[str]:
    names = []
    while True:
        try:
            query = dns.message.from_wire(silent.recv(4096))
        except BlockingIOError:
            return names
        names.append(query.question[0].name.to_text())


@pytest.fixture
def silent() -> Any:
    """A name server that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        found.setblocking(False)
        yield found


async def test_one_sandbox_does_not_take_every_question(silent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 questions of one sandbox that nobody answers leave room for another's, of 20 there are for all."""
    monkeypatch.setattr(upstreams, "_AT_ONCE", 20)
    resolver = Resolver(Upstream([silent.getsockname()]), "10.192.0.1", lambda _: None)
    greedy, other = _guest(2), _guest(3)
    asked = [(greedy, f"n{n}.example.") for n in range(64)] + [(other, "other.example.")]
    tasks = [
        asyncio.create_task(resolver.answer(guest, dns.message.make_query(name, "A").to_wire(), most=512))
        for guest, name in asked
    ]
    names: list[str] = []
    async with asyncio.timeout(2):
        while "other.example." not in names:
            names += _drain(silent)
            await asyncio.sleep(0.01)
    assert len(names) <= 17
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_question_does_not_wait_for_ever(silent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "_AT_ONCE", 1)
    monkeypatch.setattr(upstreams, "_PATIENCE", 0.2)
    upstream = Upstream([silent.getsockname()])
    first = asyncio.create_task(upstream.addresses("first.example"))
    async with asyncio.timeout(2):
        while not _drain(silent):
            await asyncio.sleep(0.01)
        with pytest.raises(NoAnswer, match="too many"):
            await upstream.addresses("second.example")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

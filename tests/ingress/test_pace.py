"""The bandwidth of previews: what an operator allows a sandbox, each way, however many connections ask for more."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import replace
from typing import Any, cast

import pytest

from runra.node.agent.tunnel import Tunnel
from runra.server.ingress.pace import Bandwidth, Pace, Paces
from runra.server.settings import ServerSettings

from .conftest import started

#: 16 Mbit/s are two megabytes a second; a burst of one and a quarter second comes on top.
MBIT, RATE, BURST = 16, 2_000_000, 2_500_000
SIZE = 3_600_000


async def test_each_way_and_for_all_connections_together(settings: ServerSettings) -> None:
    async with started(replace(settings, preview_mbit=MBIT)) as world:
        preview = await world.app_sandbox()
        began = time.monotonic()
        pieces = await asyncio.gather(*(preview.get(f"/give?{SIZE // 3}") for _ in range(3)))
        assert [len(body) for _, _, body in pieces] == [SIZE // 3] * 3
        assert time.monotonic() - began >= (SIZE - BURST) / RATE
        began = time.monotonic()
        assert len((await preview.get(f"/give?{RATE}"))[2]) == RATE
        assert time.monotonic() - began > 0.5, "a connection that ends gives no burst back"

        body = bytes(range(256)) * (SIZE // 256)
        began = time.monotonic()
        status, _, said = await preview.get("/sha", "POST", data=body)
        assert (status, json.loads(said)["sha"]) == (200, hashlib.sha256(body).hexdigest())
        assert time.monotonic() - began >= (len(body) - BURST) / RATE


async def test_a_closed_port_does_not_wait_its_turn(settings: ServerSettings) -> None:
    async with started(replace(settings, preview_mbit=1)) as world:
        preview = await world.app_sandbox()
        async with preview.open("GET", "/give?50000000") as answer:
            await answer.content.readexactly(200_000)
            began = time.monotonic()
            assert (await world.api.call("DELETE", f"/sandboxes/{preview.id}/ports/3000")).status == 204
            with pytest.raises(Exception, match=r"(?i)payload|closed|reset"):
                await answer.read()
        assert time.monotonic() - began < 5


def test_a_burst_and_then_the_rate() -> None:
    pace = Pace(1000)
    assert pace.take(1250) == 0
    assert 0.9 < pace.take(1000) <= 1
    assert not pace.rested


def test_paces_are_kept_as_long_as_they_matter() -> None:
    bandwidth, unused = Bandwidth(1), Tunnel(cast(Any, None), 3000)

    def paces(sandbox_id: str) -> Paces:
        return bandwidth.paced(unused, sandbox_id, 0)._paces

    indebted = paces("sb_indebted")
    indebted.outward.take(10 << 20)
    used = bandwidth.paced(unused, "sb_used", 0)
    used._paces.used += 1
    rested = paces("sb_rested")
    paces("sb_another")
    assert paces("sb_indebted") is indebted
    assert paces("sb_used") is used._paces, "a connection that has said nothing yet has no burst of its own"
    assert paces("sb_rested") is not rested

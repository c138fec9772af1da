"""The link under uvloop, whose transports are not asyncio's."""

from __future__ import annotations

import os

import pytest

from runra.node.agent.types import AgentLost, ExecSpec

from .harness import Agent, finish, run

uvloop = pytest.importorskip("uvloop")


def test_under_uvloop(agent: Agent) -> None:
    async def main() -> None:
        link = await agent.connect()
        assert (await run(link, "echo out; exit 3"))[2].code == 3
        data = os.urandom(4 << 20)
        entry = await link.files.write(f"{agent.home}/f", data)
        assert entry.size_bytes == len(data)
        assert b"".join([chunk async for chunk in await link.files.read(f"{agent.home}/f")]) == data
        process = await link.exec(ExecSpec(argv=("cat",), stdin=True))
        await process.write_stdin(data[:200_000])
        await process.close_stdin()
        assert (await finish(process))[0] == data[:200_000]
        other = await agent.connect()
        await link.wait_closed()
        with pytest.raises(AgentLost):
            await link.ping()
        await other.close()

    uvloop.run(main())

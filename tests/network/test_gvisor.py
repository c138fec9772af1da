"""The same network behind gVisor: its own stack speaks, our rules and proxy on the host's side hold."""

from __future__ import annotations

from tests.hosting import need_wall
from tests.network.conftest import Net
from tests.network.internet import EVIL, METADATA, PRIVATE


async def test_a_policy_holds_behind_gvisor(net: Net) -> None:
    need_wall("gvisor")
    sandbox = await net.sandbox({"allow": ["good.example"]}, isolation="gvisor")
    out = await net.probe(
        sandbox,
        f"""out = [tls("good.example", "good.example"), tcp("good.example", 5432, "hello\\n", 10),
        tls("evil.example", "evil.example", verify=False), tls("{EVIL}", "good.example", host="evil.example", verify=False),
        tcp("{EVIL}", 5432, "hello"), tcp("{METADATA}", 80, "hello"), tcp("{PRIVATE}", 5432, "hello")]""",
    )
    assert [result["ok"] and "HTTP/1.1 4" not in result["data"] for result in out[:2]] == [True, True], out
    assert net.internet.at(EVIL) == []
    assert net.internet.at(METADATA) == []
    assert net.internet.at(PRIVATE) == []
    await net.change(sandbox, egress={"default": "deny"})
    assert not (await net.out(sandbox, 'tcp("good.example", 5432, "hello\\n", 10)'))["ok"]

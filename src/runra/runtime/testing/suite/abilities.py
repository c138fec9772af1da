"""What a provider must do when it declares an ability, and that the others are refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from runra.contract.network import Egress, Network
from runra.events import Event
from runra.runtime.capabilities import Ability
from runra.runtime.testing.bench import Bench, refused

SECRET: Final = {"alias": "api", "host": "example.com", "header": "Authorization", "value": "Bearer of-the-bench"}

#: A web server of what an image may have, on loopback.
SERVER: Final = """
mkdir -p /tmp/served && cd /tmp/served && echo from inside > index.html
if command -v python3 >/dev/null; then exec python3 -m http.server 8765 --bind 127.0.0.1; fi
exec busybox httpd -f -p 127.0.0.1:8765
"""


def test_a_port_leads_inside(bench: Bench, runra_reach: Callable[[str], bytes]) -> None:
    bench.needs("ports", "background")
    sandbox = bench.create()
    ready = bench.run(sandbox.exec("command -v python3 || command -v busybox")).exit_code == 0
    if not ready:
        pytest.skip("the image has no web server: neither python3 nor busybox")
    bench.run(sandbox.exec(SERVER, background=True))
    exposed = bench.run(sandbox.expose_port(8765))
    assert exposed.port == 8765
    assert "8765" in exposed.url
    assert [one.port for one in bench.run(sandbox.get_ports())] == [8765]
    deadline = time.monotonic() + 20
    while (page := _page(runra_reach, exposed.url)) != b"from inside\n":
        assert time.monotonic() < deadline, page
        bench.run(asyncio.sleep(0.1))
    bench.until(lambda: "port.exposed" in bench.of(sandbox))
    if "ports" not in bench.can.notes:  # where one can be closed
        bench.run(sandbox.close_port(8765))
        assert bench.run(sandbox.get_ports()) == []
        assert _page(runra_reach, exposed.url) != b"from inside\n"
        bench.until(lambda: "port.closed" in bench.of(sandbox))
    else:
        assert refused(lambda: bench.run(sandbox.close_port(8765))).code == "INVALID_CONFIG"
    bench.run(sandbox.terminate())


def _page(reach: Callable[[str], bytes], url: str) -> bytes:
    try:
        return reach(url)
    except OSError as error:
        return str(error).encode()


def test_a_volume_outlives_its_sandbox(bench: Bench, runra_volume: str) -> None:
    bench.needs("volumes")
    first = bench.create(volumes=[{"name": runra_volume, "path": "/kept"}])
    bench.run(first.exec("echo kept > /kept/file", check=True))
    bench.run(first.terminate())
    second = bench.create(volumes=[{"name": runra_volume, "path": "/kept", "readOnly": True}])
    assert bench.run(second.exec("cat /kept/file")).stdout == "kept\n"
    assert bench.run(second.exec("touch /kept/more")).exit_code != 0
    bench.run(second.terminate())


def test_what_it_uses_is_told(bench: Bench) -> None:
    bench.needs("resources")
    if "events" in bench.can:
        pytest.skip("the provider's server tells it, in its own time")
    runra = bench.another()
    runra._session.resources.every_s = 0.1
    told: list[Event] = []
    runra.on("resource.*", told.append)
    sandbox = bench.run(runra.create_sandbox(image=bench.image))
    bench.until(lambda: "resource.memory" in {event.type for event in told})
    memory = next(event for event in told if event.type == "resource.memory")
    assert memory.sandbox_id == sandbox.id
    assert memory.data["memoryBytes"] > 0
    bench.run(sandbox.terminate())
    bench.run(runra.dispose())


def test_pause_and_resume(bench: Bench) -> None:
    bench.needs("pause")
    sandbox = bench.create()
    bench.run(sandbox.exec("(while :; do date +%s%N; sleep 0.1; done) > /tmp/ticks 2>/dev/null &"))
    bench.run(sandbox.pause())
    bench.run(sandbox.pause())  # pausing a paused one is fine
    assert bench.run(sandbox.refresh()).state == "paused"
    error = refused(lambda: bench.run(sandbox.exec("true")))
    assert error.code == "INVALID_STATE"
    bench.run(sandbox.resume())
    bench.run(sandbox.resume())
    assert bench.run(sandbox.refresh()).state == "running"
    before = bench.run(sandbox.exec("wc -l < /tmp/ticks")).stdout
    bench.run(asyncio.sleep(0.5))
    assert int(bench.run(sandbox.exec("wc -l < /tmp/ticks")).stdout) > int(before), "its processes did not go on"
    bench.run(sandbox.terminate())
    bench.until(lambda: "sandbox.terminated" in bench.of(sandbox))
    life = [type for type in bench.of(sandbox) if type.startswith("sandbox.")]
    expected = ["created", "started", "paused", "resumed", "terminated"]
    assert life == [f"sandbox.{name}" for name in expected]


def test_a_paused_one_is_ended(bench: Bench) -> None:
    bench.needs("pause")
    sandbox = bench.create()
    bench.run(sandbox.pause())
    bench.run(sandbox.terminate())
    assert sandbox.id not in bench.alive()


def test_auto_resume(bench: Bench) -> None:
    bench.needs("pause", "auto_resume")
    sandbox = bench.create(auto_resume=True)
    bench.run(sandbox.pause())
    assert bench.run(sandbox.exec("echo awake")).stdout == "awake\n"
    bench.run(sandbox.terminate())


def test_another_network_policy_while_it_runs(bench: Bench) -> None:
    bench.needs("network_change")
    sandbox = bench.create()
    bench.run(sandbox.set_network(Network(egress=Egress(default="deny"))))
    said = "if exec 3<>/dev/tcp/192.0.2.1/80; then echo open; else echo closed; fi"
    assert "closed" in bench.run(sandbox.exec(["/bin/bash", "-c", f"timeout 5 bash -c '{said}' || echo closed"])).stdout
    if "secrets" not in bench.can:
        before = bench.of(sandbox)
        error = refused(lambda: bench.run(sandbox.set_network(Network.model_validate({"secrets": [SECRET]}))))
        assert (error.code, error.details["abilities"]) == ("INVALID_CONFIG", ["secrets"])
        assert bench.of(sandbox) == before
    bench.run(sandbox.terminate())


def test_a_snapshot_makes_others(bench: Bench) -> None:
    bench.needs("snapshots")
    sandbox = bench.create()
    bench.run(sandbox.files.write("kept.txt", "then"))
    taken = bench.run(sandbox.snapshot())
    bench.run(sandbox.files.write("kept.txt", "now"))
    other = bench.run(bench.runra.create_sandbox(image=f"snapshot:{taken.id}"))
    assert bench.run(other.files.read("kept.txt")) == "then"
    for one in (other, sandbox):
        bench.run(one.terminate())


def test_metadata(bench: Bench) -> None:
    bench.needs("metadata")
    sandbox = bench.create(metadata={"a": "1", "with": "sp ace & ü"})
    found = bench.run(bench.runra.get_sandbox(sandbox.id))
    assert found is not None
    assert found.metadata == {"a": "1", "with": "sp ace & ü"}
    if "metadata_filter" in bench.can:
        other = bench.create(metadata={"a": "2"})
        listed = bench.run(bench.runra.list_sandboxes(metadata={"a": "1"}))
        assert [one.id for one in listed if one.state != "terminated"] == [sandbox.id]
        bench.run(other.terminate())
    bench.run(sandbox.terminate())


def test_a_lifetime_ends_it(bench: Bench) -> None:
    bench.needs("timeout")
    sandbox = bench.create(timeout_ms=2000)
    deadline = time.monotonic() + 20
    while sandbox.id in bench.alive():
        assert time.monotonic() < deadline, "it outlived its time"
        bench.run(asyncio.sleep(0.2))


def test_an_idle_one_is_paused_but_not_one_that_works(bench: Bench) -> None:
    bench.needs("idle_timeout", "pause")
    sandbox = bench.create(idle_timeout_ms=1000)
    assert bench.run(sandbox.exec("sleep 2.5; echo done")).stdout == "done\n"
    assert "sandbox.paused" not in bench.of(sandbox)
    bench.until(lambda: "sandbox.paused" in bench.of(sandbox))  # asking would be activity
    (paused,) = (event for event in bench.events if (event.sandbox_id, event.type) == (sandbox.id, "sandbox.paused"))
    assert paused.data["reason"] == "idle"
    assert 2500 <= paused.data["runtimeDurationMs"] < 15_000
    assert bench.run(sandbox.refresh()).state == "paused"
    bench.run(sandbox.terminate())


def test_limits_are_reported(bench: Bench) -> None:
    bench.needs("cpu_limit", "memory_limit")
    sandbox = bench.create(resources={"cpu": 4, "memory_mb": 3072})
    assert (sandbox.resources["cpu"], sandbox.resources["memoryMb"]) == (4, 3072)
    bench.run(sandbox.terminate())


@pytest.mark.parametrize(
    ("ability", "options"),
    [
        ("cpu_limit", {"resources": {"cpu": 4}}),
        ("disk_limit", {"resources": {"disk_mb": 6000}}),
        ("timeout", {"timeout_ms": 60_000}),
        ("idle_timeout", {"idle_timeout_ms": 60_000}),
        ("auto_resume", {"auto_resume": True}),
        ("isolation", {"isolation": "gvisor"}),
        ("metadata", {"metadata": {"a": "b"}}),
        ("network_deny", {"network": {"egress": {"default": "deny"}}}),
        ("network_allow_list", {"network": {"egress": {"allow": ["example.com"]}}}),
        ("volumes", {"volumes": [{"name": "kept", "path": "/kept"}]}),
        ("secrets", {"network": {"secrets": [SECRET]}}),
    ],
)
def test_what_it_does_not_declare_is_refused(bench: Bench, ability: Ability, options: dict[str, Any]) -> None:
    if ability in bench.can:
        pytest.skip(f"the provider declares {ability}")
    before = bench.alive()
    error = refused(lambda: bench.create(**options))
    assert error.code == "INVALID_CONFIG"
    assert (error.details["provider"], error.details["abilities"]) == (bench.runra.provider.id, [ability])
    assert bench.alive() == before

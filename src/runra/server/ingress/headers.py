"""Which headers pass the way in, which the way out. Pure; names come in lower case."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from runra.errors import RunraError

Headers = list[tuple[bytes, bytes]]

#: About one connection, never passed on (RFC 9110, 7.6.1).
_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade http2-settings".split()
)
#: What a client may not claim about itself: we say it.
_OURS_IN: Final = frozenset(
    b"forwarded x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto x-real-ip host expect "
    b"content-length".split()
)
#: Alt-Svc would send a browser elsewhere under this name. The server's own Date is on every answer.
_OURS_OUT: Final = frozenset((b"alt-svc", b"date"))
_RUNRA: Final = b"x-runra-"
#: An API key, a preview's token or a signed link, wherever it stands: in Authorization, X-API-Key, a cookie, a Referer.
_SECRET: Final = re.compile(rb"rra_(?:live|test)_|rpt_[A-Za-z0-9_-]{40}|runra-token=")

#: No header's value (RFC 9110, 5.5). h11 lets some of it pass, uvicorn none.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

COOKIE: Final = b"runra-preview"
#: Browsers take a cookie of this prefix only from a secure origin, for that host alone.
SECURE_COOKIE: Final = b"__Host-runra-preview"
_COOKIES: Final = frozenset((COOKIE, SECURE_COOKIE))


def values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _named(headers: Headers) -> set[bytes]:
    """The names Connection declares to be about one connection."""
    return {token.strip().lower() for value in values(headers, b"connection") for token in value.split(b",")}


def check_framing(headers: Headers) -> bytes | None:
    """How long a request's body is: its Content-Length, b"chunked", or None for no body.

    INVALID_REQUEST for what two parsers could read differently: both at once (RFC 9112, 6.1), one of them twice, an
    encoding other than chunked.
    """
    lengths, codings = values(headers, b"content-length"), values(headers, b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise RunraError("INVALID_REQUEST", "send one Content-Length or one Transfer-Encoding, not more")
    if codings and codings[0].strip().lower() != b"chunked":
        raise RunraError("INVALID_REQUEST", "Transfer-Encoding: only chunked is known here")
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) < 19):
        raise RunraError("INVALID_REQUEST", "Content-Length: must be a number")
    return b"chunked" if codings else lengths[0] if lengths else None


def cookies(headers: Headers) -> list[bytes]:
    """The values of our own cookie: all of them, since a neighbouring origin may have planted another."""
    found = []
    for value in values(headers, b"cookie"):
        for part in value.split(b";"):
            name, _, content = part.strip().partition(b"=")
            if name in _COOKIES:
                found.append(content)
    return found


def _without_ours(cookie: bytes) -> bytes:
    parts = [part.strip() for part in cookie.split(b";")]
    return b"; ".join(part for part in parts if part and part.partition(b"=")[0].strip() not in _COOKIES)


def inward(headers: Headers, *, authority: bytes, scheme: str, client: str, body: bytes | None) -> Headers:
    """A request's headers as the server inside gets them.

    Host stays the preview's own name. Ours go: API keys, X-Runra-*, our cookie; and what the client says about where
    it comes from, in place of which stands what we know.
    """
    dropped = _HOP | _OURS_IN | _named(headers)
    passed: Headers = [(b"host", authority)]
    for name, value in headers:
        if name in dropped or name.startswith(_RUNRA) or b"_" in name:
            continue  # servers of the CGI kind read `X_Forwarded_For` as the header with hyphens
        if name == b"cookie":
            value = _without_ours(value)
            if not value:
                continue
        if not _SECRET.search(value):
            passed.append((name, value))
    if body == b"chunked":
        passed.append((b"transfer-encoding", b"chunked"))
    elif body is not None:
        passed.append((b"content-length", body))
    passed += [
        (b"x-forwarded-for", client.encode("latin-1")),
        (b"x-forwarded-host", authority),
        (b"x-forwarded-proto", scheme.encode()),
    ]
    return passed


def outward(headers: Headers, *, bodiless: bool) -> Headers:
    """An answer's headers as the client gets them: nothing about connections, none of our names, no cookie for another
    origin than this one. `bodiless` for statuses that have no body. ValueError for a control character in a value."""
    dropped = _HOP | _OURS_OUT | _named(headers)
    if bodiless or values(headers, b"transfer-encoding"):
        dropped |= {b"content-length"}
    passed = []
    for name, value in headers:
        if name in dropped or name.startswith(_RUNRA):
            continue
        if _CONTROL.search(value):
            raise ValueError(f"a control character in {name.decode('ascii', 'replace')}")
        if name == b"set-cookie":
            value = _for_this_host(value)
            if not value:
                continue
        passed.append((name, value))
    return passed


def _for_this_host(cookie: bytes) -> bytes:
    """A cookie without its Domain: for this preview's own origin, not its neighbours'. Ours is not theirs to set."""
    parts = cookie.split(b";")
    if parts[0].partition(b"=")[0].strip() in _COOKIES:
        return b""
    return b";".join(part for part in parts if part.partition(b"=")[0].strip().lower() != b"domain")

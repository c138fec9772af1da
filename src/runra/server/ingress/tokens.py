"""What opens a private port: its token, and links signed for a while. Pure but for the clock."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from runra.server.bootstrap import write_private
from runra.server.ingress.hosts import Place

#: The query parameter of a signed link. No other one is touched.
PARAMETER: Final = b"runra-token"
TOKEN_HEADER: Final = b"x-runra-preview-token"
_LONGEST: Final = 256


def new_token() -> str:
    """A private port's token: 256 random bits."""
    return f"rpt_{secrets.token_urlsafe(32)}"


def new_nonce() -> str:
    return secrets.token_hex(16)


def digest(token: str) -> str:
    """What is stored of a token. A fast hash is right: it is random and too long to guess."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def matches(token: bytes, token_hash: str | None) -> bool:
    """Whether a token is the one with this hash, in constant time."""
    if token_hash is None or len(token) > _LONGEST:
        return False
    return hmac.compare_digest(hashlib.sha256(token).hexdigest(), token_hash)


def load_secret(path: Path) -> bytes:
    """The server's own secret that links are signed with: made at its first start, readable by its owner alone. It
    is no part of the store, so a copy of the store opens nothing."""
    try:
        found = bytes.fromhex(path.read_text().strip())
        if len(found) == 32:
            return found
    except (FileNotFoundError, ValueError):
        pass  # the first start, or a damaged file: links signed before end with it
    fresh = secrets.token_bytes(32)
    write_private(path, f"{fresh.hex()}\n")
    return fresh


class Signer:
    """Signs links and checks them. A signature covers the port, its sandbox, its nonce and the time it ends."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _mac(self, place: Place, nonce: str, expires_ms: str) -> str:
        text = f"{place.sandbox_id}\n{place.port}\n{nonce}\n{expires_ms}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def sign(self, place: Place, nonce: str, expires_ms: int) -> str:
        return f"{expires_ms}.{self._mac(place, nonce, str(expires_ms))}"

    def left_ms(self, signed: bytes, place: Place, nonce: str) -> int:
        """How long a signed text is still good for, in ms; 0 when it is not."""
        if len(signed) > _LONGEST or not signed.isascii():
            return 0
        expires, _, mac = signed.decode().partition(".")
        if not expires.isdigit() or not hmac.compare_digest(mac, self._mac(place, nonce, expires)):
            return 0
        return max(0, int(expires) - int(time.time() * 1000))


def take_parameter(target: bytes) -> tuple[bytes, bytes | None]:
    """A request target without our parameter, and its value. What else is in it stays byte for byte."""
    path, mark, query = target.partition(b"?")
    if not mark:
        return target, None
    value = None
    kept = []
    for part in query.split(b"&"):
        name, _, content = part.partition(b"=")
        if unquote_to_bytes(name) == PARAMETER:
            value = unquote_to_bytes(content)
        else:
            kept.append(part)
    if value is None:
        return target, None
    return (path + b"?" + b"&".join(kept) if kept else path), value

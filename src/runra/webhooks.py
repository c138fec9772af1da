"""Signatures of webhooks: how a delivery is signed, and how its receiver checks it.

The scheme is that of standardwebhooks.com, so receivers may use its libraries as well: HMAC-SHA256 over
`<id>.<timestamp>.<body>`, base64, in `webhook-signature: v1,…` beside `webhook-id` and `webhook-timestamp`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from typing import Final

from runra.errors import RunraError

PREFIX: Final = "whsec_"
#: Seconds a timestamp may be off. An older delivery may be a recorded one that somebody sends again.
TOLERANCE_S: Final = 300


def new_secret() -> str:
    """A secret for `sign` and `verify`: `whsec_` and 32 random bytes in base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`. `timestamp` in seconds since 1970."""
    return "v1," + base64.b64encode(_mac(secret, id, str(timestamp), body)).decode()


def headers(secret: str, id: str, body: bytes) -> dict[str, str]:
    """The headers of a delivery that is sent now."""
    now = int(time.time())
    return {
        "Content-Type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": str(now),
        "webhook-signature": sign(secret, id, now, body),
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes, tolerance_s: int = TOLERANCE_S) -> str:
    """Check a delivery; its id. Deliveries may come more than once: remember the ids you have seen.

    `body` is the bytes as they came, not JSON that was parsed and written again. Raises UNAUTHORIZED when a header is
    missing, the timestamp is more than `tolerance_s` off, or no signature fits.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        id, timestamp, signatures = (given[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise RunraError("UNAUTHORIZED", f"a webhook without the header {error.args[0]}") from None
    if not timestamp.isascii() or not timestamp.isdigit() or abs(time.time() - int(timestamp[:12])) > tolerance_s:
        raise RunraError("UNAUTHORIZED", f"a webhook whose timestamp is more than {tolerance_s} s off")
    expected = _mac(secret, id, timestamp, body)
    for one in signatures.split()[:16]:
        version, _, value = one.partition(",")
        try:
            if version == "v1" and hmac.compare_digest(base64.b64decode(value, validate=True), expected):
                return id
        except (binascii.Error, ValueError):
            continue
    raise RunraError("UNAUTHORIZED", "a webhook whose signature does not fit: another secret, or a changed body")


def _mac(secret: str, id: str, timestamp: str, body: bytes) -> bytes:
    return hmac.digest(_key(secret), f"{id}.{timestamp}.".encode() + body, hashlib.sha256)


def _key(secret: str) -> bytes:
    """The bytes of a secret: base64 after `whsec_`, else the text itself."""
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise RunraError("INVALID_CONFIG", "a webhook secret that begins with whsec_ must go on in base64") from None

"""Identifiers: random, URL-safe, never reused."""

from __future__ import annotations

import re
import secrets
import string
from typing import Final

_ALPHABET: Final = string.ascii_lowercase + string.digits
SANDBOX_ID: Final = re.compile(r"sb_[a-z0-9]{16}")


def new_id(prefix: str, length: int = 16) -> str:
    """`prefix` + `_` + `length` characters of [a-z0-9] from the system's CSPRNG (spec 1: 16 for sandboxes)."""
    return f"{prefix}_{''.join(secrets.choice(_ALPHABET) for _ in range(length))}"

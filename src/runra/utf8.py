"""Bytes of output as JSON carries them: text where they are UTF-8, base64 where not."""

from __future__ import annotations

import base64
from typing import Any


def incomplete_tail(data: bytes) -> int:
    """How many bytes at the end of `data` begin a UTF-8 character that is not finished there (0 to 3)."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 2 if 0xC2 <= byte <= 0xDF else 3 if 0xE0 <= byte <= 0xEF else 4 if 0xF0 <= byte <= 0xF4 else 1
        return back if need > back else 0
    return 0


def as_fields(data: bytes, offset: int) -> dict[str, Any]:
    """The fields of a piece of output: `data`, `offset`, and `encoding` where the data is base64."""
    try:
        return {"data": data.decode(), "offset": offset}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode(), "offset": offset, "encoding": "base64"}

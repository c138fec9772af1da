"""A client's request as it came: read strictly, and changed in place where it must be, every other byte left alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from runra.runtime.llms.failures import failure

_SPACE: Final = " \t\n\r"


@dataclass(frozen=True)
class Body:
    """A JSON object: its text, its value, and where each field's value stands in the text."""

    text: str
    value: dict[str, Any]
    spans: dict[str, tuple[int, int]]

    def replaced(self, changes: dict[str, Any]) -> bytes:
        """The text with these fields set; those it has not are added in front."""
        text = self.text
        for name in sorted((name for name in changes if name in self.spans), key=lambda one: -self.spans[one][0]):
            start, end = self.spans[name]
            text = text[:start] + json.dumps(changes[name]) + text[end:]
        added = {name: value for name, value in changes.items() if name not in self.spans}
        if added:
            opening = text.index("{") + 1
            fields = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in added.items())
            text = text[:opening] + fields + ("," if self.spans else "") + text[opening:]
        return text.encode()


def parse(raw: bytes) -> Body:
    """Read a request's body. A name given twice is refused: we and the provider might each believe another one."""
    try:
        text = raw.decode()
        value, spans = _fields(text)
    except (ValueError, RecursionError, IndexError) as error:
        what = str(error)[:200] or "it ends early"
        raise failure("invalid", f"the request's body is no JSON object: {what}") from None
    return Body(text, value, spans)


def _fields(text: str) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    at = _skip(text, 0)
    if text[at] != "{":
        raise ValueError("it does not begin with {")
    value: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    at = _skip(text, at + 1)
    while text[at] != "}":
        if text[at] != '"':
            raise ValueError(f"a field's name is expected at {at}")
        name, at = decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError(f"a colon is expected at {at}")
        start = _skip(text, at + 1)
        if name in value:
            raise ValueError(f"{name[:60]!r} is there twice")
        value[name], at = decoder.raw_decode(text, start)
        spans[name] = (start, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
            if text[at] == "}":
                raise ValueError(f"a field is expected at {at}")
        elif text[at] != "}":
            raise ValueError(f"a comma is expected at {at}")
    if text[at + 1 :].strip(_SPACE):
        raise ValueError("something follows the object")
    return value, spans


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is there twice in one object")
    return value

"""The one place where secrets leave events, and where what is too long is cut, before any exporter sees them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from runra.events import Event

REDACTED: Final = "[redacted]"
#: A shorter value would be found in innocent text.
_SHORTEST_SECRET: Final = 6
_LONGEST_SECRET: Final = 8_192
_MOST_SECRETS: Final = 10_000

#: Names whose text is a secret whatever it looks like: `password`, `API_KEY`, `authorization`, `aws_secret_access_key`.
_SECRET_NAME: Final = re.compile(
    r"passw(?:or)?d|passphrase|secret|token|credential|authorization|cookie|api[_-]?key|private[_-]?key|"
    r"access[_-]?key|signing[_-]?key|[_-]key$|(?-i:[a-z]Key$)|(?:^|[_-])(?:auth|pwd|dsn)$",
    re.IGNORECASE,
)

#: Each kind of secret: what any of it contains, in lower case (looked for first: a search for a word takes a fraction
#: of a regular expression's time), and the expression. With a group, only the group is the secret.
_KINDS: Final[tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]] = tuple(
    (tuple(words.split()), re.compile(expression))
    for words, expression in (
        ("rra_", r"rra_(?:live|test)_[A-Za-z0-9_-]{8,}"),
        ("sk- pk-lf-", r"\b(?:sk|pk-lf)-[A-Za-z0-9_-]{16,}"),
        ("sk_ rk_", r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
        ("gh", r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"),
        ("glpat-", r"\bglpat-[A-Za-z0-9_-]{16,}"),
        ("xox", r"\bxox[abeprs]-[A-Za-z0-9-]{10,}"),
        ("xaat- xapt-", r"\bxa[ap]t-[A-Za-z0-9-]{16,}"),
        ("hf_ npm_", r"\b(?:hf|npm)_[A-Za-z0-9]{30,}"),
        ("pypi-", r"\bpypi-[A-Za-z0-9_-]{32,}"),
        ("akia asia", r"\bA(?:KIA|SIA)[A-Z0-9]{16}\b"),
        ("aiza", r"\bAIza[A-Za-z0-9_-]{35}"),
        ("eyj", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),
        ("bearer basic", r"(?i:\b(?:bearer|basic)\s+)([A-Za-z0-9._~+/=-]{8,})"),
        ("private key", r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----(.*?)(?:-----END|\Z)"),
        ("://", r"://[^\s/:@]{0,256}:([^\s/@]{1,256})@"),
        (
            "password passwd secret token api_key api-key apikey",
            r"(?i:(?:password|passwd|secret|token|api[_-]?key)[\"']?\s{0,3}[=:]\s{0,3}[\"']?)([^\s\"'&;,]{6,})",
        ),
    )
)

#: What one event may hold at most, so that no sandbox fills an exporter's memory by one event.
_MOST_NODES: Final = 2_000
_DEEPEST: Final = 16
_LONGEST_NAME: Final = 256
_LARGEST_INT: Final = 2**63


@lru_cache(maxsize=4_096)
def is_secret_name(name: str) -> bool:
    """Whether text under this name (of a field, header or environment variable) is to be kept back."""
    return _SECRET_NAME.search(name) is not None


def secret_values(env: Mapping[str, str]) -> list[str]:
    """The values of an environment whose names say that they are secret, for `Redactor.add`."""
    return [value for name, value in env.items() if is_secret_name(name)]


class Redactor:
    """Makes events fit to leave the machine.

    Text under a secret's name, text that looks like a secret, and the values in `secrets` become `[redacted]`. Each
    text is cut at `max_text` characters and all of an event's together at four times that, which the text then says.
    What is left is plain JSON: no lone surrogates, no NaN, no NUL, no numbers beyond 64 bits. The envelope stays as it
    is: we make it.
    """

    def __init__(self, secrets: Iterable[str] = (), max_text: int = 16_384) -> None:
        self.max_text = max_text
        self._secrets: dict[str, None] = {}
        self._overlap = 512
        #: Names as they may be told: the same few come with every event.
        self._names: dict[str, str] = {}
        self.add(*secrets)

    def add(self, *values: str) -> None:
        """Keep back these values wherever they appear from now on. Those under six characters are left: they would be
        found everywhere. The latest 10,000 are known."""
        self._names.clear()
        for value in values:
            if len(value.strip()) >= _SHORTEST_SECRET:
                self._secrets[value[:_LONGEST_SECRET]] = None
                self._overlap = max(self._overlap, min(len(value), _LONGEST_SECRET))
                if len(self._secrets) > _MOST_SECRETS:
                    del self._secrets[next(iter(self._secrets))]

    def clean(self, event: Event) -> tuple[Event, int]:
        """The event without secrets and of bounded size, and its rough size in bytes."""
        walk = _Walk(self, 4 * self.max_text)
        data = {walk.name(name): walk.value(item, str(name)) for name, item in walk.some(event.data.items())}
        # 300: the envelope. Each node costs Python about 60 bytes whatever is in it.
        return event.model_copy(update={"data": data}), 300 + 60 * walk.nodes + walk.used

    def name(self, name: str) -> str:
        """A name of a field, without secrets and of bounded length."""
        known = self._names.get(name)
        if known is None:
            known = self.text(name, _LONGEST_NAME)
            if len(self._names) >= 4_096:
                self._names.clear()
            if len(name) <= _LONGEST_NAME:
                self._names[name] = known
        return known

    def text(self, text: str, limit: int | None = None) -> str:
        """One text without secrets, cut at `limit` characters."""
        limit = self.max_text if limit is None else limit
        # A little beyond the limit is looked at, too: a secret that the cut would halve must still be found.
        window = text[: limit + self._overlap] if len(text) > limit else text
        window = window if window.isascii() else window.encode("utf-8", "backslashreplace").decode()
        cut = len(text) > limit
        spans = sorted(self._spans(window)) if len(window) >= _SHORTEST_SECRET else []
        end = min(limit, len(window)) if cut else len(window)
        if spans:
            window = _without(window, spans, end)
        elif cut:
            window = window[:end]
        if "\0" in window:
            window = window.replace("\0", "\ufffd")
        return f"{window}… [cut: {len(text)} characters in all]" if cut else window

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        for secret in self._secrets:  # a plain search for each is far quicker than one expression of them all
            at = text.find(secret)
            while at >= 0:
                yield at, at + len(secret)
                at = text.find(secret, at + len(secret))
        lower = text.lower()
        for words, expression in _KINDS:
            if any(word in lower for word in words):
                for found in expression.finditer(text):
                    yield found.span(expression.groups)


def _without(text: str, spans: list[tuple[int, int]], end: int) -> str:
    parts: list[str] = []
    at = 0
    for start, stop in spans:
        if start >= end:
            break
        if start >= at:  # else it overlaps with the one before, which has its mark
            parts += [text[at:start], REDACTED]
        at = max(at, stop)
    parts.append(text[at:end])
    return "".join(parts)


class _Walk:
    """One event's data, node by node, within its budget."""

    def __init__(self, redactor: Redactor, budget: int) -> None:
        self._redactor = redactor
        self._budget = budget
        self.nodes = 0
        self.used = 0

    def some(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items as far as the event's number of nodes reaches."""
        for item in items:
            if self.nodes >= _MOST_NODES:
                return
            self.nodes += 1
            yield item

    def name(self, name: Any) -> str:
        told = self._redactor.name(str(name))
        self.used += len(told)
        return told

    def value(self, value: Any, name: str = "", depth: int = 0, secret: bool = False) -> Any:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            secret = secret or (bool(name) and is_secret_name(name))
            return (REDACTED if value else "") if secret else self._text(value)
        if isinstance(value, int):
            return value if abs(value) < _LARGEST_INT else f"{value:#x}"[:64]
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if depth >= _DEEPEST:
            return "… [cut: nested too deep]"
        if isinstance(value, Mapping):
            inside = secret or (bool(name) and is_secret_name(name))
            return {
                self.name(key): self.value(item, str(key), depth + 1, inside) for key, item in self.some(value.items())
            }
        if isinstance(value, list | tuple | set | frozenset):
            inside = secret or (bool(name) and is_secret_name(name))
            return [self.value(item, "", depth + 1, inside) for item in self.some(value)]
        return REDACTED if secret else self._text(str(value))

    def _text(self, text: str) -> str:
        left = max(0, self._budget - self.used)
        clean = self._redactor.text(text, min(self._redactor.max_text, left))
        self.used += len(clean)
        return clean

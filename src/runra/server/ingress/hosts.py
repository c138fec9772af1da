"""Names of previews: from a Host header to a sandbox's port, and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

#: What looks like a preview's label. Such a name never reaches the API, also when no such sandbox can exist.
_LABEL: Final = re.compile(r"([0-9]+)-([a-z0-9_-]*)")
_EXACT: Final = re.compile(r"[1-9][0-9]{3,4}-[a-z0-9]{16}")
#: A name and an optional port, and nothing else: no user name, no path, no blanks.
_AUTHORITY: Final = re.compile(rb"([A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Place:
    """What a preview's name means; `port` is 0 where it can mean no sandbox's port."""

    sandbox_id: str
    port: int


NOWHERE: Final = Place("", 0)


class Names:
    """The names below one domain. `url` is what clients of the API are told: previews take its scheme and port."""

    def __init__(self, domain: str, url: str) -> None:
        self._suffix = "." + domain.lower().strip(".")
        parts = urlsplit(url)
        self.scheme = parts.scheme
        #: Whether browsers say where a request comes from (Fetch Metadata): to trustworthy origins alone.
        self.trustworthy = self.scheme == "https" or self._suffix.endswith(".localhost")
        self._port = f":{parts.port}" if parts.port not in (None, 80 if parts.scheme == "http" else 443) else ""

    def authority(self, place: Place) -> str:
        return f"{place.port}-{place.sandbox_id.removeprefix('sb_')}{self._suffix}{self._port}"

    def url(self, place: Place) -> str:
        """`{scheme}://{port}-{16 characters of the id}.{domain}[:{port of the server}]` (spec 1)."""
        return f"{self.scheme}://{self.authority(place)}"

    def place(self, headers: Iterable[tuple[bytes, bytes]]) -> Place | None:
        """Where a request goes by its Host header (names in lower case); None is the API.

        Several Host headers of which one names a preview go nowhere: which of them counts would be a guess.
        """
        hosts = [value for name, value in headers if name == b"host"]
        places = [self.parse(host) for host in hosts]
        if len(places) == 1:
            return places[0]
        return NOWHERE if any(place is not None for place in places) else None

    def parse(self, host: bytes) -> Place | None:
        """DNS knows no upper case, and a name may end with the root's dot."""
        matched = _AUTHORITY.fullmatch(host)
        if matched is None:
            return None
        name = matched[1].decode("ascii").lower().removesuffix(".")
        label = name.removesuffix(self._suffix)
        if label == name or not _LABEL.fullmatch(label):
            return None
        if not _EXACT.fullmatch(label):
            return NOWHERE
        port, _, rest = label.partition("-")
        return Place(f"sb_{rest}", int(port)) if 1024 <= int(port) <= 65535 else NOWHERE


def absolute_form(target: bytes) -> tuple[bytes, bytes] | None:
    """The authority and the rest of a request target like `http://name/path`; None for any other form."""
    scheme, found, rest = target.partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https"):
        return None
    end = min((at for at in (rest.find(mark) for mark in (b"/", b"?", b"#")) if at >= 0), default=len(rest))
    path = rest[end:]
    return rest[:end], path if path.startswith(b"/") else b"/" + path

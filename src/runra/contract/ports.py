"""Ports of a sandbox that are open to the outside, and links to private ones."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from runra.contract.base import PORT, Range, Request, Wire

#: How long a signed link may live: up to seven days.
LINK_MS: Final = Range(1, 7 * 86_400_000)


class PortRequest(Request):
    """Which port to expose; `private` ones open only with their token or a signed link."""

    port: Annotated[int, PORT]
    private: bool = False


class Port(Wire):
    """An exposed port. `url` is an origin of its own; times are ISO 8601 in UTC."""

    port: int
    url: str
    exposed_at: str
    private: bool = False


class PortExposed(Port):
    """The only answer that carries a private port's `token`; None for a public port, and when it was exposed before."""

    token: str | None = None


class SignedUrlRequest(Request):
    expires_in_ms: Annotated[int, LINK_MS] = Field(3_600_000, description="how long the link opens the port, in ms")


class SignedUrl(Wire):
    """A link that opens a private port in a browser until `expires_at`, unless it is revoked."""

    url: str
    expires_at: str

"""What a sandbox may reach, and what may reach it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from runra.contract.base import PORT, Request


class Egress(Request):
    allow: list[Annotated[str, Field(min_length=1, max_length=253)]] = Field(default_factory=list, max_length=1000)
    #: `allow` when no policy is given, `deny` when only `allow` is given (spec 1).
    default: Literal["allow", "deny"] | None = None


class Ingress(Request):
    #: Only these may be exposed; any port when unset, none when empty.
    allow_ports: list[Annotated[int, PORT]] | None = Field(None, max_length=1000)


class Network(Request):
    egress: Egress | None = None
    ingress: Ingress | None = None

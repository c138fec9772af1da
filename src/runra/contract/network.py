"""What a sandbox may reach, what may reach it, and the secrets that stay outside."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, SecretStr, SerializationInfo, field_serializer, model_validator

from runra.contract.base import PORT, Request

#: Serialization context of whoever sends a secret on: everywhere else its value is left out.
REVEAL: Final = {"reveal": True}
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110 5.6.2
_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,8190}[\x21-\x7e])?")
_HOST: Final = re.compile(r"(?=[^:]{1,253}(:|$))([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z][a-z0-9-]*(:[0-9]{1,5})?")
#: Headers that say how a message is framed or where it goes: those are the gateway's own.
_FRAMING: Final = frozenset(
    "host connection content-length transfer-encoding te trailer upgrade keep-alive proxy-connection expect".split()
)


def _header(value: str) -> str:
    if not _TOKEN.fullmatch(value) or value.lower() in _FRAMING:
        raise ValueError("must be the name of a header such as Authorization or x-api-key")
    return value


def _value(value: SecretStr) -> SecretStr:
    # The message must not carry what was given.
    if not _VALUE.fullmatch(value.get_secret_value()):
        raise ValueError("must be 1 to 8192 printable ASCII characters without blanks at its ends")
    return value


def _secret_host(value: str) -> str:
    host = value.lower().removesuffix(".")
    port = host.rpartition(":")[2] if ":" in host else "443"
    if not _HOST.fullmatch(host) or not 0 < int(port) < 65536:
        raise ValueError("must be a host name such as api.example.com, with :port if it is not 443")
    return host


class Egress(Request):
    #: Names, `*.` names, IPv4 addresses and ranges, each with `:port` if wanted.
    allow: list[Annotated[str, Field(min_length=1, max_length=253)]] = Field(default_factory=list, max_length=1000)
    #: `allow` when no policy is given, `deny` when only `allow` is given (spec 1).
    default: Literal["allow", "deny"] | None = None


class Ingress(Request):
    #: Only these may be exposed; any port when unset, none when empty.
    allow_ports: list[Annotated[int, PORT]] | None = Field(None, max_length=1000)


class NetworkSecret(Request):
    """A header that is added outside the sandbox to what it asks of `http://{alias}.gateway.runra.internal/`; the
    request leaves over TLS to `host` only. No answer shows `value`."""

    alias: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    host: Annotated[str, AfterValidator(_secret_host)]
    header: Annotated[str, AfterValidator(_header)] = "Authorization"
    value: Annotated[SecretStr, AfterValidator(_value)]

    @field_serializer("value", when_used="json")
    def _hide(self, value: SecretStr, info: SerializationInfo) -> str:
        return value.get_secret_value() if info.context and info.context.get("reveal") else ""


class Network(Request):
    egress: Egress | None = None
    ingress: Ingress | None = None
    secrets: list[NetworkSecret] = Field(default_factory=list, max_length=32)

    @model_validator(mode="after")
    def _apart(self) -> Network:
        aliases = [secret.alias for secret in self.secrets]
        if len(set(aliases)) != len(aliases):
            raise ValueError("two secrets with one alias")
        return self

    def shown(self) -> dict[str, Any]:
        """As answers show it: what was set, without the secrets' values."""
        wire = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
        for secret in wire.get("secrets", ()):
            secret.pop("value", None)
        return wire

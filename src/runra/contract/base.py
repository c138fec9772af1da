"""What all of the contract's types share: bases, ranges, checked texts, pages."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

#: Longest command, in bytes of UTF-8; beyond it COMMAND_TOO_LONG.
MAX_COMMAND_BYTES: Final = 1 << 20
#: Largest JSON request body, in bytes. Raw file bodies have no such bound.
MAX_BODY_BYTES: Final = 8 << 20

#: Validation context of a client: it leaves ranges to the server, which may have widened them.
CLIENT: Final = {"client": True}


class Range:
    """An inclusive range from the document. The operator may widen it (`low`, `high` are read at each check)."""

    def __init__(self, low: int, high: int, allowed: tuple[int, ...] | None = None) -> None:
        self.low, self.high, self.allowed = low, high, allowed

    def _check(self, value: int, info: ValidationInfo) -> int:
        if info.context and info.context.get("client"):
            return value
        if self.allowed and value not in self.allowed:
            raise ValueError(f"must be one of {', '.join(map(str, self.allowed))}, not {value}")
        if not self.low <= value <= self.high:
            raise ValueError(f"must be between {self.low} and {self.high}, not {value}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = dict(handler(schema))
        if self.allowed:
            described["enum"] = list(self.allowed)
        else:
            described.update(minimum=self.low, maximum=self.high)
        return described


#: The document's ranges, by wire name.
CPU: Final = Range(2, 8, allowed=(2, 4, 8))
MEMORY_MB: Final = Range(2048, 16384)
DISK_MB: Final = Range(5120, 51200)
TIMEOUT_MS: Final = Range(1, 86_400_000)
IDLE_TIMEOUT_MS: Final = Range(1, 86_400_000)
EXEC_TIMEOUT_MS: Final = Range(1, 300_000)
PORT: Final = Range(1024, 65535)


def no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL byte")
    return value


def _env_names(value: dict[str, str]) -> dict[str, str]:
    for name, content in value.items():
        if not name or "=" in name or "\0" in name or "\0" in content:
            raise ValueError(f"{name!r} is not an environment variable: no '=' or NUL in names, no NUL in values")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or "/../" in f"{value}/":
        raise ValueError("must be an absolute path without '..'")
    return value


def _metadata(value: dict[str, str]) -> dict[str, str]:
    if len(value) > 20:
        raise ValueError(f"at most 20 keys, not {len(value)}")
    for key, content in value.items():
        if "\0" in key or "\0" in content:
            raise ValueError(f"{key[:40]!r} must not contain a NUL byte, nor its value")
        if not 0 < len(key) <= 128 or len(content) > 2048:
            raise ValueError(f"key {key[:40]!r}: 1 to 128 characters, its value at most 2048")
    return value


# A reference as registries write it (host:port/path:tag@digest), or this product's `snapshot:<name>`.
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")


def _image(value: str) -> str:
    if not _IMAGE.fullmatch(value) or ".." in value or "//" in value:
        raise ValueError(f"{value[:80]!r} is not an image name such as 'host' or 'python:3.12'")
    return value


# Names of what a user keeps: snapshots, volumes. They stand in image names, paths and command lines; what looks like
# an id could be taken for one.
_KEPT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_KEPT_ID: Final = re.compile(r"(vol|snap)_[a-z0-9]{16}")


def _kept(value: str) -> str:
    if not _KEPT.fullmatch(value) or ".." in value or _KEPT_ID.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is no name: 1 to 63 letters, digits, '_', '-' or single dots; and no id")
    return value


Text = Annotated[str, AfterValidator(no_nul)]
PathText = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(no_nul)]
AbsolutePath = Annotated[PathText, AfterValidator(_absolute)]
Env = Annotated[dict[str, str], AfterValidator(_env_names)]
Metadata = Annotated[dict[str, str], AfterValidator(_metadata)]
ImageName = Annotated[str, AfterValidator(_image)]
Kept = Annotated[str, AfterValidator(_kept)]


class Wire(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", validate_default=False)

    def to_wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


class Request(Wire):
    """Base of all requests: strict about types, and a field it does not know is an error."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, validate_default=False
    )

    def to_wire(self, context: dict[str, Any] | None = None) -> dict[str, Any]:
        """Only what was set: the server owns the defaults. Secret values only with the context REVEAL."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, context=context)


Item = TypeVar("Item")


class Pagination(Wire):
    total: int
    limit: int
    offset: int
    has_more: bool


class Page(Wire, Generic[Item]):
    data: list[Item]
    pagination: Pagination


class Health(Wire):
    status: Literal["ok"] = "ok"
    version: Literal["v1"] = "v1"
    timestamp: str

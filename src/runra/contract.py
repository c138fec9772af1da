"""The contract's types: what goes over the wire, used by the server and the SDK alike (spec 1).

snake_case in Python, camelCase on the wire. Durations are milliseconds, sizes MB where the name says so and
bytes otherwise, timestamps ISO 8601 in UTC. Unknown fields in a request are refused by name; unknown fields in
an answer are kept out of the way, since new fields are not a breaking change.
"""

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
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

SandboxState = Literal["creating", "running", "paused", "terminated"]
TerminationReason = Literal["user", "timeout", "oom", "disk", "node_lost", "image", "error"]

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


def _no_nul(value: str) -> str:
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
        if not 0 < len(key) <= 128 or len(content) > 2048:
            raise ValueError(f"key {key[:40]!r}: 1 to 128 characters, its value at most 2048")
    return value


# A reference as registries write it (host:port/path:tag@digest), or this product's `snapshot:<name>`.
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")


def _image(value: str) -> str:
    if not _IMAGE.fullmatch(value) or ".." in value or "//" in value:
        raise ValueError(f"{value[:80]!r} is not an image name such as 'host' or 'python:3.12'")
    return value


Text = Annotated[str, AfterValidator(_no_nul)]
PathText = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_no_nul)]
AbsolutePath = Annotated[PathText, AfterValidator(_absolute)]
Env = Annotated[dict[str, str], AfterValidator(_env_names)]
Metadata = Annotated[dict[str, str], AfterValidator(_metadata)]
ImageName = Annotated[str, AfterValidator(_image)]


class Wire(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", validate_default=False
    )

    def to_wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


class Request(Wire):
    """Base of all requests: strict about types, and a field it does not know is an error."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, validate_default=False
    )

    def to_wire(self) -> dict[str, Any]:
        """Only what was set: the server owns the defaults."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


# --- sandboxes ---------------------------------------------------------------------------------------------


class Resources(Request):
    """Hard limits of a sandbox: ceilings, not reservations."""

    cpu: Annotated[int, CPU] = Field(2, description="cores")
    memory_mb: Annotated[int, MEMORY_MB] = Field(4096, description="MB, tmpfs and page cache included")
    disk_mb: Annotated[int, DISK_MB] = Field(10240, description="MB it may write")


class Egress(Request):
    allow: list[Annotated[str, Field(min_length=1, max_length=253)]] = Field(default_factory=list, max_length=1000)
    #: `allow` when no policy is given, `deny` when only `allow` is given (spec 1).
    default: Literal["allow", "deny"] | None = None


class Ingress(Request):
    allow_ports: list[Annotated[int, PORT]] = Field(default_factory=list, max_length=1000)


class Network(Request):
    egress: Egress | None = None
    ingress: Ingress | None = None


class SandboxConfig(Request):
    """The body of a create."""

    image: ImageName = Field(examples=["host"])
    resources: Resources = Field(default_factory=Resources)
    env: Env = Field(default_factory=dict)
    workdir: AbsolutePath = "/workspace"
    timeout_ms: Annotated[int, TIMEOUT_MS] = Field(300_000, description="longest time running, in ms")
    idle_timeout_ms: Annotated[int, IDLE_TIMEOUT_MS] = Field(120_000, description="pause after so long idle, in ms")
    metadata: Metadata = Field(default_factory=dict)
    network: Network | None = None
    auto_resume: bool = Field(False, description="calls and preview traffic resume the sandbox when it is paused")
    isolation: str | None = Field(None, description="a wall the operator allows; the server's own when unset")


class SandboxPatch(Request):
    timeout_ms: Annotated[int, TIMEOUT_MS] | None = None
    idle_timeout_ms: Annotated[int, IDLE_TIMEOUT_MS] | None = None
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _something(self) -> SandboxPatch:
        if not self.model_fields_set:
            raise ValueError("give at least one of timeoutMs, idleTimeoutMs, metadata")
        for name in self.model_fields_set:
            if getattr(self, name) is None:
                raise ValueError(f"{to_camel(name)} must not be null")
        return self


class SandboxInfo(Wire):
    """A sandbox as the API shows it. `enforced` says of each limit whether this server holds it."""

    id: str
    organization_id: str = ""
    state: SandboxState
    image: str
    resources: dict[str, int]
    env: dict[str, str]
    workdir: str
    timeout_ms: int
    idle_timeout_ms: int
    metadata: dict[str, str]
    network: dict[str, Any] = Field(default_factory=dict)
    auto_resume: bool = False
    isolation: str = ""
    enforced: dict[str, bool] = Field(default_factory=dict)
    volumes: list[dict[str, Any]] = Field(default_factory=list)
    created_at: str
    started_at: str | None = None
    paused_at: str | None = None
    terminated_at: str | None = None
    termination_reason: TerminationReason | None = None


Item = TypeVar("Item")


class Pagination(Wire):
    total: int
    limit: int
    offset: int
    has_more: bool


class Page(Wire, Generic[Item]):
    data: list[Item]
    pagination: Pagination


# --- exec --------------------------------------------------------------------------------------------------


class ExecRequest(Request):
    """Run a program: `command` through bash (else sh), or `argv` as it stands. Exactly one of them."""

    command: Text | None = Field(None, min_length=1)
    argv: list[Text] | None = Field(None, min_length=1, max_length=10_000)
    cwd: PathText | None = None
    env: Env = Field(default_factory=dict)
    timeout_ms: Annotated[int, EXEC_TIMEOUT_MS] = Field(60_000, description="kills the whole process tree, in ms")
    stdin: str | None = None
    user: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_no_nul)] | None = None
    #: Answer 202 with a process id at once. Such a process has no timeout unless `timeoutMs` is given, and its
    #: stdin stays open for `POST …/processes/{pid}/stdin`.
    background: bool = False

    @model_validator(mode="after")
    def _one_program(self) -> ExecRequest:
        if (self.command is None) == (self.argv is None):
            raise ValueError("give exactly one of 'command' and 'argv'")
        return self


class ExecutionResult(Wire):
    """How a command ended. `exit_code` as a shell shows it (126, 127, 128+n); `signal` names what killed it."""

    stdout: str
    stderr: str
    exit_code: int | None
    duration_ms: int
    signal: str | None = None
    oom: bool = False
    truncated: bool = False


class ProcessStarted(Wire):
    pid: int
    started_at: str


class ProcessInfo(Wire):
    pid: int
    command: str
    state: Literal["running", "exited"]
    exit_code: int | None = None
    signal: str | None = None
    oom: bool = False
    started_at: str
    ended_at: str | None = None


class SignalRequest(Request):
    signal: str = Field(pattern=r"^SIG[A-Z0-9+]{2,12}$", examples=["SIGTERM"])


# --- files -------------------------------------------------------------------------------------------------

FileType = Literal["file", "directory", "symlink", "fifo", "socket", "char", "block"]


class FileEntry(Wire):
    """A name in a folder. `type` is of the name itself; `is_directory` follows a symbolic link."""

    name: str
    path: str
    is_directory: bool
    size_bytes: int
    modified_at: str
    mode: str = Field("", description="octal, such as '0644'")
    owner: str = ""
    group: str = ""
    symlink_target: str | None = None
    type: FileType = "file"


class MkdirRequest(Request):
    path: PathText
    recursive: bool = False


class MoveRequest(Request):
    from_: PathText = Field(alias="from")
    to: PathText


class WatchEvent(Wire):
    type: Literal["created", "modified", "deleted", "moved"]
    path: str


# --- keys and organizations --------------------------------------------------------------------------------

Scope = Literal[
    "sandbox:create",
    "sandbox:read",
    "sandbox:delete",
    "sandbox:pause",
    "sandbox:execute",
    "sandbox:files",
    "sandbox:ports",
    "sandbox:*",
    "billing:read",
    "billing:manage",
    "webhooks:manage",
    "admin:*",
]
Profile = Literal["read-only", "sandbox-user", "full"]


class KeyLimits(Request):
    """What sandboxes made with a key may ask for. Unset means no bound beyond the organization's."""

    images: list[str] | None = None
    cpu: int | None = Field(None, ge=1)
    memory_mb: int | None = Field(None, ge=1)
    disk_mb: int | None = Field(None, ge=1)
    max_sandboxes: int | None = Field(None, ge=0)


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_no_nul)]


class KeyCreate(Request):
    name: Name
    scopes: list[Scope] | None = Field(None, min_length=1)
    profile: Profile | None = None
    organization_id: str | None = None
    expires_at: str | None = Field(None, description="ISO 8601; never when unset")
    limits: KeyLimits | None = None

    @model_validator(mode="after")
    def _one_grant(self) -> KeyCreate:
        if (self.scopes is None) == (self.profile is None):
            raise ValueError("give exactly one of 'scopes' and 'profile'")
        return self


class KeyInfo(Wire):
    id: str
    name: str
    prefix: str
    organization_id: str
    scopes: list[str]
    limits: dict[str, Any] | None = None
    created_at: str
    expires_at: str | None = None
    last_used_at: str | None = None


class KeyCreated(KeyInfo):
    """The only answer that carries the key itself."""

    key: str


class OrganizationCreate(Request):
    name: Name


class OrganizationInfo(Wire):
    id: str
    name: str
    created_at: str


class Health(Wire):
    status: Literal["ok"] = "ok"
    version: Literal["v1"] = "v1"
    timestamp: str

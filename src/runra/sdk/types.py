"""The SDK's own types: options as models that also take dicts and keywords, and a page of sandboxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic.alias_generators import to_camel

from runra import contract
from runra.contract import Pagination, Request, Wire
from runra.errors import RunraError
from runra.sdk.failures import strange_answer

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")


def checked(model: type[Model], values: Mapping[str, Any]) -> Model:
    """The model of what a caller gave: types and names are checked here, ranges by the server.

    Raises INVALID_REQUEST that names each field and what it must be.
    """
    try:
        return model.model_validate(dict(values), context=contract.CLIENT)
    except ValidationError as error:
        raise refused(error) from None


def refused(error: ValidationError) -> RunraError:
    """INVALID_REQUEST from what pydantic found. Values stay out of it: they may be secrets."""
    problems = [
        {"field": ".".join(str(part) for part in item["loc"]), "message": _says(item["type"], item["msg"])}
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:10]
    ]
    text = "; ".join(f"{p['field']}: {p['message']}" if p["field"] else p["message"] for p in problems)
    details: dict[str, Any] = {"errors": problems}
    if problems and problems[0]["field"]:
        details["field"] = problems[0]["field"]
    return RunraError("INVALID_REQUEST", text, details=details)


def _says(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown option; check its spelling"
    if kind == "missing":
        return "is required"
    return message.removeprefix("Value error, ")


def parsed(model: type[Model], body: Any, doing: str, request_id: str = "") -> Model:
    """The model of what a server answered. Raises INTERNAL_ERROR when it is something else."""
    try:
        return model.model_validate(body, context=contract.CLIENT)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "answer"
        raise strange_answer(doing, f"{where}: {first['msg']}", request_id) from None


def merged(options: BaseModel | Mapping[str, Any] | None, keywords: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Options given as a model, a dict or keywords, by wire name; keywords win, and None means unset."""
    if options is None:
        base: Mapping[str, Any] = {}
    elif isinstance(options, BaseModel):
        base = {name: getattr(options, name) for name in options.model_fields_set}
    elif isinstance(options, Mapping):
        base = options
    else:
        raise RunraError("INVALID_REQUEST", f"{what}: give a model, a dict or keywords, not {type(options).__name__}")
    for name in base:
        if not isinstance(name, str):
            raise RunraError("INVALID_REQUEST", f"{what}: {name!r} is no name of an option")
    named = {to_camel(name): value for name, value in base.items()}
    named.update({to_camel(name): value for name, value in keywords.items() if value is not None})
    return named


class SandboxConfig(contract.SandboxConfig):
    """Options of `sandboxes.create`. Only `image` is required; what is left unset, the server decides.

    `resources` (`cpu` cores, `memory_mb`, `disk_mb`: MB), `env`, `workdir`, `timeout_ms` (longest time running, ms),
    `idle_timeout_ms` (paused after so long idle, ms), `metadata` (at most 20 keys), `network`, `auto_resume`,
    `isolation`, `volumes` (each with `name`, `path` and perhaps `read_only`). Raises RunraError INVALID_REQUEST for a
    wrong type or name; the server checks the ranges.
    """

    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            try:
                self.__pydantic_validator__.validate_python(values, self_instance=self, context=contract.CLIENT)
            except ValidationError as error:
                raise refused(error) from None


class ResourceOptions(TypedDict, total=False):
    """Hard limits: `cpu` cores, `memory_mb` and `disk_mb` in MB."""

    cpu: int
    memory_mb: int
    disk_mb: int


class EgressOptions(TypedDict, total=False):
    """What may be reached: `allow` (names, `*.` names, IPv4 addresses and ranges, `:port` if wanted), `default`."""

    allow: Sequence[str]
    default: Literal["allow", "deny"]


class SecretOptions(TypedDict, total=False):
    """A header added outside the sandbox: inside, `http://{alias}.gateway.runra.internal/` stands for `host`."""

    alias: str
    host: str
    header: str
    value: str


class SandboxOptions(TypedDict, total=False):
    """The keywords of `sandboxes.create`; see `SandboxConfig`."""

    image: str
    resources: ResourceOptions | contract.Resources | Mapping[str, int]
    env: Mapping[str, str]
    workdir: str
    timeout_ms: int
    idle_timeout_ms: int
    metadata: Mapping[str, str]
    network: contract.Network | Mapping[str, Any]
    auto_resume: bool
    isolation: str
    volumes: Sequence[contract.VolumeMount | Mapping[str, Any]]


class ExecOptions(Request):
    """Options of `exec`. `cwd`: the sandbox's workdir when unset; `env` is added to the sandbox's;
    `timeout_ms`: 60,000 ms when unset; `stdin`: text piped in; `user`: a name, uid or `uid:gid`;
    `on_stdout`, `on_stderr`: called with each line, without its end; `check`: raise CommandFailed unless it
    exits with 0; `background`: return a process handle at once.
    """

    cwd: str | None = None
    env: Mapping[str, str] | None = None
    timeout_ms: int | None = None
    stdin: str | bytes | None = None
    user: str | None = None
    on_stdout: Callable[[str], Any] | None = None
    on_stderr: Callable[[str], Any] | None = None
    check: bool = False
    background: bool = False


class ListOptions(Request):
    """Filters of `sandboxes.list`: `state`, `image`, `metadata` (every pair must match); `limit` (the server's
    default is 20, at most 100) and `offset`."""

    state: Literal["creating", "running", "paused", "terminated"] | None = None
    image: str | None = None
    limit: int | None = None
    offset: int | None = None
    metadata: dict[str, str] | None = None


@dataclass(frozen=True)
class SandboxList(Generic[Item]):
    """One page of sandboxes. Iterate it, or read `data` and `pagination` (total, limit, offset, has_more)."""

    data: list[Item]
    pagination: Pagination

    def __iter__(self) -> Iterator[Item]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        return self.data[index]


class ResourceLimits(Wire):
    """What a sandbox may use: `cpu` cores, `memory_mb` and `disk_mb` in MB."""

    cpu: int = 0
    memory_mb: int = 0
    disk_mb: int = 0


class EgressPolicy(Wire):
    allow: list[str] = Field(default_factory=list)
    default: str = ""


class IngressPolicy(Wire):
    allow_ports: list[int] = Field(default_factory=list)


class SecretPolicy(Wire):
    """A secret of the gateway; its value is never shown."""

    alias: str = ""
    host: str = ""
    header: str = "Authorization"


class NetworkPolicy(Wire):
    """A sandbox's network policy; None where there is none."""

    egress: EgressPolicy | None = None
    ingress: IngressPolicy | None = None
    secrets: list[SecretPolicy] = Field(default_factory=list)


class RawPage(Wire):
    """A page whose items are still JSON values."""

    data: list[Any]
    pagination: Pagination


@dataclass(frozen=True)
class ImageProgress:
    """How far a pull is: bytes that came of those there are, layers that are ready of those there are."""

    done_bytes: int
    total_bytes: int
    layers_done: int
    layers: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> ImageProgress:
        """From the data of an `image.progress` event."""
        names = ("doneBytes", "totalBytes", "layersDone", "layers")
        numbers = (data.get(name) for name in names)
        return cls(*(number if isinstance(number, int) else 0 for number in numbers))


class TerminalExit(Wire):
    """How a terminal's command ended."""

    exit_code: int | None = None
    signal: str | None = None
    duration_ms: int = 0
    oom: bool = False


@dataclass(frozen=True)
class Transfer:
    """What an upload or download moved. `skipped` names what could not be taken over, each with its reason."""

    files: int
    bytes: int
    skipped: tuple[str, ...] = ()

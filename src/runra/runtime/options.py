"""The runtime's options as typed models: the same keys in the constructor, in a file and in the document (seed)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from runra.contract import AbsolutePath, Env, ImageName, Request
from runra.contract.network import Network
from runra.errors import RunraError
from runra.sdk.types import refused

LogLevel = Literal["debug", "info", "warn", "error"]


class DefaultResources(Request):
    """Limits of sandboxes that name none: `cpu` cores, `memory_mb` and `disk_mb` in MB."""

    cpu: int | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None


class SandboxDefaults(Request):
    """What a sandbox gets where its own options say nothing."""

    image: ImageName | None = None
    resources: DefaultResources | None = None
    timeout_ms: int | None = None
    idle_timeout_ms: int | None = None
    env: Env | None = None
    workdir: AbsolutePath | None = None
    network: Network | None = None


class SandboxProviderConfig(Request):
    """Where sandboxes come from: `provider` (default `runra-sandbox`), its `api_key`, `api_url` and own `config`."""

    provider: str = Field("runra-sandbox", min_length=1)
    api_key: str | None = Field(None, repr=False)
    api_url: str | None = None
    config: dict[str, Any] = Field(default_factory=dict, repr=False)
    defaults: SandboxDefaults = Field(default_factory=SandboxDefaults)


class AgentConfig(Request):
    """Which agent works: `provider` and its own `config`."""

    provider: str = Field(min_length=1)
    config: dict[str, Any] = Field(default_factory=dict, repr=False)


class LLMProviderConfig(Request):
    """Which model: `provider` and its own `config`."""

    provider: str = Field(min_length=1)
    config: dict[str, Any] = Field(default_factory=dict, repr=False)


class ExporterFilter(Request):
    """Which events an exporter gets: `types` (wildcards as in `on`), a `condition`, and the least level."""

    types: list[str] | None = None
    condition: Callable[[Any], bool] | None = Field(None, exclude=True)
    min_level: LogLevel | None = None


class ExporterConfig(Request):
    """One exporter: `provider`, its own `config`, and a `filter`."""

    provider: str = Field(min_length=1)
    config: dict[str, Any] = Field(default_factory=dict, repr=False)
    filter: ExporterFilter | None = None


class ObservabilityConfig(Request):
    """Exporters, in any of the document's shapes: `{provider, …}`, `{provider, config}`, `{exporters: […]}`."""

    exporters: list[ExporterConfig] = Field(default_factory=list)


class RunraOptions(Request):
    """All options of the runtime. Left out: `runra-sandbox`, no agent, no model, no exporters."""

    sandbox: SandboxProviderConfig = Field(default_factory=lambda: SandboxProviderConfig())
    agent: AgentConfig | None = None
    llm: LLMProviderConfig | None = None
    observability: ObservabilityConfig | None = None
    log_level: LogLevel | None = None


def one_shape(observability: Mapping[str, Any]) -> dict[str, Any]:
    """Any of the three shapes as `{exporters: […]}`. Raises INVALID_CONFIG for a mixture."""
    provider = observability.get("provider")
    if provider is None:
        return dict(observability)
    if "exporters" in observability:
        raise RunraError(
            "INVALID_CONFIG",
            "observability: give either 'provider' or 'exporters', not both; several go into 'exporters'",
            details={"field": "observability"},
        )
    given = {name: value for name, value in observability.items() if name not in ("provider", "config", "filter")}
    nested = observability.get("config")
    if nested is not None and not isinstance(nested, Mapping):
        raise RunraError(
            "INVALID_CONFIG", "observability.config: must be a mapping", details={"field": "observability"}
        )
    one: dict[str, Any] = {"provider": provider, "config": {**given, **(nested or {})}}
    if observability.get("filter") is not None:
        one["filter"] = observability["filter"]
    return {"exporters": [one]}


def checked_options(values: Mapping[str, Any], where: str) -> RunraOptions:
    """The options as models. Raises INVALID_CONFIG that names each field and what it must be, never its value."""
    try:
        return RunraOptions.model_validate(dict(values), context={"client": True})
    except ValidationError as error:
        problem = refused(error)
        raise RunraError("INVALID_CONFIG", f"{where}: {problem.message}", details=problem.details) from None

"""Where models are: the providers as a table, and a target settled from it and the user's configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from runra.errors import RunraError
from runra.runtime.llms.types import Format

KeyStyle = Literal["bearer", "x-api-key", "x-goog-api-key"]
#: How a model is told to think: not at all, by an effort, by a budget of tokens.
Reasoning = Literal["none", "effort", "budget"]


@dataclass(frozen=True)
class Provider:
    """One provider, as data. `paths`: what it speaks, the preferred format first, and where below the base URL.
    `reasoning`: patterns of model names, the first that matches counts. `prices`: its id in genai-prices."""

    id: str
    base_url: str
    paths: Mapping[Format, str]
    base_url_env: tuple[str, ...] = ()
    key_env: tuple[str, ...] = ()
    key_style: KeyStyle = "bearer"
    key_needed: bool = True
    local: bool = False
    prices: str = ""
    max_tokens_field: str = "max_tokens"
    reasoning: tuple[tuple[str, Reasoning], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


_CHAT: Final = "/chat/completions"
_LOCAL: Final[dict[Format, str]] = {"chat": _CHAT}

PROVIDERS: Final[Mapping[str, Provider]] = {
    provider.id: provider
    for provider in (
        Provider(
            "openai",
            "https://api.openai.com/v1",
            {"responses": "/responses", "chat": _CHAT},
            base_url_env=("OPENAI_BASE_URL",),
            key_env=("OPENAI_API_KEY",),
            prices="openai",
            max_tokens_field="max_completion_tokens",
            reasoning=((r"gpt-5.*chat", "none"), (r"(gpt-[5-9]|o[134])", "effort")),
        ),
        Provider(
            "anthropic",
            "https://api.anthropic.com",
            {"messages": "/v1/messages"},
            base_url_env=("ANTHROPIC_BASE_URL",),
            key_env=("ANTHROPIC_API_KEY",),
            key_style="x-api-key",
            prices="anthropic",
            reasoning=(
                (r"claude-(3-[05]|3-opus|3-haiku|3-sonnet)", "none"),
                (r"claude-(3-7|(opus|sonnet|haiku)-4(-[0-5])?(-\d{8})?$)", "budget"),
                (r"claude-", "effort"),
            ),
            headers={"anthropic-version": "2023-06-01"},
        ),
        Provider(
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta",
            {"gemini": "/models/{model}:streamGenerateContent?alt=sse"},
            base_url_env=("GOOGLE_GEMINI_BASE_URL", "GEMINI_BASE_URL"),
            key_env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            key_style="x-goog-api-key",
            prices="google",
            reasoning=((r"gemini-2\.5", "budget"), (r"gemini-[3-9]", "effort")),
        ),
        Provider(
            "openrouter",
            "https://openrouter.ai/api/v1",
            {"chat": _CHAT},
            base_url_env=("OPENROUTER_BASE_URL",),
            key_env=("OPENROUTER_API_KEY",),
            prices="openrouter",
            reasoning=((r"", "effort"),),
        ),
        Provider(
            "ollama",
            "http://127.0.0.1:11434/v1",
            _LOCAL,
            base_url_env=("OLLAMA_BASE_URL", "OLLAMA_HOST"),
            key_env=("OLLAMA_API_KEY",),
            key_needed=False,
            local=True,
        ),
        Provider(
            "vllm",
            "http://127.0.0.1:8000/v1",
            _LOCAL,
            base_url_env=("VLLM_BASE_URL",),
            key_env=("VLLM_API_KEY",),
            key_needed=False,
            local=True,
        ),
        Provider("custom", "", _LOCAL, key_env=("RUNRA_LLM_API_KEY",), key_needed=False),
    )
}

#: Where each format is below a base URL that the user gave together with `format`.
_PATHS: Final[Mapping[Format, str]] = {
    "messages": "/v1/messages",
    "responses": "/responses",
    "chat": _CHAT,
    "gemini": "/models/{model}:streamGenerateContent?alt=sse",
}


class Price(BaseModel):
    """US dollars per million tokens. What the cache reads and writes costs as input unless said otherwise."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_read: float | None = Field(default=None, ge=0)
    cache_write: float | None = Field(default=None, ge=0)


class Timeouts(BaseModel):
    """Milliseconds: to connect, until the answer begins, between two pieces of it, and for all of it."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    connect_ms: int = Field(default=10_000, gt=0)
    first_byte_ms: int = Field(default=300_000, gt=0)
    idle_ms: int = Field(default=120_000, gt=0)
    total_ms: int = Field(default=1_800_000, gt=0)


class ModelConfig(BaseModel):
    """The `config` of a model provider (camelCase in files).

    `api_key`, else the environment variable named `api_key_env`, else the provider's own. `format`: one the server at
    `base_url` speaks, or several, the preferred first. `prices`: per model, over those of genai-prices.
    `max_output_tokens` caps what is asked for. `images`: whether the model sees. `local`: whether its tokens are free
    (default: for ollama, vllm, and any loopback address). `max_retries` before the first byte.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    model: str = ""
    api_key: str = Field(default="", repr=False)
    api_key_env: str = ""
    base_url: str = ""
    format: Format | list[Format] | None = None
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    max_output_tokens: int | None = Field(default=None, gt=0)
    images: bool = True
    reasoning: Reasoning | None = None
    local: bool | None = None
    prices: dict[str, Price] = Field(default_factory=dict)
    max_retries: int = Field(default=3, ge=0, le=20)
    max_retry_wait_ms: int = Field(default=60_000, ge=0)
    timeouts: Timeouts = Field(default_factory=Timeouts)


@dataclass(frozen=True)
class Target:
    """A model, settled: where it is, what it speaks, with which key. The key is in no repr."""

    provider: Provider
    model: str
    base_url: str
    paths: Mapping[Format, str]
    key: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_output_tokens: int | None = None
    images: bool = True
    reasoning: Reasoning = "none"
    local: bool = False
    prices: Mapping[str, Price] = field(default_factory=dict)
    max_retries: int = 3
    max_retry_wait_s: float = 60.0
    timeouts: Timeouts = field(default_factory=Timeouts)

    @property
    def format(self) -> Format:
        """The format it speaks best."""
        return next(iter(self.paths))

    def url(self, format: Format) -> str:
        path = self.paths[format].format(model=self.model)
        doubled = self.base_url.endswith("/v1") and path.startswith("/v1/")
        return self.base_url + (path[3:] if doubled else path)

    def request_headers(self) -> dict[str, str]:
        """What every request to it carries, the key among it."""
        headers = {**self.provider.headers, **self.headers}
        if self.key:
            if self.provider.key_style == "bearer" and self.format != "messages":
                headers["authorization"] = f"Bearer {self.key}"
            else:
                style = self.provider.key_style
                headers["x-api-key" if style == "bearer" else style] = self.key
        if "messages" in self.paths:
            headers.setdefault("anthropic-version", "2023-06-01")
        return headers


def resolve(provider_id: str, config: ModelConfig | Mapping[str, Any] | None = None) -> Target:
    """Settle a target. Raises INVALID_CONFIG naming what is missing or wrong; the key is never part of what is said."""
    provider = PROVIDERS.get(provider_id)
    if provider is None:
        raise _wrong("provider", f"{provider_id!r} is none; there are {', '.join(PROVIDERS)}")
    settled = config if isinstance(config, ModelConfig) else _parse(provider_id, dict(config or {}))
    base_url = settled.base_url or _from_env(provider.base_url_env) or provider.base_url
    if not base_url:
        raise _wrong("baseUrl", f"{provider_id}: give the URL of the model's server, such as http://127.0.0.1:8080/v1")
    if provider_id == "ollama":
        base_url = _ollama(base_url)
    base_url = _url(base_url)
    if not settled.model:
        raise _wrong("model", f"{provider_id}: no model; name one, such as {{'model': …}}")
    if not re.fullmatch(r"[\w.:/@+\- \[\]]{1,200}", settled.model) or ".." in settled.model:
        raise _wrong("model", f"{settled.model[:80]!r} is not a model's name")
    key = settled.api_key or _from_env((settled.api_key_env,) if settled.api_key_env else provider.key_env)
    if not key and provider.key_needed:
        raise _wrong("apiKey", f"{provider_id}: no API key; set {provider.key_env[0]}, or apiKey in the configuration")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise _wrong("apiKey", f"{provider_id}: the API key must be printable ASCII without spaces")
    formats = [settled.format] if isinstance(settled.format, str) else settled.format
    host = urlsplit(base_url).hostname or ""
    loopback = host in ("localhost", "::1") or host.startswith("127.")
    return Target(
        provider=provider,
        model=settled.model,
        base_url=base_url,
        paths={one: provider.paths.get(one, _PATHS[one]) for one in formats} if formats else provider.paths,
        key=key,
        headers=settled.headers,
        max_output_tokens=settled.max_output_tokens,
        images=settled.images,
        reasoning=settled.reasoning or _reasoning(provider, settled.model),
        local=settled.local if settled.local is not None else provider.local or (provider.id == "custom" and loopback),
        prices=settled.prices,
        max_retries=settled.max_retries,
        max_retry_wait_s=settled.max_retry_wait_ms / 1000,
        timeouts=settled.timeouts,
    )


def _parse(provider_id: str, config: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]  # the input may be a key
        where = ".".join(map(str, first["loc"]))
        raise _wrong(where, f"{provider_id}: {where}: {first['msg']}") from None


def _wrong(field_name: str, message: str) -> RunraError:
    return RunraError("INVALID_CONFIG", f"llm: {message}", details={"field": field_name})


def _from_env(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _ollama(value: str) -> str:
    """OLLAMA_HOST may be a bare host and has no path."""
    url = value if "://" in value else f"http://{value}"
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1"


def _url(url: str) -> str:
    cleaned = url.strip().rstrip("/")
    parts = urlsplit(cleaned)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise _wrong("baseUrl", f"{parts.scheme}://{parts.hostname}… is no base URL; give http(s)://host[:port][/path]")
    return cleaned


def _reasoning(provider: Provider, model: str) -> Reasoning:
    name = model.rpartition("/")[2]
    return next((style for pattern, style in provider.reasoning if re.match(pattern, name)), "none")

"""Which providers there are: built in (by name, imported when used), registered by code, or found as entry points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Generic, TypeVar

from runra.errors import RunraError

Provider = TypeVar("Provider")
Factory = Callable[..., Any]

#: pip's name for the parts of `runra` a built-in provider needs, where that is not the provider's own name.
_EXTRAS: Final = {"cubesandbox": "runtime", "langfuse": "otel", "webhook": "runtime"}


class Registry(Generic[Provider]):
    """Providers of one kind by id. What was registered wins over what is built in, that over entry points: a package
    that merely happens to be installed never replaces a part of Runra."""

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str]) -> None:
        self.kind = kind
        self._group = group
        self._built_in = built_in
        self._registered: dict[str, Factory] = {}

    def register(self, id: str, factory: Factory) -> None:
        """Know `id` from now on, process-wide; a second registration replaces the first. A class is a factory."""
        if not isinstance(id, str) or not id or not callable(factory):
            raise RunraError("INVALID_CONFIG", f"a {self.kind} needs an id and a factory, not {id!r} and {factory!r}")
        self._registered[id] = factory

    def unregister(self, id: str) -> None:
        """Forget what was registered under `id`; without it nothing happens."""
        self._registered.pop(id, None)

    def names(self) -> list[str]:
        """Every id that `create` knows, sorted."""
        return sorted({*self._registered, *self._built_in, *self._plugins()})

    def factory(self, id: str) -> Factory:
        """What makes the provider `id`. Raises INVALID_CONFIG for an unknown id, or when its package is missing."""
        if id in self._registered:
            return self._registered[id]
        if id in self._built_in:
            return self._imported(id, self._built_in[id])
        plugin = self._plugins().get(id)
        if plugin is not None:
            try:
                made: Factory = plugin.load()
            except (ImportError, AttributeError) as error:
                raise RunraError(
                    "INVALID_CONFIG",
                    f"{self.kind} {id!r}: its plug-in {plugin.value} cannot be loaded ({error}); repair or remove it",
                    details={"provider": id},
                ) from error
            return made
        raise RunraError(
            "INVALID_CONFIG",
            f"there is no {self.kind} {id!r}; known: {', '.join(self.names()) or 'none'}. Register yours, or install "
            f"a package with the entry point group {self._group}",
            details={"provider": id, "known": self.names()},
        )

    def origin(self, id: str) -> str:
        """Where the provider `id` comes from: `registered`, `built in`, or the package whose plug-in it is."""
        if id in self._registered:
            return "registered"
        if id in self._built_in:
            return "built in"
        plugin = self._plugins().get(id)
        package = plugin.dist if plugin is not None else None
        return f"{package.name} {package.version}" if package is not None else "a plug-in"

    def create(self, id: str, *args: Any) -> Provider:
        """A new provider `id`, from its factory."""
        made: Provider = self.factory(id)(*args)
        return made

    def _plugins(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self._group)}

    def _imported(self, id: str, where: str) -> Factory:
        module, _, name = where.partition(":")
        try:
            made: Factory = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "runra":
                raise
            raise RunraError(
                "INVALID_CONFIG",
                f"{self.kind} {id!r} needs the package {error.name}: pip install 'runra[{_EXTRAS.get(id, id)}]'",
                details={"provider": id, "missing": error.name},
            ) from error
        return made


_HERE: Final = "runra.runtime"

SANDBOX_PROVIDERS: Final[Registry[Any]] = Registry(
    "sandbox provider",
    "runra.sandbox_providers",
    {
        "runra-sandbox": f"{_HERE}.sandboxes.runra_sandbox:RunraSandboxProvider",
        "docker": f"{_HERE}.sandboxes.docker:DockerProvider",
        "e2b": f"{_HERE}.sandboxes.e2b:E2BProvider",
        "cubesandbox": f"{_HERE}.sandboxes.cubesandbox:CubeSandboxProvider",
    },
)
AGENTS: Final[Registry[Any]] = Registry(
    "agent",
    "runra.agents",
    {
        "claude-code": f"{_HERE}.agents.cli:claude_code",
        "codex": f"{_HERE}.agents.cli:codex",
        "opencode": f"{_HERE}.agents.cli:opencode",
        "custom": f"{_HERE}.agents.custom:CustomAgent",
    },
)
LLMS: Final[Registry[Any]] = Registry(
    "model provider",
    "runra.llms",
    {
        id: f"{_HERE}.llms.provider:{id}"
        for id in ("openai", "anthropic", "gemini", "openrouter", "ollama", "vllm", "custom")
    },
)
EXPORTERS: Final[Registry[Any]] = Registry(
    "exporter",
    "runra.exporters",
    {
        "axiom": f"{_HERE}.exporters.axiom:AxiomExporter",
        "console": f"{_HERE}.exporters.console:ConsoleExporter",
        "custom": f"{_HERE}.exporters.custom:CustomExporter",
        "jsonl": f"{_HERE}.exporters.jsonl:JsonlExporter",
        "langfuse": f"{_HERE}.exporters.langfuse:LangfuseExporter",
        "otel": f"{_HERE}.exporters.otel:OtelExporter",
        "postgres": f"{_HERE}.exporters.postgres:PostgresExporter",
        "prometheus": f"{_HERE}.exporters.prometheus:PrometheusExporter",
        "webhook": f"{_HERE}.exporters.webhook:WebhookExporter",
    },
)

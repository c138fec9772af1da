"""Where the runtime's options come from: constructor, environment, project file, the user's file, in this order."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from runra.errors import RunraError
from runra.runtime.options import RunraOptions, checked_options, one_shape
from runra.runtime.trust import check_project, is_trusted
from runra.sdk.settings import DEFAULT_API_URL, config_path

#: Environment variables and the options they set (spec 1, Runtime), and whether those are whole numbers.
ENVIRONMENT: Final[dict[str, tuple[str, bool]]] = {
    "RUNRA_API_KEY": ("sandbox.apiKey", False),
    "RUNRA_API_URL": ("sandbox.apiUrl", False),
    "RUNRA_DEFAULT_IMAGE": ("sandbox.defaults.image", False),
    "RUNRA_DEFAULT_CPU": ("sandbox.defaults.resources.cpu", True),
    "RUNRA_DEFAULT_MEMORY_MB": ("sandbox.defaults.resources.memoryMb", True),
    "RUNRA_DEFAULT_TIMEOUT_MS": ("sandbox.defaults.timeoutMs", True),
    "RUNRA_LOG_LEVEL": ("logLevel", False),
}
PROJECT_FILES: Final = ("runra.config.json", "runra.config.toml")
#: The provider that RUNRA_API_KEY, RUNRA_API_URL and the top-level key of a file belong to.
OURS: Final = "runra-sandbox"
#: Options that belong to one provider and mean nothing, or harm, to another.
_OF_A_PROVIDER: Final = ("apiKey", "apiUrl", "config")
_SECTIONS: Final = ("sandbox", "agent", "llm")
_SECRET: Final = re.compile(r"key|token|secret|passw|credential|headers|dsn|cookie|\benv\b", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """Options from one source, by their names in a file."""

    source: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Resolved:
    """The options in force, and for each (`sandbox.apiUrl`) which source it came from."""

    options: RunraOptions
    values: dict[str, Any]
    sources: dict[str, str]


def resolve(given: Mapping[str, Any] | BaseModel | None = None, *, config_file: str | Path | None = None) -> Resolved:
    """Settle the options: `given` over the environment over the project's file (`runra.config.json` or `.toml` in the
    working directory) over the user's (`~/.runra/config.json`, or what RUNRA_CONFIG_PATH names). `config_file` stands
    in the project file's place.

    A section (`sandbox`, `agent`, `llm`) that names another provider than a higher source does gives only its
    `defaults`: one provider's key and settings are never handed to another. A key from a file is only sent to the
    address that file gives. A project's file that was found, not named, decides neither where other keys go nor what is
    imported, unless its folder is trusted (`runra.runtime.trust`).

    Raises INVALID_CONFIG for a file that cannot be read and for an option that is wrong, naming file and option.
    """
    layers = [Layer("constructor", _plain(given)), _environment(), *_project(config_file), *_user()]
    layers = [layer for layer in layers if layer.values]
    for layer in layers:
        checked_options(layer.values, layer.source)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in _fitting(layers):
        _fill(values, layer.values, layer.source, sources, "")
    _check_key_and_address(values, sources, layers)
    if config_file is None:  # one that was named is the caller's own word
        for path in _found_in_folder():
            if not is_trusted(path.parent):
                check_project(values, sources, str(path))
    return Resolved(checked_options(values, "options"), values, sources)


def is_secret(name: str) -> bool:
    """Whether an option's name says that its value is not for the eyes of others."""
    return bool(_SECRET.search(name))


def masked(values: Any, name: str = "") -> Any:
    """Options as they may be shown: what is secret as `****` and its last four characters."""
    if isinstance(values, Mapping):
        return {key: masked(value, f"{name} {key}") for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [masked(value, name) for value in values]
    if isinstance(values, str) and is_secret(name):
        return f"****{values[-4:]}" if len(values) >= 16 else "****"
    return values if values is None or isinstance(values, str | int | float | bool) else f"<{type(values).__name__}>"


# --- the sources -------------------------------------------------------------------------------------------------


def _plain(given: Mapping[str, Any] | BaseModel | None) -> dict[str, Any]:
    """Options as nested dicts with camelCase names. What belongs to a provider (`config`, `env`) keeps its names."""
    if given is None:
        return {}
    named: dict[str, Any] = _named(given)
    for section in _SECTIONS:
        if isinstance(named.get(section), str):  # "docker" for {"provider": "docker"}
            named[section] = {"provider": named[section]}
    shape = named.get("observability")
    if isinstance(shape, str):
        shape = {"provider": shape}
    if isinstance(shape, Mapping):
        named["observability"] = one_shape(shape)
    return named


#: What is inside these is the user's own naming.
_OWN_NAMES: Final = frozenset(("config", "env", "metadata"))


def _named(value: Any) -> Any:
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in value.model_fields_set}
    if isinstance(value, Mapping):
        named = {}
        for name, inner in value.items():
            if inner is None or not isinstance(name, str):
                continue
            key = to_camel(name)
            named[key] = dict(inner) if key in _OWN_NAMES and isinstance(inner, Mapping) else _named(inner)
        return named
    if isinstance(value, list | tuple):
        return [_named(item) for item in value]
    return value


def _environment() -> Layer:
    values: dict[str, Any] = {}
    for name, (path, whole) in ENVIRONMENT.items():
        text = os.environ.get(name)
        if not text:
            continue
        value: str | int = text
        if whole:
            try:
                value = int(text)
            except ValueError:
                raise RunraError(
                    "INVALID_CONFIG", f"{name}: must be a whole number, not {text!r}", details={"field": name}
                ) from None
        *above, last = path.split(".")
        inner = values
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = value.lower() if name == "RUNRA_LOG_LEVEL" and isinstance(value, str) else value
    return Layer("environment", values)


def _project(named: str | Path | None) -> list[Layer]:
    if named is not None:
        path = Path(named)
        if not path.exists():
            raise RunraError("INVALID_CONFIG", f"there is no {path}", details={"path": str(path)})
        return [Layer(str(path), _with_top_level(_plain(_read(path))))]
    found = _found_in_folder()
    if len(found) > 1:
        raise RunraError(
            "INVALID_CONFIG",
            f"there are both {' and '.join(PROJECT_FILES)} in {Path.cwd()}: keep one",
            details={"paths": [str(path) for path in found]},
        )
    return [Layer(str(path), _with_top_level(_plain(_read(path)))) for path in found]


def _found_in_folder() -> list[Path]:
    return [Path.cwd() / name for name in PROJECT_FILES if (Path.cwd() / name).is_file()]


def _user() -> list[Layer]:
    path = config_path()
    if not path.exists():
        return []
    # The server notes things of its own in this file.
    known = (*_SECTIONS, "observability", "logLevel", "apiKey", "apiUrl")
    values = {name: value for name, value in _plain(_read(path)).items() if name in known}
    return [Layer(str(path), _with_top_level(values))]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise RunraError(
            "INVALID_CONFIG", f"cannot read {path}: {error.strerror}", details={"path": str(path)}
        ) from None
    except ValueError as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise RunraError(
            "INVALID_CONFIG", f"{path} is no {kind}: {error}; repair or remove it", details={"path": str(path)}
        ) from None
    if not isinstance(content, dict):
        raise RunraError("INVALID_CONFIG", f"{path}: must hold one object", details={"path": str(path)})
    return content


def _with_top_level(values: dict[str, Any]) -> dict[str, Any]:
    """The SDK's `apiKey` and `apiUrl` at the top of a file are those of our own provider."""
    top = {name: values.pop(name) for name in ("apiKey", "apiUrl") if name in values}
    section = values.get("sandbox", {})
    if top and isinstance(section, Mapping) and section.get("provider", OURS) == OURS:
        values["sandbox"] = {**top, **section}
    return values


# --- putting them together ---------------------------------------------------------------------------------------


def _fitting(layers: list[Layer]) -> list[Layer]:
    """The layers without what belongs to another provider than the one in force."""
    chosen = {section: _chosen(layers, section) for section in _SECTIONS}
    fitting = []
    for layer in layers:
        values = dict(layer.values)
        for section, provider in chosen.items():
            inner = values.get(section)
            if not isinstance(inner, Mapping):
                continue
            named = inner.get("provider") or (OURS if layer.source == "environment" else None)
            theirs = named or (OURS if section == "sandbox" and layer is not layers[0] else provider)
            if theirs != provider:
                values[section] = {name: it for name, it in inner.items() if name not in (*_OF_A_PROVIDER, "provider")}
        fitting.append(Layer(layer.source, values))
    return fitting


def _chosen(layers: list[Layer], section: str) -> str | None:
    for layer in layers:
        inner = layer.values.get(section)
        if isinstance(inner, Mapping) and inner.get("provider"):
            return str(inner["provider"])
    return OURS if section == "sandbox" else None


def _fill(into: dict[str, Any], values: Mapping[str, Any], source: str, sources: dict[str, str], at: str) -> None:
    """Take over what no higher source has said. Lists and the exporters are taken whole."""
    for name, value in values.items():
        path = f"{at}{name}"
        if isinstance(value, Mapping) and value:
            inner = into.setdefault(name, {})
            if isinstance(inner, dict):
                _fill(inner, value, source, sources, f"{path}.")
        elif name not in into:
            into[name] = value
            sources[path] = source


def _check_key_and_address(values: Mapping[str, Any], sources: Mapping[str, str], layers: list[Layer]) -> None:
    """Refuse to send a file's key to another address than that file's (the SDK's rule)."""
    key = sources.get("sandbox.apiKey")
    if key in (None, "constructor", "environment"):
        return
    home = next(layer.values["sandbox"].get("apiUrl") for layer in layers if layer.source == key)
    chosen = values["sandbox"].get("apiUrl")
    if values["sandbox"].get("provider", OURS) == OURS:
        home, chosen = home or DEFAULT_API_URL, chosen or DEFAULT_API_URL
    if chosen is None or chosen == home:
        return
    raise RunraError(
        "INVALID_CONFIG",
        f"the API key in {key} belongs to {home} and is sent nowhere else, but {sources['sandbox.apiUrl']} gives "
        f"another address, {chosen}: give its key there too, or set RUNRA_API_KEY",
        details={"field": "sandbox.apiKey", "keyFrom": key, "urlFrom": sources["sandbox.apiUrl"]},
    )

"""From the options `observability` to exporters, checked whole before anything starts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from runra.errors import RunraError
from runra.events import check_pattern
from runra.runtime.exporters.custom import CustomConfig, CustomExporter
from runra.runtime.exporters.delivery import Delivery, Route
from runra.runtime.exporters.pipeline import Pipeline
from runra.runtime.exporters.redaction import Redactor, is_secret_name
from runra.runtime.options import ExporterConfig, ExporterFilter, ObservabilityConfig, one_shape
from runra.runtime.registry import EXPORTERS
from runra.sdk.types import refused


def build(observability: ObservabilityConfig | Mapping[str, Any] | str | None) -> list[Route]:
    """The exporters of any of the document's shapes: `"console"`, `{provider, …}`, `{provider, config}`,
    `{exporters: […]}`. Nothing is connected yet.

    Raises INVALID_CONFIG for an unknown exporter, one whose package is missing (naming what to install), an option that
    is wrong, and a filter that never matches; values stay out of the message, for they may be secrets.
    """
    return [
        _route(one, f"observability.exporters.{number}") for number, one in enumerate(_options(observability).exporters)
    ]


def pipeline(
    observability: ObservabilityConfig | Mapping[str, Any] | str | None, secrets: Iterable[str] = ()
) -> Pipeline:
    """The whole of it, to be started: exporters, filters and a redactor that knows `secrets` and the exporters' own."""
    options = _options(observability)
    redactor = Redactor(secrets)
    routes = build(options)
    for one in options.exporters:
        redactor.add(*_secrets(one.config))
    return Pipeline(routes, redactor)


def _options(observability: ObservabilityConfig | Mapping[str, Any] | str | None) -> ObservabilityConfig:
    if observability is None:
        return ObservabilityConfig()
    if isinstance(observability, ObservabilityConfig):
        return observability
    shape = {"provider": observability} if isinstance(observability, str) else observability
    options: ObservabilityConfig = _checked(ObservabilityConfig, one_shape(shape), "observability")
    return options


def _route(one: ExporterConfig, where: str) -> Route:
    filter = one.filter or ExporterFilter()
    for pattern in filter.types or ():
        try:
            check_pattern(pattern)
        except RunraError as error:
            told = f"{where}.filter.types: {error.message}"
            raise RunraError("INVALID_CONFIG", told, details=error.details) from None
    factory = EXPORTERS.factory(one.provider)
    model = getattr(factory, "Config", None)
    if inspect.isclass(model) and issubclass(model, Delivery) and model is not CustomConfig:
        config: Delivery = _checked(model, one.config, f"{where}.config")
        return Route(factory(config), filter, config)
    # The document's interface: a factory without arguments, then initialize(config) with what is not ours to know.
    shared = {name for field, info in CustomConfig.model_fields.items() for name in (field, info.alias or field)}
    given = {name: value for name, value in one.config.items() if name in shared}
    own = {name: value for name, value in one.config.items() if name not in shared}
    nested = given.get("config")
    given["config"] = {**own, **(nested if isinstance(nested, Mapping) else {})}
    if factory is not CustomExporter:
        given["exporter"] = factory()
    wrapped: CustomConfig = _checked(CustomConfig, given, f"{where}.config")
    exporter = CustomExporter(wrapped)
    if exporter.name == "custom":
        exporter.name = one.provider
    return Route(exporter, filter, wrapped)


def _checked(model: Any, values: Mapping[str, Any] | BaseModel, where: str) -> Any:
    try:
        return model.model_validate(values if isinstance(values, BaseModel) else dict(values))
    except ValidationError as error:
        problem = refused(error)
        raise RunraError("INVALID_CONFIG", f"{where}: {problem.message}", details=problem.details) from None


def _secrets(config: Mapping[str, Any]) -> list[str]:
    """What an exporter's options say is secret: its key must not come out of another exporter."""
    found = []
    for name, value in config.items():
        if isinstance(value, SecretStr):
            found.append(value.get_secret_value())
        elif isinstance(value, Mapping):
            found += _secrets(value)
        elif isinstance(value, str) and is_secret_name(name):
            found.append(value)
    return found

"""Exporters: where a runtime's events go. One module each; `build` makes them from options, `Pipeline` feeds them."""

from runra.runtime.exporters.build import build, pipeline
from runra.runtime.exporters.delivery import Delivery, Route, Stats
from runra.runtime.exporters.pipeline import Pipeline
from runra.runtime.exporters.redaction import Redactor, secret_values

__all__ = ["Delivery", "Pipeline", "Redactor", "Route", "Stats", "build", "pipeline", "secret_values"]

"""The conformance suite on every built-in provider."""

from runra.runtime.testing.conformance import *  # noqa: F403 - its tests and fixtures are what is wanted

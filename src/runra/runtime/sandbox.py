"""A sandbox as the runtime gives it: the same calls whatever the provider, and an event for each."""

from __future__ import annotations


class Sandbox:
    """A sandbox of any provider."""

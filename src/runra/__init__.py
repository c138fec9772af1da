"""Runra: sandboxes for AI agents, self-hosted."""

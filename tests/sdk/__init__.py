"""Tests of the client: against a real server with real sandboxes, and against a wire that fails on purpose."""

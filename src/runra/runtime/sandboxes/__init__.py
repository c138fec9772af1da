"""Sandbox providers: where sandboxes come from. One module each, fulfilling `SandboxProvider`."""

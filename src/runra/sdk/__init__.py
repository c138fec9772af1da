"""The client: one transport, the sandbox object, sync and async from one source (`_async`; `_sync` is generated)."""

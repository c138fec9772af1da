"""The client's source. `scripts/generate_sync.py` makes the sync form in `_sync` from these files."""

"""The REST service: who is calling, may they, which sandbox; then the node does the work."""

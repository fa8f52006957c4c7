"""The HTTP API that the flows call by default."""

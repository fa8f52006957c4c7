"""Day two: what people and `make` ask of a running stack."""

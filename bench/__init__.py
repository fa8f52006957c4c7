"""Measures this stack beside stock Prefect and a bare container, on one machine, in one run."""

"""Benchmarks by name, as `adatad dev benchmark NAME` runs them; each has a `run` that returns its results."""

"""Comparison with golden cases: what the reference was given, and what it computed."""

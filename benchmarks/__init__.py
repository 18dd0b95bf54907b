"""Benchmarks: how fast the ops and models are, and against what."""

"""Benchmarks: run from the repository root, never installed."""

"""Benchmarks: what the promises cost, measured side by side."""

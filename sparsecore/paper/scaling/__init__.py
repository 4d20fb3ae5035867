"""Speedup by number of workers, measured and simulated."""

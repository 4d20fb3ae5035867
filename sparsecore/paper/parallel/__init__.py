"""Parallel training against epochs and seconds."""

"""Compiled code: lanes, kernels, and the threads that run them."""

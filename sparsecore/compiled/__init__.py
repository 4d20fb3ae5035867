"""Compiled code: lanes, kernels, and the threads that run them.

Read `kernels` first (loops over one layer), then `programs` (a batch through all layers), then
`engine` (what Python calls). `lanes`, `jit`, `team`, `losses` and `arrays` are their tools.
"""

"""Compiled code: lanes, kernels, and the threads that run them.

A step of training is `Trainer.run_epoch`, `Engine.train`, `Team.walk`, `programs.run_batches`.
Skim the docstrings of `lanes` first (a value is a neuron's row of the batch; `at` and `put` index
an array), then read `kernels` (loops over one layer), `programs` (a batch through all layers) and
`engine` (what Python calls). `jit`, `team`, `losses` and `arrays` are their tools.
"""

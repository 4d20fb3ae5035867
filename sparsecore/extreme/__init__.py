"""Networks of hundreds of millions of neurons on one machine: weights in tiles, nothing transposed.

`sparsecore.mlp` serves smaller networks better, with dropout, pruning, large batches and any
density. Its kernels fetch a neuron's inputs from wherever they are: a large batch pays for that,
but a batch of 4 in gigabytes of activations would only wait for memory.
"""

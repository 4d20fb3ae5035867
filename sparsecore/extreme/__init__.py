"""Networks of hundreds of millions of neurons on one machine: weights in tiles, nothing transposed.

`sparsecore.mlp` serves smaller networks better. Its kernels fetch inputs from wherever they are,
and a batch of 4 in gigabytes of activations would only wait for memory.
"""

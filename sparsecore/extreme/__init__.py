"""Networks of hundreds of millions of neurons on one machine: weights in tiles, nothing transposed.

`sparsecore.mlp` is better for smaller networks. Its kernels read inputs at random places; with a
batch of 4 and gigabytes of activations they would mostly wait for memory.
"""

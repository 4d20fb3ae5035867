"""Networks of hundreds of millions of neurons on one machine: weights in tiles, nothing transposed.

`tiles` stores, draws and evolves a layer; `sweeps` takes a small batch through it; `network` puts
layers together, and `split` spreads them over ranks; `budget` plans their memory; `data` draws the
batches; `run` trains, and `saved` is its checkpoint. `sparsecore.mlp` serves smaller networks
better: it has dropout, pruning, large batches and layers of any density. Its kernels cannot serve
here, because they fetch a neuron's inputs from wherever they are: a large batch pays for that, but
a batch of 4 in gigabytes of activations would only wait for memory.
"""

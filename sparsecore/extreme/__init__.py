"""Networks of hundreds of millions of neurons on one machine: weights in tiles, nothing transposed.

`tiles` says how a layer is stored, drawn and evolved, `select` which of its weights are the
weakest, `sweeps` how a small batch passes through it, `network` puts layers together, `budget`
tells their memory beforehand, and `run` trains. What is small enough is better off with
`sparsecore.mlp`: it has dropout, pruning, large batches and layers of any density. Its kernels
cannot serve here in another layout: they fetch a neuron's inputs from where they are, which is what
a large batch wants, while a batch of 4 in memory without end spends all its time waiting for them.
"""
